"""Training of a denoiser of blocks: every block of a text at a noise level of its own, after clean ones.

Block diffusion (Arriola et al. 2025, arXiv 2503.09573) is an autoregressive model of blocks, each drawn by masked
diffusion: `-log p(x) <= sum_b NELBO(x^b | x^{<b})`. One pass over [x_t ; x_0] reads all blocks of a text at once.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from tensordict.nn import TensorDictSequential
from torch import Tensor

from edlm import contracts
from edlm.declaration import sequence, stage
from edlm.models import denoisers
from edlm.models.denoisers import SubsDenoiser
from edlm.objectives import losses
from edlm.objectives.denoising import LossWeights, score
from edlm.process import absorbing, noise, schedules, training_times
from edlm.process.noise import Stream
from edlm.process.schedules import Schedule

NoiseLevels = Literal["by_time", "by_count"]


def denoising(
    denoiser: SubsDenoiser,
    schedule: Schedule,
    times: tuple[float, float] = (1e-3, 1.0),
    noise_levels: NoiseLevels = "by_time",
    pad_id: int | None = None,
    loss_weights: LossWeights = "nelbo",
) -> TensorDictSequential:
    """Build the training pipeline of a denoiser of blocks: `{x_0, seed, row, step, num_rows} -> {loss, ...}`.

    The loss is one NELBO in nats per row, except for times outside the range. Each block has its own time t in the
    range, stratified over the batch. A narrower range leaves out large weights, and blocks with all masks or none.
    noise_levels: `by_time` masks each token with probability 1 - alpha(t), with the weight w(t). With one block this is
    `denoising.denoising`. `by_count` masks exactly `m = ceil(t n)` of the n tokens of a block, with the weight n / m.
    The mean is the same, as `nelbo.nelbo` estimates it. Then every block has a mask, and blocks of one token have the
    loss of an autoregressive model.
    loss_weights: with "even" the loss is the plain cross-entropy of the masked tokens.
    Raises ValueError unless 0 <= low < high <= 1, for other levels or weights, and as `denoisers.beside_clean` does.
    """
    low, high = times
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(f"times = ({low}, {high}) must satisfy 0 <= low < high <= 1")
    if noise_levels not in get_args(NoiseLevels):
        raise ValueError(f"noise_levels = {noise_levels!r} must be one of {', '.join(get_args(NoiseLevels))}")
    if loss_weights not in get_args(LossWeights):
        raise ValueError(f"loss_weights = {loss_weights!r} must be one of {', '.join(get_args(LossWeights))}")
    mask = partial(_by_time, schedule) if noise_levels == "by_time" else _by_count
    mask = mask if loss_weights == "nelbo" else partial(_evenly, mask)
    corrupt = partial(_corrupt, denoiser.mask_id, denoiser.block_size, times, pad_id, mask)
    return sequence(
        {
            "corrupt": stage("x_0, seed, row, step, num_rows -> x_t, t, weights, positions", corrupt),
            "denoise": denoisers.beside_clean(denoiser),
            "score": score(denoiser, weight=contracts.WEIGHTS),
            "objective": stage("log_prob, weights -> loss", losses.nelbo_of_blocks),
        }
    )


def _corrupt(
    mask_id: int,
    block_size: int | None,
    times: tuple[float, float],
    pad_id: int | None,
    mask: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    x_0: Tensor,
    seed: Tensor,
    row: Tensor,
    step: Tensor,
    num_rows: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mask texts (b, l): x_t, the times of first blocks (b,), weights of the NELBO (b, l), flat positions of masks."""
    l = x_0.shape[1]
    size = block_size or l
    each = torch.arange(-(-l // size), device=x_0.device)
    time_noise = noise.uniforms(seed, row.unsqueeze(-1), step, Stream.TIME, each).squeeze(-1)
    t = training_times.of_blocks(time_noise, row, num_rows, *times)
    mask_noise = noise.grid(seed, row, step, Stream.CORRUPTION, l)
    counted = torch.ones_like(x_0, dtype=torch.bool) if pad_id is None else x_0 != pad_id
    in_blocks = (F.pad(each, (0, -l % size)).unflatten(1, (-1, size)) for each in (mask_noise, counted))
    masked, weights = (found.flatten(1)[:, :l] for found in mask(t.unsqueeze(-1), *in_blocks))
    return torch.where(masked, mask_id, x_0), t[:, 0], weights, masked.flatten().nonzero().squeeze(-1)


def _evenly(
    mask: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]], t: Tensor, uniforms: Tensor, counted: Tensor
) -> tuple[Tensor, Tensor]:
    """The same masks with weights of 1."""
    masked, weights = mask(t, uniforms, counted)
    return masked, torch.ones_like(weights)


def _by_time(schedule: Schedule, t: Tensor, uniforms: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Masks and weights, (b, blocks, size) each, of blocks at times (b, blocks, 1): each token by itself."""
    masked = (uniforms < 1.0 - schedule.alpha(t)) & counted
    return masked, schedules.nelbo_weight(schedule, t).expand_as(uniforms)


def _by_count(t: Tensor, uniforms: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """The same with a share t of a block's tokens masked, at least one."""
    masked, m = absorbing.masked_by_count(t, uniforms, counted)
    n = counted.sum(-1, keepdim=True)
    return masked, (n / m.clamp(min=1.0)).expand_as(uniforms)
