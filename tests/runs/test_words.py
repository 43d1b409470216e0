"""The words of a command line: a text is what was written, all else is YAML, and what is neither gets its hint."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edlm.runs import hints, settings, words

SCHEMA: settings.Schema = {
    "prompt": settings.optional(settings.text),
    "steps": settings.integer(1),
    "network": settings.component(),
    "samples": settings.optional(settings.section({"name": settings.text, "seed": settings.seed})),
    "energy": settings.optional(settings.either(settings.text, settings.component())),
}
CONFIG = """\
prompt: null
steps: 3
network: {_component_: a.b, hidden_size: 3}
samples: {name: q, seed: 1}
energy: runs/x
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "own.yaml"
    path.write_text(CONFIG)
    return path


def read(config: Path, *given: str) -> dict[str, Any]:
    return words.resolved(words.read(["--config", str(config), *given], lambda *word: settings.is_text(SCHEMA, *word)))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "#1",
            "ROMEO: x",
            "42",
            "yes",
            " a b ",
            "a=b",
            "=",
            "a_b",
            r"a\_b",
            "${steps}",
            r"\${x}",
            r"\\${",
            "[1",
            "'q'",
        ),
        *("~", "!!int x", "a\nb", "None", "1e3", "{a: b}", "&a", "- x", "\t", "é", "a # b"),
    ],
)
@pytest.mark.parametrize("key", ["prompt", "samples.name"])
def test_a_text_is_what_was_written(config: Path, key: str, text: str) -> None:
    found: Any = read(config, f"{key}={text}")
    for name in key.split("."):
        found = found[name]
    assert found == text


@given(text=st.text(min_size=1).filter(lambda text: text != "null"))
def test_any_text_is_what_was_written(config: Path, text: str) -> None:
    assert read(config, f"prompt={text}")["prompt"] == text


@pytest.mark.parametrize("word", ["prompt=null", "prompt="])
def test_null_is_no_text(config: Path, word: str) -> None:
    assert read(config, "prompt=x", word)["prompt"] is None


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("steps=5", "steps", 5),
        ("steps=None", "steps", None),
        ("steps=2 # two", "steps", 2),
        ("network=c.d", "network", {"_component_": "c.d", "hidden_size": 3}),
        ("network.path=a #1", "network", {"_component_": "a.b", "hidden_size": 3, "path": "a #1"}),
        ("network.path=#1", "network", {"_component_": "a.b", "hidden_size": 3, "path": "#1"}),
        ("network.path= a=b", "network", {"_component_": "a.b", "hidden_size": 3, "path": " a=b"}),
        ("network.path='3'", "network", {"_component_": "a.b", "hidden_size": 3, "path": "3"}),
        ("network.size=${steps}", "network", {"_component_": "a.b", "hidden_size": 3, "size": 3}),
        ("~network.hidden_size", "network", {"_component_": "a.b"}),
        ("samples.seed=4", "samples", {"name": "q", "seed": 4}),
        ("samples=null", "samples", None),
        ("energy={_component_: e}", "energy", {"_component_": "e"}),
        ("energy=42", "energy", "42"),
    ],
)
def test_all_else_is_yaml(config: Path, word: str, key: str, value: object) -> None:
    assert read(config, word)[key] == value


@pytest.mark.parametrize("word", ["", "~", "null", "Null", "NULL", "None"])
@pytest.mark.parametrize("key", ["steps", "network.path", "network"])
def test_nothing_is_written_in_any_word_of_yaml(config: Path, key: str, word: str) -> None:
    """A component that is given as nothing is none, and not one of that name."""
    found: Any = read(config, f"{key}={word}")
    for name in key.split("."):
        found = found[name]
    assert found is None
    assert read(config, "steps= null ")["steps"] is None


@pytest.mark.parametrize(
    ("value", "read_as"),
    [
        ("'a #1'", "a #1"),
        ('"a #1"', "a #1"),
        ("!!str 3", "3"),
        ("[a, b]", ["a", "b"]),
        ("{a: 1}", {"a": 1}),
        ("a #1", "a #1"),
        ("a ", "a "),
        (" 3", 3),
        ("#", "#"),
    ],
)
def test_of_a_quoted_value_the_quotes_are_taken_off_and_of_no_other_anything(
    config: Path, value: str, read_as: object
) -> None:
    assert read(config, f"network.path={value}")["network"]["path"] == read_as


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--steps", "3"], "--steps is no option; a setting is given as steps=3"),
        (["--steps=3"], "--steps=3 is no option; a setting is given as steps=3"),
        (["--overwrite", "seed=1"], "--overwrite is no option; a setting is given as overwrite=true"),
        (["-seed", "1"], "-seed is no option; a setting is given as seed=1"),
        (["steps", "3"], "'steps' must be key=value; a setting is given as steps=3"),
        (["steps", "=", "3"], "'steps' must be key=value; a setting is given as steps=3"),
        (["steps"], "'steps' must be key=value"),
        (["=3"], "'=3' must be key=value"),
        (["--help"], "--help: `edlm run RECIPE --help` shows what a recipe does, and its keys"),
        (["~nothing"], "~nothing: the config has no such key to leave out"),
        (["steps=[3"], "steps = '[3' must be YAML"),
    ],
)
def test_what_is_no_setting_gets_the_right_one(config: Path, given: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        read(config, *given)


def test_a_config_must_be_named() -> None:
    with pytest.raises(ValueError, match="--config FILE is missing"):
        words.read(["steps=3"], lambda *word: False)


def test_a_key_of_another_section_is_hinted_at_with_its_place() -> None:
    values = {"network": {"hidden_size": 1}, "pretrain": {"network": {"hidden_size": 2}}, "stepz": 3}
    place = "did you mean 'network.hidden_size' or 'pretrain.network.hidden_size'?"
    assert hints.unknown("hidden_size", ["network", "batch_size"], values) == f"hidden_size: unknown key; {place}"
    assert hints.unknown("stepz", ["steps"], values) == "stepz: unknown key; did you mean 'steps'?"
    assert hints.unknown("a.xyzzy", ["steps"]) == "a.xyzzy: unknown key; known keys: steps"
