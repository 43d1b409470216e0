"""A name of an axis is taken once; a file that is imported again puts its own value in the place of the old one."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edlm.samplers import corrections, plans, selections

PLAN = """
from edlm.samplers import plans
class Mine(plans.TokensPerPass):
    name = "mine"
plans.register(Mine)
"""
CORRECTION = """
from edlm.samplers import corrections
class Mine(corrections.ChainRule):
    name = "mine"
corrections.register("mine", {build})
"""
SELECTION = """
from functools import partial
from edlm.process import particles
from edlm.samplers import selections
def choose(log_weights, uniforms, most=2):
    return particles.sir(log_weights, uniforms)
def made(most):
    return lambda log_weights, uniforms: choose(log_weights, uniforms, most)
selections.register(selections.Selection("mine", {choose}))
"""
FILES = {
    "a class of plans": (plans.PLANS, PLAN),
    "a class of corrections": (corrections.CORRECTIONS, CORRECTION.format(build="Mine")),
    "a lambda that builds one": (corrections.CORRECTIONS, CORRECTION.format(build="lambda _, **more: Mine(**more)")),
    "a function that chooses": (selections.SELECTIONS, SELECTION.format(choose="choose")),
    "a part of a function": (selections.SELECTIONS, SELECTION.format(choose="partial(choose, most=3)")),
    "a function of a function": (selections.SELECTIONS, SELECTION.format(choose="made(3)")),
}
OTHERS: dict[str, tuple[Callable[..., Any], list[Any], str]] = {
    "plan": (plans.register, [type("Grid", (), {"name": "grid"})], "plan 'grid'"),
    "correction": (corrections.register, ["joint", lambda _, **more: corrections.Joint(**more)], "correction 'joint'"),
    "selection": (selections.register, [selections.Selection("sir", selections.imh_law)], "selection 'sir'"),
}


@pytest.fixture(autouse=True)
def as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registries and imports are those of before once a test is done."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for registry in (plans.PLANS, corrections.CORRECTIONS, selections.SELECTIONS):
        for name in dict(registry):
            monkeypatch.setitem(registry, name, registry[name])
        monkeypatch.setitem(registry, "mine", None)  # so that it is taken away again
        monkeypatch.delitem(registry, "mine")
    monkeypatch.delitem(sys.modules, "of_mine", raising=False)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_imported_again_replaces_its_own(kind: str, tmp_path: Path) -> None:
    registry, text = FILES[kind]
    (tmp_path / "of_mine.py").write_text(text)
    module = importlib.import_module("of_mine")
    first = registry["mine"]
    (tmp_path / "of_mine.py").write_text("# changed\n" + text)
    importlib.reload(module)
    assert registry["mine"] is not first
    importlib.reload(module)


@pytest.mark.parametrize("kind", FILES)
def test_another_file_does_not_take_its_name(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, text = FILES[kind]
    for name in ("of_mine", "of_others"):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.import_module("of_mine")
    first = registry["mine"]
    with pytest.raises(ValueError, match="'mine' is registered already"):
        importlib.import_module("of_others")
    assert registry["mine"] is first


@pytest.mark.parametrize("axis", OTHERS)
def test_a_name_of_ours_is_not_taken(axis: str) -> None:
    register, given, said = OTHERS[axis]
    with pytest.raises(ValueError, match=f"{said} is registered already"):
        register(*given)


def test_two_lambdas_of_one_file_are_not_the_same() -> None:
    corrections.register("mine", lambda _, **more: corrections.Joint(**more))
    with pytest.raises(ValueError, match="'mine' is registered already"):
        corrections.register("mine", lambda _, **more: corrections.ChainRule(**more))
