"""Networks trained beside a source with the recipes' own loop: energies of its exact denoiser, and denoisers."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict.nn import TensorDictSequential
from torch import nn

from edlm import contracts
from edlm.contracts import Energy
from edlm.frontier.grid import JOINT
from edlm.likelihood import hidden_markov
from edlm.likelihood.hidden_markov import Source
from edlm.models import chain_rule, denoisers, energies, joint
from edlm.nn import networks
from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer
from edlm.objectives import chain_rule as chain_rule_objectives
from edlm.objectives import contrastive, denoising, losses, transition
from edlm.objectives import joint as joint_objectives
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.training import loop
from edlm.training.loop import TrainingRun
from edlm.weights.named import CHAIN_RULE, Diffusion, Models

SETTINGS: Schema = {
    "network": schemas.component("vocab_size", "max_length"),
    "denoiser": schemas.choice("mdlm", "chain_rule"),
    "start_from": schemas.choice("denoiser", "scratch"),
    "num_energy_layers": schemas.integer(1),
    "objective": schemas.choice("nce", "info_nce"),
    "num_negatives": schemas.integer(1),
    "transition_steps": schemas.span,
    "num_texts": schemas.integer(1),
    **loop.SETTINGS,
}
_TEXTS, _HELD_OUT = 4, 5  # added to the seed
_ALWAYS, _CONTRAST = ("network", "num_texts"), ("start_from", "objective", "num_negatives")


Stages = Callable[[Any], TensorDictSequential]


class Scope(NamedTuple):
    """What an energy weighs, and the name by which the sampler finds it."""

    key: str
    transitions: bool


SCOPES = {"learned": Scope("energy", transitions=False), "transition": Scope("transition", transitions=True)}
NAMES = (*SCOPES, JOINT, CHAIN_RULE)


class Learning(NamedTuple):
    """What all training beside one source shares."""

    source: Source
    models: Models
    exact: Diffusion
    settings: Mapping[str, Any]
    folder: Path
    seed: int

    def train(self, name: str, network: nn.Module, stages: Stages, *told: str, scope: str | None = None) -> Any:
        """The averaged network; training goes on where an earlier run of the same folder was stopped.

        stages: the training pipeline of a network. told: the settings, beside those of the loop and of all networks,
        that a resumed run must share. scope: what an energy weighs, written beside its weights.
        """
        tables = [[round(value, 12) for value in table.flatten().tolist()] for table in self.source]
        length, rows = self.models.max_length, self.settings["valid_rows"]
        held_out = hidden_markov.texts(self.source, rows, length, self.seed + _HELD_OUT)
        keyed = loop.keyed(held_out, torch.arange(rows), self.seed, loop.HELD_OUT_STEP, rows)

        def validate(average: nn.Module) -> loop.Metrics:
            with torch.no_grad():
                return {"loss": float(stages(average.eval()).eval()(keyed)[contracts.LOSS].mean())}

        run = TrainingRun(
            folder=self.folder / name,
            network=network,
            stages=stages(network),
            blocks=hidden_markov.texts(self.source, self.settings["num_texts"], length, self.seed + _TEXTS),
            vocabulary=self.models.vocabulary,
            settings={key: self.settings[key] for key in loop.SETTINGS},
            seed=self.seed,
            identity={
                "source": tables,
                "length": length,
                **{key: self.settings[key] for key in (*_ALWAYS, *told)},
                **({} if scope is None else {"scope": scope}),
            },
            validate=validate,
        )
        run.load_checkpoint()
        run.train()
        return run.average.eval()


def learn(wanted: Collection[str], learning: Learning) -> Models:
    """The models with the energies of the exact denoiser that are wanted, and with denoisers of their own.

    A denoiser of the energies' sizes is trained first where it is wanted for its chain rule, for energies to start from
    or for a joint network to keep. Raises ValueError for a network that is no `EnergyNetwork`.
    """
    scopes = [scope for name, scope in SCOPES.items() if name in wanted]
    starts = bool(scopes) and learning.settings["start_from"] == "denoiser"
    start = _denoiser(learning) if starts or {JOINT, CHAIN_RULE} & set(wanted) else None
    found = {scope.key: _trained(scope, learning, start if starts else None) for scope in scopes}
    models = learning.models._replace(diffusion=learning.exact._replace(energies={**learning.exact.energies, **found}))
    if start is not None and JOINT in wanted:
        models = models._replace(joint=_joint(learning, start))
    if start is not None and CHAIN_RULE in wanted:
        denoiser = denoisers.subs(start, models.vocabulary.mask_id, schedule=learning.exact.schedule)
        own = {CHAIN_RULE: chain_rule.energy(denoiser)}
        models = models._replace(learned=Diffusion(denoiser, learning.exact.schedule, own))
    return models


def _energy_network(learning: Learning) -> EnergyNetwork:
    """Untrained, the same for a seed."""
    torch.manual_seed(learning.seed)
    named = learning.settings["network"]
    sizes: dict[str, Any] = {
        "vocab_size": learning.exact.denoiser.vocab_size,
        "max_length": learning.models.max_length,
    }
    network = schemas.build(named, **sizes)
    if not isinstance(network, EnergyNetwork):
        raise ValueError(f"learn.network._component_ = {named['_component_']!r} must be 'edlm.networks.EnergyNetwork'")
    return network


def _denoiser(learning: Learning) -> Transformer:
    """A denoiser of the energies' sizes, trained by the NELBO, and in order too where that is wanted."""
    settings, schedule = learning.settings, learning.exact.schedule
    in_order = settings["denoiser"] == "chain_rule"

    def stages(network: Transformer) -> TensorDictSequential:
        denoiser = denoisers.subs(network, learning.models.vocabulary.mask_id)
        if in_order:
            return chain_rule_objectives.denoising(denoiser, schedule, tuple(settings["transition_steps"]))
        return denoising.denoising(denoiser, schedule, settings["time_low"])

    told = ("denoiser", "transition_steps") if in_order else ()
    network = Transformer(**_energy_network(learning).arguments)
    trained: Transformer = learning.train("denoiser", network, stages, *told)
    return trained


