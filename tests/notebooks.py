"""Text notebooks (MyST Markdown) run without Jupyter: their cells one after the other, in this process."""

import re
import shlex
from pathlib import Path
from typing import Any

from edlm.cli import commands

_CELL = re.compile(r"```\{code-cell\}\n(.*?)```", flags=re.DOTALL)


def cells(notebook: Path) -> list[str]:
    """The code of every cell."""
    return _CELL.findall(notebook.read_text("utf-8"))


def run(notebook: Path) -> dict[str, Any]:
    """Run all cells in the working folder, and give the names that they leave. Raises what a cell raises."""
    names: dict[str, Any] = {"_run_command": _command}
    for code in cells(notebook):
        exec(compile(_as_python(code), notebook.name, "exec"), names)
    return names


def _as_python(code: str) -> str:
    """A line that begins with `!` is a command, in which `{name}` stands for the value of a variable, as in IPython."""
    lines = (f"_run_command(f{line[1:]!r})" if line.startswith("!") else line for line in code.splitlines())
    return "\n".join(lines)


def _command(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "edlm", line
    try:
        commands.main(words)
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"{line}: exit status {stop.code}") from stop
