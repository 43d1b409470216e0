"""Which samplers a frontier compares: sweeps become settings, and each with an energy may bring its controls."""

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edlm.process import schedules
from edlm.process.schedules import Schedule
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.weights.named import CHAIN_RULE, SPECULATIVE


class Origin(NamedTuple):
    """Where an energy comes from: the key of the config, and its name among the models' energies."""

    key: str
    loaded: str


ENERGIES = {
    "learned": Origin("energy", "energy"),
    "posterior": Origin("ar", "ar, posterior"),
    "carry_over": Origin("ar", "ar, carry_over"),
    "transition": Origin("transition", "transition"),
    "joint": Origin("joint", "joint"),
    "chain_rule": Origin("denoiser", "chain_rule"),
    "exact": Origin("source", "exact"),
    "exact_carry_over": Origin("source", "exact, carry_over"),
    "exact_transition": Origin("source", "exact"),
}
CONTROLS = ("one_particle", "zero", "flipped", "equal_passes")
FLIPPED = "flipped "
ZERO = "zero"
ZERO_TRANSITION = "zero transition"
JOINT, ZERO_JOINT = "joint", "zero joint"
ZERO_CHAIN_RULE = "zero chain_rule"
ZEROS = (ZERO, ZERO_TRANSITION, ZERO_JOINT, ZERO_CHAIN_RULE)
_OF_TRANSITIONS = ("transition", "exact_transition", ZERO_TRANSITION, JOINT, ZERO_JOINT, CHAIN_RULE, ZERO_CHAIN_RULE)
_ROUNDS = 2  # of `speculative` in a step, about
_MOST_STEPS = 16  # per token: with more of them nearly every pass reveals one position

_TEMPERATURES: Schema = {
    "method": schemas.text,
    "temperature": schemas.items(schemas.temperature(), least=1),
}
_STEPS: Schema = {**_TEMPERATURES, "num_steps": schemas.items(schemas.optional(schemas.integer(1)), least=1)}
_PARTICLES: Schema = {
    **_STEPS,
    "energy": schemas.items(schemas.choice(*ENERGIES), least=1),
    "num_particles": schemas.items(schemas.integer(1), least=1),
    "window": schemas.items(schemas.window, least=1),
    "controls": schemas.items(schemas.choice(*CONTROLS)),
}
METHODS = {
    "plain": _STEPS,
    "sir": _PARTICLES,
    "imh": _PARTICLES,
    SPECULATIVE: {**_STEPS, "window": _PARTICLES["window"]},
    "ar": _TEMPERATURES,
}


class Setting(NamedTuple):
    """One sampler. energy: None without one, `zero`, or a name of `ENERGIES`, `flipped` in front for its negative.

    One of transitions weighs what a step reveals, the others whole drafts; `zero transition` is E = 0 of the former.
    `joint` is the energy of a joint network with the denoiser of that network, `zero joint` that denoiser alone;
    `chain_rule` is the energy of transitions that the denoiser has in itself, `zero chain_rule` E = 0 of that denoiser.
    The method `speculative` draws what this energy's weights tend to as k grows, and has no particles.
    temperature: of the denoiser's law that proposes, or of the AR model. num_steps: None is one position at a time.
    """

    method: str
    energy: str | None
    num_steps: int | None
    num_particles: int
    window: tuple[float, float]
    temperature: float

    def __str__(self) -> str:
        parts = [self.method] if self.energy is None else [self.method, self.energy]
        if self.method != "ar":
            parts.append("one by one" if self.num_steps is None else f"T={self.num_steps}")
        if self.energy is not None and not self.is_speculative:
            parts.append(f"k={self.num_particles}")
        if self.energy is not None and self.window != (0.0, 1.0):
            parts.append("t in [{:g}, {:g}]".format(*self.window))
        return ", ".join(parts) + ("" if self.temperature == 1.0 else f", temperature {self.temperature:g}")

    @property
    def family(self) -> str:
        """The method with its energy: what shares a colour."""
        return self.method if self.energy is None else f"{self.method}, {self.energy}"

    @property
    def is_speculative(self) -> bool:
        """Whether tokens are written in order, with no particle weighed."""
        return self.method == SPECULATIVE

    @property
    def has_network(self) -> bool:
        """Whether there is an energy that costs passes of a network."""
        return self.energy not in (None, ZERO, ZERO_TRANSITION, ZERO_CHAIN_RULE)

    @property
    def of_transitions(self) -> bool:
        """Whether candidates fill in what a step reveals, and not all masks."""
        return self.energy is not None and self.energy.removeprefix(FLIPPED) in _OF_TRANSITIONS

    @property
    def of_joint(self) -> bool:
        """Whether one network both denoises and weighs, so that its passes are those of the candidates."""
        return self.energy is not None and self.energy.removeprefix(FLIPPED) in (JOINT, ZERO_JOINT)

    @property
    def of_chain_rule(self) -> bool:
        """Whether the denoiser's own network weighs what is new, and reads nothing else for it."""
        return self.energy is not None and self.energy.removeprefix(FLIPPED) in (CHAIN_RULE, ZERO_CHAIN_RULE)

    @classmethod
    def plain(cls, num_steps: int | None, temperature: float = 1.0) -> "Setting":
        """The denoiser alone."""
        return cls("plain", None, num_steps, 1, (0.0, 1.0), temperature)


def check_sweep(key: str, value: Any) -> None:
    """A section with a `method` and the lists of that method. Raises ValueError naming the key."""
    method = value.get("method") if isinstance(value, dict) else None
    schemas.choice(*METHODS)(f"{key}.method", method)
    schemas.check(METHODS[str(method)], value, where=f"{key}.")


