"""A recipe run in the test's own process, as the command line runs it."""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from edlm.cli import commands
from edlm.runs import entry, plots

_SAVE = plots.save


class Ran(NamedTuple):
    """What a recipe left: its exit status, what it printed, and the lines of standard error that are ours."""

    status: int
    out: str
    said: str


def without_pixels(figure: Any, path: Path) -> None:
    """Stand in for `plots.save`: curves are drawn, and their pixels left out, which take longer than a training."""
    if path.name == "curves.png":
        path.touch()
    else:
        _SAVE(figure, path)


class Runner:
    """Runs recipes; `error` is all that the last one wrote to standard error, progress bars too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd, self.error = monkeypatch, capfd, ""

    def __call__(self, recipe: str, *words: str, config: str = "tiny") -> Ran:
        module = import_module(f"edlm.recipes.{recipe}")
        path = commands.configs(recipe).get(config, config)
        self.monkeypatch.setattr(sys, "argv", [recipe, "--config", str(path), *words])
        self.monkeypatch.setattr(plots, "save", without_pixels)
        status = 0
        try:
            entry.enter(module.main, module.SETTINGS)
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, self.error = self.capfd.readouterr()
        return Ran(status, out, "\n".join(line for line in self.error.splitlines() if line.startswith("edlm: ")))


def unless_given(defaults: Mapping[str, Any], words: tuple[str, ...]) -> list[str]:
    """The words, with a default `key=value` before them for each key that they leave out."""
    absent = {key: value for key, value in defaults.items() if not any(word.startswith(f"{key}=") for word in words)}
    return [*(f"{key}={value}" for key, value in absent.items()), *words]
