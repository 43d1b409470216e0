"""A model that knows no context: how often each token occurs in a training text."""

import torch
from torch import Tensor


def log_law(seen: Tensor, size: int, mask_id: int) -> Tensor:
    """Estimate the law of single tokens, `log p(x)`, from a training text.

    Each token counts once more than it occurs, so that none is impossible. The mask is.

    Args:
        seen: The tokens of the text, int64 (n,).
        size: How many tokens the vocabulary has, v.
        mask_id: The mask's id.

    Returns:
        Nats, float64 (v,).
    """
    often = torch.bincount(seen, minlength=size).double() + 1.0
    often[mask_id] = 0.0
    return (often / often.sum()).log()
