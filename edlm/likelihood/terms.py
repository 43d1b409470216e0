"""The passes of texts along reveal plans, many at once: given a text, the state before a pass waits for no other."""

from typing import NamedTuple

import torch
from torch import Tensor

from edlm.contracts import Denoiser
from edlm.likelihood import nelbo
from edlm.process import arguments
from edlm.process.absorbing import RevealPlan


class Term(NamedTuple):
    """One pass of one row: its row in the call, the number of the pass, and how often it counts; (n,) each."""

    row: Tensor
    number: Tensor
    weight: Tensor


class Before(NamedTuple):
    """The states before some passes: x_t (n, l), t (n,), what the pass reveals and what is masked, bool (n, l)."""

    x_t: Tensor
    t: Tensor
    now: Tensor
    masked: Tensor


def every(plan: RevealPlan) -> Term:
    """List all passes of all rows."""
    index, number = (torch.arange(plan.t.shape[1], device=plan.t.device) < plan.passes.unsqueeze(-1)).nonzero().T
    return Term(index, number, torch.ones_like(index, dtype=torch.float64))


def some(plan: RevealPlan, num_passes: int, seed: Tensor, row: Tensor) -> Term:
    """Choose `num_passes` passes of each row: one in each of so many equal stretches. Raises ValueError for none."""
    arguments.require_whole("num_passes", num_passes)
    index = torch.arange(len(row), device=row.device).repeat_interleave(num_passes)
    stretch = torch.arange(num_passes, device=row.device).repeat(len(row))
    passes = plan.passes[index]
    place = (nelbo.strata(seed, row)[index] + stretch) / num_passes
    return Term(index, (place * passes).long().minimum(passes - 1), passes.double() / num_passes)


def parts(terms: Term, wanted: Tensor, size: int) -> list[Term]:
    """Take the wanted terms, `size` at a time."""
    kept = wanted.nonzero().squeeze(-1)
    return [Term(*(field[part] for field in terms)) for part in kept.split(size) if len(part)]


def before(denoiser: Denoiser, plan: RevealPlan, x_0: Tensor, part: Term) -> Before:
    """Build the states before some passes."""
    order, number = plan.order[part.row], part.number.unsqueeze(-1)
    masked = order >= number
    x_t = torch.where(masked, denoiser.mask_id, x_0[part.row])
    return Before(x_t, plan.t[part.row, part.number], order == number, masked)
