"""LLaDA 2 as the `glm4_moe` of `transformers`: the same network under other names of its settings and its weights.

Experts are chosen by sigmoid scores with a bias: first groups, by the sum of the two best scores of each, then experts.
Their weights are the scores without the bias, scaled to a fixed sum. A shared expert reads every token.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edlm import limits
from edlm.weights import config_keys, families, shards

# Settings of one value. Another one would be another network of the same names.
FIXED: Mapping[str, Any] = {
    "hidden_act": "silu",
    "use_bias": False,
    "use_qkv_bias": False,
    "use_qk_norm": True,
    "use_rmsnorm": True,
    "use_sliding_window": False,
    "using_split_qkv_in_self_attention": False,
    "tie_word_embeddings": False,
    "norm_head": False,
    "norm_softmax": False,
    "norm_topk_prob": True,
    "score_function": "sigmoid",
    "router_dtype": "fp32",
    "moe_router_enable_expert_bias": True,
}
# Sizes by their name there, and the defaults of those that no weight shows.
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "max_position_embeddings": "max_position_embeddings",
    "moe_intermediate_size": "moe_intermediate_size",
    "num_experts": "n_routed_experts",
    "num_shared_experts": "n_shared_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "n_group": "n_group",
    "topk_group": "topk_group",
}
_DEFAULTS = {"max_position_embeddings": 16384, "rms_norm_eps": 1e-5, "routed_scaling_factor": 2.5}
_DEFAULTS |= {"num_experts_per_tok": 2, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 0}
_THETA, _ROTARY_SHARE = 10000.0, 0.5
_BESIDE = frozenset(
    """
    auto_map embedding_dropout first_k_dense_replace head_dim max_window_layers moe_shared_expert_intermediate_size
    output_dropout partial_rotary_factor rms_norm_eps rotary_dim routed_scaling_factor sliding_window
    """.split()  # noqa: SIM905
)
KEYS = _SIZES.keys() | FIXED.keys() | _BESIDE | set(config_keys.ROPE)
# Names of a block's parameters, here and there, but for the feed-forward layer and the joint projection.
_BLOCK = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "attention.query_layernorm.weight": "self_attn.q_norm.weight",
    "attention.key_layernorm.weight": "self_attn.k_norm.weight",
    "attention.dense.weight": "self_attn.o_proj.weight",
}
_JOINT = "attention.query_key_value.weight"
_GATE = {"mlp.gate.weight": "mlp.gate.weight", "mlp.gate.expert_bias": "mlp.gate.e_score_correction_bias"}
_LAYER = ("gate_proj", "up_proj", "down_proj")
_ABOVE = {
    "model.word_embeddings.weight": "model.embed_tokens.weight",
    "model.norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}


def settings(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a `config.json`. Raises ValueError, naming the folder and the key, for what makes no such network."""
    config_keys.require_known(folder, config, KEYS)
    config = {**_DEFAULTS, **{key: value for key, value in config.items() if value is not None}}
    count, where = partial(families.whole_number, folder, config), f"{folder}/config.json"
    found: dict[str, Any] = {theirs: count(name) for name, theirs in _SIZES.items()}
    limits.require(where, "num_hidden_layers", found["num_hidden_layers"], limits.LAYERS)
    head_dim = count("head_dim") if "head_dim" in config else found["hidden_size"] // found["num_attention_heads"]
    dense = config["first_k_dense_replace"]
    if type(dense) is not int or not 0 <= dense <= found["num_hidden_layers"]:
        raise ValueError(f"{where}: first_k_dense_replace = {dense!r} must be a number of layers")
    heads, kv_heads = found["num_attention_heads"], found["num_key_value_heads"]
    if heads % kv_heads:
        raise ValueError(
            f"{where}: num_attention_heads = {heads} must be a multiple of num_key_value_heads = {kv_heads}"
        )
    _require_routes(where, found)
    shared = config.get("moe_shared_expert_intermediate_size", found["moe_intermediate_size"])
    if shared != found["moe_intermediate_size"]:
        raise ValueError(f"{where}: moe_shared_expert_intermediate_size = {shared!r} must be moe_intermediate_size")
    return {
        **found,
        "head_dim": head_dim,
        "first_k_dense_replace": dense,
        "rms_norm_eps": families.number(folder, config, "rms_norm_eps"),
        "routed_scaling_factor": families.number(folder, config, "routed_scaling_factor"),
        "rope_parameters": _rope(folder, config, head_dim),
        "use_qk_norm": True,
        "norm_topk_prob": True,
        "num_mtp_layers": 0,
    }


