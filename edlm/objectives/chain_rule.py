"""Training of a denoiser that is read in order."""

from functools import partial

import torch
from tensordict.nn import TensorDictSequential
from torch import Tensor

from edlm.declaration import sequence, stage
from edlm.models import chain_rule
from edlm.models.denoisers import SubsDenoiser
from edlm.objectives import denoising as denoising_objectives
from edlm.objectives import transition
from edlm.process import absorbing
from edlm.process.schedules import Schedule


def denoising(
    denoiser: SubsDenoiser, schedule: Schedule, num_steps: tuple[int, int], pad_id: int | None = None
) -> TensorDictSequential:
    """Build the training pipeline of a denoiser that is good in order too: `{x_0, seed, ...} -> {loss, ...}`.

    A text is put before a step `t -> s` of a uniform grid, as by `transition.contrastive`. The loss is the sum of two
    bounds of T-step samplers, in nats per row, of l tokens that can be masked:

        l / |M| sum_{i in M} -log p_theta(x_i | x_t)  +  l / |S| sum_{i in S} -log q(x_i | x_t, x^{S<i}),

    M what x_t masks and S what the step reveals: the denoiser's T-step NELBO, with what a random S of M is worth in the
    mean, and that of writing S in order, to which SIR by `energy` tends. One pass over x_t serves both.
    num_steps: fewest and most steps of the grids to train for; their logarithm is uniform between them.
    Raises ValueError unless 1 <= fewest <= most, and for a network that is no `contracts.Ordered`.
    """
    mask_id = denoiser.mask_id
    return sequence(
        {
            "corrupt": transition.before_step(mask_id, schedule, num_steps, pad_id),
            "masks": stage("x_t -> positions", lambda x_t: (x_t == mask_id).flatten().nonzero().squeeze(-1)),
            "read": chain_rule.read(denoiser),
            "score": denoising_objectives.score(denoiser),
            "order": stage("x_t, x_s, t, context, log_prob -> log_prob_in_order", _ScoreInOrder(denoiser)),
            "objective": stage(
                "x_0, x_t, x_s, log_prob, log_prob_in_order -> loss", partial(_both_bounds, mask_id, pad_id)
            ),
        }
    )


class _ScoreInOrder(chain_rule.InOrder):
    """`log q` of what is new in x_s, in order, zero elsewhere: (b, l); the first of a row is that of `log_prob`."""

    def forward(self, x_t: Tensor, x_s: Tensor, t: Tensor, context: Tensor, log_prob: Tensor) -> Tensor:
        new, l = x_t != x_s, x_t.shape[1]
        where = absorbing.places(new, max(1, int(new.sum(1).amax())))
        tokens = x_s.gather(1, where.clamp(max=l - 1))
        hidden = self.states_of(tokens.unsqueeze(1), where, t, context, x_t)[:, 0]
        later = where[:, 1:] < l
        of_later = self.denoiser.token_log_prob(hidden[later], tokens[:, 1:][later])
        first = new & (new.cumsum(1) == 1)
        return torch.where(first, log_prob, 0.0).masked_scatter(new & ~first, of_later)


def _both_bounds(
    mask_id: int, pad_id: int | None, x_0: Tensor, x_t: Tensor, x_s: Tensor, log_prob: Tensor, in_order: Tensor
) -> Tensor:
    tokens = x_0.shape[1] if pad_id is None else (x_0 != pad_id).sum(1)
    masked, new = (which.sum(1).clamp(min=1) for which in (x_t == mask_id, x_t != x_s))
    return -tokens * (log_prob.sum(1) / masked + in_order.sum(1) / new)
