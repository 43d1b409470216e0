"""Keys of a `config.json`: rotary positions in either form, and what is refused by name."""

from pathlib import Path
from typing import Any

import pytest

from edlm.weights import config_keys

AT = Path("m")
YARN = {
    **{"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0},
    **{"mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 64, "truncate": True},
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({}, {"rope_type": "default", "rope_theta": 10.0}),
        ({"rope_theta": 5.0}, {"rope_type": "default", "rope_theta": 5.0}),
        ({"rope_theta": 5.0, "rope_scaling": None}, {"rope_type": "default", "rope_theta": 5.0}),
        (
            {"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0},
        ),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10.0},
        ),
        ({"rope_parameters": {"rope_theta": 7.0}}, {"rope_type": "default", "rope_theta": 7.0}),
        ({"rope_parameters": {**LLAMA3, "rope_theta": 7.0}, "rope_theta": 7.0}, {**LLAMA3, "rope_theta": 7.0}),
        ({"rope_scaling": LLAMA3, "rope_parameters": {**LLAMA3, "rope_theta": 7.0}}, {**LLAMA3, "rope_theta": 7.0}),
        ({"rope_parameters": YARN}, {**YARN, "rope_theta": 10.0}),
        ({"rope_parameters": {**YARN, "mscale": None}}, {**YARN, "mscale": None, "rope_theta": 10.0}),
    ],
)
def test_rotary_positions_are_read_in_either_form(config: dict[str, Any], found: dict[str, Any]) -> None:
    expected = {key: value for key, value in found.items() if value is not None}
    assert config_keys.rope(AT, config, 10.0) == expected


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"rope_scaling": 3}, "rope_scaling = 3 must be a section"),
        ({"rope_parameters": [1]}, "rope_parameters = [1] must be a section"),
        (
            {"rope_theta": 5.0, "rope_parameters": {"rope_theta": 7.0}},
            "rope_theta is given twice, as [5.0, 7.0]",
        ),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}},
            "rope_scaling has two types, yarn and linear",
        ),
        (
            {"rope_scaling": {"type": "cubic"}},
            "rope_scaling: rope_type = 'cubic' must be one of default, linear, dynamic, yarn, llama3",
        ),
        (
            {"rope_scaling": {"type": "linear", "beta_fast": 1.0, "factor": 2.0}},
            "rope_scaling: beta_fast is not known of rope_type = 'linear'",
        ),
        ({"rope_parameters": {"factor": 2.0}}, "rope_parameters: factor is not known of rope_type = 'default'"),
        (
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "rope_parameters: partial_rotary_factor is not known of rope_type = 'default'",
        ),
        (
            {"rope_parameters": {"full": {"rope_type": "default"}, "sliding": {"rope_type": "cubic"}}},
            "rope_parameters.sliding: rope_type = 'cubic' must be one of default, linear, dynamic, yarn, llama3",
        ),
    ],
)
def test_what_is_not_known_of_them_is_named(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        config_keys.rope(AT, config)
    assert str(error.value) == f"m/config.json: {said}"


def test_a_part_of_a_head_that_is_all_of_it_is_no_key() -> None:
    config_keys.require_type(AT, "rope_parameters", {"partial_rotary_factor": 1.0, "factor": None})


@pytest.mark.parametrize(
    ("config", "types"),
    [
        ({}, set()),
        ({"rope_scaling": {}}, set()),
        ({"rope_scaling": {"type": "linear"}, "rope_parameters": {"rope_theta": 3.0}}, {"linear", "default"}),
        ({"rope_parameters": {"full": {"rope_type": "yarn"}, "sliding": {"rope_theta": 1.0}}}, {"yarn", "default"}),
        ({"rope_parameters": {"full": {"rope_type": "yarn"}, "none": None}}, {"yarn"}),
        ({"rope_parameters": {"full": {"rope_type": "yarn"}, "rope_theta": 3.0}}, {"default"}),
    ],
)
def test_every_type_is_named(config: dict[str, Any], types: set[str]) -> None:
    assert config_keys.types(config) == types


def test_a_key_that_is_on_and_that_nothing_reads_is_refused_and_notes_are_not() -> None:
    notes = dict.fromkeys(config_keys.HARMLESS, "on")
    config_keys.require_known(AT, {**notes, "model_type": "a", "b": None, "c": False, "d": 1}, {"d"})
    many = dict.fromkeys("fedcba", "x" * 70)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        config_keys.require_known(AT, {**many, "e": 2, "d": 1}, {"d"})
    told = ", ".join(f"{name} = {2 if name == 'e' else 'x' * 60}" for name in "abcef")
    assert str(error.value) == f"m/config.json: not known, and may change the network: {told}"


@pytest.mark.parametrize("value", [{}, {"a": 1}, [], ["default"], "1e4", True], ids=str)
@pytest.mark.parametrize("section", [None, "rope_scaling", "rope_parameters"])
def test_a_base_of_rotary_positions_that_is_no_number_is_named(value: object, section: str | None) -> None:
    config = (
        {"rope_theta": value}
        if section is None
        else {section: {"rope_type": "default", "rope_theta": value, "factor": None}}
    )
    with pytest.raises(ValueError, match=r"rope_theta = .* must be a number"):
        config_keys.rope(AT, config)


@pytest.mark.parametrize("value", [{"a": 1}, ["linear"], 3], ids=str)
@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_a_type_of_rotary_positions_that_is_no_word_is_named(value: object, key: str) -> None:
    with pytest.raises(ValueError, match=r"rope_type = .* must be one of"):
        config_keys.rope(AT, {"rope_scaling": {key: value, "factor": 2.0}})
