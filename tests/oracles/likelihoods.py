"""Distances between laws, likelihoods, and bounds of them."""

import math

import torch
from torch import Tensor

from oracles.energies import EnergyFn, proposal_log_prob
from oracles.laws import all_sequences, fill, index_of, subsets


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
        candidates = fill(x_t, masked, symbols)  # (1, d, l)
        log_p = proposal_log_prob(marginals, candidates, x_t)[0]
        log_w = torch.where(log_p > -torch.inf, -energy(candidates, x_t)[0], -torch.inf)
        for revealed in subsets(masked)[1:]:  # the first one is empty
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