def energies_of(sweep: Mapping[str, Any]) -> list[str]:
    """The energies that a sweep names, or that its method is made of."""
    return [CHAIN_RULE] if sweep["method"] == SPECULATIVE else list(sweep.get("energy", []))


def require_sources(sweeps: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a sweep uses a network that the config does not name."""
    for index, sweep in enumerate(sweeps):
        named = {name: ENERGIES[name].key for name in energies_of(sweep)}
        for name, key in ({"ar": "ar"} if sweep["method"] == "ar" else named).items():
            if key == "source":
                raise ValueError(f"sweeps[{index}] draws with {name!r}, which `edlm run oracle` alone has")
            if settings.get(key) is None:
                raise ValueError(f"{key} is null, and sweeps[{index}] draws with {name!r}: name a folder")


def expand(sweeps: Sequence[Mapping[str, Any]], schedule: Schedule, length: int) -> dict[Setting, str]:
    """Every setting once, in the order of the sweeps, controls after the sweep they belong to; and of what it is one.

    A sweep is the product of its lists. A control that a sweep names as well keeps its first place.
    """
    found: dict[Setting, str] = {}
    for sweep in sweeps:
        every = list(_product(sweep))
        for setting in every:
            found.setdefault(setting, "")
        for setting in every:
            for name in sweep.get("controls", []):
                found.setdefault(control(name, setting, schedule, length), f"{name} of {setting}")
    return found


def control(name: str, setting: Setting, schedule: Schedule, length: int) -> Setting:
    """The control of a setting with an energy.

    one_particle: k = 1, token for token the plain sampler at the proposal's temperature. zero: E = 0, whose weights
    only make up for that temperature; at 1 it has the law of the plain sampler. flipped: -E. equal_passes: the plain
    sampler at the number of steps whose expected passes are those of this setting's denoiser and energy together.
    """
    if name == "one_particle":
        return setting._replace(num_particles=1)
    if name == "zero":
        return setting._replace(energy=_zero_of(setting))
    if name == "flipped":
        return setting._replace(energy=f"{FLIPPED}{setting.energy}")
    passes = expected_passes(setting, schedule, length)
    return Setting.plain(steps_for(passes, schedule, length), setting.temperature)


def _zero_of(setting: Setting) -> str:
    """The name of E = 0 with the setting's own denoiser, over what its candidates fill in."""
    if setting.of_joint:
        return ZERO_JOINT
    if setting.of_chain_rule:
        return ZERO_CHAIN_RULE
    return ZERO_TRANSITION if setting.of_transitions else ZERO


def expected_passes(setting: Setting, schedule: Schedule, length: int) -> float:
    """Expected number of texts that networks read for one sample; an AR model with its cache reads one.

    Step j reveals something with probability `1 - (1 - p_j)^l`, `p_j` the share of the positions it reveals. A joint
    network's candidates are its next step's input, and one pass of its denoiser goes before the first of them. One of
    `chain_rule` is read at what the step reveals, less a token, twice; of `speculative` about as often as `_ROUNDS`.
    """
    if setting.method == "ar":
        return 1.0
    if setting.num_steps is None:
        inside = _kept(schedule, torch.tensor([setting.window[1], setting.window[0]], dtype=torch.float64)).diff()
        passes, corrected = float(length), length * float(inside)
    else:
        times = schedules.uniform_grid(setting.num_steps)
        shares, within = _kept(schedule, times).diff(), schedules.inside(times[:-1], setting.window)
        busy, inside = 1.0 - (1.0 - shares) ** length, shares[within].sum()
        passes, corrected = float(busy.sum()), float(busy[within].sum())
    if setting.of_joint:
        entered = 1.0 - (1.0 - float(inside)) ** length
        return passes - corrected + entered + setting.num_particles * corrected
    if setting.of_chain_rule and setting.has_network:
        read = _ROUNDS if setting.is_speculative else setting.num_particles
        return passes + read * 2.0 * (length * float(inside) - corrected) / length
    return passes + (setting.num_particles * corrected if setting.has_network else 0.0)


def steps_for(passes: float, schedule: Schedule, length: int) -> int | None:
    """The fewest steps of the plain sampler with that many expected passes, rounded; None, one by one, if none has."""
    steps = range(1, _MOST_STEPS * length + 1)
    index = bisect_left(steps, passes - 0.5, key=lambda count: expected_passes(Setting.plain(count), schedule, length))
    return steps[index] if index < len(steps) else None


def _kept(schedule: Schedule, t: Tensor) -> Tensor:
    """Expected share of the positions that are revealed before time t is reached, 0 at 1 and 1 at 0."""
    at_one = schedule.alpha(torch.ones((), dtype=torch.float64))
    return torch.where(t > 0.0, (schedule.alpha(t) - at_one) / (1.0 - at_one), 1.0)


def _product(sweep: Mapping[str, Any]) -> Iterator[Setting]:
    axes = {"num_steps": [None], "num_particles": [1], "window": [[0.0, 1.0]], **sweep}
    axes["energy"] = energies_of(sweep) or [None]
    names = [name for name in Setting._fields if name != "method"]
    for values in itertools.product(*(axes[name] for name in names)):
        given = dict(zip(names, values, strict=True))
        window = (float(given["window"][0]), float(given["window"][1]))
        yield Setting(method=sweep["method"], **{**given, "window": window, "temperature": float(given["temperature"])})
