"""Docstrings are plain English: a function begins with a verb, and a function of the face says all that a caller asks.

`UNFINISHED` and `BARE` count what is still otherwise, a file at a time. A count must be exact, so it only shrinks.
"""

import ast
import doctest
import inspect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
from torch import nn

import edlm
from edlm.evaluation import judges, quality

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "edlm").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")])
WORDS = """
    Accept Add Allocate Apply Assemble Average Begin Bound Build Calculate Call Carry Change Check Choose Clean Close
    Collect Combine Compare Compile Complete Compose Compute Concatenate Condition Continue Contrast Convert Copy
    Correct Count Create Cut Declare Decode Delete Describe Divide Download Draw Drop Embed Encode Encrypt End Ensure
    Enumerate Estimate Evaluate Expand Export Extend Fill Filter Find Finish Fit Fix Flag Fold Format Freeze Gather
    Generate Get Give Go Group Hand Handle Hash Have Hold Import Index Initialise Insert Install Interpolate Join Judge
    Keep Label Lay Leave Let Limit List Load Lock Look Lower Make Map Mark Mask Match Measure Merge Mix Move Multiply
    Name Normalise Number Open Order Pack Pad Pair Parse Pass Pick Place Plan Plot Predict Prepare Print Propose Put
    Raise Rank Read Recognise Record Recover Reduce Refuse Release Remove Rename Render Repeat Replace Report Require
    Resample Rescale Resolve Restore Resume Return Reveal Reverse Rewrite Round Run Sample Save Say Scale Scan Score See
    Select Send Separate Set Share Shift Show Shuffle Skip Slice Solve Sort Split Spread Start State Stay Step Stop
    Store Stream Substitute Subtract Suggest Sum Switch Take Test Tile Time Trace Train Transform Translate Turn Unpack
    Update Use Validate Verify Visit Wait Walk Watch Weigh Work Wrap Write Yield
    """
VERBS = set(WORDS.split())  # in the imperative
RIDDLES = {"What", "How", "Where", "Which", "Why", "When", "Whatever"}  # no docstring of anything begins with these
CLASSES_AND_VALUES = {"property", "cached_property"}
UNFINISHED: dict[str, int] = {}
BARE: dict[str, int] = {}


def opening(node: Any) -> str:
    """Return the first word of a docstring, "" where there is none."""
    return next(iter((ast.get_docstring(node) or "").split()), "").rstrip(".,:;")


def is_value(node: ast.FunctionDef) -> bool:
    """Whether a method is read like an attribute, so that its docstring names a thing."""
    return any(ast.unparse(mark).split(".")[-1] in CLASSES_AND_VALUES for mark in node.decorator_list)


def public_functions(node: ast.AST) -> Iterator[ast.FunctionDef]:
    """Find the public functions of a module and the public methods of its public classes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
            if isinstance(child, ast.ClassDef):
                yield from public_functions(child)
            elif ast.get_docstring(child) and not is_value(child):
                yield child


def documented(tree: ast.Module) -> Iterator[Any]:
    """Find everything of a module that can hold a docstring, private functions too."""
    return (n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef))


def count_poor_openings(tree: ast.Module) -> int:
    poor = {id(n) for n in documented(tree) if opening(n) in RIDDLES}
    poor |= {id(node) for node in public_functions(tree) if opening(node) not in VERBS}
    return len(poor)


def functions_of_the_face() -> dict[str, Any]:
    """Find what a user calls: `edlm.name` or `edlm.module.name`, functions and constructors of networks."""
    found: dict[str, Any] = {}
    for name in edlm.__all__:
        shown = getattr(edlm, name)
        inside = vars(shown) if isinstance(shown, ModuleType) else {name: shown}
        for part, value in inside.items():
            own = not isinstance(shown, ModuleType) or str(getattr(value, "__module__", "")).startswith(shown.__name__)
            network = inspect.isclass(value) and issubclass(value, nn.Module) and "__init__" in vars(value)
            if own and not part.startswith("_") and (isinstance(value, FunctionType) or network):
                found[f"{value.__module__}.{part}"] = value
    return found


def lacks(value: Any) -> list[str]:
    """List the sections that a function's docstring should have and has not."""
    text = inspect.getdoc(value) or ""
    signature = inspect.signature(value)
    wanted = {"Args:": bool(signature.parameters), ">>> ": True}
    wanted["Returns:"] = isinstance(value, FunctionType) and signature.return_annotation not in (None, "None")
    wanted["Raises:"] = isinstance(value, FunctionType) and "raise ValueError" in inspect.getsource(value)
    return [section for section, needed in wanted.items() if needed and section not in text]


def test_the_docstring_of_a_function_begins_with_a_verb() -> None:
    counts = {str(p.relative_to(ROOT)): count_poor_openings(ast.parse(p.read_text("utf-8"))) for p in SOURCES}
    assert {name: count for name, count in counts.items() if count} == UNFINISHED


def test_functions_of_the_face_have_sections_and_an_example() -> None:
    bare = Counter(name.rpartition(".")[0] for name, value in functions_of_the_face().items() if lacks(value))
    assert dict(bare) == BARE


@pytest.mark.parametrize("module", [judges, quality], ids=lambda module: module.__name__)
def test_examples_of_figures_give_what_they_show(module: ModuleType) -> None:
    """Those of the face are run by `test_examples.py`."""
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def test_completion_shows_the_face_and_each_name_has_a_line() -> None:
    assert dir(edlm) == sorted(edlm.__all__)
    for name in edlm.__all__:
        line = (inspect.getdoc(getattr(edlm, name)) or "").split("\n\n")[0]
        assert line.endswith("."), name
        assert "\n" not in line, name
