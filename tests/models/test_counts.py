"""The law of an n-gram model against counts by hand, with its table and without."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.models.counts import Counts

SYMBOLS, MASK = 3, 3


def by_hand(text: list[int], context: list[int], j: int) -> list[float]:
    """Witten and Bell's law given the last j tokens of a context, the last one first."""
    if j < 0:
        return [1 / SYMBOLS] * SYMBOLS
    shorter, seen = by_hand(text, context, j - 1), context[:j][::-1]
    follows = Counter(text[i + j] for i in range(len(text) - j) if text[i : i + j] == seen)
    if not follows:
        return shorter
    total, kinds = sum(follows.values()), len(follows)
    return [(follows[x] + kinds * shorter[x]) / (total + kinds) for x in range(SYMBOLS)]


texts = st.lists(st.integers(0, SYMBOLS - 1), min_size=4, max_size=40)


@settings(max_examples=60)
@given(texts, st.integers(1, 4), st.lists(st.lists(st.integers(0, SYMBOLS - 1), min_size=6, max_size=6), min_size=1))
def test_it_is_the_law_by_hand_whatever_the_context(text, order, contexts) -> None:
    """Of contexts that were seen and of others, of which the end that was seen counts; read at once or in turn."""
    model, read = Counts(torch.tensor(text), order, SYMBOLS + 1, MASK), torch.tensor(contexts)
    wanted = torch.tensor([[*by_hand(text, context[::-1], order - 1), 0.0] for context in contexts])
    torch.testing.assert_close(model.logits(model.after(read)).exp(), wanted)
    torch.testing.assert_close(wanted.sum(1), torch.ones(len(contexts)))
    state = torch.full((len(contexts),), model.nothing)
    for tokens in read.unbind(1):
        state = model.follow(state, tokens)
    assert torch.equal(state.unsqueeze(-1), model.after(read))


def test_the_beginning_of_a_text_has_the_law_of_what_there_is() -> None:
    text = [0, 1, 2, 0, 1, 1, 0, 1, 2]
    model = Counts(torch.tensor(text), 3, SYMBOLS + 1, MASK)
    torch.testing.assert_close(
        model.logits(model.after(torch.tensor([[1]])))[0, :SYMBOLS].exp(), torch.tensor(by_hand(text, [1], 1))
    )
    nothing = model.logits(torch.tensor([[model.nothing]]))[0]
    torch.testing.assert_close(nothing[:SYMBOLS].exp(), torch.tensor(by_hand(text, [], 0)))
    assert nothing[MASK] == -math.inf


@pytest.mark.parametrize(
    ("order", "size", "said"),
    [(0, 4, "order = 0"), (9, 4, "order = 9 is more than the 8 tokens")],
)
def test_an_order_without_counts_is_refused(order: int, size: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Counts(torch.arange(8) % 3, order, size, size - 1)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (torch.tensor([0, 1, 7]), r"id 7 must lie in \[0, 5\)"),
        (torch.tensor([0, -1, 1]), "id -1 must lie in"),
        (torch.tensor([0, 1, 4]), "id 4 must .* differ from mask_id = 4"),
        (torch.tensor([0.0, 1.0]), r"torch.float32 of shape \(2,\) must be int64"),
        (torch.tensor([[0, 1]]), r"shape \(1, 2\) must be int64 of shape \(n,\)"),
        ([0, 1], r"tokens must be a tensor of ids, int64 \(n,\), not of class list"),
    ],
)
def test_what_is_no_text_of_the_vocabulary_is_refused(tokens: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Counts(tokens, 1, 5, 4)


def test_in_a_vocabulary_of_many_ids_it_is_the_same_law() -> None:
    """Ids far apart: what is searched for has other numbers, and no table would hold the laws."""
    few, spread = torch.tensor([0, 1, 2, 0, 1, 1, 0, 2, 1, 0, 1, 2]), torch.tensor([7, 40_000, 49_000])
    size = 49_153
    small, large = Counts(few, 3, SYMBOLS + 1, MASK), Counts(spread[few], 3, size, size - 1)
    assert large.num_states == small.num_states
    read = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    law = large.logits(large.after(spread[read])).exp()
    torch.testing.assert_close(law.sum(1), torch.ones(9))
    text = spread[few].tolist()
    for row, context in enumerate(read.tolist()):
        for token in (*spread.tolist(), 11):
            wanted = by_hand_of(text, [int(spread[each]) for each in context], token, size)
            assert math.isclose(float(law[row, token]), wanted, rel_tol=1e-4), (context, token)


def by_hand_of(text: list[int], context: list[int], token: int, size: int) -> float:
    """Witten and Bell's law of one token, by hand."""
    found = 1 / (size - 1)
    for j in range(len(context) + 1):
        seen = context[len(context) - j :]
        follows = Counter(text[i + j] for i in range(len(text) - j) if text[i : i + j] == seen)
        if follows:
            found = (follows[token] + len(follows) * found) / (sum(follows.values()) + len(follows))
    return found
