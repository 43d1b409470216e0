"""Large models, tiny: folders in their formats against plain torch, decoders as energies, and what a step needs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
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
    dream_with_qwen,
    random_weights,
    reference,
    tokens_of,
    write,
)
from safetensors.torch import save_file
from tensordict import TensorDict
from torch import Tensor, nn
from torchtune.models import convert_weights, gemma, llama3_2, mistral, phi3, qwen2, qwen2_5
from torchtune.models.phi3._convert_weights import phi3_tune_to_hf
from torchtune.models.qwen2._convert_weights import qwen2_tune_to_hf
from torchtune.training import FullModelHFCheckpointer

import edlm
from edlm import contracts
from edlm.data import vocabulary
from edlm.models import denoisers, energies
from edlm.nn import decoders
from edlm.process import schedules
from edlm.weights import large

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


@pytest.mark.parametrize(("given", "found"), [(3, 3), ([3, 4], 3), (None, None), ([], "[]"), ("3", "'3'"), ([[3]], "")])
def test_a_special_id_may_be_a_list_of_ids(given: object, found: object, tmp_path: Path) -> None:
    config = {"eos_token_id": given}
    if found is None or isinstance(found, int):
        assert large.special_id(tmp_path, config, "eos") == found
        return
    with pytest.raises(ValueError, match=r"config\.json: eos_token_id = .* must be an id, a list of ids, or null"):
        large.special_id(tmp_path, config, "eos")


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
        ("llada", {"n_kv_heads": 3}, "4 heads of which 3 hold keys do not fit a width of 16"),
        ("llada", {"n_heads": 0}, "n_heads = 0 must be a whole number of at least 1"),
        ("llada", {"n_layers": 10**7}, "n_layers = 10000000 must be at most 1000; EDLM_LIMITS=10000"),
        ("llada", {"d_model": 16.5}, r"d_model = 16\.5 must be a whole number"),
        ("dream", {"rope_scaling": {"type": "yarn"}}, "rope_scaling = .* must be None"),
        ("dream", {"tie_word_embeddings": True}, "tie_word_embeddings = True must be False"),
        ("dream", {"num_hidden_layers": 3}, r"model\.layers\.2\.input_layernorm\.weight is missing"),
        ("dream", {"num_attention_heads": -1}, "num_attention_heads = -1 must be a whole number of at least 1"),
        ("dream", {"num_hidden_layers": True}, "num_hidden_layers = True must be a number"),
        ("dream", {"rms_norm_eps": float("nan")}, "rms_norm_eps = nan must be a number"),
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
    assert found.decode(torch.tensor([0, MASK, 1, 39])) == "a_b\N{REPLACEMENT CHARACTER}"
    assert torch.equal(found.encode("the cat"), words.encode("the cat"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json: cannot be read"):
        large.load_vocabulary(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"pattern": {"String": "x"}}},
        {"pre_tokenizer": {"type": "Split", "pattern": 2**31, "behavior": "Isolated", "invert": False}},
        {"pre_tokenizer": 3},
        {"model": None},
        {"model": {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}},
        {"added_tokens": 3},
        {"added_tokens": [3]},
        {"added_tokens": [{"content": "a"}]},
        {"added_tokens": [{"id": None, "content": "a"}]},
        {"version": 7},
    ],
)
def test_a_damaged_tokenizer_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "llada", random_weights("llada"))
    content = json.loads(vocabulary.characters().tokenizer.to_str())
    (folder / "tokenizer.json").write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=r"tokenizer\.json: expected a tokenizer\.json of `tokenizers`; ") as caught:
        large.load_vocabulary(folder)
    assert len(str(caught.value).splitlines()) == 1


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


def test_a_decoder_that_looks_ahead_is_no_autoregressive_energy() -> None:
    decoder = families_of_torchtune()["qwen2"][1]()
    decoder.layers[1].attn.is_causal = False
    with pytest.raises(ValueError, match="causal attention in every layer"):
        decoders.autoregressive(decoder)


@families
def test_a_diffusion_model_is_no_autoregressive_energy_of_another(family: str, tmp_path: Path) -> None:
    network = large.load_diffusion(write(tmp_path / "m", family, random_weights(family)))
    with pytest.raises(ValueError, match=r"causal network: causal=True \(layers\.0\.attn looks ahead\)"):
        energies.residual_ar(network, MASK, bos_id=3, carry_over=True)


# ---- Both together


def test_dream_samples_with_qwen_as_its_energy_and_chunks_change_no_text(tmp_path: Path) -> None:
    dream = large.load_diffusion(write(tmp_path / "dream", "dream", random_weights("dream")))
    texts = []
    for rows_at_once in (None, 1, 3):
        _, _, qwen = dream_with_qwen(4, rows_at_once)
        energy = energies.residual_ar(qwen, MASK, bos_id=3, carry_over=True)
        kernel = builders.importance(schedules.log_linear(), denoisers.subs(dream, MASK), energy, 4)
        pipeline = builders.sampling(kernel, LENGTH, num_steps=4, window=(0.0, 1.0))
        prompt = torch.full((LENGTH,), MASK)
        prompt[0] = 3
        texts.append(edlm.sample(pipeline, 3, seed=0, prompt=prompt)["tokens"])
        assert (texts[-1] != MASK).all()
        assert (texts[-1][:, 0] == 3).all()
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])


def test_the_documented_way_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines of docs/howto/checkpoints.md on tiny folders, on the CPU."""
    text = (Path(__file__).parents[2] / "docs" / "howto" / "checkpoints.md").read_text("utf-8")
    (code,) = re.findall(r"### In code\n\n```python\n(.*?)```", text, flags=re.DOTALL)
    write(tmp_path / "Dream-v0-Base-7B", "dream", random_weights("dream"))
    loaded("qwen2_tied", tmp_path / "Qwen2.5-0.5B")
    (tmp_path / "Qwen2.5-0.5B" / "tokenizer.json").write_text(vocabulary.characters().tokenizer.to_str())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(qwen2_5, "qwen2_5_0_5b", families_of_torchtune()["qwen2_tied"][1])
    names: dict[str, Any] = {}
    exec(compile(code.replace('"cuda"', '"cpu"').replace("1024", "32"), "checkpoints.md", "exec"), names)
    assert capsys.readouterr().out.endswith(" GB\n")
    out = edlm.sample(builders.sampling(names["sampler"], 8, num_steps=2, window=(0.0, 1.0)), 2, seed=0)
    assert (out["tokens"] != MASK).all()


def test_weights_that_are_not_the_decoders_are_refused() -> None:
    build = families_of_torchtune()["qwen2"][1]
    state = build().state_dict()
    with pytest.raises(ValueError, match=r"norm\.scale"):
        decoders.with_weights(build, {name: value for name, value in state.items() if name != "norm.scale"})
