"""The axes of a sweep: those of a sampler as any config has them, with a list where several values are wanted.

A sweep is the product of its lists. A value that is a list by itself, as a window is, is one value; several of them are
a list of lists.
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, get_origin, get_type_hints

from edlm.frontier.controls import CONTROLS
from edlm.runs import settings as schemas
from edlm.runs.settings import Check, Schema
from edlm.samplers import configs, corrections, planning, remasking, selections
from edlm.samplers.sampler import Proposal

ALONE = "ar"  # instead of the axes: the AR model by itself
_WANTED = "a section with the axes of a sampler, or with `ar`"
_SLOWEST_FIRST = ("selection", "correction", "plan", "candidates", "window", "proposal")  # of a product
_LISTS = {"window"}  # axes that are lists themselves


def check_sweep(key: str, value: Any) -> None:
    """Check a section with axes of samplers and their `controls`, or `ar`. Raises ValueError naming the key."""
    if not isinstance(value, dict):
        raise ValueError(f"{key} = {value!r} must be {_WANTED}")
    if ALONE in value:
        schemas.check({ALONE: schemas.section({"temperature": _several(schemas.temperature())})}, value, f"{key}.")
        return
    keys = (*_AXES, "controls")
    schemas.check(dict.fromkeys(keys, _anything), {**dict.fromkeys(keys), **value}, f"{key}.")
    schemas.items(schemas.choice(*CONTROLS))(f"{key}.controls", value.get("controls", []))
    found = list(samplers(value))
    if not found:
        raise ValueError(f"{key}: an empty list is no value, and leaves no sampler")
    for each in found:
        for axis, single in each.items():
            _AXES[axis](f"{key}.{axis}", single)


def samplers(sweep: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every combination of a sweep's values: each what `samplers.from_config` reads."""
    axes = [axis for axis in (*_SLOWEST_FIRST, *_AXES) if axis in sweep]
    axes = list(dict.fromkeys(axes))
    for values in itertools.product(*(_each(sweep[axis], axis, _LISTS) for axis in axes)):
        yield dict(zip(axes, values, strict=True))


def temperatures(sweep: Mapping[str, Any]) -> list[float]:
    """List the temperatures of the AR model by itself."""
    return [float(each) for each in _each(sweep[ALONE]["temperature"])]


def called(sweep: Mapping[str, Any]) -> list[str]:
    """Name the energies that a sweep's corrections ask for."""
    found = [(each.get("correction") or {}).get("called") for each in samplers(sweep)] if ALONE not in sweep else []
    return list(dict.fromkeys(name for name in found if name is not None))


def component(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Find the correction of a sampler's values, if it or its energy is a component."""
    found = values.get("correction") or {}
    own = found.get("energy")
    return found if "_component_" in found or (isinstance(own, Mapping) and "_component_" in own) else None


def _each(value: Any, key: str = "", lists: Collection[str] = ()) -> list[Any]:
    """Every value that one with lists in it stands for; `lists`: keys whose value is a list by itself."""
    if isinstance(value, dict):
        own = _lists_of(key, value.get("name"))
        each = (_each(found, name, own) for name, found in value.items())
        return [dict(zip(value, found, strict=True)) for found in itertools.product(*each)]
    if not isinstance(value, list) or (key in lists and not any(isinstance(found, list) for found in value)):
        return [value]
    return [one for found in value for one in ([found] if isinstance(found, list) else _each(found, key))]


def _lists_of(axis: str, name: Any) -> set[str]:
    """The options of a named value of an axis that are lists by themselves, as its class says."""
    known: Mapping[str, Mapping[str, Any]] = {
        "plan": planning.PLANS,
        "correction": corrections.CORRECTIONS,
        "remasking": remasking.RULES,
    }
    factory = known.get(axis, {}).get(name) if isinstance(name, str) else None
    try:
        hints = get_type_hints(factory) if isinstance(factory, type) else {}
    except (NameError, TypeError):  # a class of the user's own need not say
        return set()
    return {option for option, hint in hints.items() if get_origin(hint) in (tuple, list)}


def _several(check_value: Check) -> Check:
    """A value that another check accepts, or a list of at least one."""

    def check_several(key: str, value: Any) -> None:
        if isinstance(value, list):
            schemas.items(check_value, least=1)(key, value)
        else:
            check_value(key, value)

    return check_several


def _with(plain: Mapping[str, Any], schema: Schema) -> Check:
    """A section whose keys may be left out."""

    def check_section(key: str, value: Any) -> None:
        schemas.section(schema)(key, {**plain, **value} if isinstance(value, dict) else value)

    return check_section


def _named(known: Mapping[str, Any], check_options: Callable[[str, Mapping[str, Any]], None]) -> Check:
    """A section with the `name` of a registered value and its options, or a component."""

    def check_named(key: str, value: Any) -> None:
        if isinstance(value, dict) and "_component_" in value:
            configs.COMPONENT(key, value)
            return
        if not isinstance(value, dict):
            raise ValueError(f"{key} = {value!r} must be a section with a name, one of {', '.join(known)}")
        schemas.choice(*known)(f"{key}.name", value.get("name"))
        check_options(key, value)

    return check_named


def _check_built(known: Mapping[str, Callable[..., Any]], key: str, value: Mapping[str, Any]) -> None:
    """A rule depends on nothing that is loaded, so it is built at once."""
    options = _check_options(known, key, value)
    try:
        known[value["name"]](**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: {error}") from error


def _check_plan(key: str, value: Mapping[str, Any]) -> None:
    """A plan is built at once too, one with another inside as it is in any config."""
    _check_options(planning.PLANS, key, value)
    configs.SECTION["plan"](key, value)


def _check_options(known: Mapping[str, Callable[..., Any]], key: str, value: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: option for name, option in value.items() if name != "name"}
    schemas.check_arguments(key, known[value["name"]], options, value["name"])
    return options


def _anything(key: str, value: Any) -> None:
    """Accept anything: what is built later is checked then."""


def _selection(key: str, value: Any) -> None:
    schemas.either(schemas.choice(*selections.SELECTIONS), configs.COMPONENT)(key, value)


_PROPOSAL = _with(
    Proposal()._asdict(), {"temperature": schemas.temperature(), "nucleus": schemas.number(0, 1, above=True)}
)
_UNTIL_ESS = _with(
    {"first": 1},
    {"ess": schemas.number(0, above=True), "at_most": schemas.integer(1), "first": schemas.integer(1)},
)
_AXES: Schema = {
    "plan": _named(planning.PLANS, _check_plan),
    "proposal": _PROPOSAL,
    "correction": schemas.optional(_named(corrections.CORRECTIONS, _anything)),
    "candidates": schemas.either(schemas.integer(1), _UNTIL_ESS),
    "selection": _selection,
    "window": schemas.window,
    "remasking": schemas.optional(_named(remasking.RULES, partial(_check_built, remasking.RULES))),
}
