"""Tests of one mutant, each trial in a child with a limit."""

import atexit
import compileall
import os
import py_compile
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import heavy  # noqa: F401
from planting import OUT_OF_TIME, ROOT, package_in, run_in_child

PASSED, NONE_RAN = 0, 5  # of pytest; it ends with a number below zero where a module that is imported ends it


class Outcome(NamedTuple):
    """The verdict on a mutant, and what pytest printed."""

    verdict: str
    output: str


def try_out(files: Sequence[str], changed: dict[str, str], words: str, limit: float) -> Outcome:
    """Run the tests of some files, in their order, against a package with changed files, until one fails."""
    tests = [str(ROOT / name) for name in files]

    def run(changes: dict[str, str]) -> tuple[int, str]:
        with _with(changes) as folder:
            return run_in_child(str(folder), tests, words, limit)

    status, output = run(changed)
    if status in (PASSED, NONE_RAN):
        return Outcome("survived", "")
    hangs = status == OUT_OF_TIME
    noticed = not hangs or run({})[0] != OUT_OF_TIME  # unless the tests take as long without the change
    return Outcome(("hung" if hangs else "killed") if noticed else "unknown", output)


@contextmanager
def _with(changed: dict[str, str]) -> Iterator[Path]:
    """The copy of the package, with some files changed meanwhile."""
    folder = _package()
    before = {name: (folder / name).read_text("utf-8") for name in changed}
    try:
        for name, text in changed.items():
            (folder / name).write_text(text, encoding="utf-8")
        yield folder
    finally:
        for name, text in before.items():
            (folder / name).write_text(text, encoding="utf-8")


@cache
def _package() -> Path:
    """A copy of the package that mutants are planted in, one after the other, compiled."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    package_in(folder)
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
    sys.dont_write_bytecode = False
    by_hash = py_compile.PycInvalidationMode.CHECKED_HASH  # of two changes within a second the times say nothing
    compileall.compile_dir(folder / "edlm", quiet=2, invalidation_mode=by_hash)
    return folder


def worked() -> float:
    """Seconds of the processor that this process and its children have taken."""
    return sum(os.times()[:4])
