"""The order of a training: a step, its figures, its texts, what is on the disk before a checkpoint, and its end."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edlm.runs.entry import Interrupted
from edlm.training import log, loop
from edlm.training.patience import Patience


class Bar:
    """A progress bar that tells what it was asked for."""

    def __init__(self, events: list[Any], **how: Any) -> None:
        self.events, self.how = events, how

    def __enter__(self) -> "Bar":
        self.events.append(self.how)
        return self

    def __exit__(self, *_: object) -> None:
        self.events.append("bar ends")

    def update(self) -> None:
        self.events.append("bar")

    def set_postfix_str(self, said: str, refresh: bool) -> None:
        self.events.append((said, refresh))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is done, one after the other; a second passes in each step."""
    found: list[Any] = []
    clock = iter(range(100, 200))
    monkeypatch.setattr(loop.distributed, "bar", lambda **how: Bar(found, **how))
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(log.Log, "flush", lambda _: found.append("flushed"))
    return found


def running(events: list[Any], folder: Path, step: int = 2, **more: Any) -> loop.TrainingRun:
    """A run after so many of its five steps; each has 600 tokens, and the third is the best one."""
    run = loop.TrainingRun.__new__(loop.TrainingRun)
    run.settings = {"steps": 5, "save_every": 4, "log_to": [], **more}
    run.folder, run.step, run._losses, run._num_tokens = folder, step, [], 600
    run.patience, run.stopping = Patience(None), SimpleNamespace(agreed=None)  # type: ignore[assignment]

    def update() -> float:
        run.step += 1
        events.append(f"step {run.step}")
        return 0.5 + run.step

    run._update = update  # type: ignore[method-assign]
    run._write_figures = lambda _, rate: events.append(f"{rate:g} tokens/s") or run.step == 3  # type: ignore[method-assign]
    run._show_texts = lambda _: events.append("texts")  # type: ignore[method-assign]
    run.save_checkpoint = lambda: events.append("saved")  # type: ignore[method-assign]
    return run


def step(number: int, rate: str, saved: bool) -> list[Any]:
    loss = (f"loss {0.5 + number:.3f}, {rate} tokens/s", False)
    figures = f"{rate.replace(',', '')} tokens/s"
    return [f"step {number}", "bar", loss, figures, "texts", *(["flushed", "saved"] if saved else [])]


def test_a_checkpoint_is_written_when_it_is_due_best_or_last_and_never_before_the_log(
    events: list[Any], tmp_path: Path
) -> None:
    run = running(events, tmp_path)
    run._loop()
    assert events == [
        {"total": 5, "initial": 2, "unit": "step", "desc": tmp_path.name, "mininterval": 1.0},
        *step(3, "600", saved=True),
        *step(4, "600", saved=True),
        *step(5, "600", saved=True),
        "bar ends",
    ]
    assert run._losses == [3.5, 4.5, 5.5]
    events.clear()
    running(events, tmp_path, step=3, save_every=9, steps=6)._loop()
    assert [each for each in events if each in ("saved", "step 4", "step 5", "step 6")] == [
        *("step 4", "step 5", "step 6"),
        "saved",
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_saves_and_says_how_to_go_on(
    number: signal.Signals, events: list[Any], tmp_path: Path
) -> None:
    run = running(events, tmp_path, step=0)
    run.stopping.agreed = number
    with pytest.raises(Interrupted) as stopped:
        run._loop()
    assert stopped.value.status == 128 + number
    assert str(stopped.value) == f"stopped at step 1; the same command goes on from {tmp_path}"
    assert events[1:] == [*step(1, "600", saved=True), "bar ends"]
    last = running(events, tmp_path, step=4)
    last.stopping.agreed = number
    last._loop()
    assert last.step == 5, "what is over was not interrupted"
