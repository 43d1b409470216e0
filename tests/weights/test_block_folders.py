"""Folders of block diffusion, Fast-dLLM v2 and LLaDA 2 beside what they compute by definition: reading and drawing."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import block_folders as blocks
import goodness_of_fit
import hub_folders as hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from smallest import settings_of, words_of
from torch import Tensor

import edlm
from edlm.likelihood import enumeration
from edlm.models import denoisers
from edlm.nn import decoders
from edlm.nn.pretrained import PretrainedNetwork
from edlm.recipes import evaluate, generate
from edlm.samplers import corrections, pipelines, plans
from edlm.samplers.sampler import Sampler
from edlm.weights import large, loading, memory, pretrained, shards

transformers = pytest.importorskip("transformers", reason="needs pip install 'edlm-torch[families]'")
TOLERANCE = 1e-4
CPU = torch.device("cpu")
KINDS = ("sdar", "fast_dllm", "llada2")


def written(kind: str, folder: Path, **changes: Any) -> Callable[..., Tensor]:
    """Write a folder, and give what its model computes: tokens, and what positions see, to logits."""
    if kind == "llada2":
        state = blocks.llada2_weights({**blocks.LLADA2, **changes})
        blocks.llada2(folder, state, **changes)
        return lambda tokens, allowed: blocks.llada2_logits(state, tokens, allowed, {**blocks.LLADA2, **changes})
    if kind == "fast_dllm":
        model = blocks.fast_dllm(folder, transformers, **changes)
        return lambda tokens, allowed: blocks.shifted_logits(model, tokens, allowed)
    own = blocks.sdar(folder, transformers)
    return lambda tokens, allowed: own(tokens, attention_mask=_scores(tokens, allowed)).logits


def _scores(tokens: Tensor, allowed: Tensor) -> Tensor:
    return torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf).expand(len(tokens), 1, -1, -1)


def largest(found: Tensor, expected: Tensor) -> float:
    return float((found.log_softmax(-1) - expected.log_softmax(-1)).abs().max())


# ---- Parity


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_log_probabilities_are_those_of_the_published_model(kind: str, tmp_path: Path) -> None:
    reference, tokens = written(kind, tmp_path / "m"), hub.tokens(3, blocks.LENGTH)
    network = large.load_diffusion(tmp_path / "m")
    expected = reference(tokens, blocks.seen())
    assert largest(network.head(network(tokens)), expected) < TOLERANCE
    positions = torch.tensor([0, 31, 32, 71, 72, 200])
    rows = network.head(network(tokens, None, positions))
    assert largest(rows, expected.flatten(0, 1)[positions]) < TOLERANCE
    assert (network.block_size, network.max_length, network.training) == (blocks.SIZE, 96, False)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_other_blocks_and_no_shift_would_be_seen(kind: str, tmp_path: Path) -> None:
    reference, tokens = written(kind, tmp_path / "m"), hub.tokens(1, blocks.LENGTH)
    network = large.load_diffusion(tmp_path / "m")
    found, expected = network.head(network(tokens)), reference(tokens, blocks.seen())
    everything = torch.ones(blocks.LENGTH, blocks.LENGTH, dtype=torch.bool)
    for allowed in (blocks.seen(size=31), everything, everything.tril()):
        assert largest(found, reference(tokens, allowed)) > 100 * TOLERANCE
    assert largest(found[:, 1:], expected[:, :-1]) > 100 * TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {"first_k_dense_replace": 0},
        {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 1},
        {"n_group": 2, "topk_group": 2, "num_experts_per_tok": 8, "routed_scaling_factor": 1.0},
        {"partial_rotary_factor": 1.0, "rotary_dim": 12},
        {"num_key_value_heads": 4, "num_shared_experts": 1},
    ],
)
@torch.no_grad()
def test_every_number_of_llada_2_is_read(changes: dict[str, Any], tmp_path: Path) -> None:
    reference, tokens = written("llada2", tmp_path / "m", **changes), hub.tokens(2, blocks.LENGTH)
    network = large.load_diffusion(tmp_path / "m")
    assert largest(network.head(network(tokens)), reference(tokens, blocks.seen())) < TOLERANCE


def test_the_bias_of_an_expert_decides_whether_it_is_chosen_and_not_what_it_weighs() -> None:
    """The definition in the tests, by hand: groups by their two best, experts among the groups that are left."""
    scores = torch.tensor([0.9, 0.1, 0.6, 0.6, 0.2, 0.8, 0.5, 0.0])
    assert blocks.chosen(scores) == [0, 2, 3]  # groups sum to 1.0, 1.2, 1.0 and 0.5; of equal ones the first
    assert blocks.chosen(scores + torch.tensor([0.0] * 6 + [0.0, 0.9])) == [7, 2, 3]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_one_pass_beside_the_clean_text_is_a_pass_of_each_block_after_clean_ones(kind: str, tmp_path: Path) -> None:
    """Of a network that reads a bos in front too, as a shifted one does where every token of a text counts."""
    written(kind, tmp_path / "m")
    for opened in (False, True) if kind == "fast_dllm" else (False,):
        network = large.load_diffusion(tmp_path / "m")
        network.bos_id = 1 if opened else None
        clean = hub.tokens(3, 70)
        noisy = torch.where(torch.rand(clean.shape, generator=torch.Generator().manual_seed(0)) < 0.5, 33, clean)
        found = network(noisy, None, None, clean=clean)
        for start in range(0, 70, blocks.SIZE):
            end = start + blocks.SIZE
            state = torch.cat([clean[:, :start], noisy[:, start:end], torch.full_like(noisy[:, end:], 7)], dim=1)
            assert torch.allclose(network(state)[:, start:end], found[:, start:end], atol=1e-4)
        network.rows_at_once = 2
        positions = torch.tensor([0, 31, 32, 64, 69, 70, 199])
        some = network(noisy, None, positions, clean=clean)
        assert torch.allclose(some, found.flatten(0, 1)[positions], atol=1e-4)
        assert torch.equal(network(noisy[:, :32], clean=clean[:, :32]), network(noisy[:, :32]))


@torch.no_grad()
def test_a_bos_in_front_is_the_same_law_one_token_on(tmp_path: Path) -> None:
    written("fast_dllm", tmp_path / "m")
    tokens = hub.tokens(2, 70)
    plain = large.load_diffusion(tmp_path / "m")
    found = loading.denoiser(str(tmp_path / "m"), CPU)
    assert found.opening == ()
    assert (found.network.max_length, plain.max_length) == (95, 96)
    opened = torch.cat([torch.ones_like(tokens[:, :1]), tokens], dim=1)
    assert torch.allclose(found.network(tokens), plain(opened)[:, 1:], atol=1e-5)


# ---- Drawing


def small(kind: str, folder: Path) -> PretrainedNetwork:
    """A network of four ids, the last one the mask, whose texts have two blocks of two."""
    changes = {"vocab_size": 4, "mask_token_id": 3, "pad_token_id": None, "eos_token_id": None, "bos_token_id": None}
    if kind == "llada2":
        written(kind, folder, **changes)
    else:
        blocks.fast_dllm(folder, transformers, vocab_size=4, eos_token_id=2)
        hub.change(folder, bd_size=2, mask_token_id=3)
    network = large.load_diffusion(folder, max_length=4)
    network.block_size = 2  # LLaDA 2 has it in its code, and no key says another
    for each in network.head.parameters():
        each.data /= 4  # no token is almost certain
    return network


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fast_dllm", "llada2"])
@torch.no_grad()
def test_texts_are_drawn_block_by_block_with_the_probabilities_of_the_network(kind: str, tmp_path: Path) -> None:
    """The enumerated law of the library's sampler, beside the mean over both orders of each block, written out."""
    network = small(kind, tmp_path / "m")
    texts = torch.tensor(list(itertools.product(range(3), repeat=4)))
    expected = torch.zeros(len(texts), dtype=torch.float64)
    for orders in itertools.product([(0, 1), (1, 0)], [(2, 3), (3, 2)]):
        states, total = torch.full_like(texts, 3), torch.zeros(len(texts), dtype=torch.float64)
        for place in itertools.chain(*orders):
            law = network.head(network(states))[:, place, :3].double().log_softmax(-1)
            total += law.gather(1, texts[:, place : place + 1]).squeeze(1)
            states[:, place] = texts[:, place]
        expected += total.exp() / 4
    sampler = Sampler(denoisers.subs(network, 3), plans.blocks(2))
    found = enumeration.law(sampler, 4).flatten()
    assert torch.allclose(found, expected, atol=1e-6)
    drawn = edlm.sample(pipelines.pipeline(sampler, 4), 6000, seed=0)["tokens"]
    counts = torch.bincount((drawn * torch.tensor([27, 9, 3, 1])).sum(1), minlength=81).double()
    common = expected * 6000 > 5  # the rare ones together, since a chi-square needs five of each
    counts, law = (torch.cat([each[common], each[~common].sum().view(1)]) for each in (counts, expected))
    assert goodness_of_fit.fits(counts, law)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_without_the_blocks_of_the_model_is_refused_and_so_is_an_energy_of_drafts(
    kind: str, tmp_path: Path
) -> None:
    written(kind, tmp_path / "m")
    denoiser = denoisers.subs(large.load_diffusion(tmp_path / "m"), blocks.MASK)
    with pytest.raises(ValueError, match=r"the denoiser reads blocks of 32, .* needs plans\.blocks\(32"):
        Sampler(denoiser, plans.TokensPerPass(2))
    pipeline = pipelines.pipeline(Sampler(denoiser, plans.blocks(16, plans.Grid(2))), 40)
    assert blocks.MASK not in edlm.sample(pipeline, 1, seed=0)["tokens"]
    model = hub.model("qwen2", transformers)
    ar = decoders.load(large.read_autoregressive(hub.save(model, tmp_path / "ar")))
    energy = edlm.energies.residual_ar(ar, blocks.MASK, bos_id=1, carry_over=True)
    with pytest.raises(
        ValueError, match="weighs whole drafts, and a denoiser of blocks draws one block after the other"
    ):
        Sampler(denoiser, plans.blocks(32), correction=corrections.OfEnergy(energy), candidates=2)


