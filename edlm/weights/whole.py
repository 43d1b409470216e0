"""Files and folders that are there whole or not at all: written under a temporary name, flushed and renamed."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from edlm import limits


def write_folder(folder: Path, fill: Callable[[Path], None], still_good: Path | None = None) -> None:
    """Fill a temporary folder, flush it to disk and rename it; on failure remove it and say what still stands.

    Raises ValueError naming the folder if it cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        for file in [*temporary.iterdir(), temporary]:
            _flush(file)
        os.rename(temporary, folder)
        _flush(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        kept = "" if still_good is None else f"; the last good checkpoint is {still_good}"
        raise ValueError(f"cannot write {folder}: {error}{kept}") from error


def read_json(file: Path, most: int = limits.JSON_BYTES) -> dict[str, Any]:
    """Read the object of a json file of at most so many bytes.

    Raises ValueError naming the file if it is missing, broken, larger or no object.
    """
    limits.require_small(file, most)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not valid json ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: not a json object")
    return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a json file that is there whole or not at all."""
    temporary = file.with_name(f".{file.name}.partial")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _flush(temporary)
    os.replace(temporary, file)
    _flush(file.parent)


def _flush(path: Path) -> None:
    """Have the file or folder on the disk before anything that relies on it is written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
