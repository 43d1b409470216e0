"""The stages that count what a step reads, as it is taken. Nothing else counts passes.

What is counted is what a row needs by itself, whatever is in its batch: see `edlm.costs`.
"""

from collections.abc import Callable
from functools import partial

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor

from edlm import contracts, costs
from edlm.contracts import Reads, Scope
from edlm.declaration import stage

KEYS = (contracts.DENOISER_TOKENS, contracts.ENERGY_TOKENS, contracts.CALLS, contracts.ROUNDS)


def plain(cached: bool = False) -> TensorDictModule:
    """Build the stage that counts a step of the denoiser alone; cached: it reads what `read` says, not all of x_t."""
    read = "x_t, read" if cached else "x_t"
    return stage(f"{read} -> denoiser_tokens, energy_tokens, calls, rounds", _plain)


def weighed(reads: Reads, scope: Scope, mask_id: int, carries: bool, cached: bool = False) -> TensorDictModule:
    """Build the stage that counts a step with candidates; `rounds` is that of the step, 1 without a loop.

    carries: the states come with the state of the kernel, and what was read for them is `owed`. cached: as of `plain`.
    """
    read, written = "x_t, reveal, corrected, particles, rounds", "denoiser_tokens, energy_tokens, calls"
    count = partial(_weighed, reads, scope, mask_id)
    if carries:
        return stage(f"{read}, owed -> {written}, owed", count)
    return (
        stage(f"{read}, read -> {written}", partial(_from_cache, count))
        if cached
        else stage(f"{read} -> {written}", count)
    )


def verified(
    reads: Reads, x_t: Tensor, new: Tensor, rounds: Tensor, read: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Count tokens of the denoiser and of verifying, and calls, (b,) each, of a step with so many new tokens (b,)."""
    whole = costs.whole(x_t) if read is None else read
    return whole, costs.tokens(reads, rounds, new.clamp(min=1), x_t.shape[1]), 1 + rounds


def _plain(x_t: Tensor, read: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    whole = costs.whole(x_t) if read is None else read
    nothing = torch.zeros_like(whole)
    return whole, nothing, torch.ones_like(whole), nothing


def _from_cache(count: Callable[..., tuple[Tensor, ...]], *given: Tensor) -> tuple[Tensor, ...]:
    """Count with what is read last among what is given."""
    return count(*given[:-1], read=given[-1])


def _weighed(
    reads: Reads,
    scope: Scope,
    mask_id: int,
    x_t: Tensor,
    reveal: Tensor,
    corrected: Tensor,
    particles: Tensor,
    rounds: Tensor,
    owed: Tensor | None = None,
    read: Tensor | None = None,
) -> tuple[Tensor, ...]:
    whole, length = costs.whole(x_t) if read is None else read, x_t.shape[1]
    new = (reveal if scope == "transition" else x_t == mask_id).sum(1).clamp(min=1)
    found = torch.where(corrected, costs.tokens(reads, particles, new, length), 0)
    in_turn = reads.in_turn * (new - 1) if reads.in_turn else torch.full_like(new, reads.calls)
    calls = torch.where(found > 0, rounds * in_turn, 0)
    if owed is None:
        return whole, found, calls + 1
    denoised = torch.where(corrected, owed, whole)
    return denoised, found, calls + (denoised > 0).long(), torch.where(corrected, 0, whole)
