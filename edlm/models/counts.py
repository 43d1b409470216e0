"""An n-gram model: the law of a token by how often it follows the few tokens before it.

Counts of long contexts are interpolated with those of shorter ones as Witten and Bell (1991) do,

    p_j(x | h) = (c(h, x) + n(h) p_{j-1}(x | h')) / (c(h) + n(h)),

c counts, n(h) the number of tokens that are seen after h, h' without its earliest token, and p_0 uniform. The law given
a text is that of its longest context that was seen. Only n-grams that were seen are kept, sorted by their context and
their last token, so a token is found in any vocabulary by a search in them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from edlm.process import arguments

_NONE = -1  # no context
_LARGEST = torch.iinfo(torch.int64).max


class Counts:
    """The law of a token given the tokens before it, of which `order - 1` are read at most.

    A state is the number of a context: `nothing` for a text that has no token yet, up to `num_states`.

    Args:
        tokens: a text to count in, int64 (n,), without masks. The counts stay on its device.
        order: tokens of an n-gram, at least 1.
        vocab_size: ids, the mask included.
        mask_id: never follows.

    Raises:
        ValueError: for no text of the vocabulary, and an order without counts.

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
        # Of each state: h', and how many tokens h has.
        self.lower = self.depth = tokens.new_zeros(1)
        # Of each n-gram, ascending: context and last token in one number, and its own state if a token follows it.
        self.codes, self.longer = tokens.new_full((1,), _LARGEST), tokens.new_full((1,), _NONE)
        found, context = list[Tensor](), torch.zeros_like(tokens)
        for j in range(order):
            codes, which, times = (context * vocab_size + tokens[j:]).unique(return_inverse=True, return_counts=True)
            found.append(times)
            context = self._add(codes, which, j + 1)
        self.times = torch.cat(found).float()
        self.num_states = len(self.lower)
        bounds = torch.arange(self.num_states + 1, device=tokens.device) * vocab_size
        self.first = torch.searchsorted(self.codes, bounds)  # the n-grams of state s are those from first[s] on
        sums = F.pad(self.times.double().cumsum(0), (1, 0))
        self.kinds, self.total = self.first.diff().float(), sums[self.first].diff().float()
        uniform = self.times.new_full((1, vocab_size), 1.0 / (vocab_size - 1))
        uniform[:, mask_id] = 0.0
        self.unigram = self._interpolated(uniform, self.lower[:1])

    def logits(self, states: Tensor) -> Tensor:
        """Compute `log p(token | context)`, -inf at the mask: states (n, 1) to (n, v)."""
        law, state = self.unigram.expand(len(states), -1), states.squeeze(-1)
        for ancestor, there in self._ancestors(state):
            law = torch.where(there.unsqueeze(-1), self._interpolated(law, ancestor), law)
        return law.log()

    def follow(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Find the states (n,) after one more token each, int64 (n,) both."""
        found = torch.full_like(states, _NONE)
        for _ in range(self.order):
            found = torch.where(found == _NONE, self._longer(states, tokens), found)
            states = self.lower[states]
        return torch.where(found == _NONE, self.nothing, found)

    def after(self, tokens: Tensor) -> Tensor:
        """Find the states (n, 1) of texts (n, m): of the longest context each ends with that was seen."""
        state = tokens.new_full((len(tokens),), self.nothing)
        for each in tokens[:, max(0, tokens.shape[1] - self.order + 1) :].unbind(1):
            state = self.follow(state, each)
        return state.unsqueeze(-1)

    def _add(self, codes: Tensor, which: Tensor, depth: int) -> Tensor:
        """Add n-grams, and the states of those that stand before a token; the state before each token from then on."""
        before = torch.zeros_like(codes, dtype=torch.bool)
        if depth < self.order:
            before.index_fill_(0, which[:-1], True)
        states = torch.where(before, before.cumsum(0) + len(self.lower) - 1, _NONE)
        contexts, last = codes[before] // self.vocab_size, codes[before] % self.vocab_size
        lower = self._longer(self.lower[contexts], last) if depth > 1 else torch.zeros_like(contexts)
        self.codes = torch.cat([self.codes[:-1], codes, self.codes[-1:]])  # the largest number ends the list
        self.longer = torch.cat([self.longer[:-1], states, self.longer[-1:]])
        self.lower = torch.cat([self.lower, lower])
        self.depth = torch.cat([self.depth, torch.full_like(lower, depth)])
        return states[which[:-1]]

    def _longer(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Find the states of contexts with one more token, (n,); -1 where none was seen."""
        wanted = states * self.vocab_size + tokens
        at = torch.searchsorted(self.codes, wanted)
        return torch.where(self.codes[at] == wanted, self.longer[at], _NONE)

    def _ancestors(self, states: Tensor) -> list[tuple[Tensor, Tensor]]:
        """List the contexts h of 1, 2, ... tokens that states (n,) end with, and whether each has so many."""
        chain = [states]
        for _ in range(self.order - 2):
            chain.append(self.lower[chain[-1]])
        every, rows = torch.stack(chain), torch.arange(len(states), device=states.device)
        back = [self.depth[states] - depth for depth in range(1, self.order)]
        return [(every[steps.clamp(min=0), rows], steps >= 0) for steps in back]

    def _interpolated(self, lower: Tensor, states: Tensor) -> Tensor:
        """Interpolate the laws (n, v) of shorter contexts with what follows the contexts of states (n,)."""
        count = self.kinds[states]
        denominator = (self.total[states] + count).unsqueeze(-1)
        law = lower * (count.unsqueeze(-1) / denominator)
        number = count.long()
        row = torch.repeat_interleave(torch.arange(len(states), device=states.device), number)
        before = number.cumsum(0) - number  # n-grams of the rows above
        at = torch.arange(len(row), device=states.device) + (self.first[states] - before)[row]
        seen = row, self.codes[at] % self.vocab_size
        return law.index_put(seen, self.times[at] / denominator[row, 0], accumulate=True)


def _require_text(tokens: Tensor, vocab_size: int, mask_id: int) -> None:
    """Raise ValueError for what is no row of ids below vocab_size, or holds a mask."""
    arguments.require_kind("tokens", tokens, isinstance(tokens, Tensor), "a tensor of ids, int64 (n,)")
    if tokens.dtype != torch.int64 or tokens.ndim != 1:
        raise ValueError(f"tokens: {tokens.dtype} of shape {tuple(tokens.shape)} must be int64 of shape (n,)")
    wrong = tokens[(tokens < 0) | (tokens >= vocab_size) | (tokens == mask_id)]
    if len(wrong):
        raise ValueError(
            f"tokens: id {int(wrong[0])} must lie in [0, {vocab_size}) and differ from mask_id = {mask_id}"
        )
