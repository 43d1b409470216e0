"""The tables of `docs/contributing/architecture.md`, from the first line of each module; run it to write them."""

import ast
import re
from collections.abc import Iterable
from pathlib import Path

from layout import LAYOUT, ORDER, PACKAGE, ROOT, file_of

PAGE = ROOT / "docs" / "contributing" / "architecture.md"


def first_line(path: Path) -> str:
    """What a file says of itself, as it stands in a table."""
    words = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
    return words.rstrip(".").replace("|", "\\|")


def tables() -> dict[str, str]:
    """The table of each section that has one."""
    packages = [(name, PACKAGE / name / "__init__.py" if LAYOUT[name] else file_of(name)) for name in LAYOUT]
    return {
        "Packages": table("package", packages),
        "Modules": table("module", ((name, file_of(name)) for name in ORDER)),
    }


def table(of: str, rows: Iterable[tuple[str, Path]]) -> str:
    """One row a file."""
    return "\n".join([f"| {of} | holds |", "|---|---|", *(f"| `{name}` | {first_line(path)} |" for name, path in rows)])


def written(page: str) -> str:
    """The page with the tables as they have to be."""
    for section, rows in tables().items():
        pattern = rf"(\n## {section}\n(?:[^|#\n][^\n]*\n|\n)*)(?:\|[^\n]*\n)+"
        page, count = re.subn(pattern, lambda match, rows=rows: f"{match[1]}{rows}\n", page)  # type: ignore[misc]
        assert count == 1, f"{section}: {count} tables"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), encoding="utf-8")
