"""Pieces of texts as ids: blocks (num_blocks, l) and batches of them for training, excerpts for evaluation.

A batch is a pure function of its step, so a run that was interrupted resumes from the number of the step alone.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from edlm.contracts import X_0
from edlm.data.vocabulary import Vocabulary
from edlm.process import noise


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


class Excerpt(NamedTuple):
    """A piece of a document: int64 (l,). Its first `given` and its last `given_after` tokens are not scored."""

    tokens: Tensor
    given: int
    given_after: int = 0

    @property
    def scored(self) -> Tensor:
        """Tokens that are scored."""
        return self.tokens[self.given : len(self.tokens) - self.given_after]


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
        >>> from edlm.data import pieces
        >>> vocabulary = edlm.vocabulary.characters("ab ")
        >>> pieces.blocks(["ab", "ba", "a"], vocabulary, length=4, split_name="train").tolist()
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
        >>> from edlm.data import pieces
        >>> pieces.separator("ab", edlm.vocabulary.characters("ab "), "train").tolist()
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
        >>> from edlm.data import pieces
        >>> found = pieces.excerpts(["abaab"], edlm.vocabulary.characters("ab "), length=3)
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
        >>> from edlm.data import pieces
        >>> vocabulary = edlm.vocabulary.characters("ab ", specials=["bos", "eos"])
        >>> pieces.wrap(pieces.Excerpt(torch.tensor([0, 1]), given=0), vocabulary).tokens.tolist()
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
        >>> from edlm.data import pieces
        >>> blocks = torch.arange(6).view(3, 2)
        >>> pieces.batch_at(blocks, step=0, batch_size=3, seed=0)["x_0"].sort(0).values.tolist()
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
