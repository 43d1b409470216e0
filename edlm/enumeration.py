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


def many(log_q: Tensor, log_w: Tensor, num_particles: int) -> Tensor:
    """The law that SIR and IMH tend to with more and more candidates, (b, d): `q w` over its sum, k not read."""
    return (log_q + log_w).softmax(-1)


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
    states = [_Masked(_states(where, length, symbols), where) for where in _subsets(range(length))]
    ways = [
        (each, filled)
        for each in states
        for filled in (_subsets(each.where) if proposes == "revealed" else [each.where])
    ]
    log_p = {id(each): _marginals(denoiser, each) for each in states}
    weighed = [
        _weighed(each, filled, log_p[id(each)], None if num_particles == 1 else energy, proposal_temperature)
        for each, filled in ways
    ]
    laws = _chosen(weighed, choice, num_particles)
    parts = [
        _named(each.x_t, revealed, len(each.where), symbols, _marginal(law, filled, revealed, symbols))
        for (each, filled), law in zip(ways, laws, strict=True)
        for revealed in ([filled] if proposes == "revealed" else _subsets(filled))
    ]
    return Transitions(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


class _Masked(NamedTuple):
    """Every state x_t (b, l) whose masks are at these positions."""

    x_t: Tensor
    where: Sequence[int]


def _states(where: Sequence[int], length: int, symbols: int) -> Tensor:
    visible = [i for i in range(length) if i not in where]
    return _filled(torch.full((1, length), symbols), visible, symbols).squeeze(0)


def _marginals(denoiser: Denoiser, states: _Masked) -> Tensor:
    """`log p_theta` of the m symbols at the masks: (b, n, m)."""
    b, length = states.x_t.shape
    if not states.where:
        return torch.zeros(b, 0, denoiser.mask_id, dtype=torch.float64)
    inputs = {contracts.X_T: states.x_t, contracts.POSITIONS: _flat(states.where, b, length)}
    found = [denoiser.logits(denoiser(each)[contracts.HIDDEN]) for each in _at_times(inputs, states)]
    _refuse_time("denoiser", found)
    return found[-1][:, : denoiser.mask_id].double().log_softmax(-1).view(b, len(states.where), -1)


def _weighed(
    states: _Masked, filled: Sequence[int], log_p: Tensor, energy: Energy | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities under what proposes, and log-weights, of every candidate that fills these masks in: (b, d)."""
    symbols = log_p.shape[-1]
    own = log_p[:, [states.where.index(i) for i in filled]]  # (b, r, m)
    log_q = _joint((own / temperature).log_softmax(-1))
    if energy is None or not filled:
        return log_q, torch.zeros_like(log_q)
    candidates = _filled(states.x_t, filled, symbols)
    b, d, length = candidates.shape
    tokens = candidates[..., list(filled)]  # (b, d, r)
    per_token = own.unsqueeze(1).expand(b, d, -1, -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    log_p_candidates = torch.zeros(b, d, length, dtype=torch.float64)
    log_p_candidates[..., list(filled)] = per_token
    inputs = {
        contracts.CANDIDATES: candidates,
        contracts.X_T: states.x_t,
        contracts.POSITIONS: _flat(filled, b, length),
        contracts.LOG_P_CANDIDATES: log_p_candidates,
    }
    asked = [energy(each)[contracts.ENERGY].double() for each in _at_times(inputs, states)]
    _refuse_time("energy", asked)
    return log_q, per_token.sum(-1) - log_q - asked[-1]


def _chosen(weighed: Sequence[tuple[Tensor, Tensor]], choice: Choice, num_particles: int) -> list[Tensor]:
    """The law (b, d) of what is kept of each, those with equally many candidates chosen from in one call."""
    laws: list[Tensor] = [torch.empty(0)] * len(weighed)
    for size in {log_q.shape[1] for log_q, _ in weighed}:
        numbers = [number for number, (log_q, _) in enumerate(weighed) if log_q.shape[1] == size]
        log_q, log_w = (torch.cat([weighed[number][part] for number in numbers]) for part in (0, 1))
        found = choice(log_q, log_w, num_particles)
        total = found.sum(-1, keepdim=True)
        assert ((total - 1.0).abs() < _ROUNDING).all()
        parts = (found / total).split([len(weighed[number][0]) for number in numbers])
        for number, law in zip(numbers, parts, strict=True):
            laws[number] = law
    return laws


def _marginal(law: Tensor, filled: Sequence[int], revealed: Sequence[int], symbols: int) -> Tensor:
    """Of a law over what candidates fill in, (b, m^n), that of what is revealed: (b, m^r)."""
    discarded = [1 + place for place, i in enumerate(filled) if i not in revealed]
    law = law.view(-1, *(symbols,) * len(filled))
    return (law.sum(discarded) if discarded else law).reshape(len(law), -1)


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


def _flat(positions: Sequence[int], b: int, length: int) -> Tensor:
    """Positions of a row as flat ones of b rows: int64 (b r,)."""
    return (torch.arange(b).unsqueeze(-1) * length + torch.tensor(positions)).flatten()


def _at_times(inputs: dict[str, Tensor], states: _Masked) -> list[TensorDict]:
    """The inputs at a time; where all is masked at two of them, to see whether the time matters."""
    b, length = states.x_t.shape
    times = _SOME_TIMES if len(states.where) == length else _SOME_TIMES[-1:]
    return [TensorDict({**inputs, contracts.T: torch.full((b,), t, dtype=torch.float64)}) for t in times]


def _refuse_time(name: str, found: Sequence[Tensor]) -> None:
    if not all(torch.equal(each, found[-1]) for each in found):
        raise ValueError(f"the {name} changes with the time t: only what does not can be enumerated")
