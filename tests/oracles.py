"""Exact answers by enumeration, which judge the library and share no code with it.

A law over sequences is a float64 tensor (m,) * l of m symbols; the mask id is m, so `v = m + 1`. Small laws only
(m <= 4, l <= 6), except for the hidden Markov model, which is exact at any length. States are numbered in the order
of `all_masked_states`, sequences in that of `all_sequences`, which is the order of `law.flatten()`.

Convention: given visible tokens of probability zero, every completion is equally likely. A sampler can get there,
since tokens revealed together may be a pair that the data never show.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from edlm.contracts import CANDIDATES, ENERGY, HIDDEN, POSITIONS, X_T, T

EnergyFn = Callable[[Tensor, Tensor], Tensor]  # candidates (b, k, l), x_t (b, l) -> nats (b, k)
MarginalsFn = Callable[[Tensor], Tensor]  # x_t (b, l) -> log-probabilities (b, l, v)
Choose = Callable[[Tensor, Tensor], Tensor]  # log p, log w of d candidates (b, d) -> probability of each (b, d)


# ---- Laws of the data


def markov(initial: Tensor, transition: Tensor, length: int) -> Tensor:
    """Joint law of a Markov chain: initial (m,), transition (m, m) with rows that sum to 1."""
    law = initial
    for _ in range(length - 1):
        law = law.unsqueeze(-1) * transition
    return law


def random_markov(seed: int, symbols: int, length: int, strength: float = 2.0) -> Tensor:
    """A Markov law with noisy transitions around a random permutation: every symbol has a favourite successor.

    A larger strength makes neighbours depend on each other more; without the permutation some chains end in one symbol.
    """
    generator = torch.Generator().manual_seed(seed)
    initial = torch.randn(symbols, generator=generator, dtype=torch.float64).softmax(-1)
    noise = torch.randn(symbols, symbols, generator=generator, dtype=torch.float64)
    favourite = torch.eye(symbols, dtype=torch.float64)[torch.randperm(symbols, generator=generator)]
    return markov(initial, (noise + strength * favourite).softmax(-1), length)


def random_joint(seed: int, symbols: int, length: int, strength: float = 1.0) -> Tensor:
    """A law without any structure: the softmax of `strength` times independent normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    logits = strength * torch.randn(symbols**length, generator=generator, dtype=torch.float64)
    return logits.softmax(-1).reshape((symbols,) * length)


def two_fair_bits() -> Tensor:
    """Two identical fair bits: the smallest law that no factorised step can draw."""
    return torch.eye(2, dtype=torch.float64) / 2


# ---- Enumeration


def all_sequences(symbols: int, length: int) -> Tensor:
    """Every sequence of m symbols, last position fastest: int64 (m^l, l)."""
    digits = symbols ** torch.arange(length - 1, -1, -1)
    return torch.arange(symbols**length).unsqueeze(-1) // digits % symbols


def all_masked_states(symbols: int, length: int) -> Tensor:
    """Every sequence in which any position may be masked: int64 ((m + 1)^l, l)."""
    return all_sequences(symbols + 1, length)


def index_of(x: Tensor, symbols: int) -> Tensor:
    """Number of a sequence (..., l) among `all_sequences`; pass m + 1 for a state with masks."""
    return (x * symbols ** torch.arange(x.shape[-1] - 1, -1, -1, device=x.device)).sum(-1)


def empirical_law(tokens: Tensor, symbols: int) -> Tensor:
    """Frequencies of the sequences in a sample: tokens (b, l) to (m^l,)."""
    counts = torch.bincount(index_of(tokens, symbols).cpu(), minlength=symbols ** tokens.shape[-1])
    return counts.to(torch.float64) / tokens.shape[0]


def with_masks(law: Tensor, length: int) -> Tensor:
    """Append a mask to each of the last l axes, of m entries, that sums over it: `p(visible tokens)` of every state."""
    for axis in range(-length, 0):
        law = torch.cat([law, law.sum(axis, keepdim=True)], dim=axis)
    return law


def _at(table: Tensor, x: Tensor) -> Tensor:
    return table[x.unbind(-1)]


# ---- The ideal denoiser and the ideal autoregressive model


