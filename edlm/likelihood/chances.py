"""The chance that a pass of a plan reveals what a transition does, for every transition of a small space."""

from collections.abc import Iterable

import torch
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.process.schedules import Schedule
from edlm.samplers import planning, stages
from edlm.samplers.blocks import ChosenBlocks, DrawnBlocks
from edlm.samplers.planning import Plan, Rule
from edlm.samplers.sampler import Sampler

_STATES_AT_ONCE = 1024


def of_passes(sampler: Sampler, length: int, before: Tensor, after: Tensor) -> Iterable[Tensor]:
    """Work out for each pass the chance that what transitions reveal is what the pass does: float64 (n,).

    before, after: numbers of states (n,), by their tokens, the last position fastest.
    """
    plan, schedule, mask_id = as_rule(sampler.plan), sampler.denoiser.schedule, sampler.denoiser.mask_id
    states = _words(length, mask_id + 1)
    masked, left = (states[number] == mask_id for number in (before, after))
    new = masked & ~left
    if not isinstance(plan, DrawnBlocks) and planning.is_random(plan) and not planning.is_rule(plan):
        return (chance[masked.sum(1), new.sum(1)] for chance in plan.chances(schedule, length))
    if isinstance(plan, DrawnBlocks):
        return _in_blocks(plan, schedule, masked, new)
    assert planning.is_rule(plan)
    same = (_choices(plan, sampler, states)[before] == new).all(-1)
    return [same.double()] * length


def as_rule(plan: Plan) -> Plan:
    """Return a plan that is drawn and a rule, as left to right is, as a rule, in blocks too."""
    return (
        ChosenBlocks(plan.size, plan.within)
        if isinstance(plan, DrawnBlocks) and planning.is_rule(plan.within)
        else plan
    )


def _in_blocks(plan: DrawnBlocks, schedule: Schedule, before: Tensor, new: Tensor) -> Iterable[Tensor]:
    """The chances of the passes of each block: of a transition that reveals something elsewhere they are zero."""
    for part in plan.parts(before.shape[1]):
        where = slice(part.start, part.stop)
        masked, revealed = before[:, where].sum(1), new[:, where].sum(1)
        here = revealed == new.sum(1)
        for chance in plan.within.chances(schedule, len(part)):  # type: ignore[attr-defined]
            yield chance[masked, revealed] * here


@torch.no_grad()
def _choices(plan: Rule, sampler: Sampler, states: Tensor) -> Tensor:
    """Say what a plan that is a rule reveals in each state (b, l): bool (b, l)."""
    law, found = stages.Law(sampler.denoiser, *sampler.proposal), []
    for x_t in states.split(_STATES_AT_ONCE):
        masked = x_t == sampler.denoiser.mask_id
        (positions,) = torch.where(masked.flatten())
        t = torch.ones(len(x_t), dtype=torch.float64)
        inputs = {contracts.X_T: x_t, contracts.T: t, contracts.POSITIONS: positions}
        hidden = sampler.denoiser(TensorDict(inputs))[contracts.HIDDEN]
        found.append(plan.choose(stages.seen_of(law, hidden, positions, *x_t.shape), masked))
    return torch.cat(found)


def _words(length: int, symbols: int) -> Tensor:
    """List every word of so many symbols, the last position fastest: (symbols ** length, length)."""
    digits = symbols ** torch.arange(length - 1, -1, -1)
    return torch.arange(symbols**length).unsqueeze(-1) // digits % symbols
