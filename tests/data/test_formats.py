"""A file is read as what its name says, in any case and compression, and nothing small takes much memory or time."""

import bz2
import gzip
import json
import lzma
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from edlm import limits
from edlm.data import columns, corpora, datasets, documents, formats, vocabulary

TEXTS = ["One, two", "3\tthree"]
CONTENT = {
    "text": "\n\n".join(TEXTS),
    "json": "".join(json.dumps({"text": text}) + "\n" for text in TEXTS),
    "csv": 'id,text\n1,"One, two"\n2,3\tthree\n',
    "tsv": 'text\tid\nOne, two\t1\n"3\tthree"\t2\n',
}
SUFFIXES = {
    "text": ["", ".txt", ".text", ".raw", ".tokens"],
    "json": [".json", ".jsonl", ".ndjson", ".jsonlines"],
    "csv": [".csv"],
    "tsv": [".tsv", ".tab"],
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
NAMES = [(kind, suffix) for kind, suffixes in SUFFIXES.items() for suffix in suffixes]


@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize(("kind", "suffix"), NAMES)
def test_a_suffix_in_any_case_and_compression_is_what_it_is(
    tmp_path: Path, kind: str, suffix: str, packed: str, case: Callable[[str], str]
) -> None:
    for name in (f"a{suffix}{packed}", f"a-00000-of-00002{suffix}{packed}", f"a{suffix}-00000-of-00002{packed}"):
        file = tmp_path / case(name)
        file.write_bytes(PACKED[packed](CONTENT[kind].encode()))
        assert list(documents.read(file)) == TEXTS
        assert documents.find(file) == {"": [file]}


@pytest.mark.parametrize("name", ["a.xml", "a.JSONLL", "a.txt.zst", "a.tar.gz", "a.parquet.gz", "a.txt~", "a.bin"])
def test_an_unknown_suffix_is_refused_by_name_wherever_it_stands(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a text\n\nanother\n\nand one more")
    (tmp_path / "a.txt").write_text("a text")
    for use in (documents.find, documents.read, datasets.files, corpora.text_files, corpora.read_documents):
        with pytest.raises(ValueError, match=rf"{name}: (nothing reads|expected plain text)"):
            use(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}: nothing reads"):
        datasets.files(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.NDJSON", "a.csv", "a.tsv", "a.txt.gz", "a.zip", "a.parquet"])
def test_records_are_not_trained_on_as_plain_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(CONTENT["json"])
    with pytest.raises(ValueError, match="expected plain text"):
        corpora.text_files(tmp_path / name)


def test_a_field_of_csv_is_as_long_as_a_document(tmp_path: Path) -> None:
    text = "long, " * 100_000
    (tmp_path / "a.csv").write_text(f'1,"{text}","and, more"\n')
    assert list(documents.read(tmp_path / "a.csv")) == [f"{text} and, more"]


# ---- What is small and asks for much


def bomb_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", b"\n" * 20_000_000)


def bomb_packed(file: Path) -> None:
    file.write_bytes(PACKED[file.suffix](b"\n" * 20_000_000))


def bomb_repeated(file: Path) -> None:
    """Three million rows of one text."""
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 3_000_000, pyarrow.int8()), ["a text"])
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), file)
    else:
        as_arrow(file, column)


def bomb_value(file: Path) -> None:
    """A text of a megabyte, twenty times."""
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 20, pyarrow.int8()), ["a" * (1 << 20)])
    table = pyarrow.table({"text": column})
    pyarrow.parquet.write_table(table, file, compression="zstd")


def bomb_list(file: Path) -> None:
    table = pyarrow.table({"text": [["ab"] * 3_000_000]})
    pyarrow.parquet.write_table(table, file)


def bomb_compressed(file: Path) -> None:
    as_arrow(file, pyarrow.array(["a" * 20_000_000]), compression="zstd")


def as_arrow(file: Path, column: Any, **options: Any) -> None:
    table = pyarrow.table({"text": column})
    written = pyarrow.ipc.IpcWriteOptions(**options)
    with pyarrow.OSFile(str(file), "wb") as out, pyarrow.ipc.new_stream(out, table.schema, options=written) as writer:
        writer.write_table(table)


