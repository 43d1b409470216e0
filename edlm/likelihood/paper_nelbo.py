"""The figure that Xu et al. 2025 report as a likelihood of their model, which bounds nothing."""

from typing import NamedTuple

import torch
from torch import Tensor

from edlm.contracts import Denoiser, Energy
from edlm.likelihood import nelbo, weighing
from edlm.process import particles
from edlm.process.schedules import Schedule

RELIABLE_STD = 3.0  # nats; beyond it the leave-one-out pair misses log Z by many nats (Deng et al. 2020)
WARNING = (
    "paper_nelbo is no bound: a joint correction does not fit its formula (two identical fair bits score half their"
    " entropy), and under the carry-over AR energy it is the AR model's own likelihood"
)


class Figure(NamedTuple):
    """Per row, (b,) each: the paper's figure in nats per scored token with either end of the pair around log Z.

    ess, log_weight_std: of the n drafts that log Z is estimated from.
    """

    lower: Tensor
    upper: Tensor
    ess: Tensor
    log_weight_std: Tensor


@torch.no_grad()
def figure(
    denoiser: Denoiser,
    energy: Energy,
    schedule: Schedule,
    x_0: Tensor,
    seed: Tensor,
    row: Tensor,
    *,
    num_particles: int,
    scored: Tensor | None = None,
) -> Figure:
    """Draw, once a row, the figure that Xu et al. 2025 report, which bounds nothing; see `WARNING`.

    `int w(t) E[ -log p_theta(x_0 | x_t) + E(x_0, x_t, t) + log Z(x_t) ] dt`, at a random pass as `nelbo.nelbo`,
    with log Z from n drafts: the pair of `particles.log_z_bounds`. Not to be relied on where the log-weights' standard
    deviation passes `RELIABLE_STD`. Arguments as of `bounds.of_sampler`.
    Raises ValueError for fewer than two particles or a row without a scored position.
    """
    if num_particles < 2:
        raise ValueError(f"num_particles = {num_particles} must be at least 2")
    x_t, t, masked = nelbo.before_random_pass(schedule, x_0, denoiser.mask_id, seed, row, scored)
    drawn = masked, int(masked.sum()), masked
    log_p, weighed = weighing.weigh(denoiser, energy, x_0, x_t, t, *drawn, num_particles, 1, seed, row, 1)
    drafts, data = particles.log_weights(weighed[:, :-1]), weighed[:, -1].double()
    lower, upper = particles.log_z_bounds(drafts)
    without = data - log_p.sum(-1)
    per_token = 1.0 / masked.sum(-1).double()
    return Figure(
        per_token * (without + lower),
        per_token * (without + upper),
        particles.ess(drafts),
        particles.log_weight_std(drafts),
    )
