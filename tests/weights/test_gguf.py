"""GGUF files as folders: weights, log-probabilities and ids as they were, and one line for what is wrong or unknown."""

import math
import sys
from pathlib import Path
from typing import Any

import gguf_file
import pytest
import torch
from safetensors.torch import load_file

from edlm import limits
from edlm.cli import commands
from edlm.data import tokenizer_files
from edlm.nn import decoders
from edlm.weights import gguf_files, gguf_tokens, large, whole

pytest.importorskip("gguf", reason="needs pip install 'edlm-torch[gguf]'")
transformers = pytest.importorskip("transformers")
TOKENS = torch.randint(0, 250, (3, 16), generator=torch.Generator().manual_seed(0))


def written(folder: Path, kind: str = "llama", quantised: bool = False, **changes: Any) -> Path:
    model = gguf_file.model(kind, transformers)
    return gguf_file.write(folder / "tiny.gguf", kind, gguf_file.names(model.state_dict(), kind), quantised, **changes)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_the_folder_holds_the_model_that_the_file_was_made_of(kind: str, tmp_path: Path) -> None:
    gguf_files.convert(written(tmp_path, kind), tmp_path / "out")
    model = gguf_file.model(kind, transformers)
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert float((again(TOKENS).logits - model(TOKENS).logits).abs().max()) < 1e-5
    if kind != "qwen3":
        network = decoders.load(large.read_autoregressive(tmp_path / "out"))
        assert float((network.head(network(TOKENS)) - model(TOKENS).logits).abs().max()) < 1e-4


@torch.no_grad()
def test_quantised_weights_are_those_that_transformers_reads(tmp_path: Path) -> None:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint  # noqa: PLC0415

    file = written(tmp_path, quantised=True)
    commands.main(["convert", str(file), str(tmp_path / "out")])
    model = gguf_file.model("llama", transformers)
    read = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == read.keys()
    assert all(torch.equal(found[name], value) for name, value in read.items())
    name = "model.layers.0.mlp.up_proj.weight"
    assert 0 < float((found[name] - model.state_dict()[name]).abs().max()) < 0.01


def test_the_tokenizer_spells_as_the_file_says(tmp_path: Path) -> None:
    gguf_files.convert(written(tmp_path), tmp_path / "out")
    tokenizer = tokenizer_files.read(tmp_path / "out" / "tokenizer.json")
    ids = tokenizer.encode("the t12h <tag>é", add_special_tokens=False).ids
    assert ids[0] == 257  # t + h, th + e
    assert 259 in ids
    assert tokenizer.decode(ids) == "the t12h <tag>é"
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("the t12h <tag>é", add_special_tokens=False)["input_ids"] == ids
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == ("<|end|>", "<|end|>", None)


