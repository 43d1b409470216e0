"""Files to documents, one at a time: plain text, JSON lines, CSV, each also compressed, parquet, arrow, zip.

A file is never held whole, unless all of it is asked for as one document, `unit="file"`. Every error is a ValueError
of one line that names the file, the place in it, and what would be right.
"""

import csv
import json
import re
import reprlib
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal

from edlm import limits
from edlm.data import columns as of_columns
from edlm.data import folders, formats

Unit = Literal["paragraphs", "line", "file", "record"]

_BLANK_LINES = re.compile(r"^\s*\n", re.MULTILINE)  # as many as follow each other
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_DELIMITERS = {"csv": ",", "tsv": "\t"}


def find(path: str | Path) -> dict[str, list[Path]]:
    """Find the data files at a path by split, in the order of their names: a file, or a folder with all below it.

    A file belongs to the split that its name says (`wiki.valid.raw`, `train-00000-of-00002.parquet`), else to the one
    that the nearest folder says (`validation/0000.parquet`), else to "". Of a folder that `datasets` has saved, the
    files are read that it names. Raises ValueError if there is no data file, and for a file of an unknown suffix, a
    pipe, a device, or a folder that links lead to twice.
    """
    path = Path(path)
    found: dict[str, list[Path]] = {}
    for file in folders.data_files(path):
        parts = file.relative_to(path).parts if path.is_dir() else (path.name,)
        formats.require_kind(file)
        formats.require_file(file)
        found.setdefault(_split_of(parts), []).append(file)
    if not found:
        raise ValueError(f"{path}: no data file there; expected {formats.READ}")
    return found


def read(file: Path, columns: Sequence[str] = ("text",), unit: Unit = "paragraphs") -> Iterator[str]:
    """Read the documents of a file, in order, the empty ones too, but no blank lines.

    columns: those that may hold the text of jsonl, parquet and arrow, of which the first that is there is read; a list
    of texts there is joined by line breaks. unit: what a document of a plain text is, paragraphs between blank lines, a
    line with its line break, or the file. A zip file holds plain texts. A CSV or TSV file begins with a row that names
    such a column, or is as AG News has it: no header, the number of a class, and after it columns that are joined by
    spaces. How much one document, and one file, may take is said by `edlm.limits`.
    """
    kind = formats.require_kind(file).format
    formats.require_file(file)
    if kind == "parquet":
        return texts(of_columns.parquet(file, columns), str(file))
    if kind == "arrow":
        return texts(of_columns.arrow(file, columns), str(file))
    if kind == "zip":
        return _zip(file, unit)
    if kind in _DELIMITERS:
        return _csv(file, columns, _DELIMITERS[kind])
    if kind == "json" or unit == "record":
        return _json_lines(file, columns)
    return _text_file(file, unit)


def _split_of(parts: Sequence[str]) -> str:
    for part in reversed(parts):
        for word in re.findall("[a-z]+", part.lower()):
            if word in formats.SPLIT_WORDS:
                return formats.SPLIT_WORDS[word]
    return ""


def _text_file(file: Path, unit: Unit) -> Iterator[str]:
    with formats.opened(file) as content:
        yield from _documents(formats.blocks(content, str(file)), unit, str(file))


def _zip(file: Path, unit: Unit) -> Iterator[str]:
    size = formats.require_file(file)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if folders.is_data(entry.filename)]
            limits.require_inflation(file, sum(entry.file_size for entry in entries), size)
            for entry in entries:
                if formats.kind_of(Path(entry.filename).name) != formats.PLAIN_TEXT:
                    raise ValueError(
                        f"{file}: {entry.filename} must be plain text; unpack the zip file to have it read"
                    )
            for entry in sorted(entries, key=lambda entry: entry.filename):
                where = f"{file}: {entry.filename}"
                with archive.open(entry) as content:
                    inside = formats.inflated(content, where, size)
                    yield from _documents(formats.blocks(inside, where), unit, where)
    except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError, OSError) as error:  # RuntimeError: a password
        raise ValueError(f"{file}: no zip file that can be read ({error})") from error


def _documents(blocks: Iterator[str], unit: Unit, where: str) -> Iterator[str]:
    if unit == "line":
        for block in blocks:
            yield from _LINES.findall(_BLANK_LINES.sub("", block))
        return
    parts: list[str] = []
    size, most = 0, limits.allowed(limits.DOCUMENT_BYTES)
    for block in blocks:
        for number, part in enumerate([block] if unit == "file" else _BLANK_LINES.split(block)):
            if number and parts:
                yield "".join(parts).strip()
                parts, size = [], 0
            size += len(part)
            if size > most:
                limits.require(where, formats.DOCUMENT, size, limits.DOCUMENT_BYTES)
            parts += [part] * bool(part)
    yield "".join(parts) if unit == "file" else "".join(parts).strip()


def _json_lines(file: Path, columns: Sequence[str]) -> Iterator[str]:
    with formats.opened(file) as content:
        for number, line in enumerate(formats.lines(content, str(file)), start=1):
            if line != "\n" and line.strip():
                where = f"{file}: line {number}"
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{where} is not JSON, one record to a line ({error})") from error
                if not isinstance(record, dict):
                    raise ValueError(f"{where} must be a record with the column {of_columns.either(columns)}")
                yield _text(record[of_columns.column_of(list(record), columns, where)], where)


def _csv(file: Path, columns: Sequence[str], delimiter: str) -> Iterator[str]:
    with formats.opened(file) as content:
        rows = _rows(content, str(file), delimiter)
        first = next(rows, ["0", ""])
        if first[0].isdecimal():
            for row in chain([first], rows):
                if len(row) < 2:
                    raise ValueError(f"{file}: a row of {len(row)} columns; expected a class and one or more texts")
                if not row[0].isdecimal():
                    raise ValueError(f"{file}: {row[0]!r:.60} must be the number of a class, as in the rows above")
                yield " ".join(row[1:])
            return
        place = first.index(of_columns.column_of(first, columns, str(file)))
        for row in rows:
            if len(row) != len(first):
                raise ValueError(f"{file}: a row of {len(row)} columns below a header of {len(first)}")
            yield row[place]


def _rows(content: IO[bytes], where: str, delimiter: str) -> Iterator[list[str]]:
    """Rows that are not empty, none of them of more than a record's size."""
    csv.field_size_limit(sys.maxsize)  # else the whole process refuses a text of 131,072 characters; ours are counted
    size, most = 0, limits.allowed(limits.RECORD_BYTES)

    def counted() -> Iterator[str]:
        nonlocal size
        for line in formats.lines(content, where):
            size += len(line)
            if size > most:
                limits.require(where, formats.RECORD, size, limits.RECORD_BYTES)
            yield line

    try:
        for row in csv.reader(counted(), delimiter=delimiter, skipinitialspace=delimiter == ",", strict=True):
            size = 0
            if row:
                yield row
    except csv.Error as error:
        raise ValueError(f"{where}: not CSV ({error})") from error


def texts(values: Iterable[Any], where: str) -> Iterator[str]:
    """Take texts out of values: null is no text, a list of texts is joined by line breaks, all else an error."""
    return (_text(value, where) for value in values)


def _text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {reprlib.repr(value)} must be a text")
    return value
