"""Every fault of `faults.py`, planted one at a time in a copy of the package, is caught by the test it names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faults import OWN, PUBLISHED, Fault, table

ROOT = Path(__file__).parents[1]
PASSED, FAILED = 0, 1  # exit statuses of pytest


def package_in(folder: Path) -> None:
    """Copy the package as it is installed: the recipes inside of it."""
    shutil.copytree(ROOT / "edlm", folder / "edlm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", folder / "edlm" / "recipes", ignore=shutil.ignore_patterns("__pycache__"))


def run_tests(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """Run tests of this suite against the package in `folder`."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=no-shrinking"]
    code = f"import sys, pytest; sys.exit(pytest.main({[*options, *(str(ROOT / name) for name in names)]!r}))"
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def plant(folder: Path, fault: Fault) -> None:
    """Make the one replacement, which must be possible in exactly one way."""
    path = folder / "edlm" / fault.file
    text = path.read_text("utf-8")
    assert text.count(fault.old) == 1, f"{fault.file} has {text.count(fault.old)} places for {fault.name!r}"
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*PUBLISHED, *OWN], ids=lambda fault: fault.name)
def test_a_planted_fault_is_caught(fault: Fault, tmp_path: Path) -> None:
    package_in(tmp_path)
    plant(tmp_path, fault)
    result = run_tests(tmp_path, fault.caught_by)
    assert result.returncode == FAILED, result.stdout[-2000:] + result.stderr[-2000:]


@pytest.mark.slow
def test_the_catching_tests_pass_without_a_fault(tmp_path: Path) -> None:
    """Else a test that always fails would catch everything."""
    package_in(tmp_path)
    result = run_tests(tmp_path, *sorted({fault.caught_by for fault in (*PUBLISHED, *OWN)}))
    assert result.returncode == PASSED, result.stdout[-3000:]


def test_every_known_fault_is_planted() -> None:
    """Nineteen faults of the published code, and at least 25 of our own choosing; no two with one name."""
    assert len(PUBLISHED) == 19
    assert len(OWN) >= 25
    assert len({fault.name for fault in (*PUBLISHED, *OWN)}) == len(PUBLISHED) + len(OWN)


def test_the_documented_table_is_the_one_that_is_tested() -> None:
    assert table() in (ROOT / "docs" / "testing.md").read_text("utf-8")
