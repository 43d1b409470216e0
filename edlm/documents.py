"""Files to documents, one at a time: plain text, JSON lines, parquet, arrow, CSV, zip.

A file is never held whole, unless all of it is asked for as one document, `unit="file"`. Every error is a ValueError
of one line that names the file, the place in it, and what would be right.
"""

import csv
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

Unit = Literal["paragraphs", "line", "file", "record"]

_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "heldout"), "test"),
}
_NO_TEXT = {".md", ".py", ".yaml", ".yml", ".lock", ".gitattributes", ".html"}
_NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_NOT_PLAIN = {".jsonl", ".json", ".parquet", ".arrow", ".csv", ".zip"}
_ROWS_AT_ONCE = 1024
_SHOWN_COLUMNS = 12


def find(path: str | Path) -> dict[str, list[Path]]:
    """The data files at a path by split, in the order of their names: a file, or a folder with all below it.

    A file belongs to the split that its name says (`wiki.valid.raw`, `train-00000-of-00002.parquet`), else to the one
    that the nearest folder says (`validation/0000.parquet`), else to "". Raises ValueError if there is no data file.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    found: dict[str, list[Path]] = {}
    for file in inside:
        parts = file.relative_to(path).parts if path.is_dir() else (path.name,)
        hidden = any(part.startswith(".") for part in parts)
        if not (hidden or file.suffix in _NO_TEXT or file.name in _NO_DATA):
            found.setdefault(_split_of(parts), []).append(file)
    if not found:
        raise ValueError(f"{path}: no data file there; expected txt, jsonl, parquet, arrow, csv or zip")
    return found


def read(file: Path, columns: Sequence[str] = ("text",), unit: Unit = "paragraphs") -> Iterator[str]:
    """The documents of a file, in order, the empty ones too.

    columns: those that may hold the text of jsonl, parquet and arrow, of which the first that is there is read; a list
    of texts there is joined by line breaks. unit: what a document of a plain text is, paragraphs between blank lines, a
    line with its line break, or the file. A zip file holds plain texts. A CSV file is as AG News has it: no header, the
    number of a class, and after it columns that are joined by spaces.
    """
    readers: dict[str, Callable[[], Iterator[str]]] = {
        ".jsonl": lambda: _json_lines(file, columns),
        ".json": lambda: _json_lines(file, columns),
        ".parquet": lambda: _parquet(file, columns),
        ".arrow": lambda: _arrow(file, columns),
        ".csv": lambda: _csv(file),
        ".zip": lambda: _zip(file, unit),
    }
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    if file.suffix in readers:
        return readers[file.suffix]()
    return _json_lines(file, columns) if unit == "record" else _text_file(file, unit)


def _split_of(parts: Sequence[str]) -> str:
    for part in reversed(parts):
        for word in re.findall("[a-z]+", part.lower()):
            if word in _WORDS:
                return _WORDS[word]
    return ""


def _text_file(file: Path, unit: Unit) -> Iterator[str]:
    with file.open("rb") as content:
        yield from _documents(content, str(file), unit)


def _zip(file: Path, unit: Unit) -> Iterator[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            for name in sorted(archive.namelist()):
                if Path(name).suffix in _NOT_PLAIN:
                    raise ValueError(f"{file}: {name} must be plain text; unpack the zip file to have it read")
                if not name.endswith("/"):
                    with archive.open(name) as content:
                        yield from _documents(content, f"{file}: {name}", unit)
    except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:  # the last: a password, a method
        raise ValueError(f"{file}: no zip file that can be read ({error})") from error


def _documents(content: IO[bytes], where: str, unit: Unit) -> Iterator[str]:
    lines = _lines(content, where)
    if unit == "line":
        yield from lines
    elif unit == "file":
        yield "".join(lines)
    else:
        yield from _paragraphs(lines)


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph).strip()
            paragraph = []
    yield "".join(paragraph).strip()


def _lines(content: IO[bytes], where: str) -> Iterator[str]:
    """Lines with their line breaks, which are made \\n; no character of UTF-8 but the line break has its byte."""
    offset = 0
    for line in content:
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            place = f"byte {line[error.start]:#04x} at offset {offset + error.start}"
            raise ValueError(f"{where}: not UTF-8, {place}") from error
        text = text.removeprefix("\ufeff") if offset == 0 else text
        offset += len(line)
        yield f"{text[:-2]}\n" if text.endswith("\r\n") else text


def _json_lines(file: Path, columns: Sequence[str]) -> Iterator[str]:
    with file.open("rb") as content:
        for number, line in enumerate(_lines(content, str(file)), start=1):
            if line.strip():
                where = f"{file}: line {number}"
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{where} is not JSON, one record to a line ({error})") from error
                if not isinstance(record, dict):
                    raise ValueError(f"{where} must be a record with the column {_either(columns)}")
                yield _text(record[column_of(list(record), columns, where)], where)


def _parquet(file: Path, columns: Sequence[str]) -> Iterator[str]:
    arrow, parquet = _pyarrow(file)
    try:
        table = parquet.ParquetFile(file)
        column = column_of(table.schema_arrow.names, columns, str(file))
        for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[column]):
            yield from texts(_values(batch.column(column), str(file)), str(file))
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: no parquet file that can be read ({error})") from error


def _arrow(file: Path, columns: Sequence[str]) -> Iterator[str]:
    """What `datasets` writes by `save_to_disk`."""
    arrow, _ = _pyarrow(file)
    try:
        with arrow.memory_map(str(file)) as content, arrow.ipc.open_stream(content) as batches:
            column = column_of(batches.schema.names, columns, str(file))
            for batch in batches:
                yield from texts(_values(batch.column(column), str(file)), str(file))
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: no arrow file that can be read ({error})") from error


def _values(column: Any, where: str) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError as error:  # those who wrote the file need not have checked it
        raise ValueError(f"{where}: not UTF-8, byte {error.object[error.start]:#04x} in a text") from error
    return values


def _csv(file: Path) -> Iterator[str]:
    try:
        with file.open("rb") as content:
            for row in csv.reader(_lines(content, str(file)), skipinitialspace=True, strict=True):
                if len(row) < 2:
                    raise ValueError(f"{file}: a row of {len(row)} columns; expected a class and one or more texts")
                if not row[0].isdecimal():
                    raise ValueError(f"{file}: {row[0]!r:.60} must be the number of a class, and no row a header")
                yield " ".join(row[1:])
    except csv.Error as error:
        raise ValueError(f"{file}: not CSV ({error})") from error


def _pyarrow(file: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{file}: reading it needs pyarrow: pip install 'edlm-torch[data]'") from error
    return pyarrow, pyarrow.parquet


def column_of(names: Sequence[str], wanted: Sequence[str], where: str) -> str:
    """The first of the wanted columns that is there. Raises ValueError naming those that are, and those wanted."""
    for column in wanted:
        if column in names:
            return column
    shown = ", ".join(names[:_SHOWN_COLUMNS]) + (", ..." if len(names) > _SHOWN_COLUMNS else "")
    raise ValueError(f"{where} has the columns {shown or '(none)'}; expected {_either(wanted)}")


def texts(values: Sequence[Any], where: str) -> Iterator[str]:
    """Texts out of a column's values: null is no text, a list of texts is joined by line breaks, all else an error."""
    return (_text(value, where) for value in values)


def _text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {value!r:.60} must be a text")
    return value


def _either(columns: Sequence[str]) -> str:
    return " or ".join(repr(column) for column in columns)
