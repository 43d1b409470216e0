"""The exact law of what a sampler draws from a small space, by enumeration: nothing is sampled.

Every state with masks, every set of positions that a step may reveal and every candidate for it are gone through, so
there are `(2m + 1)^l` transitions for m symbols and texts of l tokens. What is compared with the law of the data is
then the sampler itself and no histogram of its texts.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.contracts import Denoiser, Energy, Positions
from edlm.schedules import Schedule

MOST_TRANSITIONS = 1 << 20
_SOME_TIMES = (0.25, 1.0)  # a law that is asked once for all steps must be the same at any time
_QUADRATURE_STEP, _TAIL = 0.25, 40.0  # in log s, and how far to go beyond the largest and the smallest weight
_ROUNDING = 1e-6

Choice = Callable[[Tensor, Tensor, int], Tensor]  # log q, log w of d candidates (b, d) and k -> law of the kept one


class Transitions(NamedTuple):
    """What a step writes, given where, sparse: from state, to state (n,), the masks before it and how many it reveals.

    law: `p(x_s | x_t, S)` of each, float64 (n,). States are numbered by their tokens, the last position fastest.
    """

    before: Tensor
    after: Tensor
    masked: Tensor
    revealed: Tensor
    law: Tensor


def sir(log_q: Tensor, log_w: Tensor, num_particles: int) -> Tensor:
    """The law of the candidate that SIR keeps of k independent draws, (b, d), by quadrature to about 1e-9.

    `k q w E[1 / (w + sum_{j=2..k} w_j)] = k q w int_0^inf e^(-s w) (E e^(-s w_j))^(k - 1) ds`; where every weight is
    zero the first is kept.
    """
    if num_particles == 1:
        return log_q.exp()
    possible = torch.where(log_q > -torch.inf, log_w, -torch.inf)
    log_w = possible - possible.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    w, kept = log_w.exp(), torch.zeros_like(log_w)
    smallest = float(log_w[w > 0.0].min()) if (w > 0.0).any() else 0.0
    for log_s in torch.arange(-_TAIL, _TAIL - smallest, _QUADRATURE_STEP, dtype=torch.float64):
        s = log_s.exp()
        decay = (-s * w).exp()
        others = (log_q.exp() * decay).sum(-1, keepdim=True) ** (num_particles - 1)
        kept = kept + s * decay * others
    nothing = (log_q.exp() * (w == 0.0)).sum(-1, keepdim=True) ** (num_particles - 1)
    return log_q.exp() * (num_particles * w * _QUADRATURE_STEP * kept + (w == 0.0) * nothing)


def imh(log_q: Tensor, log_w: Tensor, num_particles: int) -> Tensor:
    """The law of an independent Metropolis-Hastings chain that starts at a draw and is offered k - 1 more, (b, d)."""
    q, law = log_q.exp(), log_q.exp()
    rise = log_w.unsqueeze(1) - log_w.unsqueeze(2)  # (b, from, to)
    accepted = torch.where(rise.isnan(), 0.0, rise.clamp(max=0.0).exp()) * q.unsqueeze(1)
    for _ in range(num_particles - 1):
        law = law * (1.0 - accepted.sum(2)) + (law.unsqueeze(1) @ accepted).squeeze(1)
    return law


def sampler_law(
    denoiser: Denoiser,
    schedule: Schedule,
    grid: Tensor | None,
    length: int,
    energy: Energy | None = None,
    num_particles: int = 1,
    choice: Choice = sir,
    proposes: Positions = "masked",
    proposal_temperature: float = 1.0,
) -> Tensor:
    """The law of what a pipeline of these parts draws, float64 (m,) * l of the m symbols; the mask's id is m.

    Arguments as of `samplers.importance` and `pipelines.sampling`; without an energy it is the plain sampler.
    grid: times (T + 1,), None for one position at a time. proposes: candidates for all masks or for what is revealed.
    Raises ValueError where there are more than `MOST_TRANSITIONS`, or where denoiser or energy change with the time t.
    """
    steps = transitions(denoiser, length, energy, num_particles, choice, proposes, proposal_temperature)
    return law_after(steps, schedule, grid, denoiser.mask_id, length)


def law_after(steps: Transitions, schedule: Schedule, grid: Tensor | None, symbols: int, length: int) -> Tensor:
    """The law of texts after the steps of a grid, (m,) * l, from all masks; see `sampler_law`."""
    mass = torch.zeros((symbols + 1) ** length, dtype=torch.float64)
    mass[-1] = 1.0  # all masks
    for chance in _chances(schedule, grid, length):
        flow = mass[steps.before] * steps.law * chance[steps.masked, steps.revealed]
        mass = torch.zeros_like(mass).index_add(0, steps.after, flow)
    return mass.view((symbols + 1,) * length)[(slice(symbols),) * length]


@torch.no_grad()
def transitions(
    denoiser: Denoiser,
    length: int,
    energy: Energy | None,
    num_particles: int,
    choice: Choice,
    proposes: Positions,
    proposal_temperature: float = 1.0,
) -> Transitions:
    """Every transition of a step that may reveal any set of masks, the empty one too: the same for every grid.

    Arguments and errors are those of `sampler_law`.
    """
    symbols = denoiser.mask_id
    if (2 * symbols + 1) ** length > MOST_TRANSITIONS:
        raise ValueError(
            f"{symbols} symbols and length = {length} have {(2 * symbols + 1) ** length} transitions, more than "
            f"{MOST_TRANSITIONS} that can be enumerated"
        )
    parts: list[Transitions] = []
    for masked in itertools.product([False, True], repeat=length):
        where = [i for i in range(length) if masked[i]]
        x_t = _filled(torch.full((1, length), symbols), [i for i in range(length) if not masked[i]], symbols).squeeze(0)
        log_p = _marginals(denoiser, x_t, where)
        parameters = (energy, num_particles, choice, proposal_temperature)
        whole = None if proposes == "revealed" else _kept(x_t, where, where, log_p, *parameters)
        for revealed in _subsets(where):
            if whole is None:
                law = _kept(x_t, revealed, where, log_p, *parameters)
            else:
                discarded = [1 + place for place, i in enumerate(where) if i not in revealed]
                law = whole.view(-1, *(symbols,) * len(where))
                law = (law.sum(discarded) if discarded else law).reshape(len(x_t), -1)
            parts.append(_named(x_t, revealed, len(where), symbols, law))
    return Transitions(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _marginals(denoiser: Denoiser, x_t: Tensor, where: Sequence[int]) -> Tensor:
    """`log p_theta` of the m symbols at the masked positions: (b, n, m)."""
    b, length = x_t.shape
    positions = (torch.arange(b).unsqueeze(-1) * length + torch.tensor(where, dtype=torch.int64)).flatten()
    if not where:
        return torch.zeros(b, 0, denoiser.mask_id, dtype=torch.float64)
    found = [
        denoiser.logits(denoiser(_at_time(t, {contracts.X_T: x_t, contracts.POSITIONS: positions}))[contracts.HIDDEN])
        for t in _SOME_TIMES
    ]
    _refuse_time("denoiser", *found)
    return found[-1][:, : denoiser.mask_id].double().log_softmax(-1).view(b, len(where), -1)


def _kept(
    x_t: Tensor,
    filled: Sequence[int],
    where: Sequence[int],
    log_p: Tensor,
    energy: Energy | None,
    num_particles: int,
    choice: Choice,
    temperature: float,
) -> Tensor:
    """The law of the candidate that is kept, of those that fill in some of the masks: (b, d)."""
    symbols = log_p.shape[-1]
    own = log_p[:, [where.index(i) for i in filled]]  # (b, r, m)
    each_q = (own / temperature).log_softmax(-1)
    log_q = _joint(each_q)
    if energy is None or num_particles == 1 or not filled:
        return log_q.exp()
    candidates = _filled(x_t, filled, symbols)
    b, d, length = candidates.shape
    tokens = candidates[..., list(filled)]  # (b, d, r)
    per_token = own.unsqueeze(1).expand(b, d, -1, -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    log_p_candidates = torch.zeros(b, d, length, dtype=torch.float64)
    log_p_candidates[..., list(filled)] = per_token
    positions = (torch.arange(b).unsqueeze(-1) * length + torch.tensor(filled)).flatten()
    inputs = {
        contracts.CANDIDATES: candidates,
        contracts.X_T: x_t,
        contracts.POSITIONS: positions,
        contracts.LOG_P_CANDIDATES: log_p_candidates,
    }
    asked = [energy(_at_time(t, inputs))[contracts.ENERGY].double() for t in _SOME_TIMES]
    _refuse_time("energy", *asked)
    law = choice(log_q, per_token.sum(-1) - log_q - asked[-1], num_particles)
    assert ((law.sum(-1) - 1.0).abs() < _ROUNDING).all()
    return law / law.sum(-1, keepdim=True)


def _named(x_t: Tensor, revealed: Sequence[int], num_masked: int, symbols: int, law: Tensor) -> Transitions:
    """The transitions from states (b, l) that reveal a set, by number; law (b, d)."""
    candidates = _filled(x_t, revealed, symbols)
    after = _number(candidates, symbols)
    before = _number(x_t, symbols).unsqueeze(-1).expand_as(after)
    count = torch.ones_like(after)
    columns = (before, after, num_masked * count, len(revealed) * count, law)
    return Transitions(*(column.flatten() for column in columns))


def _chances(schedule: Schedule, grid: Tensor | None, length: int) -> list[Tensor]:
    """For each step the chance to reveal one given set of r of n masks: a table (l + 1, l + 1) by n and r.

    On a grid each mask is revealed independently; one at a time each is as likely to be the next.
    """
    n = torch.arange(length + 1, dtype=torch.float64).unsqueeze(-1)
    r = torch.arange(length + 1, dtype=torch.float64)
    if grid is None:
        one = torch.where((r == 1) & (n > 0), 1.0 / n.clamp(min=1.0), 0.0)
        return [torch.where((n == 0) & (r == 0), 1.0, one)] * length
    still = 1.0 - schedule.alpha(grid.double())
    still[-1] = 0.0  # whatever the schedule, the last step leaves no mask
    tables = []
    for before, after in itertools.pairwise(still.tolist()):
        p = 1.0 - after / before
        tables.append(torch.where(r <= n, p**r * (1.0 - p) ** (n - r).clamp(min=0.0), 0.0))
    return tables


def _joint(log_p: Tensor) -> Tensor:
    """Factors (b, r, m) to the log-probabilities (b, m^r) of all words, the last position fastest."""
    joint = torch.zeros(len(log_p), 1, dtype=torch.float64)
    for factor in log_p.unbind(1):
        joint = (joint.unsqueeze(-1) + factor.unsqueeze(1)).flatten(1)
    return joint


def _filled(x_t: Tensor, positions: Sequence[int], symbols: int) -> Tensor:
    """Every way to fill in the positions, the last fastest: (b, l) to (b, m^r, l)."""
    digits = symbols ** torch.arange(len(positions) - 1, -1, -1)
    found = x_t.unsqueeze(1).repeat(1, symbols ** len(positions), 1)
    found[..., list(positions)] = torch.arange(found.shape[1]).unsqueeze(-1) // digits % symbols
    return found


def _number(x: Tensor, symbols: int) -> Tensor:
    return (x * (symbols + 1) ** torch.arange(x.shape[-1] - 1, -1, -1)).sum(-1)


def _subsets(positions: Sequence[int]) -> list[list[int]]:
    return [list(each) for size in range(len(positions) + 1) for each in itertools.combinations(positions, size)]


def _at_time(t: float, inputs: dict[str, Tensor]) -> TensorDict:
    times = torch.full((len(inputs[contracts.X_T]),), t, dtype=torch.float64)
    return TensorDict({**inputs, contracts.T: times})


def _refuse_time(name: str, first: Tensor, second: Tensor) -> None:
    if not torch.equal(first, second):
        raise ValueError(f"the {name} changes with the time t: only what does not can be enumerated")