def posterior_marginals(joint: Tensor, x_t: Tensor) -> Tensor:
    """`log p(x_0^i | visible tokens of x_t)`: (..., l) to (..., l, v), all mass on a visible token itself."""
    symbols, length = joint.shape[0], joint.ndim
    seen = with_masks(joint, length)
    tokens = torch.arange(symbols + 1, device=x_t.device)
    own = torch.eye(length, dtype=torch.bool, device=x_t.device).unsqueeze(1)  # (l, 1, l)
    filled = torch.where(own, tokens[:symbols].unsqueeze(-1), x_t[..., None, None, :])  # (..., l, m, l)
    evidence = _at(seen, x_t)[..., None, None]
    masked_law = torch.where(evidence > 0, _at(seen, filled) / evidence, 1 / symbols)
    visible_law = (x_t.unsqueeze(-1) == tokens).to(joint.dtype)
    masked = (x_t == symbols).unsqueeze(-1)
    return torch.where(masked, F.pad(masked_law, (0, 1)), visible_law).log()


def marginal_table(joint: Tensor) -> Tensor:
    """`posterior_marginals` of every state: (v,) * l + (l, v), indexed by the l tokens of `x_t`."""
    states = all_masked_states(joint.shape[0], joint.ndim)
    return posterior_marginals(joint, states).unflatten(0, (joint.shape[0] + 1,) * joint.ndim)


def random_marginals(seed: int, symbols: int, length: int, strength: float = 1.0) -> Tensor:
    """An imperfect denoiser, as a table like `marginal_table`: random, consistent with no joint law."""
    generator = torch.Generator().manual_seed(seed)
    states = all_masked_states(symbols, length)
    logits = strength * torch.randn(*states.shape, symbols, generator=generator, dtype=torch.float64)
    visible_law = (states.unsqueeze(-1) == torch.arange(symbols + 1)).to(torch.float64)
    law = torch.where((states == symbols).unsqueeze(-1), F.pad(logits.softmax(-1), (0, 1)), visible_law)
    return law.log().unflatten(0, (symbols + 1,) * length)


def joint_posterior(joint: Tensor, x_t: Tensor) -> Tensor:
    """`log q(x_0 | x_t)` of every sequence: (b, l) to (b, m^l)."""
    agrees = _agree(all_sequences(joint.shape[0], joint.ndim), x_t.unsqueeze(-2), joint.shape[0])
    mass = agrees * joint.flatten()
    mass = torch.where(mass.sum(-1, keepdim=True) > 0, mass, agrees.to(joint.dtype))
    return (mass / mass.sum(-1, keepdim=True)).log()


def _agree(x: Tensor, x_t: Tensor, mask_id: int) -> Tensor:
    """Whether x has the visible tokens of x_t: two (..., l) to bool (...)."""
    return ((x == x_t) | (x_t == mask_id)).all(-1)


def ar_log_prob(joint: Tensor, x: Tensor) -> Tensor:
    """`log p(x_i | x_<i)` at each position: (..., l) to (..., l). Its sum over l is the log of the joint law."""
    symbols, length = joint.shape[0], joint.ndim
    given = torch.ones(length + 1, length, dtype=torch.bool, device=x.device).tril(-1)
    prefixes = torch.where(given, x.unsqueeze(-2), symbols)  # (..., l + 1, l)
    seen = _at(with_masks(joint, length), prefixes)
    return torch.where(seen[..., :-1] > 0, seen[..., 1:] / seen[..., :-1], 1 / symbols).log()


# ---- Energies


def proposal_log_prob(marginals: Tensor, candidates: Tensor, x_t: Tensor) -> Tensor:
    """`log p_theta` of what the candidates fill in: table, (b, k, l), (b, l) to (b, k). A mask counts nothing."""
    mask_id = marginals.shape[-1] - 1
    log_p = _at(marginals, x_t).unsqueeze(1).expand(*candidates.shape, -1)
    log_p = log_p.gather(-1, candidates.unsqueeze(-1)).squeeze(-1)
    return torch.where(_filled(candidates, x_t, mask_id), log_p, 0.0).sum(-1)


def _filled(candidates: Tensor, x_t: Tensor, mask_id: int) -> Tensor:
    return (x_t == mask_id).unsqueeze(-2) & (candidates != mask_id)


def _minus_log_ratio(log_target: Tensor, log_proposal: Tensor) -> Tensor:
    """`-(log target - log proposal)`, +inf where the target is zero, even if the proposal is zero there too."""
    return torch.where(log_target == -torch.inf, torch.inf, log_proposal - log_target)


