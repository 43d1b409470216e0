"""A column of texts out of parquet and arrow files, in pieces whose size is known before they are unpacked."""

import io
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from edlm import limits
from edlm.data import formats

_ROWS_AT_ONCE = 1024
_BYTES_AT_ONCE = 1 << 26
_BYTES_PER_VALUE = 8  # at least, in memory
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3  # kinds of an arrow message
_SHOWN_COLUMNS = 12
_PARQUET_END = 8  # bytes behind a footer: its length, and four letters
_NESTED = 16  # structs in each other, of which Parquet has seven


def parquet(file: Path, columns: Sequence[str]) -> Iterator[Any]:
    """Read the values of the first column that is there. Raises ValueError for what is unreadable or too large."""
    with _reading(file, "parquet") as pyarrow:
        size = formats.require_file(file)
        about = pyarrow.parquet.read_metadata(file)
        column = column_of(about.schema.to_arrow_schema().names, columns, str(file))
        paths = [about.schema.column(number).path for number in range(about.num_columns)]
        leaves = [number for number, path in enumerate(paths) if path == column or path.startswith(f"{column}.")]
        wanted = {paths[leaf] for leaf in leaves}
        chunks = [chunk for chunk in _chunks(file, about.serialized_size, size) if chunk.path in wanted]
        for needed in (
            sum(chunk.unpacked for chunk in chunks),
            sum(chunk.values for chunk in chunks) * _BYTES_PER_VALUE,
        ):
            limits.require_inflation(file, needed, size)
        encoded = [paths[leaf] for leaf in leaves if about.schema.column(leaf).physical_type == "BYTE_ARRAY"]
        table = pyarrow.parquet.ParquetFile(file, metadata=about, read_dictionary=encoded)
        batches = (
            batch
            for group in range(about.num_row_groups)  # lists are not read across groups, where texts are numbered anew
            for batch in table.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column])
        )
        yield from _values((batch.column(column) for batch in batches), pyarrow, size, str(file))


def arrow(file: Path, columns: Sequence[str]) -> Iterator[Any]:
    """Read the values of such a column of what `datasets` writes by `save_to_disk`; raises as `parquet` does."""
    with _reading(file, "arrow") as pyarrow:
        size = formats.require_file(file)
        with pyarrow.memory_map(str(file)) as content:
            for message in pyarrow.ipc.MessageReader.open_stream(content):
                limits.require_inflation(file, _unpacked(message), size)
            content.seek(0)
            with pyarrow.ipc.open_stream(content) as batches:
                column = column_of(batches.schema.names, columns, str(file))
                arrays = (_sound(batch.column(column)) for batch in batches)
                yield from _values(arrays, pyarrow, size, str(file))


def column_of(names: Sequence[str], wanted: Sequence[str], where: str) -> str:
    """Find the first of the wanted columns that is there. Raises ValueError naming those that are, and those wanted."""
    for column in wanted:
        if column in names:
            return column
    shown = ", ".join(f"{name:.60}" for name in names[:_SHOWN_COLUMNS]) + (
        ", ..." if len(names) > _SHOWN_COLUMNS else ""
    )
    raise ValueError(f"{where} has the columns {shown or '(none)'}; expected {either(wanted)}")


def either(columns: Sequence[str]) -> str:
    """Name columns as a message does."""
    return " or ".join(repr(column) for column in columns)


