"""The layout's own laws: import order, what is loaded, what things are called, which file may name what."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import edlm

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "edlm"
# A module may import only modules that stand before it.
LAYOUT: dict[str, list[str]] = {
    "contracts": [],
    "process": ["finite", "noise", "categorical", "schedules", "absorbing", "particles", "stages", "passes"],
    "nn": ["rope", "attention", "head", "blocks", "networks", "folding", "decoders"],
    "data": [
        "formats",
        "continuation",
        "tokenizer_files",
        "vocabulary",
        "corpora",
        "token_cache",
        "layouts",
        "detokenizers",
        "columns",
        "folders",
        "documents",
        "catalogue",
        "datasets",
    ],
    "runs": ["settings", "processes", "locks", "files", "records", "tables", "environment", "plots", "entry", "timing"],
    "models": ["denoisers", "energies", "autoregressive", "chain_rule", "joint"],
    "samplers": [
        "plans",
        "selections",
        "kernel",
        "corrections",
        "rounds",
        "speculative",
        "sampler",
        "configs",
        "pipelines",
        "execution",
        "autoregressive",
        "baselines",
    ],
    "objectives": ["losses", "denoising", "contrastive", "transition", "chain_rule", "joint", "baselines"],
    "likelihood": ["estimates", "nelbo", "bounds", "baselines", "enumeration", "hidden_markov"],
    "weights": [
        "tensors",
        "permitted",
        "checkpoints",
        "published",
        "inert",
        "foreign",
        "exchange",
        "large",
        "memory",
        "named",
        "resolve",
    ],
    "evaluation": [
        "quality",
        "judges",
        "calibration",
        "scores",
        "figures",
        "samples",
        "contrast",
        "correction",
        "texts",
        "generation",
        "card",
    ],
    "training": [
        "patience",
        "padding",
        "state",
        "sharding",
        "log",
        "log_check",
        "texts",
        "forecast",
        "loop",
        "kinds",
        "start",
    ],
    "frontier": ["grid", "draws", "lines", "points", "table", "plots", "exact", "exact_report", "learning"],
    "benchmark": [
        "textbook",
        "textbook_training",
        "methods",
        "cases",
        "comparison",
        "training_cases",
        "plots",
        "report",
    ],
    "testing": [],
    "cli": ["doctor", "commands"],
}
# Arrows that are still to be cut.
STILL_BACK: dict[str, list[str]] = {
    "nn.decoders": ["weights.tensors"],
    "runs.entry": ["cli.commands", "weights.tensors"],
    "weights.named": ["training.kinds"],
    "weights.resolve": ["training.kinds"],
    "evaluation.contrast": ["training.loop"],
    "training.start": ["recipes.pretrain_denoiser"],
}
IMPORT_MORE = {
    "weights.large": {"torchtune"},
    "data.datasets": {"datasets"},
    "runs.settings": {"torchtune"},
    "runs.entry": {"torchtune"},
    "training.log": {"torchtune"},
}
DRAW_FREELY = ("benchmark", "runs")  # code as it is usually written, and clocks
SHOWN = {"edlm.samplers": "samplers.sampler"}
ORDER = [f"{package}.{name}" if name else package for package, names in LAYOUT.items() for name in names or [""]]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "recipes").glob("*.py")])


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
    found = {path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py") if path.stem != "__init__"}
    assert {".".join(path.parts) for path in found} == set(ORDER)


def test_the_document_has_every_module_in_its_order() -> None:
    table = ARCHITECTURE.split("\n## ")[1]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert [name for row in rows for name in re.findall(r"`([\w.]+)`", row)] == ORDER


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_modules_before_it(module: str) -> None:
    own = modules_imported(file_of(module))
    later = {name for name in own if name not in ORDER or ORDER.index(name) >= ORDER.index(module)}
    assert later == set(STILL_BACK.get(module, []))


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


def file_of(module: str) -> Path:
    return PACKAGE / f"{module.replace('.', '/')}.py"


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
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
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
    assert len(edlm.__all__) <= 20
    for name in edlm.__all__:
        assert getattr(edlm, name) is not None
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    [checked] = [node for node in tree.body if isinstance(node, ast.If)]
    names = [alias.asname or alias.name for node in checked.body for alias in node.names]
    assert sorted(names) == sorted(edlm.__all__), "for type checkers"