@pytest.mark.parametrize("kind", ["fast_dllm", "llada2"])
def test_generate_and_evaluate_take_a_folder(kind: str, tmp_path: Path) -> None:
    written(kind, tmp_path / "m")
    asked = {"denoiser": tmp_path / "m", "energy": None, "threads": 1}
    drawn = {"output": tmp_path / "texts.jsonl", "num_samples": 2, "length": 40, "tokens_per_pass": 8}
    generate.main(settings_of("generate", *words_of({**asked, **drawn, "num_steps": None})))
    records = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text("utf-8").splitlines()]
    assert [len(record["tokens"]) for record in records] == [40, 40]
    assert all(blocks.MASK not in record["tokens"] for record in records)
    assert all((record["tokens"][0] == 1) or kind == "llada2" for record in records), "nothing predicts a first token"
    small = {"length": 40, "rows": 2, "num_steps": 3, "num_passes": 2, "num_particles": 2, "num_completions": 1}
    evaluate.main(settings_of("evaluate", *words_of({**asked, **small, "output_dir": tmp_path / "card"})))
    card = json.loads((tmp_path / "card" / "metric_card.json").read_text("utf-8"))
    assert ("denoiser", "nelbo") in {(figure["model"], figure["figure"]) for figure in card["figures"]}


