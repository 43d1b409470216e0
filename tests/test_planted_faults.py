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
from planting import package_in

ROOT = Path(__file__).parents[1]
PASSED, FAILED = 0, 1  # exit statuses of pytest
GROUPS = 24  # of faults


def run_tests(*wanted: tuple[Path, list[str]]) -> list[tuple[int, str]]:
    """Exit status and output of tests of this suite, each run against the package in its folder."""
    inputs = [(str(folder), [str(ROOT / name) for name in names]) for folder, names in wanted]
    planting = _planting()
    assert planting.stdin is not None
    assert planting.stdout is not None
    print(json.dumps(inputs), file=planting.stdin, flush=True)
    return [(status, output) for status, output in json.loads(planting.stdout.readline())]


@cache
def _planting() -> subprocess.Popen[str]:
    """One process for all groups that run here: it imports the heavy libraries once."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    program = [sys.executable, str(ROOT / "tests" / "planting.py")]
    pipe, elsewhere = subprocess.PIPE, tempfile.gettempdir()  # not where the package lies
    started = subprocess.Popen(program, env=environment, stdin=pipe, stdout=pipe, text=True, cwd=elsewhere)
    atexit.register(started.communicate)  # ends its input, and so the process
    return started


def plant(folder: Path, fault: Fault) -> None:
    """Make the one replacement, which must be possible in exactly one way."""
    path = folder / "edlm" / fault.file
    text = path.read_text("utf-8")
    assert text.count(fault.old) == 1, f"{fault.file} has {text.count(fault.old)} places for {fault.name!r}"
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
def test_planted_faults_are_caught(group: int, tmp_path: Path) -> None:
    """By tests that `pytest` runs without a further word."""
    planted = []
    for number, fault in enumerate((*PUBLISHED, *OWN)[group::GROUPS]):
        folder = tmp_path / str(number)
        package_in(folder)
        plant(folder, fault)
        planted.append((fault, folder))
    results = run_tests(*((folder, [fault.caught_by]) for fault, folder in planted))
    missed = {
        fault.name: output for (fault, _), (status, output) in zip(planted, results, strict=True) if status != FAILED
    }
    assert not missed


@pytest.mark.slow
def test_a_copy_without_a_fault_fails_no_test(tmp_path: Path) -> None:
    """One catching test of each file, on a copy: the copy itself is not what they catch.

    That all of them pass on the package is shown by `pytest`, which runs them.
    """
    package_in(tmp_path)
    of_file = {fault.caught_by.split("::")[0]: fault.caught_by for fault in (*PUBLISHED, *OWN)}
    [(status, output)] = run_tests((tmp_path, sorted(of_file.values())))
    assert status == PASSED, output


@pytest.mark.parametrize("fault", [*PUBLISHED, *OWN], ids=lambda fault: fault.name)
def test_a_fault_has_one_place(fault: Fault) -> None:
    """Else a line that was written anew would be found by the slow tests alone."""
    path = next(path for path in (ROOT / "edlm" / fault.file, ROOT / fault.file) if path.is_file())
    assert path.read_text("utf-8").count(fault.old) == 1


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
