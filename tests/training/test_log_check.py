"""A log that goes on is the one that a checkpoint knows, and a log without a checkpoint is begun anew or kept."""

from pathlib import Path

import pytest

from edlm.runs import files, records
from edlm.training import log_check


def logged(folder: Path, steps: int, name: str = "metrics.jsonl") -> Path:
    for step in range(1, steps + 1):
        files.append_jsonl(folder / name, [records.sealed({"step": step})])
    return folder / name


@pytest.mark.parametrize("value", [True, False, "without_log"])
def test_a_run_goes_on_or_not_or_without_its_log(value: bool | str) -> None:
    log_check.resume("resume", value)
    for wrong in ("with_log", 1, None):
        with pytest.raises(ValueError, match=rf"^resume = {wrong!r} must be true or false, or without_log$"):
            log_check.resume("resume", wrong)


@pytest.mark.parametrize("name", ["metrics.jsonl", "training_samples.jsonl"])
def test_a_log_up_to_the_first_checkpoint_is_begun_anew(name: str, tmp_path: Path) -> None:
    log_check.begin(tmp_path, True, 3)
    path = logged(tmp_path, 3, name)
    with pytest.raises(ValueError, match=rf"^{tmp_path} holds a run already \({name}\): use another output_dir$"):
        log_check.begin(tmp_path, False, 3)
    assert len(path.read_text().splitlines()) == 3
    log_check.begin(tmp_path, True, 3)
    assert not path.exists() or path.read_text() == ""


@pytest.mark.parametrize("name", ["metrics.jsonl", "training_samples.jsonl"])
def test_a_longer_log_is_one_whose_checkpoints_are_gone(name: str, tmp_path: Path) -> None:
    path = logged(tmp_path, 4, name)
    with pytest.raises(ValueError, match=rf"^{tmp_path} holds {name} of a run whose checkpoints are gone: put them"):
        log_check.begin(tmp_path, True, 3)
    assert len(path.read_text().splitlines()) == 4


def test_so_is_one_with_a_report(tmp_path: Path) -> None:
    logged(tmp_path, 1)
    files.write_json(tmp_path / "report.json", {})
    with pytest.raises(ValueError, match=r"holds metrics\.jsonl and report\.json of a run whose checkpoints are gone"):
        log_check.begin(tmp_path, True, 3)


def test_what_was_logged_after_a_checkpoint_is_dropped(tmp_path: Path) -> None:
    path = logged(tmp_path, 2)
    known = log_check.written(tmp_path)
    assert known.keys() == {"metrics.jsonl", "training_samples.jsonl"}
    before = path.read_text()
    logged(tmp_path, 3)
    log_check.go_on(tmp_path, known, 2, True)
    assert path.read_text() == before


def test_another_log_is_refused_or_put_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = logged(tmp_path, 2)
    known = log_check.written(tmp_path)
    path.write_text("other\n")
    said = rf"^{path} is not what the run had written at step 2 \(2 lines\): put it back, or go on without it by "
    with pytest.raises(ValueError, match=said + "resume=without_log, which keeps what is there under another name$"):
        log_check.go_on(tmp_path, known, 2, True)
    assert path.read_text() == "other\n"
    for number in ("", "1", "2"):
        path.write_text(f"other{number}\n")
        log_check.go_on(tmp_path, known, 2, "without_log")
        aside = tmp_path / f"metrics.jsonl.damaged{number}"
        assert aside.read_text() == f"other{number}\n"
        assert capsys.readouterr().out == f"metrics.jsonl is kept as {aside}\n"
    assert not path.exists() or path.read_text() == ""
    path.unlink(missing_ok=True)
    log_check.go_on(tmp_path, known, 2, "without_log")
    assert capsys.readouterr().out == ""
