"""Checks of arguments: a wrong kind of value is refused by its name, in one line."""

from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from edlm import contracts

_SHOWN = 80  # characters of a value in a message
_LAST_SEED = 2**63 - 1  # noise is keyed by an int64


def require_whole(name: str, value: Any, least: int = 1, also: str = "", most: int | None = None) -> None:
    """Raise ValueError, naming the argument, unless a value is a whole number of at least `least`, and at most `most`.

    also: what else would be right, for the message.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} = {shown(value)} must be a whole number of at least {least}{also}")
    if int(value) < least:
        raise ValueError(f"{name} = {value} must be at least {least}{also}")
    if most is not None and int(value) > most:
        raise ValueError(f"{name} = {value} must be at most {most}")


def require_integers(**values: Any) -> None:
    """Raise ValueError, naming the first one, unless all values are whole numbers."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"{name} = {shown(value)} must be a whole number")


def require_draw(num_samples: Any, seed: Any, first_row: Any) -> None:
    """Raise ValueError, naming the argument, unless texts can be counted so, and their noise be keyed so."""
    require_whole("num_samples", num_samples)
    require_whole("seed", seed, 0, most=_LAST_SEED)
    require_whole("first_row", first_row, 0)


def require_numbers(**values: Any) -> None:
    """Raise ValueError, naming the first one, unless all values are numbers."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"{name} = {shown(value)} must be a number")


def require_ids(name: str, value: Any, instead: str) -> None:
    """Raise ValueError, naming the argument, unless a value is a tensor of whole numbers.

    instead: what gives such a tensor.
    """
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} must be a tensor of token ids, {instead}, not of class {type(value).__name__}")
    if not value.numel():
        return
    if value.dtype == torch.bool or value.is_floating_point() or value.is_complex():
        raise ValueError(f"{name} must be a tensor of token ids, {instead}, not of {value.dtype}")


def require_kind(name: str, value: Any, is_one: bool, instead: str) -> None:
    """Raise ValueError, naming the argument, unless it is found to be what is asked for.

    instead: what would be right.
    """
    if not is_one:
        kind = f"the class {value.__name__} itself" if isinstance(value, type) else f"of class {type(value).__name__}"
        raise ValueError(f"{name} must be {instead}, not {kind}")


def require_path(name: str, value: Any) -> None:
    """Raise ValueError, naming the argument, unless a value is the path of a file or folder."""
    require_kind(name, value, isinstance(value, str | PathLike), "a path")


def require_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless it is there. Raises ValueError naming it if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error.strerror}") from error


def require_energy(name: str, value: Any) -> None:
    """Raise ValueError, naming the argument, unless a value writes energies."""
    is_one = not isinstance(value, type) and contracts.ENERGY in (getattr(value, "out_keys", None) or ())
    require_kind(name, value, is_one, "one, as energies.learned(network) is")


def shown(value: Any) -> str:
    """Show a value in a message, on one line and no longer than that."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
