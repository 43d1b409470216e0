"""One run to an output: a lock on what a recipe writes, which ends with the process at the latest.

The lock is flock's, on a file beside the output that says who holds it; the kernel lets go when the holder dies, and
what is left of the file then means nothing. Of several processes of one run the first one holds it for all.
"""

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from edlm.runs import processes

FOLDER, FILE = "output_dir", "output"  # the keys of what a recipe writes
BY_SETTINGS = "{settings}"  # in the name of an output: whoever puts the name there takes the lock
_TRIES = 100
_held: dict[Path, IO[str]] = {}


def _let_go() -> None:
    """Close what a forked child inherits: else it would hold the lock after the run has died."""
    for file in _held.values():
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def outputs(settings: Mapping[str, Any]) -> Iterator[None]:
    """Hold a lock on every output that the settings name in full. Raises ValueError as `alone` does."""
    with contextlib.ExitStack() as stack:
        for key in (FOLDER, FILE):
            if isinstance(settings.get(key), str) and BY_SETTINGS not in settings[key]:
                stack.enter_context(alone(key, settings[key]))
        yield


@contextlib.contextmanager
def alone(key: str, value: str) -> Iterator[None]:
    """Hold the lock on the output that a key of a config names; folders made for the lock go again if they stay empty.

    Every key but `output` names a folder.
    An output that cannot be written is left to whoever writes it to refuse. Where the file system has no locks the run
    goes on, and says so. Raises ValueError naming the output and who holds it, if another run does.
    """
    output = Path(value).resolve()
    path = output.parent / f".{output.name}.lock" if key == FILE else output / ".run.lock"
    made = [each for each in path.parents if not each.exists()]
    processes.from_first(lambda: _acquire(path, key, value))
    try:
        yield
    finally:
        if processes.is_first() and path in _held:
            path.unlink(missing_ok=True)  # before the lock goes, so that whoever waits for this file sees it gone
            _held.pop(path).close()
            for each in made:
                with contextlib.suppress(OSError):  # not empty
                    each.rmdir()


def _acquire(path: Path, key: str, value: str) -> None:
    """Take the lock, or raise ValueError."""
    if path in _held:
        raise ValueError(f"{key} = {value!r} is written by this very run already: use another {key}")
    for _ in range(_TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except FileNotFoundError:  # the folder was taken away by a run that has just ended
            continue
        except OSError:
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with file:
                file.seek(0)
                raise ValueError(
                    f"{key} = {value!r} is being written by {_holder(file.read())}: wait until it has ended, or use "
                    f"another {key}"
                ) from error
        except OSError as error:
            file.close()
            said = f"edlm: no lock on {value}: its file system has none ({error.strerror}); start no second run there"
            print(said, file=sys.stderr, flush=True)
            return
        if _is_at(file, path):
            _sign(file)
            _held[path] = file
            return
        file.close()  # its holder has just ended and taken the file away


def _sign(file: IO[str]) -> None:
    """Write down who holds the lock."""
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        file.truncate(0)
        file.write(json.dumps(holder))
        file.flush()


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(said: str) -> str:
    try:
        holder = json.loads(said)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
