"""Training of D3PM and SEDD."""

from functools import partial

import torch
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn

from edlm.declaration import sequence, stage
from edlm.models.denoisers import D3pmDenoiser, SeddDenoiser
from edlm.objectives import losses
from edlm.objectives.denoising import corruption
from edlm.process import absorbing, noise, training_times
from edlm.process.noise import Stream
from edlm.process.schedules import Schedule


def d3pm(denoiser: D3pmDenoiser, schedule: Schedule, num_steps: int, pad_id: int | None = None) -> TensorDictSequential:
    """Build the training pipeline of absorbing D3PM: `{x_0, seed, row, step, num_rows} -> {loss, ...}`.

    The loss is one T-step bound in nats per row, `losses.d3pm` at one of the `num_steps` equal steps of time,
    stratified over the batch; see `denoising` for the rest. Raises ValueError unless num_steps >= 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps} must be at least 1")
    masked = partial(_masked_on_grid, denoiser.mask_id, schedule, num_steps, pad_id)
    return sequence(
        {
            "corrupt": stage("x_0, seed, row, step, num_rows -> x_t, t, s, positions", masked),
            "denoise": denoiser,
            "objective": stage("hidden, positions, x_0, t, s -> loss", _D3pmLoss(denoiser, schedule, num_steps)),
        }
    )


def score_entropy(
    denoiser: SeddDenoiser, schedule: Schedule, time_low: float = 1e-3, pad_id: int | None = None
) -> TensorDictSequential:
    """Build the training pipeline of absorbing SEDD: `{x_0, seed, row, step, num_rows} -> {loss, ...}`.

    The loss is `losses.sedd` summed over the masks of a row, in nats; see `denoising` for the rest.
    Raises ValueError unless 0 <= time_low < 1.
    """
    return sequence(
        {
            "corrupt": corruption(denoiser.mask_id, schedule, time_low, pad_id),
            "denoise": denoiser,
            "objective": stage("hidden, positions, x_0, t -> loss", _SeddLoss(denoiser, schedule)),
        }
    )


def _masked_on_grid(
    mask_id: int,
    schedule: Schedule,
    num_steps: int,
    pad_id: int | None,
    x_0: Tensor,
    seed: Tensor,
    row: Tensor,
    step: Tensor,
    num_rows: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Texts with masks at the start t of one of T equal steps, chosen uniformly: x_t, t, s and positions."""
    time_noise = noise.uniforms(seed, row, step, Stream.TIME).squeeze(-1)
    before = (training_times.stratified_times(time_noise, row, num_rows) * num_steps).floor()
    t, s = (before + 1.0) / num_steps, before / num_steps
    mask_noise = noise.grid(seed, row, step, Stream.CORRUPTION, x_0.shape[1])
    padding = None if pad_id is None else x_0 == pad_id
    x_t = absorbing.corrupt(x_0, schedule.alpha(t), mask_noise, mask_id, keep=padding)
    return x_t, t, s, (x_t == mask_id).flatten().nonzero().squeeze(-1)


class _D3pmLoss(nn.Module):
    """`losses.d3pm` of the masked positions, per row (b,); the last step ends at alpha = 1."""

    def __init__(self, denoiser: D3pmDenoiser, schedule: Schedule, num_steps: int) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.schedule = schedule
        self.num_steps = num_steps

    def forward(self, hidden: Tensor, positions: Tensor, x_0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        log_p = self.denoiser.log_prob(hidden)
        log_prob = log_p.gather(-1, x_0.flatten()[positions].unsqueeze(-1)).squeeze(-1)
        spread = [
            log_p.new_zeros(x_0.numel()).index_copy(0, positions, values).view_as(x_0)
            for values in (log_prob, log_p[:, self.denoiser.mask_id])
        ]
        masked = torch.zeros_like(x_0.flatten(), dtype=torch.bool).index_fill(0, positions, True).view_as(x_0)
        alpha_s = torch.where(s > 0.0, self.schedule.alpha(s), 1.0)
        return losses.d3pm(spread[0], spread[1], masked, self.schedule.alpha(t), alpha_s, self.num_steps)


class _SeddLoss(nn.Module):
    """`losses.sedd` of the masked positions, summed per row (b,)."""

    def __init__(self, denoiser: SeddDenoiser, schedule: Schedule) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.schedule = schedule

    def forward(self, hidden: Tensor, positions: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        owner = positions // x_0.shape[1]
        alpha = self.schedule.alpha(t)[owner]
        log_score, token = self.denoiser.log_score(hidden, alpha), x_0.flatten()[positions]
        entropy = losses.sedd(log_score, token, alpha, self.schedule.alpha_slope(t)[owner], self.denoiser.mask_id)
        return entropy.new_zeros(len(x_0)).index_add(0, owner, entropy)
