"""The files of a folder that are data: all but its notes, and of one that `datasets` has saved those that it names."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edlm import limits
from edlm.data import formats

_NO_TEXT = {".md", ".rst", ".py", ".yaml", ".yml", ".lock", ".gitattributes", ".html", ".pdf", ".sha256", ".md5"}
_NOTES = {"readme", "license", "licence", "copying", "changelog", "notice", "authors", "citation", "sha256sums"}
_STATE, _INFO, _PARTS, _ARROW = "state.json", "dataset_info.json", "dataset_dict.json", ".arrow"
_NO_DATA = {_STATE, _INFO, _PARTS, "dataset_infos.json"}
_SHARD = re.compile(r"(.*)-\d+-of-(\d+)(.*)", re.DOTALL)


def is_data(name: str) -> bool:
    """Check whether a path inside a folder or an archive is one of data: not hidden, and no note about the data."""
    path = Path(name)
    if name.endswith("/") or any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
        return False
    notes = path.name.lower() in _NO_DATA or (path.stem.lower() in _NOTES and path.suffix.lower() in ("", ".txt"))
    return not notes and path.suffix.lower() not in _NO_TEXT


def data_files(path: Path) -> list[Path]:
    """List the data files at a path, sorted: itself, or all of a folder and those below it.

    Links are followed. Raises ValueError for a path that is not there, a folder that links lead to twice, shards of
    two different savings side by side, and a file that a saved data set names and has not.
    """
    if not (path.exists() or path.is_symlink()):
        raise ValueError(f"{path}: no such file or folder")
    found = sorted(_below(path, {})) if path.is_dir() else [path]
    if path.is_dir():
        found = [file for file in found if is_data(str(file.relative_to(path)))]
        _require_one_saving(found)
    return found


def _below(folder: Path, seen: dict[tuple[int, int], Path]) -> Iterator[Path]:
    """All files in a folder and in those in it, but for what a data set that was saved there does not name."""
    about = folder.stat()
    before = seen.setdefault((about.st_dev, about.st_ino), folder)
    if before != folder:
        raise ValueError(f"{folder}: leads to {before}, which is read already; take the link away")
    for name in _named(folder, sorted(name for name in os.listdir(folder) if not name.startswith("."))):
        entry = folder / name
        if entry.is_dir():
            yield from _below(entry, seen)
        else:
            yield entry


def _named(folder: Path, names: list[str]) -> list[str]:
    """Of the names in a folder those that a saved data set consists of; all of them if none was saved there."""
    if _STATE in names:
        state = _read(folder / _STATE)
        if state.get("_indices_data_files"):
            raise ValueError(f"{folder / _STATE}: rows in another order than they are stored; save the data set anew")
        listed = state.get("_data_files")
        files = [entry.get("filename") if isinstance(entry, dict) else None for entry in _listed(listed)]
        return _there(folder / _STATE, "_data_files", files, names)
    if _PARTS in names:
        return _there(folder / _PARTS, "splits", _listed(_read(folder / _PARTS).get("splits")), names)
    if _INFO in names and any(name.endswith(_ARROW) for name in names):
        return _in_cache(folder, names)
    return names


def _in_cache(folder: Path, names: list[str]) -> list[str]:
    """Names in a folder where `datasets` keeps what it has loaded, but for arrow files that are no split of it."""
    splits = _read(folder / _INFO).get("splits")
    if not isinstance(splits, dict) or not splits:
        raise ValueError(f"{folder / _INFO}: names no splits, and there is no {_STATE}; save the data set anew")
    kept = [name for name in names if not name.endswith(_ARROW)]
    for split, about in splits.items():
        lengths = about.get("shard_lengths") if isinstance(about, dict) else None
        shards = len(lengths) if isinstance(lengths, list) else 1
        ends = [f"-{split}-{n:05}-of-{shards:05}{_ARROW}" for n in range(shards)] if shards > 1 else []
        for end in ends or [f"-{split}{_ARROW}"]:
            found = [name for name in names if name.endswith(end)]
            if not found:
                raise ValueError(f"{folder / _INFO}: names the split {split!r}, and there is no *{end}")
            kept += found
    return kept


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _there(file: Path, key: str, wanted: list[Any], names: list[str]) -> list[str]:
    """The names that are wanted, which must all be there."""
    missing = [name for name in wanted if name not in names]
    if missing or not wanted:
        raise ValueError(
            f"{file}: {key} must name what lies beside it, and {missing[0] if missing else None!r} is not there"
        )
    return wanted


def _read(file: Path) -> dict[str, Any]:
    formats.require_size(file, limits.JSON_BYTES)
    try:
        content = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must be a JSON object")
    return content


def _require_one_saving(files: list[Path]) -> None:
    """Raise ValueError if shards of the same name are of different numbers: of one saving and of another one."""
    seen: dict[tuple[Path, str, str], Path] = {}
    for file in files:
        shard = _SHARD.fullmatch(file.name)
        if shard is not None:
            key = (file.parent, shard[1], shard[3])
            first = seen.setdefault(key, file)
            if _SHARD.fullmatch(first.name)[2] != shard[2]:  # type: ignore[index]
                raise ValueError(f"{file}: of another saving than {first.name} beside it; take the older one away")