BOMBS = {
    "a.zip": bomb_zip,
    **{f"a.txt{suffix}": bomb_packed for suffix in (".gz", ".bz2", ".xz")},
    "a.jsonl.gz": bomb_packed,
    "rows.parquet": bomb_repeated,
    "value.parquet": bomb_value,
    "list.parquet": bomb_list,
    "compressed.arrow": bomb_compressed,
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "a.jsonl.gz" else name for name in BOMBS]
)
def test_a_small_file_that_unpacks_to_much_is_refused_with_what_allows_it(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    BOMBS[name](file)
    stored, started = file.stat().st_size, time.monotonic()
    with pytest.raises(
        ValueError,
        match=rf"{name}.*: {stored:,} bytes unpack to [\d,]+ or more: times their size = \d+ must be at most 100; "
        rf"EDLM_LIMITS=\d+ \(limits= of a recipe\) allows it",
    ):
        _ = datasets.files(file).train
    assert time.monotonic() - started < 30.0


def test_only_the_column_that_is_read_counts(tmp_path: Path) -> None:
    columns = {"text": [f"document {number}" for number in range(20)], "other": [["ab"] * 3_000_000, *[["ab"]] * 19]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert datasets.files(tmp_path / "a.parquet").train[0] == "document 0"
    with pytest.raises(ValueError, match="unpack to"):
        _ = datasets.files(tmp_path / "a.parquet", column="other").train


def test_a_raised_limit_lets_it_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb_value(tmp_path / "a.parquet")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress((b"a text " * 300_000 + b"\n\n") * 10))
    monkeypatch.setenv(limits.FACTOR, "10000")
    assert datasets.files(tmp_path / "a.parquet").train[0] == "a" * (1 << 20)
    assert len(datasets.files(tmp_path / "a.txt.gz").train) == 8


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_damaged_column_is_one_line_or_texts(tmp_path: Path, suffix: str) -> None:
    """Of a parquet file that contradicts itself pyarrow ends the whole process, unless it is asked for nothing else."""
    file, column = tmp_path / f"a.{suffix}", pyarrow.array(["one", "two and more", None, "three"] * 3)
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"id": list(range(12)), "text": column}), file)
    else:
        as_arrow(file, column)
    whole = file.read_bytes()
    for place in range(len(whole) // 3 if suffix == "parquet" else 0, len(whole), 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        try:
            assert all(isinstance(text, str) for text in documents.read(file))
        except ValueError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"no {suffix} file that can be read"):
        list(documents.read(file))


@pytest.mark.parametrize("rows", [4, 15, 40])
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "kind", ["string", "large_string", "string_view", "dictionary", "list", "large_list", "list of views"]
)
def test_texts_of_every_type_come_out_in_order_whatever_the_batches(
    tmp_path: Path, kind: str, suffix: str, rows: int
) -> None:
    texts = [None if i % 11 == 3 else f"text {i % 7}" + " and more" * (i % 5) for i in range(40)]
    lists = [None if text is None else text.split() for text in texts]
    array = {
        "dictionary": lambda: pyarrow.array(texts).dictionary_encode(),
        "list": lambda: pyarrow.array(lists),
        "large_list": lambda: pyarrow.array(lists, pyarrow.large_list(pyarrow.string())),
        "list of views": lambda: pyarrow.array(lists, pyarrow.list_(pyarrow.string_view())),
    }.get(kind, lambda: pyarrow.array(texts, getattr(pyarrow, kind)()))()
    file, table = tmp_path / f"a.{suffix}", pyarrow.table({"text": array})
    if suffix == "parquet":
        pyarrow.parquet.write_table(table, file, row_group_size=rows)
    else:
        with pyarrow.OSFile(str(file), "wb") as out, pyarrow.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    joined = ["" if text is None else "\n".join(text.split()) if "list" in kind else text for text in texts]
    assert list(documents.read(file)) == joined


