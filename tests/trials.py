"""Tests of one mutant in rounds, the nearest file, a few more and the others, each in a child and with a limit.

After the first of them run the tests that are known to enter the changed function, the quick ones first. Tests that
never enter it are left out: see `reach.py`. How long each takes is learned on the way. Tests that a limit leaves out
are counted.
"""

import atexit
import compileall
import json
import os
import py_compile
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import heavy  # noqa: F401
import pytest
from planting import OUT_OF_TIME, ROOT, package_in, run_in_child
from reach import NO_TIME, Known, Reach

PASSED, FAILED, NOT_COLLECTED, ENDED, NONE_RAN = 0, 1, 2, 3, 5  # of pytest; ENDED: by a module that is imported
KNOWN, KNOWN_BUDGET = 500, 120  # tests that are known to enter it, and seconds of the processor for them
ROUNDS = slice(0, 1), slice(1, 4), slice(4, None)  # of files, from the nearest
BUDGETS = 60, 40, 30  # seconds of the processor after which a round starts no further test
ONE_TEST = 60  # seconds of the processor that a test may take; what takes longer hangs
UNKNOWN = 0.2  # seconds of a test that has not run yet
_PLAIN = re.compile(r"[\w/.:,=\[\]-]{1,200}")  # a test's name that can stand on a command line
_NOTHING, _NO_BUDGET = "::", 10**6  # no function, which no test enters; seconds that no file takes


Seconds = dict[str, float]  # of each test, as it is learned


class Outcome(NamedTuple):
    """The verdict on a mutant, what pytest printed, and how many tests no round came to."""

    verdict: str
    output: str
    left_out: int


class _Round:
    """A pytest plugin: the order of the tests, the end of the budget, and what is to be told of both."""

    def __init__(self, told: Path, seconds: Seconds, budget: float, done: Collection[str]) -> None:
        self.told, self.budget, self.left_out, self.done = told, budget, 0, done
        self.known, self.seconds = seconds, dict[str, float]()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid not in self.done]
        items.sort(key=lambda item: self.known.get(item.nodeid, UNKNOWN))
        if not any("::" in name for name in config.args):
            files = list(dict.fromkeys(name for name in config.args))
            items.sort(key=lambda item: files.index(str(item.path)))

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
    """What the tests of all mutants share: marks of tests, seconds that a round may last, what is learned of tests.

    times: as many times longer than `BUDGETS` says a round may start tests.
    """

    words: str
    limit: float
    seconds: Seconds
    known: Known
    times: float = 1.0


def learn(plan: Plan) -> Iterator[str]:
    """Run every test that is not known yet, and learn what it enters; yields the name of each file, and how it went."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name = str(path.relative_to(ROOT))
        known = plan.known.of(name)
        if known["all"] is None or not known["tests"].keys() >= set(known["all"]):
            status, output, _ = _run([name], {}, _NOTHING, plan, _NO_BUDGET)
            yield name if status in (PASSED, NONE_RAN) else f"{name} ended with {status}: {output[-500:]}"


def try_out(files: Sequence[str], changed: dict[str, str], function: str | None, plan: Plan) -> Outcome:
    """Run the tests of a package with changed files, those that may enter the changed function."""
    left_out, done = 0, set[str]()
    for names, seconds in _rounds(files, function, plan):
        budget = round(seconds * plan.times)
        status, output, left = _run(names, changed, function, plan, budget, done)
        if status == OUT_OF_TIME:  # unless the tests take as long without the change
            hangs = _run(names, {}, function, plan, budget, done)[0] != OUT_OF_TIME
            return Outcome("hung" if hangs else "unknown", output, left_out)
        if status == ENDED and _run(names, {}, function, plan, budget, done)[0] in (PASSED, NONE_RAN):
            return Outcome("killed", output, left_out)
        assert status in (PASSED, FAILED, NOT_COLLECTED, NONE_RAN), f"pytest ended with {status}: {output}"
        if status in (FAILED, NOT_COLLECTED):
            return Outcome("killed", output, left_out)
        left_out += left
        done |= {name for name in names if "::" in name} if not left else set()
    return Outcome("survived", "", left_out)


def try_all(files: Sequence[str], changed: dict[str, str], plan: Plan) -> Outcome:
    """Run all tests of some files, in their order, against a package with changed files, until one fails."""
    tests = [str(ROOT / name) for name in files]

    def run(changes: dict[str, str]) -> tuple[int, str]:
        with _with(changes) as folder:
            return run_in_child(str(folder), tests, plan.words, plan.limit)

    status, output = run(changed)
    if status in (PASSED, NONE_RAN):
        return Outcome("survived", "", 0)
    hangs = status == OUT_OF_TIME
    noticed = not hangs or run({})[0] != OUT_OF_TIME  # unless the tests take as long without the change
    return Outcome(("hung" if hangs else "killed") if noticed else "unknown", output, 0)


def _rounds(files: Sequence[str], function: str | None, plan: Plan) -> Iterator[tuple[list[str], int]]:
    """Yield the files or tests of each round, with the seconds of the processor that it has."""
    for number, (part, seconds) in enumerate(zip(ROUNDS, BUDGETS, strict=True)):
        if names := [file for file in files[part] if plan.known.is_worth_running(file, function)]:
            yield names, seconds
        entering = filter(_PLAIN.fullmatch, plan.known.tests_entering(function or ""))
        known = [test for test in entering if test.split("::")[0] not in files[part]]
        if number == 0 and known:
            yield sorted(known, key=lambda test: plan.seconds.get(test, UNKNOWN))[:KNOWN], KNOWN_BUDGET


def _run(
    names: Sequence[str],
    changed: dict[str, str],
    function: str | None,
    plan: Plan,
    budget: int,
    done: Collection[str] = (),
) -> tuple[int, str, int]:
    with _with(changed) as folder:
        told, learned = folder / "told.json", folder / "learned.json"
        told.write_text("[{}, 0]", "utf-8")
        learned.unlink(missing_ok=True)
        plugins = [_Round(told, plan.seconds, budget, done), Reach(plan.known, folder, learned, function)]
        tests = [str(ROOT / name) for name in names]
        status, output = run_in_child(str(folder), tests, plan.words, plan.limit, budget + ONE_TEST, plugins)
    found, left_out = json.loads(told.read_text("utf-8"))
    plan.seconds.update(found)
    if learned.exists():
        plan.known.learn(json.loads(learned.read_text("utf-8")))
    return status, output, left_out


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
