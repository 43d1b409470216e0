"""Copies of the package to plant faults in, and tests that run against them in forks of one process."""

import atexit
import compileall
import gc
import io
import json
import os
import py_compile
import select
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
OPTIONS = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "--hypothesis-profile=no-shrinking"]
OPTIONS += ["--assert=plain", "--tb=line"]  # that a test fails is all that is asked
OPTIONS += ["-p", "no:anyio"]  # no test is asynchronous
OUT_OF_TIME = -9  # the status of a child that was stopped


def package_in(folder: Path) -> None:
    """Copy the package as it is installed and compiled: the recipes inside of it."""
    shutil.copytree(compiled(), folder, dirs_exist_ok=True)


@cache
def compiled() -> Path:
    """What is copied. A module with a fault is compiled anew, because its source has another hash."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree(ROOT / "edlm", folder / "edlm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", folder / "edlm" / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    by_hash = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(folder, quiet=2, invalidation_mode=by_hash)
    return folder


def run_in_child(folder: str, names: list[str], words: str = "not slow", limit: float | None = None) -> tuple[int, str]:
    """Exit status of pytest and what it printed, from a forked child that imports the package from a folder.

    It is stopped after `limit` seconds. `words` choose tests by their marks, as `pytest -m`; by default those run that
    `pytest` alone would run.
    """

    def run() -> int:
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = folder  # for the processes a test starts itself
        os.chdir(folder)
        return int(pytest.main([*OPTIONS, "-m", words, *names]))

    status, output = in_child(run, limit)
    return OUT_OF_TIME if status is None else status, output


def in_child(work: Callable[[], Any], limit: float | None = None) -> tuple[Any, str]:
    """Give what a function returns in a forked child, and what it printed.

    In place of the result is -1 where it raises, None where it does not end or is stopped after `limit` seconds.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.setsid()  # what a test starts is stopped with it
        gc.freeze()  # what the parent has imported is not looked through again
        printed, result = io.StringIO(), -1
        try:
            with redirect_stdout(printed), redirect_stderr(printed):
                result = work()
        except BaseException:
            traceback.print_exc(file=printed)
        finally:  # a child never goes on as its parent
            with os.fdopen(write, "w") as pipe:
                json.dump([result, printed.getvalue()[-3000:]], pipe)
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        in_time = bool(select.select([pipe], [], [], limit)[0])
        told = pipe.read() if in_time else ""  # nothing from a child that was stopped
    if not in_time:
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return tuple(json.loads(told)) if told else (None, "")