# ---- Settings that the folder leaves out, and refusals


@pytest.mark.parametrize(
    ("model_type", "size", "mask"), [("Fast_dLLM_Qwen", 152064, 151665), ("llada2_moe", 157184, 156895)]
)
def test_the_mask_is_the_published_one_where_the_config_names_none(
    model_type: str, size: int, mask: int, tmp_path: Path
) -> None:
    blocks.tokenizer(tmp_path)
    for named, expected in ((None, mask), (mask + 1, mask + 1)):
        config = {"model_type": model_type, "vocab_size": size, "mask_token_id": named}
        (tmp_path / "config.json").write_text(json.dumps(config))
        words = large.load_vocabulary(tmp_path)
        assert (words.mask_id, words.size) == (expected, size)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 60}))
    with pytest.raises(ValueError, match=f"{mask}"):
        large.load_vocabulary(tmp_path)


def test_blocks_of_fast_dllm_have_32_tokens_where_the_config_says_nothing(tmp_path: Path) -> None:
    written("fast_dllm", tmp_path / "m")
    assert large.load_diffusion(hub.change(tmp_path / "m", without=("bd_size",))).block_size == 32
    assert large.load_diffusion(hub.change(tmp_path / "m", bd_size=8)).block_size == 8


FAST = {
    "bd_size": (0, "bd_size = 0 must be a whole number of at least 1"),
    "block_size": (32, "not known, and may change the network: block_size = 32"),
    "use_cab": (True, "not known, and may change the network: use_cab = True"),
    "use_sliding_window": (True, "use_sliding_window = True must be False"),
    "layer_types": (["full_attention", "sliding_attention"], "must be full_attention alone, in blocks"),
    "num_hidden_layers": (10**7, "num_hidden_layers = 10000000 must be at most"),
    "hidden_size": (10**6, "config.json describes"),
}
LLADA2: dict[str, tuple[Any, str]] = {
    "score_function": ("softmax", "score_function = 'softmax' must be 'sigmoid'"),
    "norm_topk_prob": (False, "norm_topk_prob = False must be True"),
    "moe_router_enable_expert_bias": (False, "moe_router_enable_expert_bias = False must be True"),
    "router_dtype": ("bf16", "router_dtype = 'bf16' must be 'fp32'"),
    "norm_head": (True, "norm_head = True must be False"),
    "use_qk_norm": (False, "use_qk_norm = False must be True"),
    "use_bias": (True, "use_bias = True must be False"),
    "tie_word_embeddings": (True, "tie_word_embeddings = True must be False"),
    "hidden_act": ("gelu", "hidden_act = 'gelu' must be 'silu'"),
    "image_token_offset": (157184, "not known, and may change the network: image_token_offset = 157184"),
    "block_size": (32, "not known, and may change the network: block_size = 32"),
    "num_experts": (9, "num_experts = 9 must be groups of at least two, n_group = 4 of them"),
    "n_group": (8, "num_experts = 8 must be groups of at least two, n_group = 8 of them"),
    "topk_group": (5, "topk_group = 5 must be at most n_group = 4"),
    "num_experts_per_tok": (5, "num_experts_per_tok = 5 must be at most 4"),
    "num_shared_experts": (0, "num_shared_experts = 0 must be a whole number of at least 1"),
    "first_k_dense_replace": (4, "first_k_dense_replace = 4 must be a number of layers"),
    "moe_shared_expert_intermediate_size": (21, "moe_shared_expert_intermediate_size = 21 must be moe_intermediate"),
    "rotary_dim": (8, "rotary_dim = 8 must be 6"),
    "partial_rotary_factor": (2.0, "partial_rotary_factor = 2.0 must leave an even part of 12"),
    "rope_parameters": ({"rope_theta": 7.0}, "rope_theta is given twice"),
    "rope_scaling": ({"type": "yarn", "factor": 4.0}, "rope_type = 'yarn' must be 'default'"),
    "rope_theta": ("far", "rope_theta = 'far' must be a number"),
    "num_hidden_layers": (10**7, "num_hidden_layers = 10000000 must be at most"),
    "vocab_size": (None, "vocab_size = None must be a number"),
    "intermediate_size": (40, "the weights are not those of its config.json"),
    "num_key_value_heads": (1, "attention.query_key_value.weight has 96 rows, and must have 72"),
    "num_attention_heads": (5, "num_attention_heads = 5 must be a multiple of num_key_value_heads = 2"),
}


