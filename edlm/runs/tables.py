"""Tables: rows for the terminal, as Markdown and as csv."""

import csv
import io
import math
import textwrap
from collections.abc import Iterable, Sequence

_TERMINAL = 100  # characters of a line
_ROUNDING = 1e-9  # of a value


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Lay out (what, value, remark) rows in aligned columns."""
    return _aligned(rows, left=(0, 2))


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows of one length in columns: the first aligned on its left, the others on their right."""
    return _aligned(rows, left=(0,))


def amount(value: float, error: float) -> str:
    """Write a number and its error, both to the second digit of the error; without one that is but rounding."""
    if not _ROUNDING * abs(value) < error < math.inf:
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def sentence(said: str) -> str:
    """Write a finding as the last words of a run: lines that fit a terminal, a capital first and a full stop last."""
    return textwrap.fill(f"{said[:1].upper()}{said[1:]}.", _TERMINAL, initial_indent="  ", subsequent_indent="  ")


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """Write rows of one length as a table of Markdown, the first of them its head."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    head, *lines = ("| " + " | ".join(row) + " |" for row in cells)
    return "\n".join([head, "|" + "---|" * len(cells[0]), *lines])


def to_csv(rows: Iterable[Sequence[object]]) -> str:
    """Write rows as csv: six digits of a number, nothing for None."""
    file = io.StringIO()
    plain = ([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    csv.writer(file, lineterminator="\n").writerows(plain)
    return file.getvalue()


def _aligned(rows: Sequence[Sequence[str]], left: tuple[int, ...]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    places = [f"{'<' if place in left else '>'}{width}" for place, width in enumerate(widths)]
    return "\n".join(("  " + "  ".join(map(format, row, places))).rstrip() for row in rows)
