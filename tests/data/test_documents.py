"""Files to documents: every format, nothing lost, and one line for what cannot be read."""

import json
import zipfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.data import documents

TEXTS = ["one", "", "zwölf 漢字\nof two lines", " three "]


def as_jsonl(path: Path, texts: list[str], column: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": 1, column: text}) + "\n" for text in texts), encoding="utf-8")
    return path


def as_parquet(path: Path, texts: list[str], column: str = "text") -> Path:
    pyarrow.parquet.write_table(pyarrow.table({"id": [1] * len(texts), column: texts}), path, row_group_size=2)
    return path


def as_arrow(path: Path, texts: list[str], column: str = "text") -> Path:
    table = pyarrow.table({column: texts})
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize(("write", "name"), [(as_jsonl, "a.jsonl"), (as_parquet, "a.parquet"), (as_arrow, "a.arrow")])
def test_columns_are_read_and_missing_ones_named(
    tmp_path: Path, write: Callable[[Path, list[str], str], Path], name: str
) -> None:
    file = write(tmp_path / name, TEXTS, "sentence")
    assert list(documents.read(file, ("text", "sentence"))) == TEXTS
    with pytest.raises(ValueError, match=r"a\.\w+.* has the columns .*sentence; expected 'text' or 'article'"):
        list(documents.read(file, ("text", "article")))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_json_lines_are_lossless(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    assert list(documents.read(as_jsonl(tmp_path_factory.mktemp("json") / "a.jsonl", texts))) == texts


def test_plain_text_is_paragraphs_lines_or_one(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\r\n\r\n\r\ntwo\nthree\n \nfour".encode())
    assert list(documents.read(file)) == ["one", "two\nthree", "four"]
    assert list(documents.read(file, unit="line")) == ["one\n", "two\n", "three\n", "four"]
    assert list(documents.read(file, unit="file")) == ["one\n\n\ntwo\nthree\n \nfour"]
    file.write_bytes(b"\n\n one \n\n two \n\n")
    assert list(documents.read(file)) == ["one", "two", ""]
    assert list(documents.read(file, unit="file")) == ["\n\n one \n\n two \n\n"]
    file.write_bytes("\ufeffone\r\n\r\n\r\ntwo\nthree\n \nfour".encode())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(file, "inside/a")
    assert list(documents.read(tmp_path / "a.zip", unit="file")) == ["one\n\n\ntwo\nthree\n \nfour"]


def test_records_hold_texts_lists_of_texts_or_null(tmp_path: Path) -> None:
    file = tmp_path / "val.txt"
    file.write_text('{"article_text": ["a .", "b ."]}\n\n{"article_text": null}\n', encoding="utf-8")
    assert list(documents.read(file, ("article", "article_text"), "record")) == ["a .\nb .", ""]


def test_csv_is_a_class_and_texts(tmp_path: Path) -> None:
    file = tmp_path / "test.csv"
    file.write_text('"3","Title, one","He said ""no"""\n"1","Two","of\nlines"\n', encoding="utf-8")
    assert list(documents.read(file)) == ['Title, one He said "no"', "Two of\nlines"]


@pytest.mark.parametrize(("name", "line"), [("a.csv", b'"1","one"\n'), ("a.jsonl", b'{"text": "one"}\n')])
def test_a_document_is_there_before_the_rest_is_read(tmp_path: Path, name: str, line: bytes) -> None:
    (tmp_path / name).write_bytes(line + b"\xff")
    found = documents.read(tmp_path / name)
    assert next(found) == "one"
    with pytest.raises(ValueError, match=f"not UTF-8, byte 0xff at offset {len(line)}"):
        next(found)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"fine\nuntil \xff here", r"a\.txt: not UTF-8, byte 0xff at offset 11"),
        ("a.jsonl", b'{"text": "\xff"}', r"a\.jsonl: not UTF-8, byte 0xff at offset 10"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b', r"a\.jsonl: line 2 is not JSON, one record to a line"),
        ("a.jsonl", b'["text"]', r"a\.jsonl: line 1 must be a record with the column 'text'"),
        ("a.jsonl", b'{"text": 5}', r"a\.jsonl: line 1: 5 must be a text"),
        ("a.jsonl", b"{}", r"a\.jsonl: line 1 has the columns \(none\); expected 'text'"),
        ("a.parquet", b"PAR1 and no more", r"a\.parquet: no parquet file that can be read"),
        ("a.arrow", b"", r"a\.arrow: no arrow file that can be read"),
        ("a.zip", b"PK and no more", r"a\.zip: no zip file that can be read"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl: line 1 is not JSON, one record to a line"),
        ("a.csv", b"body,label\na,1\n", r"a\.csv has the columns body, label; expected 'text'"),
        ("a.tsv", b"text\tlabel\na\n", r"a\.tsv: a row of 1 columns below a header of 2"),
        ("a.csv", b"1,a\nb,c\n", r"a\.csv: 'b' must be the number of a class, as in the rows above"),
        ("a.csv", b"7\n", r"a\.csv: a row of 1 columns; expected a class and one or more texts"),
        ("a.csv", b'"1","open', r"a\.csv: not CSV"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        list(documents.read(tmp_path / name))


def test_bytes_of_a_column_that_are_no_text_are_said_with_the_file(tmp_path: Path) -> None:
    buffers = pyarrow.array([b"fine", b"a \xff"]).buffers()
    column = pyarrow.Array.from_buffers(pyarrow.string(), 2, buffers)  # pyarrow itself would have refused to make it
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: not UTF-8, byte 0xff in a text"):
        list(documents.read(tmp_path / "a.parquet"))


def zipped(path: Path, name: str = "a.txt") -> bytearray:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, "\n".join(map(str, range(9999))))
    return bytearray(path.read_bytes())


def test_a_zip_file_that_is_damaged_or_locked_or_holds_no_plain_text_is_said(tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    damaged = zipped(file)
    damaged[45:60] = b"\xff" * 15
    locked = zipped(file)
    for flags in (6, locked.index(b"PK\x01\x02") + 8):
        locked[flags] |= 1
    for content, said in ((damaged, "while decompressing"), (locked, "is encrypted, password required")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.zip: no zip file that can be read \(.*{said}"):
            list(documents.read(file))
    zipped(file, "b.jsonl")
    with pytest.raises(ValueError, match=r"a\.zip: b\.jsonl must be plain text; unpack the zip file to have it read"):
        list(documents.read(file))


def test_a_parquet_file_that_was_cut_off_is_no_end_of_data(tmp_path: Path) -> None:
    file = as_parquet(tmp_path / "a.parquet", TEXTS)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a\.parquet: no parquet file that can be read"):
        list(documents.read(file))


def test_files_belong_to_the_split_that_they_or_their_folder_say(tmp_path: Path) -> None:
    expected = {
        "train": ["wiki.train.raw", "data/train-00000-of-00002.parquet", "training-mono/news.en-00001-of-00100"],
        "valid": ["ptb.valid.txt", "validation/0000.parquet", "val.txt", "dev.jsonl"],
        "test": ["lambada_test.jsonl", "heldout-mono/news.en.heldout-00000-of-00050", "test/train/test.csv"],
        "": ["text8", "latest.txt", "contest/a.txt"],
    }
    ignored = ["README.md", ".git/train.txt", "dataset_info.json", "owt.py"]
    for name in [*chain.from_iterable(expected.values()), *ignored]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    found = {
        split: {str(file.relative_to(tmp_path)) for file in files} for split, files in documents.find(tmp_path).items()
    }
    assert found == {split: set(names) for split, names in expected.items()}
    assert documents.find(tmp_path / "val.txt") == {"valid": [tmp_path / "val.txt"]}


def test_where_nothing_is_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        documents.find(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"no data file there; expected txt, jsonl, csv, tsv, .* parquet, arrow or zip"
    ):
        documents.find(tmp_path)
    with pytest.raises(ValueError, match=r"a\.txt: no such file"):
        documents.read(tmp_path / "a.txt")
