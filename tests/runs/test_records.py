"""Files of lines that a run goes on with are what was written, line by line, or are refused and left as they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.runs import files
from edlm.runs import records as _records
from edlm.training import log_check

SETTINGS, SEED = "0123456789abcdef", 3


def text(row: int, **changed: Any) -> dict[str, Any]:
    return {
        "row": row,
        "seed": SEED,
        "settings": SETTINGS,
        "text": f"text {row}",
        "tokens": [row],
        "ess": None,
    } | changed


def written(path: Path, *records: dict[str, Any]) -> bytes:
    path.unlink(missing_ok=True)
    files.append_jsonl(path, map(_records.sealed, records))
    return path.read_bytes()


def done(path: Path) -> int:
    return _records.texts_done(path, SETTINGS, SEED)


def test_texts_are_counted_when_each_is_the_one_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    assert done(path) == 0
    content = written(path, *map(text, range(4)))
    assert done(path) == 4
    assert path.read_bytes() == content


@pytest.mark.parametrize("kept", [1, 2, 30, 60, 100])
def test_half_a_last_line_is_cut_off_wherever_a_kill_left_it(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "texts.jsonl"
    whole, next_line = written(path, *map(text, range(2))), written(tmp_path / "next", text(2))
    path.write_bytes(whole + next_line[: min(kept, len(next_line) - 1)])
    assert done(path) == 2
    assert path.read_bytes() == whole


def renumbered(lines: list[bytes]) -> list[bytes]:
    records = [json.loads(line) for line in [lines[0], *lines[2:]]]
    return [json.dumps({**record, "row": row}).encode() for row, record in enumerate(records)]


DAMAGE: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "lost from the middle": lambda lines: [lines[0], *lines[2:]],
    "lost from the beginning": lambda lines: lines[1:],
    "doubled": lambda lines: [*lines[:2], *lines[1:]],
    "out of order": lambda lines: [lines[1], lines[0], *lines[2:]],
    "lost and renumbered": renumbered,
    "cut in the middle of the file": lambda lines: [lines[0], lines[1][:20], *lines[2:]],
    "without its hash": lambda lines: [lines[0].replace(b"sum", b"mus"), *lines[1:]],
    "another text": lambda lines: [lines[0].replace(b"text 0", b"text 9"), *lines[1:]],
    "a key lost": lambda lines: [lines[0].replace(b'"ess": null, ', b""), *lines[1:]],
    "an empty line": lambda lines: [lines[0], b"", *lines[1:]],
    "no text": lambda lines: [*lines, b"\xff\xfe"],
    "nested without end": lambda lines: [*lines, b"[" * 100_000],
    "a list": lambda lines: [*lines, b"[1]"],
    "of other settings": lambda lines: [*lines, json.dumps(_records.sealed(text(4, settings="another"))).encode()],
    "of another seed": lambda lines: [*lines, json.dumps(_records.sealed(text(4, seed=4))).encode()],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_with_anything_else_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / "texts.jsonl"
    lines = written(path, *map(text, range(4))).split(b"\n")[:-1]
    content = b"".join(line + b"\n" for line in DAMAGE[name](lines))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^output = .*texts.jsonl' holds other texts: .*\(line \d+: .*\)$"):
        done(path)
    assert path.read_bytes() == content


def test_a_file_of_somebody_else_without_a_last_line_feed_is_not_emptied(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for content in (b"my notes", b'{"row": 0, "seed": 4', b'{"row": 1', b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="line 1: it is not the beginning of a record"):
            done(path)
        assert path.read_bytes() == content


@settings(max_examples=20)
@given(record=st.dictionaries(st.text(), st.none() | st.text() | st.integers() | st.floats(allow_nan=False)))
def test_any_record_is_read_as_it_was_sealed(record: dict[str, Any]) -> None:
    record.pop("sum", None)
    line = json.dumps(_records.sealed(record)).encode()
    assert _records._opened(line) == record
    for place in range(0, len(line), 7):
        changed = line[:place] + (b"1" if line[place : place + 1] != b"1" else b"2") + line[place + 1 :]
        assert _records._opened(changed) in (None, record)


def test_what_a_clock_said_is_in_no_hash_but_has_to_be_there() -> None:
    record = {"name": "plain", "seconds": [0.5, 0.25], "figures": {"seconds": [1.0, 0.0], "kl": [2.0, 0.0]}}
    other = {**record, "seconds": [7.0, 3.0], "figures": {"seconds": [2.0, 1.0], "kl": [2.0, 0.0]}}
    assert _records.sealed(record)["sum"] == _records.sealed(other)["sum"]
    for wrong in ({**record, "seconds": [0.5]}, {**record, "figures": {"kl": [2.0, 0.0]}}, {**record, "seconds": None}):
        assert _records.sealed(record)["sum"] != _records.sealed(wrong)["sum"]


# ---- Logs


def logged(folder: Path, *steps: int, rate: int = 5) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0 / step, "tokens_per_s": rate}) + "\n" for step in steps]
    (folder / "metrics.jsonl").write_text("".join(lines))


def test_a_log_goes_on_after_what_was_written_at_its_checkpoint(tmp_path: Path) -> None:
    logged(tmp_path, 1, 2)
    known = json.loads(json.dumps(log_check.written(tmp_path)))
    logged(tmp_path, 1, 2, rate=7)  # what a clock said is nobody's
    assert log_check.written(tmp_path) == known
    before = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(before + b'{"step": 3}\n{"st')
    log_check.go_on(tmp_path, known, 2, resume=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert not (tmp_path / "training_samples.jsonl").exists()


@pytest.mark.parametrize("steps", [None, (), (1,), (2,), (1, 1, 2), (1, 3), (2, 1)])
def test_a_log_that_lacks_or_changes_anything_is_refused_and_kept(
    tmp_path: Path, steps: tuple[int, ...] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    logged(tmp_path, 1, 2)
    known, path = log_check.written(tmp_path), tmp_path / "metrics.jsonl"
    path.unlink()
    if steps is not None:
        logged(tmp_path, *steps)
    content = path.read_bytes() if path.exists() else None
    with pytest.raises(ValueError, match=r"metrics\.jsonl is not what the run had written at step 2 \(2 lines\):"):
        log_check.go_on(tmp_path, known, 2, resume=True)
    assert (path.read_bytes() if path.exists() else None) == content
    log_check.go_on(tmp_path, known, 2, resume="without_log")
    assert not path.exists()
    if content is not None:
        assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == content
        assert f"kept as {tmp_path / 'metrics.jsonl.damaged'}" in capsys.readouterr().out


def test_two_logs_that_are_put_aside_have_two_names(tmp_path: Path) -> None:
    logged(tmp_path, 1, 2)
    known = log_check.written(tmp_path)
    for steps in ((1,), (2,)):
        logged(tmp_path, *steps)
        log_check.go_on(tmp_path, known, 2, resume="without_log")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl.damaged", "metrics.jsonl.damaged1"]


@pytest.mark.parametrize(
    ("name", "content", "resume", "said"),
    [
        ("metrics.jsonl", '{"step": 1}\n', False, r"holds a run already \(metrics\.jsonl\): use another output_dir"),
        ("report.json", "{}", False, r"holds a run already \(report\.json\)"),
        ("report.json", "{}", True, r"holds report\.json of a run whose checkpoints are gone: put them back"),
        ("metrics.jsonl", '{"step": 5}\n', True, r"holds metrics\.jsonl of a run whose checkpoints are gone"),
        ("metrics.jsonl", "notes\n", True, r"metrics\.jsonl, line 1 is no line of a log: move the"),
        ("training_samples.jsonl", '{"step": null}\n', True, r"training_samples\.jsonl, line 1 is no line of a log"),
    ],
)
def test_what_is_left_of_a_run_without_checkpoints_is_kept(
    tmp_path: Path, name: str, content: str, resume: bool, said: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        log_check.begin(tmp_path, resume, save_every=4)
    assert (tmp_path / name).read_text() == content


def test_the_log_of_a_run_killed_before_its_first_checkpoint_is_begun_anew(tmp_path: Path) -> None:
    logged(tmp_path, 1, 2, 4)
    log_check.begin(tmp_path, resume=True, save_every=4)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_the_order_of_a_records_keys_does_not_matter(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 2.0}\n')
    known = _records.extent(log)
    log.write_text('{"loss": 2.0, "step": 1}\n{"step": 2}\n')
    assert _records.begins_as(log, known)
    log.write_text('{"loss": 2.5, "step": 1}\n')
    assert not _records.begins_as(log, known)