def zero_energy(candidates: Tensor, x_t: Tensor) -> Tensor:
    """Leave the denoiser as it is: 0 everywhere, float64 (b, k)."""
    return torch.zeros(candidates.shape[:-1], dtype=torch.float64, device=x_t.device)


def residual_energy(joint: Tensor, marginals: Tensor | None = None) -> EnergyFn:
    """`E = -log [ q(x^C | x_t) / prod_{i in C} p_i(x^i | x_t) ]` with C the positions that a candidate fills in.

    For whole drafts it is the residual energy, for a candidate with masks the energy of the transition; Z = 1 either
    way. The p_i are the exact marginals unless a table is given. Candidates must keep the visible tokens of x_t.
    """
    symbols = joint.shape[0]
    seen = with_masks(joint, joint.ndim).log()
    table = marginal_table(joint) if marginals is None else marginals

    def energy(candidates: Tensor, x_t: Tensor) -> Tensor:
        evidence = _at(seen, x_t).unsqueeze(-1)
        uniform = -math.log(symbols) * _filled(candidates, x_t, symbols).sum(-1, dtype=torch.float64)
        log_q = torch.where(evidence > -torch.inf, _at(seen, candidates) - evidence, uniform)
        return _minus_log_ratio(log_q, proposal_log_prob(table, candidates, x_t))

    return energy


def ar_energy(ar: Tensor, marginals: Tensor, carry_over: bool) -> EnergyFn:
    """Energy of an autoregressive model, given as its joint law, against a denoiser, given as a table.

    Posterior form: `E = -log p_AR(x_0) + log p_theta(x_0 | x_t)`, so `Z(x_t) = p_AR(visible tokens)`. Carry-over form:
    only masked positions count in the first term too, and Z = 1.
    """
    symbols = ar.shape[0]

    def energy(x_0: Tensor, x_t: Tensor) -> Tensor:
        log_ar = ar_log_prob(ar, x_0)
        if carry_over:
            log_ar = torch.where(_filled(x_0, x_t, symbols), log_ar, 0.0)
        return _minus_log_ratio(log_ar.sum(-1), proposal_log_prob(marginals, x_0, x_t))

    return energy


def log_z(marginals: Tensor, energy: EnergyFn, x_t: Tensor, reveal: Tensor | None = None) -> Tensor:
    """`log sum_x p_theta(x | x_t) exp(-E(x, x_t))`: (b, l) to (b,).

    reveal: bool (b, l), the positions that candidates fill in, every mask if not given.
    """
    symbols = marginals.shape[-1] - 1
    masked = x_t == symbols
    drafts = torch.where(masked.unsqueeze(1), all_sequences(symbols, x_t.shape[-1]), x_t.unsqueeze(1))  # (b, m^l, l)
    repeats = math.log(symbols) * (~masked).sum(-1, keepdim=True, dtype=torch.float64)  # a draft occurs m^visible times
    # Positions outside `reveal` are summed out by summing over whole drafts.
    candidates = drafts if reveal is None else torch.where(reveal.unsqueeze(1), drafts, x_t.unsqueeze(1))
    log_p = proposal_log_prob(marginals, drafts, x_t) - repeats
    terms = torch.where(log_p == -torch.inf, -torch.inf, log_p - energy(candidates, x_t))
    return terms.logsumexp(-1)


# ---- Samplers


def sir(num_particles: int) -> Choose:
    """Law of the candidate that SIR keeps: `k p(x) E[ w(x) / (w(x) + sum_{j=2..k} w(x_j)) ]`, independent x_j ~ p.

    Enumerates d^k tuples. One particle is the plain sampler. If no particle has any weight each is as good as another.
    """

    def choose(log_p: Tensor, log_w: Tensor) -> Tensor:
        others_p, others_w = torch.zeros_like(log_p[:, :1]), torch.full_like(log_p[:, :1], -torch.inf)
        for _ in range(num_particles - 1):
            others_p = (others_p.unsqueeze(-1) + log_p.unsqueeze(1)).flatten(1)
            others_w = torch.logaddexp(others_w.unsqueeze(-1), log_w.unsqueeze(1)).flatten(1)
        total = torch.logaddexp(log_w.unsqueeze(-1), others_w.unsqueeze(1))  # (b, d, d^(k - 1))
        share = torch.where(total > -torch.inf, (log_w.unsqueeze(-1) - total).exp(), 1 / num_particles)
        return num_particles * log_p.exp() * (share * others_p.exp().unsqueeze(1)).sum(-1)

    return choose


