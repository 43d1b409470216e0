"""A judge without a network: the law of each character given those before it, from counts in real text."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from edlm.evaluation.judges import Judge, Judgement
from edlm.process import arguments


def judge(documents: Iterable[str], order: int = 5) -> Judge:
    """Judge by the character n-grams of real text, smoothed by Witten and Bell (1991).

    The `order - 1` characters h stand c(h) times in the text, before T(h) different ones. Then the law is
    `p(x | h) = (c(h x) + T(h) p(x | h')) / (c(h) + T(h))`, where h' is h without its first character. The last h' is
    the uniform law over the characters of the text and one that stands for all others. The judge knows spelling and
    short phrases. So a text that repeats a good phrase is judged well: look at the texts too.

    Args:
        documents: real text to count in.
        order: the most characters of an n-gram.

    Returns:
        The judge. Its tokens are characters.

    Raises:
        ValueError: for an order below 1, and for documents without a character.

    Example:
        >>> from edlm.evaluation import ngrams
        >>> judged = ngrams.judge(["the cat and the hat"] * 9, order=4)(["the hat", "eht tah"])
        >>> bool(judged.nll[0] < judged.nll[1])
        True
    """
    arguments.require_whole("order", order)
    counts = Counter[str]()
    for text in documents:
        for n in range(1, order + 1):
            counts.update(map("".join, zip(*(text[start:] for start in range(n)), strict=False)))
    symbols = sum(len(gram) == 1 for gram in counts)
    if not symbols:
        raise ValueError("documents hold no character to count")
    totals, kinds = Counter[str](), Counter[str]()
    for gram, count in counts.items():
        totals[gram[:-1]] += count
        kinds[gram[:-1]] += 1

    def probability(gram: str) -> float:
        found = 1.0 / (symbols + 1)
        for start in range(len(gram) - 1, -1, -1):
            own, before = gram[start:], gram[start:-1]
            if before in totals:
                found = (counts[own] + kinds[before] * found) / (totals[before] + kinds[before])
        return found

    def judged(texts: Sequence[str]) -> Judgement:
        if not any(texts):
            raise ValueError("there is no text to judge")
        nll = [-sum(math.log(probability(gram)) for gram in _histories(text, order)) for text in texts]
        return Judgement(torch.tensor(nll, dtype=torch.float64), torch.tensor([len(text) for text in texts]))

    return judged


def _histories(text: str, order: int) -> Iterable[str]:
    """Every character behind the characters before it, `order` at most."""
    return (text[max(end - order, 0) : end] for end in range(1, len(text) + 1))
