"""Detokenisers give back what was written, on sentences taken apart the way each set takes them apart."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.data import detokenizers
from edlm.data.detokenizers import Detokenizer

WORDS = st.sampled_from(["the", "cat", "Vienna", "12", "of", "ran", "x"])


@st.composite
def sentences(draw: st.DrawFn, marks: str) -> str:
    """Words with at most one mark after each, an ending, and sometimes brackets or quotation marks around a word."""
    words = draw(st.lists(WORDS, min_size=1, max_size=8))
    words = [draw(st.sampled_from([word, f"({word})", f'"{word}"'])) for word in words]
    text = " ".join(word + draw(st.sampled_from(["", *marks])) for word in words[:-1])
    return f"{text} end." if text else "the end."


def taken_apart(text: str) -> str:
    """Every mark between spaces, as the sets have it."""
    return re.sub(" +", " ", re.sub(r'([.,;:!?()"])', r" \1 ", text)).strip()


@settings(deadline=None, max_examples=40)
@given(sentences(",;:!?"))
def test_wikitext_is_put_together_again(text: str) -> None:
    assert detokenizers.wikitext(taken_apart(text) + " \n") == text + "\n"


@settings(deadline=None, max_examples=40)
@given(sentences(",;:!?"))
def test_lm1b_is_put_together_again(text: str) -> None:
    assert detokenizers.lm1b(taken_apart(text)) == text


@pytest.mark.parametrize(
    ("detokenizer", "text", "expected"),
    [
        (detokenizers.wikitext, " a well @-@ known 1 @,@ 234 @.@ 5 m \n", " a well-known 1,234.5 m\n"),
        (detokenizers.wikitext, " = = Games = = \n", " == Games ==\n"),
        (detokenizers.wikitext, "the dogs ' tails , all", "the dogs' tails, all"),
        (detokenizers.wikitext, "the dog 's tail", "the dog's tail"),
        (detokenizers.wikitext, "the dogs ' tails , the dog 's", "the dogs'tails, the dog's"),  # as if quoted: so be it
        (detokenizers.wikitext, "45 ° N , [ sic ] { b }", "45°N, [sic] {b}"),
        (detokenizers.ptb, " it was n't N N of $ N billion \n", "it wasn't 1 1 of $1 billion"),
        (detokenizers.ptb, "the <unk> 's and\\/or the owners ' # N .", "the ?'s and/or the owners' #1 ."),
        (detokenizers.ptb, "N at either end N", "N at either end N"),
        (detokenizers.lm1b, "see http : / / a.b / c , he 's gone .", "see http://a.b/c, he's gone."),
        (detokenizers.lm1b, 'it cost $ 5 or £ 3 , " he said " !', 'it cost $5 or £3, "he said"!'),
        (detokenizers.lambada, " “Go,” she said. \n", '\n"Go," she said.'),
        (detokenizers.scientific_papers, "a ( b ) , c @-@ d is .", "a (b), c-d is."),
    ],
)
def test_examples(detokenizer: Detokenizer, text: str, expected: str) -> None:
    assert detokenizer(text) == expected


@settings(deadline=None, max_examples=20)
@given(st.text())
def test_any_text_is_taken_and_nothing_but_lambada_adds_to_it(text: str) -> None:
    for detokenizer in (detokenizers.wikitext, detokenizers.ptb, detokenizers.lm1b, detokenizers.scientific_papers):
        assert len(detokenizer(text)) <= len(text)
    assert detokenizers.lambada(text).startswith("\n")
