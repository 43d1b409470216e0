"""Large models, tiny: folders in their formats against plain torch, decoders as energies, and what a step needs."""

import json
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from large_folders import (
    FFN,
    HEADS,
    KV,
    LAYERS,
    LENGTH,
    MASK,
    THETA,
    H,
    V,
    close,
    random_weights,
    reference,
    tokens_of,
    write,
)
from safetensors.torch import save_file
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchtune.models import convert_weights, gemma, llama3_2, mistral, phi3, qwen2, qwen2_5
from torchtune.models.phi3._convert_weights import phi3_tune_to_hf
from torchtune.models.qwen2._convert_weights import qwen2_tune_to_hf
from torchtune.training import FullModelHFCheckpointer

import edlm
from edlm import categorical, contracts, decoders, denoisers, energies, large, memory, samplers, schedules, vocabulary

families = pytest.mark.parametrize("family", ["llada", "dream"])


# ---- Diffusion models as denoisers


@families
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_logits_are_those_of_plain_torch_at_the_position_they_predict(family: str, shards: int, tmp_path: Path) -> None:
    """Dream's state at i - 1 predicts token i; LLaDA's own does."""
    state, x = random_weights(family), tokens_of()
    network = large.load_diffusion(write(tmp_path / "m", family, state, shards))
    with torch.no_grad():
        found = network.head(network(x))
        expected = reference(family, state, x)
    if family == "dream":
        close(found[:, 1:], expected[:, :-1])
        close(found[:, 0], expected[:, 0])
    else:
        close(found, expected)
    assert isinstance(network, contracts.Network)
    assert not network.training


@families
def test_the_reference_tells_the_halves_of_a_head_and_both_directions_apart(family: str) -> None:
    """So that agreement with it says something: other rotary halves, or causal attention, are far off."""
    state, x = random_weights(family), tokens_of()
    expected = reference(family, state, x)
    assert (reference(family, state, x, causal=True) - expected).abs().max() > 0.1
    name = "model.transformer.blocks.0.q_proj.weight" if family == "llada" else "model.layers.0.self_attn.q_proj.weight"
    interleaved = state[name].unflatten(0, (HEADS, 2, -1)).transpose(1, 2).flatten(0, 2)
    assert (reference(family, {**state, name: interleaved}, x) - expected).abs().max() > 0.1


@families
def test_rows_do_not_see_each_other_and_may_be_run_in_parts(family: str, tmp_path: Path) -> None:
    network = large.load_diffusion(write(tmp_path / "m", family, random_weights(family)))
    x = tokens_of(rows=5)
    with torch.no_grad():
        whole = network(x)
        for rows in (1, 2, 5, 9):
            network.rows_at_once = rows
            close(network(x), whole, 1e-6)
        network.rows_at_once = None
        close(network(x[3:4]), whole[3:4], 1e-6)


