"""The distillation of a denoiser: what a config says, the rounds, and the network that each of them starts from."""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edlm import contracts
from edlm.evaluation import draws
from edlm.evaluation.draws import Draws
from edlm.likelihood.estimates import Estimate
from edlm.models import denoisers
from edlm.models.denoisers import SubsDenoiser
from edlm.objectives import batches, distillation
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.weights.loading import Found

SETTINGS: Schema = {
    "denoiser": schemas.text,
    "rounds": schemas.integer(1),
    "num_steps": schemas.integer(1),
    "at_once": schemas.integer(1),
    "divergence": schemas.choice(*distillation.DIVERGENCES),
}
_KEPT = ("schedule", "time_conditioning", "length", "padding", "network")  # of a denoiser's description, its student's


class DistillationPlan(NamedTuple):
    """The rounds of a distillation by a config: in each a student learns what its teacher does in several steps.

    start: the denoiser that is the first teacher.
    """

    start: Found
    settings: Mapping[str, Any]

    def denoiser(self, network: nn.Module) -> SubsDenoiser:
        """Read a network as the denoiser that it started from is read."""
        return denoisers.subs(network, self.start.vocabulary.mask_id, self.start.told, self.start.schedule)

    def student(self, teacher: nn.Module) -> nn.Module:
        """Copy a teacher, to be trained."""
        return copy.deepcopy(teacher).requires_grad_(True)

    def num_steps(self, number: int) -> float:
        """Count the steps of the sampler that a round's teacher stands for: `at_once` times fewer in each round."""
        found: float = self.settings["num_steps"] / self.settings["at_once"] ** number
        return found

    def stages(self, network: nn.Module, teacher: nn.Module, number: int) -> Any:
        """Build the training pipeline of a round."""
        settings = self.settings
        return distillation.distillation(
            self.denoiser(network),
            self.denoiser(teacher),
            self.start.schedule,
            self.num_steps(number),
            settings["at_once"],
            settings["divergence"],
            settings["time_low"],
            self.start.vocabulary.pad_id,
        )

    def held_out(self, network: nn.Module, teacher: nn.Module, number: int, drawn: Draws) -> float:
        """Average the loss over held-out texts, in nats per token, with noise of its own."""
        stages = self.stages(network, teacher, number).eval()

        def score(x_0: Tensor, seed: Tensor, row: Tensor, counted: Tensor) -> Tensor:
            batch = batches.training_batch(x_0, drawn.seed, row, batches.HELD_OUT_STEP, drawn.num_rows)
            with torch.no_grad():
                return stages(batch)[contracts.LOSS] / counted.sum(1)

        return draws.estimated(score, drawn, self.start.vocabulary.pad_id).mean

    def nelbos(self, network: nn.Module, drawn: Draws) -> dict[str, Estimate]:
        """Estimate the NELBO of a student and of the denoiser that it started from."""
        pad_id = self.start.vocabulary.pad_id
        return draws.compared(self.denoiser(network), self.start.denoiser, self.start.schedule, drawn, pad_id)

    def notes(self, corpus: Any, number: int) -> dict[str, Any]:
        """Say what a resumed round must share, and what a reader of the folder asks of a denoiser."""
        settings, described = self.settings, self.start.description
        return {
            **{key: described[key] for key in _KEPT if key in described},
            "objective": f"distillation, {settings['divergence']}",
            "corpus": corpus.fingerprint,
            "denoiser_weights": self.start.weights,
            "round": number,
            **{key: settings[key] for key in ("rounds", "num_steps", "at_once")},
        }


def check(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for more rounds than there are steps to put together."""
    fewest = settings["at_once"] ** settings["rounds"]
    if fewest > settings["num_steps"]:
        raise ValueError(
            f"rounds = {settings['rounds']} with at_once = {settings['at_once']} put {fewest} steps into one: "
            f"num_steps = {settings['num_steps']} must be at least as many"
        )
