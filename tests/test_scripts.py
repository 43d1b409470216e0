"""Files beside the tests, some of which only people run, name nothing that is not there."""

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import kills
import pytest

from edlm.cli import commands, keys

TESTS = Path(__file__).parent
FILES = sorted(path for path in TESTS.rglob("*.py") if not path.name.startswith(("test_", "conftest")))


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Give the names that a file binds to modules, or to what stands in them, each with its path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                yield each.asname or each.name.partition(".")[0], each.name if each.asname else each.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((each.asname or each.name, f"{node.module}.{each.name}") for each in node.names)


def found(path: str) -> object:
    """Find a module, or what stands in one."""
    try:
        return import_module(path)
    except ModuleNotFoundError:
        home, _, name = path.rpartition(".")
        return getattr(import_module(home), name)


def missing(tree: ast.AST) -> list[str]:
    """Name every `module.name` of a file that is not there."""
    modules = {name: value for name, path in imported(tree) if isinstance(value := found(path), ModuleType)}
    return [
        f"{node.value.id}.{node.attr}, line {node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
        if not hasattr(modules[node.value.id], node.attr)
    ]


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(TESTS).as_posix() for path in FILES])
def test_it_names_nothing_that_is_not_there(path: Path) -> None:
    assert missing(ast.parse(path.read_text("utf-8"))) == []


def test_a_name_that_is_gone_would_be_seen() -> None:
    code = "import math\nfrom edlm.samplers import plans as kinds\nmath.tau, kinds.Grid, kinds.Net, math.tao"
    assert missing(ast.parse(code)) == ["kinds.Net, line 3", "math.tao, line 3"]
    with pytest.raises(AttributeError):
        missing(ast.parse("from edlm.samplers.plans import Net"))


@pytest.mark.parametrize("name", kills.cases())
def test_runs_that_are_killed_say_what_their_recipes_know(name: str) -> None:
    """Of configs that come with a recipe; the others are made of them when a campaign begins."""
    recipe, words, config = kills.cases()[name]
    if config in commands.configs(recipe):
        keys.require_known(recipe, commands.configs(recipe)[config], words, is_ours=True)
    else:
        assert config.endswith(".yaml")