def sir_by_quadrature(num_particles: int) -> Choose:
    """Law of `sir` for any k and many candidates, at least two particles and positive weights, to about 1e-7.

    `E[ 1 / (w + sum_{j=2..k} w_j) ] = int_0^inf exp(-s w) (E exp(-s w_j))^(k - 1) ds`, by the trapezoid rule in log s.
    """
    step = 0.5
    s = torch.arange(-28.0, 18.0, step, dtype=torch.float64).exp()

    def choose(log_p: Tensor, log_w: Tensor) -> Tensor:
        decay = (-s * log_w.exp().unsqueeze(-1)).exp()  # (b, d, nodes)
        others = (log_p.exp().unsqueeze(-1) * decay).sum(1, keepdim=True) ** (num_particles - 1)
        return num_particles * (log_p + log_w).exp() * step * (s * decay * others).sum(-1)

    return choose


def imh(num_particles: int) -> Choose:
    """Law of an independent Metropolis-Hastings chain after k - 1 moves: start at p, accept with `min(1, w' / w)`."""

    def choose(log_p: Tensor, log_w: Tensor) -> Tensor:
        # From one candidate without any weight to another: both are draws of p, so accepting is as good as not.
        accept = (log_w.unsqueeze(1) - log_w.unsqueeze(2)).nan_to_num(nan=0.0).clamp(max=0.0).exp()  # (b, from, to)
        law = log_p.exp()
        for _ in range(num_particles - 1):
            flow = law.unsqueeze(2) * accept * log_p.exp().unsqueeze(1)
            law = law - flow.sum(2) + flow.sum(1)
        return law

    return choose


def adaptive_sir(sizes: list[int], target_ess: float) -> Choose:
    """SIR among as many draws as it takes: the first of the sizes whose ESS reaches the target, or the last."""

    def choose(log_p: Tensor, log_w: Tensor) -> Tensor:
        draws = all_sequences(log_p.shape[1], sizes[-1])  # (m, k), every outcome of k draws
        probability = log_p[:, draws].sum(-1).exp()  # (b, m)
        law, going_on = torch.zeros_like(log_p), torch.ones_like(probability, dtype=torch.bool)
        for size in sizes:
            weights = log_w[:, draws[:, :size]].exp()  # (b, m, size)
            ess = weights.sum(-1).square() / weights.square().sum(-1)
            stops = going_on & ((ess >= target_ess) | (size == sizes[-1]))
            chosen = torch.where(stops, probability, 0.0).unsqueeze(-1) * weights / weights.sum(-1, keepdim=True)
            law = law.scatter_add(1, draws[:, :size].flatten().expand(len(law), -1), chosen.flatten(1))
            going_on = going_on & ~stops
        return law

    return choose


SIR_PAIR = sir(2)


def reveal_law(
    marginals: Tensor,
    energy: EnergyFn = zero_energy,
    choose: Choose = SIR_PAIR,
    positions: Literal["masked", "revealed"] = "masked",
    temperature: float = 1.0,
) -> Tensor:
    """What a step writes, given where: row x_t, column x_s, (v^l, v^l).

    The entry is `p(tokens of x_s on S | x_t, S)` with S the masks of x_t that x_s has filled in; it is zero unless x_s
    comes from x_t by filling in masks. Candidates fill in all masks ("masked") or S only ("revealed"). Without an
    energy, whatever the choice, it is the plain sampler.
    """
    symbols, length = marginals.shape[-1] - 1, marginals.shape[-2]
    states = all_masked_states(symbols, length)
    law = torch.zeros(len(states), len(states), dtype=torch.float64)
    for masked in all_sequences(2, length).bool():
        rows = ((states == symbols) == masked).all(-1).nonzero()  # (b, 1), the states with these masks
        x_t = states[rows.squeeze(-1)]
        for filled in [masked] if positions == "masked" else _subsets(masked):
            candidates = _fill(x_t, filled, symbols)  # (b, d, l)
            log_p = proposal_log_prob(marginals, candidates, x_t)
            log_w = torch.where(log_p > -torch.inf, -energy(candidates, x_t) / temperature, -torch.inf)
            law[rows, index_of(candidates, symbols + 1)] = choose(log_p, log_w)
    if positions == "masked":
        drafts = law[:, index_of(all_sequences(symbols, length), symbols + 1)]
        law = with_masks(drafts.unflatten(1, (symbols,) * length), length).flatten(1)
    return law * _agree(states, states.unsqueeze(1), symbols)


