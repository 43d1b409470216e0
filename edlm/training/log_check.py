"""The log of a training run and its checkpoints: what was written up to each is known, and is there when it goes on."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edlm.runs import files, records
from edlm.training import log

FILES = (log.METRICS, log.SAMPLES)
WITHOUT = "without_log"


def resume(key: str, value: Any) -> None:
    """Accept a flag, or the word by which a run goes on whose log is lost."""
    if value != WITHOUT and not isinstance(value, bool):
        raise ValueError(f"{key} = {value!r} must be true or false, or {WITHOUT}")


def written(folder: Path) -> dict[str, records.Extent]:
    """Measure what a run has logged, for a checkpoint to keep."""
    return {name: records.extent(folder / name) for name in FILES}


def begin(folder: Path, resume: bool | str, save_every: int) -> None:
    """Drop the log of a run that was stopped before its first checkpoint.

    Raises ValueError where more than that is there: its checkpoints are gone, and what is left of it is kept.
    """
    there = [name for name in (*FILES, files.REPORT) if (folder / name).exists()]
    if there and not resume:
        raise ValueError(f"{folder} holds a run already ({there[0]}): use another output_dir")
    logged = max(records.last_step(folder / name) for name in FILES)
    if files.REPORT in there or logged > save_every:
        raise ValueError(
            f"{folder} holds {' and '.join(there)} of a run whose checkpoints are gone: put them back, move these "
            "files away, or use another output_dir"
        )
    for name in FILES:
        records.cut(folder / name, 0)


def go_on(folder: Path, known: Mapping[str, records.Extent], step: int, resume: bool | str) -> None:
    """Drop what was logged after a checkpoint. known: what had been `written` there.

    Raises ValueError for a log that is not the one of the checkpoint; with `without_log` it gets another name instead.
    """
    for name, extent in known.items():
        path = folder / name
        if not records.begins_as(path, extent):
            if resume != WITHOUT:
                raise ValueError(
                    f"{path} is not what the run had written at step {step} ({extent['lines']} lines): put it back, or "
                    f"go on without it by resume={WITHOUT}, which keeps what is there under another name"
                )
            _put_aside(path)
        records.cut(path, extent["lines"])


def _put_aside(path: Path) -> None:
    """Give a file another name, under which nothing stands yet."""
    if path.exists():
        names = (path.with_name(f"{path.name}.damaged{number or ''}") for number in itertools.count())
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
        print(f"{path.name} is kept as {aside}", flush=True)
