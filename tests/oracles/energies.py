"""Exact energies of a law, of drafts and of transitions, and what they sum to."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from oracles.laws import all_sequences, at, filled, with_masks
from oracles.models import ar_log_prob, marginal_table

EnergyFn = Callable[[Tensor, Tensor], Tensor]  # candidates (b, k, l), x_t (b, l) -> nats (b, k)


def proposal_log_prob(marginals: Tensor, candidates: Tensor, x_t: Tensor) -> Tensor:
    """`log p_theta` of what the candidates fill in: table, (b, k, l), (b, l) to (b, k). A mask counts nothing."""
    mask_id = marginals.shape[-1] - 1
    log_p = at(marginals, x_t).unsqueeze(1).expand(*candidates.shape, -1)
    log_p = log_p.gather(-1, candidates.unsqueeze(-1)).squeeze(-1)
    return torch.where(filled(candidates, x_t, mask_id), log_p, 0.0).sum(-1)


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
        evidence = at(seen, x_t).unsqueeze(-1)
        uniform = -math.log(symbols) * filled(candidates, x_t, symbols).sum(-1, dtype=torch.float64)
        log_q = torch.where(evidence > -torch.inf, at(seen, candidates) - evidence, uniform)
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
            log_ar = torch.where(filled(x_0, x_t, symbols), log_ar, 0.0)
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
