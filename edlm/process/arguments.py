"""Checks of arguments that are numbers: a wrong kind of value is refused by its name, in one line."""

from numbers import Integral, Real
from typing import Any


def require_whole(name: str, value: Any, least: int = 1, also: str = "") -> None:
    """Raise ValueError, naming the argument, unless a value is a whole number of at least `least`.

    also: what else would be right, for the message.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} = {value!r} must be a whole number of at least {least}{also}")
    if int(value) < least:
        raise ValueError(f"{name} = {value} must be at least {least}{also}")


def require_numbers(**values: Any) -> None:
    """Raise ValueError, naming the first one, unless all values are numbers."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"{name} = {value!r} must be a number")