def _subsets(of: Tensor) -> Tensor:
    chosen = all_sequences(2, len(of)).bool()
    return chosen[~(chosen & ~of).any(-1)]


def _fill(x_t: Tensor, positions: Tensor, symbols: int) -> Tensor:
    """Every way to fill in the positions, bool (l,): (b, l) to (b, m^|positions|, l)."""
    tokens = all_sequences(symbols, int(positions.sum()))
    filled = x_t.unsqueeze(1).repeat(1, len(tokens), 1)
    filled[..., positions] = tokens
    return filled


def _num_masks(reveal: Tensor, length: int) -> Tensor:
    symbols = round(len(reveal) ** (1 / length)) - 1
    return (all_masked_states(symbols, length) == symbols).sum(-1).to(torch.float64)


def step_law(reveal: Tensor, length: int, probability: float) -> Tensor:
    """One step `x_t -> x_s`, (v^l, v^l), rows sum to 1: each mask is revealed with the probability, independently.

    reveal: of `reveal_law`; probability: `(alpha_s - alpha_t) / (1 - alpha_t)`, in (0, 1].
    """
    masks = _num_masks(reveal, length)
    # p^(n_t - n_s) (1 - p)^n_s, with n masks in a state.
    return probability ** masks.unsqueeze(1) * reveal * ((1.0 - probability) / probability) ** masks


