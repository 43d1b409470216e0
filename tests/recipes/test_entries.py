"""Every recipe is a program: run as a file, as `edlm run` does, it reads its command line."""

import runpy
import sys
from pathlib import Path

import pytest
from running import Runner

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


OTHERS_NULL = {"edlm_nce": ["pretrain=null"], "edlm_joint": ["pretrain=null"], "generate": ["energy=null"]}


@pytest.mark.parametrize("recipe", [*OTHERS_NULL, "benchmark", "distill", "evaluate", "frontier", "likelihoods"])
def test_a_denoiser_that_is_not_there_is_named_by_its_key(recipe: str, run: Runner, tmp_path: Path) -> None:
    words = [f"denoiser={tmp_path / 'nowhere'}", *OTHERS_NULL.get(recipe, [])]
    status, _, error = run(recipe, *words)
    assert (status, f"edlm: denoiser = {tmp_path / 'nowhere'}: no checkpoint there" in error) == (2, True), error
    assert error.strip().endswith("; `edlm run pretrain_denoiser` trains one"), error
