"""An n-gram model: the law of a token by how often it follows the few tokens before it, a drafter that costs nothing.

Counts of long contexts are interpolated with those of shorter ones as Witten and Bell (1991) do,

    p_j(x | h) = (c(h, x) + n(h) p_{j-1}(x | h')) / (c(h) + n(h)),

c counts, n(h) the number of tokens that are seen after h, h' without its earliest token, and p_0 uniform.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from edlm.process import arguments

_KEPT = 1 << 26  # numbers of a table of the laws of all contexts, above which a law is computed when it is asked for


class _Seen(NamedTuple):
    """Contexts of one length, their codes ascending (c,), and what follows them: `first` (c + 1,) into the others."""

    codes: Tensor
    first: Tensor
    tokens: Tensor
    counts: Tensor


class Ngrams:
    """The law of a token given the tokens before it, of which `order - 1` are read.

    Args:
        tokens: a text to count in, int64 (n,), without masks.
        order: tokens of an n-gram, at least 1.
        vocab_size: ids, the mask included.
        mask_id: never follows.

    Raises:
        ValueError: for an order without counts, and for one whose contexts are too many to be numbered.

    Example:
        >>> text = torch.tensor([0, 1, 0, 1, 0, 2])
        >>> model = Ngrams(text, order=2, vocab_size=4, mask_id=3)
        >>> model.logits(torch.tensor([[0]])).exp()
        tensor([[0.1778, 0.5333, 0.2889, 0.0000]])
    """

    def __init__(self, tokens: Tensor, order: int, vocab_size: int, mask_id: int) -> None:
        arguments.require_whole("order", order)
        if len(tokens) < order:
            raise ValueError(f"order = {order} is more than the {len(tokens)} tokens that are counted")
        if (vocab_size + 1) ** order >= 1 << 62:
            raise ValueError(f"order = {order} with {vocab_size} ids has more n-grams than can be numbered: give less")
        self.order, self.vocab_size, self.mask_id, self.nothing = order, vocab_size, mask_id, vocab_size
        self.seen = [self._count(tokens, j) for j in range(order)]
        self.table: Tensor | None = None
        longest = self.seen[-1].codes
        if len(longest) * vocab_size <= _KEPT:
            self.table = self._interpolated(self._contexts(longest))

    def logits(self, contexts: Tensor) -> Tensor:
        """Compute `log p(token | context)`, -inf at the mask: contexts (n, order - 1), the last token first, to (n, v).

        A place before the text is `nothing`.
        """
        if self.table is None:
            return self._interpolated(contexts)
        place, found = _find(self.seen[-1].codes, self._codes(contexts, self.order - 1))
        if bool(found.all()):
            return self.table[place]
        return torch.where(found.unsqueeze(-1), self.table[place], self._interpolated(contexts))

    def _count(self, tokens: Tensor, j: int) -> _Seen:
        """Count what follows each context of j tokens."""
        n = len(tokens) - j
        contexts = torch.stack([tokens[j - 1 - i : j - 1 - i + n] for i in range(j)], 1) if j else tokens.new_zeros(n, 0)
        pairs, counts = (self._codes(contexts, j) * self.vocab_size + tokens[j:]).unique(return_counts=True)
        codes, sizes = (pairs // self.vocab_size).unique_consecutive(return_counts=True)
        first = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        return _Seen(codes, first, pairs % self.vocab_size, counts)

    def _codes(self, contexts: Tensor, j: int) -> Tensor:
        """Number the contexts by their last j tokens, (n,)."""
        digits = (self.vocab_size + 1) ** torch.arange(j, device=contexts.device)
        return (contexts[:, :j] * digits).sum(1)

    def _contexts(self, codes: Tensor) -> Tensor:
        """List the tokens of numbered contexts, (n, order - 1)."""
        digits = (self.vocab_size + 1) ** torch.arange(self.order - 1)
        return codes.unsqueeze(1) // digits % (self.vocab_size + 1)

    def _interpolated(self, contexts: Tensor) -> Tensor:
        law = torch.full((len(contexts), self.vocab_size), 1.0 / (self.vocab_size - 1))
        law[:, self.mask_id] = 0.0
        for j, seen in enumerate(self.seen):
            place, found = _find(seen.codes, self._codes(contexts, j))
            kinds = torch.where(found, seen.first[place + 1] - seen.first[place], 0)
            rows = torch.arange(len(contexts)).repeat_interleave(kinds)
            behind = torch.arange(len(rows)) - (kinds.cumsum(0) - kinds)[rows]
            which = seen.first[place][rows] + behind
            counts = torch.zeros_like(law).index_put_((rows, seen.tokens[which]), seen.counts[which].float())
            mass = counts.sum(1, keepdim=True) + kinds.unsqueeze(1)
            law = torch.where(found.unsqueeze(1), (counts + kinds.unsqueeze(1) * law) / mass, law)
        return law.log()


def _find(codes: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Find codes among ascending ones: their places (n,), and whether each is there, bool (n,)."""
    place = torch.searchsorted(codes, wanted).clamp(max=len(codes) - 1)
    return place, codes[place] == wanted
