"""Energies of a transition: weigh only what a step reveals, not whole drafts.

A candidate is `x_s = (x_t with the revealed set S filled in)`, masks elsewhere. With `Z(x_t, S)` that makes it a law,

    p(x^S | x_t) = prod_{i in S} p_theta(x_i | x_t) exp(-E(x_s, x_t)) / Z,
    E = -log [ q(x^S | x_t) / prod_{i in S} p_theta(x_i | x_t) ]  at its best, and then Z = 1.

At its best the weight is the mean of a draft's weight given x^S, so it varies less. An energy of drafts is no energy of
transitions: what is masked in x_s is unknown, not improbable.
"""

from collections.abc import Callable
from functools import partial

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor

from edlm import contracts
from edlm.contracts import Denoiser, Energy
from edlm.declaration import stage
from edlm.objectives import contrastive as contrastive_objectives
from edlm.objectives import losses
from edlm.process import absorbing, noise, training_times
from edlm.process.noise import Stream
from edlm.process.schedules import Schedule


def contrastive(
    denoiser: Denoiser,
    energy: Energy,
    schedule: Schedule,
    num_steps: tuple[int, int],
    num_negatives: int = 1,
    objective: Callable[[Tensor, Tensor], Tensor] = losses.nce,
    pad_id: int | None = None,
) -> TensorDictSequential:
    """Build the training pipeline of an energy of transitions: `{x_0, seed, row, step, num_rows} -> {loss, ...}`.

    A text is put before a step `t -> s` of a uniform grid. Candidate 0 is the text's own x_s, the others hold
    `num_negatives` draws of the denoiser at the revealed positions; one pass of the energy weighs all. The step is that
    which reveals a random position, so it reveals something, and the more the likelier it is to be seen.
    num_steps: fewest and most steps of the grids to train for; their logarithm is uniform between them.
    Minimal where `exp(-E) = q(x^S | x_t) / prod_{i in S} p_theta(x_i | x_t)`, whatever the grids.
    Raises ValueError unless 1 <= fewest <= most, and as `denoising.contrastive` does.
    """
    corrupt = before_step(denoiser.mask_id, schedule, num_steps, pad_id)
    return contrastive_objectives.against_draws(corrupt, denoiser, energy, num_negatives, objective, contracts.X_S)


def before_step(
    mask_id: int, schedule: Schedule, num_steps: tuple[int, int], pad_id: int | None = None
) -> TensorDictModule:
    """Build the stage that puts texts before a step: `{x_0, seed, ...} -> {x_t, t, x_s, positions}`; see `contrastive`.

    Raises ValueError unless 1 <= fewest <= most.
    """
    fewest, most = num_steps
    if not 1 <= fewest <= most:
        raise ValueError(f"num_steps = ({fewest}, {most}) must be the fewest and the most steps, 1 <= fewest <= most")
    put = partial(_before_step, mask_id, schedule, fewest, most, pad_id)
    return stage("x_0, seed, row, step, num_rows -> x_t, t, x_s, positions", put)


def _before_step(
    mask_id: int,
    schedule: Schedule,
    fewest: int,
    most: int,
    pad_id: int | None,
    x_0: Tensor,
    seed: Tensor,
    row: Tensor,
    step: Tensor,
    num_rows: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Texts before and after a step of a random grid: x_t (b, l), t (b,), x_s (b, l), revealed flat positions (n,)."""
    when, how_many, which = noise.uniforms(seed, row, step, Stream.TIME, count=3).unbind(-1)
    num_steps = steps_between(fewest, most, how_many)
    maskable = torch.ones_like(x_0, dtype=torch.bool) if pad_id is None else x_0 != pad_id
    picked = _nth(maskable, which)
    reveal_noise = noise.grid(seed, row, step, Stream.CORRUPTION, x_0.shape[1])
    reveal_noise = reveal_noise.scatter(1, picked, training_times.stratified_times(when, row, num_rows).unsqueeze(-1))
    masked_for = steps_masked(reveal_noise, schedule, num_steps)
    now = masked_for.gather(1, picked)
    x_t = torch.where(maskable & (masked_for <= now), mask_id, x_0)
    x_s = torch.where(maskable & (masked_for < now), mask_id, x_0)
    positions = (x_t != x_s).flatten().nonzero().squeeze(-1)
    return x_t, now.squeeze(1) / num_steps, x_s, positions


def steps_between(fewest: int, most: int, share: Tensor) -> Tensor:
    """Return whole numbers of steps, their logarithm uniform for a uniform share (b,) in (0, 1); float (b,)."""
    return (fewest * ((most + 1) / fewest) ** share).floor().clamp(max=most)


def steps_masked(reveal_noise: Tensor, schedule: Schedule, num_steps: Tensor) -> Tensor:
    """Count the steps of a uniform grid each position is still masked for, from its end: (b, l) in 1..num_steps.

    reveal_noise: uniforms (b, l), each the place of a position in the order of its text; num_steps (b,).
    """
    return (absorbing.reveal_times(reveal_noise, schedule) * num_steps.unsqueeze(-1)).ceil().clamp(min=1)


def _nth(wanted: Tensor, share: Tensor) -> Tensor:
    """The place of one of the wanted, bool (b, l), at a share (b,) in (0, 1) of their number; int64 (b, 1)."""
    number = (share * wanted.sum(1)).floor().unsqueeze(-1)
    return (wanted.cumsum(1) <= number).sum(1, keepdim=True).clamp(max=wanted.shape[1] - 1)
