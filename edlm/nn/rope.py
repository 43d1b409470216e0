"""Rotary positions: a head turned by angles that grow with its position (Su et al. 2021, arXiv 2104.09864)."""

import torch
from torch import Tensor


def table(length: int, head_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Compute cosines and sines (l, d) of the first `length` positions; see `at`."""
    return at(torch.arange(length, device=like.device), head_size, like)


def at(positions: Tensor, head_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Compute cosines and signed sines (l, d) of positions (l,); the two halves of a head turn against each other."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=like.device) / head_size
    frequencies = (1.0 / 10_000**exponents).to(torch.promote_types(like.dtype, torch.float32))
    angles = torch.outer(positions.to(frequencies.dtype), frequencies)
    cos, sin = angles.cos().to(like.dtype), angles.sin().to(like.dtype)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads (..., d) by the angles of a table that broadcasts against them."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([second, first], dim=-1), sin)
