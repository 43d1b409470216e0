"""The place of what is wrong in a file is that in the whole file, however much of it is read at once."""

from pathlib import Path

import pytest

from edlm.data import documents, formats


@pytest.mark.parametrize("block", [1, 3, 4, 1 << 20])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"one\ntwo\n\nthree \xff and more\n\n"),
        ("a.jsonl", b'{"text": "one"}\n\n{"text": "two \xff"}\n'),
        ("a.csv", b'1,one\n2,"two\nand \xff"\n'),
    ],
)
def test_a_byte_that_is_no_text_has_its_place(
    name: str, content: bytes, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_BLOCK", block)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"not UTF-8, byte 0xff at offset {content.index(0xFF)}$"):
        list(documents.read(tmp_path / name))


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
def test_blank_lines_between_records_are_none_whatever_blanks_they_hold(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_BLOCK", block)
    (tmp_path / "a.jsonl").write_bytes(b'\n{"text": "one"}\n  \n\t\r\n\n{"text": "two"}\n \n{"text": "three"}')
    assert list(documents.read(tmp_path / "a.jsonl")) == ["one", "two", "three"]
    (tmp_path / "b.jsonl").write_bytes(b'\n  \n{"text": "one"}\n{\n')
    with pytest.raises(ValueError, match=r"b\.jsonl: line 4 is not JSON"):
        list(documents.read(tmp_path / "b.jsonl"))


@pytest.mark.parametrize("block", [1, 4, 1 << 20])
def test_a_mark_of_the_byte_order_stands_at_the_beginning_alone(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_BLOCK", block)
    mark = "\ufeff"
    (tmp_path / "a.txt").write_text(f"{mark}one\n{mark}two\n")
    assert list(documents.read(tmp_path / "a.txt", unit="file")) == [f"one\n{mark}two\n"]
    (tmp_path / "a.jsonl").write_text(f'{mark}{{"text": "{mark}one"}}\n')
    assert list(documents.read(tmp_path / "a.jsonl")) == [f"{mark}one"]
