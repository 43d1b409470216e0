"""Tiny random folders of block diffusion as the hub has them, and what such models compute, in plain torch."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hub_folders as hub
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from edlm.data import vocabulary

MASK, SIZE, LENGTH = 33, 32, 72  # two blocks of 32 tokens and a part of a third
# As the published LLaDA2.0-mini names its settings.
LLADA2: dict[str, Any] = {
    "model_type": "llada2_moe",
    "architectures": ["LLaDA2MoeModelLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM"},
    "vocab_size": hub.V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 20,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "num_experts": 8,
    "num_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "score_function": "sigmoid",
    "router_dtype": "fp32",
    "moe_router_enable_expert_bias": True,
    "partial_rotary_factor": 0.5,
    "rotary_dim": 6,
    "rope_theta": 600.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 96,
    "hidden_act": "silu",
    "use_qkv_bias": False,
    "use_bias": False,
    "use_qk_norm": True,
    "use_rmsnorm": True,
    "norm_head": False,
    "norm_softmax": False,
    "tie_word_embeddings": False,
    "embedding_dropout": 0.0,
    "output_dropout": 0.0,
    "output_router_logits": False,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "using_split_qkv_in_self_attention": False,
    "mask_token_id": MASK,
    "pad_token_id": 0,
}


def seen(length: int = LENGTH, size: int = SIZE) -> Tensor:
    """What each position sees: its own block, and all before it."""
    block = torch.arange(length) // size
    return block[:, None] >= block[None]


def fast_dllm(folder: Path, transformers: Any, **changes: Any) -> Any:
    """Write a folder of Fast-dLLM v2, with blocks of 32; returns Qwen 2's own model of its weights."""
    model = hub.model("qwen2", transformers, max_position_embeddings=96, **changes)
    hub.save(model, folder)
    hub.change(
        folder,
        model_type="Fast_dLLM_Qwen",
        architectures=["Fast_dLLM_QwenForCausalLM"],
        auto_map={"AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM"},
        bd_size=SIZE,
        conplemenrary_mask=True,
        mask_token_id=MASK,
    )
    tokenizer(folder)
    return model


def sdar(folder: Path, transformers: Any) -> Any:
    """Write a folder of SDAR, with blocks of 32; returns Qwen 3's own model of its weights."""
    model = hub.model("qwen3", transformers, max_position_embeddings=96)
    hub.change(hub.save(model, folder), model_type="sdar", block_size=SIZE, mask_token_id=MASK)
    return model


def tokenizer(folder: Path) -> None:
    """Write a tokenizer of 27 characters, whose ids are the network's first."""
    (folder / "tokenizer.json").write_text(vocabulary.characters().tokenizer.to_str())


def shifted_logits(model: Any, tokens: Tensor, allowed: Tensor) -> Tensor:
    """Logits at place i of the state before it, where positions see what they are allowed to, (l, l)."""
    scores = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
    logits = model(tokens, attention_mask=scores.expand(len(tokens), 1, -1, -1)).logits
    return torch.cat([logits[:, :1], logits[:, :-1]], dim=1)


def llada2_weights(config: Mapping[str, Any] = LLADA2) -> dict[str, Tensor]:
    """Random weights under the published names, large enough for every part to matter."""
    wide, heads = config["hidden_size"], config["num_attention_heads"] + 2 * config["num_key_value_heads"]
    inner, size = config["moe_intermediate_size"], config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.word_embeddings.weight": (config["vocab_size"], wide),
        "model.norm.weight": (wide,),
        "lm_head.weight": (config["vocab_size"], wide),
    }

    def feed_forward(name: str, width: int) -> None:
        shapes[f"{name}.gate_proj.weight"] = shapes[f"{name}.up_proj.weight"] = (width, wide)
        shapes[f"{name}.down_proj.weight"] = (wide, width)

    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}"
        shapes[f"{block}.input_layernorm.weight"] = shapes[f"{block}.post_attention_layernorm.weight"] = (wide,)
        shapes[f"{block}.attention.query_key_value.weight"] = (heads * size, wide)
        shapes[f"{block}.attention.query_layernorm.weight"] = (size,)
        shapes[f"{block}.attention.key_layernorm.weight"] = (size,)
        shapes[f"{block}.attention.dense.weight"] = (wide, config["num_attention_heads"] * size)
        if i < config["first_k_dense_replace"]:
            feed_forward(f"{block}.mlp", config["intermediate_size"])
            continue
        shapes[f"{block}.mlp.gate.weight"] = (config["num_experts"], wide)
        shapes[f"{block}.mlp.gate.expert_bias"] = (config["num_experts"],)
        feed_forward(f"{block}.mlp.shared_experts", inner * config["num_shared_experts"])
        for j in range(config["num_experts"]):
            feed_forward(f"{block}.mlp.experts.{j}", inner)
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def llada2(folder: Path, state: Mapping[str, Tensor], without: tuple[str, ...] = (), **changes: Any) -> Path:
    """Write a folder of LLaDA 2."""
    folder.mkdir(exist_ok=True)
    config = {key: value for key, value in {**LLADA2, **changes}.items() if key not in without}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(state), folder / "model.safetensors", {"format": "pt"})
    tokenizer(folder)
    return folder


