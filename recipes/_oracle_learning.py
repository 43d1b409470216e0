"""Energies learned beside a source, by contrast or by its exact denoiser's chain rule, with the recipes' own loop."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict.nn import TensorDictSequential
from torch import nn

from edlm import distillation, energies, networks, objectives, sources, training, transition
from edlm.contracts import Energy
from edlm.recipes import _settings, _training
from edlm.recipes._models import Diffusion, Models
from edlm.recipes._settings import Schema
from edlm.recipes._training import TrainingRun
from edlm.sources import Source

CHAIN_RULE = "chain_rule"  # of transitions: regression on the denoiser's own terms, no contrast
SETTINGS: Schema = {
    "network": _settings.component("vocab_size", "max_length"),
    "objective": _settings.choice("nce", "info_nce", CHAIN_RULE),
    "num_negatives": _settings.integer(1),
    "transition_steps": _settings.span,
    "num_texts": _settings.integer(1),
    **_training.SETTINGS,
}
_TEXTS = 4  # added to the seed


class Scope(NamedTuple):
    """What an energy weighs, and the name by which the sampler finds it."""

    key: str
    transitions: bool


SCOPES = {"learned": Scope("energy", transitions=False), "transition": Scope("transition", transitions=True)}


def learn(scope: Scope, source: Source, models: Models, settings: Mapping[str, Any], folder: Path, seed: int) -> Energy:
    """The energy of a trained network; training goes on where an earlier run of the same folder was stopped.

    Raises ValueError for a network that is no `EnergyNetwork`.
    """
    assert models.diffusion is not None
    denoiser = models.diffusion.denoiser
    torch.manual_seed(seed)
    network = _settings.build(settings["network"], vocab_size=denoiser.vocab_size, max_length=models.max_length)
    if not isinstance(network, networks.EnergyNetwork):
        named = settings["network"]["_component_"]
        raise ValueError(f"learn.network._component_ = {named!r} must be 'edlm.networks.EnergyNetwork'")
    run = TrainingRun(
        folder=folder / scope.key,
        network=network,
        stages=_stages(scope, models.diffusion, network, settings),
        blocks=sources.texts(source, settings["num_texts"], models.max_length, seed + _TEXTS),
        vocabulary=models.vocabulary,
        settings={key: settings[key] for key in _training.SETTINGS},
        seed=seed,
        identity={"scope": "transition" if scope.transitions else "draft", **_identity(source, settings)},
        validate=lambda network: {},
    )
    run.load_checkpoint()
    run.train()
    return _energy(scope, run.average.eval())


def _stages(
    scope: Scope, diffusion: Diffusion, network: networks.EnergyNetwork, settings: Mapping[str, Any]
) -> TensorDictSequential:
    """The training pipeline of the objective. Raises ValueError for the chain rule of drafts."""
    denoiser, schedule, _ = diffusion
    steps, n, name = tuple(settings["transition_steps"]), settings["num_negatives"], settings["objective"]
    if name == CHAIN_RULE:
        if not scope.transitions:
            raise ValueError(f"learn.objective = {name!r} is for transitions, and a sweep draws with 'learned'")
        return distillation.chain_rule(denoiser, network, schedule, steps, n)
    energy, objective = _energy(scope, network), getattr(objectives, name)
    if scope.transitions:
        return transition.contrastive(denoiser, energy, schedule, steps, n, objective)
    return training.contrastive(denoiser, energy, schedule, n, settings["time_low"], objective)


def _energy(scope: Scope, network: nn.Module) -> Energy:
    if scope.transitions:
        assert isinstance(network, networks.EnergyNetwork)
        return energies.learned_transition(network)
    return energies.learned(network)


def _identity(source: Source, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a resumed run must share, beside the settings of the loop."""
    tables = [[round(value, 12) for value in table.flatten().tolist()] for table in source]
    return {"source": tables, **{key: value for key, value in settings.items() if key not in _training.SETTINGS}}
