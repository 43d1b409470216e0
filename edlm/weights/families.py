"""Families of large language models, from the settings in a `config.json` to torchtune's builders and their weights.

A setting that would make another network of the same names is refused. Only this module imports torchtune, when a model
is described.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from edlm import limits
from edlm.nn.decoders import Blueprint, DecoderNetwork, bidirectional
from edlm.weights import whole
from edlm.weights.tensors import read_safetensors, unwrapped

# Names of LLaDA's parameters as a Llama's: those above the blocks, and those of block i.
_LLADA = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}
_LLADA_BLOCK = {
    "attn_norm.weight": "input_layernorm.weight",
    "q_proj.weight": "self_attn.q_proj.weight",
    "k_proj.weight": "self_attn.k_proj.weight",
    "v_proj.weight": "self_attn.v_proj.weight",
    "attn_out.weight": "self_attn.o_proj.weight",
    "ff_norm.weight": "post_attention_layernorm.weight",
    "ff_proj.weight": "mlp.gate_proj.weight",
    "up_proj.weight": "mlp.up_proj.weight",
    "ff_out.weight": "mlp.down_proj.weight",
}
_QWEN_BIASES = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")
# Settings that would make another network of the same names; absent ones have these values.
_LLADA_FIXED = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "rope": True,
    "alibi": False,
    "weight_tying": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
}
QWEN_FIXED = {"hidden_act": "silu", "use_sliding_window": False, "rope_scaling": None}
_DREAM_FIXED = {**QWEN_FIXED, "tie_word_embeddings": False}
_LLAMA_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
# Llama 3.1's stretched rotary positions, but for their factor: the ones that torchtune knows.
_LLAMA_ROTARY = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llada(folder: Path, config: Mapping[str, Any], max_length: int) -> Blueprint:
    """Describe LLaDA: a Llama under other names, whose attention looks both ways.

    Raises ValueError, naming the folder and the setting, for one that is missing or unlike the model.
    """
    from torchtune.models import convert_weights, llama3

    _require_fixed(folder, config, _LLADA_FIXED)
    need, count = partial(_need, folder, config), partial(whole_number, folder, config)
    layers, heads, width = count("n_layers", limits.LAYERS), count("n_heads"), count("d_model")
    kv_heads = count("n_kv_heads") if config.get("n_kv_heads") else heads
    _require_heads(folder, heads, kv_heads, width)
    blocks = {
        f"model.transformer.blocks.{i}.{theirs}": f"model.layers.{i}.{llamas}"
        for i in range(layers)
        for theirs, llamas in _LLADA_BLOCK.items()
    }
    build = partial(
        llama3.llama3,
        vocab_size=count("embedding_size" if config.get("embedding_size") else "vocab_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        embed_dim=width,
        max_seq_len=min(max_length, count("max_sequence_length")),
        rope_base=need("rope_theta"),
        intermediate_dim=count("mlp_hidden_size"),
        norm_eps=need("rms_norm_eps"),
    )

    def weights() -> Mapping[str, Tensor]:
        return convert_weights.hf_to_tune(_named(folder, {**_LLADA, **blocks}), heads, kv_heads, width)

    return Blueprint(build, weights, lambda decoder: DecoderNetwork(bidirectional(decoder)).eval(), "")


def dream(folder: Path, config: Mapping[str, Any], max_length: int) -> Blueprint:
    """Describe Dream: a Qwen 2.5 whose attention looks both ways and whose states stand one place later.

    Raises ValueError, naming the folder and the setting, for one that is missing or unlike the model.
    """

    def network(decoder: Any) -> DecoderNetwork:
        return DecoderNetwork(bidirectional(decoder), shifted=True).eval()

    return qwen(folder, config, max_length, _DREAM_FIXED, network)


def qwen(
    folder: Path,
    config: Mapping[str, Any],
    max_length: int,
    fixed: Mapping[str, Any],
    network: Callable[[Any], DecoderNetwork],
) -> Blueprint:
    """Describe Qwen 2 or 2.5. fixed: settings of a value of their own; network: what is made of the decoder.

    Raises ValueError, naming the folder and the setting, for one that is missing or unlike the model.
    """
    from torchtune.models import qwen2
    from torchtune.models.qwen2._convert_weights import qwen2_hf_to_tune, qwen2_tune_to_hf

    _require_fixed(folder, config, fixed)
    tied = bool(config.get("tie_word_embeddings", False))
    build = partial(qwen2.qwen2, **_sizes(folder, config, max_length), tie_word_embeddings=tied)
    names = _llama_names(config, tied, _QWEN_BIASES)
    return Blueprint(build, lambda: qwen2_hf_to_tune(_named(folder, names)), network, "", export=qwen2_tune_to_hf)


def llama(
    folder: Path, config: Mapping[str, Any], max_length: int, network: Callable[[Any], DecoderNetwork]
) -> Blueprint:
    """Describe Llama 2 to 3.2. network: what is made of the decoder.

    Raises ValueError, naming the folder and the setting, for one that is missing or unlike the model.
    """
    from torchtune.models import convert_weights, llama3, llama3_2

    _require_fixed(folder, config, _LLAMA_FIXED)
    sizes = _sizes(folder, config, max_length)
    heads, kv_heads, width = sizes["num_heads"], sizes["num_kv_heads"], sizes["embed_dim"]
    tied = bool(config.get("tie_word_embeddings", False))
    stretched = config.get("rope_scaling")
    if stretched is None and not tied:
        build = partial(llama3.llama3, **sizes)
    else:
        factor = 1.0 if stretched is None else _rotary_factor(folder, stretched)
        build = partial(llama3_2.llama3_2, **sizes, scale_factor=factor, tie_word_embeddings=tied)
    names = _llama_names(config, tied)
    turned = {"num_heads": heads, "num_kv_heads": kv_heads, "dim": width}
    weights = lambda: convert_weights.hf_to_tune(_named(folder, names), **turned)  # noqa: E731
    return Blueprint(build, weights, network, "", export=partial(convert_weights.tune_to_hf, **turned))


def _rotary_factor(folder: Path, stretched: Any) -> float:
    """Read the factor of Llama 3.1's rotary positions; 1 leaves them as they are."""
    kind = isinstance(stretched, dict) and stretched.get("rope_type", stretched.get("type"))
    if kind != "llama3" or any(stretched.get(name) != value for name, value in _LLAMA_ROTARY.items()):
        known = ", ".join(f"{name} = {value:g}" for name, value in _LLAMA_ROTARY.items())
        raise ValueError(f"{folder}/config.json: rope_scaling = {stretched!r} must be of type llama3 with {known}")
    return float(_need(folder, stretched, "factor"))


