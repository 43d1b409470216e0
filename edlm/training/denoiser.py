"""A denoiser before it is trained: what a config says of it, its network, its pipeline and its bound."""

from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from torch import nn

from edlm.data.corpora import Source
from edlm.data.pieces import Blocks
from edlm.data.vocabulary import Vocabulary
from edlm.evaluation.draws import Score
from edlm.objectives import denoising
from edlm.process.schedules import Schedule
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.training import continuation, kinds, log, padding, texts, vocabularies
from edlm.training import settings as training_settings
from edlm.training.kinds import OBJECTIVES, Objective
from edlm.weights import own
from edlm.weights.kinds import READINGS

# What the denoiser itself is; the recipes of energies take the same keys in their `pretrain` section.
MODEL: Schema = {
    "vocabulary": vocabularies.check,
    "length": schemas.integer(1),
    "padding": padding.check,
    "network": schemas.component("vocab_size", "max_length", "pad_id"),
    continuation.KEY: continuation.check,
    "schedule": kinds.schedule,
    "time_conditioning": schemas.flag,
    "objective": schemas.choice(*OBJECTIVES),
    "loss_steps": schemas.optional(kinds.loss_steps),
    "noise_levels": schemas.omissible(schemas.choice(*get_args(denoising.NoiseLevels))),
    "loss_weights": schemas.omissible(schemas.choice(*get_args(denoising.LossWeights))),
    "block": schemas.omissible(schemas.optional(schemas.integer(1))),
    "time_high": schemas.omissible(schemas.number(0, 1, above=True)),
    **training_settings.SETTINGS,
}


class Plan(NamedTuple):
    """The reading, training and scoring of a denoiser by a config: its objective, schedule and vocabulary."""

    objective: Objective
    schedule: Schedule
    vocabulary: Vocabulary
    settings: Mapping[str, Any]

    @property
    def told(self) -> Schedule | None:
        """The schedule if the network is told the time, else None."""
        return self.schedule if self.settings["time_conditioning"] else None

    def network(self, blocks: Blocks) -> nn.Module:
        """Build the network, of the vocabulary's size and the length of blocks, untrained or with earlier weights."""
        supplied = {"vocab_size": self.vocabulary.size, "max_length": self.settings["length"]}
        supplied |= {} if self.settings.get("block") is None else {"block_size": self.settings["block"]}
        supplied |= padding.of_network(self.settings["padding"], blocks, self.vocabulary.pad_id)
        built: nn.Module = schemas.build(self.settings["network"], "network", **supplied)
        network = own.adopt(built, self.settings["network"], supplied)
        continuation.take_up(network, self.settings.get(continuation.KEY), self.vocabulary)
        return network

    def denoiser(self, network: nn.Module) -> Any:
        """Read a network as what the objective trains."""
        return READINGS[self.objective.reading].build(network, self.vocabulary.mask_id, self.told)

    def stages(self, network: nn.Module) -> Any:
        """Build the training pipeline of a network."""
        denoiser = self.denoiser(network)
        return self.objective.stages(denoiser, self.schedule, self.settings, self.vocabulary.pad_id)

    def bound(self, network: nn.Module) -> Score:
        """Give the score of a network by the bound that its objective is held to."""
        return self.objective.bound(self.denoiser(network), self.schedule, self.settings)

    def texts(self, network: nn.Module) -> log.Texts:
        """Draw a few texts of a network as the kind that is trained."""
        denoiser, seed = self.denoiser(network), self.settings["seed"]
        baseline = READINGS[self.objective.reading].kernel
        if baseline is not None:
            return texts.baseline_texts(baseline(denoiser, self.schedule), self.vocabulary, seed)
        return texts.denoiser_texts(denoiser, self.vocabulary, seed)

    def notes(self, corpus: Any, blocks: Blocks) -> dict[str, Any]:
        """Say what a resumed run must share, which its checkpoints keep."""
        settings = self.settings
        return {
            "objective": kinds.objective_note(settings),
            "corpus": corpus.fingerprint,
            "schedule": settings["schedule"],
            "time_conditioning": settings["time_conditioning"],
            "network": settings["network"],
            "length": settings["length"],
            **kinds.notes(settings),
            **padding.notes(settings["padding"], blocks, self.vocabulary.filler_id),
            **continuation.notes(settings.get(continuation.KEY)),
            **({"wrapped": True} if getattr(corpus, "wrapped", False) else {}),
        }


def plan(settings: Mapping[str, Any], corpus: Source) -> Plan:
    """Build the plan of a config for a corpus. Raises ValueError for padding that the vocabulary has no id for."""
    words = vocabularies.build(settings, corpus)
    schedule = schemas.build(settings["schedule"], "schedule")
    return Plan(OBJECTIVES[settings["objective"]], schedule, words, settings)
