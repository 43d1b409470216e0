"""The training of denoisers as pipelines: from data and the keys of its noise to a loss per row.

Every batch is `{x_0, seed, row, step, num_rows}`: its noise is a function of these, so a loss depends neither on how a
batch is split nor on what was drawn before.
"""

from functools import partial
from typing import Literal, get_args

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn

from edlm import contracts
from edlm.contracts import Denoiser
from edlm.declaration import sequence, stage
from edlm.models import autoregressive, denoisers
from edlm.objectives import losses, opening
from edlm.process import absorbing, categorical, noise, schedules, training_times
from edlm.process.noise import Stream
from edlm.process.schedules import Schedule

NoiseLevels = Literal["by_time", "by_count", "bell"]
LossWeights = Literal["nelbo", "even"]


def denoising(
    denoiser: Denoiser,
    schedule: Schedule,
    time_low: float = 1e-3,
    pad_id: int | None = None,
    noise_levels: NoiseLevels = "by_time",
    loss_weights: LossWeights = "nelbo",
    opening_steps: int | None = None,
) -> TensorDictSequential:
    """Build the training pipeline of a denoiser: `{x_0, seed, row, step, num_rows} -> {loss, ...}`.

    The loss is one NELBO in nats per row, with `loss_weights="even"` the plain cross-entropy of the masked tokens. The
    vocabulary head runs on masked positions only. Padding is never masked, so it never counts.
    noise_levels: how they are drawn, stratified over the batch. "by_time": uniform in (time_low, 1), each token is
    masked independently, as published. "by_count": the number of masks m is uniform, so the weight is `n / m`.
    "bell": a number of masks too, with most levels in the middle.
    opening_steps: steps over which attention opens to later positions, see `opening.opened`; None: it is open.
    Raises ValueError unless 0 <= time_low < 1, and for levels or weights that there are not.
    """
    for name, value, known in (
        ("noise_levels", noise_levels, get_args(NoiseLevels)),
        ("loss_weights", loss_weights, get_args(LossWeights)),
    ):
        if value not in known:
            raise ValueError(f"{name} = {value!r} must be one of {', '.join(known)}")
    corrupt = (
        corruption(denoiser.mask_id, schedule, time_low, pad_id)
        if noise_levels == "by_time"
        else corruption_by_count(denoiser.mask_id, schedule, pad_id, noise_levels == "bell")
    )
    return sequence(
        {
            "corrupt": corrupt if loss_weights == "nelbo" else _evenly(corrupt),
            **({"denoise": denoiser} if opening_steps is None else opening.opened(denoiser, opening_steps)),
            "score": score(denoiser, weight=contracts.WEIGHT),
            "objective": stage("log_prob, weight -> loss", losses.nelbo),
        }
    )


def next_token(network: nn.Module, mask_id: int, bos_id: int | None, pad_id: int | None = None) -> TensorDictSequential:
    """Build the training pipeline of an autoregressive model: `{x_0} -> {log_prob, loss}`.

    The loss is `-log p(x_0)` in nats per row, exact. `bos_id` stands in front of the text, so that every position
    counts; with None the first token is given and does not. Padding never counts.
    """
    return sequence(
        {
            "score": stage("x_0 -> log_prob", _ArScore(network, mask_id, bos_id, pad_id)),
            "objective": stage("log_prob -> loss", losses.next_token),
        }
    )


def score(denoiser: Denoiser, weight: str | None = None) -> TensorDictModule:
    """Build the stage that reads the data's log-probability: `{hidden, positions, x_0} -> {log_prob}`.

    weight: the key of what the objective will multiply log-probabilities with, (b,) or (b, l). Told before, the
    vocabulary head is run once and not twice; the gradients are those of any objective all the same.
    """
    weighted = "" if weight is None else f", {weight}"
    return stage(f"hidden, positions, x_0{weighted} -> log_prob", _Score(denoiser))


def corruption(mask_id: int, schedule: Schedule, time_low: float, pad_id: int | None = None) -> TensorDictModule:
    """Build the stage that masks texts at times of their own: `{x_0, seed, ...} -> {x_t, t, weight, positions}`.

    Raises ValueError unless 0 <= time_low < 1, and for levels or weights that there are not.
    """
    if not 0.0 <= time_low < 1.0:
        raise ValueError(f"time_low = {time_low} must lie in [0, 1)")
    masked = partial(_masked, mask_id, schedule, time_low, pad_id)
    return stage("x_0, seed, row, step, num_rows -> x_t, t, weight, positions", masked)


