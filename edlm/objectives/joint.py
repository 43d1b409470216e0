"""Training of one network as denoiser and energy of transitions."""

from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import Tensor

from edlm import contracts
from edlm.declaration import sequence, stage
from edlm.models import joint
from edlm.models.denoisers import SubsDenoiser
from edlm.objectives import contrastive as contrastive_objectives
from edlm.objectives import denoising, losses, transition
from edlm.process import noise, training_times
from edlm.process.noise import Stream
from edlm.process.schedules import Schedule


def contrastive(
    denoiser: SubsDenoiser,
    schedule: Schedule,
    num_steps: tuple[int, int],
    num_negatives: int = 1,
    nelbo_weight: float = 1.0,
    energy_weight: float = 1.0,
    objective: Callable[[Tensor, Tensor], Tensor] = losses.nce,
    pad_id: int | None = None,
) -> TensorDictSequential:
    """Build the training pipeline of a joint network: `{x_0, seed, row, step, num_rows} -> {loss, energy, ...}`.

    A text is put at a state x_s of a uniform grid, and one pass reads it beside `num_negatives` draws of what the step
    before revealed. `loss = nelbo_weight NELBO / l + energy_weight objective(E)`: the NELBO of the sampler with these
    steps, on what x_s still masks, and contrast on what is new. The draws are the network's own, as they are in
    sampling: no gradient, dropout off, and the weights as they stand now. With a pad_id the batch has to hold
    `num_tokens` too, and l is `num_tokens / num_rows`: the mean of the first part is then one over tokens.
    num_steps: fewest and most steps of the grids to train for; their logarithm is uniform between them.
    Of the T + 1 states of a grid the first, all masks, has no step before it, the last nothing left to predict.
    Raises ValueError unless 1 <= fewest <= most and num_negatives >= 1, and for a denoiser as `joint.network_of` does.
    """
    fewest, most = num_steps
    if not 1 <= fewest <= most:
        raise ValueError(f"num_steps = ({fewest}, {most}) must be the fewest and the most steps, 1 <= fewest <= most")
    if num_negatives < 1:
        raise ValueError(f"num_negatives = {num_negatives} must be at least 1")
    network = joint.network_of(denoiser)
    counted = "" if pad_id is None else ", num_tokens, num_rows"
    put = partial(_at_state, denoiser.mask_id, schedule, fewest, most, pad_id)
    loss = partial(_loss, nelbo_weight, energy_weight, objective)
    return sequence(
        {
            "corrupt": stage("x_0, seed, row, step, num_rows -> x_t, t, x_s, positions, weight", put),
            "draft": _AsItStands(contrastive_objectives.negatives(denoiser, num_negatives)),
            "pair": contrastive_objectives.paired(contracts.X_S),
            "read": joint.read(network),
            "weigh": joint.weigh(network),
            "remain": stage("x_s, candidate_states -> positions, hidden", partial(_still_masked, denoiser.mask_id)),
            "score": denoising.score(denoiser),
            "objective": stage(f"log_prob, weight, energy{counted} -> loss", loss),
        }
    )


class _AsItStands(TensorDictModuleBase):
    """A stage of the network that is trained: no gradient, and in eval mode while it runs.

    Not a copy that shares the parameters: what shards or rounds the network's own would leave it with the old ones.
    """

    def __init__(self, stage: TensorDictModuleBase) -> None:
        super().__init__()
        self.in_keys, self.out_keys = list(stage.in_keys), list(stage.out_keys)
        self.stage = stage

    def forward(self, tensordict: TensorDict) -> TensorDict:
        training_now = [module for module in self.stage.modules() if module.training]
        self.stage.eval()
        try:
            with torch.no_grad():
                return tensordict.copy().update(self.stage(tensordict))
        finally:
            for module in training_now:
                module.training = True


def _at_state(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Texts at one of the T + 1 states of a random grid, x_s, and at the one before, x_t; weights of their NELBO.

    The sum over the states that are before a step is the T-step NELBO, of which one of T + 1 is drawn: its weight is
    `(T + 1) (alpha_s' - alpha_s) / (1 - alpha_s)`, with the next step's `s -> s'`, and zero at the end of the grid.
    """
    when, how_many = noise.uniforms(seed, row, step, Stream.TIME, count=2).unbind(-1)
    num_steps = transition.steps_between(fewest, most, how_many)
    left = (training_times.stratified_times(when, row, num_rows) * (num_steps + 1)).floor()  # steps to go: 0..T
    maskable = torch.ones_like(x_0, dtype=torch.bool) if pad_id is None else x_0 != pad_id
    reveal_noise = noise.grid(seed, row, step, Stream.CORRUPTION, x_0.shape[1])
    masked_for = transition.steps_masked(reveal_noise, schedule, num_steps)
    x_t = torch.where(maskable & (masked_for <= left.unsqueeze(-1) + 1), mask_id, x_0)
    x_s = torch.where(maskable & (masked_for <= left.unsqueeze(-1)), mask_id, x_0)
    alpha, alpha_next = (schedule.alpha(steps.clamp(min=0) / num_steps) for steps in (left, left - 1))
    share = torch.where(left > 1, (alpha_next - alpha) / (1.0 - alpha), left)  # the last step reveals all
    positions = (x_t != x_s).flatten().nonzero().squeeze(-1)
    return x_t, ((left + 1) / num_steps).clamp(max=1.0), x_s, positions, (num_steps + 1) * share


def _still_masked(mask_id: int, x_s: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Find what x_s (b, l) masks, as flat positions (n,), and the states (n, h) of candidate 0, the text, there."""
    positions = (x_s == mask_id).flatten().nonzero().squeeze(-1)
    return positions, states[:, 0].flatten(0, 1).index_select(0, positions)


def _loss(
    nelbo_weight: float,
    energy_weight: float,
    objective: Callable[[Tensor, Tensor], Tensor],
    log_prob: Tensor,
    weight: Tensor,
    energies_: Tensor,
    num_tokens: Tensor | None = None,
    num_rows: Tensor | None = None,
) -> Tensor:
    length = log_prob.shape[1] if num_tokens is None or num_rows is None else num_tokens / num_rows
    bound = losses.nelbo(log_prob, weight) / length
    return nelbo_weight * bound + energy_weight * objective(energies_[:, 0], energies_[:, 1:])
