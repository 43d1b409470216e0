"""Large language models by folder: LLaDA-8B and Dream-7B as denoisers, Qwen and Llama as the model of an energy.

The blocks are torchtune's, of which `decoders` makes networks. Only this module imports torchtune, when a model is
built. Weights come from folders in Hugging Face's layout (`config.json`, `model.safetensors` or its shards with their
index). Nothing in them is executed. LLaDA is a Llama, and Dream a Qwen 2.5, whose attention looks both ways. A folder
is read into a `Blueprint` first, which takes no memory.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from edlm import limits
from edlm.data import formats, tokenizer_files
from edlm.data.vocabulary import Vocabulary
from edlm.nn import decoders
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
_QWEN_FIXED = {"hidden_act": "silu", "use_sliding_window": False, "rope_scaling": None}
_DREAM_FIXED = {**_QWEN_FIXED, "tie_word_embeddings": False}
_LLAMA_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
# Llama 3.1's stretched rotary positions, but for their factor: the ones that torchtune knows.
_LLAMA_ROTARY = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def load_diffusion(folder: str | Path, max_length: int = 2048) -> DecoderNetwork:
    """Load LLaDA or Dream from its folder, in the precision of its weights: `decoders.load(read_diffusion(...))`.

    Args:
        folder: `config.json` and the weights.
        max_length: the longest text that it reads, if the model has no smaller limit.

    Returns:
        The bidirectional network, in eval mode.

    Raises:
        ValueError: naming the file or the setting that is missing, unknown or unlike these models.

    Example:
        >>> import edlm
        >>> network = edlm.large.load_diffusion("LLaDA-8B-Base", max_length=8)
        >>> network(torch.zeros(1, 8, dtype=torch.int64)).shape[:2]
        torch.Size([1, 8])
    """
    return decoders.load(read_diffusion(folder, max_length))


def read_diffusion(folder: str | Path, max_length: int = 2048) -> Blueprint:
    """Read LLaDA (`model_type` llada) or Dream (Dream), bidirectional, as its `config.json` describes it.

    Args:
        folder: `config.json` and the weights.
        max_length: the longest text that it reads, if the model has no smaller limit.

    Returns:
        The model before it takes memory; `decoders.load` fills it.

    Raises:
        ValueError: naming the file or the setting that is missing, unknown or unlike these models.

    Example:
        >>> import edlm
        >>> edlm.large.read_diffusion("LLaDA-8B-Base").dtype
        torch.float32
    """
    return _read(Path(folder), {"llada": _llada, "Dream": _dream}, max_length)


def read_autoregressive(
    folder: str | Path, max_length: int = 2048, rows_at_once: int | None = None, vocab_size: int | None = None
) -> Blueprint:
    """Read Qwen 2 and 2.5 (`model_type` qwen2) or Llama 2 to 3.2 (llama) for `energies.residual_ar`.

    Args:
        folder: `config.json` and the weights.
        max_length: the longest text that it reads, if the model has no smaller limit.
        rows_at_once: how many rows are run at a time, which bounds memory; None: all.
        vocab_size: that of the denoiser, where it is larger; ids that the decoder does not know are impossible.

    Returns:
        The model before it takes memory; `decoders.load` fills it.

    Raises:
        ValueError: naming the file or the setting that is missing, unknown or unlike these models.

    Example:
        >>> import edlm
        >>> edlm.large.read_autoregressive("Qwen2.5-7B", rows_at_once=4).where
        'Qwen2.5-7B'
    """
    network = partial(decoders.autoregressive, rows_at_once=rows_at_once, vocab_size=vocab_size)
    families = {"qwen2": partial(_qwen, fixed=_QWEN_FIXED, network=network), "llama": partial(_llama, network=network)}
    return _read(Path(folder), families, max_length)


def load_vocabulary(folder: str | Path, tokenizer: str | Path | None = None) -> Vocabulary:
    """Load the vocabulary of such a folder: its `tokenizer.json`, or another one, and the special ids of its config.

    Special tokens of the tokenizer from the mask's id on are left out, as no text stands for them. `size` counts the
    ids of the network.

    Args:
        folder: holds `config.json`.
        tokenizer: another `tokenizer.json`. Dream's folder has none: give that of Qwen 2.5, which Dream extends.

    Returns:
        The vocabulary.

    Raises:
        ValueError: naming what is missing.

    Example:
        >>> import edlm
        >>> vocabulary = edlm.large.load_vocabulary("LLaDA-8B-Base")
        >>> vocabulary.size, vocabulary.mask_id
        (40, 33)
    """
    folder = Path(folder)
    config = whole.read_json(folder / "config.json")
    mask_id = _count(folder, config, "mask_token_id")
    file = Path(tokenizer or folder / "tokenizer.json")
    if file.exists():
        formats.require_file(file)
    content = whole.read_json(file, limits.TOKENIZER_BYTES)
    words = tokenizer_files.parse(file, tokenizer_files.EXPECTED, partial(_without_mask, content, mask_id))
    size = _count(folder, config, "embedding_size" if config.get("embedding_size") else "vocab_size")
    specials = {f"{name}_id": special_id(folder, config, name) for name in ("bos", "eos", "pad")}
    return Vocabulary(words, size=size, mask_id=mask_id, **specials)


def _without_mask(content: Mapping[str, Any], mask_id: int) -> Tokenizer:
    """The tokenizer of a file's content, without special tokens from the mask's id on."""
    added = [token for token in content.get("added_tokens", []) if token["id"] < mask_id]
    words = Tokenizer.from_str(json.dumps({**content, "added_tokens": added}))
    return tokenizer_files.plain(words)


def special_id(folder: str | Path, config: Mapping[str, Any], name: str) -> int | None:
    """Find the id of bos, eos or pad in a `config.json`; of several, the first.

    Args:
        folder: named in errors.
        config: the content of the file.
        name: "bos", "eos" or "pad".

    Returns:
        The id, None if the config has none.

    Raises:
        ValueError: for what is no id.

    Example:
        >>> import edlm
        >>> edlm.large.special_id("Llama-3.1-8B", {"eos_token_id": [128001, 128009]}, "eos")
        128001
    """
    given = config.get(f"{name}_token_id")
    found = given[0] if isinstance(given, list) and given else given
    if found is not None and type(found) is not int:
        raise ValueError(f"{folder}/config.json: {name}_token_id = {given!r} must be an id, a list of ids, or null")
    return found


def require_same_tokens(vocabulary: Vocabulary, folder: str | Path) -> None:
    """Raise ValueError if the `tokenizer.json` of a folder gives text other ids than a vocabulary does.

    All that decides an id is compared: the normaliser, the cut into words, the model and the tokens added to it.
    Special tokens are not: Dream has two that Qwen 2.5 has not, and no text is encoded to them.

    Args:
        vocabulary: that of the denoiser.
        folder: that of the energy's model; one without a `tokenizer.json` passes.

    Raises:
        ValueError: if the ids differ.

    Example:
        >>> import edlm
        >>> edlm.large.require_same_tokens(edlm.large.load_vocabulary("LLaDA-8B-Base"), "LLaDA-8B-Base")
    """
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        return
    if _deciding(vocabulary.tokenizer.to_str()) != _deciding(json.dumps(whole.read_json(file, limits.TOKENIZER_BYTES))):
        raise ValueError(f"{file}: another tokenizer than the denoiser's, so a token means another text to each")


def _deciding(content: str) -> dict[str, Any] | None:
    """Collect what decides a text's ids, in the form of this version of `tokenizers`; None if it is no tokenizer."""
    try:
        parts = json.loads(Tokenizer.from_str(content).to_str(), object_hook=_without_offsets)
    except Exception:  # `tokenizers` raises nothing more specific
        return None
    added = {token["content"]: token["id"] for token in parts["added_tokens"] if not token["special"]}
    return {"added": added, **{name: parts[name] for name in ("normalizer", "pre_tokenizer", "model")}}


