"""The reference is whole: every module of the library has a place, every key of every config says what it is."""

from pathlib import Path

import key_tables
import modules
import pytest
from layout import ORDER

import edlm
from edlm.cli import commands

DOCS = Path(__file__).parents[1] / "docs"


def test_every_module_stands_on_one_page_of_the_reference() -> None:
    shown = [name.removeprefix("edlm.") for subject in modules.SUBJECTS for name in modules.modules(subject)]
    assert len(shown) == len(set(shown))
    assert set(ORDER) <= set(shown)


def test_every_subject_has_a_page_that_is_listed() -> None:
    folder = DOCS / "reference" / "api"
    assert {page.stem for page in folder.glob("*.rst")} == set(modules.SUBJECTS)
    listed = (folder / "index.md").read_text("utf-8").partition(":maxdepth: 1\n\n")[2].split()
    assert set(listed) - {"```"} == set(modules.SUBJECTS)


def test_the_face_is_listed_with_what_each_name_says() -> None:
    assert [line.split("`")[1].split(" ")[0] for line in modules.face()] == [f"edlm.{name}" for name in edlm.__all__]


@pytest.mark.parametrize("recipe", commands.recipes())
def test_every_key_of_a_recipe_says_what_it_is_and_what_it_takes(recipe: str) -> None:
    keys = key_tables.keys(recipe)
    assert not [key.path for key in keys if not (key.says and key.accepts)]
    assert len({key.path for key in keys}) == len(keys)


def test_the_table_of_a_recipe_has_what_its_config_says() -> None:
    table = key_tables.section("generate", commands.recipes()["generate"])
    [stride] = [
        line for line in table.splitlines() if line.startswith("| `stride` | `null` | how far the window moves")
    ]
    assert stride.endswith(" *Takes a whole number of at least 1, or null.* |")
    assert "texts. *Takes a whole number of at least 0.* |" in table


def test_comments_behind_a_key_and_above_it_are_its_own() -> None:
    text = "# a config\n\na: 1 # one\nb:\n  # two\n  # lines\n  c: 2\n\n# three\nd: 3\n"
    assert key_tables.comments(text) == {"a": "one", "b": "", "b.c": "two lines", "d": "three"}
