"""Finished settings of a sweep, a line of json each: the same command goes on after the last of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edlm.process import arguments
from edlm.runs import files, records

# The settings are compared one by one, and networks by their weights; a line depends on no other line.
_FREE_ON_RESUME = ("settings", "networks", "output_dir", "sweeps")
# A line without one of these does not depend on it, so it may come later.
_NETWORKS = ("energy", "transition", "joint", "ar")
SETTING = "setting"  # of a line: the sampler as a sweep would have it


class Lines:
    """The records of a folder by name, those of an earlier run among them; the card beside them says what they are of.

    card: everything that a line depends on. settings: the wanted samplers by name, as plain values. Raises ValueError
    naming every key in which the earlier run was another, a sampler of a known name that is another, or a file that
    holds something else.
    """

    def __init__(
        self, folder: Path, stem: str, card: Mapping[str, Any], settings: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self.path = folder / f"{stem}.jsonl"
        now, beside = json.loads(json.dumps(card)), folder / f"{stem}.json"
        if self.path.is_file():
            _refuse_changes(folder, _read_card(beside), now)
        elif (folder / f"{stem}.md").exists():
            raise ValueError(f"{self.path} is missing beside {stem}.md: put it back, or use another output_dir")
        self.settings = {name: json.loads(json.dumps(each, default=str)) for name, each in settings.items()}
        self.records: dict[str, dict[str, Any]] = self._read()
        self._refuse_other_settings()
        arguments.require_folder(folder)
        files.write_json(beside, now)

    def add(self, name: str, record: Mapping[str, Any]) -> None:
        """Write down a setting that is finished, with what it is."""
        own = {SETTING: self.settings[name]} if name in self.settings else {}
        files.append_jsonl(self.path, [records.sealed({"name": name, **own, **record})])
        self.records[name] = {**own, **record}

    def _refuse_other_settings(self) -> None:
        """Raise ValueError naming a finished setting that the wanted one of its name is not."""
        for name, wanted in self.settings.items():
            was = self.records.get(name, {SETTING: wanted}).get(SETTING)
            if was != wanted:
                raise ValueError(
                    f"cannot resume {self.path.parent}: {name!r} was {was!r}, is {wanted!r}; use another output_dir"
                )

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
