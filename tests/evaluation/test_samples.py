"""Texts that are judged are those that were written: what was changed, lost, doubled or moved is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from edlm.data import vocabulary
from edlm.evaluation import samples
from edlm.runs import records

ABC = vocabulary.characters("abc")
TEXTS = ["abca", "bbca", "ccab", "aabb"]


def written(folder: Path, lines: list[dict[str, Any]]) -> str:
    (folder / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "x.jsonl")


def drawn() -> list[dict[str, Any]]:
    """Records as `generate` writes them."""
    ids = [ABC.encode(text).tolist() for text in TEXTS]
    own = [
        {"row": row, "seed": 0, "settings": "x", "text": TEXTS[row], "tokens": ids[row], "ess": 1.5} for row in range(4)
    ]
    return [records.sealed(record) for record in own]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert samples.read_samples(written(tmp_path, drawn()), ABC).spelled == TEXTS
    own = [{"text": text} for text in TEXTS]
    assert [ids.tolist() for ids in samples.read_samples(written(tmp_path, own), ABC).tokens] == [
        ABC.encode(text).tolist() for text in TEXTS
    ]


@pytest.mark.parametrize(
    ("order", "line"), [([0, 2, 3], 2), ([1, 2, 3], 1), ([0, 1, 1, 2], 3), ([0, 0, 1], 2), ([1, 0, 2], 1)]
)
def test_a_text_that_is_lost_doubled_or_moved_is_named(order: list[int], line: int, tmp_path: Path) -> None:
    lines = drawn()
    path = written(tmp_path, [lines[row] for row in order])
    with pytest.raises(
        ValueError, match=rf"line {line} must be .* \(it is the text of row \d, and that of row \d is lost"
    ):
        samples.read_samples(path, ABC)


@pytest.mark.parametrize("key", ["row", "seed", "settings", "text", "tokens", "ess", "sum"])
@pytest.mark.parametrize("value", [None, 7, "bbbb", [0, 1, 2, 1], {}])
def test_a_record_that_was_changed_is_named(key: str, value: Any, tmp_path: Path) -> None:
    lines = drawn()
    for changed in ({**lines[2], key: value}, {name: kept for name, kept in lines[2].items() if name != key}):
        path = written(tmp_path, [*lines[:2], changed, lines[3]])
        with pytest.raises(ValueError, match=r"line 3 must be .* \(it is not as it was written"):
            samples.read_samples(path, ABC)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"text": 3}, "text = 3 must be a text"),
        ({"text": None}, "text = None must be a text"),
        ({"text": "abca", "tokens": [1e308, 0, 0, 0]}, "must be a list of ids in"),
        ({"text": "abca", "tokens": [float("inf"), 0, 0, 0]}, "must be a list of ids in"),
        ({"text": "abca", "tokens": [True, 0, 0, 0]}, "must be a list of ids in"),
        ({"text": "abca", "tokens": [2**63, 0, 0, 0]}, "must be a list of ids in"),
        ({"text": "abca", "tokens": [9, 0, 0, 0]}, "must be a list of ids in"),
        ({"text": "abca", "tokens": {"0": 1}}, "must be a list of ids in"),
        ({"text": "abca", "tokens": [[0, 0], [0, 0]]}, "must be a list of ids in"),
        ({"tokens": [0, 0, 0, 0]}, "text"),
        ([], "it is"),
        (3, "it is 3"),
    ],
)
def test_what_is_no_text_is_named(line: Any, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, [{"text": "abca"}, line])
    with pytest.raises(ValueError, match=rf"line 2 must be .*{said}") as caught:
        samples.read_samples(path, ABC)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", ["[" * 100_000, "", "\n\n", '{"text": "abca"}\n\n{"text": "abca"}', "\x00"])
def test_what_is_no_file_of_records_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"x\.jsonl', line \d must be|holds 0 texts"):
        samples.read_samples(str(tmp_path / "x.jsonl"), ABC)
