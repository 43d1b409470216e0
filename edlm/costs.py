"""The cost of reading texts: the reading that an energy declares, and what that is in tokens.

A token is read when a network's layers run on it. A whole text of l tokens read once is a pass, one NFE; what reads
parts of a text counts their tokens.
"""

from typing import Any

import torch
from torch import Tensor

from edlm.contracts import Reads

NOTHING = Reads(candidates=0, calls=0)


def of_energy(energy: Any) -> Reads:
    """Return what an energy says that it reads; every candidate once, if it says nothing."""
    found: Reads = getattr(energy, "reads", Reads())
    return found


def together(*parts: Reads) -> Reads:
    """Return what several energies read, one after the other."""
    return Reads(*(sum(numbers) for numbers in zip(*parts, strict=True)))


def tokens(reads: Reads, k: Any, new: Any, length: int) -> Any:
    """Count the tokens of a row that are read for k candidates with so many new tokens, at least one."""
    later = new - 1
    return reads.texts * length + k * (reads.candidates * length + reads.new * later + reads.in_turn * later * length)


def whole(x_t: Tensor) -> Tensor:
    """Count the tokens (b,) of one pass over x_t (b, l)."""
    return torch.full_like(x_t[:, 0], x_t.shape[1])
