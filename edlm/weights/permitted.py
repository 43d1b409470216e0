"""The names that a saved folder may use: a closed table. Nothing that a file says is imported or called beside it.

A folder says by name which class its network is of, by name and numbers which schedule it was trained on, and by name
what else decides how it is read. All else in it is data, which nothing calls.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from edlm.nn import networks, shallow
from edlm.process import schedules
from edlm.process.schedules import Schedule

COMPONENT = "_component_"  # the key by which a config names what is to be called
SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    made.__name__: made
    for made in (
        schedules.log_linear,
        schedules.cosine,
        schedules.cosine_squared,
        schedules.linear,
        schedules.geometric,
        schedules.polynomial,
    )
}
NETWORKS: Mapping[str, type[nn.Module]] = {
    made.__name__: made
    for made in (networks.Transformer, networks.EnergyNetwork, networks.JointNetwork, shallow.ShallowNetwork)
}
# Where folders, old and new, say that schedules and networks are.
_HOMES = ("edlm.schedules", "edlm.process.schedules")
_NETWORK_HOMES = ("edlm.networks", "edlm.nn.networks", "edlm.nn.shallow")
# What else is read of a folder's notes, and what it may be.
_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "parameterisation": (None, "d3pm", "sedd"),
    "scope": ("draft", "transition"),
    "time_conditioning": (True, False),
    "wrapped": (True,),
}


def schedule(note: Any, where: str) -> Schedule:
    """Build the schedule that a folder names, `{"_component_": "edlm.schedules.log_linear", "eps": 0.001}`.

    Raises ValueError, naming `where` and the value, for a name outside of the table, and for arguments that are not
    numbers of that schedule.
    """
    if not isinstance(note, Mapping):
        raise ValueError(f"{where}: schedule = {note!r} must be a section with a {COMPONENT}")
    home, _, name = str(note.get(COMPONENT)).rpartition(".")
    if home not in _HOMES or name not in SCHEDULES:
        known = ", ".join(f"{_HOMES[0]}.{each}" for each in SCHEDULES)
        raise ValueError(f"{where}: schedule {note.get(COMPONENT)!r} is not executed: it must be one of {known}")
    numbers = {key: value for key, value in note.items() if key != COMPONENT}
    known = ", ".join(inspect.signature(SCHEDULES[name]).parameters)
    for key, value in numbers.items():
        if key not in inspect.signature(SCHEDULES[name]).parameters:
            raise ValueError(f"{where}: schedule.{key} is not known; {name} takes {known}")
        if type(value) not in (int, float) or not abs(value) < math.inf:
            raise ValueError(f"{where}: schedule.{key} = {value!r} must be a finite number")
    try:
        return SCHEDULES[name](**numbers)
    except (ValueError, ArithmeticError) as error:
        raise ValueError(f"{where}: schedule: {error}") from error


def check_notes(notes: Mapping[str, Any], where: str) -> None:
    """Raise ValueError, naming `where`, the key and the value, for notes of a folder that no reader can go by.

    That is a schedule, a parameterisation, a scope or a special id outside of what there is.
    """
    if notes.get("schedule") is not None:
        schedule(notes["schedule"], where)
        if "time_conditioning" not in notes:
            raise ValueError(f"{where}: has a schedule, and lacks time_conditioning")
    for key, allowed in _CHOICES.items():
        if key in notes and not any(type(notes[key]) is type(each) and notes[key] == each for each in allowed):
            known = ", ".join(repr(each) for each in allowed)
            raise ValueError(f"{where}: {key} = {notes[key]!r} must be one of {known}")
    bos_id = notes.get("bos_id")
    if bos_id is not None and (type(bos_id) is not int or bos_id < 0):
        raise ValueError(f"{where}: bos_id = {bos_id!r} must be an id, or null")


def known_notes(notes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Keep of a stranger's notes what is plain data: what names a component, but for those of the table, is dropped.

    Raises ValueError as `check_notes` does.
    """
    check_notes(notes, where)
    return {key: value for key, value in notes.items() if all(map(_is_known, _components(value)))}


def _is_known(path: Any) -> bool:
    home, _, name = str(path).rpartition(".")
    return (home in _HOMES and name in SCHEDULES) or (home in _NETWORK_HOMES and name in NETWORKS)


def _components(value: Any) -> Iterator[Any]:
    """Find all that is named as a component, anywhere in a value."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            if COMPONENT in each:
                yield each[COMPONENT]
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
