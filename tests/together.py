"""Several processes in a test: forked from this warm one, so that they cost no start of an interpreter."""

import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torchtune.config  # noqa: F401  # once, and not in every child
from tqdm import tqdm

from edlm.runs import processes


def fork(work: Callable[[], object], said: Path | None = None) -> int:
    """Run some work in a child that exits with 0, or with 1 after an error; returns its id.

    said: where all that it prints goes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a progress bar's thread: the child does without
        child = os.fork()
    if child:
        return child
    status = 1
    tqdm.set_lock(threading.RLock())  # the inherited one is one for all: whoever is killed with it stops the others
    try:
        if said is not None:
            target = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(target, 1)
            os.dup2(target, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        work()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(child: int, seconds: float = 120.0) -> int:
    """The exit status of a child as a shell gives it, minus the signal where one ended it; it is killed when late."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"a child took more than {seconds} s")


def start(work: Callable[[], object], count: int, folder: Path) -> list[int]:
    """Fork processes that `runs.processes` joins into one run; `folder/said_<rank>` is what each of them prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def member(rank: int) -> None:
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in own.items()})
        with processes.joined("cpu"):
            work()

    return [fork(lambda rank=rank: member(rank), folder / f"said_{rank}") for rank in range(count)]


def together(work: Callable[[], object], count: int, folder: Path) -> None:
    """Run the same work in several processes that have joined, and fail with what they said if one fails."""
    statuses = finish(start(work, count, folder))
    said = [(folder / f"said_{rank}").read_text() for rank in range(count)]
    assert statuses == [0] * count, "\n".join(said)


def finish(children: Sequence[int]) -> list[int]:
    """The exit statuses of children, all ended when one fails."""
    statuses: list[int] = []
    try:
        for child in children:
            statuses.append(wait(child))
            assert statuses[-1] == 0 or len(statuses) == len(children), "the others wait for it"
    except AssertionError:
        for child in children[len(statuses) :]:
            os.kill(child, signal.SIGKILL)
            statuses.append(wait(child))
    return statuses
