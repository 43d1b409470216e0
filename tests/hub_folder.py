"""A tiny AR model's folder as the hub has one, with a tokenizer and without a mask."""

from pathlib import Path
from typing import Any

from large_folders import random_weights, write
from torch import Tensor

from edlm.data import vocabulary


def hub_model(folder: Path, family: str = "llama", tied: bool = False, **config: Any) -> Path:
    """Write the folder."""
    weights_of(folder, family, tied, **config)
    return folder


def weights_of(folder: Path, family: str = "llama", tied: bool = False, **config: Any) -> dict[str, Tensor]:
    """Write the folder, and give its weights by name, a tied head among them."""
    state = random_weights(family, seed=5)
    head = state.pop("lm_head.weight")
    written = state if tied else {**state, "lm_head.weight": head}
    write(folder, family, written, shards=1, **{"mask_token_id": None, "tie_word_embeddings": tied, **config})
    (folder / "tokenizer.json").write_text(vocabulary.characters().tokenizer.to_str())
    return {**state, "lm_head.weight": state["model.embed_tokens.weight"] if tied else head}
