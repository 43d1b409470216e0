"""Training of an energy: data against drafts of a frozen denoiser."""

from collections.abc import Callable
from functools import partial
from typing import Self

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor

from edlm import contracts
from edlm.contracts import Denoiser, Energy
from edlm.declaration import sequence, stage
from edlm.objectives import losses
from edlm.objectives.denoising import corruption, score
from edlm.process import noise
from edlm.process.noise import Stream
from edlm.process.schedules import Schedule
from edlm.samplers import stages


def contrastive(
    denoiser: Denoiser,
    energy: Energy,
    schedule: Schedule,
    num_negatives: int = 1,
    time_low: float = 1e-3,
    objective: Callable[[Tensor, Tensor], Tensor] = losses.nce,
    pad_id: int | None = None,
) -> TensorDictSequential:
    """Build the training pipeline of an energy: `{x_0, seed, row, step, num_rows} -> {loss, energy, ...}`.

    The data is candidate 0, `num_negatives` drafts of the denoiser follow, and one pass of the energy weighs all. The
    denoiser is frozen: no gradient, and in eval mode whatever mode the pipeline is put in.
    An energy that reads the drafts' log-probabilities, `energies.residual_ar`, is given those of the data too; what is
    trained of it is its own network. Raises ValueError unless num_negatives >= 1 and 0 <= time_low < 1.
    """
    corrupt = corruption(denoiser.mask_id, schedule, time_low, pad_id)
    return against_draws(corrupt, denoiser, energy, num_negatives, objective, contracts.X_0)


def against_draws(
    corrupt: TensorDictModuleBase,
    denoiser: Denoiser,
    energy: Energy,
    num_negatives: int,
    objective: Callable[[Tensor, Tensor], Tensor],
    positive: str,
) -> TensorDictSequential:
    """Build the training pipeline of an energy from the stage that makes its states: see `contrastive`.

    corrupt: a stage that writes x_t, t and the positions at which the denoiser draws. positive: the key of what stands
    against the draws, the data at these positions. Raises ValueError as `contrastive` does, and for an energy of drafts
    alone where something else stands against the draws.
    """
    if num_negatives < 1:
        raise ValueError(f"num_negatives = {num_negatives} must be at least 1")
    residual = contracts.LOG_P_CANDIDATES in energy.in_keys
    if residual and positive != contracts.X_0:
        raise ValueError(f"an energy that reads {contracts.LOG_P_CANDIDATES} weighs whole drafts, and no transitions")
    return sequence(
        {
            "corrupt": corrupt,
            "draft": Frozen(negatives(denoiser, num_negatives)),
            **({"score": Frozen(score(denoiser)), "log_p": _log_p_paired()} if residual else {}),
            "pair": paired(positive),
            "weigh": energy,  # type: ignore[dict-item]
            "objective": stage(
                "energy -> loss",
                lambda energies: objective(_at_least_float32(energies[:, 0]), _at_least_float32(energies[:, 1:])),
            ),
        }
    )


def negatives(denoiser: Denoiser, num_negatives: int) -> TensorDictSequential:
    """Build the stages that draw negatives: `{x_t, t, positions, x_0, seed, row, step} -> {candidates, ...}`."""
    return sequence(
        {
            "denoise": denoiser,  # type: ignore[dict-item]
            "draw": stage("x_0, positions, seed, row, step -> proposal_noise", partial(_noise, num_negatives)),
            "propose": stages.propose(denoiser),
        }
    )


def paired(positive: str) -> TensorDictModule:
    """Build the stage that puts what is true, the tokens under a key, before the candidates that are drawn."""
    return stage(f"{positive}, candidates -> candidates", _first)


def _log_p_paired() -> TensorDictModule:
    return stage("log_prob, log_p_candidates -> log_p_candidates", _first)


def _first(data: Tensor, drawn: Tensor) -> Tensor:
    """Put what is of the data, (b, l), before what is of the candidates, (b, k, l)."""
    return torch.cat([data.unsqueeze(1).to(drawn.dtype), drawn], dim=1)


class Frozen(TensorDictModuleBase):
    """A stage that takes no gradient and stays in eval mode, so a frozen proposal never has its dropout on."""

    def __init__(self, stage: TensorDictModuleBase) -> None:
        super().__init__()
        self.in_keys, self.out_keys = list(stage.in_keys), list(stage.out_keys)
        self.stage = stage.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever is asked."""
        super().train(False)
        return self

    def forward(self, tensordict: TensorDict) -> TensorDict:
        """Run the stage without gradients."""
        with torch.no_grad():
            return tensordict.copy().update(self.stage(tensordict))


def _noise(num_negatives: int, x_0: Tensor, positions: Tensor, seed: Tensor, row: Tensor, step: Tensor) -> Tensor:
    """Uniforms (n, num_negatives) for the drafts of a training step."""
    length = x_0.shape[1]
    owner = row[positions // length]
    return noise.uniforms(seed, owner, step, Stream.NEGATIVES, positions % length, num_negatives)


def _at_least_float32(energies: Tensor) -> Tensor:
    return energies.to(torch.promote_types(energies.dtype, torch.float32))