def corruption_by_count(mask_id: int, schedule: Schedule, pad_id: int | None, bell: bool) -> TensorDictModule:
    """Build the stage that masks m of the n tokens of a text: `{x_0, seed, ...} -> {x_t, t, weight, positions}`.

    The time is that at which the schedule expects as many masks. The weight, `n / m` over the density of `m / n`, makes
    the loss one NELBO on average (`nelbo.nelbo` draws the same).
    """
    return stage(
        "x_0, seed, row, step, num_rows -> x_t, t, weight, positions",
        partial(_masked_by_count, mask_id, schedule, pad_id, bell),
    )


class _Score(nn.Module):
    """Log-probability of the data at the positions, spread over (b, l) with zeros elsewhere."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, hidden: Tensor, positions: Tensor, x_0: Tensor, weight: Tensor | None = None) -> Tensor:
        wanted = x_0.flatten()[positions]
        if isinstance(self.denoiser, denoisers.SubsDenoiser):
            expected = None if weight is None else _at(weight, positions, x_0.shape[1])
            log_prob = self.denoiser.token_log_prob(hidden, wanted, expected)
        else:
            log_prob = categorical.token_log_prob(self.denoiser.logits(hidden), wanted.unsqueeze(-1)).squeeze(-1)
        return log_prob.new_zeros(x_0.numel()).index_copy(0, positions, log_prob).view_as(x_0)


class _ArScore(nn.Module):
    """Log-probability of every token of the data given those before it: (b, l) to (b, l), zero at padding."""

    def __init__(self, network: nn.Module, mask_id: int, bos_id: int | None, pad_id: int | None) -> None:
        super().__init__()
        self.network = network
        self.mask_id = mask_id
        self.bos_id = bos_id
        self.pad_id = pad_id

    def forward(self, x_0: Tensor) -> Tensor:
        counts = None if self.pad_id is None else (x_0 != self.pad_id).flatten().nonzero().squeeze(-1)
        return autoregressive.ar_log_prob(self.network, x_0, self.mask_id, self.bos_id, counts)


def _at(weight: Tensor, positions: Tensor, l: int) -> Tensor:
    """The weights (n,) of flat positions, from those of rows (b,) or of positions (b, l)."""
    return weight[positions // l] if weight.ndim == 1 else weight.flatten()[positions]


def _masked(
    mask_id: int,
    schedule: Schedule,
    time_low: float,
    pad_id: int | None,
    x_0: Tensor,
    seed: Tensor,
    row: Tensor,
    step: Tensor,
    num_rows: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Texts with masks (b, l), their times (b,), weights of the NELBO (b,), and the masks' flat positions (n,)."""
    time_noise = noise.uniforms(seed, row, step, Stream.TIME).squeeze(-1)
    t = training_times.stratified_times(time_noise, row, num_rows, time_low)
    mask_noise = noise.grid(seed, row, step, Stream.CORRUPTION, x_0.shape[1])
    padding = None if pad_id is None else x_0 == pad_id
    x_t = absorbing.corrupt(x_0, schedule.alpha(t), mask_noise, mask_id, keep=padding)
    return x_t, t, schedules.nelbo_weight(schedule, t), (x_t == mask_id).flatten().nonzero().squeeze(-1)


def _masked_by_count(
    mask_id: int,
    schedule: Schedule,
    pad_id: int | None,
    bell: bool,
    x_0: Tensor,
    seed: Tensor,
    row: Tensor,
    step: Tensor,
    num_rows: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Texts with m masks (b, l), their times (b,), weights of the NELBO (b,), and the masks' flat positions (n,)."""
    strata = training_times.stratified_times(noise.uniforms(seed, row, step, Stream.TIME).squeeze(-1), row, num_rows)
    counts = torch.ones_like(x_0, dtype=torch.bool) if pad_id is None else x_0 != pad_id
    share, density = training_times.bell(strata) if bell else (strata, torch.ones_like(strata))
    mask_noise = noise.grid(seed, row, step, Stream.CORRUPTION, x_0.shape[1])
    chosen, m = absorbing.masked_by_count(share.unsqueeze(-1), mask_noise, counts)
    x_t = torch.where(chosen, mask_id, x_0)
    masked = m.squeeze(-1) / counts.sum(-1).clamp(min=1)
    t = schedule.inverse(1.0 - masked * (1.0 - schedule.alpha(torch.ones_like(masked))))
    return (
        x_t,
        t,
        1.0 / (masked.clamp(min=1.0 / x_0.shape[1]) * density),
        (x_t == mask_id).flatten().nonzero().squeeze(-1),
    )


def _evenly(corrupt: TensorDictModule) -> TensorDictSequential:
    """Follow a corruption by weights of 1: the loss is then the cross-entropy of the masked tokens."""
    return TensorDictSequential(corrupt, stage("weight -> weight", torch.ones_like))
