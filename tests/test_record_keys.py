"""The names in files that others read: columns of tables and keys of records, which nobody here reads again."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch

from edlm.evaluation.figures import Figure
from edlm.frontier import card, exact_report, grid, table
from edlm.frontier.exact_report import Row
from edlm.frontier.points import Point
from edlm.likelihood import hidden_markov
from edlm.likelihood.estimates import Estimate
from edlm.samplers.sampler import Sampler
from edlm.training import energy

SETTING = ("family", "plan", "candidates", "temperature", "nucleus", "window_low", "window_high")
COSTS = ("seconds", "passes", "calls")


def test_a_frontier_has_these_columns() -> None:
    assert grid.COLUMNS == SETTING
    figures = ("bits_per_character", "perplexity", "entropy", "denoiser_passes", "energy_passes", "passes", "calls")
    columns = ["name", *SETTING, "control", "n", "seconds"]
    columns += [column for name in (*figures, "ess", "log_weight_std") for column in (name, f"{name}_error")]
    columns += [f"front_{name}" for name in ("entropy", *COSTS)]
    ends = ("", "_error", "_bound", "_inside")
    found = table.to_csv([Point("real", None, "", {"entropy": Estimate(2.0, 0.1, 5)}, None)]).splitlines()[0].split(",")
    assert found[: len(columns)] == columns
    faster = found[len(columns) :]
    assert len(faster) % len(ends) == 0
    for start, *rest in zip(*[iter(faster)] * len(ends), strict=True):
        assert start.startswith("faster_at_equal_bits")
        assert [start, *rest] == [f"{start}{end}" for end in ends]


def test_a_table_beside_a_source_has_these_columns() -> None:
    sampler = Sampler(hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 4))
    figures = {"total_variation": [0.5, 0.0], "kl": [0.25, 0.0], "passes": [4.0, 0.0]}
    head, line, *_ = exact_report.to_csv([Row("plain", sampler, "", figures)]).splitlines()
    names = [column for name in figures for column in (name, f"{name}_error")]
    assert head.split(",") == ["name", *SETTING, "control", "front", *names]
    assert line.split(",") == [
        "plain",
        "plain",
        "one by one",
        "1",
        "1",
        "1",
        "0",
        "1",
        "",
        "1",
        "0.5",
        "0",
        "0.25",
        "0",
        "4",
        "0",
    ]


def test_a_likelihood_is_recorded_with_all_of_it() -> None:
    value, excess = Estimate(2.0, 0.5, 9), Estimate(0.25, 0.125, 9)
    figure = Figure("valid", "denoiser", "sampler_nelbo", value, 1.0, 3.0, {"denoiser": 4.0}, 2.5, 0.75, excess, None)
    record = figure.record()
    assert {name: record.pop(name) for name in ("nats_per_token", "nats_error", "excess_nats", "excess_error")} == {
        "nats_per_token": 2.0,
        "nats_error": 0.5,
        "excess_nats": 0.25,
        "excess_error": 0.125,
    }
    assert record.pop("bits_per_character") == 4.0 * record.pop("bits_error")
    assert record.pop("perplexity") == value.perplexity
    assert record == {
        "texts": "valid",
        "model": "denoiser",
        "figure": "sampler_nelbo",
        "n": 9,
        "ess": 2.5,
        "log_weight_std": 0.75,
        "unreliable_rows": None,
        "seconds": 3.0,
        "passes": {"denoiser": 4.0},
    }
    without = figure._replace(excess=None).record()
    assert (without["excess_nats"], without["excess_error"]) == (None, None)


def test_the_card_of_a_sweep_says_where_it_ran() -> None:
    found = card.card({"seed": 1}, torch.device("cpu"), source={"states": 2})
    assert found.keys() == {"settings", "source", "versions", "device_used", "threads_used"}
    assert (found["settings"], found["source"]) == ({"seed": 1}, {"states": 2})
    assert found["versions"].keys() == {"edlm", "torch", "python"}


def test_an_energy_says_which_denoiser_it_started_from() -> None:
    description = {"schedule": {"eps": 0.0}, "time_conditioning": False, "step": 7}
    start = SimpleNamespace(description=description, weights="abc")
    assert energy._start_notes(start, SimpleNamespace(fingerprint="def")) == {  # type: ignore[arg-type]
        "corpus": "def",
        "schedule": {"eps": 0.0},
        "time_conditioning": False,
        "denoiser_step": 7,
        "denoiser_weights": "abc",
    }


def test_the_log_of_an_ar_model_has_its_error(trained_ar: Path) -> None:
    lines = (trained_ar / "ar" / "metrics.jsonl").read_text("utf-8").splitlines()
    held_out = [line for line in map(json.loads, lines) if "valid_nll" in line]
    assert held_out
    assert all(line["valid_nll_error"] > 0.0 for line in held_out)
