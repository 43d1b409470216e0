"""The forecast of a run: what is counted, what is advised, and sizes and times where their unit changes."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edlm.training import forecast
from edlm.training.forecast import Forecast
from edlm.training.muon import Muon

GIB, MIB = 2**30, 2**20
SETTINGS: dict[str, Any] = {"batch_size": 8, "accumulate": 1, "steps": 100}
HELD = {"parameters": MIB, "EMA": MIB, "frozen networks": 0, "gradients": MIB, "optimizer": 2 * MIB}
FOUND = Forecast(262_144, HELD, row=MIB, rows=8, seconds=0.25, free=None)


@pytest.mark.parametrize(
    ("fits", "rows", "parts", "batch"),
    [(None, 4, 2, 4), (9, 7, 2, 7), (8, 7, 2, 7), (7, 7, 2, 7), (3, 3, 3, 3), (0, 1, 8, 1)],
)
def test_parts_are_made_smaller_by_as_many_rows_as_it_takes(
    fits: int | None, rows: int, parts: int, batch: int
) -> None:
    said = forecast.remedy(SETTINGS, 64, fits)
    own = -(-8 // parts)
    assert own <= rows
    assert said == (
        f"set accumulate={parts} (parts of {own} rows instead of 8; the same updates), or batch_size={batch}, "
        "or texts of 32 instead of 64"
    )


def test_parts_are_those_of_accumulation_and_one_row_cannot_be_parted() -> None:
    said = forecast.remedy({**SETTINGS, "accumulate": 3}, 64)
    assert said.startswith("set accumulate=8 (parts of 1 rows instead of 3; the same updates), or batch_size=3, ")
    for length, shorter in ((64, 32), (3, 1), (1, 1)):
        assert forecast.remedy({**SETTINGS, "batch_size": 1}, length) == (
            f"a part is one row already; take texts of {shorter} instead of {length}, or a smaller network"
        )


@pytest.mark.parametrize(("free", "warns"), [(None, False), (11 * MIB, False), (11 * MIB - 1, True), (0, True)])
def test_it_warns_if_the_first_step_takes_more_than_is_free(free: int | None, warns: bool) -> None:
    assert FOUND.missing == 11 * MIB
    shown = forecast.table(FOUND._replace(free=free), SETTINGS, 64)
    assert ("will not suffice" in shown) == warns
    assert ("free now" in shown) == (free is not None)


def test_the_advice_is_as_many_rows_as_fit() -> None:
    shown = forecast.table(FOUND._replace(free=6 * MIB), SETTINGS, 64)
    assert "set accumulate=3 (parts of 3 rows instead of 8; the same updates), or batch_size=3" in shown
    assert "set accumulate=8 (parts of 1 rows instead of 8" in forecast.table(
        FOUND._replace(free=0, row=0), SETTINGS, 64
    )


def test_its_table_says_what_is_held_and_how_long_it_takes() -> None:
    shown = re.sub(" +", " ", forecast.table(FOUND, SETTINGS, 64, step=40))
    assert "parameters 262,144" in shown
    assert "EMA 1.0 MiB" in shown
    assert "optimizer 2.0 MiB" in shown
    assert "frozen networks" not in shown
    assert "activations 8.0 MiB 8 rows of 64, from a smaller step" in shown
    assert "together 13.0 MiB" in shown
    assert "time 2 min 60 steps of 2 s, without validation" in shown


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0.0 MiB"), (GIB - 1, "1024.0 MiB"), (GIB, "1.00 GiB"), (3 * GIB, "3.00 GiB")]
)
def test_an_amount_changes_its_unit_at_a_gibibyte(size: int, shown: str) -> None:
    assert forecast._amount(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.25, "0.25 s"), (59.0, "59 s"), (60.0, "1 min"), (5399.0, "90 min"), (5400.0, "1.5 h"), (36_000.0, "10.0 h")],
)
def test_a_duration_changes_its_unit_at_a_minute_and_at_an_hour_and_a_half(seconds: float, shown: str) -> None:
    assert forecast._duration(seconds) == shown


def test_free_memory_is_what_the_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "_MEMORY", tmp_path / "meminfo")
    assert forecast.free_memory(torch.device("cpu")) is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   3 kB\n", "utf-8")
    assert forecast.free_memory(torch.device("cpu")) == 3072
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\n", "utf-8")
    assert forecast.free_memory(torch.device("cpu")) is None


def test_what_has_run_out_of_memory_is_told_from_other_errors() -> None:
    refused = [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError()]
    assert all(
        map(forecast.ran_out, [*refused, RuntimeError("not enough memory: you tried"), torch.OutOfMemoryError()])
    )
    assert not forecast.ran_out(RuntimeError("shapes"))
    with pytest.raises(ValueError, match=r"^out of memory: set accumulate=2 "), forecast.advice(SETTINGS, 64):
        raise refused[0]
    with pytest.raises(RuntimeError, match="shapes"), forecast.advice(SETTINGS, 64):
        raise RuntimeError("shapes")


OPTIMIZERS = {
    "two moments": (lambda p: torch.optim.AdamW(p, lr=1e-3), 2),
    "a momentum": (lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9), 1),
    "nothing": (lambda p: torch.optim.SGD(p, lr=1e-3), 0),
    "Muon's momentum": (Muon, 1),
    "Muon's AdamW": (lambda p: Muon([{"params": list(p), "hidden": False}]), 2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_held_is_counted_and_gradients_are_thrown_away(name: str) -> None:
    build, moments = OPTIMIZERS[name]
    network, frozen = nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)
    stages = nn.Sequential(network, frozen)
    optimizer, asked = build(network.parameters()), []

    def loss(rows: int) -> Tensor:
        asked.append(rows)
        return stages(torch.ones(rows, 4)).square().sum()

    found = forecast.forecast(network, stages, optimizer, loss, SETTINGS)
    assert asked == [2, 2, 2, 2, 8, 8, 8]
    assert (found.parameters, found.rows) == (16, 8)
    sizes = {"parameters": 64, "EMA": 64, "frozen networks": 32, "gradients": 64, "optimizer": 64 * moments}
    assert found.held == sizes
    assert found.seconds > 0.0
    assert network.weight.grad is None
    one = forecast.forecast(network, stages, optimizer, loss, {**SETTINGS, "batch_size": 5, "accumulate": 5})
    assert (asked[7:], one.rows) == ([1, 1, 1, 1], 1)


@pytest.mark.parametrize(
    ("fixed", "free", "seconds"),
    [(0.1, 0, (0.1 + 0.16) / 16), (0.1, None, (0.1 + 0.16) / 16), (0.3, 0, 0.32 / 2), (0.1, -1, 0.12 / 2)],
)
@pytest.mark.parametrize("which", [1, 2, 4])  # a first try or another, of few rows or of more
def test_what_a_step_takes_whatever_its_rows_is_not_counted_for_each_row(
    fixed: float, free: int | None, seconds: float, which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows are read after a small step that was over at once, if twice their activations are free.

    A try that something else has disturbed does not count.
    """
    clock, weight, disturbed = [0.0], nn.Parameter(torch.ones(4)), list[bool]()
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: clock[0])
    row = 2 * 4 * 4  # the factor and exp's output
    monkeypatch.setattr(forecast, "free_memory", lambda _: None if free is None else 2 * 16 * row + 1 + free)

    def loss(rows: int) -> Tensor:
        disturbed.append(len(disturbed) == which)
        clock[0] += fixed + 0.01 * rows + disturbed[-1]
        return (weight * torch.ones(rows, 4)).exp().sum() if rows else weight.sum()

    network = nn.ParameterList([weight])
    optimizer = torch.optim.SGD([weight], lr=1.0)
    found = forecast.forecast(network, network, optimizer, loss, {"batch_size": 40, "accumulate": 1})
    assert found.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(("step", "calls"), [(0.1, 3), (2.0, 3), (3.0, 2), (6.0, 1)])
def test_a_long_step_is_not_repeated_for_the_sake_of_a_forecast(
    step: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, weight, asked = [0.0], nn.Parameter(torch.ones(1)), []
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: clock[0])

    def loss(rows: int) -> Tensor:
        asked.append(rows)
        clock[0] += step
        return weight.sum()

    network = nn.ParameterList([weight])
    forecast.forecast(network, network, torch.optim.SGD([weight]), loss, {"batch_size": 2, "accumulate": 1})
    assert len(asked) == 1 + calls
