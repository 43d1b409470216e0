"""How much is read: by a step as it is taken, and by a sampler as it is expected. Nothing else counts passes.

A token is read when a network's layers run on it. A whole text of l tokens read once is a pass, one NFE; a step that
reads parts of a text counts their tokens. What is counted is what a row needs by itself, whatever is in its batch.
"""

from functools import partial
from typing import Any

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor

from edlm import contracts
from edlm.contracts import Reads, Scope
from edlm.process.stages import stage

NOTHING = Reads(candidates=0, calls=0)


def of_energy(energy: Any) -> Reads:
    """What an energy says that it reads; every candidate once, if it says nothing."""
    found: Reads = getattr(energy, "reads", Reads())
    return found


def together(*parts: Reads) -> Reads:
    """What several energies read, one after the other."""
    return Reads(*(sum(numbers) for numbers in zip(*parts, strict=True)))


def tokens(reads: Reads, k: Any, new: Any, length: int) -> Any:
    """Tokens of a row that are read for k candidates with so many new tokens, at least one: numbers or tensors."""
    later = new - 1
    return reads.texts * length + k * (reads.candidates * length + reads.new * later + reads.in_turn * later * length)


def plain() -> TensorDictModule:
    """Build the stage that counts a step of the denoiser alone."""
    return stage("x_t -> denoiser_tokens, energy_tokens, calls, rounds", _plain)


def weighed(reads: Reads, scope: Scope, mask_id: int, carries: bool) -> TensorDictModule:
    """Build the stage that counts a step with candidates; `rounds` is that of the step, 1 without a loop.

    carries: the states come with the state of the kernel, and what was read for them is `owed`.
    """
    read, written = "x_t, reveal, corrected, particles, rounds", "denoiser_tokens, energy_tokens, calls"
    if carries:
        read, written = f"{read}, owed", f"{written}, owed"
    return stage(f"{read} -> {written}", partial(_weighed, reads, scope, mask_id))


def owed(x_t: Tensor) -> Tensor:
    """Tokens (b,) of one pass over x_t (b, l)."""
    return torch.full_like(x_t[:, 0], x_t.shape[1])


def verified(reads: Reads, x_t: Tensor, new: Tensor, rounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of the denoiser and of verifying, and calls, (b,) each, of a step that verifies its new tokens (b,)."""
    return owed(x_t), tokens(reads, rounds, new.clamp(min=1), x_t.shape[1]), 1 + rounds


def _plain(x_t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    whole = owed(x_t)
    nothing = torch.zeros_like(whole)
    return whole, nothing, torch.ones_like(whole), nothing


def _weighed(
    reads: Reads,
    scope: Scope,
    mask_id: int,
    x_t: Tensor,
    reveal: Tensor,
    corrected: Tensor,
    particles: Tensor,
    rounds: Tensor,
    owed_: Tensor | None = None,
) -> tuple[Tensor, ...]:
    whole, length = owed(x_t), x_t.shape[1]
    new = (reveal if scope == "transition" else x_t == mask_id).sum(1).clamp(min=1)
    found = torch.where(corrected, tokens(reads, particles, new, length), 0)
    in_turn = reads.in_turn * (new - 1) if reads.in_turn else torch.full_like(new, reads.calls)
    calls = torch.where(found > 0, rounds * in_turn, 0)
    if owed_ is None:
        return whole, found, calls + 1
    denoised = torch.where(corrected, owed_, whole)
    return denoised, found, calls + (denoised > 0).long(), torch.where(corrected, 0, whole)


KEYS = (contracts.DENOISER_TOKENS, contracts.ENERGY_TOKENS, contracts.CALLS, contracts.ROUNDS)