def sampler_law(
    marginals: Tensor,
    alphas: Tensor,
    energy: EnergyFn = zero_energy,
    choose: Choose = SIR_PAIR,
    positions: Literal["masked", "revealed"] = "masked",
    *,
    temperature: float = 1.0,
    window: tuple[float, float] = (0.0, 1.0),
    times: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Law of what the T-step sampler returns, (m^l,).

    alphas: (T + 1,) from 0 up to exactly 1; times: (T + 1,) of the same grid, `1 - alpha` if not given. A step whose
    own start time lies outside the closed window is plain. start: state (l,) to begin with, all masks if not given.
    """
    symbols, length = marginals.shape[-1] - 1, marginals.shape[-2]
    assert alphas[0] == 0
    assert alphas[-1] == 1
    assert (alphas.diff() > 0).all()
    times = 1.0 - alphas if times is None else times
    start = torch.full((length,), symbols) if start is None else start
    plain = reveal_law(marginals, choose=sir(1))
    corrected = reveal_law(marginals, energy, choose, positions, temperature)
    mass = F.one_hot(index_of(start, symbols + 1), len(plain)).to(torch.float64)
    for t, alpha_t, alpha_s in zip(times[:-1].tolist(), alphas[:-1].tolist(), alphas[1:].tolist(), strict=True):
        reveal = corrected if window[0] <= t <= window[1] else plain
        mass = mass @ step_law(reveal, length, (alpha_s - alpha_t) / (1.0 - alpha_t))
    return mass[index_of(all_sequences(symbols, length), symbols + 1)]


def first_hitting_law(
    marginals: Tensor,
    energy: EnergyFn = zero_energy,
    choose: Choose = SIR_PAIR,
    positions: Literal["masked", "revealed"] = "masked",
    temperature: float = 1.0,
) -> Tensor:
    """Limit of `sampler_law` for ever finer grids, (m^l,): one mask at a time, each as likely to be the next."""
    symbols, length = marginals.shape[-1] - 1, marginals.shape[-2]
    reveal = reveal_law(marginals, energy, choose, positions, temperature)
    masks = _num_masks(reveal, length)
    step = reveal * (masks.unsqueeze(1) - masks == 1) / masks.clamp(min=1.0).unsqueeze(1)
    mass = F.one_hot(torch.tensor(len(reveal) - 1), len(reveal)).to(torch.float64)  # the last state is all masks
    for _ in range(length):
        mass = mass @ step
    return mass[index_of(all_sequences(symbols, length), symbols + 1)]


# ---- Distances and likelihoods


def entropy(law: Tensor) -> Tensor:
    """`-sum p log p` in nats, a scalar; the law may have any shape."""
    return -torch.special.xlogy(law, law).sum()


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """`1/2 sum |p - q|` of two laws, flat or not."""
    return (p.flatten() - q.flatten()).abs().sum() / 2


def kl(p: Tensor, q: Tensor) -> Tensor:
    """`sum p log(p / q)` in nats of two laws, flat or not; infinite where q misses a part of p."""
    p, q = p.flatten(), q.flatten()
    return torch.where(p > 0, torch.special.xlogy(p, p / q), 0.0).sum()


def expectation(law: Tensor, values: Tensor) -> Tensor:
    """`sum p(x) f(x)` with f given for `all_sequences`, (m^l,); a value where p is zero does not count."""
    return torch.where(law.flatten() > 0, law.flatten() * values, 0.0).sum()


def exact_nll(law: Tensor, x: Tensor) -> Tensor:
    """`-log law(x)`: law flat or not, x (..., l) to nats (...)."""
    symbols = round(law.numel() ** (1 / x.shape[-1]))
    return -law.flatten()[index_of(x, symbols)].log()


def _masked_nll(marginals: Tensor, x_0: Tensor) -> tuple[Tensor, Tensor]:
    """`sum_{i masked} -log p_i(x_0^i | x_t)` of every set of masks, (b, 2^l), and the number of masks, (2^l,)."""
    masked = all_sequences(2, x_0.shape[-1]).bool()
    x_t = torch.where(masked, marginals.shape[-1] - 1, x_0.unsqueeze(1))  # (b, 2^l, l)
    nll = -proposal_log_prob(marginals, x_0.unsqueeze(1).expand_as(x_t).flatten(0, 1).unsqueeze(1), x_t.flatten(0, 1))
    return nll.view(x_t.shape[:2]), masked.sum(-1).to(torch.float64)


def nelbo(marginals: Tensor, x_0: Tensor) -> Tensor:
    """Continuous-time NELBO: table, (b, l) to nats (b,). Whatever the schedule, `sum over masks of nll / (n C(l, n))`.

    The weight of n masks is `int alpha^(l - n) (1 - alpha)^(n - 1) d alpha`, that of a uniformly random order.
    """
    nll, n = _masked_nll(marginals, x_0)
    length = torch.tensor(x_0.shape[-1], dtype=torch.float64)
    weight = torch.where(n > 0, (torch.lgamma(length - n + 1) + torch.lgamma(n) - torch.lgamma(length + 1)).exp(), 0.0)
    return _weighted(weight, nll)


def t_step_nelbo(marginals: Tensor, alphas: Tensor, x_0: Tensor) -> Tensor:
    """T-step NELBO, a bound of the plain T-step sampler's own NLL: table, (T + 1,), (b, l) to nats (b,).

    `sum_steps (alpha_s - alpha_t) / (1 - alpha_t) E_{x_t}[ sum_{i masked} -log p_i ]`; alphas from 0 up to exactly 1.
    """
    nll, n = _masked_nll(marginals, x_0)
    alpha_t, alpha_s = alphas[:-1].unsqueeze(-1), alphas[1:].unsqueeze(-1)
    probability = alpha_t ** (x_0.shape[-1] - n) * (1 - alpha_t) ** n  # (T, 2^l)
    return _weighted(((alpha_s - alpha_t) / (1 - alpha_t) * probability).sum(0), nll)


def sampler_nelbo(
    marginals: Tensor,
    alphas: Tensor,
    energy: EnergyFn,
    num_particles: int,
    num_completions: int,
    x_0: Tensor,
    window: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Bound of the NLL of the T-step SIR sampler, in expectation: table, (T + 1,), energy, x_0 (l,) to nats ().

    `E_plan sum_steps [ sum_{i in S} -log p_i - E log( k/m sum_m w_m / (w_m + sum_j w_j) ) ]`: every set of masks, every
    set S revealed, every tuple of completions and of rivals; an empty step reveals nothing and is not taken.
    """
    symbols, length = marginals.shape[-1] - 1, len(x_0)
    total = torch.zeros((), dtype=torch.float64)
    for masked in all_sequences(2, length).bool():
        x_t = torch.where(masked, symbols, x_0).unsqueeze(0)
        candidates = _fill(x_t, masked, symbols)  # (1, d, l)
        log_p = proposal_log_prob(marginals, candidates, x_t)[0]
        log_w = torch.where(log_p > -torch.inf, -energy(candidates, x_t)[0], -torch.inf)
        for revealed in _subsets(masked)[1:]:  # the first one is empty
            own = (candidates[0][:, revealed] == x_0[revealed]).all(-1)
            log_p_own = log_p[own]
            plain = -torch.logsumexp(log_p_own, 0)
            gain = _expected_gain(log_p, log_w, log_p_own + plain, log_w[own], num_particles, num_completions)
            for alpha_t, alpha_s in zip(alphas[:-1].tolist(), alphas[1:].tolist(), strict=True):
                n, r, p = int(masked.sum()), int(revealed.sum()), (alpha_s - alpha_t) / (1 - alpha_t)
                chance = alpha_t ** (length - n) * (1 - alpha_t) ** n * p**r * (1 - p) ** (n - r)
                corrected = window[0] <= 1 - alpha_t <= window[1]
                if chance > 0:
                    total = total + chance * (plain - gain * corrected)
    return total


def _expected_gain(log_p: Tensor, log_w: Tensor, own_p: Tensor, own_w: Tensor, k: int, m: int) -> Tensor:
    """`E log( k/m sum_m w_m / (w_m + sum_j w_j) )` over k - 1 rivals of (d,) and m completions of (c,)."""
    rivals = all_sequences(len(log_p), k - 1) if k > 1 else torch.zeros(1, 0, dtype=torch.int64)
    completions = all_sequences(len(own_p), m)
    total = torch.logaddexp(own_w[completions].unsqueeze(1), log_w[rivals].logsumexp(-1)[:, None])  # (c^m, d^(k-1), m)
    share = torch.where(total > -torch.inf, own_w[completions].unsqueeze(1) - total, -math.log(k)).logsumexp(-1)
    chance = (own_p[completions].sum(-1).unsqueeze(-1) + log_p[rivals].sum(-1)).exp()
    return torch.where(chance > 0, chance * (share + math.log(k / m)), 0.0).sum()


def _weighted(weight: Tensor, values: Tensor) -> Tensor:
    """Sum of weight times value where a weight of zero removes even an infinite value: (n,), (b, n) to (b,)."""
    return torch.where(weight > 0, weight * values, 0.0).sum(-1)


# ---- Long sequences


class HiddenMarkov(NamedTuple):
    """A hidden Markov law, positive everywhere: initial (h,), transition (h, h), emission (h, m); rows sum to 1."""

    initial: Tensor
    transition: Tensor
    emission: Tensor


def random_hidden_markov(seed: int, hidden: int, symbols: int, strength: float = 2.0) -> HiddenMarkov:
    """A random hidden Markov law; a larger strength makes it less noisy."""
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(hidden, n, generator=generator, dtype=torch.float64) for n in (1, hidden, symbols)]
    return HiddenMarkov(
        logits[0].squeeze(-1).softmax(-1), (strength * logits[1]).softmax(-1), (strength * logits[2]).softmax(-1)
    )


