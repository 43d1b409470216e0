"""Every fault of `faults.py`, planted one at a time in a copy of the package, is caught by the test it names."""

import ast
import atexit
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
from fault import Fault
from faults import OWN, PUBLISHED, table
from importing import most_used_first

ROOT = Path(__file__).parents[1]
PASSED, FAILED = 0, 1  # exit statuses of pytest
GROUPS = 24  # of faults


def run_tests(*wanted: tuple[Fault | None, list[str]]) -> list[tuple[int, str]]:
    """Exit status and output of tests of this suite, each run against a package with a fault."""
    work = [
        (fault and fault.file, fault and planted_in(source_of(fault), fault), [str(ROOT / name) for name in names])
        for fault, names in wanted
    ]
    planting = _planting()
    assert planting.stdin is not None
    assert planting.stdout is not None
    print(json.dumps(work), file=planting.stdin, flush=True)
    results = json.loads(planting.stdout.readline())
    assert isinstance(results, list), results
    return [(status, output) for status, output in results]


@cache
def _planting() -> subprocess.Popen[str]:
    """One process for all groups that run here: it imports the heavy libraries once."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    program = [sys.executable, str(ROOT / "tests" / "planted.py")]
    pipe, elsewhere = subprocess.PIPE, tempfile.gettempdir()  # not where the package lies
    started = subprocess.Popen(program, env=environment, stdin=pipe, stdout=pipe, text=True, cwd=elsewhere)
    atexit.register(started.communicate)  # ends its input, and so the process
    return started


def source_of(fault: Fault) -> Path:
    """The file of a fault, whose recipes are beside the package."""
    return next(path for path in (ROOT / "edlm" / fault.file, ROOT / fault.file) if path.is_file())


def planted_in(path: Path, fault: Fault) -> str:
    """Make the one replacement, which must be possible in exactly one way."""
    text = path.read_text("utf-8")
    assert text.count(fault.old) == 1, f"{fault.file} has {text.count(fault.old)} places for {fault.name!r}"
    return text.replace(fault.old, fault.new)


def plant(folder: Path, fault: Fault) -> None:
    """Write a fault into a copy of the package."""
    path = folder / "edlm" / fault.file
    path.write_text(planted_in(path, fault), encoding="utf-8")


@cache
def groups() -> list[list[Fault]]:
    """All faults, those of one file together."""
    faults = [*PUBLISHED, *OWN]
    order = most_used_first(fault.file for fault in faults)
    faults.sort(key=lambda fault: order.index(fault.file))
    return [faults[len(faults) * group // GROUPS : len(faults) * (group + 1) // GROUPS] for group in range(GROUPS)]


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
def test_planted_faults_are_caught(group: int) -> None:
    """By tests that `pytest` runs without a further word."""
    planted = groups()[group]
    results = run_tests(*((fault, [fault.caught_by]) for fault in planted))
    missed = {fault.name: output for fault, (status, output) in zip(planted, results, strict=True) if status != FAILED}
    assert not missed


@pytest.mark.slow
def test_a_copy_without_a_fault_fails_no_test() -> None:
    """One catching test of each file, its first case, on a copy: the copy itself is not what they catch.

    That all of them pass on the package is shown by `pytest`, which runs them.
    """
    of_file = {fault.caught_by.split("::")[0]: fault.caught_by for fault in (*PUBLISHED, *OWN)}
    [(status, output)] = run_tests((None, sorted(of_file.values())))
    assert status == PASSED, output


@pytest.mark.slow
def test_a_change_that_is_no_fault_is_not_caught() -> None:
    """Of the module that most others import, which are all imported anew."""
    fault = groups()[0][0]
    [(status, output)] = run_tests((fault._replace(new=fault.old), [fault.caught_by]))
    assert status == PASSED, output


@pytest.mark.parametrize("fault", [*PUBLISHED, *OWN], ids=lambda fault: fault.name)
def test_a_fault_has_one_place(fault: Fault) -> None:
    """Else a line that was written anew would be found by the slow tests alone."""
    assert source_of(fault).read_text("utf-8").count(fault.old) == 1


@cache
def slow_tests(file: str) -> set[str]:
    """Names of the tests of a file that plain `pytest` leaves out."""
    functions = (node for node in ast.parse((ROOT / file).read_text("utf-8")).body if isinstance(node, ast.FunctionDef))
    return {each.name for each in functions if "pytest.mark.slow" in map(ast.unparse, each.decorator_list)}


@pytest.mark.parametrize("fault", [*PUBLISHED, *OWN], ids=lambda fault: fault.name)
def test_a_fault_is_caught_by_a_test_that_always_runs(fault: Fault) -> None:
    file, _, name = fault.caught_by.partition("::")
    assert name.partition("[")[0] not in slow_tests(file)


def test_every_known_fault_is_planted() -> None:
    """Nineteen faults of the published code, and at least 25 of our own choosing; no two with one name."""
    assert len(PUBLISHED) == 19
    assert len(OWN) >= 25
    assert len({fault.name for fault in (*PUBLISHED, *OWN)}) == len(PUBLISHED) + len(OWN)


def test_the_documented_table_is_the_one_that_is_tested() -> None:
    assert table() in (ROOT / "docs" / "contributing" / "testing.md").read_text("utf-8")
