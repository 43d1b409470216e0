"""Finished settings of a sweep, a line of json each: the same command goes on after the last of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edlm.runs import files, records

# The settings are compared one by one, and networks by their weights; a line depends on no other line.
_FREE_ON_RESUME = ("settings", "networks", "output_dir", "sweeps")
# A line without one of these does not depend on it, so it may come later.
_NETWORKS = ("energy", "transition", "joint", "ar")


class Lines:
    """The records of a folder by name, those of an earlier run among them; the card beside them says what they are of.

    card: everything that a line depends on. Raises ValueError naming every key in which the earlier run was another,
    or a file that holds something else.
    """

    def __init__(self, folder: Path, stem: str, card: Mapping[str, Any]) -> None:
        self.path = folder / f"{stem}.jsonl"
        now, beside = json.loads(json.dumps(card)), folder / f"{stem}.json"
        if self.path.is_file():
            _refuse_changes(folder, _read_card(beside), now)
        elif (folder / f"{stem}.md").exists():
            raise ValueError(f"{self.path} is missing beside {stem}.md: put it back, or use another output_dir")
        self.records: dict[str, dict[str, Any]] = self._read()
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(beside, now)

    def add(self, name: str, record: Mapping[str, Any]) -> None:
        """Write down a setting that is finished."""
        files.append_jsonl(self.path, [records.sealed({"name": name, **record})])
        self.records[name] = dict(record)

    def _read(self) -> dict[str, dict[str, Any]]:
        """All whole lines; one that was cut off is removed."""
        names: set[Any] = set()

        def wrong(_: int, record: Mapping[str, Any]) -> str | None:
            name = record.get("name")
            if not isinstance(name, str) or name in names:
                return f"name = {name!r} must be that of a setting, once"
            names.add(name)
            return None

        try:
            found = records.read(self.path, wrong, lambda _: '{"name": "')
        except ValueError as error:
            raise ValueError(
                f"{self.path} holds something else than finished settings: use another output_dir ({error})"
            ) from error
        return {record["name"]: record for record in found}


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text("utf-8"))
        return {**card, "settings": dict(card["settings"]), "networks": dict(card.get("networks", {}))}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no card of a sweep: use another output_dir") from error


def _refuse_changes(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError naming each key in which two cards differ, but for what no line depends on."""
    old, new = (
        {
            **{key: value for key, value in {**card, **card["settings"]}.items() if key not in _FREE_ON_RESUME},
            **{f"weights of {name}": weights for name, weights in card.get("networks", {}).items()},
        }
        for card in (before, now)
    )
    may_come = {*_NETWORKS, *(f"weights of {name}" for name in _NETWORKS)}
    changed = [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not (old.get(key) is None and key in may_come)
    ]
    if changed:
        raise ValueError(f"cannot resume {folder}: {'; '.join(changed)}; use another output_dir")
