"""Finished settings on disk: what is read again, and with what a sweep does not go on."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from edlm.frontier.lines import Lines

SETTINGS = {"seed": 0, "sweeps": [1], "output_dir": "here"}


def opened(folder: Path, settings: dict[str, Any] = SETTINGS, **card: Any) -> Lines:
    return Lines(folder, "frontier", {"settings": settings, "versions": {"torch": "2"}, **card})


def test_finished_lines_are_read_again_and_one_that_was_cut_off_is_written_anew(tmp_path: Path) -> None:
    lines = opened(tmp_path)
    for name, bits in (("plain", 1.0), ("sir", 2.0)):
        lines.add(name, {"bits": bits})
    path = tmp_path / "frontier.jsonl"
    whole = path.read_bytes()
    found = [{key: value for key, value in json.loads(line).items() if key != "sum"} for line in whole.splitlines()]
    assert found == [{"name": "plain", "bits": 1.0}, {"name": "sir", "bits": 2.0}]
    for cut in (1, 2, 10):
        path.write_bytes(whole[:-cut])
        again = opened(tmp_path)
        assert again.records == {"plain": {"name": "plain", "bits": 1.0}}
        assert path.read_bytes() == whole[: whole.index(b"\n") + 1]
        again.add("sir", {"bits": 2.0})
        assert path.read_bytes() == whole
        assert again.records.keys() == opened(tmp_path).records.keys() == {"plain", "sir"}


def test_sweeps_and_the_folder_are_all_of_a_card_that_may_change_once_a_line_is_there(tmp_path: Path) -> None:
    changes: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({**SETTINGS, "seed": 1}, {}, "seed was 0, is 1"),
        ({**SETTINGS, "length": 8}, {}, "length was None, is 8"),
        ({"sweeps": [1], "output_dir": "here"}, {}, "seed was 0, is None"),
        (SETTINGS, {"versions": {"torch": "3"}}, "versions was {'torch': '2'}, is {'torch': '3'}"),
        (SETTINGS, {"threads_used": 1}, "threads_used was None, is 1"),
    ]
    for settings, card, _ in changes:
        assert opened(tmp_path, settings, **card).records == {}, "no line depends on it"
    opened(tmp_path).add("plain", {"bits": 1.0})
    for settings, card, said in changes:
        before = (tmp_path / "frontier.json").read_bytes()
        whole = f"cannot resume {tmp_path}: {said}; use another output_dir"
        with pytest.raises(ValueError, match=f"^{re.escape(whole)}$"):
            opened(tmp_path, settings, **card)
        assert (tmp_path / "frontier.json").read_bytes() == before
    assert list(opened(tmp_path, {"seed": 0, "sweeps": [2], "output_dir": "there"}).records) == ["plain"]


@pytest.mark.parametrize("name", ["energy", "transition", "joint", "ar"])
def test_a_network_is_all_that_may_come_and_it_stays_with_its_weights(tmp_path: Path, name: str) -> None:
    def with_networks(networks: dict[str, str], **settings: object) -> Lines:
        chosen = {"seed": 0, "length": None, name: None, **settings}
        return Lines(tmp_path, "frontier", {"settings": chosen, "networks": networks})

    with_networks({}).add("plain", {"bits": 1.0})
    assert list(with_networks({name: "weights"}, **{name: "run"}).records) == ["plain"]
    for networks, settings, said in (
        ({}, {}, f"{name} was 'run', is None; weights of {name} was 'weights', is None"),
        ({name: "others"}, {name: "run"}, f"weights of {name} was 'weights', is 'others'"),
        ({name: "weights"}, {name: "run", "length": 8}, "length was None, is 8"),
    ):
        with pytest.raises(ValueError, match=f"cannot resume {tmp_path}: {said}; use another output_dir"):
            with_networks(networks, **settings)


def test_files_that_hold_something_else_are_named(tmp_path: Path) -> None:
    opened(tmp_path).add("plain", {"bits": 1.0})
    right = (tmp_path / "frontier.jsonl").read_text(encoding="utf-8").removesuffix("\n")
    lacking = json.dumps({key: value for key, value in json.loads(right).items() if key != "bits"})
    for line in ("no json", "[1]", '{"bits": 1.0}', lacking, f"{right}\n{right}", right.replace("plain", "sir")):
        (tmp_path / "frontier.jsonl").write_text(f"{line}\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"frontier\.jsonl holds something else than finished settings"):
            opened(tmp_path)
    for card in ("no json", "[1]", "{}", '{"settings": 1}', None):
        (tmp_path / "frontier.json").unlink()
        if card is not None:
            (tmp_path / "frontier.json").write_text(card, encoding="utf-8")
        with pytest.raises(ValueError, match=r"frontier\.json is no card of a sweep: use another output_dir"):
            opened(tmp_path)


def test_tables_without_their_lines_are_not_overwritten(tmp_path: Path) -> None:
    opened(tmp_path).add("plain", {"bits": 1.0})
    (tmp_path / "frontier.md").write_text("a table", encoding="utf-8")
    (tmp_path / "frontier.jsonl").unlink()
    with pytest.raises(ValueError, match=r"frontier\.jsonl is missing beside frontier\.md: put it back"):
        opened(tmp_path)


def test_half_a_line_of_somebody_else_is_not_cut_off(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "frontier.jsonl").write_text("my notes", encoding="utf-8")
    with pytest.raises(ValueError, match="holds something else than finished settings"):
        opened(tmp_path)
    assert (tmp_path / "frontier.jsonl").read_text(encoding="utf-8") == "my notes"
