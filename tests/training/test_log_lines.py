"""What a log writes and where: at once, by the first process alone, and under the names that loggers are told."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torchtune.training import metric_logging

from edlm.runs import processes
from edlm.training import log


def test_a_line_can_be_read_while_the_log_is_open(tmp_path: Path) -> None:
    with log.Log(tmp_path, []) as own:
        for step in (1, 2):
            own.write(step, {"loss": 0.5})
            own.write(step, {})
            lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
            assert list(map(json.loads, lines)) == [{"step": each, "loss": 0.5} for each in range(1, step + 1)]


@pytest.mark.parametrize("first", [True, False])
def test_the_first_process_writes_flushes_and_shows(
    first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flushed, closed = list[int](), list[str]()
    monkeypatch.setattr(processes, "is_first", lambda: first)
    monkeypatch.setattr(os, "fsync", flushed.append)
    logger = type("Logger", (), {"log_dict": lambda *_: None, "close": lambda _: closed.append("closed")})
    monkeypatch.setattr(log, "_logger", lambda name, folder: logger())
    texts = [{"row": row, "text": text} for row, text in enumerate(("one", "two", " a\n b  " + "c" * 160))]
    with log.Log(tmp_path, ["wandb"]) as own:
        own.write(1, {"loss": 0.5})
        own.flush()
        own.show(7, texts)
        own.show(8, [])
        assert flushed == ([own.file.fileno()] if first else [])
    assert closed == (["closed"] if first else [])
    assert sorted(path.name for path in tmp_path.iterdir()) == (
        ["metrics.jsonl", "training_samples.jsonl"] if first else []
    )
    assert capsys.readouterr().out == (f"step 7: a b {'c' * 156}\n" if first else "")
    if first:
        found = [json.loads(line) for line in (tmp_path / "training_samples.jsonl").read_text().splitlines()]
        assert found == [{"step": 7, **text} for text in texts]


def test_loggers_are_told_the_folder_and_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(metric_logging, "TensorBoardLogger", lambda *given, **how: (given, how))
    monkeypatch.setattr(metric_logging, "WandBLogger", lambda *given, **how: (given, how))
    folder = tmp_path / "run"
    assert log._logger("tensorboard", folder) == ((str(folder / "tensorboard"),), {"organize_logs": False})
    assert log._logger("wandb", folder) == ((), {"project": "edlm", "log_dir": str(folder), "name": "run"})


@pytest.mark.parametrize(
    ("logged", "drawn", "current"),
    [(None, None, True), (None, 5, True), (5, None, False), (5, 4, False), (5, 5, True), (5, 6, True)],
)
def test_a_picture_is_current_if_no_figure_is_newer(
    logged: int | None, drawn: int | None, current: bool, tmp_path: Path
) -> None:
    for name, at in (("metrics.jsonl", logged), ("curves.png", drawn)):
        if at is not None:
            (tmp_path / name).touch()
            os.utime(tmp_path / name, ns=(at, at))
    assert log.curves_are_drawn(tmp_path) is current


def test_a_line_that_was_cut_off_is_left_out_wherever_it_was_cut(tmp_path: Path) -> None:
    assert log.read(tmp_path) == []
    line = json.dumps({"step": 1, "loss": 0.5})
    for kept in range(len(line)):
        (tmp_path / "metrics.jsonl").write_text(f"{line}\n{line[:kept]}")
        assert log.read(tmp_path) == [{"step": 1, "loss": 0.5}]
