"""Exact draws from laws over tokens, with the noise handed in. This file owns the precision of sampling.

Gumbel noise in float32 truncates the tail of a law and bf16 noise far more; here a draw is the inverse of the
cumulative law at one float64 uniform. Weights are float32, every sum over them float64, in two levels: blocks of the
vocabulary, then tokens inside one block, so that k draws cost one pass over the logits.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 256


class Draws(NamedTuple):
    """Tokens (n, k) and their log-probabilities (n, k) in nats."""

    tokens: Tensor
    log_prob: Tensor


def inverse_cdf(logits: Tensor, uniforms: Tensor) -> Draws:
    """Draw `min {x : F(x) > u F(v)}` for each uniform, with `F` the running sum of `exp(logits)`.

    logits: (n, v), any float type, `-inf` allowed, not all of a row; uniforms: float64 (n, k) in [0, 1).
    A token of probability zero is never drawn, whatever the uniform. Log-probabilities come in float32, or float64
    for float64 logits.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    shifted = logits - logits.amax(-1, keepdim=True)
    blocks = _into_blocks(shifted.exp())  # (n, blocks, width)
    cumulative = blocks.sum(-1, dtype=torch.float64).cumsum(-1)  # (n, blocks)
    total = cumulative[:, -1:]
    target = uniforms * total  # (n, k)
    block = _first_above(cumulative, target)
    below = torch.where(block > 0, cumulative.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inside = _rows(blocks, block).to(torch.float64).cumsum(-1)  # (n, k, width)
    offset = _first_above(inside, (target - below).unsqueeze(-1)).squeeze(-1)
    tokens = block * blocks.shape[-1] + offset
    return Draws(tokens, shifted.gather(-1, tokens) - total.log().to(shifted.dtype))


def token_log_prob(logits: Tensor, tokens: Tensor) -> Tensor:
    """`log p(token)` of given tokens: logits (n, v), tokens (n, k) to nats (n, k), float32 or better."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.gather(-1, tokens) - logits.logsumexp(-1, keepdim=True)


def entropy(logits: Tensor) -> Tensor:
    """`-sum_x p(x) log p(x)` of each row: logits (n, v) to nats (n,); a zero probability contributes zero."""
    log_p = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
    return -torch.where(log_p == -torch.inf, 0.0, log_p.exp() * log_p).sum(-1)


def _into_blocks(weights: Tensor) -> Tensor:
    """Lay the vocabulary out as (n, blocks, width), the last block filled up with zeros."""
    size = weights.shape[-1]
    width = min(_BLOCK, size)
    return F.pad(weights, (0, -size % width)).unflatten(-1, (-1, width))


def _rows(blocks: Tensor, chosen: Tensor) -> Tensor:
    """Pick the chosen blocks (n, k) of each row: (n, blocks, width) to (n, k, width)."""
    return blocks.gather(1, chosen.unsqueeze(-1).expand(-1, -1, blocks.shape[-1]))


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """First index whose running sum exceeds the target, or the last one that adds mass if rounding leaves none."""
    last = torch.searchsorted(cumulative, cumulative[..., -1:].contiguous(), right=False)
    return torch.searchsorted(cumulative, target, right=True).minimum(last)
