"""Keys of a `config.json`: those that change no function, those of rotary positions, and what is refused by name.

A key that nothing here reads may change the network. So it is refused, unless it is off (null or false).
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

# Notes, and what only training, saving, generation or speed go by.
HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _model_name_or_path _name_or_path architectures
    attention_dropout attention_probs_dropout_prob attn_implementation attn_pdrop begin_suppress_tokens bos_token_id
    cache_implementation classifier_activation classifier_bias classifier_dropout classifier_pooling cls_token_id
    debug deterministic_flash_attn dtype embd_pdrop embedding_dropout eoi_token_index eos_token_id ep_size
    finetuning_task flash_attention fuse_cross_entropy gradient_checkpointing hidden_dropout_prob id2label
    init_cutoff_factor init_device init_fn init_std initializer_cutoff_factor initializer_range is_llama_config
    label2id length_penalty mask_token_id max_length mlp_dropout n_ctx norm_dropout num_beams num_labels
    output_attentions output_hidden_states pad_token_id precision pretraining_tp problem_type reference_compile
    repad_logits_with_grad resid_pdrop residual_dropout return_dict sep_token_id sparse_pred_ignore_index
    sparse_prediction summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    task_specific_params tokenizer_class torch_dtype torchscript transformers.js_config transformers_version
    unk_token_id unsloth_fixed unsloth_version use_cache
    """.split()  # noqa: SIM905
)
ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
# Keys of rotary positions of each type, beside its name and its base.
_OF_TYPE: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (
        *("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
        *("original_max_position_embeddings", "truncate"),
    ),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_NAMES = {"rope_type", "type", "rope_theta"}


def require_known(folder: Path, config: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ValueError, naming them, for keys that are on and that the model does not read."""
    unknown = [
        key
        for key, value in config.items()
        if key not in known and key not in HARMLESS and key != "model_type" and value not in (None, False)
    ]
    if unknown:
        shown = ", ".join(f"{key} = {str(config[key])[:60]}" for key in sorted(unknown)[:5])
        raise ValueError(f"{folder}/config.json: not known, and may change the network: {shown}")


def rope(folder: Path, config: Mapping[str, Any], theta: float | None = None) -> dict[str, Any]:
    """Read rotary positions from either form, `rope_parameters` or `rope_theta` with `rope_scaling`.

    Returns `rope_type`, `rope_theta` (as given, else `theta`), and the type's own keys. Raises ValueError, naming the
    key, for a type or key that is not known, and for two places that say different things.
    """
    given = {name: config.get(name) or {} for name in ("rope_scaling", "rope_parameters")}
    for name, value in given.items():
        if not isinstance(value, dict):
            raise ValueError(f"{folder}/config.json: {name} = {value!r} must be a section")
        require_type(folder, name, value)
    if given["rope_scaling"] and given["rope_parameters"]:
        one, other = (_without_base(each) for each in given.values())
        if one != other:
            raise ValueError(f"{folder}/config.json: rope_scaling = {one} and rope_parameters = {other} differ")
    found = {**given["rope_scaling"], **given["rope_parameters"]}
    kind = found.get("rope_type") or found.get("type") or "default"
    return {**_without_base(found), "rope_type": kind, "rope_theta": _base(folder, found, config, theta)}


def _base(folder: Path, section: Mapping[str, Any], config: Mapping[str, Any], theta: float | None) -> float | None:
    """Read the base of rotary positions from a section or the config itself, else `theta`. Raises as `rope` does."""
    bases = [value for value in (section.get("rope_theta"), config.get("rope_theta")) if value is not None]
    for value in bases:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{folder}/config.json: rope_theta = {value!r} must be a number")
    if len(set(bases)) > 1:
        raise ValueError(f"{folder}/config.json: rope_theta is given twice, as {sorted(set(bases))}")
    return bases[0] if bases else theta


def require_type(folder: Path, name: str, section: Mapping[str, Any]) -> None:
    """Raise ValueError for rotary positions of a type, or with a key, that is not known; a section may be one of each
    kind of layer.
    """
    for where, each in _sections(name, section):
        kind = each.get("rope_type") or each.get("type") or "default"
        if {"rope_type", "type"} <= each.keys() and each["rope_type"] != each["type"]:
            raise ValueError(f"{folder}/config.json: {where} has two types, {each['rope_type']} and {each['type']}")
        if not isinstance(kind, str) or kind not in _OF_TYPE:
            known = ", ".join(_OF_TYPE)
            raise ValueError(f"{folder}/config.json: {where}: rope_type = {kind!r} must be one of {known}")
        unknown = sorted(each.keys() - _NAMES - set(_OF_TYPE[kind]))
        unknown = [
            key for key in unknown if each[key] is not None and (key, each[key]) != ("partial_rotary_factor", 1.0)
        ]
        if unknown:
            raise ValueError(f"{folder}/config.json: {where}: {unknown[0]} is not known of rope_type = {kind!r}")


def types(config: Mapping[str, Any]) -> set[str]:
    """Name every type of rotary positions in a config, in either form."""
    sections = (config.get(name) for name in ("rope_scaling", "rope_parameters"))
    each = [part for section in sections if isinstance(section, dict) for _, part in _sections("", section)]
    return {part.get("rope_type") or part.get("type") or "default" for part in each}


def _sections(name: str, section: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    nested = {key: value for key, value in section.items() if isinstance(value, Mapping)}
    if nested and len(nested) == len([value for value in section.values() if value is not None]):
        for key, value in nested.items():
            yield f"{name}.{key}", value
    elif section:
        yield name, section


def _without_base(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in _NAMES and value is not None}