def _trained(scope: Scope, learning: Learning, start: Transformer | None) -> Energy:
    network = _energy_network(learning)
    if start is not None:
        networks.start_energy_from(network, start)
    told = (*_CONTRAST, "transition_steps") if scope.transitions else _CONTRAST
    what = "transition" if scope.transitions else "draft"
    return _energy(scope, learning.train(scope.key, network, partial(_stages, scope, learning), *told, scope=what))


def _joint(learning: Learning, start: Transformer) -> Diffusion:
    """A joint network over a denoiser that it keeps as it is, as `edlm_joint` with `denoiser_rate: 0`."""
    settings, mask_id = learning.settings, learning.models.vocabulary.mask_id
    torch.manual_seed(learning.seed)
    sizes = {key: value for key, value in start.arguments.items() if key not in ("causal", "pad_id")}
    network = JointNetwork(**{**sizes, "num_energy_layers": settings["num_energy_layers"]})
    networks.start_joint_from(network, start)
    network.denoiser.requires_grad_(False)

    def stages(network: JointNetwork) -> TensorDictSequential:
        return joint_objectives.contrastive(
            denoisers.subs(network, mask_id),
            learning.exact.schedule,
            tuple(settings["transition_steps"]),
            settings["num_negatives"],
            nelbo_weight=0.0,
            objective=_objective(settings),
        )

    told = ("objective", "num_negatives", "transition_steps", "num_energy_layers")
    trained: JointNetwork = learning.train(JOINT, network, stages, *told, scope="transition")
    return Diffusion(
        denoisers.subs(trained, mask_id, schedule=learning.exact.schedule),
        learning.exact.schedule,
        {JOINT: joint.energy(trained)},
    )


def _stages(scope: Scope, learning: Learning, network: EnergyNetwork) -> TensorDictSequential:
    """The training pipeline of the objective."""
    denoiser, schedule, _ = learning.exact
    settings = learning.settings
    steps, n = tuple(settings["transition_steps"]), settings["num_negatives"]
    energy = _energy(scope, network)
    if scope.transitions:
        return transition.contrastive(denoiser, energy, schedule, steps, n, _objective(settings))
    return contrastive.contrastive(denoiser, energy, schedule, n, settings["time_low"], _objective(settings))


def _objective(settings: Mapping[str, Any]) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(losses, settings["objective"])
    return found


def _energy(scope: Scope, network: EnergyNetwork) -> Energy:
    return energies.learned_transition(network) if scope.transitions else energies.learned(network)
