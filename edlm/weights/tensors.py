"""Tensors in files: number and size are known before any is read, and tensors that are no weights are refused.

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
from torch import Tensor, nn

from edlm import limits
from edlm.runs.environment import UNVERIFIED

HASHES = "sha256"  # the key of both json files under which hashes stand
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
T = TypeVar("T")
_LENGTH_BYTES = 8  # of a safetensors file, in which it says how long its header is
_TENSOR = "tensor:"  # prefix of a name that stands for a tensor in the json of a training state


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file. Raises ValueError naming a file that is missing, broken or too large."""
    shapes(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error})") from error


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Read the shape of every tensor of a safetensors file, but no tensor. Raises ValueError as `read_safetensors`."""
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
    """Rename tensors, or shapes, to the names that the network has by itself.

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

    A tensor in a file of `torch.save` is a view. Through it a few bytes can pass for gigabytes.
    """
    limits.require(file, "tensors", len(tensors), limits.TENSORS)
    size, total = file.stat().st_size, 0
    for name, value in tensors.items():
        total += value.numel() * value.element_size()
        if total > copies * size:
            shape = tuple(value.shape)
            raise ValueError(f"{file}: up to {name}, of shape {shape}, its tensors take {total} bytes; it has {size}")


def sha256(file: Path) -> str:
    """Hash a file's content. Raises ValueError naming the file if it cannot be read."""
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error


def digest(content: Any) -> str:
    """Hash the content of a json file, whatever its white space."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def require_hash(found: str, recorded: Any, file: Path) -> None:
    """Raise ValueError naming the file unless its hash is the one that was written down when it was saved.

    None: an earlier version wrote no hash, and nothing is compared.
    """
    if recorded is not None and found != recorded and not os.environ.get(UNVERIFIED):
        raise ValueError(
            f"{file}: damaged or exchanged since it was saved: its sha256 is {found[:12]}, and was "
            f"{str(recorded)[:12]}; verify=false ({UNVERIFIED}=1) reads it all the same"
        )


def hashes(folder: Path, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read the hashes that a json file of the folder holds, none in a folder of an earlier version."""
    found = record.get(HASHES, {})
    if not isinstance(found, dict):
        raise ValueError(f"{folder}: {HASHES} = {found!r} must be a section of hashes by name")
    return found


def verify(folder: Path, record: Mapping[str, Any], *names: str) -> None:
    """Raise ValueError for the first of these files that is not what its hash in the json file says."""
    recorded = hashes(folder, record)
    for name in names:
        if name in recorded:
            require_hash(sha256(folder / name), recorded[name], folder / name)


def require_shapes(outline: nn.Module, file: Path) -> None:
    """Raise ValueError naming each parameter that the file lacks, has beside, or has in another shape."""
    require_named({name: tuple(value.shape) for name, value in outline.state_dict().items()}, file)


def require_named(expected: Mapping[str, tuple[int, ...]], file: Path) -> None:
    """Raise ValueError as `require_shapes` does. expected: shapes by name."""
    found = unwrapped(shapes(file), file)
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not known" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} has shape {found[name]}, not {expected[name]}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name]
    ]
    if problems:
        raise ValueError(f"{file}: {'; '.join(sorted(problems)[:5])}")


def encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Make plain json of a nested value; tensors go into `tensors` and leave their name behind."""
    if isinstance(value, Tensor):
        name = f"{_TENSOR}{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return name
    if isinstance(value, Mapping):
        return {"pairs": [[key, encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [encode(item, tensors) for item in value]
    return value


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Restore the nested value that `encode` made plain."""
    if isinstance(value, dict):
        return {key: decode(item, tensors) for key, item in value["pairs"]}
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if isinstance(value, str) and value.startswith(_TENSOR):
        return tensors[value]
    return value
