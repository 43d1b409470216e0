"""Products of many choices: plain `pytest` runs cases that hold every pair of choices, and `-m slow` runs the others.

A fault that a test of such a product can show depends on one choice, or on two together, nearly always.
"""

from collections.abc import Iterable
from itertools import combinations
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet


def covering(cases: Iterable[tuple[Any, ...]]) -> list[ParameterSet]:
    """Give every case as parameters of a test, those marked slow whose pairs of choices stand in the others.

    The case with the most new pairs is taken first, again and again. A named tuple is one parameter, and a plain tuple
    is as many as it has choices.
    """
    listed = list(cases)
    missing = [pairs_of(case) for case in listed]
    taken: set[int] = set()
    while any(missing):
        best = max(range(len(listed)), key=lambda index: len(missing[index]))  # the first of several
        taken.add(best)
        missing = [pairs - missing[best] for pairs in missing]
    return [parameters(case, () if index in taken else (pytest.mark.slow,)) for index, case in enumerate(listed)]


def pairs_of(case: tuple[Any, ...]) -> frozenset[Any]:
    """Name each two choices of a case, each with its place."""
    return frozenset(combinations(enumerate(map(repr, case)), 2))


def parameters(case: tuple[Any, ...], marks: tuple[pytest.MarkDecorator, ...]) -> ParameterSet:
    """Give a case to `parametrize`."""
    return pytest.param(*((case,) if hasattr(case, "_fields") else case), marks=marks)
