"""Families of large language models, from the settings in a `config.json` to torchtune's builders and their weights.

A setting that would make another network of the same names is refused. Only this module imports torchtune, when a model
is described.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from edlm import limits
from edlm.nn.decoders import Blueprint, DecoderNetwork, bidirectional
from edlm.weights import config_keys, shards
from edlm.weights.tensors import unwrapped

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
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
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
    "layer_norm_with_affine": True,
    "multi_query_attention": None,
    "block_group_size": 1,
}
_LLADA_READ = frozenset(
    """
    alibi_bias_max auto_map block_group_size d_model embedding_size layer_norm_with_affine max_sequence_length
    mlp_hidden_size mlp_ratio multi_query_attention n_heads n_kv_heads n_layers rms_norm_eps rope_full_precision
    rope_theta vocab_size
    """.split()  # noqa: SIM905
)
QWEN_FIXED = {"hidden_act": "silu", "use_sliding_window": False}
_DREAM_FIXED = {**QWEN_FIXED, "tie_word_embeddings": False, "rope_scaling": None}
LLAMA_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
_READ = frozenset(
    """
    head_dim hidden_size intermediate_size max_position_embeddings num_attention_heads num_hidden_layers
    num_key_value_heads rms_norm_eps tie_word_embeddings vocab_size
    """.split()  # noqa: SIM905
) | set(config_keys.ROPE)
_QWEN_READ = _READ | {"max_window_layers", "sliding_window", "layer_types"}
# What a key of these families is where it is absent.
_QWEN_DEFAULTS = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6}
_LLAMA_DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
_THETA = 10000.0
# Llama 3.1's stretched rotary positions, but for their factor: the ones that torchtune knows.
_LLAMA_ROTARY = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llada(folder: Path, config: Mapping[str, Any], max_length: int) -> Blueprint:
    """Describe LLaDA: a Llama under other names, whose attention looks both ways.

    Raises ValueError, naming the folder and the setting, for one that is missing or unlike the model.
    """
    from torchtune.models import convert_weights, llama3

    _require_fixed(folder, config, _LLADA_FIXED)
    config_keys.require_known(folder, config, _LLADA_READ | _LLADA_FIXED.keys())
    need, count = partial(number, folder, config), partial(whole_number, folder, config)
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

    names = {**_LLADA, **blocks}

    def weights() -> Mapping[str, Tensor]:
        return convert_weights.hf_to_tune(named(folder, names), heads, kv_heads, width)

    def export(state: dict[str, Tensor]) -> dict[str, Tensor]:
        llamas = convert_weights.tune_to_hf(state, heads, kv_heads, width)
        return {theirs: llamas[name] for theirs, name in names.items()}

    network = lambda decoder: DecoderNetwork(bidirectional(decoder)).eval()  # noqa: E731
    return Blueprint(build, weights, network, "", export=export)


def dream(folder: Path, config: Mapping[str, Any], max_length: int) -> Blueprint:
    """Describe Dream: a Qwen 2.5 whose attention looks both ways and whose states stand one place later.

    Raises ValueError, naming the folder and the setting, for one that is missing or unlike the model.
    """

    def network(decoder: Any) -> DecoderNetwork:
        return DecoderNetwork(bidirectional(decoder), shifted=True).eval()

    own = {key: value for key, value in config.items() if key != "auto_map"}  # its code is this function
    return qwen(folder, own, max_length, _DREAM_FIXED, network)


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
    config_keys.require_known(folder, config, _QWEN_READ | fixed.keys())
    config = {**_QWEN_DEFAULTS, **config}
    tied = bool(config.get("tie_word_embeddings", False))
    build = partial(qwen2.qwen2, **_sizes(folder, config, max_length), tie_word_embeddings=tied)
    names = _llama_names(config, tied, _QWEN_BIASES)
    return Blueprint(build, lambda: qwen2_hf_to_tune(named(folder, names)), network, "", export=qwen2_tune_to_hf)


def llama(
    folder: Path, config: Mapping[str, Any], max_length: int, network: Callable[[Any], DecoderNetwork]
) -> Blueprint:
    """Describe Llama 2 to 3.2. network: what is made of the decoder.

    Raises ValueError, naming the folder and the setting, for one that is missing or unlike the model.
    """
    from torchtune.models import convert_weights, llama3, llama3_2

    _require_fixed(folder, config, LLAMA_FIXED)
    config_keys.require_known(folder, config, _READ | LLAMA_FIXED.keys())
    config = {**_LLAMA_DEFAULTS, **config}
    sizes = _sizes(folder, config, max_length)
    heads, kv_heads, width = sizes["num_heads"], sizes["num_kv_heads"], sizes["embed_dim"]
    tied = bool(config.get("tie_word_embeddings", False))
    factor = float(config_keys.rope(folder, config).get("factor", 1.0))
    if factor == 1.0 and not tied:
        build = partial(llama3.llama3, **sizes)
    else:
        build = partial(llama3_2.llama3_2, **sizes, scale_factor=factor, tie_word_embeddings=tied)
    names = _llama_names(config, tied)
    turned = {"num_heads": heads, "num_kv_heads": kv_heads, "dim": width}
    weights = lambda: convert_weights.hf_to_tune(named(folder, names), **turned)  # noqa: E731
    return Blueprint(build, weights, network, "", export=partial(convert_weights.tune_to_hf, **turned))


def beyond(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Name the setting of a Qwen 2 or a Llama that torchtune's builders do not have; None if they have all."""
    kind, rope = config["model_type"], config_keys.rope(folder, config)
    fixed = QWEN_FIXED if kind == "qwen2" else LLAMA_FIXED
    for name, value in fixed.items():
        if config.get(name, value) != value:
            return f"{name} = {config[name]!r}"
    if set(config.get("layer_types") or ()) - {"full_attention"}:
        return f"layer_types = {config['layer_types']}"
    width, heads, head_dim = (config.get(name) for name in ("hidden_size", "num_attention_heads", "head_dim"))
    if head_dim is not None and isinstance(width, int) and isinstance(heads, int) and head_dim * heads != width:
        return f"head_dim = {head_dim}"
    stretched = kind == "llama" and rope["rope_type"] == "llama3"
    if stretched and all(rope.get(name) == value for name, value in _LLAMA_ROTARY.items()):
        return None
    return None if rope["rope_type"] == "default" else f"rope_type = {rope['rope_type']!r}"


