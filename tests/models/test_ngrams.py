"""The law of an n-gram model against counts by hand, with its table and without."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.models import ngrams
from edlm.models.ngrams import Ngrams

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
@given(texts, st.integers(1, 4), st.data(), st.booleans())
def test_it_is_the_law_by_hand_whatever_the_context(text, order, data, kept) -> None:
    places = st.integers(0, SYMBOLS - 1)
    contexts = data.draw(st.lists(st.lists(places, min_size=order - 1, max_size=order - 1), min_size=1, max_size=5))
    model = Ngrams(torch.tensor(text), order, SYMBOLS + 1, MASK)
    if not kept:
        model.table = None
    law = model.logits(torch.tensor(contexts).view(len(contexts), order - 1)).exp()
    wanted = torch.tensor([[*by_hand(text, context, order - 1), 0.0] for context in contexts])
    torch.testing.assert_close(law, wanted)
    torch.testing.assert_close(law.sum(1), torch.ones(len(contexts)))


def test_a_place_before_the_text_is_no_token() -> None:
    text = [0, 1, 2, 0, 1, 1, 0, 1, 2]
    model = Ngrams(torch.tensor(text), 3, SYMBOLS + 1, MASK)
    law = model.logits(torch.tensor([[1, model.nothing], [model.nothing, model.nothing]])).exp()
    torch.testing.assert_close(law[0, :SYMBOLS], torch.tensor(by_hand(text, [1], 1)))
    torch.testing.assert_close(law[1, :SYMBOLS], torch.tensor(by_hand(text, [], 0)))


def test_a_table_is_kept_where_it_is_small_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    text = torch.randint(0, SYMBOLS, (50,), generator=torch.Generator().manual_seed(0))
    contexts = torch.tensor([[0, 1], [2, 2], [1, 0]])
    kept = Ngrams(text, 3, SYMBOLS + 1, MASK)
    monkeypatch.setattr(ngrams, "_KEPT", 0)
    computed = Ngrams(text, 3, SYMBOLS + 1, MASK)
    assert (kept.table is None, computed.table is None) == (False, True)
    assert torch.equal(kept.logits(contexts), computed.logits(contexts))
    assert kept.logits(contexts)[:, MASK].tolist() == [-math.inf] * 3


@pytest.mark.parametrize(
    ("order", "size", "said"),
    [(0, 4, "order = 0"), (9, 4, "order = 9 is more than the 8 tokens"), (8, 300, "more n-grams than can be numbered")],
)
def test_an_order_without_counts_is_refused(order: int, size: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Ngrams(torch.arange(8) % 3, order, size, size - 1)
