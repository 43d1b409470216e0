"""The part of a product that runs always holds every pair of choices."""

from itertools import combinations, product
from typing import Any, NamedTuple

import identity_parts
import pytest
from covering import covering
from hypothesis import given
from hypothesis import strategies as st


class Choice(NamedTuple):
    one: int
    two: str


def kept(found: list[Any]) -> list[tuple[Any, ...]]:
    return [each.values for each in found if not each.marks]


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.integers(0, 9))
def test_every_pair_of_choices_is_in_a_case_that_runs_always(sizes: list[int], left_out: int) -> None:
    """Of a product, also of one that lacks some cases; all cases are there, in their order."""
    cases = [case for n, case in enumerate(product(*map(range, sizes))) if n == 0 or (n * 7 + left_out) % 5]
    found = covering(cases)
    assert [each.values for each in found] == cases
    pairs = [{pair for case in of for pair in combinations(enumerate(case), 2)} for of in (cases, kept(found))]
    assert pairs[0] == pairs[1]


def test_few_cases_of_a_large_product_suffice() -> None:
    """At least as many as the largest two numbers of choices have pairs."""
    assert 16 <= len(kept(covering(product(range(4), range(4), range(3), range(2), range(2))))) <= 20
    cases = identity_parts.cases()
    assert len(kept(covering(cases))) < len(cases) / 3


def test_a_named_tuple_is_one_parameter() -> None:
    found = covering([Choice(1, "a"), Choice(1, "b")])
    assert [each.values for each in found] == [(Choice(1, "a"),), (Choice(1, "b"),)]


def test_what_is_left_out_runs_with_the_slow_tests() -> None:
    marks = [each.marks for each in covering(product(range(2), range(2), range(2)))]
    assert sorted(map(len, marks)) == [0] * 4 + [1] * 4
    assert {mark.name for each in marks for mark in each} == {pytest.mark.slow.name}
