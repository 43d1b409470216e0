"""The table and the figures that a training ends with."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from edlm.likelihood.estimates import Estimate
from edlm.training import report


def finished(folder: Path, unit: str = "character") -> Any:
    average = nn.Linear(30, 40)
    return SimpleNamespace(average=average, vocabulary=SimpleNamespace(unit=unit), step=12000, seed=3, folder=folder)


TEXT = report.HeldOut(Estimate(4.0 * math.log(2), 0.0, 3), characters_per_token=2.0)


@pytest.mark.parametrize("unit", ["character", "token"])
def test_lines_name_the_figure_the_unigram_law_and_the_size_of_the_run(tmp_path: Path, unit: str) -> None:
    """Of tokens the figure is told for each character too."""
    found = Estimate(2.0 * math.log(2), 0.25 * math.log(2), 17)
    per_character = ("bits per character", "1.0000 ± 0.1250", "2.00 characters a token")
    assert report.lines("NELBO", found, "texts", "perplexity bound", finished(tmp_path, unit), TEXT) == [
        ("NELBO (test)", f"2.0000 ± 0.2500 bits/{unit}", "n = 17 texts"),
        *([per_character] if unit == "token" else []),
        ("unigram law", f"4.0000 bits/{unit}", f"knows how often each {unit} occurs, and no context"),
        ("perplexity bound", "4.000", ""),
        ("steps, parameters", "12,000, 1,240", "seed 3, EMA weights"),
    ]


def test_levels_are_told_or_left_out() -> None:
    assert report.level_lines({"0.1": Estimate(1.5 * math.log(2), 0.0, 2), "0.9": None}, "byte") == [
        ("bits left at t = 0.1", "1.5000", "per masked byte"),
        ("bits left at t = 0.9", "left out", "fewer than two draws got a mask"),
    ]


def test_the_report_holds_the_figures_and_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = Estimate(2.0, 0.5, 9)
    report.conclude(finished(tmp_path), [("a", "b", "c")], found, TEXT, levels=[1, 2])
    assert capsys.readouterr().out == f"\n  a  b  c\n\n  written to {tmp_path}\n"
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == {
        **{"mean": 2.0, "standard_error": 0.5, "n": 9, "step": 12000, "levels": [1, 2]},
        **{"bits": pytest.approx(2.0 / math.log(2)), "bits_error": pytest.approx(0.5 / math.log(2))},
        **{"bits_per_character": pytest.approx(1.0 / math.log(2)), "unigram_bits": pytest.approx(4.0)},
    }
