"""Blocks out of a stream of ids on disk: packed or padded, with bos and eos or without, read when indexed.

The place of a block follows from its number, so one file of tokens serves every length and layout.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from edlm.data.token_cache import Tokens
from edlm.data.vocabulary import Vocabulary

Layout = Literal["packed", "padded"]


class _Span(NamedTuple):
    """Places of the ids of blocks: the first and how many, int64 (b,) each."""

    start: Tensor
    size: Tensor


class TokenRows:
    """Blocks of a split, `pieces.Rows` over a file: indexed by a slice or int64 numbers (b,), it gives int64 (b, l).

    Built by `rows`.
    """

    def __init__(
        self,
        tokens: Tokens,
        count: int,
        length: int,
        spans: Callable[[Tensor], _Span],
        wrap: tuple[int, int] | None,
        pad_id: int | None,
        padded: bool,
    ) -> None:
        self.tokens, self.length, self.wrap, self.pad_id = tokens, length, wrap, pad_id
        self._count, self._spans, self._padded = count, spans, padded

    @property
    def padded(self) -> bool:
        """Whether blocks may be filled up, by the pad id or by the end of a text."""
        return self._padded

    @property
    def shape(self) -> tuple[int, int]:
        """(num_blocks, l)."""
        return self._count, self.length

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        """Read blocks. Raises IndexError for a number outside of [0, num_blocks)."""
        numbers = torch.arange(*index.indices(self._count)) if isinstance(index, slice) else index
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < self._count:
            raise IndexError(f"block numbers must lie in [0, {self._count})")
        start, size = (values.unsqueeze(-1) for values in self._spans(numbers))
        column = torch.arange(self.length) - (0 if self.wrap is None else 1)
        inside = (column >= 0) & (column < size)
        ids = self.tokens.at(torch.where(inside, start + column, 0))
        if self.pad_id is not None:
            ids = torch.where(inside, ids, self.pad_id)
        if self.wrap is not None:
            bos, eos = self.wrap
            ids = torch.where(column < 0, bos, torch.where(column == size, eos, ids))
        return ids


def rows(tokens: Tokens, vocabulary: Vocabulary, length: int, layout: Layout, wrapped: bool, name: str) -> TokenRows:
    """Cut a split into blocks of `length`.

    packed: the stream of all documents, cut. The last block reaches back to be full, so that no token is left out. A
    split shorter than a block is padded. padded: every document has blocks of its own, a long one several, the last
    filled up with pad ids. wrapped: a block begins with bos and holds eos after its text, which is two tokens shorter.
    Published OpenWebText networks were trained so (Sahoo et al. 2024).
    Raises ValueError, naming what is missing, if a bos, eos or pad id is needed and the vocabulary has none.
    """
    room = length - (2 if wrapped else 0)
    _require(room >= 1, f"length = {length} must be at least {3 if wrapped else 1}")
    wrap = None
    if wrapped:
        if vocabulary.bos_id is None or vocabulary.eos_id is None:
            raise ValueError("wrapped = True needs a vocabulary with a bos and an eos id")
        wrap = vocabulary.bos_id, vocabulary.eos_id
    total = len(tokens.stream)
    if layout == "packed":
        enough = total >= room or vocabulary.filler_id is not None
        _require(
            enough, f"{name}: {total} tokens are fewer than one block of length = {length}, and there is no pad id"
        )
        spans, count = partial(_packed, total=total, room=room), -(-total // room)
    else:
        _require(vocabulary.filler_id is not None, "layout = 'padded' needs a vocabulary with a pad id")
        ends = (-((tokens.bounds[:, 0] - tokens.bounds[:, 1]) // room)).cumsum(0)
        spans, count = partial(_padded, bounds=tokens.bounds, ends=ends, room=room), int(ends[-1])
    padded = layout == "padded" or total < room
    return TokenRows(tokens, count, length, spans, wrap, vocabulary.filler_id, padded)


def _packed(number: Tensor, total: int, room: int) -> _Span:
    start = (number * room).clamp(max=max(total - room, 0))
    return _Span(start, torch.full_like(start, min(total, room)))


def _padded(number: Tensor, bounds: Tensor, ends: Tensor, room: int) -> _Span:
    """Find the spans of padded blocks. `ends` (documents,): how many blocks a document and those before it fill."""
    document = torch.searchsorted(ends, number, right=True)
    first, last = bounds[document].unbind(-1)
    blocks = -((first - last) // room)
    start = first + (number - (ends[document] - blocks)) * room
    return _Span(start, (last - start).clamp(max=room))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
