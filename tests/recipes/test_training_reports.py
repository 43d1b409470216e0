"""What the reports of trainings hold: figures of four times the held-out rows, at the last step."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import smallest

from edlm.weights import checkpoints

ROWS = 4 * smallest.UPDATES["valid_rows"]


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
    return found


def test_a_denoisers_is_of_its_bound_and_of_what_is_left_at_each_level(trained: Path) -> None:
    found = report(trained / "denoiser")
    of_text = {"bits_per_character", "unigram_bits"}
    assert found.keys() == {"mean", "standard_error", "n", "bits", "bits_error", "step", "masked_nll"} | of_text
    assert (found["n"], found["step"]) == (ROWS, smallest.UPDATES["steps"])
    assert found["bits"] == pytest.approx(found["mean"] / math.log(2))
    assert found["bits_error"] == pytest.approx(found["standard_error"] / math.log(2))
    assert list(found["masked_nll"]) == ["0.1", "0.3", "0.5", "0.7", "0.9"]
    assert all(level["n"] <= smallest.UPDATES["valid_rows"] for level in found["masked_nll"].values())
    assert found["masked_nll"]["0.9"]["n"] == smallest.UPDATES["valid_rows"]


def test_the_last_step_is_kept_wherever_it_falls(trained_ar: Path) -> None:
    assert smallest.UPDATES["steps"] % smallest.UPDATES["save_every"] != 0
    assert [checkpoints.find_network(trained_ar / name).name for name in ("denoiser", "ar")] == ["step_00000006"] * 2


def test_the_log_of_a_denoiser_has_its_bound_with_an_error_at_each_validation(trained: Path) -> None:
    lines = (trained / "denoiser" / "metrics.jsonl").read_text("utf-8").splitlines()
    found = [record for record in map(json.loads, lines) if "valid_nelbo" in record]
    assert [record["step"] for record in found] == [3, 6]
    assert all(0 < record["valid_nelbo_error"] < record["valid_nelbo"] < 10 for record in found)


def test_an_ar_models_is_of_its_likelihood(trained_ar: Path) -> None:
    found = report(trained_ar / "ar")
    assert (found["n"], found["step"]) == (ROWS, smallest.UPDATES["steps"])
    assert found["bits"] == pytest.approx(found["mean"] / math.log(2))
