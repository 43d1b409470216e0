"""`log p(token)` under a linear vocabulary head with gradients, never holding more logits than one tile of rows.

The gradient of `log p_i(x_i)` with respect to row i's logits is `1[y = x_i] - p_i(y)`. So every gradient is a product
of the tile's probabilities, and is taken while the tile exists. The logits of all rows, (n, v), never exist at once.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from edlm.process import categorical

# Logits of a tile. A CPU's are few enough to be little memory, and enough rows for the products to run at full rate.
_LOGITS_AT_ONCE = {"cpu": 1 << 23, "cuda": 1 << 27}
_ROUNDING = 8  # units in the last place within which two gradients count as proportional


class Head(NamedTuple):
    """Parameters of the logits `hidden W^T + c`: weight (v, h), bias (v,); `excluded`: a column of probability 0."""

    weight: Tensor
    bias: Tensor | None
    excluded: int | None


class Gradients(NamedTuple):
    """Gradients of `sum_i g_i log p_i(x_i)`, at least float32: hidden (n, h), weight (v, h), bias (v,), if wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def log_prob(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    excluded: int | None = None,
    expected: Tensor | None = None,
) -> Tensor:
    """Compute `log softmax(hidden W^T + c)[token]` of each row: nats (n,), float32 or better.

    hidden (n, h), weight (v, h), bias (v,) or None, tokens (n,) int64; excluded: a column of probability zero, the
    mask's. expected (n,): the gradient with respect to the result, up to one factor for all rows. If it is given, the
    gradients are made beside the result, and logits are computed once. Another gradient is just as exact but computes
    the logits again, as a call without `expected` does. Products run in the type of autocast where that is on.
    Gradients of the weight are summed over tiles in float32 or better. A compiler leaves the call as it is.
    """
    return _apart(hidden, weight, bias, tokens, excluded, expected)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _apart(hidden: Tensor, *arguments: Any) -> Tensor:
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return _LogProb.apply(hidden, *arguments, dtype)


