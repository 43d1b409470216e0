"""Files and folders that are there whole or not at all, and what is said where they cannot be."""

import re
from pathlib import Path

import pytest

from edlm.weights import whole


def test_json_is_written_as_a_person_reads_it_and_read_back(tmp_path: Path) -> None:
    whole.write_json(tmp_path / "a.json", {"a": [1, 2.5], "é": None})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    1,\n    2.5\n  ],\n  "\\u00e9": null\n}\n'
    assert whole.read_json(tmp_path / "a.json") == {"a": [1, 2.5], "é": None}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("good", [None, Path("run/step_1")])
def test_a_folder_that_cannot_be_filled_leaves_nothing(good: Path | None, tmp_path: Path) -> None:
    def fill(target: Path) -> None:
        (target / "a").write_text("half")
        raise OSError("no room")

    kept = "" if good is None else "; the last good checkpoint is run/step_1"
    said = f"cannot write {tmp_path / 'deep' / 'x'}: no room{kept}"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        whole.write_folder(tmp_path / "deep" / "x", fill, good)
    assert not list((tmp_path / "deep").iterdir())
    whole.write_folder(tmp_path / "deep" / "x", lambda target: (target / "a").write_text("whole") and None)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x"]


def test_what_a_run_that_was_cut_off_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".x.partial").mkdir()
    (tmp_path / ".x.partial" / "old").write_text("")
    whole.write_folder(tmp_path / "x", lambda target: (target / "a").write_text("whole") and None)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a"]
    assert not (tmp_path / ".x.partial").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"cannot be read \(No such file or directory\)"),
        ("{", r"not valid json \("),
        ("[" * 100_000, r"not valid json \("),
        ("[]", "not a json object"),
        ('{"a": 1}  ', "bytes = 10 must be at most 9; "),
    ],
)
def test_json_that_is_none_is_named(content: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_text(content)
    most = 9 if content and content.startswith('{"a"') else 1 << 20
    with pytest.raises(ValueError, match=rf"a\.json: {said}"):
        whole.read_json(file, most)
    file.write_text('{"a": 1} ')
    assert whole.read_json(file, 9) == {"a": 1}
