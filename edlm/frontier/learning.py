"""Networks trained beside a source with the recipes' own loop: energies of its exact denoiser, and denoisers."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict.nn import TensorDictSequential
from torch import nn

from edlm import contracts
from edlm.contracts import Energy
from edlm.data import vocabulary
from edlm.frontier import sweeps
from edlm.frontier.grid import ENERGIES, Entry
from edlm.likelihood import hidden_markov
from edlm.likelihood.hidden_markov import Source
from edlm.models import denoisers, energies
from edlm.nn import starts
from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer
from edlm.objectives import batches, contrastive, losses, transition
from edlm.objectives import joint as joint_objectives
from edlm.process import schedules
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.samplers.sampler import Sampler
from edlm.training import kinds
from edlm.training import settings as training_settings
from edlm.training.loop import Metrics, TrainingRun
from edlm.weights.kinds import SUBS
from edlm.weights.named import Diffusion, Models

# How a denoiser that is one here can be trained; the first is told by no key of a resumed run.
_DENOISERS = [name for name, each in kinds.OBJECTIVES.items() if each.reading == SUBS]
SETTINGS: Schema = {
    "network": schemas.component("vocab_size", "max_length"),
    "denoiser": schemas.choice(*_DENOISERS),
    "start_from": schemas.choice("denoiser", "scratch"),
    "num_energy_layers": schemas.integer(1),
    "objective": schemas.choice("nce", "info_nce"),
    "num_negatives": schemas.integer(1),
    "transition_steps": schemas.span,
    "num_texts": schemas.integer(1),
    **training_settings.SETTINGS,
}
_TEXTS, _HELD_OUT = 4, 5  # added to the seed
_ALWAYS, _CONTRAST = ("network", "num_texts"), ("start_from", "objective", "num_negatives")


Stages = Callable[[Any], TensorDictSequential]


class Scope(NamedTuple):
    """The scope of an energy, which is what it weighs, and the name by which the sampler finds it."""

    key: str
    transitions: bool


SCOPES = {"learned": Scope("energy", transitions=False), "transition": Scope("transition", transitions=True)}
DENOISER, TWO_HEADS = "denoiser", "joint"  # networks with a law of their own, by their folders
NAMES = (*SCOPES, DENOISER, TWO_HEADS)


class Learning(NamedTuple):
    """The values that all training beside one source shares."""

    source: Source
    models: Models
    exact: Diffusion
    settings: Mapping[str, Any]
    folder: Path
    seed: int

    def train(self, name: str, network: nn.Module, stages: Stages, *told: str, scope: str | None = None) -> Any:
        """Return the averaged network; training goes on where an earlier run of the same folder was stopped.

        stages: the training pipeline of a network. told: the settings, beside those of the loop and of all networks,
        that a resumed run must share. scope: what an energy weighs, written beside its weights.
        """
        tables = [[round(value, 12) for value in table.flatten().tolist()] for table in self.source]
        length, rows = self.models.max_length, self.settings["valid_rows"]
        held_out = hidden_markov.texts(self.source, rows, length, self.seed + _HELD_OUT)
        keyed = batches.training_batch(held_out, self.seed, torch.arange(rows), batches.HELD_OUT_STEP, rows)

        def validate(average: nn.Module) -> Metrics:
            with torch.no_grad():
                return {"loss": float(stages(average.eval()).eval()(keyed)[contracts.LOSS].mean())}

        run = TrainingRun(
            folder=self.folder / name,
            network=network,
            stages=stages(network),
            blocks=hidden_markov.texts(self.source, self.settings["num_texts"], length, self.seed + _TEXTS),
            vocabulary=self.models.vocabulary,
            settings={key: self.settings[key] for key in training_settings.SETTINGS},
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


def exact_models(source: Source, length: int) -> tuple[Models, Diffusion]:
    """Build what is known of a source unlearned, its symbols spelled a, b, c: its denoiser and exact energies."""
    exact = {"exact": hidden_markov.energy(source), "exact, carry_over": hidden_markov.carry_over_energy(source)}
    diffusion = Diffusion(hidden_markov.denoiser(source, length), schedules.log_linear(), exact)
    alphabet = "".join(chr(ord("a") + symbol) for symbol in range(source.num_symbols))
    return Models(vocabulary.characters(alphabet), length, diffusion, None, {}), diffusion


def require_sources(wanted: Sequence[Mapping[str, Any]], learn: Mapping[str, Any] | None) -> None:
    """Raise ValueError if a sweep uses an energy that is not there."""
    for index, sweep in enumerate(wanted):
        for name in [sweeps.ALONE] if sweeps.ALONE in sweep else sweeps.called(sweep):
            if name == sweeps.ALONE or (name in ENERGIES and ENERGIES[name].key == sweeps.ALONE):
                raise ValueError(
                    f"sweeps[{index}] draws with {name!r}: there is no AR model here but the source itself"
                )
            if name in NAMES and learn is None:
                raise ValueError(f"learn is null, and sweeps[{index}] draws with {name!r}: say how to train it")


def wanted_by(grid: Mapping[str, Entry], models: Models) -> list[str]:
    """Find which of `NAMES` the samplers of a grid are made of, that was built with `untrained` models."""
    own = {name: None if each is None else each.denoiser for name, each in _denoisers(models).items()}
    samplers = [each.setting for each in grid.values() if isinstance(each.setting, Sampler)]
    called = {getattr(each.correction, "called", None) for each in samplers}
    return [name for name in NAMES if name in called or any(each.denoiser is own.get(name, each) for each in samplers)]


def untrained(learning: Learning) -> Models:
    """Build the models with all that can be learned, before it is: what samplers can be built with.

    Raises ValueError for a network that is no `EnergyNetwork`.
    """
    start = Transformer(**_energy_network(learning).arguments)
    found = {scope.key: _energy(scope, _energy_network(learning)) for scope in SCOPES.values()}
    return learning.models._replace(
        diffusion=learning.exact._replace(energies={**learning.exact.energies, **found}),
        learned=_of(start, learning),
        joint=_of(_two_heads(start, learning), learning),
    )


def learn(wanted: Collection[str], learning: Learning) -> Models:
    """Train the energies of the exact denoiser that are wanted, and denoisers of their own, and return the models with
    them.

    A denoiser of the energies' sizes is trained first where it is wanted for itself, for energies to start from or for
    a joint network to keep. Raises ValueError for a network that is no `EnergyNetwork`.
    """
    scopes = [scope for name, scope in SCOPES.items() if name in wanted]
    starts = bool(scopes) and learning.settings["start_from"] == "denoiser"
    start = _denoiser(learning) if starts or {DENOISER, TWO_HEADS} & set(wanted) else None
    found = {scope.key: _trained(scope, learning, start if starts else None) for scope in scopes}
    models = learning.models._replace(diffusion=learning.exact._replace(energies={**learning.exact.energies, **found}))
    if start is not None and TWO_HEADS in wanted:
        models = models._replace(joint=_of(_joint(learning, start), learning))
    if start is not None and DENOISER in wanted:
        models = models._replace(learned=_of(start, learning))
    return models


def _denoisers(models: Models) -> dict[str, Diffusion | None]:
    return {DENOISER: models.learned, TWO_HEADS: models.joint}


def _of(network: nn.Module, learning: Learning) -> Diffusion:
    """A denoiser of its own on the exact one's schedule; what its corrections need it has in itself."""
    schedule = learning.exact.schedule
    return Diffusion(denoisers.subs(network, learning.models.vocabulary.mask_id, schedule=schedule), schedule, {})


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
    settings = {**learning.settings, "loss_steps": learning.settings["transition_steps"]}
    objective = kinds.OBJECTIVES[settings["denoiser"]]

    def stages(network: Transformer) -> TensorDictSequential:
        denoiser = denoisers.subs(network, learning.models.vocabulary.mask_id)
        return objective.stages(denoiser, learning.exact.schedule, settings, None)

    told = () if settings["denoiser"] == _DENOISERS[0] else ("denoiser", "transition_steps")
    network = Transformer(**_energy_network(learning).arguments)
    trained: Transformer = learning.train(DENOISER, network, stages, *told)
    return trained


def _trained(scope: Scope, learning: Learning, start: Transformer | None) -> Energy:
    network = _energy_network(learning)
    if start is not None:
        starts.start_energy_from(network, start)
    told = (*_CONTRAST, "transition_steps") if scope.transitions else _CONTRAST
    what = "transition" if scope.transitions else "draft"
    return _energy(scope, learning.train(scope.key, network, partial(_stages, scope, learning), *told, scope=what))


def _two_heads(start: Transformer, learning: Learning) -> JointNetwork:
    """An untrained joint network over a denoiser, the same for a seed."""
    torch.manual_seed(learning.seed)
    sizes = {key: value for key, value in start.arguments.items() if key not in ("causal", "pad_id")}
    return JointNetwork(**{**sizes, "num_energy_layers": learning.settings["num_energy_layers"]})


def _joint(learning: Learning, start: Transformer) -> JointNetwork:
    """A joint network over a denoiser that it keeps as it is, as `edlm_joint` with `denoiser_rate: 0`."""
    settings, mask_id = learning.settings, learning.models.vocabulary.mask_id
    network = _two_heads(start, learning)
    starts.start_joint_from(network, start)
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
    trained: JointNetwork = learning.train(TWO_HEADS, network, stages, *told, scope="transition")
    return trained


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