def _without_offsets(part: dict[str, Any]) -> dict[str, Any]:
    """Drop from a part of a tokenizer what changes only the places of tokens."""
    return {name: value for name, value in part.items() if not (name == "trim_offsets" and part.get("type"))}


def _read(folder: Path, families: Mapping[str, Callable[..., Blueprint]], max_length: int) -> Blueprint:
    config = whole.read_json(folder / "config.json")
    family = families.get(str(config.get("model_type")))
    if family is None:
        raise ValueError(f"{folder}: model_type = {config.get('model_type')!r} must be one of {', '.join(families)}")
    return family(folder, config, max_length)._replace(where=str(folder), dtype=dtype_of(folder))


def dtype_of(folder: str | Path) -> torch.dtype:
    """Read the precision of a folder's weights in its `config.json`, under either of its names.

    Args:
        folder: holds `config.json`.

    Returns:
        The precision; float32 if the config names none.

    Raises:
        ValueError: naming the file, if it cannot be read.

    Example:
        >>> import edlm
        >>> edlm.large.dtype_of("LLaDA-8B-Base")
        torch.float32
    """
    file = Path(folder) / "config.json"
    config = whole.read_json(file) if file.is_file() else {}
    found = getattr(torch, str(config.get("torch_dtype") or config.get("dtype")), None)
    return found if isinstance(found, torch.dtype) else torch.float32