def _sizes(folder: Path, config: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """Collect the arguments that torchtune's builders share, from a config in Hugging Face's names."""
    need, count = partial(number, folder, config), partial(whole_number, folder, config)
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
        "rope_base": number(folder, config_keys.rope(folder, config, _THETA), "rope_theta"),
    }


def _llama_names(config: Mapping[str, Any], tied: bool, biases: tuple[str, ...] = ()) -> dict[str, str]:
    """Map every parameter of a Llama folder in Hugging Face's names to itself."""
    above = [name for name in _LLADA.values() if not (tied and name == "lm_head.weight")]
    in_block = [*_LLADA_BLOCK.values(), *biases]
    blocks = [f"model.layers.{i}.{name}" for i in range(int(config["num_hidden_layers"])) for name in in_block]
    return {name: name for name in (*above, *blocks)}


def named(
    folder: Path, names: Mapping[str, str], read: Callable[[Path], dict[str, Any]] = shards.read
) -> dict[str, Any]:
    """Rename all tensors of a folder, after a check of every old name, and of a head that is its embedding again.

    Raises ValueError for names that are missing or not known.
    """
    found = unwrapped(read(folder), folder)
    tensors = {name: value for name, value in found.items() if not shards.BESIDE.search(name)}
    if _HEAD not in names.values() and _HEAD in tensors and _EMBEDDING in tensors:
        shards.require_same(folder, _HEAD, tensors.pop(_HEAD), _EMBEDDING, tensors[_EMBEDDING])
    problems = [f"{name} is missing" for name in names.keys() - tensors.keys()]
    problems += [f"{name} is not known" for name in tensors.keys() - names.keys()]
    if problems:
        raise ValueError(f"{folder}: {'; '.join(sorted(problems)[:5])}")
    return {new: tensors[old] for old, new in names.items()}


def number(folder: Path, config: Mapping[str, Any], name: str) -> float:
    """Read a finite number. Raises ValueError for anything else."""
    given = config.get(name)
    if not isinstance(given, int | float) or isinstance(given, bool) or not abs(given) <= sys.float_info.max:
        raise ValueError(f"{folder}/config.json: {name} = {config.get(name)!r} must be a number")
    return float(given)


def whole_number(folder: Path, config: Mapping[str, Any], name: str, limit: int = limits.SIZE) -> int:
    """Read a whole number of at least 1, and of no more than the limit."""
    number(folder, config, name)
    value: int | float = config[name]  # as it is given: a float would round a large one
    if value < 1 or value != int(value):
        raise ValueError(f"{folder}/config.json: {name} = {value!r} must be a whole number of at least 1")
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
