"""The exact law of what a sampler draws from a small space, by enumeration: nothing is sampled.

Every state with masks, every set of positions that a step may reveal and every candidate for it are gone through, so
there are `(2m + 1)^l` transitions for m symbols and texts of l tokens. What is compared with the law of the data is
then the sampler itself and no histogram of its texts.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.contracts import Denoiser, Energy, Positions
from edlm.likelihood import chances, rewritten
from edlm.models import energies
from edlm.process import arguments
from edlm.samplers import planning
from edlm.samplers.blocks import DrawnBlocks
from edlm.samplers.sampler import Sampler
from edlm.samplers.selections import Law

MOST_TRANSITIONS = 1 << 20
_SOME_TIMES = (0.25, 1.0)  # a law that is asked once for all steps must be the same at any time
_ROUNDING = 1e-6


class Transitions(NamedTuple):
    """The writing of a step, given where, sparse: from state, to state (n,), the masks before it and how many it
    reveals.

    law: `p(x_s | x_t, S)` of each, float64 (n,). States are numbered by their tokens, the last position fastest.
    """

    before: Tensor
    after: Tensor
    masked: Tensor
    revealed: Tensor
    law: Tensor


def law(sampler: Sampler, length: int) -> Tensor:
    """Enumerate the law of what a sampler draws.

    Args:
        sampler: one over a small vocabulary of m symbols, the mask's id m.
        length: tokens of a text, l.

    Returns:
        The probability of every text, float64 (m,) * l.

    Raises:
        ValueError: where there are more than `MOST_TRANSITIONS`, where denoiser or energy change with the time t, and
            for a window, a nucleus, candidates until an ESS is reached, a selection whose law is not known and a rule
            that masks tokens again by what they are.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> source = hidden_markov.random_markov(0, 3)
        >>> law = edlm.enumeration.law(edlm.samplers.Sampler(hidden_markov.denoiser(source, 4)), length=4)
        >>> law.shape, round(float(law.sum()), 9)
        (torch.Size([3, 3, 3, 3]), 1.0)
    """
    if sampler.remasking is None:
        return law_of(transitions_of(sampler, length), sampler, length)
    _require_known(sampler)
    denoiser, heat = sampler.denoiser, sampler.proposal.temperature
    _require_small(denoiser.mask_id, length)
    states = [_Masked(_states(where, length, denoiser.mask_id), where) for where in _subsets(range(length))]
    laws = [(tuple(each.where), (_marginals(denoiser, each) / heat).softmax(-1)) for each in states]
    return rewritten.law(sampler, laws, length)


def transitions_of(sampler: Sampler, length: int) -> Transitions:
    """Enumerate every transition of a sampler's step, the same for every plan.

    Args:
        sampler: see `law`.
        length: tokens of a text.

    Returns:
        The transitions.

    Raises:
        ValueError: as `law` does.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> sampler = edlm.samplers.Sampler(hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 2))
        >>> len(edlm.enumeration.transitions_of(sampler, 2).law)
        49
    """
    _require_known(sampler)
    if sampler.remasking is not None:
        raise ValueError(f"{sampler}: a step can be enumerated only without remasking")
    parts, correction, found = sampler.parts, sampler.correction, sampler.chooses.law
    assert found is not None
    if parts is None or correction is None:
        heat = sampler.proposal.temperature
        return transitions(sampler.denoiser, length, None, 1, found, "revealed", heat)
    energy = parts.energy
    if correction.temperature != 1.0:
        energy = energies.scaled(energy, 1.0 / correction.temperature)
    k = 2 if sampler.chooses.in_order else sampler.most  # the limit does not read it, and one would weigh nothing
    proposes: Positions = "masked" if parts.scope == "draft" else "revealed"
    return transitions(sampler.denoiser, length, energy, k, found, proposes, sampler.proposal.temperature)


def missing(sampler: Sampler) -> str:
    """Say why the law of a sampler cannot be enumerated, whatever the space.

    Args:
        sampler: any sampler.

    Returns:
        The reason; an empty text if it can.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> sampler = edlm.samplers.Sampler(hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 2))
        >>> edlm.enumeration.missing(sampler)
        ''
    """
    selection, (temperature, nucleus), again = sampler.chooses, sampler.proposal, sampler.remasking
    if again is not None and again.by_token:
        return f"the law of {str(again)!r} is not enumerated: it depends on earlier probabilities of tokens"
    plan = chances.as_rule(sampler.plan)
    inner = plan.within if isinstance(plan, DrawnBlocks) else plan
    reasons = {
        f"the law of a nucleus is not enumerated: {nucleus}": nucleus != 1.0,
        f"the law in order is enumerated at the denoiser's own temperature, not at {temperature}": (
            selection.in_order and temperature != 1.0
        ),
        f"the law of selection = {selection.name!r} is not known": selection.law is None,
        f"the law of candidates until an ESS is reached is not known: {sampler.candidates}": (
            not isinstance(sampler.candidates, int)
        ),
        f"the plan {sampler.plan} says nothing of its chances": (
            not (planning.is_rule(inner) or planning.is_random(inner))
        ),
        f"the law of a window is not enumerated: {list(sampler.window)}": tuple(sampler.window) != (0.0, 1.0),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def law_of(steps: Transitions, sampler: Sampler, length: int) -> Tensor:
    """Return the law of texts after the passes of a sampler's plan, from all masks.

    Args:
        steps: the transitions of its step.
        sampler: whose plan it is.
        length: tokens of a text, l.

    Returns:
        The probability of every text, float64 (m,) * l.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> sampler = edlm.samplers.Sampler(hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 2))
        >>> edlm.enumeration.law_of(edlm.enumeration.transitions_of(sampler, 2), sampler, 2).shape
        torch.Size([3, 3])
    """
    symbols = sampler.denoiser.mask_id
    mass = torch.zeros((symbols + 1) ** length, dtype=torch.float64)
    mass[-1] = 1.0  # all masks
    for chance in chances.of_passes(sampler, length, steps.before, steps.after):
        flow = mass[steps.before] * steps.law * chance
        mass = torch.zeros_like(mass).index_add(0, steps.after, flow)
    return mass.view((symbols + 1,) * length)[(slice(symbols),) * length]


@torch.no_grad()
def transitions(
    denoiser: Denoiser,
    length: int,
    energy: Energy | None,
    num_particles: int,
    choice: Law,
    proposes: Positions,
    proposal_temperature: float = 1.0,
) -> Transitions:
    """Enumerate every transition of a step that may reveal any set of masks, the empty one too: as for every grid.

    Args:
        denoiser: over m symbols, the mask's id m.
        length: tokens of a text.
        energy: what weighs; None: the plain sampler.
        num_particles: how many candidates.
        choice: the law of what is kept of them.
        proposes: candidates for all masks, or for what is revealed.
        proposal_temperature: of each token's law.

    Returns:
        The transitions.

    Raises:
        ValueError: as `law` does.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> from edlm.samplers import selections
        >>> denoiser = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 2)
        >>> choice = selections.of("sir").law
        >>> len(edlm.enumeration.transitions(denoiser, 2, None, 1, choice, "revealed").law)
        49
    """
    symbols = denoiser.mask_id
    _require_small(symbols, length)
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


def _require_known(sampler: Sampler) -> None:
    reason = missing(sampler)
    if reason:
        raise ValueError(f"{sampler}: {reason}")


def _require_small(symbols: int, length: int) -> None:
    arguments.require_whole("length", length)
    if (2 * symbols + 1) ** length > MOST_TRANSITIONS:
        raise ValueError(
            f"{symbols} symbols and length = {length} have {(2 * symbols + 1) ** length} transitions, more than "
            f"{MOST_TRANSITIONS} that can be enumerated"
        )


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


def _chosen(weighed: Sequence[tuple[Tensor, Tensor]], choice: Law, num_particles: int) -> list[Tensor]:
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
