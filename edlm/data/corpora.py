"""Texts as documents in three splits, cut into blocks (num_blocks, l) of ids, and drawn in batches as TensorDicts.

A batch is a pure function of its step, so a run that was interrupted resumes from the number of the step alone.
"""

import hashlib
import math
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from edlm import limits
from edlm.contracts import X_0
from edlm.data import formats
from edlm.data.vocabulary import Vocabulary
from edlm.process import noise

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_ACCENTS = re.compile("[\u0300-\u036f]+")
_BLANK_LINES = re.compile(r"\n[ \t\n]*\n")
_SPLIT_FILES = ("train.txt", "valid.txt", "test.txt")
_FRACTIONS = (0.9, 0.05, 0.05)
_LARGEST_HELD_OUT = 0.02  # of all characters: then no held-out split of 5 % comes out smaller than 3 %


class Rows(Protocol):
    """Blocks of ids of one split, (num_blocks, l): a tensor, or an object that reads them from disk when indexed."""

    @property
    def shape(self) -> Sequence[int]:
        """(num_blocks, l)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Tensor:
        """Read blocks by a slice or by int64 numbers (b,): int64 (b, l)."""
        ...


class Blocks(NamedTuple):
    """Blocks of ids of the three splits."""

    train: Rows
    valid: Rows
    test: Rows


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
        return Blocks(*(blocks(getattr(self, name), vocabulary, length, name) for name in Blocks._fields))


class Excerpt(NamedTuple):
    """A piece of a document: int64 (l,). Its first `given` and its last `given_after` tokens are not scored."""

    tokens: Tensor
    given: int
    given_after: int = 0

    @property
    def scored(self) -> Tensor:
        """Tokens that are scored."""
        return self.tokens[self.given : len(self.tokens) - self.given_after]


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
    texts = _without_copies({name: normalise(text) for name, text in topics.items()})
    largest = _LARGEST_HELD_OUT * sum(map(len, texts.values()))
    names = sorted(texts, key=lambda name: (len(texts[name]) <= largest, _name_order(name)))
    return _split([texts[name] for name in names], _FRACTIONS, "embedded")


def text_files(
    path: str | Path,
    normalised: bool = False,
    fractions: Sequence[float] = _FRACTIONS,
) -> Corpus:
    r"""Read a corpus of UTF-8 text from a file or a folder.

    A folder with train.txt, valid.txt and test.txt is split by them. Documents of a file are separated by blank lines.
    In another folder every *.txt is a document, in the order of a hash of its name. Without such files, documents are
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


def blocks(documents: Sequence[str], vocabulary: Vocabulary, length: int, split_name: str) -> Tensor:
    """Concatenate the documents and cut them into whole blocks; the rest is dropped.

    Between two documents stands the eos id, or one space if the vocabulary has none and the document does not end in
    white space.

    Args:
        documents: the texts, in order.
        vocabulary: encodes them.
        length: tokens of a block.
        split_name: named in errors.

    Returns:
        Blocks, int64 (num_blocks, length).

    Raises:
        ValueError: if the text is too short for one block, or the vocabulary has no separator.

    Example:
        >>> import edlm
        >>> vocabulary = edlm.vocabulary.characters("ab ")
        >>> edlm.corpora.blocks(["ab", "ba", "a"], vocabulary, length=4, split_name="train").tolist()
        [[0, 1, 2, 1]]
    """
    _require(length >= 1, f"length = {length} must be at least 1")
    tokens = _concatenated([document for document in documents if document], vocabulary, split_name)
    count = len(tokens) // length
    _require(count >= 1, f"{split_name}: {len(tokens)} tokens are fewer than one block of length = {length}")
    return tokens[: count * length].view(count, length)


def separator(previous: str, vocabulary: Vocabulary, split_name: str) -> Tensor:
    """Choose what stands between a document and the next one.

    It is the eos id, or one space if the vocabulary has none and the document does not end in white space.

    Args:
        previous: the document before it.
        vocabulary: gives the id.
        split_name: named in errors.

    Returns:
        Ids, int64 (1,) or (0,).

    Raises:
        ValueError: if the vocabulary has neither an eos nor a space.

    Example:
        >>> import edlm
        >>> edlm.corpora.separator("ab", edlm.vocabulary.characters("ab "), "train").tolist()
        [2]
    """
    if vocabulary.eos_id is not None:
        return torch.tensor([vocabulary.eos_id])
    if previous[-1].isspace():
        return torch.empty(0, dtype=torch.int64)
    try:
        return vocabulary.encode(" ")
    except ValueError as error:
        raise ValueError(f"{split_name}: several documents need a vocabulary with an eos or a space") from error


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
    return corpus.blocks(vocabulary, length)