class _LogProb(torch.autograd.Function):
    """The function with its gradients. It keeps announced gradients, and computes others when they are asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        excluded: int | None,
        expected: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        head, wanted = Head(weight, bias, excluded), ctx.needs_input_grad[:3]
        found = hidden.new_zeros(len(hidden), dtype=torch.promote_types(dtype, torch.float32))
        ctx.gradients = None
        if expected is not None and any(wanted):
            ctx.gradients = _gradients(hidden, head, tokens, expected.detach().to(found.dtype), wanted, dtype, found)
        else:
            for tile in _tiles(hidden, head, tokens, dtype):
                found[tile.rows] = tile.log_prob
        ctx.save_for_backward(hidden, weight, bias, tokens, expected)
        ctx.excluded, ctx.dtype = excluded, dtype
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, expected = ctx.saved_tensors
        factor = None if ctx.gradients is None else _common_factor(gradient, expected)
        if factor is None:
            head, wanted = Head(weight, bias, ctx.excluded), ctx.needs_input_grad[:3]
            found = _gradients(hidden, head, tokens, gradient, wanted, ctx.dtype)
        else:
            found = Gradients(*(each if each is None else each.mul_(factor) for each in ctx.gradients))
            ctx.gradients = None  # they are used up; asked for once more, they are computed again
        like = (hidden, weight, bias)
        typed = (None if each is None else each.to(own.dtype) for each, own in zip(found, like, strict=True))
        return (*typed, None, None, None, None)


class _Tile(NamedTuple):
    """Some rows: which, their hidden states, the log-probability of their tokens, `exp(logits - highest)`, its sums."""

    rows: slice
    hidden: Tensor
    log_prob: Tensor
    weights: Tensor
    total: Tensor


@torch.no_grad()
def _tiles(hidden: Tensor, head: Head, tokens: Tensor, dtype: torch.dtype) -> Iterator[_Tile]:
    """Tile after tile in the same memory: what one gives must be used before the next is asked for."""
    n, v = len(hidden), len(head.weight)
    at_once = min(n, max(1, _LOGITS_AT_ONCE.get(hidden.device.type, _LOGITS_AT_ONCE["cpu"]) // v))
    states, matrix, offset = (None if each is None else each.to(dtype) for each in (hidden, *head[:2]))
    assert states is not None
    assert matrix is not None
    columns = categorical.slices(v, categorical.columns_at_once(v, hidden.device))
    memory = hidden.new_empty(at_once, v, dtype=dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in categorical.slices(n, at_once) if n else []:
            some, logits = states[rows], memory[: rows.stop - rows.start]
            for part in columns:
                if offset is None:
                    torch.mm(some, matrix[part].mT, out=logits[:, part])
                else:
                    torch.addmm(offset[part], some, matrix[part].mT, out=logits[:, part])
            if head.excluded is not None:
                logits[:, head.excluded] = -torch.inf
            weights = logits.to(torch.promote_types(dtype, torch.float32))  # the same memory, or more digits
            wanted = weights.gather(-1, tokens[rows].unsqueeze(-1)).squeeze(-1)
            highest = weights.amax(-1)
            total = weights.sub_(highest.unsqueeze(-1)).exp_().sum(-1)
            yield _Tile(rows, some, wanted - highest - total.log(), weights, total)


@torch.no_grad()
def _gradients(
    hidden: Tensor,
    head: Head,
    tokens: Tensor,
    gradient: Tensor,
    wanted: tuple[bool, bool, bool],
    dtype: torch.dtype,
    log_prob: Tensor | None = None,
) -> Gradients:
    """Compute gradients of `sum_i g_i log p_i(x_i)` for `gradient` g (n,); fill `log_prob`, if given, on the way.

    With E a tile's unnormalised probabilities and s = g / sum E: `g W[x] - s (E W)`, and `-E^T (s hidden)`, to which
    the rows of the tokens are added. E itself is never scaled, which would be a pass over (rows, v) each time.
    """
    zeros = (
        torch.zeros_like(each, dtype=torch.promote_types(each.dtype, torch.float32))
        if each is not None and ask
        else None
        for each, ask in zip((hidden, head.weight, head.bias), wanted, strict=True)
    )
    found, head = Gradients(*zeros), head._replace(weight=head.weight.to(dtype))
    for tile in _tiles(hidden, head, tokens, dtype):
        own, target = gradient[tile.rows], tokens[tile.rows]
        if log_prob is not None:
            log_prob[tile.rows] = tile.log_prob
        scale = own / tile.total
        if head.excluded is not None:
            own = torch.where(target == head.excluded, 0.0, own)  # a constant, -inf
        _add_tile(found, tile, head.weight, target, own, scale)
    return found


def _add_tile(found: Gradients, tile: _Tile, weight: Tensor, target: Tensor, own: Tensor, scale: Tensor) -> None:
    """Add a tile's part: own, scale (rows,) are g and s of `_gradients`."""
    weights, v = tile.weights.to(tile.hidden.dtype), len(weight)
    columns = categorical.slices(v, categorical.columns_at_once(v, weight.device))
    if found.hidden is not None:
        mean = weights @ weight.to(weights.dtype)
        found.hidden[tile.rows] = own.unsqueeze(-1) * weight[target] - scale.unsqueeze(-1) * mean
    if found.weight is not None:
        states = tile.hidden.to(found.weight.dtype)
        scaled = (scale.unsqueeze(-1) * states).to(weights.dtype)
        for part in columns:
            if weights.dtype == found.weight.dtype:
                found.weight[part].addmm_(weights[:, part].mT, scaled, alpha=-1)
            else:
                found.weight[part] -= weights[:, part].mT @ scaled
        found.weight.index_add_(0, target, own.unsqueeze(-1) * states)
    if found.bias is not None:
        found.bias.sub_(tile.weights.mT @ scale).index_add_(0, target, own)


def _common_factor(gradient: Tensor, expected: Tensor) -> Tensor | None:
    """Find the number by which `expected` is multiplied to give the gradient, None if there is none."""
    rounding = _ROUNDING * torch.finfo(gradient.dtype).eps
    gradient, expected = gradient.double(), expected.double()
    factor = (gradient * expected).sum() / expected.square().sum()
    error = (gradient - factor * expected).abs()
    alike = error <= rounding * (factor * expected).abs()
    return factor if bool(alike.all() & factor.isfinite()) else None
