"""The layout's own laws: import order, what is loaded, what things are called, which file may name what."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import count_tree
import module_table
import pytest
from layout import LAYOUT, ORDER, PACKAGE, ROOT, file_of

import edlm

IMPORT_MORE = {
    "weights.families": {"torchtune"},
    "nn.adapters": {"torchtune"},
    "data.datasets": {"datasets"},
    "runs.settings": {"torchtune"},
    "training.log": {"torchtune"},
}
LONGEST = {"edlm": 400, "recipes": 150}  # lines of a file
TOO_LONG: dict[str, str] = {}
# An energy and a joint network are also parts that a config loads, and the keys by which it names them.
ALSO_PARTS = {"energy", "joint", "autoregressive"}
# Recipes that draw by whatever sampler a config says: they do not even name its classes.
ANY = ("generate", "evaluate", "frontier", "likelihoods", "oracle", "benchmark")
WRITTEN_TO = {"workspace.Texts"}  # the one value that changes after it is built
TAKE_ANY_SAMPLER = {f"recipes/{name}.py" for name in ANY}
DRAW_FREELY = ("benchmark", "runs")  # code as it is usually written, and clocks
SHOWN = {"edlm.samplers": "samplers.sampler"}
ARCHITECTURE = (ROOT / "docs" / "contributing" / "architecture.md").read_text("utf-8")
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "recipes").glob("*.py")])


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Dotted names of everything a file imports, at any depth of nesting."""
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_every_module_has_its_place_in_the_order() -> None:
    found = {path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py") if path.stem != "__init__"}
    assert {".".join(path.parts) for path in found} == set(ORDER)


def test_the_document_says_of_every_package_and_module_what_it_says_itself() -> None:
    assert module_table.written(ARCHITECTURE) == ARCHITECTURE, "python tests/module_table.py writes it"


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_modules_before_it(module: str) -> None:
    own = modules_imported(file_of(module))
    later = {name for name in own if name not in ORDER or ORDER.index(name) >= ORDER.index(module)}
    assert not later


@pytest.mark.parametrize("module", ORDER)
def test_only_recipes_and_large_models_import_torchtune(module: str) -> None:
    foreign = {name.split(".")[0] for name in imported(file_of(module))} & {"torchtune", "torchao", "datasets"}
    assert foreign <= IMPORT_MORE.get(module, set())


@pytest.mark.parametrize("module", [name for name in ORDER if name.split(".")[0] not in DRAW_FREELY])
def test_no_module_draws_hidden_random_numbers(module: str) -> None:
    """Uniforms come from `edlm.process.noise`; only initial weights are torch's, under the seed that a recipe sets."""
    text = file_of(module).read_text("utf-8")
    assert not re.findall(r"torch\.(rand|randn|randint|randperm|multinomial|bernoulli|rand_like)\(|exponential_", text)


def test_import_edlm_loads_neither_torchtune_nor_datasets() -> None:
    use = "import sys, edlm; edlm.sample, edlm.corpora, edlm.checkpoints, edlm.large; "
    assert run_python(use + "print({'torchtune', 'datasets', 'torchao'} & set(sys.modules))").strip() == "set()"


def test_the_command_line_loads_no_torch() -> None:
    assert run_python("import sys, edlm.cli.commands; print('torch' in sys.modules)").strip() == "False"


def test_no_file_is_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for path in ROOT.glob("[!.]*/**/*.py") if path.stem.strip("_") in drawers]


def test_contracts_hold_no_functions() -> None:
    tree = ast.parse((PACKAGE / "contracts.py").read_text("utf-8"))
    assert not [node for node in tree.body if isinstance(node, ast.FunctionDef)]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def length(path: Path) -> int:
    """Count the lines of a file, all of them."""
    return len(path.read_text("utf-8").splitlines())


def test_no_file_is_too_long() -> None:
    """What is listed as too long has to be; so the list only shrinks."""
    lengths = {named(path): length(path) for path in SOURCES}
    assert {name for name, length in lengths.items() if length > LONGEST[name.split("/")[0]]} == set(TOO_LONG)


