"""Texts as documents in three splits, from a file, a folder or Python itself; `pieces` cuts them."""

import hashlib
import math
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple, Protocol

from edlm import limits
from edlm.data import formats, pieces
from edlm.data.pieces import Blocks
from edlm.data.vocabulary import Vocabulary
from edlm.process import arguments

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_ACCENTS = re.compile("[\u0300-\u036f]+")
_BLANK_LINES = re.compile(r"\n[ \t\n]*\n")
_SPLIT_FILES = ("train.txt", "valid.txt", "test.txt")
_FRACTIONS = (0.9, 0.05, 0.05)
_LARGEST_HELD_OUT = 0.02  # of all characters: then no held-out split of 5 % comes out smaller than 3 %


class Source(Protocol):
    """Text in three splits that can be cut into blocks: a `Corpus`, or a data set that does not fit into memory."""

    @property
    def fingerprint(self) -> str:
        """Digits that differ when any block could."""
        ...

    def blocks(self, vocabulary: Vocabulary, length: int) -> Blocks:
        """Cut every split into blocks. Raises ValueError naming the split that is too short for one."""
        ...


class Corpus(NamedTuple):
    """Documents of the three splits."""

    train: list[str]
    valid: list[str]
    test: list[str]

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that differ when any document of any split does."""
        digest = hashlib.sha256()
        for split in self:
            digest.update(f"{len(split)} documents".encode())
            for document in split:
                content = document.encode()
                digest.update(f"{len(content)} bytes".encode() + content)
        return digest.hexdigest()[:16]

    def blocks(self, vocabulary: Vocabulary, length: int) -> Blocks:
        """Cut every split into blocks, held in memory; see `blocks`."""
        return Blocks(*(pieces.blocks(getattr(self, name), vocabulary, length, name) for name in Blocks._fields))


def normalise(text: str) -> str:
    """Reduce a text to the 27 symbols of text8: a to z and single spaces, digits spelled out, no space at either end.

    Accents are stripped and letters lowered first. Idempotent.

    Args:
        text: any text.

    Returns:
        The normalised text.

    Example:
        >>> import edlm
        >>> edlm.corpora.normalise("Café, est. 1912")
        'cafe est one nine one two'
    """
    if not text.isascii():
        text = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    text = text.lower()
    for digit, name in enumerate(_DIGITS):
        text = text.replace(str(digit), f" {name} ")
    return re.sub("[^a-z]+", " ", text).strip()


def embedded() -> Corpus:
    """Load the English that every CPython carries: its language reference, normalised, about 300,000 characters.

    Whole topics are split about 90/5/5 by characters. The text differs between versions of Python; report the
    corpus' `fingerprint` with every number.

    Returns:
        The corpus.

    Example:
        >>> import edlm
        >>> corpus = edlm.corpora.embedded()
        >>> len(corpus.train) > len(corpus.valid) > 0
        True
    """
    return _split([*_topics()], _FRACTIONS, "embedded")


def text_files(
    path: str | Path,
    normalised: bool = False,
    fractions: Sequence[float] = _FRACTIONS,
) -> Corpus:
    r"""Read a corpus of UTF-8 text from a file or a folder.

    A folder with train.txt, valid.txt and test.txt is split by them. Documents of a file are separated by blank lines.
    In another folder every `*.txt` is a document, in the order of a hash of its name. Without such files, documents are
    split in order by characters; fewer than three are cut as one text.

    Args:
        path: the file or folder.
        normalised: whether `normalise` is applied to every document.
        fractions: shares of the three splits, where no file names them.

    Returns:
        The corpus.

    Raises:
        ValueError: naming the path, for what is missing, empty, too large, no plain text by its name or not UTF-8.

    Example:
        >>> import edlm
        >>> from pathlib import Path
        >>> _ = Path("three.txt").write_text("one two\n\nthree\n\nfour")
        >>> edlm.corpora.text_files("three.txt")
        Corpus(train=['one two'], valid=['three'], test=['four'])
    """
    arguments.require_path("path", path)
    path = Path(path)
    require_fractions(fractions)
    if not path.is_dir():
        return _split(_documents(path, normalised), fractions, str(path))
    present = [name for name in _SPLIT_FILES if (path / name).exists()]
    if present:
        return Corpus(*(_documents(path / name, normalised) for name in _SPLIT_FILES))
    files = sorted(_texts_in(path), key=lambda file: _name_order(file.name))
    _require(bool(files), f"{path}: no *.txt; expected {', '.join(_SPLIT_FILES)}, or one document per *.txt")
    return _split([_document(file, normalised) for file in files], fractions, str(path))


def load_blocks(corpus: Source, vocabulary: Vocabulary, length: int) -> Blocks:
    """Cut every split of a corpus into blocks.

    Args:
        corpus: a `Corpus` or a data set.
        vocabulary: encodes the text.
        length: tokens of a block.

    Returns:
        The blocks of the three splits.

    Raises:
        ValueError: naming the split that is too short for one block.

    Example:
        >>> import edlm
        >>> vocabulary = edlm.vocabulary.characters("abcdefghijklmnopqrstuvwxyz ")
        >>> edlm.corpora.load_blocks(edlm.corpora.embedded(), vocabulary, length=64).train[:2].shape
        torch.Size([2, 64])
    """
    arguments.require_kind("corpus", corpus, hasattr(corpus, "blocks"), "one, as corpora.text_files(path) is")
    arguments.require_whole("length", length)
    return corpus.blocks(vocabulary, length)


def read_documents(path: str | Path, normalised: bool = False) -> list[str]:
    r"""Read the documents of a text that is evaluated whole.

    Documents of a file are separated by blank lines. Of a folder, `test.txt` is read if it is there. In another folder
    every `*.txt` is a document, in the order of their names.

    Args:
        path: the file or folder.
        normalised: whether `normalise` is applied to every document.

    Returns:
        The documents.

    Raises:
        ValueError: as `text_files` does.

    Example:
        >>> import edlm
        >>> from pathlib import Path
        >>> _ = Path("two.txt").write_text("one two\n\nthree")
        >>> edlm.corpora.read_documents("two.txt")
        ['one two', 'three']
    """
    arguments.require_path("path", path)
    path = Path(path)
    if not path.is_dir():
        return _documents(path, normalised)
    if (path / _SPLIT_FILES[-1]).exists():
        return _documents(path / _SPLIT_FILES[-1], normalised)
    files = sorted(_texts_in(path))
    _require(bool(files), f"{path}: no *.txt; expected {_SPLIT_FILES[-1]}, or one document per *.txt")
    return [_document(file, normalised) for file in files]


@cache
def _topics() -> tuple[str, ...]:
    """Normalise the language reference: topics in their order, the largest first."""
    texts = _without_copies({name: normalise(text) for name, text in topics.items()})
    largest = _LARGEST_HELD_OUT * sum(map(len, texts.values()))
    names = sorted(texts, key=lambda name: (len(texts[name]) <= largest, _name_order(name)))
    return tuple(texts[name] for name in names)


def _without_copies(texts: dict[str, str]) -> dict[str, str]:
    """Drop a text that another one contains: some topics are chapters of others, and would leak across the splits."""
    kept: dict[str, str] = {}
    for name in sorted(texts, key=lambda name: (-len(texts[name]), name)):
        if not any(texts[name] in text for text in kept.values()):
            kept[name] = texts[name]
    return kept


def _name_order(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _split(documents: list[str], fractions: Sequence[float], source: str) -> Corpus:
    """Split in order by fractions of the characters, whole documents if there are three, none of the splits empty."""
    if len(documents) < 3:
        return cut(" ".join(documents), fractions, source)
    first, second = split_places([len(document) for document in documents], fractions)
    return Corpus(documents[:first], documents[first:second], documents[second:])


def require_fractions(fractions: Sequence[float]) -> None:
    """Raise ValueError unless these are the shares of three splits.

    Args:
        fractions: three positive numbers that sum to 1.

    Raises:
        ValueError: for any others.

    Example:
        >>> import edlm
        >>> edlm.corpora.require_fractions((0.9, 0.05, 0.05))
    """
    _require(
        len(fractions) == 3 and min(fractions) > 0.0 and math.isclose(sum(fractions), 1.0),
        f"fractions = {tuple(fractions)} must be three positive numbers that sum to 1",
    )


def split_places(sizes: Sequence[int], fractions: Sequence[float]) -> tuple[int, int]:
    """Find the documents at which the second and the third split begin, none of the splits empty.

    Args:
        sizes: characters of each document; at least three documents.
        fractions: shares of the three splits.

    Returns:
        The index of the first document of the second split, and of the third.

    Example:
        >>> import edlm
        >>> edlm.corpora.split_places([8, 1, 1], (0.8, 0.1, 0.1))
        (1, 2)
    """
    starts, count = list(accumulate(sizes, initial=0)), len(sizes)
    first, second = (bisect_left(starts, bound) for bound in _bounds(starts[-1], fractions))
    first = min(max(first, 1), count - 2)
    return first, min(max(second, first + 1), count - 1)


def cut(text: str, fractions: Sequence[float], source: str) -> Corpus:
    """Cut one text in three by fractions of its characters.

    Args:
        text: the text.
        fractions: shares of the three splits.
        source: named in errors.

    Returns:
        The corpus, one document a split.

    Raises:
        ValueError: naming the source, if the text is too short.

    Example:
        >>> import edlm
        >>> edlm.corpora.cut("abcdefghij", (0.8, 0.1, 0.1), source="letters")
        Corpus(train=['abcdefgh'], valid=['i'], test=['j'])
    """
    first, second = _bounds(len(text), fractions)
    _require(0 < first < second < len(text), f"{source}: {len(text)} characters are too few to be split in three")
    return Corpus([text[:first]], [text[first:second]], [text[second:]])


def _bounds(size: int, fractions: Sequence[float]) -> tuple[int, int]:
    return round(fractions[0] * size), round((fractions[0] + fractions[1]) * size)


def _texts_in(folder: Path) -> list[Path]:
    """List the *.txt of a folder, in any case of their letters."""
    return [file for file in folder.iterdir() if file.suffix.lower() == ".txt" and not file.name.startswith(".")]


def _documents(path: Path, normalised: bool) -> list[str]:
    return _cleaned(_BLANK_LINES.split(_read(path)), normalised, path)


def _document(path: Path, normalised: bool) -> str:
    return _cleaned([_read(path)], normalised, path)[0]


def _cleaned(documents: list[str], normalised: bool, path: Path) -> list[str]:
    cleaned = [normalise(document) if normalised else document.strip() for document in documents]
    kept = [document for document in cleaned if document]
    _require(bool(kept), f"{path}: no text{' left after normalisation' if normalised else ''}")
    return kept


def _read(path: Path) -> str:
    kind = formats.kind_of(path.name)
    _require(
        kind == formats.PLAIN_TEXT, f"{path}: expected plain text (*.txt); edlm.datasets.files reads other formats"
    )
    formats.require_size(path, limits.CORPUS_BYTES)
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{path}: not UTF-8, byte {content[error.start]:#04x} at offset {error.start}"
        raise ValueError(message) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
