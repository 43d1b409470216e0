"""Numbers that are none are refused by their names."""

from typing import Any

import numpy as np
import pytest

from edlm.process import arguments


@pytest.mark.parametrize(("value", "least"), [(1, 1), (0, 0), (7, 2), (np.int64(3), 3), (-1, -1)])
def test_a_whole_number_of_at_least_so_much_is_one(value: Any, least: int) -> None:
    arguments.require_whole("steps", value, least)


@pytest.mark.parametrize(
    ("value", "least", "also", "said"),
    [
        (True, 1, "", "steps = True must be a whole number of at least 1"),
        (1.0, 1, ", or None", "steps = 1.0 must be a whole number of at least 1, or None"),
        ("2", 0, "", "steps = '2' must be a whole number of at least 0"),
        (None, 1, "", "steps = None must be a whole number of at least 1"),
        (0, 1, "", "steps = 0 must be at least 1"),
        (1, 2, ", or null", "steps = 1 must be at least 2, or null"),
    ],
)
def test_anything_else_is_not(value: Any, least: int, also: str, said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        arguments.require_whole("steps", value, least, also)
    assert str(error.value) == said


def test_numbers_are_whole_or_broken_and_the_first_that_is_none_is_named() -> None:
    arguments.require_numbers(a=1, b=0.5, c=np.float32(2.0))
    for value in (True, "1", None, 1j):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            arguments.require_numbers(a=1.0, b=value, c=None)
        assert str(error.value) == f"b = {value!r} must be a number"