def llada2_logits(
    state: Mapping[str, Tensor], tokens: Tensor, allowed: Tensor, config: Mapping[str, Any] = LLADA2
) -> Tensor:
    """What LLaDA 2 computes, token by token where experts are chosen; allowed: what positions see, bool (l, l)."""
    x = state["model.word_embeddings.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        weight = lambda name, i=i: state[f"model.layers.{i}.{name}.weight"]  # noqa: E731
        normed = _norm(x, weight("input_layernorm"), config)
        x = x + _attention(normed, weight, allowed, config)
        normed = _norm(x, weight("post_attention_layernorm"), config)
        if i < config["first_k_dense_replace"]:
            x = x + _feed_forward(normed, weight, "mlp")
        else:
            bias = state[f"model.layers.{i}.mlp.gate.expert_bias"]
            routed = torch.stack([_routed(row, weight, bias, config) for row in normed.flatten(0, 1)])
            x = x + routed.view_as(x) + _feed_forward(normed, weight, "mlp.shared_experts")
    return _norm(x, state["model.norm.weight"], config) @ state["lm_head.weight"].T


def chosen(scores: Tensor, config: Mapping[str, Any] = LLADA2) -> list[int]:
    """The experts of one token, of their scores with the bias: the best ones of the groups whose two best are best."""
    groups = scores.view(config["n_group"], -1)
    by_group = sorted(range(len(groups)), key=lambda g: -float(groups[g].sort(descending=True).values[:2].sum()))
    size = groups.shape[1]
    allowed = [g * size + j for g in by_group[: config["topk_group"]] for j in range(size)]
    return sorted(allowed, key=lambda e: -float(scores[e]))[: config["num_experts_per_tok"]]


def _routed(row: Tensor, weight: Callable[[str], Tensor], bias: Tensor, config: Mapping[str, Any]) -> Tensor:
    scores = torch.sigmoid(weight("mlp.gate") @ row)
    experts = chosen(scores + bias, config)
    total = sum(scores[e] for e in experts)
    parts = [scores[e] / total * _feed_forward(row, weight, f"mlp.experts.{e}") for e in experts]
    return config["routed_scaling_factor"] * torch.stack(parts).sum(0)


def _feed_forward(x: Tensor, weight: Callable[[str], Tensor], name: str) -> Tensor:
    inner = F.silu(x @ weight(f"{name}.gate_proj").T) * (x @ weight(f"{name}.up_proj").T)
    return inner @ weight(f"{name}.down_proj").T


def _attention(x: Tensor, weight: Callable[[str], Tensor], allowed: Tensor, config: Mapping[str, Any]) -> Tensor:
    heads, kv, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    joint = (x @ weight("attention.query_key_value").T).unflatten(-1, (heads + 2 * kv, size)).transpose(1, 2)
    q, k, v = joint.split([heads, kv, kv], dim=1)
    q = _turned(_norm(q, weight("attention.query_layernorm"), config), config)
    k = _turned(_norm(k, weight("attention.key_layernorm"), config), config)
    k, v = (each.repeat_interleave(heads // kv, dim=1) for each in (k, v))
    scores = (q @ k.transpose(-1, -2) / size**0.5).masked_fill(~allowed, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ weight("attention.dense").T


def _turned(x: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Turn pairs j and j + d/2 of a head's first d numbers, and leave the others as they are."""
    turned = int(x.shape[-1] * config["partial_rotary_factor"])
    half = turned // 2
    speed = config["rope_theta"] ** (-torch.arange(half) * 2.0 / turned)
    angle = torch.arange(x.shape[-2])[:, None] * speed
    a, b, rest = x[..., :half], x[..., half:turned], x[..., turned:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), rest], dim=-1)


def _norm(x: Tensor, weight: Tensor, config: Mapping[str, Any]) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt()
