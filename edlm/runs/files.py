"""The results of recipes: a table in the terminal, and the same figures as json.

Of several processes the first one writes.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edlm.runs import processes

REPORT = "report.json"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a json file whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one json object per line, whole or not at all."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def append_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add one json object per line. Raises ValueError naming the file if it cannot be written."""
    if not processes.is_first():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    except OSError as error:
        raise ValueError(f"output = {str(path)!r} cannot be written: {error.strerror}") from error


def fingerprint(content: Mapping[str, Any]) -> str:
    """Hash values to sixteen hexadecimal digits that differ when any value does."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def write_text(path: Path, content: str) -> None:
    """Write a text file whole or not at all. Raises ValueError naming it if it cannot be."""
    if not processes.is_first():
        return
    temporary = path.with_name(f".{path.name}.partial")
    with writing(path):
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a file system says of a file, such as that it is full, into a ValueError that names it."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error
