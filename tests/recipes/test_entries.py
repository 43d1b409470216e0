"""Every recipe is a program: run as a file, as `edlm run` does, it reads its command line."""

import runpy
import sys
from pathlib import Path

import pytest

from edlm import recipes
from edlm.cli import commands

FOLDER = Path(recipes.__path__[0])


@pytest.mark.parametrize("recipe", sorted(path.stem for path in FOLDER.glob("[!_]*.py")))
def test_a_recipe_run_as_a_file_checks_its_settings(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = next(iter(commands.configs(recipe).values()))
    monkeypatch.setattr(sys, "argv", [recipe, "--config", str(config), "threads=0"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(FOLDER / f"{recipe}.py"), run_name="__main__")
    assert stopped.value.code == 2
    assert "edlm: threads = 0 must be" in capsys.readouterr().err
