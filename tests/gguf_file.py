"""A tiny GGUF file of random weights, written by the package `gguf` from a model of `transformers`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HEADS, KV, WIDTH, LAYERS, FFN, CONTEXT = 4, 2, 64, 2, 96, 32
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}


def words() -> tuple[list[str], list[str]]:
    """Tokens of all bytes, two merges, a token of control and one of a user; and the merges."""
    from tokenizers import pre_tokenizers  # noqa: PLC0415

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*letters, "th", "the", "<|end|>", "<tag>"], ["t h", "th e"]


def model(kind: str, transformers: Any, tied: bool = True) -> Any:
    """A random model of this kind."""
    torch.manual_seed(0)
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": FFN, "rms_norm_eps": 1e-6}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": WIDTH // HEADS}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(words()[0]), max_position_embeddings=CONTEXT, tie_word_embeddings=tied, **sizes, **heads
    )
    config.rope_parameters = {"rope_type": "default", "rope_theta": 500.0}
    found = getattr(transformers, f"{name}ForCausalLM")(config)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return found.eval()


def names(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors of a model as a GGUF file has them: its own names, and the pairs of a Llama's head side by side."""
    above = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    found = {own: state[theirs] for own, theirs in above.items()}
    for i in range(LAYERS):
        for own, theirs in PARTS.items():
            for end in ("weight", "bias"):
                value = state.get(f"model.layers.{i}.{theirs}.{end}")
                if value is None:
                    continue
                if kind == "llama" and own in ("attn_q", "attn_k"):
                    heads = HEADS if own == "attn_q" else KV
                    value = value.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
                found[f"blk.{i}.{own}.{end}"] = value
    return found


def write(file: Path, kind: str, tensors: dict[str, Tensor], quantised: bool = False, **changes: Any) -> Path:
    """Write the file; changes: keys with their values, in place of the usual ones, None for none."""
    import gguf  # noqa: PLC0415

    writer = gguf.GGUFWriter(file, kind)
    tokens, merges = words()
    keys = {
        "block_count": LAYERS,
        "context_length": CONTEXT,
        "embedding_length": WIDTH,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 500.0,
    }
    keys = {f"{kind}.{name}": value for name, value in keys.items()}
    keys |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens}
    keys |= {"tokenizer.ggml.merges": merges, "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 4]}
    keys |= {"tokenizer.ggml.bos_token_id": 258, "tokenizer.ggml.eos_token_id": 258}
    for name, value in {**keys, **changes}.items():
        if value is not None:
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
            add[type(value)](name, value)
    for name, value in tensors.items():
        array = value.detach().numpy()
        if quantised and array.ndim == 2:
            packed = gguf.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
