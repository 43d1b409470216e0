"""What a campaign of mutations knows of tests: a test is left out only if it cannot enter the changed function."""

import subprocess
import sys
from pathlib import Path

import pytest
from reach import Known, function_at

SOURCE = """\
import functools

LIMIT = 3

def one(x=1):
    def inside():
        return x + 1
    return inside()

def two():
    return [value + 2 for value in range(2)]

@functools.cache
def kept():
    return deep()

def deep():
    return 4

class Part:
    size = 5

    def grown(self):
        return self.size + 6

def made():
    return Part()
"""
TESTS = """\
import pytest, subprocess, sys, thing

@pytest.fixture(scope="module")
def part():
    return thing.made()

def test_one():
    assert thing.one() == 2

def test_two():
    assert thing.two() == [2, 3]

def test_kept():
    assert thing.kept() == 4

def test_kept_again():
    assert thing.kept() == 4

def test_part(part):
    assert part.grown() == 11

def test_part_again(part):
    assert part.size == 5

def test_process():
    subprocess.run([sys.executable, "-c", ""], check=True)

@pytest.mark.skip
def test_never():
    thing.two()
"""
CALL = """\
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import pytest
from reach import Known, Reach
root = Path(sys.argv[1])
known = Known(root / "known.json", root)
plugin = Reach(known, root / "package", root / "told.json", sys.argv[2] or None)
sys.path.insert(0, str(root / "package"))
pytest.main(["-q", "-p", "no:cacheprovider", str(root / "test_thing.py")], plugins=[plugin])
"""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("3", None),
        ("1):", None),
        ("x + 1", "one.<locals>.inside"),
        ("inside()\n\n", "one"),
        ("value + 2", "two"),
        ("functools.cache", None),
        ("5", None),
        ("6", "Part.grown"),
    ],
)
def test_a_place_is_in_the_function_whose_body_holds_it(text: str, name: str | None) -> None:
    before = SOURCE[: SOURCE.index(text)]
    assert function_at(SOURCE, before.count("\n") + 1, len(before.rpartition("\n")[2])) == name


def ran(root: Path, function: str) -> tuple[Known, list[str]]:
    """What is known after a run, and what ran."""
    command = [sys.executable, "-c", CALL, str(root), function, str(Path(__file__).parent)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout
    known = Known(root / "known.json", root)
    known.learn(__import__("json").loads((root / "told.json").read_text()))
    return known, out.splitlines()


@pytest.mark.slow
def test_a_test_is_left_out_only_if_it_cannot_enter_the_changed_function(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "thing.py").write_text(SOURCE)
    (tmp_path / "test_thing.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    known, out = ran(tmp_path, "")
    assert "7 passed, 1 skipped" in out[-1]

    def noticing(function: str) -> set[str]:
        tests = known.of("test_thing.py")["all"]
        return {each.partition("::")[2] for each in tests if known.may_notice("test_thing.py", each, function)}

    always = {"test_process"}
    assert noticing("thing.py::one") == {"test_one"} | always
    assert noticing("thing.py::one.<locals>.inside") == {"test_one"} | always
    assert noticing("thing.py::two") == {"test_two"} | always
    assert noticing("thing.py::Part.grown") == {"test_part"} | always
    assert noticing("thing.py::made") == {"test_part", "test_part_again"} | always, "of a fixture that they share"
    assert {"thing.py::kept", "thing.py::deep"} <= known.shared, "whose result other tests are given too"
    assert known.is_worth_running("test_thing.py", "thing.py::nobody"), "a process may enter anything"
    assert known.entering("thing.py::two") == ["test_thing.py"]
    assert not known.entering("thing.py::nobody")
    again, out = ran(tmp_path, "thing.py::two")
    assert "2 passed, 6 deselected" in out[-1]
    assert ran(tmp_path, "thing.py::deep")[1][-1].startswith("7 passed, 1 skipped")
    (tmp_path / "package" / "thing.py").write_text(f"{SOURCE}\n")
    assert not Known(again.file, tmp_path).files, "of another package nothing is known"