def hmm_sample(hmm: HiddenMarkov, generator: torch.Generator, b: int, length: int) -> Tensor:
    """Draw b sequences: int64 (b, l)."""
    tokens = []
    law = hmm.initial.expand(b, -1)
    for _ in range(length):
        state = torch.multinomial(law, 1, generator=generator).squeeze(-1)
        tokens.append(torch.multinomial(hmm.emission[state], 1, generator=generator))
        law = hmm.transition[state]
    return torch.cat(tokens, dim=-1)


def _evidence(hmm: HiddenMarkov, x: Tensor) -> Tensor:
    """`p(token | hidden state)`, 1 at a mask: (..., l) to (..., l, h)."""
    return F.pad(hmm.emission, (0, 1), value=1.0).T[x]


def _forward(hmm: HiddenMarkov, evidence: Tensor) -> tuple[Tensor, Tensor]:
    """`p(h_i | visible tokens before i)`, (..., l, h), and the log-probability of all visible tokens, (...)."""
    predictions, log_norms = [], []
    law = hmm.initial.expand(evidence[..., 0, :].shape)
    for likelihood in evidence.unbind(-2):
        predictions.append(law)
        filtered = law * likelihood
        norm = filtered.sum(-1, keepdim=True)
        log_norms.append(norm.log())
        law = filtered / norm @ hmm.transition
    return torch.stack(predictions, -2), torch.cat(log_norms, -1).sum(-1)


