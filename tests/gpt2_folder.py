"""A tiny GPT-2 of random weights in a folder as the hub has it, with a tokenizer of its own."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer

WORDS = "the name of the rose is a name that the rose has of old"
CONTEXT = 6


def write(folder: Path, transformers: Any) -> None:
    """Fill the folder by that package."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([WORDS] * 3, vocab_size=280, special_tokens=["<|endoftext|>"])
    tokenizer.save_model(str(folder))
    transformers.GPT2TokenizerFast.from_pretrained(str(folder)).save_pretrained(folder)
    sizes = {"n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=280, initializer_range=0.5, **sizes))
    model.save_pretrained(folder)