@pytest.mark.parametrize(("kind", "key"), [*(("fast_dllm", key) for key in FAST), *(("llada2", key) for key in LLADA2)])
def test_settings_of_another_network_are_refused_by_name(kind: str, key: str, tmp_path: Path) -> None:
    written(kind, tmp_path / "m")
    value, said = (FAST if kind == "fast_dllm" else LLADA2)[key]
    hub.change(tmp_path / "m", **{key: value})
    with pytest.raises(ValueError, match=r".") as error:
        large.load_diffusion(tmp_path / "m")
    assert said in str(error.value)
    assert str(tmp_path / "m") in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_rotary_positions_in_the_newer_form_are_the_same(tmp_path: Path) -> None:
    reference, tokens = written("llada2", tmp_path / "m"), hub.tokens(1, blocks.LENGTH)
    section = {"rope_type": "default", "rope_theta": 600.0, "partial_rotary_factor": 0.5}
    for without in ((), ("rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_dim")):
        network = large.load_diffusion(hub.change(tmp_path / "m", without, rope_parameters=section))
        with torch.no_grad():
            assert largest(network.head(network(tokens)), reference(tokens, blocks.seen())) < TOLERANCE
    with pytest.raises(ValueError, match=r"partial_rotary_factor is given twice, as \[0\.5, 1\.0\]"):
        large.load_diffusion(hub.change(tmp_path / "m", partial_rotary_factor=1.0))


