"""Tiny folders of LLaDA, Dream, Qwen and Llama as the hub has them, and what such models compute, in plain torch."""

import json
import math
from pathlib import Path
from typing import Any

import builders
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchtune.models import qwen2

from edlm.data import vocabulary
from edlm.models import denoisers, energies
from edlm.nn import decoders
from edlm.process import schedules
from edlm.weights import large

V, H, FFN, LAYERS, HEADS, KV = 40, 16, 24, 2, 4, 2
THETA, EPS, LENGTH = 500.0, 1e-5, 12
MASK = 33
BOS = 3
FEWER = 36  # ids of the AR model in a hub: the denoiser has four more, which it does not know
LLADA_CONFIG = {
    "model_type": "llada",
    "block_type": "llama",
    "d_model": H,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "n_kv_heads": KV,
    "mlp_hidden_size": FFN,
    "vocab_size": V,
    "embedding_size": V,
    "max_sequence_length": 64,
    "rope_theta": THETA,
    "rms_norm_eps": EPS,
    "weight_tying": False,
    "include_bias": False,
    "mask_token_id": MASK,
    "eos_token_id": 3,
    "pad_token_id": 3,
}
DREAM_CONFIG = {
    "model_type": "Dream",
    "hidden_size": H,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "max_position_embeddings": 64,
    "rope_theta": THETA,
    "rms_norm_eps": EPS,
    "vocab_size": V,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "mask_token_id": MASK,
    "bos_token_id": 3,
    "eos_token_id": 3,
    "pad_token_id": 3,
}
QWEN_CONFIG = {**DREAM_CONFIG, "model_type": "qwen2", "max_position_embeddings": 32, "use_sliding_window": False}
LLAMA_CONFIG = {**DREAM_CONFIG, "model_type": "llama", "max_position_embeddings": 32, "attention_bias": False}
CONFIGS = {"llada": LLADA_CONFIG, "dream": DREAM_CONFIG, "qwen2": QWEN_CONFIG, "llama": LLAMA_CONFIG}