@contextmanager
def _reading(file: Path, kind: str) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{file}: reading it needs pyarrow: pip install 'edlm-torch[data]'") from error
    try:
        yield pyarrow
    except UnicodeDecodeError as error:  # those who wrote the file need not have checked it
        raise ValueError(f"{file}: not UTF-8, byte {error.object[error.start]:#04x} in a text") from error
    except (pyarrow.ArrowException, OSError, struct.error, LookupError, SystemError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{file}: no {kind} file that can be read ({reason})") from error


def _values(arrays: Iterator[Any], pyarrow: Any, stored: int, where: str) -> Iterator[Any]:
    """Values as Python's, in pieces of some 64 MiB, whatever is repeated in them."""
    unpacked = 0
    for array in arrays:
        unpacked += _BYTES_PER_VALUE * len(array)
        limits.require_inflation(where, unpacked, stored)
        for first in range(0, len(array), _ROWS_AT_ONCE):
            rows = array.slice(first, _ROWS_AT_ONCE)
            sizes = _sizes(rows, pyarrow)
            limits.require(where, formats.DOCUMENT, max(sizes), limits.DOCUMENT_BYTES)
            unpacked += sum(sizes)
            limits.require_inflation(where, unpacked, stored)
            for start, end in _pieces(sizes):
                yield from rows.slice(start, end - start).to_pylist()


def _sizes(array: Any, pyarrow: Any) -> list[int]:
    """Bytes that each value takes when it is unpacked; 0 for what is no text, nor a list of texts."""
    kinds, compute = pyarrow.types, pyarrow.compute
    if kinds.is_list(array.type) or kinds.is_large_list(array.type):
        counts = compute.list_value_length(array).fill_null(0).to_pylist()
        inside = iter(_sizes(array.flatten(), pyarrow))
        return [sum(islice(inside, count)) + _BYTES_PER_VALUE * count for count in counts]
    if kinds.is_dictionary(array.type):
        lengths = _sizes(array.dictionary, pyarrow)
        return [0 if index is None else lengths[index] for index in array.indices.to_pylist()]
    if kinds.is_string_view(array.type):  # four numbers each, of which the first is the length
        lengths = memoryview(array.buffers()[1]).cast("b").cast("i")[4 * array.offset :: 4].tolist()
        valid = array.is_valid().to_pylist()
        return [length * is_there for length, is_there in zip(lengths, valid, strict=False)]
    if kinds.is_string(array.type) or kinds.is_large_string(array.type):
        found: list[int] = compute.binary_length(array).fill_null(0).to_pylist()
        return found
    return [0] * len(array)


def _pieces(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Rows (start, end) that are unpacked together; a large one alone."""
    start, together = 0, 0
    for row, size in enumerate(sizes):
        if row > start and together + size > _BYTES_AT_ONCE:
            yield start, row
            start, together = row, 0
        together += size
    yield start, len(sizes)


def _sound(array: Any) -> Any:
    """The array, after a check of all its places, which a damaged file may have anywhere in memory."""
    array.validate(full=True)
    return array


def _unpacked(message: Any) -> int:
    """Bytes that the compressed parts of an arrow message say that they unpack to; 0 if it is not compressed.

    The message is read as Arrow's format has it (Message.fbs), because pyarrow tells sizes after it has unpacked.
    """
    head = message.metadata.to_pybytes()
    root = _at("<I", head, 0)
    kind, body = _place(head, root, 1), _place(head, root, 2)
    if not kind or not body or head[kind] not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        return 0
    batch = body + _at("<I", head, body)
    if head[kind] == _DICTIONARY_BATCH:
        held = _place(head, batch, 1)
        batch = held + _at("<I", head, held)
    parts = _place(head, batch, 2)
    if not _place(head, batch, 3) or not parts:
        return 0
    first = parts + _at("<I", head, parts) + 4
    places = (struct.unpack_from("<qq", head, first + 16 * n) for n in range(_at("<I", head, first - 4)))
    return sum(max(_at("<q", message.body, offset), 0) for offset, length in places if length >= 8)


class _Chunk(NamedTuple):
    """A column of a row group: its path, how many values it holds, and their bytes in memory, as the file says."""

    path: str
    values: int
    unpacked: int


def _chunks(file: Path, footer: int, size: int) -> Iterator[_Chunk]:
    """The columns of all row groups of a parquet file, by its footer of so many bytes.

    It is read as Parquet's format has it (parquet.thrift): pyarrow ends the process where a damaged one contradicts
    itself.
    """
    with file.open("rb") as content:
        content.seek(max(size - footer - _PARQUET_END, 0))
        try:
            about = _struct(io.BytesIO(content.read(footer)), _NESTED)
            for group in about[4]:
                for column in group[1]:
                    path, values, unpacked = (column[3][field] for field in (3, 5, 6))
                    yield _Chunk(b".".join(path).decode(), max(values, 0), max(unpacked, 0))
        except (LookupError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: no parquet file that can be read (its footer is damaged)") from error


def _struct(content: IO[bytes], depth: int) -> dict[int, Any]:
    """The fields of a struct of Thrift's compact protocol, by their numbers."""
    found: dict[int, Any] = {}
    number = 0
    while (head := _byte(content)) != 0:
        step, kind = head >> 4, head & 15
        number = number + step if step else _signed(content)
        found[number] = kind == 1 if kind in (1, 2) else _value(content, kind, depth)
    return found


def _value(content: IO[bytes], kind: int, depth: int) -> Any:
    """A value of a kind of Thrift's compact protocol. Raises LookupError for one that is cut off or of no kind."""
    if depth == 0:
        raise LookupError("nested too deeply")
    if kind in (1, 2, 3):  # a truth value in a list, or a byte
        return _byte(content)
    if kind in (4, 5, 6):
        return _signed(content)
    if kind in (7, 8):
        length = 8 if kind == 7 else _unsigned(content)
        found = content.read(length)
        if len(found) < length:
            raise LookupError("cut off")
        return found
    if kind in (9, 10):
        head = _byte(content)
        count = head >> 4 if head >> 4 != 15 else _unsigned(content)
        return [_value(content, head & 15, depth - 1) for _ in range(count)]
    if kind == 12:
        return _struct(content, depth - 1)
    raise LookupError(f"kind {kind}")  # no map is there


def _byte(content: IO[bytes]) -> int:
    return content.read(1)[0]


def _unsigned(content: IO[bytes]) -> int:
    found = shift = 0
    while shift < 70:
        byte = _byte(content)
        found |= (byte & 127) << shift
        if byte < 128:
            return found
        shift += 7
    raise LookupError("a number without end")


def _signed(content: IO[bytes]) -> int:
    found = _unsigned(content)
    return (found >> 1) ^ -(found & 1)


def _place(head: bytes, table: int, field: int) -> int:
    """Find where a field of a flatbuffer's table is; 0 if it is left out."""
    fields = table - _at("<i", head, table)
    if 4 + 2 * field >= _at("<H", head, fields):
        return 0
    offset = _at("<H", head, fields + 4 + 2 * field)
    return table + offset if offset else 0


def _at(form: str, content: Any, place: int) -> int:
    value: int = struct.unpack_from(form, content, place)[0]
    return value
