"""The cases of a benchmark as a config names them: sizes, the method that each is compared with, and sweeps of one."""

from collections.abc import Mapping
from typing import Any

from edlm.benchmark.methods import METHODS, Case
from edlm.runs import settings as schemas
from edlm.runs.settings import Check, Schema
from edlm.samplers import configs

AXES = ("num_steps", "length", "num_particles", "rows", "vocab_size")


def _number_or_several(check_value: Check) -> Check:
    several = schemas.items(check_value, least=2)
    return lambda key, value: (several if isinstance(value, list) else check_value)(key, value)


SIZES: Schema = {
    "vocab_size": schemas.integer(3),
    "length": schemas.integer(1),
    "rows": schemas.integer(1),
    "num_steps": schemas.integer(1),
    "num_particles": schemas.integer(1),
}
RUNS: Schema = {
    "method": schemas.choice(*METHODS),
    "sampler": schemas.omissible(configs.section),
    "repeats": schemas.integer(1),
    "textbook_steps": schemas.optional(schemas.integer(1)),
}
TARGETS: Schema = {
    "target": schemas.optional(schemas.number(0, above=True)),
    "memory_target": schemas.optional(schemas.number(0, above=True)),
    "machinery_target": schemas.optional(schemas.number(0, 1)),
}
SWEEP: Schema = {
    **{name: _number_or_several(check_value) for name, check_value in SIZES.items()},
    **RUNS,
    "last_over_previous": schemas.optional(schemas.number(0, above=True)),
}
CASE: Schema = {**SIZES, **RUNS, **TARGETS}


def chosen(settings: Mapping[str, Any]) -> list[tuple[Case, dict[str, float | None]]]:
    """Choose the cases to run, with their targets. Raises ValueError for a number that no case has."""
    every = settings["cases"]
    for index in settings["only"] or []:
        if index >= len(every):
            raise ValueError(f"only = {settings['only']} names case {index}, and they are numbered 0..{len(every) - 1}")
    numbers = range(len(every)) if settings["only"] is None else settings["only"]
    return [(_case(f"cases[{i}]", every[i]), {name: every[i][name] for name in TARGETS}) for i in numbers]


def _case(key: str, given: Mapping[str, Any]) -> Case:
    """A case of the config. Raises ValueError for particles without an energy, or more textbook steps than steps."""
    case = Case(**{name: given[name] for name in Case._fields if name in given})
    if not case.corrects and case.num_particles != 1:
        raise ValueError(f"{key}.num_particles = {case.num_particles} must be 1 for the plain method")
    if case.textbook_steps is not None and case.textbook_steps > case.num_steps:
        raise ValueError(f"{key}.textbook_steps = {case.textbook_steps} must be at most num_steps = {case.num_steps}")
    return case


def sweep(key: str, given: Mapping[str, Any]) -> tuple[str, list[Case]]:
    """Find the axis of a sweep, which is the one size that is a list, and the case at each of its values."""
    axes = [name for name in AXES if isinstance(given[name], list)]
    if len(axes) != 1:
        raise ValueError(f"{key} has {len(axes)} lists ({', '.join(axes)}), and needs one, of {', '.join(AXES)}")
    values = given[axes[0]]
    if sorted(set(values)) != values:
        raise ValueError(f"{key}.{axes[0]} = {values} must rise")
    return axes[0], [_case(key, {**given, axes[0]: value}) for value in values]
