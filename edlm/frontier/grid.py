"""Which samplers a frontier compares: sweeps become settings, and each with a correction may bring its controls."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from edlm import costs, samplers
from edlm.contracts import Denoiser, Energy, Scope
from edlm.frontier import controls, sweeps
from edlm.models import energies
from edlm.samplers import configs
from edlm.samplers.sampler import Sampler
from edlm.weights.named import Autoregressive, Models


class Origin(NamedTuple):
    """Where an energy comes from: the key of the config, and its name among the models' energies.

    scope: what it weighs under this name; None: what it weighs first of all.
    """

    key: str
    loaded: str
    scope: Scope | None = None


ENERGIES = {
    "learned": Origin("energy", "energy"),
    "posterior": Origin("ar", "ar, posterior"),
    "carry_over": Origin("ar", "ar, carry_over"),
    "transition": Origin("transition", "transition"),
    "exact": Origin("source", "exact"),
    "exact_carry_over": Origin("source", "exact, carry_over"),
    "exact_transition": Origin("source", "exact", "transition"),
}


@dataclass(frozen=True)
class Alone:
    """An AR model by itself, which is no sampler of a denoiser."""

    model: Autoregressive = field(repr=False)
    mask_id: int
    temperature: float = 1.0

    def __str__(self) -> str:
        return sweeps.ALONE + ("" if self.temperature == 1.0 else f", temperature {self.temperature:g}")


Setting = Sampler | Alone


class Entry(NamedTuple):
    """A setting of a grid, and of what it is a control; an empty text if of nothing."""

    setting: Setting
    role: str


class Sources(NamedTuple):
    """What sweeps draw with: denoisers, the first that fits a correction is its own; energies by name; an AR model."""

    denoisers: Sequence[Denoiser]
    energies: Mapping[str, Energy]
    ar: Autoregressive | None
    mask_id: int


def sources(models: Models) -> Sources:
    """What there is to draw with among models."""
    every = (models.diffusion, models.learned, models.joint)
    loaded = {} if models.diffusion is None else models.diffusion.energies
    found = {
        name: _weighing(loaded[origin.loaded], origin.scope)
        for name, origin in ENERGIES.items()
        if origin.loaded in loaded
    }
    denoisers = [each.denoiser for each in every if each is not None]
    return Sources(denoisers, found, models.ar, models.vocabulary.mask_id)


def require_sources(wanted: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a sweep uses a network that the config does not name."""
    for index, sweep in enumerate(wanted):
        named = {name: ENERGIES[name].key for name in sweeps.called(sweep) if name in ENERGIES}
        for name, key in ({"ar": "ar"} if sweeps.ALONE in sweep else named).items():
            if key == "source":
                raise ValueError(f"sweeps[{index}] draws with {name!r}, which `edlm run oracle` alone has")
            if settings.get(key) is None:
                raise ValueError(f"{key} is null, and sweeps[{index}] draws with {name!r}: name a folder")


def expand(wanted: Sequence[Mapping[str, Any]], own: Sources, length: int) -> dict[str, Entry]:
    """Every setting once, by name, in the order of the sweeps, controls after the sweep they belong to.

    A control that a sweep names as well keeps its first place. Raises ValueError, naming the sweep, for axes that do
    not go together, for a correction that no denoiser fits, and for two settings of one name.
    """
    found: dict[str, Entry] = {}
    for index, sweep in enumerate(wanted):
        try:
            for entry in _settings(sweep, own, length):
                first = found.setdefault(str(entry.setting), entry)
                if not _same(first.setting, entry.setting):
                    raise ValueError(f"two settings that are not the same are called {str(entry.setting)!r}")
        except ValueError as error:
            raise ValueError(f"sweeps[{index}]: {error}") from error
    return found


def config(setting: Setting) -> dict[str, Any]:
    """A setting as plain values, as a sweep has them: what a finished one is known by."""
    if isinstance(setting, Alone):
        return {sweeps.ALONE: {"temperature": setting.temperature}}
    return configs.config(setting)


def family(setting: Setting) -> str:
    """How it selects with which correction: what shares a colour."""
    if isinstance(setting, Alone):
        return sweeps.ALONE
    if setting.correction is None:
        return "plain"
    return f"{setting.chooses.name}, {getattr(setting.correction, 'called', setting.correction.name)}"


COLUMNS = ("family", "plan", "candidates", "temperature", "nucleus", "window_low", "window_high")


def cells(setting: Setting | None) -> list[Any]:
    """The values of a setting in the `COLUMNS` of a table, None where there is none."""
    if setting is None:
        return [None] * len(COLUMNS)
    if isinstance(setting, Alone):
        return [family(setting), None, None, setting.temperature, None, None, None]
    return [family(setting), str(setting.plan), str(setting.candidates), *setting.proposal, *setting.window]


def expected_passes(setting: Setting, length: int) -> float:
    """Expected number of texts that networks read for one sample; an AR model with its cache reads one."""
    return 1.0 if isinstance(setting, Alone) else samplers.expected_passes(setting, length)


def _settings(sweep: Mapping[str, Any], own: Sources, length: int) -> Iterator[Entry]:
    if sweeps.ALONE in sweep:
        assert own.ar is not None
        yield from (Entry(Alone(own.ar, own.mask_id, each), "") for each in sweeps.temperatures(sweep))
        return
    every = [_fitting(values, own) for values in sweeps.samplers(sweep)]
    yield from (Entry(each, "") for each in every)
    for each in every:
        for name in sweep.get("controls", []):
            yield Entry(controls.control(name, each, own.denoisers[0], length), f"{name} of {each}")


def _fitting(values: Mapping[str, Any], own: Sources) -> Sampler:
    """The sampler with the first denoiser that it fits. Raises the ValueError of the first, if it fits none."""
    errors = []
    for denoiser in own.denoisers:
        try:
            return configs.from_config(values, denoiser, own.energies)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _same(one: Setting, other: Setting) -> bool:
    return getattr(one, "denoiser", None) is getattr(other, "denoiser", None) and config(one) == config(other)


def _weighing(energy: Energy, scope: Scope | None) -> Energy:
    """The same energy, weighing this alone."""
    if scope is None:
        return energy
    return energies.declare(copy.copy(energy), (scope,), costs.of_energy(energy))  # type: ignore[type-var]