@pytest.mark.parametrize("groups", [1, 3])
def test_what_a_parquet_file_says_of_its_columns_is_what_pyarrow_reads(tmp_path: Path, groups: int) -> None:
    values = {"text": [f"text {i}" for i in range(30)], "more": [["a"] * i for i in range(30)], "n": list(range(30))}
    pyarrow.parquet.write_table(pyarrow.table(values), tmp_path / "a.parquet", row_group_size=-(-30 // groups))
    about = pyarrow.parquet.read_metadata(tmp_path / "a.parquet")
    expected = [about.row_group(group).column(leaf) for group in range(groups) for leaf in range(about.num_columns)]
    found = list(
        columns._chunks(tmp_path / "a.parquet", about.serialized_size, (tmp_path / "a.parquet").stat().st_size)
    )
    assert found == [(each.path_in_schema, each.num_values, each.total_uncompressed_size) for each in expected]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"a" * 5000),
        ("a.txt", b"a line\n" * 900),
        ("a.jsonl", b'{"text": "' + b"a" * 5000),
        ("a.jsonl", b"[" * 5000),
        ("a.jsonl", b'{"text": [' + b"[]," * 2000),
        ("a.csv", b'1,"' + b"a\n" * 2500),
        ("a.csv", b"1" + b"," * 5000),
        ("a.tsv", b"1\t" * 2500),
        ("a.parquet", b""),
    ],
)
def test_a_document_or_a_record_has_a_size(
    tmp_path: Path, name: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a" * 5000]}), file)
    monkeypatch.setattr(limits, "DOCUMENT_BYTES", 4096)
    monkeypatch.setattr(limits, "RECORD_BYTES", 1024)
    with pytest.raises(
        ValueError, match=rf"{name}: bytes of a \w+ = \d+ must be at most (4096|1024); EDLM_LIMITS=\d+ \(limits= of a"
    ):
        list(documents.read(file))
    monkeypatch.setenv(limits.FACTOR, "9")
    try:
        list(documents.read(file))
    except ValueError as error:
        assert "must be at most" not in str(error)  # noqa: PT017  # damaged it may be


def test_blank_lines_take_no_time(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n" + b"\n" * 10_000_000 + b"  \ntwo")
    started = time.monotonic()
    assert list(documents.read(tmp_path / "a.txt")) == ["one", "two"]
    assert list(documents.read(tmp_path / "a.txt", unit="line")) == ["one\n", "two"]
    assert corpora.read_documents(tmp_path / "a.txt") == ["one", "two"]
    assert time.monotonic() - started < 30.0


def test_paragraphs_and_lines_do_not_depend_on_what_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n\n  one\ntwo \n\t\n\nthree é\r\n\r\n four\n\n\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    found = [list(documents.read(tmp_path / "a.txt", unit=unit)) for unit in ("paragraphs", "line", "file")]  # type: ignore[arg-type]
    assert found[0] == ["one\ntwo", "three é", "four", ""]
    for size in (1, 2, 3, 5, 8):
        monkeypatch.setattr(formats, "_BLOCK", size)
        again = [list(documents.read(tmp_path / "a.txt", unit=unit)) for unit in ("paragraphs", "line", "file")]  # type: ignore[arg-type]
        assert again == found


def sparse(folder: Path) -> Path:
    with (folder / "sparse.txt").open("wb") as file:
        file.write(b"a text\n\nanother\n\n")
        file.truncate(1 << 40)
    return folder / "sparse.txt"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.txt")
    return folder / "pipe.txt"


def loop(folder: Path) -> Path:
    (folder / "loop").mkdir()
    (folder / "loop" / "a.txt").write_text("a text")
    (folder / "loop" / "again").symlink_to(folder / "loop")
    return folder / "loop"


def dangling(folder: Path) -> Path:
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    return folder / "gone.txt"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (sparse, "nothing was ever written from byte"),
        (pipe, "must be a file, and is a pipe"),
        (lambda _: Path("/dev/zero"), "must be a file, and is a device"),
        (loop, "is read already; take the link away"),
        (dangling, "no such file"),
    ],
)
def test_what_is_no_file_of_data_is_refused_at_once(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    path = make(tmp_path)
    if make is sparse and path.stat().st_blocks * 512 >= 1 << 30:
        pytest.skip("a file system without holes")
    for asked in (path, tmp_path):
        if asked.exists() and asked != Path("/dev"):
            with pytest.raises(ValueError, match=said if asked == path or str(path) != "/dev/zero" else "no data file"):
                datasets.files(asked)
    if not path.is_dir():
        for use in (corpora.text_files, corpora.read_documents, vocabulary.from_tokenizer_json):
            with pytest.raises(ValueError, match=f"{said}|expected a tokenizer"):
                use(path)


def test_a_tokenizer_has_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a checkpoint's folder, or in one of the hub, no key of a corpus would raise it: what is named raises all."""
    file = tmp_path / "tokenizer.json"
    vocabulary.characters("ab").save(tmp_path)
    size = file.stat().st_size
    monkeypatch.setattr(limits, "TOKENIZER_BYTES", size - 1)
    said = rf"tokenizer\.json: bytes = {size} must be at most {size - 1}; EDLM_LIMITS=2 "
    for use in (lambda: vocabulary.from_tokenizer_json(file), lambda: vocabulary.load_vocabulary(tmp_path)):
        with pytest.raises(ValueError, match=said):
            use()
        with monkeypatch.context() as raised:
            raised.setenv(limits.FACTOR, "2")
            assert use().size == 3


def test_a_text_that_is_read_whole_has_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a text\n\n" * 9)
    monkeypatch.setattr(limits, "CORPUS_BYTES", 50)
    for use in (corpora.text_files, corpora.read_documents):
        with pytest.raises(ValueError, match=r"a\.txt: bytes = 72 must be at most 50; EDLM_LIMITS=2 "):
            use(tmp_path / "a.txt")


def test_a_vocabulary_has_a_size(tmp_path: Path) -> None:
    vocabulary.characters("ab").save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"] = {"a": 2**31}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    ids = {"size": 2**31 + 2, "mask_id": 2**31 + 1, "bos_id": None, "eos_id": None, "pad_id": None}
    (tmp_path / "vocabulary.json").write_text(json.dumps(ids))
    with pytest.raises(ValueError, match=r"ids = \d+ must be at most 16777216; EDLM_LIMITS=129 "):
        vocabulary.load_vocabulary(tmp_path)


def test_a_file_that_was_never_written_is_said_to_begin_so(tmp_path: Path) -> None:
    file = tmp_path / "hole.txt"
    file.touch()
    os.truncate(file, 8192)
    with pytest.raises(ValueError, match="nothing was ever written from byte 0 on, of 8,192"), formats.opened(file):
        pass
