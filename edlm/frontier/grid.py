"""The samplers that a frontier compares: sweeps become settings, and each with a correction may bring its controls."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from edlm import costs, samplers
from edlm.contracts import Denoiser, Energy, Scope
from edlm.frontier import controls, sweeps
from edlm.models import energies
from edlm.samplers import plans
from edlm.samplers.sampler import Sampler
from edlm.weights.named import Autoregressive, Models


class Origin(NamedTuple):
    """The origin of an energy: the key of the config, and its name among the models' energies.

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
    """A setting of a grid, and of what it is a control; an empty text if of nothing.

    own: the correction as its sweep has it, where that is a component whose values a correction need not keep.
    """

    setting: Setting
    role: str
    own: Mapping[str, Any] | None = None


class Sources(NamedTuple):
    """The sources of a sweep: denoisers, the first that fits a correction is its own; energies by name; an AR model."""

    denoisers: Sequence[Denoiser]
    energies: Mapping[str, Energy]
    ar: Autoregressive | None
    mask_id: int


def sources(models: Models) -> Sources:
    """Collect what there is to draw with among models."""
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
    """Expand sweeps to every setting once, by name, in the order of the sweeps, controls after the sweep they belong
    to.

    A control that a sweep names as well keeps its first place. Raises ValueError, naming the sweep, for axes that do
    not go together, for a correction that no denoiser fits, and for two settings of one name.
    """
    found: dict[str, Entry] = {}
    built: dict[tuple[Any, ...], Any] = {}
    for index, sweep in enumerate(wanted):
        try:
            for entry in _settings(sweep, own, length, built):
                first = found.setdefault(str(entry.setting), entry)
                if first.setting != entry.setting:
                    raise ValueError(f"two settings that are not the same are called {str(entry.setting)!r}")
        except ValueError as error:
            raise ValueError(f"sweeps[{index}]: {error}") from error
    return found


def config(entry: Entry) -> dict[str, Any]:
    """Give a setting as plain values, as a sweep has them: what a finished one is known by."""
    if isinstance(entry.setting, Alone):
        return {sweeps.ALONE: {"temperature": entry.setting.temperature}}
    return {**samplers.config(entry.setting), **({} if entry.own is None else {"own": dict(entry.own)})}


def family(setting: Setting) -> str:
    """Say how it selects with which correction: what shares a colour."""
    if isinstance(setting, Alone):
        return sweeps.ALONE
    if setting.correction is None:
        return "plain" if setting.remasking is None else f"plain, {setting.remasking}"
    return f"{setting.chooses.name}, {getattr(setting.correction, 'called', setting.correction.name)}"


def method(setting: Setting) -> str:
    """Name the method of a setting, which has one colour in all pictures, whatever selects its candidates."""
    if isinstance(setting, Alone):
        return sweeps.ALONE
    if setting.correction is None:
        return "plain"
    if setting.chooses.in_order:
        return "in order"
    return str(getattr(setting.correction, "called", setting.correction.name)).replace("_", " ")


COLUMNS = ("family", "plan", "candidates", "temperature", "nucleus", "window_low", "window_high")


def cells(setting: Setting | None) -> list[Any]:
    """List the values of a setting in the `COLUMNS` of a table, None where there is none."""
    if setting is None:
        return [None] * len(COLUMNS)
    if isinstance(setting, Alone):
        return [family(setting), None, None, setting.temperature, None, None, None]
    return [family(setting), str(setting.plan), str(setting.candidates), *setting.proposal, *setting.window]


def expected_passes(setting: Setting, length: int) -> float:
    """Count the texts that networks are expected to read for one sample; an AR model with its cache reads one.

    If the number depends on the tokens, count one token a pass, the most it can be. This only estimates the time.
    """
    if isinstance(setting, Alone):
        return 1.0
    found = samplers.expected_passes(setting, length)
    if found is None:
        found = samplers.expected_passes(setting.replace(plan=plans.LeftToRight()), length)
    assert found is not None
    return found


def _settings(
    sweep: Mapping[str, Any], own: Sources, length: int, built: dict[tuple[Any, ...], Any]
) -> Iterator[Entry]:
    if sweeps.ALONE in sweep:
        assert own.ar is not None
        yield from (Entry(Alone(own.ar, own.mask_id, each), "") for each in sweeps.temperatures(sweep))
        return
    every = [Entry(_fitting(values, own, built), "", sweeps.component(values)) for values in sweeps.samplers(sweep)]
    yield from every
    for setting, _, values in every:
        assert isinstance(setting, Sampler)
        for name in sweep.get("controls", []):
            found = controls.control(name, setting, own.denoisers[0], length)
            kept = values if name in controls.OF_THE_SAME_CORRECTION else None
            yield Entry(found, f"{name} of {setting}", kept)


def _fitting(values: Mapping[str, Any], own: Sources, built: dict[tuple[Any, ...], Any]) -> Sampler:
    """The sampler with the first denoiser that it fits. Raises the ValueError of the first, if it fits none.

    built: values of axes by what sweeps say, so that the same words are the same value.
    """
    errors = []
    for denoiser in own.denoisers:
        try:
            found = samplers.from_config(values, denoiser, own.energies)
        except ValueError as error:
            errors.append(error)
            continue
        keys = {axis: (axis, id(denoiser), json.dumps(said, default=str)) for axis, said in values.items()}
        return found.replace(**{axis: built.setdefault(key, getattr(found, axis)) for axis, key in keys.items()})
    raise errors[0]


def _weighing(energy: Energy, scope: Scope | None) -> Energy:
    """The same energy, weighing this alone."""
    if scope is None:
        return energy
    return energies.declare(copy.copy(energy), (scope,), costs.of_energy(energy))  # type: ignore[type-var]
