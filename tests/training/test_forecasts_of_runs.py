"""The forecast before a run: what will be held, what to lower if it does not fit, and what is said when it did not."""

from pathlib import Path

import pytest
import torch
from tiny_runs import SETTINGS, no_picture, tiny_run
from torch import nn

from edlm.training import forecast as forecasts
from edlm.training.loop import TrainingRun

__all__ = ["no_picture"]  # a fixture


def found(run: TrainingRun) -> forecasts.Forecast:
    return forecasts.forecast(run.network, run.stages, run.optimizer, run._some_loss, run.settings)


def test_what_is_held_is_counted_exactly(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    size = sum(p.numel() for p in run.network.parameters())
    before = found(run)
    assert before.parameters == size
    assert before.held == {
        "parameters": 4 * size, "EMA": 4 * size, "frozen networks": 0, "gradients": 4 * size, "optimizer": 8 * size
    }  # fmt: skip
    assert before.rows == 4
    assert all(p.grad is None for p in run.network.parameters())
    run.train()
    state = sum(v.numel() * v.element_size() for s in run.optimizer.state.values() for v in s.values())
    assert found(run).held["optimizer"] == state


def test_activations_grow_with_the_rows_and_are_what_autograd_keeps(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer, kept = torch.optim.SGD([weight], lr=0.1, momentum=0.9), 3 * 4 + 3 * 4 + 3 * 4

    class Stages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = weight

    def loss(rows: int) -> torch.Tensor:
        return (torch.ones(rows, 3) @ weight).exp().tanh().sum()  # the product's input, exp's and tanh's outputs

    settings = {"batch_size": 10, "accumulate": 2}
    forecast = forecasts.forecast(nn.ParameterList([weight]), Stages(), optimizer, loss, settings)
    assert forecast.row == kept
    assert forecast.activations == 5 * kept
    assert forecast.held["optimizer"] == 36


def test_a_forecast_that_does_not_fit_says_what_to_lower(tmp_path: Path) -> None:
    held = {"parameters": 10, "EMA": 10, "frozen networks": 0, "gradients": 10, "optimizer": 20}
    forecast = forecasts.Forecast(5, held, row=100, rows=16, seconds=0.5, free=500)
    said = forecasts.table(forecast, {"batch_size": 16, "accumulate": 1, "steps": 100}, 128)
    assert "set accumulate=4 (parts of 4 rows instead of 16; the same updates)" in said
    assert "13 min" in said  # 100 steps of 16 rows at half a second
    assert "warning" not in forecasts.table(
        forecast._replace(free=5000), {"batch_size": 16, "accumulate": 1, "steps": 100}, 128
    )


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "said"),
    [
        (32, 1, "set accumulate=2 (parts of 16 rows instead of 32; the same updates), or batch_size=16, or"),
        (10, 3, "set accumulate=5 (parts of 2 rows instead of 4; the same updates), or batch_size=6, or"),
        (4, 4, "a part is one row already; take"),
    ],
)
def test_the_remedy_halves_a_part(batch_size: int, accumulate: int, said: str) -> None:
    found = forecasts.remedy({"batch_size": batch_size, "accumulate": accumulate}, 64)
    assert found.startswith(f"{said} texts of 32 instead of 64")


def test_several_processes_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 32 rows each of four has 8: what one is told to lower is that, and it stays a batch that four can share."""
    monkeypatch.setattr(forecasts.processes, "world", lambda: 4)
    held = {"parameters": 10, "EMA": 10, "frozen networks": 0, "gradients": 10, "optimizer": 20}
    settings = {"batch_size": 32, "accumulate": 1, "steps": 100}
    said = forecasts.table(forecasts.Forecast(5, held, row=100, rows=8, seconds=0.5, free=500), settings, 64)
    assert "set accumulate=2 (parts of 4 rows instead of 8; the same updates), or batch_size=16" in said
    assert "7 min" in said  # 100 steps of 8 rows at half a second


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_running_out_of_memory_is_one_line_of_advice(error: Exception, tmp_path: Path) -> None:
    run = tiny_run(tmp_path)

    def fail() -> float:
        raise error

    run._update = fail  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"^out of memory: set accumulate=2 \(parts of 2 rows instead of 4") as caught:
        run.train()
    assert "\n" not in str(caught.value)


def test_a_cpu_that_cannot_allocate_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert forecasts.ran_out(caught.value)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), forecasts.advice(SETTINGS, 8):
        raise RuntimeError("shapes differ")
