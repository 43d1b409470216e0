"""The reference is whole: every module of the library has a place, every key of every config says what it is."""

import re
import sys
from pathlib import Path

import pytest
from test_architecture import ORDER

from edlm.cli import commands

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS / "extensions"))

import config_keys  # noqa: E402


def test_every_module_stands_on_one_page_of_the_reference() -> None:
    pages = "".join(page.read_text("utf-8") for page in (DOCS / "reference" / "api").glob("*.rst"))
    named = re.findall(r"\.\. automodule:: edlm\.([\w.]+)\n", pages)
    assert len(named) == len(set(named))
    assert set(ORDER) <= set(named)


@pytest.mark.parametrize("recipe", commands.recipes())
def test_every_key_of_a_recipe_says_what_it_is_and_what_it_takes(recipe: str) -> None:
    keys = config_keys.keys(recipe)
    assert not [key.path for key in keys if not (key.says and key.accepts)]
    assert len({key.path for key in keys}) == len(keys)


def test_the_table_of_a_recipe_has_what_its_config_says() -> None:
    table = config_keys.section("generate", commands.recipes()["generate"])
    assert "| `stride` | `null` | a whole number of at least 1, or null | how far the window moves on where" in table
    assert "| `seed` | `0` | a whole number of at least 0" in table


def test_comments_behind_a_key_and_above_it_are_its_own() -> None:
    text = "# a config\n\na: 1 # one\nb:\n  # two\n  # lines\n  c: 2\n\n# three\nd: 3\n"
    assert config_keys.comments(text) == {"a": "one", "b": "", "b.c": "two lines", "d": "three"}
