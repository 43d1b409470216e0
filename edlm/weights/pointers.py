"""The newest and the best checkpoint of a run: the small files that say which, and what is removed.

`last.json` names the newest whole one, `best.json` the best; `first.json` stands there only while the first is saved,
so checkpoints that no `last.json` names are known to be lost, or to be those of a run cut off in its first save.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edlm.weights import whole

LAST, BEST, FIRST = "last.json", "best.json", "first.json"
_STEP = re.compile(r"step_\d{8,}")


def pointed(pointer: Path) -> Path | None:
    """Find the checkpoint that a pointer names, None if there is no pointer.

    Raises ValueError, which says what to do, for one that is damaged or names what is gone.
    """
    if not os.path.lexists(pointer):
        return None
    try:
        name = whole.read_json(pointer).get("folder")
        if not (isinstance(name, str) and _STEP.fullmatch(name)):
            raise ValueError(f"{pointer}: folder = {name!r} must be the name of a checkpoint")
    except ValueError as error:
        raise ValueError(f"{error}{_remedy(pointer)}") from error
    if not (pointer.parent / name).is_dir():
        raise ValueError(f"{pointer} names {name}, which is not there{_remedy(pointer)}")
    return pointer.parent / name


def refuse_lost(pointer: Path) -> None:
    """Raise ValueError if checkpoints are there but no `last.json`, unless the first save of the run was cut off."""
    there = _steps_in(pointer.parent)
    first = pointer.with_name(FIRST)
    cut_off = {str(whole.read_json(first).get("folder"))} if there and first.is_file() else set()
    if set(there) - cut_off:
        raise ValueError(f"{pointer} is missing, and {len(there)} checkpoints are there{_remedy(pointer)}")


def _remedy(pointer: Path) -> str:
    """Say what to do about a pointer that is lost or damaged."""
    there = _steps_in(pointer.parent)
    if not there:
        return ""
    which = "to go on from the last of those there" if pointer.name == LAST else "or the best of those there"
    content = json.dumps({"folder": there[-1]})
    return (
        f": write {content} into {pointer.name} {which} ({', '.join(there[-3:])}), or use another output_dir; nothing "
        "was removed"
    )


def _steps_in(checkpoints: Path) -> list[str]:
    """Names of the checkpoints there, the latest step last."""
    found = [folder.name for folder in checkpoints.glob("step_*") if _STEP.fullmatch(folder.name)]
    return sorted(found, key=lambda name: (len(name), name))


def write_first(marker: Path, folder: Path) -> None:
    """Say that a run's first save is under way. Raises ValueError naming the folder if nothing can be written there."""
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        whole.write_json(marker, {"folder": folder.name})
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error}") from error


def write_pointer(pointer: Path, content: Mapping[str, Any], still_good: Path) -> None:
    """Write `last.json` or `best.json`. Raises ValueError naming it if it cannot be."""
    try:
        whole.write_json(pointer, content)
    except OSError as error:
        raise ValueError(f"cannot write {pointer}: {error}; {still_good} is whole") from error


def remove_old(checkpoints: Path, newest: str, keep_last: int) -> None:
    """Remove checkpoints, all but the last ones up to the newest and the best, and what a run that was cut off left.

    Checkpoints of later steps are such: the run went on from an earlier one. Other folders stay.
    """
    folders = _steps_in(checkpoints)
    kept = set(folders[: folders.index(newest) + 1][-keep_last:])
    best = checkpoints / BEST
    kept |= {str(whole.read_json(best).get("folder"))} if best.is_file() else set()
    for name in [name for name in folders if name not in kept]:
        hidden = checkpoints / f".{name}.partial"  # half a checkpoint is never seen under its name
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(checkpoints / name, hidden)
    for partial in checkpoints.glob(".*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