def _llada(folder: Path, config: Mapping[str, Any], max_length: int) -> Blueprint:
    from torchtune.models import convert_weights, llama3

    _require_fixed(folder, config, _LLADA_FIXED)
    need, count = partial(_need, folder, config), partial(_count, folder, config)
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


def _dream(folder: Path, config: Mapping[str, Any], max_length: int) -> Blueprint:
    def network(decoder: Any) -> DecoderNetwork:
        return DecoderNetwork(bidirectional(decoder), shifted=True).eval()

    return _qwen(folder, config, max_length, _DREAM_FIXED, network)


def _qwen(
    folder: Path,
    config: Mapping[str, Any],
    max_length: int,
    fixed: Mapping[str, Any],
    network: Callable[[Any], DecoderNetwork],
) -> Blueprint:
    from torchtune.models import qwen2
    from torchtune.models.qwen2._convert_weights import qwen2_hf_to_tune

    _require_fixed(folder, config, fixed)
    tied = bool(config.get("tie_word_embeddings", False))
    build = partial(qwen2.qwen2, **_sizes(folder, config, max_length), tie_word_embeddings=tied)
    names = _llama_names(config, tied, _QWEN_BIASES)
    return Blueprint(build, lambda: qwen2_hf_to_tune(_named(folder, names)), network, "")


def _llama(
    folder: Path, config: Mapping[str, Any], max_length: int, network: Callable[[Any], DecoderNetwork]
) -> Blueprint:
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
    return Blueprint(
        build, lambda: convert_weights.hf_to_tune(_named(folder, names), heads, kv_heads, width), network, ""
    )


def _rotary_factor(folder: Path, stretched: Any) -> float:
    """Read the factor of Llama 3.1's rotary positions; 1 leaves them as they are."""
    kind = isinstance(stretched, dict) and stretched.get("rope_type", stretched.get("type"))
    if kind != "llama3" or any(stretched.get(name) != value for name, value in _LLAMA_ROTARY.items()):
        known = ", ".join(f"{name} = {value:g}" for name, value in _LLAMA_ROTARY.items())
        raise ValueError(f"{folder}/config.json: rope_scaling = {stretched!r} must be of type llama3 with {known}")
    return float(_need(folder, stretched, "factor"))


def _sizes(folder: Path, config: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """Collect the arguments that torchtune's builders share, from a config in Hugging Face's names."""
    need, count = partial(_need, folder, config), partial(_count, folder, config)
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


def _count(folder: Path, config: Mapping[str, Any], name: str, limit: int | None = None) -> int:
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
