"""What is exactly as large as a limit allows is read, and one byte more is refused with both numbers."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from edlm import limits
from edlm.data import columns, corpora, datasets, documents, folders, formats
from edlm.data.catalogue import Part

MOST = 64


def record(size: int) -> bytes:
    """A line of JSON of so many bytes, its break among them."""
    return json.dumps({"text": "a" * (size - 13)}).encode() + b"\n"


FILES: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "a paragraph": ("a.txt", lambda size: b"a" * (size - 1) + b"\n\nb"),  # with its line break
    "the second paragraph": ("a.txt", lambda size: b"b\n\n" + b"a" * size),
    "a file": ("b.txt", lambda size: b"a\n" * (size // 2) + b"a" * (size % 2)),
    "a line of json": ("a.jsonl", lambda size: record(20) + record(size) + record(20)),
    "a row of csv": ("a.csv", lambda size: b"1,a\n1," + b"a" * (size - 3) + b"\n1,b\n"),
    "a value of parquet": ("a.parquet", lambda size: b"a" * size),
}


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("what", FILES)
def test_a_document_and_a_record_may_be_as_large_as_that(
    what: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content = FILES[what]
    monkeypatch.setattr(limits, "DOCUMENT_BYTES", MOST)
    monkeypatch.setattr(limits, "RECORD_BYTES", MOST)
    monkeypatch.setattr(formats, "_BLOCK", block)
    found = {}
    for size in (MOST, MOST + 1):
        file = tmp_path / str(size) / name
        file.parent.mkdir()
        if name.endswith("parquet"):
            pyarrow.parquet.write_table(pyarrow.table({"text": [content(size).decode(), "b"]}), file)
        else:
            file.write_bytes(content(size))
        found[size] = documents.read(file, unit="file" if what == "a file" else "paragraphs")
    around = {"a paragraph": 1, "a line of json": 13, "a row of csv": 3}.get(what, 0)
    assert max(map(len, found[MOST])) == MOST - around
    kind = "record" if what in ("a line of json", "a row of csv") else "document"
    with pytest.raises(ValueError, match=rf"bytes of a {kind} = \d+ must be at most 64; EDLM_LIMITS=2 "):
        list(found[MOST + 1])


def test_a_record_that_is_too_long_is_refused_whatever_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not read as two."""
    monkeypatch.setattr(limits, "RECORD_BYTES", MOST)
    (tmp_path / "a.jsonl").write_bytes(record(3 * MOST) + record(20))
    for block in range(1, 3 * MOST, 5):
        monkeypatch.setattr(formats, "_BLOCK", block)
        with pytest.raises(ValueError, match=r"bytes of a record = \d+ must be at most 64"):
            list(documents.read(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("unpacked", "stored", "right"), [(100, 0, True), (101, 2, True), (200, 2, True), (201, 2, False), (101, 0, False)]
)
def test_a_small_file_unpacks_to_as_much_as_any_may_or_to_some_times_its_size(
    unpacked: int, stored: int, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UNPACKED_BYTES", 100)
    if right:
        limits.require_inflation("x", unpacked, stored)
        return
    said = (
        f"x: {stored:,} bytes unpack to {unpacked:,} or more: times their size = 101 must be at most 100; EDLM_LIMITS=2"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        limits.require_inflation("x", unpacked, stored)


@pytest.mark.parametrize(("count", "more"), [(12, ""), (13, ", ...")])
def test_of_many_columns_the_first_dozen_are_named(count: int, more: str) -> None:
    names = [f"c{number}" for number in range(count)]
    shown = ", ".join(names[:12]) + more
    with pytest.raises(ValueError, match=re.escape(f"x has the columns {shown}; expected 'text' or 'body'")):
        columns.column_of(names, ["text", "body"], "x")
    assert columns.column_of([*names, "body"], ["text", "body"], "x") == "body"
    with pytest.raises(ValueError, match=re.escape(f"columns {'a' * 60}; expected")):
        columns.column_of(["a" * 61], ["text"], "x")


def test_rows_are_unpacked_together_up_to_a_size_and_a_large_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_BYTES_AT_ONCE", 10)
    assert list(columns._pieces([4, 6, 1, 30, 10, 0, 2])) == [(0, 2), (2, 3), (3, 4), (4, 6), (6, 7)]
    assert list(columns._pieces([11, 11])) == [(0, 1), (1, 2)]
    assert list(columns._pieces([])) == [(0, 0)]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (Part("train"), [0, 1, 2, 3, 4]),
        (Part("train", all_but_last=2), [0, 1, 2]),
        (Part("train", all_but_last=4), [0]),
        (Part("train", last=2), [3, 4]),
        (Part("train", last=9), [0, 1, 2, 3, 4]),
    ],
)
def test_a_part_of_a_stored_split_is_all_or_either_end_of_it(part: Part, expected: list[int]) -> None:
    assert list(datasets._sliced(map(str, range(5)), part, "x")) == list(map(str, expected))
    with pytest.raises(ValueError, match=r"^x: 5 documents leave none to train on beside the last 5,000$"):
        list(datasets._sliced(map(str, range(5)), Part("train", all_but_last=5000), "x"))


@pytest.mark.parametrize(
    ("sizes", "fractions", "places"),
    [
        ([1] * 10, (0.8, 0.1, 0.1), (8, 9)),
        ([1, 1, 98], (0.8, 0.1, 0.1), (1, 2)),  # none of them empty
        ([98, 1, 1], (0.1, 0.1, 0.8), (1, 2)),
        ([50, 50, 1, 1], (0.98, 0.01, 0.01), (2, 3)),
        ([1, 1, 1], (0.01, 0.01, 0.98), (1, 2)),
        ([1, 1, 1, 1], (0.98, 0.01, 0.01), (2, 3)),
        ([1, 1, 1, 1], (0.01, 0.01, 0.98), (1, 2)),
    ],
)
def test_documents_are_split_by_their_characters_and_no_split_is_empty(
    sizes: list[int], fractions: tuple[float, ...], places: tuple[int, int]
) -> None:
    assert corpora.split_places(sizes, fractions) == places


@pytest.mark.parametrize(
    "fractions", [(0.5, 0.5, 0.0), (1.0, 0.5, -0.5), (0.5, 0.25, 0.2), (0.5, 0.5), (0.25, 0.25, 0.25, 0.25)]
)
def test_fractions_are_three_above_zero(fractions: tuple[float, ...]) -> None:
    said = f"fractions = {fractions} must be three positive numbers that sum to 1"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        corpora.require_fractions(fractions)


def test_hidden_texts_and_other_files_of_a_folder_are_no_documents(tmp_path: Path) -> None:
    for name in ("a.txt", "B.TXT", ".c.txt", "d.text", "txt", ".txt"):
        (tmp_path / name).write_text(name)
    assert sorted(path.name for path in corpora._texts_in(tmp_path)) == ["B.TXT", "a.txt"]
    assert corpora.read_documents(tmp_path) == ["B.TXT", "a.txt"]
    (tmp_path / "empty.txt").write_text(" \n ")
    with pytest.raises(ValueError, match=r"empty\.txt: no text$"):
        corpora.read_documents(tmp_path)
    with pytest.raises(ValueError, match=r"empty\.txt: no text left after normalisation$"):
        corpora.read_documents(tmp_path, normalised=True)


@pytest.mark.parametrize(
    ("lengths", "missing", "said"),
    [
        (None, None, None),
        ([3, 4], None, None),
        ([3], None, None),
        (
            [3, 4],
            "x-train-00001-of-00002.arrow",
            "names the split 'train', and there is no *-train-00001-of-00002.arrow",
        ),
        (None, "x-train.arrow", "names the split 'train', and there is no *-train.arrow"),
    ],
)
def test_what_datasets_has_loaded_has_a_file_for_each_shard(
    lengths: list[int] | None, missing: str | None, said: str | None, tmp_path: Path
) -> None:
    shards = ["-00000-of-00002", "-00001-of-00002"] if lengths and len(lengths) > 1 else [""]
    wanted = [f"x-{split}{shard}.arrow" for split in ("train", "test") for shard in shards]
    for name in [*wanted, "x-cache-0a.arrow", "notes.txt"]:
        if name != missing:
            (tmp_path / name).write_text("")
    splits = {split: {} if lengths is None else {"shard_lengths": lengths} for split in ("train", "test")}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"splits": splits}))
    if said is not None:
        with pytest.raises(ValueError, match=re.escape(said)):
            folders.data_files(tmp_path)
        return
    assert [path.name for path in folders.data_files(tmp_path)] == sorted(["notes.txt", *wanted])


