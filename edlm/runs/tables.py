"""Tables for the terminal."""

from collections.abc import Sequence


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Lay out (what, value, remark) rows in aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"  {what:<{widths[0]}}  {value:>{widths[1]}}  {remark}".rstrip() for what, value, remark in rows)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows of one length in columns: the first aligned on its left, the others on their right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    )
    return "\n".join("  " + "  ".join(line).rstrip() for line in lines)
