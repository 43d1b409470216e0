"""Ids of a split on disk, written once and mapped into memory: a stream of all documents, and the place of each one.

A token takes two bytes up to 65,536 ids, else four. A file is there whole or not at all, and its pages have checksums.
"""

import fcntl
import json
import os
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from edlm import progress
from edlm.data import pieces
from edlm.data.vocabulary import Vocabulary
from edlm.process import arguments

PAGE_BYTES = 1 << 22
CHECKED_PAGES = 64  # when a file is opened, evenly spread: 256 MiB take a second
_VERSION = 1
_SMALL = 1 << 16  # ids that two bytes can tell apart
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 1024, 1 << 22  # at once to the tokenizer, which is parallel within a batch


class Tokens(NamedTuple):
    """Ids of a split, mapped from disk.

    stream: int16 (the bits of uint16) or int32 (n,), documents with separators between them. bounds: int64
    (documents, 2), where each begins and ends in the stream. stored: the folder and the split that they are mapped
    from. Only these are pickled, and another process maps them itself.
    """

    stream: Tensor
    bounds: Tensor
    stored: tuple[Path, str] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (Tokens, tuple(self)) if self.stored is None else (_mapped, self.stored)

    def at(self, places: Tensor) -> Tensor:
        """Read the ids at int64 places of any shape: int64."""
        ids = self.stream[places].long()
        return ids & (_SMALL - 1) if self.stream.dtype == torch.int16 else ids


def tokens(folder: Path, split: str, documents: Callable[[], Iterator[str]], vocabulary: Vocabulary) -> Tokens:
    """Map the tokens of a split that the folder holds; write them first if they are missing or damaged.

    Several processes that ask at once wait for the one that writes. Documents without text are left out. Between two
    documents stands the eos id, or one space if there is no eos and the document does not end in one. The name of the
    folder must identify the documents and the vocabulary. Raises ValueError if there is no text, for text that the
    vocabulary cannot spell, and for several documents without a separator.
    """
    arguments.require_folder(folder)
    with _alone(folder / f".{split}.lock"):
        damage = _damage(folder, split, vocabulary)
        if damage:
            warnings.warn(f"{folder}: {damage}; it is written anew", stacklevel=2)
        if damage is not None:
            _write(folder, split, documents(), vocabulary)
    return _mapped(folder, split)


def _mapped(folder: Path, split: str) -> Tokens:
    about = _read_about(folder, split)
    dtype = torch.int16 if about["bytes_per_token"] == 2 else torch.int32
    paths = _paths(folder, split)
    stream = torch.from_file(str(paths[0]), shared=False, size=about["tokens"], dtype=dtype)
    bounds = torch.from_file(str(paths[1]), shared=False, size=2 * about["documents"], dtype=torch.int64)
    return Tokens(stream, bounds.view(-1, 2), (folder, split))


def _write(folder: Path, split: str, documents: Iterable[str], vocabulary: Vocabulary) -> None:
    """Write the stream, the bounds, and last of all the record that makes them valid."""
    finals, width = _paths(folder, split), 2 if vocabulary.size <= _SMALL else 4
    partials = [path.with_name(f".{path.name}.partial") for path in finals]
    try:
        with ExitStack() as stack:
            stream, bounds = (_Pages(stack.enter_context(path.open("wb"))) for path in partials)
            bar = stack.enter_context(
                progress.bar(desc=f"tokenising {split}", unit=" tokens", unit_scale=True, leave=False)
            )
            place, count = 0, 0
            for before, ids in _encoded(documents, vocabulary, split):
                stream.write(torch.cat([before, *ids]).to(torch.int16 if width == 2 else torch.int32))
                start, place = place + len(before), place + len(before) + sum(map(len, ids))
                bounds.write(torch.tensor([start, place]))
                count += 1
                bar.update(place - start)
            checksums = [stream.finish(), bounds.finish()]
        if not place:
            raise ValueError(f"{split}: there is no text")
        for partial, final in zip(partials, finals, strict=True):
            os.replace(partial, final)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)
    about = dict(zip(("version", "byteorder", "vocabulary"), _key(vocabulary), strict=True))
    about |= {"bytes_per_token": width, "tokens": place, "documents": count, "checksums": checksums}
    temporary = folder / f".{split}.json.partial"
    temporary.write_text(json.dumps(about), encoding="utf-8")
    os.replace(temporary, folder / f"{split}.json")