@pytest.mark.parametrize(("size", "parts"), [(3, (1, 1, 1)), (4, (1, 2, 1)), (2, None), (0, None)])
def test_one_text_is_cut_in_three_where_each_has_a_character(size: int, parts: tuple[int, ...] | None) -> None:
    text, thirds = "abcd"[:size], (1 / 3, 1 / 3, 1 / 3)
    if parts is None:
        with pytest.raises(ValueError, match=rf"^letters: {size} characters are too few to be split in three$"):
            corpora.cut(text, thirds, "letters")
        return
    found = corpora.cut(text, thirds, "letters")
    assert tuple(len("".join(split)) for split in found) == parts
    assert "".join("".join(split) for split in found) == text


@pytest.mark.parametrize(
    ("content", "number", "signed"),
    [
        (b"\x00", 0, 0),
        (b"\x01", 1, -1),
        (b"\x02", 2, 1),
        (b"\x7f", 127, -64),
        (b"\x80\x01", 128, 64),
        (b"\xd7\x04", 599, -300),
        (b"\xff\xff\xff\xff\x0f", 2**32 - 1, -(2**31)),
    ],
)
def test_numbers_of_a_parquet_footer_are_read_in_groups_of_seven_bits(content: bytes, number: int, signed: int) -> None:
    assert columns._unsigned(io.BytesIO(content + b"rest")) == number
    assert columns._signed(io.BytesIO(content + b"rest")) == signed
    with pytest.raises(LookupError):
        columns._unsigned(io.BytesIO(b"\xff" * 11))


def test_fields_of_a_parquet_footer_are_found_by_their_numbers() -> None:
    """A flag in its own head, a byte, a number far from the one before, a text, a list and a struct of one number."""
    parts = [b"\x11", b"\x12", b"\x23\x05", b"\x06\x14\x03", b"\x18\x02ab", b"\x19\x25\x02\x04", b"\x1c\x15\x01\x00"]
    found = columns._struct(io.BytesIO(b"".join(parts) + b"\x00"), 3)
    assert found == {1: True, 2: False, 4: 5, 10: -2, 11: b"ab", 12: [1, 2], 13: {1: -1}}
    for cut_off in (b"\x18\x03ab", b"\x17" + b"a" * 7, b"\x1b\x00"):
        with pytest.raises(LookupError):
            columns._struct(io.BytesIO(cut_off), 3)
    deep = b"\x1c" * 4 + b"\x00" * 5
    assert columns._struct(io.BytesIO(deep), 4) == {1: {1: {1: {1: {}}}}}
    with pytest.raises(LookupError, match="nested too deeply"):
        columns._struct(io.BytesIO(deep), 3)
