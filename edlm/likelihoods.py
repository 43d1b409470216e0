"""What may be claimed of a model: estimates of likelihood bounds, each with its error and its number of rows."""

import math
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from edlm import absorbing, categorical, contracts, noise
from edlm.contracts import Denoiser
from edlm.noise import Stream
from edlm.schedules import Schedule


class Estimate(NamedTuple):
    """A mean over n independent rows with its standard error, in nats per token."""

    mean: float
    standard_error: float
    n: int

    @property
    def bits(self) -> float:
        """The mean in bits: bits per character for a character vocabulary."""
        return self.mean / math.log(2)

    @property
    def bits_error(self) -> float:
        """The standard error in bits."""
        return self.standard_error / math.log(2)

    @property
    def perplexity(self) -> float:
        """`exp(mean)`."""
        return math.exp(self.mean)


def estimate(values: Tensor) -> Estimate:
    """Mean and standard error of per-row values (n,). Raises ValueError for fewer than two rows."""
    if values.numel() < 2:
        raise ValueError(f"an error bar needs at least 2 rows, got {values.numel()}")
    values = values.double()
    return Estimate(float(values.mean()), float(values.std() / math.sqrt(values.numel())), values.numel())


@torch.no_grad()
def nelbo(denoiser: Denoiser, schedule: Schedule, x_0: Tensor, seed: Tensor, row: Tensor) -> Tensor:
    """One unbiased draw per row of the continuous-time NELBO, in nats per token: x_0 (b, l) to float64 (b,).

    A text is revealed one position at a time in the order of its reveal times, so the bound is a sum over l passes;
    a pass r is drawn uniformly, and given the state before it each of its m masked positions is equally likely to be
    next: `l * (1/m) sum_{i masked} -log p_i(x_0^i | x_t) / l`. No time is truncated, and unlike the weight 1/t this
    has a finite variance. Passes are stratified over the rows of the call. Equal in expectation to section 3 of
    Sahoo et al. 2024 for every schedule that runs from alpha = 1 to 0.
    """
    uniforms = noise.grid(seed, row, 0, Stream.EVALUATION, x_0.shape[1])
    x_t, t, masked = _before_random_pass(uniforms, x_0, schedule, denoiser.mask_id, _strata(seed, row))
    return _mean_over_masks(denoiser, x_0, x_t, t, masked)


@torch.no_grad()
def masked_nll(denoiser: Denoiser, schedule: Schedule, x_0: Tensor, t: Tensor, seed: Tensor, row: Tensor) -> Tensor:
    """Mean of `-log p_i(x_0^i | x_t)` over the masks of `x_t ~ q(x_t | x_0)`: x_0 (b, l), t (b,) to nats (b,).

    What is left to learn at one noise level; NaN for a row that got no mask.
    """
    uniforms = noise.grid(seed, row, 0, Stream.EVALUATION, x_0.shape[1])
    x_t = absorbing.corrupt(x_0, schedule.alpha(t), uniforms, denoiser.mask_id)
    return _mean_over_masks(denoiser, x_0, x_t, t, x_t == denoiser.mask_id)


def _mean_over_masks(denoiser: Denoiser, x_0: Tensor, x_t: Tensor, t: Tensor, masked: Tensor) -> Tensor:
    """Mean negative log-likelihood of the data over each row's masks, the head run on them alone: float64 (b,)."""
    positions = masked.flatten().nonzero().squeeze(-1)
    out = denoiser(TensorDict({contracts.X_T: x_t, contracts.T: t, contracts.POSITIONS: positions}))
    wanted = x_0.flatten()[positions].unsqueeze(-1)
    log_prob = categorical.token_log_prob(denoiser.logits(out[contracts.HIDDEN]), wanted).squeeze(-1)
    spread = torch.zeros(x_0.numel(), dtype=torch.float64, device=x_0.device)
    return -spread.index_copy(0, positions, log_prob.double()).view_as(x_0).sum(1) / masked.sum(1)


def _strata(seed: Tensor, row: Tensor) -> Tensor:
    """A uniform per row, one in each of b strata that are shifted together, so that none belongs to a row: (b,)."""
    jitter = noise.uniforms(seed, row, 0, Stream.TIME).squeeze(-1)
    shift = noise.uniforms(seed, row[:1], 1, Stream.TIME).squeeze(-1)
    return ((jitter + torch.arange(row.shape[0], device=row.device)) / row.shape[0] + shift) % 1.0


def _before_random_pass(
    uniforms: Tensor, x_0: Tensor, schedule: Schedule, mask_id: int, pick: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The state x_t just before one of the l passes, its time, and its masks: (b, l), (b,), bool (b, l)."""
    everything = torch.ones_like(x_0, dtype=torch.bool)
    plan = absorbing.reveal_plan(uniforms, everything, schedule)
    chosen = (pick * x_0.shape[1]).long().clamp(max=x_0.shape[1] - 1).unsqueeze(-1)
    masked = plan.order >= chosen
    return torch.where(masked, mask_id, x_0), plan.t.gather(1, chosen).squeeze(1), masked
