"""Write the page of mistakes, of the tables in `mistaken_commands` and `mistaken_calls`.

`PYTHONPATH=tests python tests/mistakes.py` writes it.
"""

import shutil
from pathlib import Path
from typing import Any

from mistaken_calls import CALLS, SETUP
from mistaken_commands import COMMANDS

from edlm.cli import commands
from edlm.weights import checkpoints

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "mistakes.md"


def prepared(folder: Path) -> dict[str, Any]:
    """The names of the calls, once the files that calls and commands name are in a folder."""
    names: dict[str, Any] = {}
    exec(SETUP, names)
    schedule = {"_component_": "edlm.schedules.log_linear"}
    notes = {"objective": "mdlm", "schedule": schedule, "time_conditioning": False}
    checkpoints.save_network(folder / "trained", names["network"], names["letters"], notes)
    (folder / "poem.yaml").write_text("once upon a time\n", "utf-8")
    shutil.copy(commands.configs("evaluate")["tiny"], folder / "evaluate.yaml")
    return {**names, "trained": checkpoints.load_network(folder / "trained")}


def written() -> str:
    """The page as it has to be."""
    return f"""\
# Mistakes, and what is said of them

Whoever mistypes a key, or hands a function the wrong thing, is told in one sentence what was wrong and what would be
right. On the command line it begins with `edlm:`, and the exit status is 2. In Python it is a `ValueError`. This page
is made from two tables, `tests/mistaken_commands.py` and `tests/mistaken_calls.py`, and a test runs every line of it.

## On the command line

`trained` is the folder of a small network over the symbols `a`, `b` and space, eight tokens long. `poem.yaml` holds a
line of a poem, and `evaluate.yaml` a config of another recipe. No file has the name `nowhere`.

{table("command", COMMANDS)}

## In Python

```python
{SETUP}```

`trained` is the network of the folder of that name, as `edlm.checkpoints.load_network("trained")` gives it.

{table("call", CALLS)}
"""


def table(what: str, mistakes: dict[str, str]) -> str:
    rows = [f"| `{cell(key)}` | {cell(said)} |" for key, said in mistakes.items()]
    return "\n".join([f"| {what} | what is said |", "|---|---|", *rows])


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<class", "&lt;class")


if __name__ == "__main__":
    PAGE.write_text(written(), "utf-8")
