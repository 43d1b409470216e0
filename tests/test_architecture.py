"""The layout's own laws: import order, what is loaded, what things are called, which file may name what."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edlm

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "edlm"
# A module may import only modules that stand before it.
ORDER = [
    "contracts",
    "limits",
    "finite",
    "noise",
    "categorical",
    "cross_entropy",
    "schedules",
    "absorbing",
    "particles",
    "kernel",
    "stages",
    "passes",
    "rope",
    "attention",
    "layers",
    "networks",
    "folding",
    "denoisers",
    "energies",
    "objectives",
    "calibration",
    "likelihoods",
    "autoregressive",
    "sources",
    "training",
    "transition",
    "joint",
    "chain_rule",
    "plans",
    "selections",
    "corrections",
    "rounds",
    "speculative",
    "samplers",
    "pipelines",
    "bounds",
    "baselines",
    "enumeration",
    "execution",
    "testing",
    "formats",
    "continuation",
    "tokenizer_files",
    "vocabulary",
    "corpora",
    "token_cache",
    "layouts",
    "detokenizers",
    "folders",
    "columns",
    "documents",
    "catalogue",
    "datasets",
    "quality",
    "permitted",
    "tensors",
    "checkpoints",
    "published",
    "inert",
    "foreign",
    "exchange",
    "decoders",
    "large",
    "memory",
    "judges",
    "doctor",
    "cli",
]
SOURCES = sorted([*PACKAGE.glob("*.py"), *(ROOT / "recipes").glob("*.py")])


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, at any depth of nesting."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_every_module_has_its_place_in_the_order() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(ORDER)


def test_the_document_has_every_module_in_its_order() -> None:
    table = ARCHITECTURE.split("\n## ")[1]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == ORDER


def test_the_document_says_what_every_module_of_the_recipes_is_for() -> None:
    table = ARCHITECTURE.split("\n## Recipes")[1].split("\n## ")[0]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")]
    named = [name for row in rows for name in re.findall(r"`(_\w+)`", row)]
    assert sorted(named) == sorted(path.stem for path in (ROOT / "recipes").glob("_[!_]*.py"))


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_modules_before_it(module: str) -> None:
    own = {name.split(".")[1] for name in imported(PACKAGE / f"{module}.py") if name.startswith("edlm.")}
    later = {name for name in own if name in ORDER and ORDER.index(name) >= ORDER.index(module)}
    assert not later


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_only_recipes_and_large_models_import_torchtune(path: Path) -> None:
    foreign = {name.split(".")[0] for name in imported(path)} & {"torchtune", "torchao", "datasets"}
    assert foreign <= {"large": {"torchtune"}, "datasets": {"datasets"}}.get(path.stem, set())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_only_execution_names_compilation(path: Path) -> None:
    named = re.findall(r"torch\.compile\(|torch\._dynamo|CudaGraphModule\(|cuda\.CUDAGraph", path.read_text("utf-8"))
    assert not named or path.stem == "execution"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_no_module_draws_hidden_random_numbers(path: Path) -> None:
    """Uniforms come from `edlm.noise`; only initial weights are torch's, under the seed that a recipe sets."""
    text = path.read_text("utf-8")
    assert not re.findall(r"torch\.(rand|randn|randint|randperm|multinomial|bernoulli|rand_like)\(|exponential_", text)


def test_import_edlm_loads_neither_torchtune_nor_datasets() -> None:
    use = "import sys, edlm; edlm.sample, edlm.corpora, edlm.checkpoints, edlm.large; "
    assert run_python(use + "print({'torchtune', 'datasets', 'torchao'} & set(sys.modules))").strip() == "set()"


def test_the_command_line_loads_no_torch() -> None:
    assert run_python("import sys, edlm.cli; print('torch' in sys.modules)").strip() == "False"


def test_the_face_has_every_module() -> None:
    for name in edlm.__all__:
        assert getattr(edlm, name) is not None
    assert set(ORDER) - {"cli"} <= set(edlm.__all__)
    assert {f"edlm.{name}" for name in set(ORDER) - {"cli"}} <= imported(PACKAGE / "__init__.py"), "for type checkers"


def test_no_file_is_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for path in ROOT.glob("[!.]*/**/*.py") if path.stem.strip("_") in drawers]


def test_contracts_hold_no_functions() -> None:
    tree = ast.parse((PACKAGE / "contracts.py").read_text("utf-8"))
    assert not [node for node in tree.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_recipe_is_a_short_story(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) < 300
    assert imported(path).isdisjoint({"torchtune.config"})  # through `_entry` and `_settings` only


def public_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """Functions of a module and methods of its classes, without those that are private or private's."""
    bodies = [tree.body, *(c.body for c in tree.body if isinstance(c, ast.ClassDef) and c.name[0] != "_")]
    return [node for body in bodies for node in body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]


def test_public_functions_are_documented_and_typed() -> None:
    bare = []
    for path in SOURCES:
        for node in public_functions(ast.parse(path.read_text("utf-8"))):
            parameters = [a for a in node.args.args if a.arg not in ("self", "cls")]
            typed = node.returns is not None and all(a.annotation is not None for a in parameters)
            if not (typed and (ast.get_docstring(node) or node.name == "forward")):
                bare.append(f"{path.name}:{node.lineno} {node.name}")
    assert not bare
