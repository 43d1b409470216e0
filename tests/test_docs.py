"""The documents are true: links lead somewhere, named functions exist, and the README's code runs."""

import ast
import functools
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import builders
import key_tables
import own_parts
import pytest
import torch
import yaml
from builders import tiny_denoiser, tiny_energy
from commands import Run, in_markdown, in_prose, run_of
from pages import PAGES, ROOT, name_of

from edlm import samplers
from edlm.cli import commands
from edlm.data import vocabulary
from edlm.nn import networks
from edlm.process import schedules
from edlm.weights import checkpoints


@pytest.mark.parametrize("document", PAGES, ids=name_of)
def test_every_relative_link_leads_to_a_file(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text("utf-8"))
    assert not [link for link in links if not (document.parent / link).exists()]


@functools.cache
def headings(page: Path) -> set[str]:
    """The anchors of a page, as sites of repositories and Sphinx make them."""
    titles = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S), flags=re.M
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", PAGES, ids=name_of)
def test_every_anchor_is_a_heading(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)", document.read_text("utf-8"))
    assert not [
        (page, anchor) for page, anchor in links if anchor not in headings(document.parent / page if page else document)
    ]


SUFFIXES = ("py", "md", "yaml", "json", "jsonl", "csv", "png", "safetensors")  # of files named as a module


@functools.cache
def homes() -> dict[str, list[str]]:
    """Every module and package by its last name: of the library, and of the recipes."""
    found: dict[str, list[str]] = {}
    for top, path in [*(("edlm", path) for path in (ROOT / "edlm").rglob("*.py")), *recipes()]:
        parts = [*top.split("."), *path.relative_to(ROOT / top.split(".")[-1]).with_suffix("").parts]
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found.setdefault(parts[-1], []).append(".".join(parts))
    return found


def recipes() -> Iterator[tuple[str, Path]]:
    yield from (("edlm.recipes", path) for path in (ROOT / "recipes").glob("[!_]*.py"))


def leads_somewhere(start: str, names: list[str]) -> bool:
    """Whether names lead somewhere from a module on; what needs an extra that is not installed is not looked into."""
    try:
        found = import_module(start)
        for name in names:
            if not hasattr(found, name) and hasattr(found, "__path__") and find_spec(f"{found.__name__}.{name}"):
                import_module(f"{found.__name__}.{name}")
            found = getattr(found, name)
    except AttributeError:
        return False
    except ModuleNotFoundError as missing:
        return not str(missing.name).startswith("edlm")  # an extra that is not installed: read where it is
    return True


@functools.cache
def keys_of_configs() -> set[str]:
    files = [file for recipe in commands.recipes() for file in commands.configs(recipe).values()]
    return {path for file in files for path, _ in key_tables.leaves(yaml.safe_load(file.read_text("utf-8")))}


@pytest.mark.parametrize("document", PAGES, ids=name_of)
def test_every_named_function_exists(document: Path) -> None:
    """`module.function` in code style, `package.module`, or all of it from `edlm.` on."""
    known, keys = {**homes(), "edlm": ["edlm"]}, keys_of_configs()
    named = set(re.findall(r"`((?:edlm\.)?[a-z_]+(?:\.\w+)+)(?:\([^`]*)?`", document.read_text("utf-8")))
    missing = [
        name
        for name, (first, *rest) in ((name, name.split(".")) for name in named)
        if first in known
        and name not in keys
        and rest[-1] not in SUFFIXES
        and not any(leads_somewhere(home, rest) for home in known[first])
    ]
    assert not missing


@pytest.mark.parametrize("document", [*PAGES, *(ROOT / ".ci").iterdir()], ids=name_of)
def test_every_named_source_file_exists(document: Path) -> None:
    """From the root of the repository, or of the folder of tests."""
    named = set(re.findall(r"(?<![\w/.])[a-z]+/[\w/]+\.py\b", document.read_text("utf-8")))
    assert not {name for name in named if not ((ROOT / name).exists() or (ROOT / "tests" / name).exists())}


@functools.cache
def functions_of_tests() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    return {name for path in files for name in re.findall(r"def (\w+)\(", path.read_text("utf-8"))}


@pytest.mark.parametrize("document", PAGES, ids=name_of)
def test_every_named_test_exists(document: Path) -> None:
    named = set(re.findall(r"\b(test_\w{8,})\b(?!\.py)", document.read_text("utf-8")))
    assert not named - functions_of_tests()


