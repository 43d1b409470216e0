"""An n-gram model: the law of a token by how often it follows the few tokens before it.

Counts of long contexts are interpolated with those of shorter ones as Witten and Bell (1991) do,

    p_j(x | h) = (c(h, x) + n(h) p_{j-1}(x | h')) / (c(h) + n(h)),

c counts, n(h) the number of tokens that are seen after h, h' without its earliest token, and p_0 uniform. The law given
a text is that of its longest context that was seen. All laws stand in one table, a row for each context, and the row
after one more token in another. So a token costs two look-ups, and long contexts need a small vocabulary.
"""

import torch
from torch import Tensor

from edlm.process import arguments

_MOST = 1 << 26  # numbers of a table of laws


class Counts:
    """The law of a token given the tokens before it, of which `order - 1` are read at most.

    A state is the row of a context in the tables, `nothing` for a text that has no token yet.

    Args:
        tokens: a text to count in, int64 (n,), without masks.
        order: tokens of an n-gram, at least 1.
        vocab_size: ids, the mask included.
        mask_id: never follows.

    Raises:
        ValueError: for no text of the vocabulary, an order without counts, and more contexts than a table holds.

    Example:
        >>> text = torch.tensor([0, 1, 0, 1, 0, 2])
        >>> model = Counts(text, order=2, vocab_size=4, mask_id=3)
        >>> model.logits(model.after(torch.tensor([[0]]))).exp()
        tensor([[0.1778, 0.5333, 0.2889, 0.0000]])
    """

    nothing = 0

    def __init__(self, tokens: Tensor, order: int, vocab_size: int, mask_id: int) -> None:
        arguments.require_whole("order", order)
        _require_text(tokens, vocab_size, mask_id)
        if len(tokens) < order:
            raise ValueError(f"order = {order} is more than the {len(tokens)} tokens that are counted")
        self.order, self.vocab_size, self.mask_id = order, vocab_size, mask_id
        uniform = torch.full((1, vocab_size), 1.0 / (vocab_size - 1)).index_fill(1, torch.tensor(mask_id), 0.0)
        laws, following = [uniform], [torch.zeros(1, vocab_size, dtype=torch.int64)]
        context, lower, first = torch.zeros_like(tokens), torch.zeros(1, dtype=torch.int64), 0
        for j in range(order):
            self._require_room(first + len(lower))
            laws.append(_interpolated(laws[-1][lower], context, tokens[j:]))
            next_row, end = following[-1][lower], first + len(lower)
            if j + 1 < order:  # of which each context is the row after the one before it
                longer, of_longer = _longer(tokens, context, len(lower), j)
                next_row[context[:-1], tokens[j:-1]] = end + of_longer
                context, lower, first = of_longer, longer, end
            following.append(next_row)
        self.log_law, self.following = torch.cat(laws[1:]).log(), torch.cat(following[1:])

    def logits(self, states: Tensor) -> Tensor:
        """Look up `log p(token | context)`, -inf at the mask: states (n, 1) to (n, v)."""
        return self.log_law[states.squeeze(-1)]

    def after(self, tokens: Tensor) -> Tensor:
        """Find the states (n, 1) of texts (n, m): of the longest context each ends with that was seen."""
        state = tokens.new_full((len(tokens),), self.nothing)
        for each in tokens[:, max(0, tokens.shape[1] - self.order + 1) :].unbind(1):
            state = self.following[state, each]
        return state.unsqueeze(-1)

    def _require_room(self, rows: int) -> None:
        if rows * self.vocab_size > _MOST:
            raise ValueError(
                f"order = {self.order}: more than {rows:,} contexts of {self.vocab_size:,} ids are more than a table "
                f"of {_MOST:,} numbers holds; give a smaller order, or fewer tokens"
            )


def _require_text(tokens: Tensor, vocab_size: int, mask_id: int) -> None:
    """Raise ValueError for what is no row of ids below vocab_size, or holds a mask."""
    if tokens.dtype != torch.int64 or tokens.ndim != 1:
        raise ValueError(f"tokens: {tokens.dtype} of shape {tuple(tokens.shape)} must be int64 of shape (n,)")
    wrong = tokens[(tokens < 0) | (tokens >= vocab_size) | (tokens == mask_id)]
    if len(wrong):
        raise ValueError(
            f"tokens: id {int(wrong[0])} must lie in [0, {vocab_size}) and differ from mask_id = {mask_id}"
        )


def _interpolated(lower: Tensor, context: Tensor, tokens: Tensor) -> Tensor:
    """Interpolate the laws (c, v) of shorter contexts with what follows each context, (n,) each, c numbers of them."""
    counts = torch.zeros_like(lower).index_put_((context, tokens), torch.ones(()), accumulate=True)
    kinds = (counts > 0).sum(1, keepdim=True)
    return (counts + kinds * lower) / (counts.sum(1, keepdim=True) + kinds)


def _longer(tokens: Tensor, context: Tensor, count: int, j: int) -> tuple[Tensor, Tensor]:
    """Number the contexts of j + 1 tokens: the shorter one in each (c,), and which stands before each token (n,).

    context: which of the `count` contexts of j tokens stands before each token from number j on.
    """
    codes, which = (tokens[: len(context) - 1] * count + context[1:]).unique(return_inverse=True)
    return codes % count, which
