"""How stages are declared, and what a module keeps to itself."""

import ast
import re
from pathlib import Path

import pytest
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts, declaration

PACKAGE = Path(__file__).parents[1] / "edlm"
PUBLIC = {"_asdict", "_fields", "_replace", "__version__"}  # names that begin so and are public all the same
SOURCES = sorted(PACKAGE.rglob("*.py"))


def ones(x_t: Tensor) -> Tensor:
    return x_t + 1


def test_a_stage_reads_and_writes_what_it_is_declared_to() -> None:
    made = declaration.stage(" x_t ->x_s", ones)
    assert (made.in_keys, made.out_keys) == (["x_t"], ["x_s"])
    state = TensorDict({key: 3 * Tensor([1.0]) for key in (contracts.X_T, contracts.X_0)})
    out = declaration.sequence({"one": made, "other": declaration.stage("x_s -> x_0", ones)})(state)
    assert (float(out["x_s"]), float(out["x_0"]), float(state["x_0"])) == (4.0, 5.0, 3.0)
    assert contracts.X_S not in state, "what is given is not edited"


@pytest.mark.parametrize("keys", ["x_t -> magic", "magic, x_t -> x_s", "x_t, -> x_s"])
def test_a_key_without_a_shape_is_refused(keys: str) -> None:
    with pytest.raises(ValueError, match=r"must be among the keys of edlm\.contracts\.SHAPES"):
        declaration.stage(keys, ones)


def test_stages_are_declared_in_one_way() -> None:
    named = [path.name for path in SOURCES if re.search(r"(?<![\w.])TensorDictModule\($", path.read_text(), re.M)]
    named += [
        path.name for path in SOURCES if re.search(r"= TensorDictModule\(|return TensorDictModule\(", path.read_text())
    ]
    assert set(named) == {"declaration.py"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_no_module_takes_what_another_keeps_to_itself(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    froms = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edlm")
    ]
    taken = [alias.name for node in froms for alias in node.names if alias.name.startswith("_")]
    modules = {alias.asname or alias.name for node in froms for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            taken += [node.attr] if re.match("_(?!_)", node.attr) else []
    assert set(taken) <= PUBLIC
