"""Tensors in files: how many and how large is known before any is read, and what is no weight of a network is refused.

Names that `torch.compile`, DDP, FSDP and activation checkpointing put around a network are taken off.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edlm import limits
from edlm.runs.environment import UNVERIFIED

_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
T = TypeVar("T")
_LENGTH_BYTES = 8  # of a safetensors file, in which it says how long its header is


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises ValueError naming the file if it is missing, broken or above limits."""
    shapes(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error})") from error


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a safetensors file, none of them read. Raises ValueError as `read_safetensors`."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
            if size > file.stat().st_size - _LENGTH_BYTES:
                raise ValueError("its header is cut off")
            limits.require(file, "bytes of its header", size, limits.HEADER_BYTES)
            content = json.loads(opened.read(size))
        found = {name: tuple(each["shape"]) for name, each in content.items() if name != "__metadata__"}
    except limits.TooLarge:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error})") from error
    limits.require(file, "tensors", len(found), limits.TENSORS)
    return found


def unwrapped(tensors: Mapping[str, T], where: str | Path) -> dict[str, T]:
    """The same tensors, or shapes, under the names that the network has by itself.

    Raises ValueError for two names that become one.
    """
    found: dict[str, T] = {}
    for name, value in tensors.items():
        plain = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if plain in found:
            raise ValueError(f"{where}: {plain} is there twice, once as {name}")
        found[plain] = value
    return found


def require_held(tensors: Mapping[str, Tensor], file: Path, copies: int = 1) -> None:
    """Raise ValueError for more tensors than the limit, or for more bytes than `copies` times those of the file.

    A tensor of a file of `torch.save` is a view, by which a few bytes can be said to be gigabytes.
    """
    limits.require(file, "tensors", len(tensors), limits.TENSORS)
    size, total = file.stat().st_size, 0
    for name, value in tensors.items():
        total += value.numel() * value.element_size()
        if total > copies * size:
            shape = tuple(value.shape)
            raise ValueError(f"{file}: up to {name}, of shape {shape}, its tensors take {total} bytes; it has {size}")


def sha256(file: Path) -> str:
    """The hash of a file's content. Raises ValueError naming the file if it cannot be read."""
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error


def digest(content: Any) -> str:
    """The hash of what a json file holds, whatever its white space."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def require_hash(found: str, recorded: Any, file: Path) -> None:
    """Raise ValueError naming the file unless what is found is the hash that was written down when it was saved.

    None: nothing was, by an earlier version, and nothing is compared.
    """
    if recorded is not None and found != recorded and not os.environ.get(UNVERIFIED):
        raise ValueError(
            f"{file}: damaged or exchanged since it was saved: its sha256 is {found[:12]}, and was "
            f"{str(recorded)[:12]}; verify=false ({UNVERIFIED}=1) reads it all the same"
        )