def random_weights(
    family: str, seed: int = 0, dtype: torch.dtype = torch.float32, vocab_size: int = V
) -> dict[str, Tensor]:
    """Everything a folder of this family holds, under its own names."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) / math.sqrt(shape[-1])).to(dtype)

    d = H // HEADS
    shapes = {"q": (HEADS * d, H), "k": (KV * d, H), "v": (KV * d, H), "o": (H, H)}
    feed = {"gate": (FFN, H), "up": (FFN, H), "down": (H, FFN)}
    state: dict[str, Tensor] = {}
    if family == "llada":
        state |= {f"model.transformer.{name}.weight": draw(V, H) for name in ("wte", "ff_out")}
        state["model.transformer.ln_f.weight"] = 1 + draw(H)
        names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "attn_out"}
        names |= {"gate": "ff_proj", "up": "up_proj", "down": "ff_out"}
        for i in range(LAYERS):
            block = f"model.transformer.blocks.{i}"
            state |= {f"{block}.{names[key]}.weight": draw(*shape) for key, shape in (shapes | feed).items()}
            state |= {f"{block}.{name}.weight": 1 + draw(H) for name in ("attn_norm", "ff_norm")}
        return state
    state |= {name: draw(vocab_size, H) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    state["model.norm.weight"] = 1 + draw(H)
    for i in range(LAYERS):
        block = f"model.layers.{i}"
        state |= {f"{block}.self_attn.{key}_proj.weight": draw(*shape) for key, shape in shapes.items()}
        if family != "llama":
            state |= {f"{block}.self_attn.{key}_proj.bias": draw(shapes[key][0]) for key in "qkv"}
        state |= {f"{block}.mlp.{key}_proj.weight": draw(*shape) for key, shape in feed.items()}
        state |= {f"{block}.{name}.weight": 1 + draw(H) for name in ("input_layernorm", "post_attention_layernorm")}
    return state


def write(folder: Path, family: str, state: dict[str, Tensor], shards: int = 2, **config: Any) -> Path:
    """A folder as the hub has it: config, index and shards, or one file."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIGS[family], **config}))
    if shards == 1:
        save_file(state, folder / "model.safetensors")
        return folder
    files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(state)}
    for file in set(files.values()):
        save_file({name: state[name] for name in state if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def write_hub(root: Path) -> Path:
    """A folder of each model; the tokenizer is that of 27 characters, in Qwen's, Llama's and LLaDA's folders."""
    words = vocabulary.characters().tokenizer.to_str()
    for family in ("llada", "dream"):
        write(root / family, family, random_weights(family))
    for family in ("qwen2", "llama"):
        state = random_weights(family, seed=1, vocab_size=FEWER)
        write(root / family, family, state, shards=1, vocab_size=FEWER, bos_token_id=BOS)
    for family in ("llada", "qwen2", "llama"):
        (root / family / "tokenizer.json").write_text(words)
    return root


def ar_network(hub: Path, family: str, rows: int | None = 4) -> decoders.DecoderNetwork:
    return decoders.load(large.read_autoregressive(hub / family, LENGTH, rows, V))


# ---- What they compute


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


def rotated(x: Tensor) -> Tensor:
    """Rotary positions of (b, l, heads, d), the first half of a head turned against the second."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] / THETA ** (torch.arange(half) / half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def reference(family: str, state: dict[str, Tensor], tokens: Tensor, causal: bool = False) -> Tensor:
    """Logits (b, l, v) at every position, computed with sums and products alone."""
    llada = family == "llada"
    block = "model.transformer.blocks.{}." if llada else "model.layers.{}."
    attention = "" if llada else "self_attn."
    out, gate, up, down = (
        ("attn_out", "ff_proj", "up_proj", "ff_out")
        if llada
        else ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    )
    norms = ("attn_norm", "ff_norm") if llada else ("input_layernorm", "post_attention_layernorm")
    x = state["model.transformer.wte.weight" if llada else "model.embed_tokens.weight"][tokens]
    for i in range(LAYERS):
        at = {name.removeprefix(block.format(i)): v for name, v in state.items() if name.startswith(block.format(i))}
        y = norm(x, at[f"{norms[0]}.weight"])
        q, k, v = (
            (y @ at[f"{attention}{name}_proj.weight"].T + at.get(f"{attention}{name}_proj.bias", 0)).unflatten(
                -1, (-1, H // HEADS)
            )
            for name in "qkv"
        )
        q, k = rotated(q), rotated(k).repeat_interleave(HEADS // KV, dim=2)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(H // HEADS)
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
        mixed = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v.repeat_interleave(HEADS // KV, dim=2))
        x = x + mixed.flatten(-2) @ at[f"{out}.weight"].T
        y = norm(x, at[f"{norms[1]}.weight"])
        g = y @ at[f"{gate}.weight"].T
        x = x + (g * torch.sigmoid(g) * (y @ at[f"{up}.weight"].T)) @ at[f"{down}.weight"].T
    last, head = ("transformer.ln_f", "model.transformer.ff_out") if llada else ("norm", "lm_head")
    return norm(x, state[f"model.{last}.weight"]) @ state[f"{head}.weight"].T


def tokens_of(seed: int = 0, rows: int = 3) -> Tensor:
    return torch.randint(0, V, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) < tolerance * max(1.0, float(expected.abs().max()))


def dream_with_qwen(k: int, rows_at_once: int | None = None, vocab_size: int = V) -> Any:
    """Random decoders as denoiser and energy: the kernel, and the two networks."""
    torch.manual_seed(0)
    wide = {"embed_dim": H, "intermediate_dim": FFN, "max_seq_len": 32}
    first, second = (qwen2.qwen2(vocab_size, LAYERS, HEADS, KV, **wide) for _ in range(2))
    dream = decoders.DecoderNetwork(decoders.bidirectional(first), shifted=True).eval()
    qwen = decoders.autoregressive(second, rows_at_once=rows_at_once)
    energy = energies.residual_ar(qwen, MASK, bos_id=3, carry_over=True)
    return builders.importance(schedules.log_linear(), denoisers.subs(dream, MASK), energy, k), dream, qwen
