"""Exact draws from laws over tokens, from uniforms given as an argument. This file owns the precision of sampling.

Float32 Gumbel noise truncates the tail of a law, and bf16 noise truncates far more. Here a draw inverts the cumulative
law at one float64 uniform. It does so in two levels: blocks of the vocabulary, then tokens inside one block. So k draws
cost one pass over the logits. Weights are float32, and so are sums of at most 256 of them; running sums are float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from edlm.process import finite

_COLD, _HOT = 1e-3, 1e3  # temperatures between which logits are divided as they are
_NO_WEIGHT = -1e4  # the exponential of it is zero
BLOCK = 256  # tokens of the vocabulary, in which a draw is found
# Logits that exist at once, so that memory hardly grows with rows, particles or vocabulary. On a CPU, tiles that the
# allocator need not ask the system for are also the fastest; a GPU needs larger ones to be busy.
LOGITS_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 27}
_COLUMNS_AT_ONCE = {"cpu": 1 << 11}  # the head's weights for so many columns stay in a CPU's cache
_LOGITS_AT_ONCE_UNROLLED = 1 << 23  # a compiler unrolls the loop over tiles, and takes its time for each


class Draws(NamedTuple):
    """Drawn tokens (n, k) and their log-probabilities (n, k) in nats."""

    tokens: Tensor
    log_prob: Tensor


def inverse_cdf(logits: Tensor, uniforms: Tensor) -> Draws:
    """Draw `min {x : F(x) > u F(v)}` for each uniform, with `F` the running sum of `exp(logits)`.

    logits: (n, v), any float type, `-inf` allowed, not all of a row; uniforms: float64 (n, k) in [0, 1). A token of
    probability zero is never drawn, whatever the uniform. Log-probabilities are float32, or float64 for float64 logits.
    From logits that are no law (nan, inf, all -inf) some token is drawn, with a log-probability of nan.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    highest = logits.amax(-1, keepdim=True)
    weights = (logits - highest).exp_()  # its own tensor: one pass over memory less
    cumulative = _block_sums(weights).to(torch.float64).cumsum(-1)  # (n, blocks)
    total = cumulative[:, -1:]
    target = uniforms * total  # (n, k)
    tokens = (
        _in_one_block(weights, target / total) if logits.shape[-1] <= BLOCK else _in_blocks(weights, cumulative, target)
    )
    return Draws(tokens, logits.gather(-1, tokens) - highest - total.log().to(logits.dtype))


class Certainty(NamedTuple):
    """The certainty of laws, float64 each: entropy in nats, the largest probability, and its lead over the second."""

    entropy: Tensor
    confidence: Tensor
    margin: Tensor


def certainty(logits: Tensor) -> Certainty:
    """Compute how sure each law is: logits (n, v), `-inf` allowed, v >= 2, to three numbers (n,).

    The margin is the largest probability less the second largest. Weights are float32, or float64 for float64 logits.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    distance = logits - logits.amax(-1, keepdim=True)
    weights = distance.exp()
    total = weights.sum(-1, dtype=torch.float64)
    mean = (weights * distance.clamp(min=_NO_WEIGHT)).sum(-1, dtype=torch.float64) / total  # 0 * inf is no number
    second = distance.topk(2).values[:, 1].to(torch.float64).exp()
    return Certainty(total.log() - mean, 1.0 / total, (1.0 - second) / total)


def residual(wanted: Tensor, proposed: Tensor, uniforms: Tensor) -> Tensor:
    """Draw from `(q - p)_+`, normalised: the law that replaces a rejected draw of p, so that the result has the law q.

    A draw x of p is accepted with probability `min(1, q(x) / p(x))` (Leviathan et al. 2023, arXiv 2211.17192, section
    2.3). wanted, proposed: logits (n, v) of q and of p; uniforms: float64 (n,) in [0, 1). Returns tokens (n,). Where
    rounding leaves no difference, q and p are the same law, and the draw is from q.
    """
    q, p = ((logits if logits.dtype == torch.float64 else logits.float()).softmax(-1) for logits in (wanted, proposed))
    missing = (q - p).clamp(min=0.0)
    law = torch.where((missing > 0.0).any(-1, keepdim=True), missing, q)
    return inverse_cdf(law.log(), uniforms.unsqueeze(-1)).tokens.squeeze(-1)


def columns_at_once(vocab_size: int, device: torch.device) -> int:
    """Choose how many columns of logits a head computes at once, where only sums over them are wanted."""
    return min(vocab_size, _COLUMNS_AT_ONCE.get(device.type, vocab_size))


def slices(vocab_size: int, width: int) -> list[slice]:
    """Cut the vocabulary into slices of `width` columns; the last one may be shorter."""
    return [slice(first, min(first + width, vocab_size)) for first in range(0, vocab_size, width)]


def rows_at_once(vocab_size: int, device: torch.device, unrolled: bool = False) -> int:
    """Choose how many rows of logits exist at once on a device, in a plain loop or in one that a compiler unrolls."""
    logits = LOGITS_AT_ONCE.get(device.type, _LOGITS_AT_ONCE_UNROLLED)
    return max(1, (max(logits, _LOGITS_AT_ONCE_UNROLLED) if unrolled else logits) // vocab_size)


def token_log_prob(logits: Tensor, tokens: Tensor) -> Tensor:
    """Compute `log p(token)` of given tokens: logits (n, v), tokens (n, k) to nats (n, k), float32 or better."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.gather(-1, tokens) - logits.logsumexp(-1, keepdim=True)