def shown_runs() -> Iterator[tuple[str, Run]]:
    """Every run that a document, a recipe's docstring or a config's comments show, and where."""
    shown = [(name_of(file), words) for file in PAGES for words in in_markdown(file.read_text("utf-8"))]
    for recipe, file in commands.recipes().items():
        docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
        shown += [(file.name, words) for words in in_prose(docstring)]
        for name, path in commands.configs(recipe).items():
            shown += [(f"{recipe}/{name}", words) for words in in_prose(path.read_text("utf-8"))]
    yield from ((where, run) for where, words in shown if (run := run_of(words)))


SHOWN = list(shown_runs())
SHOWN_BEFORE: list[Run] = []  # which need not be tried again


@pytest.mark.parametrize(("where", "shown"), SHOWN, ids=[f"{where}-{run.recipe}-{run.config}" for where, run in SHOWN])
def test_every_command_that_is_shown_would_start(
    where: str, shown: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "my_" in " ".join(shown.overrides):
        own_parts.forget(monkeypatch)
        monkeypatch.syspath_prepend(str(own_parts.write(tmp_path)))
    assert shown.recipe in commands.recipes()
    assert shown.config in commands.configs(shown.recipe) or re.fullmatch(r"FILE|my\.yaml", shown.config)
    if shown not in SHOWN_BEFORE:
        shown.settings()
    SHOWN_BEFORE.append(shown)


def test_commands_are_found_where_they_are_shown() -> None:
    places = {where for where, _ in SHOWN}
    assert {"docs/howto/recipes.md", "docs/lab/results.md", "edlm_nce.py", "frontier/english27"} <= places
    assert len(SHOWN) > 100
    sweeps = [
        run
        for where, run in SHOWN
        if where == "docs/lab/results.md" and any("sweeps=" in word for word in run.overrides)
    ]
    assert [len(run.settings()["sweeps"]) for run in sweeps] == [3, 2, 3, 5, 4, 3, 5, 2, 2, 2, 3, 2]


def test_the_readme_opens_with_the_two_commands_and_its_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    assert [code.strip() for language, code in blocks if language == "bash"] == [
        "pip install . && edlm run edlm_nce",
        "pip install '.[dev]' && pytest",
    ]
    torch.manual_seed(0)
    characters = vocabulary.characters()
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "conditioning_size": 8}
    denoiser = networks.Transformer(28, 128, **sizes)
    notes = {"schedule": {"_component_": "edlm.schedules.log_linear"}, "time_conditioning": False}
    checkpoints.save_network(tmp_path / "runs/tiny/denoiser", denoiser, characters, notes)
    monkeypatch.chdir(tmp_path)
    for language, code in blocks:
        if language == "python":
            exec(compile(code, "README.md", "exec"), {})
    assert [len(text) for text in ast.literal_eval(capsys.readouterr().out)] == [64] * 4


def test_the_code_of_the_page_of_samplers_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for code in re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "howto" / "samplers.md").read_text("utf-8"), flags=re.DOTALL
    ):
        exec(compile(code, "samplers.md", "exec"), {})
    out = capsys.readouterr().out
    assert out.startswith("plain, entropy bound 0.5, 8 tokens\n  denoise  x_t, positions -> hidden\n  choose ")


def test_the_code_of_the_page_of_likelihoods_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Two blocks, the second one with what the first has built."""
    page, names = (ROOT / "docs" / "explanation" / "likelihoods.md").read_text("utf-8"), dict[str, object]()
    for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(code, "likelihoods.md", "exec"), names)
    *exact, interval = capsys.readouterr().out.splitlines()
    assert [line.partition(" 0.")[0] for line in exact] == [
        "plain, left to right",
        "plain, left to right, 2 a pass",
        "plain, left to right, 4 a pass",
    ]
    upper, lower = map(float, interval.split()[:2])
    assert lower < upper


def test_the_code_of_block_diffusion_runs(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "explanation" / "blocks.md").read_text("utf-8"), flags=re.DOTALL
    )
    exec(compile(code, "blocks.md", "exec"), {})
    assert capsys.readouterr().out == "torch.Size([2, 64]) 32\n"


def test_the_step_is_printed_as_the_documents_show_it() -> None:
    kernel = builders.importance(schedules.log_linear(), tiny_denoiser(), tiny_energy(), num_particles=8)
    assert samplers.describe(kernel) in (ROOT / "docs" / "contributing" / "architecture.md").read_text("utf-8")