def test_each_rule_cuts_numbers_and_words_as_its_models_were_trained() -> None:
    """Three digits of Llama 3, one of Qwen and SmolLM, all of GPT-2."""
    found = {
        name: [part for part, _ in gguf_tokens._cut(name).pre_tokenize_str("it's 12345")]
        for name in ("gpt-2", "smollm", "qwen2", "llama-bpe")
    }
    assert found["gpt-2"] == ["it", "'s", "Ġ12345"]
    assert found["smollm"] == ["it", "'s", "Ġ", "1", "2", "3", "4", "5"]
    assert found["qwen2"] == ["it", "'s", "Ġ", "1", "2", "3", "4", "5"]
    assert found["llama-bpe"] == ["it", "'s", "Ġ", "123", "45"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type = 'yarn' is not known"),
        ({"llama.attention.sliding_window": 8}, "llama.attention.sliding_window = 8 is not known"),
        ({"llama.expert_count": 2}, "llama.expert_count = 2 is not known, and may change the network"),
        ({"llama.block_count": None}, "llama.block_count is missing"),
        ({"llama.block_count": 3}, "blk.2.attn_k.weight is missing"),
        ({"llama.block_count": 1}, "blk.1.attn_k.weight is not known"),
        ({"llama.block_count": 10**7}, "llama.block_count = 10000000 must be at most 1000"),
        ({"llama.block_count": "two"}, "llama.block_count = 'two' must be a whole number of at least 1"),
        ({"llama.context_length": 1.5}, "llama.context_length = 1.5 must be a whole number of at least 1"),
        ({"llama.context_length": math.inf}, "llama.context_length = inf must be a whole number of at least 1"),
        ({"llama.embedding_length": 2**32 - 1}, "llama.embedding_length = 4294967295 must be at most 16777216"),
        ({"llama.feed_forward_length": 0}, "llama.feed_forward_length = 0 must be a whole number of at least 1"),
        ({"llama.rope.freq_base": math.nan}, "llama.rope.freq_base = nan must be a positive number"),
        ({"llama.rope.freq_base": math.inf}, "llama.rope.freq_base = inf must be a positive number"),
        ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "rms_epsilon = 0.0 must be a positive number"),
        ({"llama.attention.layer_norm_rms_epsilon": "x"}, "rms_epsilon = 'x' must be a positive number"),
        ({"llama.vocab_size": 99}, "llama.vocab_size = 99, and token_embd.weight has 260 rows"),
        ({"llama.rope.dimension_count": 8, "llama.attention.key_length": 16}, "must be the same"),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count = 0 must be a whole number of at least 1"),
        ({"llama.attention.head_count": 24}, "attn_q.weight of 64 rows does not hold 24 heads"),
        ({"general.architecture": "mamba"}, "general.architecture = 'mamba' must be one of llama, qwen2, qwen3"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model = 'llama' must be 'gpt2'"),
        ({"tokenizer.ggml.pre": "mine"}, "tokenizer.ggml.pre = 'mine' must be one of"),
        ({"tokenizer.ggml.merges": ["q q q"]}, "tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges must be a list of texts"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "260 tokens of 2 types do not fit a network of 260 ids"),
    ],
)
def test_what_is_unknown_or_wrong_is_refused_by_name(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    if "general.architecture" in changes:
        file = gguf_file.write(tmp_path / "tiny.gguf", changes["general.architecture"], {})
    else:
        file = written(tmp_path, **changes)
    with pytest.raises(ValueError, match=r"tiny\.gguf") as error:
        gguf_files.convert(file, tmp_path / "out")
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_tensor_beside_the_models_own_is_refused_by_name(tmp_path: Path) -> None:
    """Llama 3.1 keeps its stretched rotary positions in one."""
    tensors = gguf_file.names(gguf_file.model("llama", transformers).state_dict(), "llama")
    file = gguf_file.write(tmp_path / "tiny.gguf", "llama", {**tensors, "rope_freqs.weight": torch.ones(8)})
    with pytest.raises(ValueError, match=r"rope_freqs\.weight is not known"):
        gguf_files.convert(file, tmp_path / "out")


def test_a_damaged_file_gets_one_line(tmp_path: Path) -> None:
    content = written(tmp_path).read_bytes()
    counts, first = content[:8], content[24:]
    far, one_more = (size.to_bytes(8, "little") for size in (1 << 60, limits.TENSORS + 1))
    lists = content.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 8
    damaged = {
        "cut off": [content[:40], content[:3000], content[: len(content) // 2], content[:-40]],
        "does not begin as one": [b"", b"GGUF", content[:12], b"PK" + content[2:]],
        "tensors = .* must be at most": [counts + far + content[16:]],
        "keys = .* must be at most": [content[:16] + far + first],
        f"tensors = {limits.TENSORS + 1} must be at most": [counts + one_more + content[16:]],
        f"keys = {limits.TENSORS + 1} must be at most": [content[:16] + one_more + first],
        "entries of a list = .* must be at most": [content[:lists] + far + content[lists + 8 :]],
    }
    for said, each in damaged.items():
        for number, text in enumerate(each):
            file = tmp_path / "bad.gguf"
            file.write_bytes(text)
            with pytest.raises(ValueError, match=said) as error:
                gguf_files.convert(file, tmp_path / "out")
            assert len(str(error.value).splitlines()) == 1, number
            assert isinstance(error.value, limits.TooLarge) == ("at most" in said)


def test_bytes_changed_at_random_end_in_one_line_or_in_a_folder(tmp_path: Path) -> None:
    content = bytearray(written(tmp_path).read_bytes())
    draw = torch.Generator().manual_seed(0)
    outcomes = set()
    for number in range(60):
        changed = bytearray(content)
        for place in torch.randint(0, 9000, (4,), generator=draw).tolist():
            changed[place] = int(torch.randint(0, 256, (), generator=draw))
        file = tmp_path / "bad.gguf"
        file.write_bytes(changed)
        outcomes.add(_outcome(file, tmp_path / f"out{number}"))
    assert outcomes == {"folder", "refused"}


def _outcome(file: Path, out: Path) -> str:
    try:
        gguf_files.convert(file, out)
    except ValueError as error:
        return "refused" if "\n" not in str(error) else "several lines"
    return "folder"


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"tiny\.gguf needs the extra package: pip install 'edlm-torch\[gguf\]'"):
        gguf_files.convert(file, tmp_path / "out")


def test_nothing_is_overwritten_and_no_option_is_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path)
    with pytest.raises(ValueError, match="exists already"):
        gguf_files.convert(file, tmp_path)
    with pytest.raises(SystemExit):
        commands.main(["convert", str(file), str(tmp_path / "out"), "--num-heads", "4"])
    assert "--num-heads is for published weights: leave it out for a GGUF file" in capsys.readouterr().err


def test_the_config_is_one_that_says_nothing_else(tmp_path: Path) -> None:
    gguf_files.convert(written(tmp_path), tmp_path / "out")
    config = whole.read_json(tmp_path / "out" / "config.json")
    assert config["rope_theta"] == 500.0
    assert config["tie_word_embeddings"] is True
    assert (config["bos_token_id"], config["eos_token_id"]) == (258, 258)


def test_a_head_of_its_own_is_written_too(tmp_path: Path) -> None:
    state = gguf_file.model("llama", transformers, tied=False).state_dict()
    tensors = {**gguf_file.names(state, "llama"), "output.weight": state["lm_head.weight"]}
    gguf_files.convert(gguf_file.write(tmp_path / "tiny.gguf", "llama", tensors), tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"], state["lm_head.weight"])
    assert whole.read_json(tmp_path / "out" / "config.json")["tie_word_embeddings"] is False


def test_what_a_file_leaves_out_has_one_meaning_and_all_special_ids_are_kept(tmp_path: Path) -> None:
    """Every head has keys of its own, at the usual base; no scaling is what the word says."""
    left_out = {"llama.rope.freq_base": None, "llama.attention.head_count_kv": None, "llama.rope.scaling.type": "none"}
    specials = {"tokenizer.ggml.unknown_token_id": 5, "tokenizer.ggml.padding_token_id": 6}
    file = written(tmp_path, **left_out, **specials, **{"tokenizer.chat_template": "{{ x }}"})
    content = gguf_files.read(file)
    config = gguf_files.config_of(file, content)
    sizes = (config["rope_theta"], config["num_key_value_heads"], config["head_dim"])
    assert sizes == (10000.0, gguf_file.HEADS, gguf_file.WIDTH // gguf_file.HEADS)
    assert (config["unk_token_id"], config["pad_token_id"]) == (5, 6)
    settings, tokens = gguf_tokens.settings(content.keys, config), gguf_file.words()[0]
    assert (settings["unk_token"], settings["pad_token"]) == (tokens[5], tokens[6])
    assert (settings["model_max_length"], settings["chat_template"]) == (gguf_file.CONTEXT, "{{ x }}")


def test_what_was_converted_is_told(tmp_path: Path) -> None:
    file = written(tmp_path)
    weights = gguf_file.names(gguf_file.model("llama", transformers).state_dict(), "llama").values()
    millions = sum(each.numel() for each in weights) / 1e6
    assert gguf_files.convert(file, tmp_path / "out") == [
        ("source", str(file)),
        ("model", f"llama, 2 layers, width {gguf_file.WIDTH}, {millions:.1f} M parameters"),
        ("vocabulary", "260 ids"),
        ("weights", "float32, dequantised"),
    ]