@families
def test_weights_keep_their_precision_and_the_rotary_table_stays_float32(family: str, tmp_path: Path) -> None:
    state = random_weights(family, dtype=torch.bfloat16)
    network = large.load_diffusion(write(tmp_path / "m", family, state))
    norms = {name for name, parameter in network.named_parameters() if parameter.dtype == torch.float32}
    assert norms == {name for name, _ in network.named_parameters() if name.endswith("scale")}
    assert {p.dtype for name, p in network.named_parameters() if name not in norms} == {torch.bfloat16}
    assert {buffer.dtype for buffer in network.buffers()} == {torch.float32}
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))
    x = tokens_of()
    with torch.no_grad():
        found = network.head(network(x)).float()
        expected = reference(family, {name: value.float() for name, value in state.items()}, x)
    expected = torch.cat([expected[:, :1], expected[:, :-1]], dim=1) if family == "dream" else expected
    close(found, expected, 0.05)


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("llada", {"model_type": "gpt2"}, "model_type = 'gpt2' must be one of llada, Dream"),
        ("llada", {"weight_tying": True}, "weight_tying = True must be False"),
        ("llada", {"block_type": "sequential"}, "block_type = 'sequential' must be 'llama'"),
        ("llada", {"d_model": None}, "d_model = None must be a number"),
        ("llada", {"n_layers": 3}, r"model\.transformer\.blocks\.2\.attn_norm\.weight is missing"),
        ("llada", {"n_layers": 1}, r"model\.transformer\.blocks\.1\.attn_norm\.weight is not known"),
        ("llada", {"mlp_hidden_size": 23}, "the weights are not those of its config.json"),
        ("llada", {"n_kv_heads": 3}, "the weights are not those of its config.json"),
        ("dream", {"rope_scaling": {"type": "yarn"}}, "rope_scaling = .* must be None"),
        ("dream", {"tie_word_embeddings": True}, "tie_word_embeddings = True must be False"),
        ("dream", {"num_hidden_layers": 3}, r"model\.layers\.2\.input_layernorm\.weight is missing"),
        ("dream", {"vocab_size": 41}, "the weights are not those of its config.json"),
    ],
)
def test_another_model_than_it_says_is_refused(family: str, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    write(tmp_path / "m", family, random_weights(family), **change)
    with pytest.raises(ValueError, match=said) as error:
        large.load_diffusion(tmp_path / "m")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("where", ["../x.safetensors", "/x.safetensors", "model.bin", 3])
def test_an_index_that_points_elsewhere_is_refused(where: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llada", random_weights("llada"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": where}}))
    with pytest.raises(ValueError, match="no weight_map from parameters to safetensors files beside it"):
        large.load_diffusion(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "dream", random_weights("dream"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors: no such file"):
        large.load_diffusion(folder)


def test_a_sequence_past_the_longest_is_refused(tmp_path: Path) -> None:
    network = large.load_diffusion(write(tmp_path / "m", "llada", random_weights("llada")), max_length=8)
    assert network.max_length == 8
    with pytest.raises(ValueError, match="length = 12 must be at most 8"):
        network(tokens_of())


@pytest.mark.parametrize("masked", [{"id": MASK, "content": "<|mdm_mask|>"}, None])
def test_the_vocabulary_has_the_networks_size_and_its_mask(masked: dict[str, Any] | None, tmp_path: Path) -> None:
    """The mask may lie in the middle of the ids, and may be a special token of the tokenizer or not."""
    folder = write(tmp_path / "m", "llada", random_weights("llada"))
    words = vocabulary.characters()  # 27 ids
    content = json.loads(words.tokenizer.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": 28, "content": "<x>"}, *([masked] if masked else []), {"id": 35, "content": "<y>"}]
    content["added_tokens"] = [{**token, **flags} for token in added]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    found = large.load_vocabulary(folder)
    assert (found.size, found.mask_id, found.eos_id, found.bos_id) == (V, MASK, 3, None)
    assert found.decode(torch.tensor([0, MASK, 1, 39])) == "a_b"
    assert torch.equal(found.encode("the cat"), words.encode("the cat"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json: cannot be read"):
        large.load_vocabulary(folder)


# ---- Decoders as autoregressive energies


def families_of_torchtune() -> dict[str, tuple[str, Callable[[], Any]]]:
    """Tiny decoders of torchtune's families, each with the name its checkpointer knows it by."""
    sizes = {"vocab_size": V, "num_layers": LAYERS, "num_heads": HEADS, "num_kv_heads": KV, "embed_dim": H}
    wide = {**sizes, "intermediate_dim": FFN, "max_seq_len": 32}
    return {
        "llama3_2": ("LLAMA3_2", lambda: llama3_2.llama3_2(**wide)),
        "qwen2": ("QWEN2", lambda: qwen2.qwen2(**wide)),
        "qwen2_tied": ("QWEN2", lambda: qwen2.qwen2(**wide, tie_word_embeddings=True)),
        "gemma": ("GEMMA", lambda: gemma.gemma(**wide, head_dim=8)),
        "mistral": ("MISTRAL", lambda: mistral.mistral(**wide)),
        "phi3": ("PHI3_MINI", lambda: phi3.phi3(**{**wide, "num_kv_heads": HEADS})),
    }


def to_hugging_face(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    if name == "phi3":
        return phi3_tune_to_hf(state)
    if name.startswith("qwen2"):
        return qwen2_tune_to_hf(state)
    head_dim = 8 if name == "gemma" else H // HEADS
    return convert_weights.tune_to_hf(state, HEADS, KV, H, head_dim)


def loaded(name: str, folder: Path, seed: int = 0) -> Any:
    """A random decoder, written in Hugging Face's layout and read by torchtune's own checkpointer."""
    model_type, build = families_of_torchtune()[name]
    torch.manual_seed(seed)
    source = build()
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.3)
    folder.mkdir()
    state = {key: value.contiguous().clone() for key, value in to_hugging_face(name, source.state_dict()).items()}
    save_file(state, folder / "model.safetensors")
    config = {"num_attention_heads": HEADS, "num_key_value_heads": KV, "hidden_size": H, "vocab_size": V}
    config |= {"tie_word_embeddings": name == "qwen2_tied"}
    config |= {"num_key_value_heads": HEADS} if name == "phi3" else {}
    (folder / "config.json").write_text(json.dumps(config | ({"head_dim": 8} if name == "gemma" else {})))
    reader = FullModelHFCheckpointer(str(folder), ["model.safetensors"], model_type, str(folder.parent / "out"))
    decoder = build()
    decoder.load_state_dict(reader.load_checkpoint()["model"])
    for key, value in source.state_dict().items():
        assert torch.equal(decoder.state_dict()[key], value)
    return decoder.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3_2", "qwen2", "qwen2_tied", "gemma", "mistral", "phi3"])
def test_a_decoder_is_an_energy_with_the_decoders_own_probabilities(name: str, tmp_path: Path) -> None:
    decoder = loaded(name, tmp_path / "hf")
    network, x = decoders.autoregressive(decoder, rows_at_once=2), tokens_of().clamp(max=MASK - 1)
    with torch.no_grad():
        logits = decoder(x)
        close(network.head(network(x)), logits, 1e-6)
        logits[..., MASK] = -torch.inf
        log_p = logits.log_softmax(-1)[:, :-1].gather(-1, x[:, 1:, None]).squeeze(-1)
        energy = energies.residual_ar(network, MASK, bos_id=None, carry_over=False)
        state = {
            contracts.CANDIDATES: x.unsqueeze(1),
            contracts.X_T: x,
            contracts.LOG_P_CANDIDATES: torch.zeros(3, 1, 12),
        }
        found = energy(TensorDict(state))[contracts.ENERGY]
    close(found.float().squeeze(1), -log_p.sum(1), 1e-5)
    assert network.max_length == 32


@pytest.mark.slow
def test_qwens_probabilities_are_those_of_plain_torch(tmp_path: Path) -> None:
    """The same blocks as Dream's, looking back only; the reference reads Hugging Face's names."""
    decoder = loaded("qwen2", tmp_path / "hf")
    state, x = to_hugging_face("qwen2", decoder.state_dict()), tokens_of()
    layer = decoder.layers[0].attn
    layer.pos_embeddings.base = THETA
    for block in decoder.layers:
        block.attn.pos_embeddings.base = THETA
        block.attn.pos_embeddings.rope_init()
    network = decoders.autoregressive(decoder)
    with torch.no_grad():
        close(network.head(network(x)), reference("dream", state, x, causal=True))


@pytest.mark.slow
def test_a_decoder_that_looks_ahead_is_no_autoregressive_energy() -> None:
    decoder = families_of_torchtune()["qwen2"][1]()
    decoder.layers[1].attn.is_causal = False
    with pytest.raises(ValueError, match="causal attention in every layer"):
        decoders.autoregressive(decoder)


# ---- Both together


def both(k: int, rows_at_once: int | None = None, vocab_size: int = V) -> Any:
    """Random decoders as denoiser and energy: the kernel, and the two networks."""
    torch.manual_seed(0)
    wide = {"embed_dim": H, "intermediate_dim": FFN, "max_seq_len": 32}
    first, second = (qwen2.qwen2(vocab_size, LAYERS, HEADS, KV, **wide) for _ in range(2))
    dream = decoders.DecoderNetwork(decoders.bidirectional(first), shifted=True).eval()
    qwen = decoders.autoregressive(second, rows_at_once=rows_at_once)
    energy = energies.residual_ar(qwen, MASK, bos_id=3, carry_over=True)
    return samplers.importance(schedules.log_linear(), denoisers.subs(dream, MASK), energy, k), dream, qwen


@pytest.mark.slow
def test_dream_samples_with_qwen_as_its_energy_and_chunks_change_no_text(tmp_path: Path) -> None:
    dream = large.load_diffusion(write(tmp_path / "dream", "dream", random_weights("dream")))
    texts = []
    for rows_at_once in (None, 1, 3):
        _, _, qwen = both(4, rows_at_once)
        energy = energies.residual_ar(qwen, MASK, bos_id=3, carry_over=True)
        kernel = samplers.importance(schedules.log_linear(), denoisers.subs(dream, MASK), energy, 4)
        pipeline = edlm.pipelines.sampling(kernel, LENGTH, num_steps=4, window=(0.0, 1.0))
        prompt = torch.full((LENGTH,), MASK)
        prompt[0] = 3
        texts.append(edlm.sample(pipeline, 3, seed=0, prompt=prompt)["tokens"])
        assert (texts[-1] != MASK).all()
        assert (texts[-1][:, 0] == 3).all()
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])


@pytest.mark.slow
def test_the_documented_way_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines of docs/checkpoints.md on tiny folders, on the CPU."""
    text = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    write(tmp_path / "Dream-v0-Base-7B", "dream", random_weights("dream"))
    loaded("qwen2_tied", tmp_path / "Qwen2.5-0.5B")
    (tmp_path / "Qwen2.5-0.5B" / "tokenizer.json").write_text(vocabulary.characters().tokenizer.to_str())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(qwen2_5, "qwen2_5_0_5b", families_of_torchtune()["qwen2_tied"][1])
    names: dict[str, Any] = {}
    exec(compile(code.replace('"cuda"', '"cpu"').replace("1024", "32"), "checkpoints.md", "exec"), names)
    assert capsys.readouterr().out.endswith(" GB\n")
    out = edlm.sample(edlm.pipelines.sampling(names["kernel"], 8, num_steps=2, window=(0.0, 1.0)), 2, seed=0)
    assert (out["tokens"] != MASK).all()


@pytest.mark.slow
def test_weights_that_are_not_the_decoders_are_refused() -> None:
    build = families_of_torchtune()["qwen2"][1]
    state = build().state_dict()
    with pytest.raises(ValueError, match=r"norm\.scale"):
        decoders.with_weights(build, {name: value for name, value in state.items() if name != "norm.scale"})


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive and were made inside; `peak` is the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.seen = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in before | self.seen:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size", [40, 300, 2000])
@pytest.mark.parametrize(("b", "k", "rows_at_once"), [(1, 8, None), (1, 8, 1), (3, 2, 2), (2, 1, None)])
def test_the_memory_plan_bounds_what_a_step_takes(b: int, k: int, rows_at_once: int | None, vocab_size: int) -> None:
    """At most three times what lives at once; what operations take inside themselves is not seen here."""
    kernel, dream, qwen = both(k, rows_at_once, vocab_size)
    pipeline = edlm.pipelines.sampling(kernel, 32, num_steps=2, window=(0.0, 1.0))
    plan = memory.memory_plan(dream, qwen, b, k, 32)
    with Live() as live, torch.no_grad():
        edlm.sample(pipeline, b, seed=0)
    assert plan.weights == sum(t.numel() * 4 for n in (dream, qwen) for t in (*n.parameters(), *n.buffers()))
    assert live.peak <= plan.peak - plan.weights <= 3 * live.peak


@pytest.mark.slow
@pytest.mark.parametrize("b", [1, 3])
def test_the_plan_without_an_energy_bounds_what_a_step_takes(b: int, tmp_path: Path) -> None:
    network = large.load_diffusion(write(tmp_path / "m", "llada", random_weights("llada")), 32)
    kernel = samplers.ancestral(schedules.log_linear(), denoisers.subs(network, MASK))
    plan = memory.memory_plan(network, None, b, 8, 32)
    with Live() as live, torch.no_grad():
        edlm.sample(edlm.pipelines.sampling(kernel, 32, num_steps=1), b, seed=0)
    assert plan.weigh == 0
    assert live.peak <= plan.peak - plan.weights <= 3 * live.peak


def test_the_plans_tiles_are_those_of_the_sampler_and_the_energy() -> None:
    assert memory.memory_plan.__defaults__ == (categorical._LOGITS_AT_ONCE["cuda"],)
    assert memory._BLOCK == categorical._BLOCK


# Sizes of the published configs, which decide a plan.
_DREAM = {"hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28}
_DREAM |= {"num_key_value_heads": 4, "max_position_embeddings": 131_072, "vocab_size": 152_064}
_SMALL = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
_SMALL |= {"num_key_value_heads": 2, "max_position_embeddings": 32_768, "vocab_size": 151_936}
_LLADA = {"d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32, "mlp_hidden_size": 12_288}
_LLADA |= {"vocab_size": 126_464, "embedding_size": 126_464, "max_sequence_length": 4096}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family", "sizes", "energy", "rows", "length"),
    [
        ("Dream-7B with Qwen 2.5 0.5B", "dream", _DREAM, {**_SMALL, "tie_word_embeddings": True}, 1, 512),
        ("Dream-7B with Qwen 2.5 0.5B", "dream", _DREAM, {**_SMALL, "tie_word_embeddings": True}, 4, 1024),
        ("Dream-7B with Qwen 2.5 7B", "dream", _DREAM, _DREAM, 1, 1024),
        ("LLaDA-8B alone", "llada", _LLADA, None, 1, 1024),
    ],
)
def test_the_documented_plans_are_those_of_the_published_sizes(
    name: str, family: str, sizes: dict[str, int], energy: dict[str, int] | None, rows: int, length: int, tmp_path: Path
) -> None:
    write(tmp_path / "d", family, {}, shards=1, **sizes, torch_dtype="bfloat16")
    denoiser = decoders.outline(large.read_diffusion(tmp_path / "d", length))
    ar = None
    if energy is not None:
        write(tmp_path / "a", "qwen2", {}, shards=1, **energy, torch_dtype="bfloat16")
        ar = decoders.outline(large.read_autoregressive(tmp_path / "a", length, 4, denoiser.head.out_features))
    plan = memory.memory_plan(denoiser, ar, rows, 8, length)
    line = f"| {name} | {rows} | {length} | {plan.weights / 1e9:.2f} GB | {plan.peak / 1e9:.2f} GB |"
    assert line in (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text("utf-8")


@pytest.mark.slow
def test_the_plan_of_published_sizes_needs_no_memory_to_make() -> None:
    """Dream-7B with Qwen 2.5 0.5B in bf16: 15.2 GB and 1.0 GB of weights, by their published sizes."""
    with torch.device("meta"):
        dream = decoders.DecoderNetwork(
            qwen2.qwen2(152_064, 28, 28, 4, 3584, 18_944, max_seq_len=1024).to(torch.bfloat16), shifted=True
        )
        small = qwen2.qwen2(151_936, 24, 14, 2, 896, 4864, max_seq_len=1024, tie_word_embeddings=True)
        energy = decoders.autoregressive(small.to(torch.bfloat16), rows_at_once=4)
    assert sum(p.numel() for p in dream.parameters()) == 7_615_616_512
    assert sum(p.numel() for p in energy.parameters()) == 494_032_768
    plan = memory.memory_plan(dream, energy, batch_size=1, num_particles=8, length=1024)
    assert 16.2e9 < plan.weights < 16.3e9
    assert plan.peak < 24e9, plan
