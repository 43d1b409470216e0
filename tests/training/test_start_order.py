"""When the denoiser of an energy is trained, by which settings, and what is said of one that is there."""

import os
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edlm.training import energy
from edlm.training import settings as training_settings
from edlm.training import start as starts
from edlm.training.resume import SettingsChanged
from edlm.weights import checkpoints, kinds, loading

CPU = torch.device("cpu")
PLAN = {"steps": 9, "length": 4, "objective": "mdlm", "patience": None}
SETTINGS: dict[str, Any] = {
    **{"denoiser": "d", "pretrain": PLAN, "seed": 3, "device": "cpu", "threads": 1, "corpus": "c", "batch_size": 2},
}


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is checked, locked, trained and loaded, one after the other."""
    found: list[Any] = []

    @contextmanager
    def alone(key: str, value: str) -> Any:
        found.append(("locked", key, value))
        yield
        found.append("let go")

    monkeypatch.setattr(starts.locks, "alone", alone)
    monkeypatch.setattr(training_settings, "check", lambda *given: found.append(("checked", *given)))
    monkeypatch.setattr(energy, "require_room", lambda *given: found.append(("room", *given)))
    monkeypatch.setattr(kinds, "require_subs", lambda path: found.append(("subs", path)))
    monkeypatch.setattr(loading, "is_large", lambda path: False)
    monkeypatch.setattr(loading, "frozen", lambda *given: found.append(("loaded", *given)) or "frozen")
    monkeypatch.setattr(checkpoints, "find_network", lambda path: f"newest of {path}")
    return found


@pytest.mark.parametrize("trained", [True, False])
def test_it_is_trained_by_its_plan_and_what_it_shares_with_the_energy(
    trained: bool, done: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(starts, "_finished", lambda path, steps: (path, steps) != ("d", 9))
    monkeypatch.setattr(starts, "_has_steps", lambda path, steps: trained and (path, steps) == ("d", 9))
    assert starts.load(SETTINGS, CPU, done.append) == "frozen"
    shared = {"seed": 3, "device": "cpu", "threads": 1, "corpus": "c"}
    assert done == [
        *(("checked", SETTINGS, 4), ("room", SETTINGS, 4), ("locked", "denoiser", "d")),
        {"recipe": "pretrain_denoiser", "output_dir": "d", **shared, **PLAN},
        *("let go", ("loaded", "d", CPU)),
    ]
    first = "no finished denoiser at d: training it first, 9 steps\n"
    assert capsys.readouterr().out == ("the denoiser at d has no report: writing it\n" if trained else first)


@pytest.mark.parametrize("plan", [None, PLAN])
def test_one_that_is_there_is_loaded_and_named(
    plan: Any, done: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(starts, "_finished", lambda path, steps: True)
    starts.load({**SETTINGS, "pretrain": plan}, CPU, done.append)
    assert done == [("subs", "d"), ("loaded", "d", CPU)]
    assert capsys.readouterr().out == "denoiser: newest of d\n"


@pytest.mark.parametrize("trained", [True, False])
def test_one_of_another_plan_is_taken_if_it_has_its_steps(
    trained: bool, done: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def changed(settings: dict[str, Any]) -> None:
        raise SettingsChanged("cannot resume d: steps", "use another output_dir")

    monkeypatch.setattr(starts, "_finished", lambda path, steps: False)
    monkeypatch.setattr(starts, "_has_steps", lambda path, steps: trained)
    if not trained:
        said = r"^cannot resume d: steps; name another denoiser=, or take this one with pretrain=null$"
        with pytest.raises(ValueError, match=said):
            starts.load(SETTINGS, CPU, changed)
        return
    starts.load(SETTINGS, CPU, changed)
    assert done[-1] == ("loaded", "d", CPU)
    said = "denoiser: newest of d, without a report: cannot resume d: steps\n"
    assert capsys.readouterr().out == f"the denoiser at d has no report: writing it\n{said}"


@pytest.mark.parametrize(
    ("steps", "own", "report", "writable", "finished"),
    [
        (True, False, True, True, True),
        (False, True, True, True, True),
        (True, False, False, True, False),
        (True, False, False, False, True),
        (False, True, False, False, True),
        (False, False, True, False, False),
    ],
)
def test_a_finished_one_has_its_steps_and_its_report_where_it_can_be_written(
    steps: bool, own: bool, report: bool, writable: bool, finished: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starts, "_has_steps", lambda path, wanted: steps)
    monkeypatch.setattr(starts, "_has_own_steps", lambda path: own)
    monkeypatch.setattr(starts, "_has_report", lambda path: report)
    access = SimpleNamespace(access=lambda path, how: writable if (path, how) == ("nowhere", os.W_OK) else None)
    monkeypatch.setattr(starts, "os", SimpleNamespace(**{**vars(access), "W_OK": os.W_OK}))
    assert starts._finished("nowhere", 9) is finished


@pytest.mark.parametrize(
    ("step", "last", "has"), [(4, 4, True), (5, 4, True), (3, 4, False), (4, None, False), (4, 4.0, False)]
)
def test_its_own_end_is_the_last_of_the_steps_that_it_was_given(
    step: int, last: Any, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "last_checkpoint", lambda path: "newest" if path == "d" else None)
    settings = {} if last is None else {"steps": last}
    monkeypatch.setattr(starts.state, "load", lambda folder: {"step": step, "settings": settings})
    assert starts._has_own_steps("d") is has
    assert starts._has_own_steps("other") is False
    assert starts._has_steps("other", 0) is False
