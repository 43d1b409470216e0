"""Code and commands as the pages show them: found, run one after the other, or told apart."""

import inspect
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from commands import run_of

from edlm.cli import commands

ROOT = Path(__file__).parents[1]
FRONT = ("README", "CHANGELOG", "CONTRIBUTING", "CODE_OF_CONDUCT", "SECURITY")
PAGES = [*(ROOT / f"{name}.md" for name in FRONT), *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN = {"", "python", "bash", "yaml", "yml", "json", "text", "console", "bibtex"}
DIRECTIVES = {"{toctree}", "{code-cell}", "{glossary}", "{face}", "{include}"}
LANGUAGES = SHOWN | DIRECTIVES
_BLOCK = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_PROGRAMS = ("pip", "pytest", "python", "edlm", "torchrun", "sphinx-build", "ruff", "mypy", "hf", "unzip")
_DOWNLOADS = ("hf download ", "pip download ", "unzip ")  # of what others publish


def name_of(page: Path) -> str:
    """The name of a page from the root on."""
    return str(page.relative_to(ROOT))


def blocks(text: str, language: str | None = None) -> list[tuple[str, str]]:
    """Language and content of every block, or of those of one language."""
    found = [(shown, code) for shown, code in _BLOCK.findall(text)]
    return [each for each in found if language in (None, each[0])]


def run_python(text: str, name: str, changes: Mapping[str, str]) -> dict[str, Any]:
    """Run the Python of a page in order, with the names that it makes itself, and give them back.

    changes: what is written otherwise, so that it runs in seconds.
    """
    names: dict[str, Any] = {}
    for written, smaller in changes.items():
        text = text.replace(written, smaller)
    for _, code in blocks(text, "python"):
        exec(compile(code, name, "exec"), names)
    return names


def complaint(words: Sequence[str]) -> str:
    """Say why a command would not start, "" if nothing is known against it. `edlm run` has a test of its own."""
    program, *rest = words
    if program not in _PROGRAMS:
        return f"{program} is no program that the pages may ask for"
    if " ".join(words).startswith(_DOWNLOADS) or run_of(list(words)):
        return ""
    checks = {"pip": _of_pip, "python": _of_python, "pytest": _of_pytest, "edlm": _of_edlm, "torchrun": _of_torchrun}
    return checks[program](rest) if program in checks else ""


def _of_pip(words: Sequence[str]) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = re.fullmatch(r"(?:\.|edlm-torch)(?:\[([\w,]+)\])?", words[-1])
    if words[0] != "install" or not found:
        return f"pip {' '.join(words)} installs something else"
    unknown = set((found[1] or "").split(",")) - {"", *project["optional-dependencies"]}
    return f"no extra {sorted(unknown)}" if unknown else ""


def _of_python(words: Sequence[str]) -> str:
    script = ROOT / words[0]
    if not script.is_file():
        return f"no file {words[0]}"
    source = script.read_text("utf-8")
    flags = [word for word in words if word.startswith("--") and f'"{word}"' not in source]
    return f"{words[0]} does not know {flags}" if flags else ""


def _of_pytest(words: Sequence[str]) -> str:
    files = [word.partition("::")[0] for word in words if word.endswith(".py") or "::" in word]
    missing = [file for file in files if not (ROOT / file).is_file()]
    chosen = words[words.index("-k") + 1] if "-k" in words else ""
    if not missing and chosen not in "".join((ROOT / file).read_text("utf-8") for file in files):
        return f"no test of {files} is called {chosen}"
    return f"no file {missing}" if missing else ""


def _of_edlm(words: Sequence[str]) -> str:
    known = re.findall(r'"(\w+)": [\w.]+,', inspect.getsource(commands.main))
    if words and words[0] not in {*known, "--version", "--help"}:
        return f"edlm has no command {words[0]}"
    if words[:1] == ["run"] and len(words) > 1 and words[1] not in commands.recipes():
        return f"no recipe {words[1]}"
    if words[:1] == ["cp"] and len(words) > 1:
        recipe, _, config = words[1].partition("/")
        return "" if not config or config in commands.configs(recipe) else f"no config {words[1]}"
    return ""


def _of_torchrun(words: Sequence[str]) -> str:
    module = words[words.index("-m") + 1]
    return "" if module.removeprefix("edlm.recipes.") in commands.recipes() else f"no recipe {module}"
