"""Docstrings as they are written here, made into what Sphinx reads: fields, tables and formulas between paragraphs."""

import inspect
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from sphinx.application import Sphinx

_FIELD = re.compile(r"(?P<names>\w+(?:, \w+)*): (?P<text>.*)")
_TYPE = re.compile(r":r?type: (?P<text>.*)")
_BEFORE_NAPOLEON, _AFTER_NAPOLEON = 400, 600  # which has the default of 500


def process(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Rewrite the lines of a docstring in place."""
    lines[:] = formulas(tables(fields(lines, names_of(value))))


def keep_prose(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Put back what stood before a colon: napoleon takes it for a type, and types are in signatures here."""
    for place, line in enumerate(lines):
        if found := _TYPE.match(line):
            first = next((i for i in range(place, -1, -1) if lines[i].startswith(":returns: ")), 0)
            start = ":returns: " if lines[first].startswith(":returns: ") else ""
            lines[first] = f"{start}{found['text']}: {lines[first].removeprefix(start)}"
            del lines[place]
            return


def names_of(value: Any) -> set[str]:
    """Find the parameters and the fields of a thing."""
    try:
        parameters = set(inspect.signature(value).parameters)
    except (TypeError, ValueError):
        parameters = set()
    return parameters | set(getattr(value, "__annotations__", ()))


def fields(lines: Iterable[str], known: set[str]) -> Iterator[str]:
    """Make a list of lines that say what a parameter or a field is."""
    inside = False
    for line in lines:
        found = _FIELD.match(line)
        if found and known.issuperset(found["names"].split(", ")):
            yield from ([] if inside else [""])
            yield f"- **{found['names']}**: {found['text']}"
            inside = True
        elif inside and line.startswith("    "):
            yield line[2:]
        else:
            yield from ["", line] if inside else [line]
            inside = False


def tables(lines: Iterable[str]) -> Iterator[str]:
    """Show a table as it is written."""
    for is_table, group in groupby(lines, lambda line: line.startswith("|")):
        rows = list(group)
        yield from ["::", "", *(f"    {row}" for row in rows), ""] if is_table else rows


def formulas(lines: Iterable[str]) -> Iterator[str]:
    """Show lines that stand indented between paragraphs as they are written."""
    before, blank = "", True
    for line in lines:
        if line.startswith("    ") and blank and before and not before.startswith((" ", "-", "::")):
            yield from ["::", ""]
        yield line
        blank = not line.strip()
        before = before if blank else line


def setup(app: Sphinx) -> dict[str, Any]:
    """Rewrite before napoleon reads, and after it."""
    app.connect("autodoc-process-docstring", process, priority=_BEFORE_NAPOLEON)
    app.connect("autodoc-process-docstring", keep_prose, priority=_AFTER_NAPOLEON)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
