"""A frontier written by hand, as csv and as a table for people."""

import csv
import io
import math
from typing import Any

import pytest

from edlm.frontier import grid, table
from edlm.frontier.points import Point, SpeedUp
from edlm.likelihood import hidden_markov
from edlm.likelihood.estimates import Estimate
from edlm.samplers import plans
from edlm.samplers.sampler import Sampler

DENOISER = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 4)
PLAIN = Sampler(DENOISER, plans.TokensPerPass(2))
KEYS = [f"{matched}, {cost}" for matched in ("equal bits", "equal bits and entropy") for cost in table.COSTS]


def of(mean: float, error: float = 0.0) -> Estimate:
    return Estimate(mean, error, 5)


FIGURES = {"bits_per_character": of(1.23456, 0.0123), "entropy": of(2.5), "divergence_2": of(0.125, 0.5)}
COSTS = {"denoiser_passes": of(4.0), "energy_passes": of(8.0), "passes": of(12.0), "calls": of(6.0)}
REAL = Point("held-out text", None, "", FIGURES, None)
SAMPLED = Point(
    *("a sampler", PLAIN, "", {**FIGURES, **COSTS, "ess": of(1.5, 0.25)}, 0.012345),
    frozenset({"passes", "entropy"}),
    {
        KEYS[0]: SpeedUp(2.0, 0.5, "=", 1.0),
        KEYS[1]: SpeedUp(3.0, 0.25, "=", 0.75),
        KEYS[2]: SpeedUp(4.0, 0.0, ">", 1.0),
        KEYS[3]: SpeedUp(5.0, 0.0, "<", 0.5),
        KEYS[4]: None,
    },
)
CONTROL = Point("its control", PLAIN, "zero of a sampler", {**FIGURES, **COSTS}, None)
POINTS = [REAL, SAMPLED, CONTROL]


def test_a_file_has_every_figure_in_a_column_of_its_own() -> None:
    rows = list(csv.DictReader(io.StringIO(table.to_csv(POINTS))))
    names = ["bits_per_character", "perplexity", "entropy", "denoiser_passes", "energy_passes", "passes", "calls"]
    names += ["ess", "log_weight_std", "divergence_2"]
    fronts = ["front_entropy", "front_seconds", "front_passes", "front_calls"]
    faster = [
        f"faster_at_{matched}_{cost}{what}"
        for matched in ("equal_bits", "equal_bits_and_entropy")
        for cost in ("seconds", "passes", "calls")
        for what in ("", "_error", "_bound", "_inside")
    ]
    expected = ["name", *grid.COLUMNS, "control", "n", "seconds"]
    expected += [column for name in names for column in (name, f"{name}_error")]
    assert list(rows[0]) == [*expected, *fronts, *faster]
    real, sampled, control = rows
    told = {"name": "a sampler", "family": "plain", "plan": str(PLAIN.plan), "candidates": "1", "control": "", "n": "5"}
    told |= {"seconds": "0.012345", "bits_per_character": "1.23456", "bits_per_character_error": "0.0123"}
    told |= {"perplexity": "", "ess": "1.5", "ess_error": "0.25", "passes": "12", "calls": "6"}
    told |= {"front_entropy": "1", "front_seconds": "0", "front_passes": "1", "front_calls": "0"}
    told |= {faster[0]: "2", faster[1]: "0.5", faster[2]: "=", faster[3]: "1", faster[10]: ">", faster[14]: "<"}
    told |= {faster[16]: "", faster[20]: ""}
    assert told.items() <= sampled.items()
    assert {real[name] for name in (*fronts, "family", "seconds", "passes")} == {""}
    assert (control["control"], control["front_entropy"]) == ("zero of a sampler", "0")


def test_the_table_for_people_has_its_remarks_in_front_and_how_to_read_it_behind() -> None:
    parts = table.to_markdown(POINTS, ["one", "two"]).split("\n\n")
    assert parts[:2] == ["one", "two"]
    assert parts[3].startswith("Errors (±) are bootstrapped over texts.")
    assert len(parts) == 5
    assert parts[4].endswith("no statistic of samples.\n")
    head, line, real, sampled, control = (
        [cell.strip() for cell in row.split("|")[1:-1]] for row in parts[2].split("\n")
    )
    assert head == [
        *("setting", "bits per character", "perplexity", "entropy, nats", "seconds", "denoiser passes"),
        *("energy passes", "calls in a row", "ESS", "s.d. of log w", "2-gram divergence"),
        *(f"x {word} at equal bits" for word in ("faster", "fewer passes", "fewer calls")),
        *(f"x {word} at equal bits and entropy" for word in ("faster", "fewer passes", "fewer calls")),
        *("front", "control"),
    ]
    assert set(line) == {"---"}
    assert real == ["held-out text", "1.235 ± 0.012", "", "2.5", *[""] * 6, "0.125 ± 0.5", *[""] * 8]
    assert sampled == [
        *("a sampler", "1.235 ± 0.012", "", "2.5", "0.0123", "4", "8", "6", "1.5 ± 0.25", "", "0.125 ± 0.5"),
        *("2 ± 0.5", "3 ± 0.25 (75%)", "> 4", "< 5", "", "", "entropy, passes", ""),
    ]
    assert control[-2:] == ["", "zero of a sampler"]


def test_a_terminal_shows_the_columns_that_fit() -> None:
    assert table.short(POINTS) == [
        ("", "bits per character", "entropy, nats", "ESS", "seconds", "passes", "calls", "front"),
        ("held-out text", "1.235 ± 0.012", "2.5", "-", "-", "-", "-", "-"),
        ("a sampler", "1.235 ± 0.012", "2.5", "1.5 ± 0.25", "0.0123", "12", "6", "entropy, passes"),
        ("its control", "1.235 ± 0.012", "2.5", "-", "-", "12", "6", "-"),
    ]


@pytest.mark.parametrize(("name", "cost"), [("seconds", 0.012345), ("passes", 12.0), ("calls", 6.0)])
def test_a_cost_is_a_figure_or_a_time(name: str, cost: float) -> None:
    assert SAMPLED.cost(name) == cost
    assert math.isnan(CONTROL.cost("seconds"))


@pytest.mark.parametrize(
    ("setting", "cells"),
    [
        (None, [None] * 7),
        (grid.Alone(None, 2, 0.5), [grid.family(grid.Alone(None, 2, 0.5)), None, None, 0.5, None, None, None]),  # type: ignore[arg-type]
        (PLAIN, ["plain", str(PLAIN.plan), "1", 1.0, 1.0, 0.0, 1.0]),
    ],
)
def test_a_setting_is_told_in_the_columns_of_its_axes(setting: Any, cells: list[Any]) -> None:
    assert grid.cells(setting) == cells
    assert len(cells) == len(grid.COLUMNS)