def _sizes(folder: Path, config: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """Collect the arguments that torchtune's builders share, from a config in Hugging Face's names."""
    need, count = partial(_need, folder, config), partial(whole_number, folder, config)
    heads, width = count("num_attention_heads"), count("hidden_size")
    kv_heads = count("num_key_value_heads") if config.get("num_key_value_heads") else heads
    _require_heads(folder, heads, kv_heads, width)
    _require_fixed(
        folder, {**config, "head_dim": config.get("head_dim") or width // heads}, {"head_dim": width // heads}
    )
    return {
        "vocab_size": count("vocab_size"),
        "num_layers": count("num_hidden_layers", limits.LAYERS),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "embed_dim": width,
        "intermediate_dim": count("intermediate_size"),
        "max_seq_len": min(max_length, count("max_position_embeddings")),
        "norm_eps": need("rms_norm_eps"),
        "rope_base": need("rope_theta"),
    }


def _llama_names(config: Mapping[str, Any], tied: bool, biases: tuple[str, ...] = ()) -> dict[str, str]:
    """Map every parameter of a Llama folder in Hugging Face's names to itself."""
    above = [name for name in _LLADA.values() if not (tied and name == "lm_head.weight")]
    in_block = [*_LLADA_BLOCK.values(), *biases]
    blocks = [f"model.layers.{i}.{name}" for i in range(int(config["num_hidden_layers"])) for name in in_block]
    return {name: name for name in (*above, *blocks)}


def _named(folder: Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename all tensors of a folder, after a check of every old name."""
    tensors = unwrapped(_read_shards(folder), folder)
    problems = [f"{name} is missing" for name in names.keys() - tensors.keys()]
    problems += [f"{name} is not known" for name in tensors.keys() - names.keys()]
    if problems:
        raise ValueError(f"{folder}: {'; '.join(sorted(problems)[:5])}")
    return {new: tensors[old] for old, new in names.items()}


def _read_shards(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return read_safetensors(folder / "model.safetensors")
    where = whole.read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(re.fullmatch(r"[\w.-]+\.safetensors", str(f)) for f in where.values()):
        raise ValueError(f"{index}: no weight_map from parameters to safetensors files beside it")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(where.values())):
        tensors.update(read_safetensors(folder / name))
    return tensors


def _need(folder: Path, config: Mapping[str, Any], name: str) -> Any:
    given = config.get(name)
    if not isinstance(given, int | float) or isinstance(given, bool) or not abs(given) < math.inf:
        raise ValueError(f"{folder}/config.json: {name} = {config.get(name)!r} must be a number")
    return config[name]


def whole_number(folder: Path, config: Mapping[str, Any], name: str, limit: int | None = None) -> int:
    """Read a whole number of at least 1, and of no more than the limit."""
    value = _need(folder, config, name)
    if value < 1 or value != int(value):
        raise ValueError(f"{folder}/config.json: {name} = {value!r} must be a whole number of at least 1")
    if limit is not None:
        limits.require(f"{folder}/config.json", name, int(value), limit)
    return int(value)


def _require_heads(folder: Path, heads: int, kv_heads: int, width: int) -> None:
    """Raise ValueError for sizes from which torchtune's attention cannot be made."""
    if width % heads or (width // heads) % 2 or heads % kv_heads:
        raise ValueError(
            f"{folder}/config.json: {heads} heads of which {kv_heads} hold keys do not fit a width of {width}"
        )


def _require_fixed(folder: Path, config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise ValueError(f"{folder}/config.json: {name} = {config[name]!r} must be {value!r}")
