"""Tiny random models in folders that `transformers` writes, and what it computes of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

V, LENGTH = 60, 24
_SIZES = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_CAUSAL = {**_SIZES, "num_key_value_heads": 2, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": [2, 3]}
_IDS = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
# Class of the config, class of the model, and settings beside the sizes.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _CAUSAL),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _CAUSAL),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_CAUSAL, "head_dim": 16}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_CAUSAL, "sliding_window": 5}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {**_CAUSAL, "head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**_CAUSAL, "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 8, "final_logit_softcapping": 0.5}
        | {"attn_logit_softcapping": 0.5},
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**_CAUSAL, "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "vocab_size": V,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 32,
            "bos_token_id": 1,
            "eos_token_id": 1,
        },
    ),
    "bert": ("BertConfig", "BertForMaskedLM", {**_SIZES, **_IDS, "max_position_embeddings": 32}),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", {**_SIZES, **_IDS, "max_position_embeddings": 32}),
    "modernbert": (
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        {**_SIZES, **_IDS, "max_position_embeddings": 32, "local_attention": 6, "global_attn_every_n_layers": 2}
        | {"cls_token_id": 2, "sep_token_id": 3},
    ),
}
CAUSAL, MASKED = tuple(MODELS)[:8], tuple(MODELS)[8:]
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    "llama3": {
        **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "original_max_position_embeddings": 16,
    },
}
WORDS = ("the", "cat", "sat", "on", "a", "mat", "dog", "##s", "ran", ".", "and", "hat")


def model(kind: str, transformers: Any, rope: Mapping[str, Any] | None = None, **changes: Any) -> Any:
    """A random model whose weights are large enough for every part to matter."""
    config, cls, settings = MODELS[kind]
    settings = {**settings, **changes}
    if rope is not None:
        settings["rope_parameters"] = {"rope_theta": 500.0, **rope}
    built = getattr(transformers, config)(**settings)
    built._attn_implementation = "eager"
    torch.manual_seed(0)
    found = getattr(transformers, cls)(built)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return found.eval()


def save(found: Any, folder: Path, **how: Any) -> Path:
    """Write the folder, with a tokenizer for one of the masked kinds."""
    found.save_pretrained(folder, **how)
    if found.config.model_type in MASKED:
        tokenizer(folder)
    return folder


def change(folder: Path, without: tuple[str, ...] = (), **values: Any) -> Path:
    """Edit a folder's config."""
    file = folder / "config.json"
    config = {key: value for key, value in json.loads(file.read_text()).items() if key not in without}
    file.write_text(json.dumps({**config, **values}))
    return folder


def tokenizer(folder: Path) -> None:
    """A tokenizer in the manner of BERT's: lower case, [MASK] at 4, two unused ids; the network has rows beyond it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]", *WORDS]
    found = Tokenizer(models.WordPiece({word: id_ for id_, word in enumerate(words)}, unk_token="[UNK]"))
    found.normalizer, found.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece()
    found.add_special_tokens(words[:5])
    found.save(str(folder / "tokenizer.json"))
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, "mask_token": {"content": "[MASK]"}}))


def tokens(rows: int = 3, length: int = LENGTH, lowest: int = 4) -> Tensor:
    return torch.randint(lowest, V, (rows, length), generator=torch.Generator().manual_seed(1))
