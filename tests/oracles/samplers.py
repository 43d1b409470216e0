"""The law of every sampler at every number of steps, and what it keeps of k candidates."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from oracles.energies import EnergyFn, proposal_log_prob, zero_energy
from oracles.laws import agree, all_masked_states, all_sequences, fill, index_of, subsets, with_masks

Choose = Callable[[Tensor, Tensor], Tensor]  # log p, log w of d candidates (b, d) -> probability of each (b, d)


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
        for filled in [masked] if positions == "masked" else subsets(masked):
            candidates = fill(x_t, filled, symbols)  # (b, d, l)
            log_p = proposal_log_prob(marginals, candidates, x_t)
            log_w = torch.where(log_p > -torch.inf, -energy(candidates, x_t) / temperature, -torch.inf)
            law[rows, index_of(candidates, symbols + 1)] = choose(log_p, log_w)
    if positions == "masked":
        drafts = law[:, index_of(all_sequences(symbols, length), symbols + 1)]
        law = with_masks(drafts.unflatten(1, (symbols,) * length), length).flatten(1)
    return law * agree(states, states.unsqueeze(1), symbols)


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