def test_a_weight_of_llada_2_too_few_or_too_many_is_named_as_in_the_folder(tmp_path: Path) -> None:
    state = blocks.llada2_weights()
    for name, value, said in (
        ("model.layers.1.mlp.experts.3.up_proj.weight", None, "is missing"),
        ("model.layers.0.mlp.gate.weight", torch.ones(8, 32), "is not known"),
        ("model.layers.2.mlp.gate.expert_bias", torch.full((8,), torch.nan), "not finite"),
        ("model.layers.2.mlp.experts.7.up_proj.weight", torch.ones(20, 33), "gate_proj and up_proj of several shapes"),
        ("model.layers.2.mlp.experts.0.down_proj.weight", torch.ones(32, 21), "have down_proj of several shapes"),
    ):
        changed = {key: each for key, each in {**state, name: value}.items() if each is not None}
        if value is None:  # as many as the config asks for
            changed |= {"model.norm.bias": torch.ones(640)}
        folder = blocks.llada2(tmp_path / "m", changed)
        with pytest.raises(ValueError, match=said) as error:
            large.load_diffusion(folder)
        assert name.partition(".gate.expert_bias")[0].partition(".experts.")[0] in str(error.value)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_off_is_named(kind: str, tmp_path: Path) -> None:
    written(kind, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    for read in (large.load_diffusion, shards.unread):
        with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
            read(tmp_path / "m")


def test_a_bias_in_float32_leaves_the_other_weights_of_a_bfloat16_folder_as_they_are(tmp_path: Path) -> None:
    written("llada2", tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    state = {name: value if "bias" in name else value.bfloat16() for name, value in load_file(file).items()}
    save_file(state, file, {"format": "pt"})
    network = large.load_diffusion(tmp_path / "m")
    layer: Any = network.body.get_submodule("layers.1.mlp")
    assert layer.gate.weight.dtype == torch.float32
    assert layer.experts.down_proj.dtype == torch.bfloat16
    assert torch.equal(layer.gate.e_score_correction_bias, state["model.layers.1.mlp.gate.expert_bias"])


FAST_7B = {
    **{"model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "torch_dtype": "bfloat16"},
    **{"auto_map": {"AutoConfig": "configuration.Fast_dLLM_QwenConfig"}, "bd_size": 32, "conplemenrary_mask": True},
    **{"bos_token_id": 151643, "eos_token_id": 151645, "pad_token_id": 151645, "hidden_act": "silu", "use_cache": True},
    **{"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
    **{"num_key_value_heads": 4, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0},
    **{"rope_scaling": None, "layer_types": ["full_attention"] * 28, "max_window_layers": 28, "sliding_window": None},
    **{"use_sliding_window": False, "tie_word_embeddings": False, "attention_dropout": 0.0, "vocab_size": 152064},
}
MINI = {
    **blocks.LLADA2,
    **{"vocab_size": 157184, "hidden_size": 2048, "intermediate_size": 5120, "moe_intermediate_size": 512},
    **{"num_hidden_layers": 20, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "rotary_dim": 64},
    **{"num_experts": 256, "num_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4},
    **{"rope_theta": 600000, "max_position_embeddings": 32768, "mask_token_id": None, "pad_token_id": 156892},
}


@pytest.mark.parametrize(
    ("config", "weights", "name"),
    [(FAST_7B, 7_615_616_512, "Fast-dLLM v2 7B"), (MINI, 16_255_638_528, "LLaDA2.0-mini")],
    ids=["fast_dllm", "llada2"],
)
def test_published_configs_are_read_and_need_the_memory_of_the_document(
    config: dict[str, Any], weights: int, name: str, tmp_path: Path
) -> None:
    """The settings as published; no weights. Qwen 2.5 7B has the first number, and 16 billion are told of the other."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    network = large.read_diffusion(tmp_path).outline(torch.bfloat16)
    assert sum(each.numel() for each in network.parameters()) == weights
    plan = memory.memory_plan(network, None, 1, 1, 1024)
    row = f"| {name} alone | 1 | 1024 | {plan.weights / 1e9:.2f} GB | {plan.peak / 1e9:.2f} GB |"
    assert row in (Path(__file__).parents[2] / "docs" / "howto" / "checkpoints.md").read_text("utf-8")


def test_a_memory_plan_counts_the_experts(tmp_path: Path) -> None:
    written("llada2", tmp_path / "m")
    outline = large.read_diffusion(tmp_path / "m").outline()
    network = large.load_diffusion(tmp_path / "m")
    sizes = [{name: (each.shape, each.dtype) for name, each in x.named_parameters()} for x in (outline, network)]
    assert sizes[0] == sizes[1]
    rounded = large.read_diffusion(tmp_path / "m").outline(torch.bfloat16)
    kept = {name for name, each in rounded.named_parameters() if each.dtype == torch.float32}
    assert kept == {f"body.layers.{i}.mlp.gate.weight" for i in (1, 2)}
    assert outline.widths == (3 * (20 + 32), 48)
    assert pretrained.mask_of({"model_type": "sdar"}) is None
