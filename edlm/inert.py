"""Reading files of `torch.save` without running anything they name.

Such a file is a pickle beside raw numbers, and a pickle can name any function to be called. `torch.load` with
`weights_only=True` calls a short list of functions that rebuild tensors and plain containers, and refuses the rest;
training frameworks store settings objects beside the weights, so their files are refused whole. Here each name that is
not on that list stands for `Inert`, which keeps what the file says and runs nothing.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import serialization

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

    Raises ValueError naming the file if it is no whole file of `torch.save`, or needs more than the above to be read;
    the message then says how to keep only the plain part of it, on a machine where the file is trusted.
    """
    try:
        unknown = serialization.get_unsafe_globals_in_checkpoint(path)
        # Only this file's names, only while it is read.
        with serialization.safe_globals([(_stand_in(name), name) for name in unknown]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:  # torch wraps what it met in advice to execute the file
        raise ValueError(_refusal(path, error.__context__ or error)) from error
    except Exception as error:  # a broken archive raises whatever its reader meets first
        raise ValueError(f"{path}: not a whole zip file of torch.save ({_first_line(error)})") from error


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
