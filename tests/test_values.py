"""Values stay what they are: a sampler's parts, a data set and the like can be compared and hashed, and not changed."""

import ast
from dataclasses import FrozenInstanceError, is_dataclass
from importlib import import_module
from pathlib import Path

import pytest

from edlm.samplers import plans, selections

PACKAGE = Path(__file__).parents[1] / "edlm"
WORKSPACES = {("edlm.samplers.workspace", "Texts")}  # of one call, which is written to until it ends


def classes() -> list[tuple[str, str]]:
    """Every public class that is declared a dataclass, with its module."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            declared = node.decorator_list if isinstance(node, ast.ClassDef) else []
            if (
                declared
                and not node.name.startswith("_")
                and any("dataclass" in ast.unparse(each) for each in declared)
            ):
                module = ".".join(["edlm", *path.relative_to(PACKAGE).with_suffix("").parts])
                found.append((module, node.name))  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(("module", "name"), sorted(set(classes()) - WORKSPACES))
def test_a_value_is_not_changed_once_it_is_there(module: str, name: str) -> None:
    cls = getattr(import_module(module), name)
    assert is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_so_it_is_a_key_and_keeps_its_fields() -> None:
    assert {selections.SIR: 1, plans.Grid(4): 2}[plans.Grid(4)] == 2
    for value, field in ((selections.SIR, "choose"), (plans.Grid(4), "num_steps")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, field, None)
