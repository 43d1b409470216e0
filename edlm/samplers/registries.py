"""The names of an axis' values: a name is taken once, and a file that is imported again puts its own value anew."""

from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, TypeVar

V = TypeVar("V")
_LAMBDA = "<lambda>"


def put(registry: dict[str, V], of: str, name: str, value: V) -> V:
    """Give a value its name. What the same lines made before takes its place, as when a notebook reloads a file.

    Raises ValueError, naming the axis `of` which it is, for a name that something else has.
    """
    if name in registry and _origin(registry[name]) != _origin(value):
        raise ValueError(f"{of} {name!r} is registered already")
    registry[name] = value
    return value


def _origin(value: Any) -> Hashable:
    """Say where a function or class is defined, by names that outlast an import; of a value, its first function."""
    if isinstance(value, partial):
        return _origin(value.func)
    if hasattr(value, "__qualname__"):
        code = getattr(value, "__code__", None)  # lambdas share a name: they are told apart by the names they use
        used = (*code.co_names, *code.co_freevars) if code is not None and code.co_name == _LAMBDA else ()
        return value.__module__, value.__qualname__, used
    parts = [getattr(value, each.name) for each in fields(value)] if is_dataclass(value) else []
    return next((_origin(each) for each in parts if callable(each)), _origin(type(value)))