def cooled(logits: Tensor, temperature: float) -> Tensor:
    """Compute logits of `p^(1 / temperature)`, (n, v), as distances to the highest where a quotient could overflow.

    Raises ValueError unless the temperature is positive and finite.
    """
    finite.require_temperature("temperature", temperature)
    if temperature == 1.0:
        return logits
    if _COLD <= temperature <= _HOT and logits.dtype != torch.float16:
        return logits / temperature
    distance = logits.to(torch.float64) - logits.amax(-1, keepdim=True)
    return torch.where(distance == 0.0, 0.0, distance / temperature)  # 0 / 5e-324 is not 0 everywhere


def nucleus(logits: Tensor, mass: float) -> Tensor:
    """Keep the fewest most likely tokens that hold at least `mass` of the probability: logits (n, v), others `-inf`.

    Of equally likely tokens the lower ids come first (Holtzman et al. 2020, arXiv 1904.09751, section 3.1).
    Raises ValueError unless 0 < mass <= 1.
    """
    if not 0.0 < mass <= 1.0:
        raise ValueError(f"nucleus = {mass} must lie in (0, 1]")
    if mass == 1.0:
        return logits
    ordered, token = logits.sort(stable=True, dim=-1, descending=True)
    probability = ordered.to(torch.float64).softmax(-1)
    kept = probability.cumsum(-1) - probability < mass  # what lies before a token does not hold the mass yet
    return torch.full_like(logits, -torch.inf).scatter(-1, token, torch.where(kept, ordered, -torch.inf))


def streamed_log_prob(
    logits_of: Callable[[slice | None], Tensor], vocab_size: int, tokens: Tensor, width: int
) -> Tensor:
    """Compute `log p(token)` of one token per row, one slice of the vocabulary at a time: tokens (n,) to nats (n,).

    `logits_of(columns)` gives logits (n, columns), `logits_of(None)` all of them; float32 or better. The sums over the
    slices are those of `token_log_prob`, in another order.
    """
    if width >= vocab_size:
        return token_log_prob(logits_of(None), tokens.unsqueeze(-1)).squeeze(-1)
    normalisers, wanted = [], []
    for columns in slices(vocab_size, width):
        logits = logits_of(columns)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        place = tokens - columns.start
        inside = (place >= 0) & (place < logits.shape[-1])
        own = logits.gather(-1, place.clamp(0, logits.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
        wanted.append(torch.where(inside, own, 0.0))
        # log_softmax is fused on a CPU and logsumexp is not; its largest entry tells the normaliser.
        highest = logits.amax(-1)
        normaliser = highest - logits.log_softmax(-1).amax(-1)
        normalisers.append(torch.where(highest == -torch.inf, -torch.inf, normaliser))
    return torch.stack(wanted).sum(0) - torch.stack(normalisers).logsumexp(0)


def entropy(logits: Tensor) -> Tensor:
    """Compute `-sum_x p(x) log p(x)` of each row: logits (n, v) to nats (n,); a zero probability contributes zero."""
    log_p = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
    return -torch.where(log_p == -torch.inf, 0.0, log_p.exp() * log_p).sum(-1)


def _width(logits: Tensor) -> int:
    return min(BLOCK, logits.shape[-1])


def _block_sums(weights: Tensor) -> Tensor:
    """Sum over the blocks of the vocabulary, (n, v) to (n, blocks); the last block may be a short one."""
    width = _width(weights)
    whole = weights.shape[-1] // width * width
    sums = weights[:, :whole].unflatten(-1, (-1, width)).sum(-1)
    if whole == weights.shape[-1]:
        return sums
    return torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], dim=-1)


def _block(weights: Tensor, chosen: Tensor) -> Tensor:
    """Take the weights of the chosen blocks (n, k), zero past the vocabulary's end: (n, v) to (n, k, width)."""
    size, width = weights.shape[-1], _width(weights)
    columns = chosen.unsqueeze(-1) * width + torch.arange(width, device=weights.device)
    found = weights.gather(-1, columns.clamp(max=size - 1).flatten(1)).view_as(columns)
    return torch.where(columns < size, found, 0.0)


def _in_blocks(weights: Tensor, cumulative: Tensor, target: Tensor) -> Tensor:
    """Find tokens (n, k) in two levels: weights (n, v), their running sums (n, blocks), targets (n, k) among these."""
    block = _first_above(cumulative, target)
    below = torch.where(block > 0, cumulative.gather(-1, (block - 1).clamp(min=0)), 0.0)
    share = (target - below) / (cumulative.gather(-1, block) - below)
    inside = _block(weights, block).to(torch.float64).cumsum(-1)  # (n, k, width)
    # A share of the block's own float64 sum, so that rounding of its float32 sum cuts no token off.
    offset = _first_above(inside, share.unsqueeze(-1) * inside[..., -1:]).squeeze(-1)
    return (block * _width(weights) + offset).clamp(max=weights.shape[-1] - 1)


def _in_one_block(weights: Tensor, share: Tensor) -> Tensor:
    """Find the same where the vocabulary is one block: shares (n, k) of its sum."""
    inside = weights.to(torch.float64).cumsum(-1)
    return _first_above(inside, share * inside[:, -1:])


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """Find the first index whose running sum exceeds the target, or the last that adds mass if rounding leaves none."""
    last = torch.searchsorted(cumulative, cumulative[..., -1:].contiguous(), right=False)
    last = last.clamp(max=cumulative.shape[-1] - 1)  # weights that are no numbers have no last one: see `finite`
    return torch.searchsorted(cumulative, target, right=True).minimum(last)