def read_documents(path: str | Path, normalised: bool = False) -> list[str]:
    r"""Read the documents of a text that is evaluated whole.

    Documents of a file are separated by blank lines. Of a folder, `test.txt` is read if it is there. In another folder
    every *.txt is a document, in the order of their names.

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
    path = Path(path)
    if not path.is_dir():
        return _documents(path, normalised)
    if (path / _SPLIT_FILES[-1]).exists():
        return _documents(path / _SPLIT_FILES[-1], normalised)
    files = sorted(_texts_in(path))
    _require(bool(files), f"{path}: no *.txt; expected {_SPLIT_FILES[-1]}, or one document per *.txt")
    return [_document(file, normalised) for file in files]


def excerpts(
    documents: Sequence[str], vocabulary: Vocabulary, length: int, joined: bool = True, context: int = 0
) -> list[Excerpt]:
    """Cut documents into excerpts of at most `length` tokens such that every token is scored exactly once.

    The last excerpt of a document reaches back, and is given what was scored already. So only documents shorter than
    `length` make shorter excerpts.

    Args:
        documents: the texts.
        vocabulary: encodes them.
        length: most tokens of an excerpt.
        joined: whether all documents are one text, with the separators of `blocks`, which are scored too.
        context: how many tokens before an excerpt are given to it.

    Returns:
        The excerpts.

    Raises:
        ValueError: unless 0 <= context < length, and if there is no text.

    Example:
        >>> import edlm
        >>> found = edlm.corpora.excerpts(["abaab"], edlm.vocabulary.characters("ab "), length=3)
        >>> [(excerpt.tokens.tolist(), excerpt.given) for excerpt in found]
        [([0, 1, 0], 0), ([0, 0, 1], 1)]
    """
    _require(0 <= context < length, f"context = {context} must be at least 0 and below length = {length}")
    whole = [document for document in documents if document]
    _require(bool(whole), "there is no text to cut: every document is empty")
    pieces = [_concatenated(whole, vocabulary, "joined documents")] if joined else vocabulary.encode_documents(whole)
    return [excerpt for piece in pieces if len(piece) for excerpt in _cut_up(piece, length, context)]


def wrap(excerpt: Excerpt, vocabulary: Vocabulary) -> Excerpt:
    """Put an excerpt between a bos and an eos, which are given: the form of a block that was trained on `wrapped`.

    Args:
        excerpt: the excerpt.
        vocabulary: gives both ids.

    Returns:
        The excerpt, two tokens longer.

    Raises:
        ValueError: if the vocabulary lacks a bos or an eos.

    Example:
        >>> import edlm
        >>> vocabulary = edlm.vocabulary.characters("ab ", specials=["bos", "eos"])
        >>> edlm.corpora.wrap(edlm.corpora.Excerpt(torch.tensor([0, 1]), given=0), vocabulary).tokens.tolist()
        [3, 0, 1, 4]
    """
    if vocabulary.bos_id is None or vocabulary.eos_id is None:
        raise ValueError("wrapped = True needs a vocabulary with a bos and an eos id")
    ends = torch.tensor([vocabulary.bos_id]), torch.tensor([vocabulary.eos_id])
    tokens = torch.cat([ends[0], excerpt.tokens, ends[1]])
    return Excerpt(tokens, excerpt.given + 1, excerpt.given_after + 1)


def _cut_up(tokens: Tensor, length: int, context: int) -> Iterator[Excerpt]:
    scored = 0  # how many tokens have been scored already
    while scored < len(tokens):
        end = min(len(tokens), max(scored - context, 0) + length)
        start = max(0, end - length)
        yield Excerpt(tokens[start:end], scored - start)
        scored = end


def batch_at(blocks: Rows, *, step: int, batch_size: int, seed: int) -> TensorDict:
    """Take batch number `step` of an endless stream of epochs, each a fresh order of all blocks.

    The stream depends on the seed alone. Batch `step` holds its items from number `step * batch_size` on, so a batch
    may straddle epochs.

    Args:
        blocks: the blocks of a split.
        step: number of the batch, from 0.
        batch_size: b.
        seed: seed of the orders.

    Returns:
        A TensorDict with `x_0`, int64 (b, l).

    Raises:
        ValueError: for a negative step, no blocks, or batch_size < 1.

    Example:
        >>> import edlm
        >>> blocks = torch.arange(6).view(3, 2)
        >>> edlm.corpora.batch_at(blocks, step=0, batch_size=3, seed=0)["x_0"].sort(0).values.tolist()
        [[0, 1], [2, 3], [4, 5]]
    """
    _require(step >= 0, f"step = {step} must be at least 0")
    _require(batch_size >= 1, f"batch_size = {batch_size} must be at least 1")
    size = len(blocks)
    _require(size >= 1, "a batch needs at least 1 block, got 0")
    first, end = step * batch_size, (step + 1) * batch_size
    epochs = range(first // size, (end - 1) // size + 1)
    parts = [_order(seed, e, size)[max(first - e * size, 0) : end - e * size] for e in epochs]
    return TensorDict({X_0: blocks[torch.cat(parts)]}, batch_size=[batch_size])


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> Tensor:
    return noise.permutation(seed, epoch, size)  # kept: consecutive batches mostly share their epoch


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


def _concatenated(documents: list[str], vocabulary: Vocabulary, split_name: str) -> Tensor:
    """Join the ids of non-empty documents, a separator between any two: int64 (length,)."""
    pieces = vocabulary.encode_documents(documents)
    joined = pieces[:1]
    for previous, piece in zip(documents, pieces[1:], strict=False):
        joined += [separator(previous, vocabulary, split_name), piece]
    return torch.cat([torch.empty(0, dtype=torch.int64), *joined])


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