def test_files_of_tests_are_no_longer_than_those_of_the_library() -> None:
    lengths = {named(path): len(path.read_text("utf-8").splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert not {name: length for name, length in lengths.items() if length > LONGEST["edlm"]}


def test_recipes_hold_no_code_of_the_library() -> None:
    assert not [named(path) for path in (ROOT / "recipes").rglob("_*.py") if path.name != "__init__.py"]
    assert not [path for path in (ROOT / "recipes").glob("*.py") if "torchtune.config" in imported(path)]


def kinds_of_samplers() -> dict[str, str]:
    """The names under which values stand in the registries of the axes, and the module of each registry."""
    found: dict[str, str] = {}
    for path in (PACKAGE / "samplers").glob("[!_]*.py"):
        module = import_module(f"edlm.samplers.{path.stem}")
        register: Any = getattr(module, "register", None)
        if getattr(register, "__module__", None) == module.__name__:
            [registry] = [vars(module)[name] for name in register.__code__.co_names if name.isupper()]
            found |= dict.fromkeys(registry, module.__name__)
    return found


def classes_of_kinds() -> set[str]:
    """The classes that have such a name."""
    places = [import_module(f"edlm.samplers.{path.stem}") for path in (PACKAGE / "samplers").glob("[!_]*.py")]
    kinds = set(kinds_of_samplers())
    return {each for place in places for each, value in vars(place).items() if getattr(value, "name", None) in kinds}


def registers(tree: ast.Module) -> bool:
    """Whether a file gives a kind its name."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return any(getattr(call, "id", None) == "register" or getattr(call, "attr", None) == "register" for call in calls)


def test_kinds_of_samplers_are_found() -> None:
    assert {"tokens_per_pass", "speculative", "chain_rule"} <= set(kinds_of_samplers())
    assert {"TokensPerPass", "SPECULATIVE", "ChainRule"} <= classes_of_kinds()


def test_only_the_file_of_a_kind_names_it() -> None:
    """So a new value of an axis is one file."""
    kinds, classes = set(kinds_of_samplers()) - ALSO_PARTS, classes_of_kinds()
    found = {}
    for path in SOURCES:
        tree = parsed(path)
        names = {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)} & kinds
        if named(path) in TAKE_ANY_SAMPLER:
            names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & classes
            names |= {name.rpartition(".")[2] for name in imported(path)} & classes
        if names and not registers(tree):
            found[named(path)] = sorted(names)
    assert not found


def test_a_tree_is_counted_as_it_is() -> None:
    found = count_tree.counts(ROOT)
    assert found["rooms"] == len(LAYOUT) + 1  # the recipes
    assert found["files"] == len(count_tree.sources(ROOT))


def test_rooms_that_import_each_other_share_a_floor() -> None:
    arrows = {("a", "b"), ("b", "c"), ("c", "b"), ("b", "d")}
    assert count_tree.floors({"a", "b", "c", "d"}, arrows) == 3


def public_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """Functions of a module and methods of its classes, without those that are private or private's."""
    bodies = [tree.body, *(c.body for c in tree.body if isinstance(c, ast.ClassDef) and c.name[0] != "_")]
    return [node for body in bodies for node in body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]


def test_public_functions_are_documented_and_typed() -> None:
    bare = []
    for path in SOURCES:
        for node in public_functions(parsed(path)):
            parameters = [a for a in node.args.args if a.arg not in ("self", "cls")]
            typed = node.returns is not None and all(a.annotation is not None for a in parameters)
            if not (typed and (ast.get_docstring(node) or node.name == "forward")):
                bare.append(f"{path.name}:{node.lineno} {node.name}")
    assert not bare


def modules_imported(path: Path) -> set[str]:
    """Modules of the order that a file imports; a recipe is `recipes.name`, a package what its `__init__` shows."""
    found = set()
    for name in imported(path):
        parts = name.split(".")[1:] if name.startswith("edlm.") else []
        if parts[:1] == ["recipes"] and len(parts) > 1:
            found.add(".".join(parts[:2]))
        found |= {place for place in (".".join(parts[:2]), ".".join(parts[:1])) if place in ORDER}
        if name in SHOWN and f"edlm.{SHOWN[name]}".rpartition(".")[0] == name:
            found |= {SHOWN[name]} if imports_package(path, name) else set()
    return found


def imports_package(path: Path, package: str) -> bool:
    """Whether a file has `from edlm import package`."""
    return any(
        isinstance(node, ast.ImportFrom) and node.module == "edlm" and package in {f"edlm.{a.name}" for a in node.names}
        for node in ast.walk(parsed(path))
    )


def test_every_package_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(["edlm", "edlm.recipes", *(f"edlm.{name}" for name in LAYOUT if LAYOUT[name])])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_only_one_module_names_compilation(path: Path) -> None:
    named = re.findall(r"torch\.compile\(|torch\._dynamo|CudaGraphModule\(|cuda\.CUDAGraph", path.read_text("utf-8"))
    assert not named or path.stem == "execution"


def test_the_face_is_what_completion_shows() -> None:
    assert dir(edlm) == sorted(edlm.__all__)
    assert len(edlm.__all__) <= 21
    for name in edlm.__all__:
        assert getattr(edlm, name) is not None
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    [checked] = [node for node in tree.body if isinstance(node, ast.If)]
    names = [alias.asname or alias.name for node in checked.body for alias in node.names]
    assert sorted(names) == sorted(edlm.__all__), "for type checkers"


def test_a_value_never_changes_after_it_is_built() -> None:
    """So it can be a key, and be shared: dataclasses are frozen, but for the one that is a place to write to."""
    classes = {
        f"{path.stem}.{node.name}": node
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef)
    }
    decorators = {name: list(map(ast.unparse, each.decorator_list)) for name, each in classes.items()}
    values = {name: found for name, found in decorators.items() if any("dataclass" in each for each in found)}
    assert len(values) > 20
    thawed = {name for name, found in values.items() if not any("frozen=True" in each for each in found)}
    assert thawed == WRITTEN_TO
