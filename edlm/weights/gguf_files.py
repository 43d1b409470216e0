"""GGUF files as folders in Hugging Face's layout: weights in float32, a config, and a tokenizer.

The package `gguf` reads and dequantises. What a key or a tensor means is a closed table here: one that is not in it is
refused by name, since it may change the network.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from edlm import limits
from edlm.data import formats
from edlm.weights import gguf_tokens, whole

SUFFIX = ".gguf"
Rows = list[tuple[str, str]]

_MAGIC = b"GGUF"
_HEADER_BYTES = 24
_EXPECTED = "a GGUF file of version 2 or 3"
_ABOVE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_HEAD = {"output.weight": "lm_head.weight"}
_BLOCK = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_BIASES = {f"attn_{part}.bias": f"self_attn.{part}_proj.bias" for part in "qkv"}
_NORMS = {f"attn_{part}_norm.weight": f"self_attn.{part}_norm.weight" for part in "qk"}
# Keys of an architecture, without its name in front, and what they are called in a `config.json`.
_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
_REAL = ("attention.layer_norm_rms_epsilon", "rope.freq_base")  # all others are whole numbers
_HEAD_SIZES = ("rope.dimension_count", "attention.key_length", "attention.value_length")
_NEEDED = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count")


class Family(NamedTuple):
    """An architecture: its parts of a block beside a Llama's, and whether pairs of a head lie side by side."""

    parts: Mapping[str, str]
    interleaved: bool
    class_name: str


FAMILIES = {
    "llama": Family({}, True, "LlamaForCausalLM"),
    "qwen2": Family(_BIASES, False, "Qwen2ForCausalLM"),
    "qwen3": Family(_NORMS, False, "Qwen3ForCausalLM"),
}


class Content(NamedTuple):
    """A GGUF file, open: its keys with plain values, and its tensors by name, which are dequantised when they are
    asked for.
    """

    keys: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    tensor: Callable[[str], Tensor]


def convert(path: str | Path, out: Path) -> Rows:
    """Write a new folder of `config.json`, `model.safetensors` (float32) and a tokenizer.

    Returns rows for people. Raises ValueError, naming the file, if the package `gguf` is missing, for a file that is
    damaged or larger than `limits` allows, for an architecture, key or tensor that is not known, and if `out` exists.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; remove it or choose another path")
    path = Path(path)
    content = read(path)
    config = config_of(path, content)
    names = _names(path, config, content)
    tokenizer = gguf_tokens.build(path, content.keys, config["vocab_size"])

    def fill(target: Path) -> None:
        state = dict(_state(path, config, content, names))
        save_file(state, target / "model.safetensors", {"format": "pt"})
        (target / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        whole.write_json(target / "tokenizer_config.json", gguf_tokens.settings(content.keys, config))
        whole.write_json(target / "config.json", config)

    whole.write_folder(out, fill)
    parameters = sum(torch.Size(shape).numel() for shape in content.shapes.values())
    sizes = f"{config['num_hidden_layers']} layers, width {config['hidden_size']}, {parameters / 1e6:.1f} M parameters"
    return [
        ("source", str(path)),
        ("model", f"{config['model_type']}, {sizes}"),
        ("vocabulary", f"{config['vocab_size']} ids"),
        ("weights", "float32, dequantised"),
    ]


def read(path: Path) -> Content:
    """Open a file, its tensors mapped and not read. Raises ValueError as `convert` does."""
    reader = _reader(path)
    formats.require_file(path)
    try:
        _check_header(path)
        found = reader(path)
        sizes = [(each.name, each.n_bytes) for each in found.tensors]
        keys = {name: field.contents() for name, field in found.fields.items()}
    except limits.TooLarge:
        raise
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, OSError, RecursionError) as error:
        raise ValueError(f"{path}: expected {_EXPECTED}; {' '.join(str(error).split())[:200]}") from error
    if sum(size for _, size in sizes) > path.stat().st_size:
        raise ValueError(f"{path}: expected {_EXPECTED}; its tensors share their bytes")
    tensors = {each.name: each for each in found.tensors}

    def tensor(name: str) -> Tensor:
        import gguf

        each = tensors[name]
        try:
            values = gguf.dequantize(each.data, each.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise ValueError(f"{path}: {name} is of type {each.tensor_type.name}: {error}") from error
        return torch.from_numpy(values.astype("float32")).reshape(tuple(reversed(each.shape.tolist())))

    return Content(keys, {name: tuple(reversed(each.shape.tolist())) for name, each in tensors.items()}, tensor)


def config_of(path: Path, content: Content) -> dict[str, Any]:
    """Translate the keys of a file to a `config.json`. Raises ValueError for a key that is unknown, or no number."""
    keys = content.keys
    kind = keys.get("general.architecture")
    if kind not in FAMILIES:
        raise ValueError(f"{path}: general.architecture = {kind!r} must be one of {', '.join(FAMILIES)}")
    own = {name.removeprefix(f"{kind}."): value for name, value in keys.items() if name.startswith(f"{kind}.")}
    for name, value in own.items():
        if name == "rope.scaling.type" and value == "none":
            continue
        if name not in _SIZES and name not in _HEAD_SIZES:
            raise ValueError(f"{path}: {kind}.{name} = {value!r} is not known, and may change the network")
        _require_number(path, f"{kind}.{name}", value, name in _REAL)
    missing = [name for name in (*_NEEDED, "attention.layer_norm_rms_epsilon") if name not in own]
    if missing:
        raise ValueError(f"{path}: {kind}.{missing[0]} is missing")
    limits.require(path, f"{kind}.block_count", own["block_count"], limits.LAYERS)
    shape = content.shapes.get("token_embd.weight", (0, 0))
    config = {theirs: own[name] for name, theirs in _SIZES.items() if name in own}
    config.setdefault("rope_theta", 10000.0)
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    if config.setdefault("vocab_size", shape[0]) != shape[0]:
        raise ValueError(
            f"{path}: {kind}.vocab_size = {config['vocab_size']}, and token_embd.weight has {shape[0]} rows"
        )
    config["head_dim"] = _head_dim(path, own, config)
    return {
        "architectures": [FAMILIES[kind].class_name],
        "model_type": kind,
        **config,
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in content.shapes,
        "torch_dtype": "float32",
        **gguf_tokens.special_ids(keys),
    }


def _require_number(path: Path, key: str, value: Any, is_real: bool) -> None:
    """Raise ValueError for what is no positive number, or is no whole one where a size is meant."""
    if is_real:
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"{path}: {key} = {value!r} must be a positive number")
        return
    if type(value) is not int or value < 1:
        raise ValueError(f"{path}: {key} = {value!r} must be a whole number of at least 1")
    limits.require(path, key, value, limits.SIZE)


def _head_dim(path: Path, own: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Find the width of a head, of which all that is said must be the same."""
    own_width = config["hidden_size"] // config["num_attention_heads"]
    said = {own[name] for name in _HEAD_SIZES if name in own} or {own_width}
    if len(said) > 1:
        raise ValueError(f"{path}: {', '.join(_HEAD_SIZES)} differ ({sorted(said)}), and must be the same")
    return int(said.pop())


