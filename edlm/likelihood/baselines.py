"""Bounds of D3PM and SEDD."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from edlm import contracts
from edlm.likelihood import nelbo
from edlm.models.denoisers import D3pmDenoiser, SeddDenoiser
from edlm.process import absorbing, categorical, finite, noise, schedules
from edlm.process.noise import Stream
from edlm.process.schedules import Schedule
from edlm.samplers.baselines import Reverse, alpha_after, asked, masks_of, sum_of_rows, visible_share, without_mask


@torch.no_grad()
def t_step_nelbo(
    kernel: Reverse, x_0: Tensor, seed: Tensor, row: Tensor, num_steps: int, scored: Tensor | None = None
) -> Tensor:
    """Draw one unbiased value per row of an upper bound of `-log p(x_0)` of `sample` in so many steps: float64 (b,).

    `T sum_{i masked} KL( q(x_s | x_t, x_0) || p(x_s | x_t) )` of one of the T steps, in nats per scored token; infinite
    if a mask that should stay has no probability of it, which large scores of SEDD can bring about. Steps are
    stratified over the rows of the call. scored: bool (b, l), at least one of a row; the others are given. None: all.
    Raises ValueError if num_steps < 1, or for a row without a scored position.
    """
    nelbo.check_scored(scored)
    grid = schedules.uniform_grid(num_steps).to(x_0.device)
    step = (nelbo.strata(seed, row) * num_steps).long().clamp(max=num_steps - 1)
    t, s = grid[step], grid[step + 1]
    wanted = torch.ones_like(x_0, dtype=torch.bool) if scored is None else scored
    uniforms = noise.grid(seed, row, 0, Stream.EVALUATION, x_0.shape[1])
    x_t = absorbing.corrupt(x_0, visible_share(kernel.schedule, t), uniforms, kernel.denoiser.mask_id, keep=~wanted)
    positions, owner = masks_of(x_t, kernel.denoiser.mask_id)
    hidden = kernel.denoiser(asked(x_t, t, positions))[contracts.HIDDEN]
    alpha_t, alpha_s = kernel.schedule.alpha(t)[owner], alpha_after(kernel.schedule, s)[owner]
    divergence = partial(_divergence, kernel)
    divergences = _in_tiles(divergence, kernel.denoiser, hidden, x_0.flatten()[positions], alpha_t, alpha_s)
    return num_steps * sum_of_rows(divergences, owner, len(x_0)) / wanted.sum(1)


@torch.no_grad()
def score_entropy(
    denoiser: SeddDenoiser, schedule: Schedule, x_0: Tensor, seed: Tensor, row: Tensor, scored: Tensor | None = None
) -> Tensor:
    """Draw one unbiased value per row of SEDD's bound of `-log p(x_0)` in continuous time (Lou et al. 2023, th. 3.6).

    With `s_y = alpha / (1 - alpha) a_y`, the score entropy is the NELBO's weight times `sum_y a_y - 1 - log a_{x_0}`
    per masked position: that of a normalised law, `-log p_{x_0}`, and `A - 1 - log A >= 0` for a sum A other than 1.
    Drawn before a random pass as `nelbo.nelbo` is, which it equals where A = 1. Nats per scored token, float64
    (b,).
    scored: bool (b, l), the positions that count, at least one of a row; the others are given. None: all.
    Raises ValueError for a row without a scored position.
    """
    x_t, t, masked = nelbo.before_random_pass(schedule, x_0, denoiser.mask_id, seed, row, scored)
    positions, owner = masks_of(x_t, denoiser.mask_id)
    hidden = denoiser(asked(x_t, t, positions))[contracts.HIDDEN]
    entropy, tokens = partial(_entropy, denoiser), x_0.flatten()[positions]
    entropies = _in_tiles(entropy, denoiser, hidden, tokens, schedule.alpha(t)[owner])
    return sum_of_rows(entropies, owner, len(x_0)) / masked.sum(1)


def _in_tiles(work: Callable[..., Tensor], denoiser: D3pmDenoiser | SeddDenoiser, *columns: Tensor) -> Tensor:
    """Compute what the work gives for columns (n, ...), with no more at once in the vocabulary than is good."""
    rows = categorical.rows_at_once(denoiser.vocab_size, columns[0].device)
    found = torch.cat([work(*tile) for tile in zip(*(column.split(rows) for column in columns), strict=True)])
    finite.require_log_prob(found)
    return found


def _divergence(kernel: Reverse, hidden: Tensor, token: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """`KL( q(x_s | x_t, x_0) || p(x_s | x_t) )` of each masked position: (n,)."""
    log_law = kernel.log_law(hidden, alpha_t, alpha_s)
    stay, own = log_law[:, kernel.denoiser.mask_id], log_law.gather(-1, token.unsqueeze(-1)).squeeze(-1)
    reveal = (alpha_s - alpha_t) / (1.0 - alpha_t)
    moved = torch.where(reveal > 0.0, reveal * (reveal.log() - own), 0.0)
    return moved + torch.where(reveal < 1.0, (1.0 - reveal) * (torch.log1p(-reveal) - stay), 0.0)


def _entropy(denoiser: SeddDenoiser, hidden: Tensor, token: Tensor, alpha: Tensor) -> Tensor:
    """`sum_y a_y - 1 - log a_{x_0}` of each masked position: (n,)."""
    log_score = denoiser.log_score(hidden, alpha).double()
    log_a = without_mask(log_score, denoiser.mask_id) - alpha.logit().unsqueeze(-1)
    return log_a.logsumexp(-1).exp() - 1.0 - log_a.gather(-1, token.unsqueeze(-1)).squeeze(-1)
