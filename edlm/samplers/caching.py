"""Keys and values of finished blocks, kept between passes: a pass reads the rows of its own block alone.

A denoiser of blocks reads no later block, so a finished block never changes. The tokens are those of passes over the
whole text. The first pass of a block reads the block before it once more, now without masks, and stores it. The whole
blocks of a prompt are stored at once. Rows of a batch may be in different blocks. If they do not all begin a block
together, a separate pass stores the finished blocks, so that no other row pays for it.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from edlm import contracts
from edlm.contracts import Cached
from edlm.declaration import stage
from edlm.models.denoisers import SubsDenoiser
from edlm.process.absorbing import RevealPlan


class Places(NamedTuple):
    """The rows of a batch before a pass, on the host: how much of each is stored, and where its block starts."""

    stored: Tensor
    start: Tensor


def can(denoiser: Any) -> bool:
    """Check whether a denoiser can keep what is finished: one of several blocks, whose network is told no time."""
    if not isinstance(denoiser, SubsDenoiser) or denoiser.block_size is None or denoiser.told is not None:
        return False
    return isinstance(denoiser.network, Cached)


def read(denoiser: SubsDenoiser, keeps: bool) -> TensorDictModule:
    """Build the denoiser's pass over a block: `{x_t, positions, finished, block, cache} -> {hidden, cache}`.

    keeps: it writes the `context` too, the keys and values of all that has been read, as reading in order needs it.
    """
    context = ", context" if keeps else ""
    return stage(f"x_t, positions, finished, block, cache -> hidden, cache{context}", _Read(denoiser.network, keeps))


def first(network: Cached, tokens: Tensor) -> TensorDict:
    """Return the state before the first step, in which nothing is stored."""
    return TensorDict({contracts.X_T: tokens, contracts.CACHE: network.no_context(len(tokens))})


def starts_of(plan: RevealPlan, network: Cached | None) -> Tensor:
    """Find what is stored before each pass of a plan, which is where the block of the pass before it starts.

    Returns int64 (b, p + 1) on the host: column p + 1 is where the block of pass p starts, l where a row has none.
    """
    (b, l), passes = plan.order.shape, plan.t.shape[1]
    if network is None:  # nothing is stored, and the host need not wait
        return torch.zeros(b, passes + 1, dtype=torch.int64)
    assert network.block_size is not None
    block = (torch.arange(l, device=plan.order.device) // network.block_size * network.block_size).expand(b, l)
    found = torch.full((b, passes + 1), l, device=plan.order.device)
    given = torch.where(plan.order < 0, passes, plan.order)
    return F.pad(found.scatter_reduce(1, given, block, "amin")[:, :passes], (1, 0)).cpu()


def start_of(masked: Tensor, network: Cached) -> Tensor:
    """Find where the leftmost block with a mask starts, int64 (b,) on the host: the host waits here."""
    assert network.block_size is not None
    return (masked.int().argmax(1) // network.block_size * network.block_size).cpu()


def within(masked: Tensor, block: Tensor) -> Tensor:
    """Leave of masks (b, l) those of a row's block (b, w), bool (b, l)."""
    inside = F.pad(torch.zeros_like(masked), (0, 1)).scatter(1, block, True)
    return masked & inside[:, :-1]


def before_pass(network: Cached, state: TensorDict, places: Places) -> tuple[TensorDict, dict[str, Tensor]]:
    """Say what a pass reads; where rows do not begin a block together, store what is finished first.

    Returns the state, and the inputs of the pass.
    """
    x_t, size = state[contracts.X_T], network.block_size
    assert size is not None
    l, device = x_t.shape[1], x_t.device
    stored, start = places
    gap, end = start - stored, (start + size).clamp(max=l)
    cache = state[contracts.CACHE][..., : int(stored.max()), :]
    if int(gap.min()) == int(gap.max()):
        finished = stored.unsqueeze(1) + torch.arange(int(gap[0]))
    else:
        cache = _stored_apart(network, x_t, cache, places)
        finished = stored.new_zeros(len(start), 0)
    block = start.unsqueeze(1) + torch.arange(int((end - start).max()))
    block = torch.where(block < end.unsqueeze(1), block, l)
    found = {contracts.FINISHED: finished, contracts.BLOCK: block, contracts.READ: end - stored}
    inputs = {key: value.to(device) for key, value in found.items()}
    return TensorDict({**dict(state.items()), contracts.CACHE: cache}), inputs


def _stored_apart(network: Cached, x_t: Tensor, cache: Tensor, places: Places) -> Tensor:
    """Read what is finished of the rows that begin a block, those with as much of it together."""
    stored, start = places
    gap = start - stored
    cache = F.pad(cache, (0, 0, 0, int(start.max()) - cache.shape[4]))
    for count in gap[gap > 0].unique().tolist():
        (rows,) = torch.where(gap == count)
        at = (stored[rows].unsqueeze(1) + torch.arange(count)).to(x_t.device)
        rows = rows.to(x_t.device)
        _, own = network.after(x_t[rows], at, cache[rows])
        cache = cache.index_copy(0, rows, _with(cache[rows], own, at))
    return cache


class _Read(nn.Module):
    """States (n, h) at the positions, the cache with what is finished, and the context of the block too if kept."""

    def __init__(self, network: nn.Module, keeps: bool) -> None:
        super().__init__()
        self.network: Any = network
        self.keeps = keeps

    def forward(
        self, x_t: Tensor, positions: Tensor, finished: Tensor, block: Tensor, cache: Tensor
    ) -> tuple[Tensor, ...]:
        (b, l), f = x_t.shape, finished.shape[1]
        places = torch.cat([finished, block], dim=1)
        n = places.shape[1]
        row = (positions // l).clamp(max=b - 1)  # padding may read any row
        at = (positions % l - block[row, 0]).clamp(0, n - f - 1)
        hidden, own = self.network.after(x_t, places, cache, row * n + f + at)
        if f:
            cache = _with(F.pad(cache, (0, 0, 0, f)), own[..., :f, :], finished)
        if not self.keeps:
            return hidden, cache
        longer = F.pad(cache, (0, 0, 0, n - f))
        return hidden, cache, _with(longer, own[..., f:, :], block)[..., :l, :]


def _with(cache: Tensor, own: Tensor, places: Tensor) -> Tensor:
    """Put keys and values (b, layers, 2, heads, n, d) at their places (b, n) of a cache."""
    return cache.scatter(4, places[:, None, None, None, :, None].expand_as(own), own)
