"""Networks trained beside a source with the recipes' own loop: energies of its exact denoiser, and a joint network."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict.nn import TensorDictSequential
from torch import nn

from edlm import denoisers, distillation, energies, joint, networks, objectives, sources, training, transition
from edlm.contracts import Energy
from edlm.networks import EnergyNetwork, JointNetwork, Transformer
from edlm.recipes import _settings, _training
from edlm.recipes._models import Diffusion, Models
from edlm.recipes._settings import Schema
from edlm.recipes._training import TrainingRun
from edlm.sources import Source

CHAIN_RULE = "chain_rule"  # of transitions: regression on the denoiser's own terms, no contrast
SETTINGS: Schema = {
    "network": _settings.component("vocab_size", "max_length"),
    "joint": _settings.optional(_settings.component("vocab_size", "max_length")),
    "objective": _settings.choice("nce", "info_nce", CHAIN_RULE),
    "num_negatives": _settings.integer(1),
    "transition_steps": _settings.span,
    "num_texts": _settings.integer(1),
    **_training.SETTINGS,
}
_TEXTS = 4  # added to the seed
_CONTRAST = ("objective", "num_negatives", "transition_steps")


class Scope(NamedTuple):
    """What an energy weighs, and the name by which the sampler finds it."""

    key: str
    transitions: bool


SCOPES = {"learned": Scope("energy", transitions=False), "transition": Scope("transition", transitions=True)}


class Learning(NamedTuple):
    """What all training beside one source shares."""

    source: Source
    models: Models
    settings: Mapping[str, Any]
    folder: Path
    seed: int

    def build(self, key: str, cls: type[nn.Module]) -> Any:
        """The untrained network of a key of the settings. Raises ValueError for one of another class."""
        assert self.models.diffusion is not None
        torch.manual_seed(self.seed)
        sizes = {"vocab_size": self.models.diffusion.denoiser.vocab_size, "max_length": self.models.max_length}
        network = _settings.build(self.settings[key], **sizes)
        if not isinstance(network, cls):
            named = self.settings[key]["_component_"]
            raise ValueError(f"learn.{key}._component_ = {named!r} must be 'edlm.networks.{cls.__name__}'")
        return network

    def train(self, name: str, network: nn.Module, stages: TensorDictSequential, scope: str, *told: str) -> nn.Module:
        """The averaged network; training goes on where an earlier run of the same folder was stopped.

        told: the settings, beside those of the loop, that a resumed run must share.
        """
        tables = [[round(value, 12) for value in table.flatten().tolist()] for table in self.source]
        own = {key: self.settings[key] for key in (*told, "num_texts")}
        run = TrainingRun(
            folder=self.folder / name,
            network=network,
            stages=stages,
            blocks=sources.texts(self.source, self.settings["num_texts"], self.models.max_length, self.seed + _TEXTS),
            vocabulary=self.models.vocabulary,
            settings={key: self.settings[key] for key in _training.SETTINGS},
            seed=self.seed,
            identity={"scope": scope, "source": tables, **own},
            validate=lambda network: {},
        )
        run.load_checkpoint()
        run.train()
        return run.average.eval()


def learn(scope: Scope, learning: Learning) -> Energy:
    """The energy of a trained network. Raises ValueError for a network that is no `EnergyNetwork`."""
    network = learning.build("network", EnergyNetwork)
    stages = _stages(scope, network, learning)
    name = "transition" if scope.transitions else "draft"
    return _energy(scope, learning.train(scope.key, network, stages, name, "network", *_CONTRAST))


def learn_joint(learning: Learning) -> Diffusion:
    """A joint network over a denoiser of the same sizes that is trained first and then kept, as `edlm_joint` at rate 0.

    Raises ValueError for a network that is no `JointNetwork`, and for the chain rule.
    """
    settings, objective = learning.settings, _objective(learning, "joint")
    assert learning.models.diffusion is not None
    schedule, mask_id = learning.models.diffusion.schedule, learning.models.vocabulary.mask_id
    network: JointNetwork = learning.build("joint", JointNetwork)
    stages = training.denoising(denoisers.subs(network.denoiser, mask_id), schedule, settings["time_low"])
    trained = learning.train("denoiser", network.denoiser, stages, "denoiser", "joint")
    assert isinstance(trained, Transformer)
    networks.start_joint_from(network, trained)
    network.denoiser.requires_grad_(False)
    steps, n = tuple(settings["transition_steps"]), settings["num_negatives"]
    contrast = joint.contrastive(denoisers.subs(network, mask_id), schedule, steps, n, 0.0, objective=objective)
    average = learning.train("joint", network, contrast, "joint", "joint", *_CONTRAST)
    assert isinstance(average, JointNetwork)
    return Diffusion(denoisers.subs(average, mask_id), schedule, {"joint": joint.energy(average)})


def _stages(scope: Scope, network: EnergyNetwork, learning: Learning) -> TensorDictSequential:
    """The training pipeline of the objective. Raises ValueError for the chain rule of drafts."""
    assert learning.models.diffusion is not None
    denoiser, schedule, _ = learning.models.diffusion
    settings = learning.settings
    steps, n = tuple(settings["transition_steps"]), settings["num_negatives"]
    if scope.transitions and settings["objective"] == CHAIN_RULE:
        return distillation.chain_rule(denoiser, network, schedule, steps, n)
    energy, objective = _energy(scope, network), _objective(learning, "learned")
    if scope.transitions:
        return transition.contrastive(denoiser, energy, schedule, steps, n, objective)
    return training.contrastive(denoiser, energy, schedule, n, settings["time_low"], objective)


def _objective(learning: Learning, drawn_with: str) -> Callable[..., Any]:
    name = learning.settings["objective"]
    if name == CHAIN_RULE:
        raise ValueError(
            f"learn.objective = {name!r} is for the energy 'transition' alone, and a sweep draws with {drawn_with!r}"
        )
    return getattr(objectives, name)


def _energy(scope: Scope, network: nn.Module) -> Energy:
    if scope.transitions:
        assert isinstance(network, EnergyNetwork)
        return energies.learned_transition(network)
    return energies.learned(network)
