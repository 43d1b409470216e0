"""The kind of a file by its name, and its bytes as text, within limits: no small file takes much memory or time.

Every error is a ValueError of one line that names the file, what is there, and what would be right.
"""

import bz2
import gzip
import io
import lzma
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from edlm import limits

Format = Literal["text", "json", "csv", "tsv", "parquet", "arrow", "zip"]

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "heldout"), "test"),
}
_FORMATS: dict[str, Format] = {
    **dict.fromkeys(("", ".txt", ".text", ".raw", ".tokens", ".en", ".md", ".rst"), "text"),
    **{f".{word}": "text" for word in SPLIT_WORDS},  # `news.en.heldout`
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".json"), "json"),
    **{".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet", ".arrow": "arrow", ".zip": "zip"},
}
_OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
READ = "txt, jsonl, csv, tsv, each also as gz, bz2 or xz, parquet, arrow or zip"
DOCUMENT, RECORD = "bytes of a document", "bytes of a record"  # at least so many, in messages
_SHARD = re.compile(r"-\d+-of-\d+$")
_BLOCK = 1 << 20


class Kind(NamedTuple):
    """A format, and how it is compressed: "" if it is not."""

    format: Format
    compression: str


PLAIN_TEXT = Kind("text", "")


def kind_of(name: str) -> Kind | None:
    """Find the kind that the name of a file says, in any case of its letters; None for an unknown suffix.

    A name without a suffix is that of a plain text, as `text8` is. The number of a shard behind it is no part of it.
    """
    stem = _SHARD.sub("", name.lower())
    compression = next((suffix for suffix in _OPENERS if stem.endswith(suffix)), "")
    stem = _SHARD.sub("", stem.removesuffix(compression))
    found = _FORMATS.get(Path(stem).suffix)
    return None if found is None or (compression and found in ("parquet", "arrow", "zip")) else Kind(found, compression)


def require_kind(file: Path) -> Kind:
    """Find the kind that the name of a file says. Raises ValueError naming a suffix that nothing here reads."""
    found = kind_of(file.name)
    if found is None:
        suffix = "".join(file.suffixes[-2:]) if file.suffix.lower() in _OPENERS else file.suffix
        raise ValueError(f"{file}: nothing reads {suffix}; expected {READ}; rename it, unpack it or move it away")
    return found


def require_file(file: Path) -> int:
    """Return the size of a file. Raises ValueError for what is missing, no regular file, or not all written."""
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):
            raise ValueError(f"{file}: must be a file, and is {_what(about.st_mode)}")
        with file.open("rb") as content:
            _require_written(content.fileno(), about.st_size, file)
    except FileNotFoundError as error:
        raise ValueError(f"{file}: no such file") from error
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
    return about.st_size


def require_size(file: Path, limit: int) -> None:
    """Raise ValueError unless this is a file of at most so many bytes, as a limit of `edlm.limits` has it."""
    limits.require(file, "bytes", require_file(file), limit)


@contextmanager
def opened(file: Path) -> Iterator[IO[bytes]]:
    """Open a file and give its bytes, unpacked. Raises ValueError, then or while it is read, for damage."""
    size, compression = require_file(file), require_kind(file).compression
    try:
        with _OPENERS[compression](file) if compression else file.open("rb") as content:
            yield inflated(content, str(file), size) if compression else content
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        what = f"{compression[1:]} file" if compression else "file"
        raise ValueError(f"{file}: no {what} that can be read ({error})") from error


def inflated(content: Any, where: str, stored: int) -> IO[bytes]:
    """Unpack content while it is read, and refuse it as soon as it is too much for the bytes stored."""
    return io.BufferedReader(_Inflated(content, where, stored), _BLOCK)


def lines(content: IO[bytes], where: str) -> Iterator[str]:
    """Split into lines of records with their line breaks, made \\n; no other character of UTF-8 has its byte."""
    offset, most = 0, int(limits.allowed(limits.RECORD_BYTES))
    while block := content.read(_BLOCK):
        rest = b"" if block.endswith(b"\n") else content.readline(most + 1)
        for line in io.BytesIO(block + rest):
            if len(line) > most:
                limits.require(where, RECORD, len(line), limits.RECORD_BYTES)
            yield "\n" if line == b"\n" else _decoded(line, offset, where)
            offset += len(line)


def blocks(content: IO[bytes], where: str) -> Iterator[str]:
    """Read text of whole lines, about a mebibyte at once, its line breaks made \\n."""
    offset, most = 0, int(limits.allowed(limits.DOCUMENT_BYTES))
    while block := content.read(_BLOCK):
        rest = b"" if block.endswith(b"\n") else content.readline(most + 1)
        limits.require(where, DOCUMENT, len(rest), limits.DOCUMENT_BYTES)
        yield _decoded(block + rest, offset, where)
        offset += len(block) + len(rest)


class _Inflated(io.RawIOBase):
    def __init__(self, content: Any, where: str, stored: int) -> None:
        self.content, self.where, self.stored, self.read_so_far = content, where, stored, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self.content.readinto(buffer))
        self.read_so_far += count
        limits.require_inflation(self.where, self.read_so_far, self.stored)
        return count


def _decoded(content: bytes, offset: int, where: str) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte {content[error.start]:#04x} at offset {offset + error.start}"
        raise ValueError(f"{where}: not UTF-8, {place}") from error
    text = text.removeprefix("\ufeff") if offset == 0 else text
    return text.replace("\r\n", "\n")


def _what(mode: int) -> str:
    known = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for test, name in known.items() if test(mode)), "a device")


def _require_written(descriptor: int, size: int, file: Path) -> None:
    """Raise ValueError for a plain file with a hole: zeros that were never written, and may be of any size."""
    found = kind_of(file.name)
    if not size or (found is not None and found.format in ("parquet", "arrow")):
        return  # an arrow file may have pages of zeros, which some file systems do not write
    hole = os.lseek(descriptor, 0, os.SEEK_HOLE)
    if os.pread(descriptor, 1, hole) == b"\0":  # where there is none, it lies at the end, and nothing is read
        raise ValueError(f"{file}: nothing was ever written from byte {hole:,} on, of {size:,}: no text, or cut off")
