"""Files of lines that an interrupted run goes on with: each is known to be what was written, or refused.

A record carries the hash of the rest of it; a log is known by the number and hash of its lines when a checkpoint was
written. What a clock said is not hashed, so that equal runs have equal hashes. Only what a kill leaves, half a last
line, is cut off and written again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from edlm.runs import files

SUM = "sum"  # the key of a record's hash

_OF_A_CLOCK = ("seconds", "tokens_per_s")

Extent = dict[str, Any]  # `lines` and `sha256` of the beginning of a file


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its hash."""
    return {**record, SUM: files.fingerprint(_timeless(record))}


def read(path: Path, wrong: Callable[[int, dict[str, Any]], str | None], start: Callable[[int], str]) -> list[Any]:
    """Read the records of a file as they were sealed, without their hashes; half a last line is cut off the file.

    wrong: what is wrong with the record of a number, if anything. start: with what the line of a number begins, by
    which half a line is known. Raises ValueError, naming the line, for a file that holds anything else; it is left as
    it is.
    """
    if not path.is_file():
        return []
    *whole, rest = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(whole):
        record = _opened(line)
        said = "it is not a record as it was written" if record is None else wrong(number, record)
        if record is None or said is not None:
            raise ValueError(f"line {number + 1}: {said}")
        records.append(record)
    begun = start(len(whole)).encode()
    if not (rest.startswith(begun) or begun.startswith(rest)):
        raise ValueError(f"line {len(whole) + 1}: it is not the beginning of a record")
    cut(path, len(whole))
    return records


def texts_done(path: Path, settings: str, seed: int) -> int:
    """Count the texts a file holds, each the one of its row; settings: the fingerprint of those it is drawn by.

    Raises ValueError naming the file and the first line that is anything else.
    """

    def wrong(row: int, record: Mapping[str, Any]) -> str | None:
        expected = {"settings": settings, "seed": seed, "row": row}
        return next((f"{key} is not {value}" for key, value in expected.items() if record.get(key) != value), None)

    def start(row: int) -> str:
        return json.dumps({"row": row, "seed": seed, "settings": settings}).removesuffix("}")

    try:
        return len(read(path, wrong, start))
    except ValueError as error:
        said = f"output = {str(path)!r} holds other texts: choose another name, or overwrite=true replaces them"
        raise ValueError(f"{said} ({error})") from error


def changed(record: Mapping[str, Any], row: int) -> str | None:
    """Say what shows that a record is not what was written of a row; nothing does of one without settings and hash."""
    if SUM not in record and "settings" not in record:
        return None
    own = {key: value for key, value in record.items() if key != SUM}
    if files.fingerprint(_timeless(own)) != record.get(SUM):
        return f"it is not as it was written; a text of one's own has no {SUM!r} and no 'settings'"
    if own.get("row") != row:
        return f"it is the text of row {own.get('row')}, and that of row {row} is lost or moved"
    return None


def extent(path: Path) -> Extent:
    """Find how many lines a file has and what they say, all of it on the disk then; a missing file is an empty one."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    lines = _lines(path)
    return {"lines": len(lines), "sha256": _hash(lines)}


def begins_as(path: Path, known: Extent) -> bool:
    """Check whether a file still begins with what an extent says."""
    lines = _lines(path)[: known["lines"]]
    return len(lines) == known["lines"] and _hash(lines) == known["sha256"]


def cut(path: Path, lines: int) -> None:
    """Drop what stands after so many lines of a file, if anything does."""
    if path.is_file():
        size = sum(len(line) + 1 for line in _lines(path)[:lines])
        if path.stat().st_size > size:
            os.truncate(path, size)


def last_step(path: Path) -> int:
    """Find the largest `step` of a log, 0 without any. Raises ValueError naming a line that has no step."""
    steps = [0]
    for number, line in enumerate(_lines(path), start=1):
        record = _parsed(line)
        step = record.get("step") if isinstance(record, dict) else None
        if type(step) is not int:
            raise ValueError(
                f"{path}, line {number} is no line of a log: move the file away, or use another output_dir"
            )
        steps.append(step)
    return max(steps)


def _lines(path: Path) -> list[bytes]:
    """All lines but half a last one."""
    return path.read_bytes().split(b"\n")[:-1] if path.is_file() else []


def _hash(lines: Iterable[bytes]) -> str:
    """One hash of lines, of a record without what a clock said."""
    found = hashlib.sha256()
    for line in lines:
        record = _parsed(line)
        is_record = isinstance(record, dict)
        found.update(json.dumps(_timeless(record), sort_keys=True).encode() if is_record else line)
        found.update(b"\n")
    return found.hexdigest()


def _opened(line: bytes) -> dict[str, Any] | None:
    """The record of a line without its hash; None if it is not what was sealed."""
    record = _parsed(line)
    if not isinstance(record, dict) or SUM not in record:
        return None
    own = {key: value for key, value in record.items() if key != SUM}
    return own if files.fingerprint(_timeless(own)) == record[SUM] else None


def _timeless(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose clock stood still."""
    return {key: _stopped(value, key in _OF_A_CLOCK) for key, value in record.items()}


def _stopped(value: Any, is_time: bool) -> Any:
    if isinstance(value, Mapping):
        return {key: _stopped(item, is_time or key in _OF_A_CLOCK) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_stopped(item, is_time) for item in value]
    return 0 if is_time and isinstance(value, int | float) else value


def _parsed(line: bytes) -> Any:
    """The json of a line, None if it is none."""
    try:
        return json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
