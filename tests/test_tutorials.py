"""The tutorials are text notebooks, and every cell of them runs."""

from pathlib import Path

import notebooks
import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "docs" / "tutorials").glob("*.md"))
NOTEBOOKS = [page for page in TUTORIALS if page.read_text("utf-8").startswith("---\nfile_format: mystnb\n")]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda page: page.stem)
def test_every_cell_of_a_tutorial_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["edlm"])
    notebooks.run(notebook)


def test_the_tutorials_are_notebooks() -> None:
    assert {"first_run", "own_text", "own_energy", "adapt", "train_in_python"} <= {page.stem for page in NOTEBOOKS}
    assert all(notebooks.cells(page) for page in NOTEBOOKS)


PAGE = """text

```{code-cell}
size = 8
!edlm run x 'prompt=a _' length={size}
```

```bash
ls
```
"""


def test_a_command_is_given_the_values_of_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr("edlm.cli.commands.main", given.append)
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert notebooks.run(page)["size"] == 8
    assert given == [["run", "x", "prompt=a _", "length=8"]]