def _encoded(documents: Iterable[str], vocabulary: Vocabulary, split: str) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Encode every document with text: the separator before it, and its ids in pieces."""
    before, first = torch.empty(0, dtype=torch.int64), 0
    previous: str | None = None
    for batch in _batches(documents):
        try:
            if len(batch) == 1:
                encoded = [list(vocabulary.encode_pieces(batch[0]))]
            else:
                encoded = [[ids] for ids in vocabulary.encode_documents(batch)]
        except ValueError as error:
            raise ValueError(f"{split}: documents {first} to {first + len(batch) - 1}: {error}") from error
        for text, ids in zip(batch, encoded, strict=True):
            if previous is not None:
                before = pieces.separator(previous, vocabulary, split)
            yield before, ids
            previous = text
        first += len(batch)


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Group the documents that are tokenised together; a long one stands alone."""
    batch: list[str] = []
    size = 0
    for text in documents:
        if text:
            if batch and (len(batch) == _BATCH_DOCUMENTS or size + len(text) > _BATCH_CHARACTERS):
                yield batch
                batch, size = [], 0
            batch.append(text)
            size += len(text)
    if batch:
        yield batch


class _Pages:
    """A file being written, and the checksum of each of its pages."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.checksums, self.filled, self.current = file, list[int](), 0, 0

    def write(self, values: Tensor) -> None:
        content = values.contiguous().view(torch.uint8).numpy().data
        self.file.write(content)
        while content:
            part = content[: PAGE_BYTES - self.filled]
            self.current, self.filled = zlib.crc32(part, self.current), self.filled + len(part)
            content = content[len(part) :]
            if self.filled == PAGE_BYTES:
                self._close_page()

    def finish(self) -> list[int]:
        if self.filled:
            self._close_page()
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.checksums

    def _close_page(self) -> None:
        self.checksums.append(self.current)
        self.current, self.filled = 0, 0


def _damage(folder: Path, split: str, vocabulary: Vocabulary) -> str | None:
    """Describe what is wrong with the files of a split; None if nothing is found, "" if there are none."""
    if not (folder / f"{split}.json").exists():
        return ""
    try:
        about = _read_about(folder, split)
        sizes = about["bytes_per_token"] * about["tokens"], 16 * about["documents"]
        if (about["version"], about["byteorder"], about["vocabulary"]) != _key(vocabulary):
            return f"{split}.json is of another version, machine or vocabulary"
        checked = zip(_paths(folder, split), sizes, about["checksums"], strict=True)
        return next((found for each in checked if (found := _file_damage(*each))), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{split}.json or what it describes cannot be read ({error})"


def _file_damage(path: Path, size: int, checksums: list[int]) -> str | None:
    if path.stat().st_size != size:
        return f"{path.name} has {path.stat().st_size:,} bytes and not {size:,}"
    return None if _pages_are_whole(path, checksums) else f"{path.name} is not what was written"


def _key(vocabulary: Vocabulary) -> tuple[int, str, str]:
    return _VERSION, sys.byteorder, vocabulary.fingerprint


def _pages_are_whole(path: Path, checksums: list[int]) -> bool:
    """Check pages spread evenly over a file, the last among them, against their checksums."""
    count = min(len(checksums), CHECKED_PAGES)
    with path.open("rb") as file:
        for number in {(each + 1) * len(checksums) // count - 1 for each in range(count)}:
            file.seek(number * PAGE_BYTES)
            if zlib.crc32(file.read(PAGE_BYTES)) != checksums[number]:
                return False
    return True


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process at the latest."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _paths(folder: Path, split: str) -> tuple[Path, Path]:
    return folder / f"{split}.tokens", folder / f"{split}.bounds"


def _read_about(folder: Path, split: str) -> dict[str, Any]:
    return json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
