"""The keys of what travels between stages: each is the name of its constant, and has the documented shape."""

import re
from pathlib import Path

import pytest

from edlm import contracts

SOURCE = Path(contracts.__file__).read_text("utf-8")
KEYS = dict(re.findall(r'^([A-Z_0-9]+) = "(\w+)"', SOURCE, flags=re.MULTILINE))
COMMENTS = dict(re.findall(r'^[A-Z_0-9]+ = "(\w+)"  # \(([^)]*)\)', SOURCE, flags=re.MULTILINE))


def test_a_key_is_the_name_of_its_constant() -> None:
    assert len(KEYS) > 50
    for constant, key in KEYS.items():
        assert getattr(contracts, constant) == key == constant.lower()


def test_every_key_has_a_shape_and_nothing_else_has() -> None:
    assert contracts.SHAPES.keys() == set(KEYS.values())


@pytest.mark.parametrize("key", COMMENTS)
def test_a_key_has_the_shape_that_its_comment_says(key: str) -> None:
    letters = [letter.strip() for letter in COMMENTS[key].split(",") if letter.strip()]
    assert contracts.SHAPES[key].split() == letters
