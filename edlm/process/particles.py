"""Weights of the k candidates of a row, and rules that choose one of them.

Log-weights are float64 (b, k), unnormalised: `log w = -E / temperature`. Low energy means likely.
"""

import math

import torch
from torch import Tensor

from edlm.process import finite

COLDEST = 1e-100  # energies of any size that means something can be divided by it, and their squares be summed


def log_weights(energy: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute `log w = -E / temperature`, float64 (b, k), for draws from the proposal (Xu et al. 2025, alg. 1).

    Raises ValueError unless the temperature is finite and at least `COLDEST`.
    """
    finite.require_temperature("temperature", temperature, COLDEST)
    return -energy.to(torch.float64) / temperature


def ess(log_weights: Tensor) -> Tensor:
    """Compute the effective sample size `(sum w)^2 / sum w^2`, in [1, k], 0 if all weights are 0: (b, k) to (b,)."""
    over = log_weights - log_weights.amax(-1, keepdim=True)  # else large ones leave no digits for their differences
    log_ess = 2.0 * over.logsumexp(-1) - (2.0 * over).logsumexp(-1)
    return log_ess.exp().nan_to_num(0.0)


def log_weight_std(log_weights: Tensor, count: Tensor | None = None) -> Tensor:
    """Compute the standard deviation of the log-weights over particles (divisor k - 1; 0 for k = 1): (b, k) to (b,).

    Infinite if a weight is zero. count: int64 (b,), the number of a row's first entries that are particles; None: all.
    """
    k = log_weights.shape[-1]
    if count is None:
        count = torch.full_like(log_weights[:, 0], k, dtype=torch.int64)
    is_particle = torch.arange(k, device=log_weights.device) < count.unsqueeze(-1)
    mean = torch.where(is_particle, log_weights, 0.0).sum(-1, keepdim=True) / count.unsqueeze(-1)
    squares = torch.where(is_particle, (log_weights - mean).square(), 0.0).sum(-1)
    impossible = (is_particle & (log_weights == -torch.inf)).any(-1)
    return torch.where(impossible, torch.inf, (squares / (count - 1).clamp(min=1)).sqrt())


def sir(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Choose particle j with probability `w_j / sum w`: sampling importance resampling (Xu et al. 2025, alg. 1).

    log_weights (b, k), uniforms (b, k), of which only the first column is used. Returns int64 (b,): 0 for k = 1, and if
    every weight is zero.
    """
    weights = (log_weights - log_weights.amax(-1, keepdim=True).nan_to_num(neginf=0.0)).exp()
    cumulative = weights.cumsum(-1)
    # Compared with the same running sum, so a particle of weight zero adds no width and is never chosen.
    target = uniforms[:, :1] * cumulative[:, -1:]
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous(), right=False)
    last = last.clamp(max=cumulative.shape[-1] - 1)  # weights that are no numbers have no last one: see `finite`
    return torch.searchsorted(cumulative, target, right=True).minimum(last).squeeze(-1)


def imh(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Run independent Metropolis-Hastings over the particles: from the first, accept the next with `min(1, w' / w)`.

    log_weights (b, k), uniforms (b, k), of which the first column is not used. Returns int64 (b,). The proposals do not
    depend on the state, so all energies come from one call. Only this scan is sequential.
    """
    chosen = torch.zeros_like(log_weights[:, 0], dtype=torch.int64)
    current = log_weights[:, 0]
    for j in range(1, log_weights.shape[-1]):
        accepted = uniforms[:, j].log() < log_weights[:, j] - current
        chosen = torch.where(accepted, j, chosen)
        current = torch.where(accepted, log_weights[:, j], current)
    return chosen


def greedy(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Choose the particle of lowest energy, the first of several: (b, k) to int64 (b,). No uniform is used."""
    return log_weights.argmax(-1)


def log_mean_weight(log_weights: Tensor) -> Tensor:
    """Estimate log Z as `log (1/k sum w)` from k proposals: (b, k) to (b,). Jensen's inequality biases it low."""
    return log_weights.logsumexp(-1) - math.log(log_weights.shape[-1])


def log_z_bounds(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the leave-one-out pair around log Z, each (b,): `T_n` and `(2n - 1) T_n - 2 (n - 1) T_{n-1}`.

    `T_n` is the log of the mean of n weights, `T_{n-1}` its average over the n ways to leave one out. In expectation
    the pair encloses log Z as n grows (Deng et al. 2020, arXiv 2004.11714); it misses by many nats once the standard
    deviation of the log-weights passes about 3. Raises ValueError for fewer than two weights.
    """
    n = log_weights.shape[-1]
    if n < 2:
        raise ValueError(f"the leave-one-out pair needs at least 2 weights, got {n}")
    lower = log_mean_weight(log_weights)
    others = log_weights.unsqueeze(-2).masked_fill(
        torch.eye(n, dtype=torch.bool, device=log_weights.device), -torch.inf
    )
    leave_one_out = (others.logsumexp(-1) - math.log(n - 1)).mean(-1)
    return lower, (2 * n - 1) * lower - 2 * (n - 1) * leave_one_out
