"""Tests of one mutant in rounds, the nearest file, a few more and the others, each in a child and with a limit.

Tests that never enter the changed function are left out: see `reach.py`.

The quick tests of a file run first; how long each takes is learned on the way. Tests that a limit leaves out are
counted.
"""

import atexit
import compileall
import json
import os
import py_compile
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from planting import OUT_OF_TIME, ROOT, package_in, run_in_child
from reach import NO_TIME, Known, Reach

PASSED, FAILED, NOT_COLLECTED, NONE_RAN = 0, 1, 2, 5  # exit statuses of pytest
ROUNDS = slice(0, 1), slice(1, 4), slice(4, None)  # of files, from the nearest
BUDGETS = 60, 40, 30  # seconds of the processor after which a round starts no further test
ONE_TEST = 60  # seconds of the processor that a test may take; what takes longer hangs
UNKNOWN = 0.2  # seconds of a test that has not run yet


Seconds = dict[str, float]  # of each test, as it is learned


class Outcome(NamedTuple):
    """The verdict on a mutant, what pytest printed, and how many tests no round came to."""

    verdict: str
    output: str
    left_out: int


class _Round:
    """A pytest plugin: the order of the tests, the end of the budget, and what is to be told of both."""

    def __init__(self, told: Path, seconds: Seconds, budget: float) -> None:
        self.told, self.budget, self.left_out = told, budget, 0
        self.known, self.seconds = seconds, dict[str, float]()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        files = list(dict.fromkeys(item.path for item in items))
        items.sort(key=lambda item: (files.index(item.path), self.known.get(item.nodeid, UNKNOWN)))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        begin, left_out = time.process_time(), self.left_out
        result = yield
        if self.left_out == left_out:
            self.seconds[item.nodeid] = round(time.process_time() - begin, 3)
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if time.process_time() > self.budget:
            self.left_out += 1
            pytest.skip(NO_TIME)

    def pytest_sessionfinish(self) -> None:
        self.told.write_text(json.dumps([self.seconds, self.left_out]), "utf-8")


class Plan(NamedTuple):
    """What the tests of all mutants share: marks of tests, seconds that a round may last, what is learned of tests."""

    words: str
    limit: float
    seconds: Seconds
    known: Known


def try_out(files: Sequence[str], changed: dict[str, str], function: str | None, plan: Plan) -> Outcome:
    """Run the tests of a package with changed files, those that may enter the changed function."""
    left_out = 0
    for part, budget in zip(ROUNDS, BUDGETS, strict=True):
        names = [file for file in files[part] if plan.known.is_worth_running(file, function)]
        if not names:
            continue
        status, output, left = _run(names, changed, function, plan, budget)
        if status == OUT_OF_TIME:  # unless the tests take as long without the change
            hangs = _run(names, {}, function, plan, budget)[0] != OUT_OF_TIME
            return Outcome("hung" if hangs else "unknown", output, left_out)
        assert status in (PASSED, FAILED, NOT_COLLECTED, NONE_RAN), f"pytest ended with {status}: {output}"
        if status in (FAILED, NOT_COLLECTED):
            return Outcome("killed", output, left_out)
        left_out += left
    return Outcome("survived", "", left_out)


def _run(
    names: Sequence[str], changed: dict[str, str], function: str | None, plan: Plan, budget: int
) -> tuple[int, str, int]:
    folder = _package()
    told, learned = folder / "told.json", folder / "learned.json"
    told.write_text("[{}, 0]", "utf-8")
    learned.unlink(missing_ok=True)
    before = {name: (folder / name).read_text("utf-8") for name in changed}
    plugins = [_Round(told, plan.seconds, budget), Reach(plan.known, folder, learned, function)]
    try:
        for name, text in changed.items():
            (folder / name).write_text(text, encoding="utf-8")
        tests = [str(ROOT / name) for name in names]
        status, output = run_in_child(str(folder), tests, plan.words, plan.limit, budget + ONE_TEST, plugins)
    finally:
        for name, text in before.items():
            (folder / name).write_text(text, encoding="utf-8")
    found, left_out = json.loads(told.read_text("utf-8"))
    plan.seconds.update(found)
    if learned.exists():
        plan.known.learn(json.loads(learned.read_text("utf-8")))
    return status, output, left_out


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
