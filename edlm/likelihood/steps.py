"""The law of what a pass writes, asked of the data: its log-probability given what is seen and which positions come.

Plain passes write each token from its own law. Passes in order write each token from its law given those before it.
Both laws are those of the draws, after temperature and nucleus. Where k candidates are weighed no such law is known,
only a bound.
"""

from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts, costs, declaration
from edlm.likelihood import terms
from edlm.process import absorbing, categorical, finite, schedules
from edlm.process.absorbing import RevealPlan
from edlm.samplers import kernel, stages
from edlm.samplers.corrections import Parts
from edlm.samplers.sampler import Sampler


class Written(NamedTuple):
    """Of each row, (b,): nats of all that its passes write, and the tokens that were read for it.

    denoiser_tokens: by the passes over x_t; energy_tokens: by what reads the new tokens in order.
    """

    log_prob: Tensor
    denoiser_tokens: Tensor
    energy_tokens: Tensor


def missing(sampler: Sampler) -> str:
    """Say why the law of what a pass writes is not known in closed form; an empty text if it is."""
    if sampler.remasking is not None:
        return f"a sampler that masks tokens again has no known likelihood: remasking = {sampler.remasking}"
    parts = sampler.parts
    if parts is not None and parts.write is not None:
        return f"{sampler.correction.name!r} has a law of its own, which bounds.of_sampler scores"  # type: ignore[union-attr]
    if sampler.correction is None or sampler.chooses.in_order or sampler.candidates == 1:
        return ""
    return f"the law of what is kept of {sampler.candidates} candidates is not known, only a bound of it"


def ordered(sampler: Sampler) -> Parts | None:
    """Return the correction that writes new tokens in order, None for a sampler whose tokens are plain."""
    return sampler.parts if sampler.chooses.in_order else None


def read(sampler: Sampler, x_t: Tensor, t: Tensor, positions: Tensor) -> TensorDict:
    """Take the denoiser's pass over states (n, l): hidden states at flat positions, and what reading in order needs."""
    parts = ordered(sampler)
    if parts is None:
        first = kernel.init(x_t)
        before = sampler.denoiser
    else:
        first, before = parts.init(x_t), declaration.sequence(parts.before)
    state = TensorDict({**first, contracts.T: t, contracts.POSITIONS: positions})
    return TensorDict({**state, **before(state)})


def log_prob(sampler: Sampler, state: TensorDict, x_0: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the log-probability (n,) that a pass writes the data where it is `now`, and the tokens read in order.

    state: of `read`, at these positions or at more; x_0, now: (n, l).
    """
    parts, (n, l) = ordered(sampler), x_0.shape
    chosen = now.flatten()[state[contracts.POSITIONS]].nonzero().squeeze(-1)
    taken = kernel.part_of(state, list(state.keys()), torch.arange(n, device=x_0.device), chosen)
    positions, states = taken[contracts.POSITIONS], taken[contracts.HIDDEN]
    count = now.sum(1)
    looked_up = torch.zeros_like(count)
    if parts is not None:
        inside = schedules.inside(taken[contracts.T], sampler.window)
        looked_up = torch.where(inside, costs.tokens(parts.reads, 1, count.clamp(min=1), l), 0)
        (rows,) = torch.where(inside & (count > 1))
        if len(rows):
            states = _in_order(parts, taken, x_0, now, rows)
    found = _of_tokens(sampler, states, x_0.flatten()[positions])
    return found.new_zeros(n).index_add(0, positions // l, found), looked_up


@torch.no_grad()
def of_plan(sampler: Sampler, plan: RevealPlan, x_0: Tensor, size: int) -> Written:
    """Score texts (b, l) along plans that are known beforehand, `size` passes at once."""
    found = torch.zeros(len(x_0), dtype=torch.float64, device=x_0.device)
    passes, read_more = torch.zeros(2, len(x_0), dtype=torch.int64, device=x_0.device)
    taken = terms.every(plan)
    for part in terms.parts(taken, torch.ones_like(taken.row, dtype=torch.bool), size):
        x_t, t, now, _ = terms.before(sampler.denoiser, plan, x_0, part)
        state = read(sampler, x_t, t, now.flatten().nonzero().squeeze(-1))
        log_p, looked_up = log_prob(sampler, state, x_0[part.row], now)
        found.index_add_(0, part.row, log_p)
        passes.index_add_(0, part.row, torch.ones_like(part.row))
        read_more.index_add_(0, part.row, looked_up)
    return Written(found, passes * x_0.shape[1], read_more)


def _in_order(parts: Parts, state: dict[str, Tensor], x_0: Tensor, now: Tensor, rows: Tensor) -> Tensor:
    """Hidden states (m, h) with those of later new tokens of some rows in their places."""
    assert parts.order is not None
    b, l = x_0.shape
    taken, own = kernel.of_rows(state[contracts.POSITIONS], rows, b, l)
    x_s = torch.where(now, x_0, state[contracts.X_T])[rows]
    new = absorbing.places(now[rows], int(now[rows].sum(1).amax()))
    given = kernel.part_of(TensorDict(state), [key for key in parts.order.in_keys if key in state], rows, taken)
    asked = {**given, contracts.CANDIDATES: x_s.unsqueeze(1), contracts.POSITIONS: own, contracts.NEW: new}
    found = parts.order(TensorDict(asked))[contracts.IN_ORDER]
    _, number = absorbing.numbered(own, l)
    (later,) = torch.where(number > 0)  # the first one of a row is predicted from x_t alone
    hidden = state[contracts.HIDDEN]
    return hidden.index_copy(0, taken[later], found[later].to(hidden))


def _of_tokens(sampler: Sampler, states: Tensor, tokens: Tensor) -> Tensor:
    """`log p(token)` at states (m, h) under the law that is drawn from, a tile of logits at a time: float64 (m,)."""
    law = stages.Law(sampler.denoiser, *sampler.proposal)
    tiles = law.tiles(states, tokens.unsqueeze(-1))
    found = torch.cat([categorical.token_log_prob(law(own), wanted) for own, wanted in tiles]).squeeze(-1).double()
    finite.require_log_prob(found)
    return found
