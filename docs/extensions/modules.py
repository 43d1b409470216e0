"""The reference of Python: a page of `reference/api` shows every module of its packages, a package itself first."""

import inspect
import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, Any

import edlm

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FOLDER = "reference/api/"
SUBJECTS = {
    "sampling": ("samplers", "progress"),
    "models": ("models",),
    "likelihood": ("likelihood",),
    "objectives": ("objectives",),
    "training": ("training",),
    "networks": ("nn",),
    "process": ("process",),
    "data": ("data",),
    "weights": ("weights",),
    "evaluation": ("evaluation",),
    "frontier": ("frontier",),
    "benchmark": ("benchmark",),
    "contracts": ("contracts", "declaration", "costs", "limits", "testing"),
    "runs": ("runs", "cli"),
}


def modules(subject: str) -> list[str]:
    """List the modules of a subject by their dotted names."""
    found = []
    for package in SUBJECTS[subject]:
        inside = getattr(import_module(f"edlm.{package}"), "__path__", ())
        names = [each.name for each in pkgutil.iter_modules(inside) if not each.name.startswith("_")]
        found += [f"edlm.{package}", *(f"edlm.{package}.{name}" for name in names)]
    return found


def face() -> list[str]:
    """Say of each name that `edlm` shows where it stands and what it is, in a line of Markdown."""
    return [f"- {{py:obj}}`edlm.{name} <{place(name)}>`: {said(name)}" for name in edlm.__all__]


def place(name: str) -> str:
    """Find the full name of what `edlm` shows."""
    shown = getattr(edlm, name)
    return shown.__name__ if inspect.ismodule(shown) else f"{shown.__module__}.{shown.__qualname__}"


def said(name: str) -> str:
    """Take the first line of its docstring."""
    return (inspect.getdoc(getattr(edlm, name)) or "").partition("\n")[0]


def page(subject: str) -> str:
    """Write the sections of a page, one for each module."""
    return "\n\n".join(f"{name}\n{'-' * len(name)}\n\n{section(name)}\n" for name in modules(subject))


def section(name: str) -> str:
    """Have a module shown, unless it needs an extra that is not installed."""
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        return f"Not shown: this page was built without `{error.name}`."
    return f".. automodule:: {name}\n   :members:"


def append(app: "Sphinx", docname: str, source: list[str]) -> None:
    """Put the modules behind what the page says itself, and the face on the first page."""
    if docname == f"{FOLDER}index":
        source[0] = source[0].replace("```{face}\n```", "\n".join(face()))
    if docname.removeprefix(FOLDER) in SUBJECTS:
        source[0] += "\n\n" + page(docname.removeprefix(FOLDER))


def setup(app: "Sphinx") -> dict[str, Any]:
    """Fill the pages when they are read."""
    app.connect("source-read", append)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
