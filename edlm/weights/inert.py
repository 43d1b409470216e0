"""Reading files of `torch.save` without running anything they name.

Such a file is a pickle beside raw numbers, and a pickle can name any function to be called. `torch.load` with
`weights_only=True` calls a short list of functions that rebuild tensors and plain containers, and refuses the rest;
training frameworks store settings objects beside the weights, so their files are refused whole. Here each name that is
not on that list stands for `Inert`, which keeps what the file says and runs nothing.

How much a file takes is known before it is read: its parts lie in it as they are, as torch.save leaves them, so that
they are mapped and not copied; the pickle is small; and of torch's list only those names are taken that make nothing
larger than the file.
"""

import io
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import serialization
from torch._weights_only_unpickler import get_globals_in_pkl

from edlm import limits
from edlm.runs import environment

# Of what torch calls for a file, the names that are taken, beside number types and the classes of typed storages.
_PLAIN = {
    *("collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.complex", "_codecs.encode"),
    *("torch.Size", "torch.device", "torch.nn.parameter.Parameter", "torch._tensor._rebuild_from_type_v2"),
    *("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"),
    "torch._utils._rebuild_parameter_with_state",
}
_DEFAULT_DICT = "collections.defaultdict"  # filled item by item, which nothing but a dict may be


class Inert:
    """An object of a class that is not loaded: the arguments and the state that the file gives it, nothing else."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> "Inert":
        """Keep the arguments."""
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, not loaded>"

    def __setstate__(self, state: Any) -> None:
        """Keep the state."""
        self.state = state


def read(path: Path) -> Any:
    """What `torch.save` wrote, tensors on the CPU, every object of an unknown class as an `Inert`.

    Raises ValueError naming the file if it is no whole file of `torch.save`, is compressed or above the limits, or
    needs more than the above to be read; the message then says how to keep only the plain part of it, on a machine
    where the file is trusted.
    """
    try:
        named = _names(path)
        unknown = serialization.get_unsafe_globals_in_checkpoint(path)
        for name in sorted(named - set(unknown)):
            if not _is_plain(name):
                raise pickle.UnpicklingError(f"names {name}, of no tensor of numbers and of no setting")
        # Only this file's names, only while it is read.
        with serialization.safe_globals([(_stand_in(name), name) for name in unknown]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (_Refused, limits.TooLarge):
        raise
    except pickle.UnpicklingError as error:  # torch wraps what it met in advice to execute the file
        raise ValueError(_refusal(path, error.__context__ or error)) from error
    except Exception as error:  # a broken archive raises whatever its reader meets first
        raise ValueError(f"{path}: not a whole zip file of torch.save ({_first_line(error)})") from error


class _Refused(ValueError):
    """What is said of a file as it is."""


def _names(path: Path) -> set[str]:
    """Every name in the pickle of a file, after a check of its parts: what they take, and whether they are whole."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        limits.require(path, "parts", len(parts), limits.TENSORS)
        for part in parts:
            if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
                raise _Refused(
                    f"{path}: {part.filename} is compressed, and torch.save compresses nothing: unpack the file, and "
                    "pack the folder in it again without compression (zip -0 -r)"
                )
        pickles = [part for part in parts if part.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it holds no data.pkl, or more than one")
        limits.require(path, "bytes of data.pkl", pickles[0].file_size, limits.PICKLE_BYTES)
        damaged = None if os.environ.get(environment.UNVERIFIED) else archive.testzip()
        if damaged is not None:
            raise _Refused(
                f"{path}: {damaged} is damaged: its checksum is another than the file says; {environment.UNVERIFIED}=1 "
                "reads it all the same"
            )
        pickled = archive.read(pickles[0])
    folder = pickles[0].filename.removesuffix("data.pkl")
    sizes = {part.filename.removeprefix(f"{folder}data/"): part.file_size for part in parts}
    _require_steps(path, pickled, sizes)
    return get_globals_in_pkl(io.BytesIO(pickled))


def _require_steps(path: Path, pickled: bytes, sizes: Mapping[str, int]) -> None:
    """Raise ValueError for a pickle of too many steps, or that takes more or less of a part than the part holds."""
    memo: dict[Any, Any] = {}
    top: Any = None
    since_mark: list[Any] = []
    for step, (operation, argument, _) in enumerate(pickletools.genops(pickled)):
        name = operation.name
        if step >= limits.PICKLE_STEPS:
            limits.require(path, "steps of its pickle", step + 1, limits.PICKLE_STEPS)
        if name == "MARK":
            since_mark = []
            continue
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = top
            continue
        if name == "BINPERSID":
            _require_storage(path, top, sizes)
        top = memo.get(argument) if name in ("BINGET", "LONG_BINGET") else argument
        top = tuple(since_mark) if name == "TUPLE" else top
        since_mark.append(top)


def _require_storage(path: Path, named: Any, sizes: Mapping[str, int]) -> None:
    """Check one part, named as torch.save does: ("storage", "torch FloatStorage", "0", "cpu", 12)."""
    if not (isinstance(named, tuple) and len(named) == 5):
        raise ValueError("it names a part of the file in a way that torch.save does not")
    _, kind, key, _, count = named
    if kind == "torch.storage UntypedStorage":  # of number types that are no weight's, refused by name
        return
    taken = count * serialization.StorageType(str(kind).split()[-1]).dtype.itemsize
    if taken != sizes.get(key):
        raise _Refused(f"{path}: data/{key} is said to hold {taken} bytes, and holds {sizes.get(key)}")


def _is_plain(name: str) -> bool:
    number = isinstance(getattr(torch, name.removeprefix("torch."), None), torch.dtype)
    typed = name.startswith("torch.") and name.endswith("Storage") and not name.startswith("torch.storage.")
    return name in _PLAIN or number or typed


def _stand_in(name: str) -> Callable[..., Any]:
    """A class of its own for each name, so that what is built of one is not taken for another."""
    return (lambda *_: {}) if name == _DEFAULT_DICT else type(name, (Inert,), {})


def _refusal(path: Path, error: BaseException) -> str:
    command = (
        f"import torch; c = torch.load({str(path)!r}, map_location='cpu', weights_only=False); "
        "torch.save({k: c[k] for k in ('state_dict', 'ema', 'global_step') if k in c}, 'plain.ckpt')"
    )
    return (
        f"{path}: holds more than weights and settings, and is not executed ({_first_line(error)}); where you trust the"
        f' file, keep its plain part with: python -c "{command}"'
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
