"""What a run logs, shows and says at a step, each where it is due."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import tiny_run

from edlm.training import loop
from edlm.weights import checkpoints


class Kept:
    """A log that keeps what is written."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, Any]]] = []

    def write(self, step: int, record: dict[str, Any]) -> None:
        self.lines.append((step, record))


def running(step: int, **more: Any) -> loop.TrainingRun:
    """A run after so many steps, whose losses since the last line are told."""
    run = loop.TrainingRun.__new__(loop.TrainingRun)
    plan = {"steps": 9, "log_every": 2, "valid_every": 3, "keep_best": False, "patience": None, "save_every": 4}
    run.settings, run.step, run._losses = {**plan, **more}, step, [1.0, 2.0, 4.5]
    groups = [{"lr": 0.25}, {"lr": 0.5}, {"lr": 0.125}]
    run.optimizer = SimpleNamespace(param_groups=groups)
    run.patience = loop.Patience(None)
    run.weights = SimpleNamespace(average="average")  # type: ignore[assignment]
    run.validate = lambda network: {"nelbo": 1.5, "nelbo_error": 0.1} if network == "average" else {}
    return run


@pytest.mark.parametrize(
    ("step", "logged", "validated"),
    [(1, False, False), (2, True, False), (3, False, True), (6, True, True), (9, True, True)],
)
def test_figures_are_logged_when_they_are_due_and_after_the_last_step(step: int, logged: bool, validated: bool) -> None:
    run, log = running(step), Kept()
    assert run._write_figures(log, 123.6) is False  # type: ignore[arg-type]
    own = {"loss": 2.5, "lr": 0.5, "tokens_per_s": 124} if logged else {}
    held_out = {"valid_nelbo": 1.5, "valid_nelbo_error": 0.1} if validated else {}
    assert log.lines == [(step, {**own, **held_out})]
    assert run._losses == ([] if logged else [1.0, 2.0, 4.5])
    assert [run._due(key) for key in ("log_every", "valid_every", "save_every")] == [
        logged,
        validated,
        step in (4, 8, 9),
    ]


@pytest.mark.parametrize(("more", "keeps"), [({}, False), ({"keep_best": True}, True), ({"patience": 3}, True)])
def test_the_best_network_is_told_where_one_is_kept(more: dict[str, Any], keeps: bool) -> None:
    run = running(3, **more)
    assert run._write_figures(Kept(), 0.0) is keeps  # type: ignore[arg-type]
    assert run._write_figures(Kept(), 0.0) is False, "as low is not lower"  # type: ignore[arg-type]
    run.validate = lambda _: {}
    run.patience = loop.Patience(None)
    assert run._write_figures(Kept(), 0.0) is False  # type: ignore[arg-type]
    assert (run.patience.best, run.patience.waited) == (None, 1)


@pytest.mark.parametrize(("every", "step", "drawn"), [(None, 4, False), (2, 4, True), (3, 4, False), (4, 4, True)])
def test_texts_are_shown_as_often_as_is_asked(every: int | None, step: int, drawn: bool) -> None:
    shown: list[Any] = []
    run = running(step, sample_every=every)
    run.sample = lambda network: [network]
    run._show_texts(SimpleNamespace(show=lambda *given: shown.append(given)))  # type: ignore[arg-type]
    assert shown == ([(4, ["average"])] if drawn else [])
    run.sample = None
    run._show_texts(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", [None, "step_00000004"])
def test_what_is_not_finite_is_said_with_the_checkpoint_that_is(
    kept: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = running(5)
    run.folder = Path("run")
    monkeypatch.setattr(checkpoints, "last_checkpoint", lambda folder: None if kept is None else folder / kept)
    good = "no checkpoint was written yet" if kept is None else "the last good checkpoint is run/step_00000004"
    assert str(run._not_finite(f"loss {math.nan}")) == f"loss nan at step 5: stopped; {good}"


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_a_step_is_taken_only_if_loss_and_gradients_are_finite(
    loss: float, norm: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(tmp_path)
    before = [each.detach().clone() for each in run.network.parameters()]
    monkeypatch.setattr(run.weights, "clip", lambda most: norm)
    monkeypatch.setattr(loop.distributed, "total", lambda values, device: [loss, *values[1:]])
    with pytest.raises(
        ValueError, match=f"^loss {loss} with gradient norm {norm} at step 0: stopped; no checkpoint was"
    ):
        run._update()
    assert all(torch.equal(now, was) for now, was in zip(run.network.parameters(), before, strict=True))
    assert run.step == 0
