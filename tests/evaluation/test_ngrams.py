"""The judge that counts: its law is one, what it has seen it finds likely, and what is impossible is named."""

import itertools
import math

import pytest
import torch

from edlm.evaluation import ngrams

TEXTS = ["abracadabra", "banana", "cab"]
ALPHABET = "abcdrn?"  # those of the texts, and one that stands for all others


def test_of_one_character_it_is_the_law_by_hand() -> None:
    """c(a) = 9 of 20 characters, 6 kinds, and the uniform law over 7."""
    found = ngrams.judge(TEXTS, order=1)(["a"]).nll
    assert float(found) == pytest.approx(-math.log((9 + 6 / 7) / (20 + 6)))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_probabilities_of_all_texts_of_a_length_add_up_to_one(order: int) -> None:
    texts = ["".join(letters) for letters in itertools.product(ALPHABET, repeat=4)]
    assert float(torch.exp(-ngrams.judge(TEXTS, order)(texts).nll).sum()) == pytest.approx(1.0)


def test_it_counts_characters_and_a_text_beside_another_changes_nothing() -> None:
    judge = ngrams.judge(TEXTS, order=3)
    together, alone = judge(["banana", "", "xyz"]), judge(["xyz"])
    assert together.tokens.tolist() == [6, 0, 3]
    assert float(together.nll[1]) == 0.0
    assert float(together.nll[2]) == float(alone.nll)


def test_a_longer_history_makes_seen_text_likelier_and_its_mirror_not() -> None:
    short, long = ngrams.judge(TEXTS, order=1), ngrams.judge(TEXTS, order=4)
    assert float(long(["banana"]).nll) < float(short(["banana"]).nll) - 1.0
    assert float(long(["banana"]).nll) < float(long(["ananab"]).nll)


def test_what_cannot_be_judged_is_named() -> None:
    with pytest.raises(ValueError, match="documents hold no character to count"):
        ngrams.judge(["", ""])
    with pytest.raises(ValueError, match="order = 0 must be at least 1"):
        ngrams.judge(TEXTS, order=0)
    with pytest.raises(ValueError, match="there is no text to judge"):
        ngrams.judge(TEXTS)(["", ""])