def _backward(hmm: HiddenMarkov, evidence: Tensor) -> Tensor:
    """`p(visible tokens after i | h_i)`, up to a factor per position: (..., l, h)."""
    messages = [torch.ones_like(evidence[..., 0, :])]
    for likelihood in evidence[..., 1:, :].flip(-2).unbind(-2):
        message = (likelihood * messages[-1]) @ hmm.transition.T
        messages.append(message / message.sum(-1, keepdim=True))
    return torch.stack(messages[::-1], -2)


def hmm_log_prob(hmm: HiddenMarkov, x: Tensor) -> Tensor:
    """`log p(visible tokens)`, masks summed out: (..., l) to (...)."""
    return _forward(hmm, _evidence(hmm, x))[1]


def hmm_posterior_marginals(hmm: HiddenMarkov, x_t: Tensor) -> Tensor:
    """`posterior_marginals` of a hidden Markov law, by the forward-backward algorithm: (..., l) to (..., l, v)."""
    evidence = _evidence(hmm, x_t)
    smoothed = _forward(hmm, evidence)[0] * _backward(hmm, evidence)
    masked_law = smoothed / smoothed.sum(-1, keepdim=True) @ hmm.emission
    visible_law = (x_t.unsqueeze(-1) == torch.arange(hmm.emission.shape[1] + 1, device=x_t.device)).to(evidence.dtype)
    masked = (x_t == hmm.emission.shape[1]).unsqueeze(-1)
    return torch.where(masked, F.pad(masked_law, (0, 1)), visible_law).log()


def hmm_residual_energy(hmm: HiddenMarkov) -> EnergyFn:
    """`residual_energy` of a hidden Markov law against its exact marginals; a candidate may contain masks."""
    mask_id = hmm.emission.shape[1]

    def energy(candidates: Tensor, x_t: Tensor) -> Tensor:
        log_p = hmm_posterior_marginals(hmm, x_t).unsqueeze(1).expand(*candidates.shape, -1)
        log_p = log_p.gather(-1, candidates.unsqueeze(-1)).squeeze(-1)
        log_p = torch.where(_filled(candidates, x_t, mask_id), log_p, 0.0).sum(-1)
        return log_p - (hmm_log_prob(hmm, candidates) - hmm_log_prob(hmm, x_t).unsqueeze(-1))

    return energy


# ---- The library's contracts


class Lookup(nn.Module):
    """A table over all states as a function of the state, on whatever device the module is moved to."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, x: Tensor) -> Tensor:
        """Look up states (..., l): for the table (v,) * l + (...) the entries (..., ...)."""
        return _at(self.table, x)


class OracleDenoiser(TensorDictModuleBase):
    """A `Denoiser` whose hidden states are the log-probabilities (n, v) themselves.

    Small law: pass `Lookup(marginal_table(joint))`; hidden Markov law: `partial(hmm_posterior_marginals, hmm)`.
    """

    def __init__(self, marginals: MarginalsFn, mask_id: int, max_length: int = 1024) -> None:
        super().__init__()
        self.in_keys, self.out_keys = [X_T, T, POSITIONS], [HIDDEN]
        self.marginals = marginals
        self.mask_id, self.vocab_size, self.max_length = mask_id, mask_id + 1, max_length

    def forward(self, tensordict: TensorDict) -> TensorDict:
        """Write the log-probabilities of the flat positions; a padded position gets the uniform law."""
        log_p = self.marginals(tensordict[X_T]).flatten(0, 1)
        padding = F.pad(log_p.new_zeros(1, self.mask_id), (0, 1), value=-torch.inf)
        return tensordict.set(HIDDEN, torch.cat([log_p, padding])[tensordict[POSITIONS]])

    def logits(self, hidden: Tensor) -> Tensor:
        """Return them unchanged: (n, v)."""
        return hidden


class OracleEnergy(TensorDictModuleBase):
    """An `Energy` computed by a function of candidates (b, k, l) and x_t (b, l)."""

    def __init__(self, energy: EnergyFn) -> None:
        super().__init__()
        self.in_keys, self.out_keys = [CANDIDATES, X_T], [ENERGY]
        self.energy = energy

    def forward(self, tensordict: TensorDict) -> TensorDict:
        """Write the energies (b, k)."""
        return tensordict.set(ENERGY, self.energy(tensordict[CANDIDATES], tensordict[X_T]))
