"""What a run that goes on must share with the one that was stopped, and where its rate rises and falls again."""

from pathlib import Path
from typing import Any

import pytest

from edlm.training import resume
from edlm.training.resume import SettingsChanged

REMEDY = "; use another output_dir"
SETTINGS = {"steps": 8, "decay": "constant", "patience": None, "batch_size": 4, "valid_every": 2, "log_every": 1}
FREE = (
    "log_every",
    "valid_every",
    "valid_rows",
    "save_every",
    "keep_last",
    "keep_best",
    "resume",
    "steps",
    "accumulate",
)
FREE += ("parallel", "recompute", "compile", "processes", "log_to", "sample_every")


def state(step: int = 4, began: int = 0, **changed: Any) -> dict[str, Any]:
    return {"step": step, "began": began, "settings": {**SETTINGS, **changed}, "identity": {"vocabulary": "x"}}


def refused(before: dict[str, Any], **now: Any) -> str | None:
    try:
        resume.require_unchanged(Path("run"), before, {**SETTINGS, **now}, {"vocabulary": "x"})
    except SettingsChanged as error:
        return str(error).removesuffix(REMEDY) if str(error) == f"{error.what}{REMEDY}" else str(error)
    return None


@pytest.mark.parametrize(
    ("decay", "step", "steps", "beginning"),
    [
        ("constant", 4, 8, 3),
        ("constant", 8, 8, 3),
        ("constant", 8, 16, 3),  # more steps after the end: a constant rate has no fall, and stays
        ("cosine", 4, 8, 3),
        ("cosine", 8, 8, 3),
        ("cosine", 4, 16, 3),  # more steps on the way: still the same fall
        ("cosine", 8, 16, 8),  # more steps after the end: another rise and fall
    ],
)
def test_a_rate_rises_and_falls_again_where_a_finished_run_has_more_steps(
    decay: str, step: int, steps: int, beginning: int
) -> None:
    assert resume.beginning(state(step, 3, decay=decay), {**SETTINGS, "decay": decay, "steps": steps}) == beginning
    older = {"step": step, "began": 3, "settings": {}}
    assert resume.beginning(older, {**SETTINGS, "decay": decay, "steps": steps}) == 3


@pytest.mark.parametrize("key", FREE)
def test_what_decides_no_update_may_change(key: str) -> None:
    assert refused(state(), **{key: "other"}) is None
    assert set(FREE) == resume.FREE


def test_what_decides_updates_may_not() -> None:
    assert refused(state()) is None
    assert refused(state(), batch_size=5) == "cannot resume run: batch_size was 4, is 5"
    assert refused(state(), batch_size=5, decay="cosine") == (
        "cannot resume run: batch_size was 4, is 5; decay was 'constant', is 'cosine'"
    )
    assert refused(state(), new=1) == "cannot resume run: new was None, is 1"
    with pytest.raises(SettingsChanged, match=rf"^cannot resume run: vocabulary was 'x', is 'y'{REMEDY}$"):
        resume.require_unchanged(Path("run"), state(), SETTINGS, {"vocabulary": "y"})


@pytest.mark.parametrize(
    ("decay", "step", "steps", "right"),
    [("constant", 4, 9, True), ("cosine", 4, 9, False), ("cosine", 8, 9, True), ("cosine", 8, 7, False)],
)
def test_steps_grow_at_any_time_or_after_the_last_one(decay: str, step: int, steps: int, right: bool) -> None:
    said = refused(state(step, decay=decay), decay=decay, steps=steps)
    assert said == (None if right else f"cannot resume run: steps was 8, is {steps}")


@pytest.mark.parametrize(("patience", "right"), [(None, True), (2, False)])
def test_validations_decide_when_a_patient_run_stops(patience: int | None, right: bool) -> None:
    said = refused(state(patience=patience), patience=patience, valid_every=4)
    assert said == (None if right else "cannot resume run: valid_every was 2, is 4")


def test_what_has_changed_all_the_same_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(state(), valid_every=4, steps=16) is None
    assert capsys.readouterr().out == "run goes on at step 4: steps was 8, is 16; valid_every was 2, is 4\n"
    assert refused(state(), compile=True) is None
    assert capsys.readouterr().out == "", "an older run did not say"