def _names(path: Path, config: Mapping[str, Any], content: Content) -> dict[str, str]:
    """Map the name of every tensor to Hugging Face's. Raises ValueError naming one that is missing or unknown."""
    parts = {**_BLOCK, **FAMILIES[config["model_type"]].parts}
    names = {**_ABOVE, **({} if config["tie_word_embeddings"] else _HEAD)}
    for i in range(config["num_hidden_layers"]):
        names |= {f"blk.{i}.{own}": f"model.layers.{i}.{theirs}" for own, theirs in parts.items()}
    problems = [f"{name} is missing" for name in names.keys() - content.shapes.keys()]
    problems += [f"{name} is not known" for name in content.shapes.keys() - names.keys()]
    if problems:
        raise ValueError(f"{path}: {'; '.join(sorted(problems)[:5])}")
    return names


def _state(
    path: Path, config: Mapping[str, Any], content: Content, names: Mapping[str, str]
) -> Iterator[tuple[str, Tensor]]:
    interleaved = FAMILIES[config["model_type"]].interleaved
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for own, theirs in names.items():
        value, part = content.tensor(own), own.rpartition(".")[0].rpartition(".")[2]
        if interleaved and part in heads:
            if len(value) % (2 * heads[part]):
                raise ValueError(f"{path}: {own} of {len(value)} rows does not hold {heads[part]} heads")
            value = value.unflatten(0, (heads[part], -1, 2)).transpose(1, 2).flatten(0, 2)
        yield theirs, value.contiguous()


def _check_header(path: Path) -> None:
    """Raise ValueError for another file, and TooLarge for more tensors or keys than limits allow."""
    with path.open("rb") as opened:
        header = opened.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise ValueError("it does not begin as one")
    limits.require(path, "tensors", int.from_bytes(header[8:16], "little"), limits.TENSORS)
    limits.require(path, "keys", int.from_bytes(header[16:24], "little"), limits.TENSORS)


def _reader(path: Path) -> Callable[[Path], Any]:
    """Give the package's reader, with what it lacks: an end to the file, and to its lists."""
    try:
        import gguf
        import numpy
    except ImportError as error:
        raise ValueError(f"{path} needs the extra package: pip install 'edlm-torch[gguf]'") from error

    class Bounded(gguf.GGUFReader):  # type: ignore[misc]
        def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            if offset + int(count) * numpy.dtype(dtype).itemsize > len(self.data):
                raise ValueError("it is cut off")
            return super()._get(offset, dtype, count, override_order)

        def _get_field_parts(self, orig_offs: int, raw_type: Any) -> Any:
            if raw_type == gguf.GGUFValueType.ARRAY:
                kind = int(self._get(orig_offs, numpy.uint32)[0])
                if kind == gguf.GGUFValueType.ARRAY:
                    raise ValueError("a list of lists")
                length = int(self._get(orig_offs + 4, numpy.uint64)[0])
                limits.require(path, "entries of a list", length, limits.GGUF_ENTRIES)
            return super()._get_field_parts(orig_offs, raw_type)

    return Bounded