def _require_routes(where: str, found: Mapping[str, int]) -> None:
    """Raise ValueError for groups from which no token can choose its experts."""
    experts, groups, kept = found["n_routed_experts"], found["n_group"], found["topk_group"]
    if experts % groups or experts // groups < 2:
        raise ValueError(f"{where}: num_experts = {experts} must be groups of at least two, n_group = {groups} of them")
    if kept > groups:
        raise ValueError(f"{where}: topk_group = {kept} must be at most n_group = {groups}")
    if found["num_experts_per_tok"] > kept * (experts // groups):
        chosen, most = found["num_experts_per_tok"], kept * (experts // groups)
        raise ValueError(f"{where}: num_experts_per_tok = {chosen} must be at most {most}, the experts of topk_group")


def _rope(folder: Path, config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """Read rotary positions, which turn a share of each head. Raises ValueError for shares that differ."""
    where, section = f"{folder}/config.json", config.get("rope_parameters") or {}
    if not isinstance(section, dict):
        raise ValueError(f"{where}: rope_parameters = {section!r} must be a section")
    given: set[Any] = {each.get("partial_rotary_factor") for each in (config, section)} - {None}
    if len(given) > 1:
        raise ValueError(f"{where}: partial_rotary_factor is given twice, as {sorted(given)}")
    share = given.pop() if given else _ROTARY_SHARE
    turned = int(head_dim * share) if isinstance(share, int | float) and 0 < share <= 1 else 0
    if turned == 0 or turned % 2:
        raise ValueError(f"{where}: partial_rotary_factor = {share!r} must leave an even part of {head_dim}")
    if config.get("rotary_dim", turned) != turned:
        raise ValueError(f"{where}: rotary_dim = {config['rotary_dim']!r} must be {turned}")
    rest = {key: value for key, value in section.items() if key != "partial_rotary_factor"}
    found = config_keys.rope(folder, {**config, "rope_parameters": rest}, _THETA)
    if found["rope_type"] != "default":
        raise ValueError(f"{where}: rope_type = {found['rope_type']!r} must be 'default'")
    theta = families.number(folder, found, "rope_theta")
    return {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": share}


def weights(folder: Path, config: Any) -> dict[str, Any]:
    """Open the weights of a folder under the names there, and read those that are put together. config: as it is there.

    Raises ValueError, naming it, for a weight that is missing, not known, or unlike those that it stands beside.
    """
    found = families.named(folder, _names(config), shards.unread)
    for i in range(config.num_hidden_layers):
        block = f"model.layers.{i}"
        _cut(folder, found, block, config)
        if i >= config.first_k_dense_replace:
            _stack(folder, found, f"{block}.mlp.experts", config.n_routed_experts)
    return found


def exported(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Give weights the names of a folder again, as `weights` reads them: join what it cuts, and part what it stacks."""
    found = dict(state)
    for i in range(config.num_hidden_layers):
        block = f"model.layers.{i}"
        experts = f"{block}.mlp.experts"
        found[f"{block}.{_JOINT}"] = torch.cat([found.pop(f"{block}.self_attn.{name}_proj.weight") for name in "qkv"])
        if i < config.first_k_dense_replace:
            continue
        both, down = found.pop(f"{experts}.gate_up_proj"), found.pop(f"{experts}.down_proj")
        for j in range(config.n_routed_experts):
            each = zip(_LAYER, (*both[j].chunk(2), down[j]), strict=True)
            found |= {f"{experts}.{j}.{layer}.weight": value.clone() for layer, value in each}
    return {name: found[there] for name, there in _names(config).items()}


def _cut(folder: Path, found: dict[str, Any], block: str, config: Any) -> None:
    """Cut a joint projection into those of queries, keys and values."""
    joint: Tensor = found.pop(f"{block}.{_JOINT}")[:]
    rows = [config.head_dim * heads for heads in (config.num_attention_heads, *[config.num_key_value_heads] * 2)]
    if len(joint) != sum(rows):
        raise ValueError(f"{folder}: {block}.{_JOINT} has {len(joint)} rows, and must have {sum(rows)}")
    for name, value in zip("qkv", joint.split(rows), strict=True):
        found[f"{block}.self_attn.{name}_proj.weight"] = value


def _stack(folder: Path, found: dict[str, Any], experts: str, count: int) -> None:
    """Put all experts of a block into one tensor, the first two layers of each side by side."""
    for name, layers in {"gate_up_proj": _LAYER[:2], "down_proj": _LAYER[2:]}.items():
        each = [[found.pop(f"{experts}.{j}.{layer}.weight")[:] for layer in layers] for j in range(count)]
        try:
            found[f"{experts}.{name}"] = torch.stack([torch.cat(parts) for parts in each])
        except RuntimeError as error:
            raise ValueError(f"{folder}: {experts} have {' and '.join(layers)} of several shapes") from error


def _names(config: Any) -> dict[str, str]:
    """Map every parameter of a folder to its name there. The joint projection keeps its own, until it is cut."""
    found = dict(_ABOVE)
    for i in range(config.num_hidden_layers):
        block = f"model.layers.{i}."
        routed = [f"mlp.experts.{j}" for j in range(config.n_routed_experts)]
        layers = ["mlp"] if i < config.first_k_dense_replace else ["mlp.shared_experts", *routed]
        same = [_JOINT, *(f"{layer}.{name}.weight" for layer in layers for name in _LAYER)]
        gate = {} if i < config.first_k_dense_replace else _GATE
        named = {**_BLOCK, **gate, **{name: name for name in same}}
        found |= {block + ours: block + theirs for ours, theirs in named.items()}
    return found
