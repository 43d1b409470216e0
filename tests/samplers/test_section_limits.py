"""The limits of the numbers and words in a sampler's section: what lies beyond is refused with its key, unbuilt."""

import math
from typing import Any

import pytest

from edlm.process import particles
from edlm.samplers import configs

UNTIL = {"ess": 1.5, "at_most": 4, "first": 1}
LIMITS: dict[str, tuple[Any, list[Any], list[Any]]] = {  # the key, what is accepted there, and what is not
    "proposal.temperature": (lambda v: {"proposal": {"temperature": v}}, [5e-324, 1e300], [0.0, math.inf, "1", True]),
    "proposal.nucleus": (lambda v: {"proposal": {"nucleus": v}}, [5e-324, 1.0], [0.0, 1.0 + 1e-9, None]),
    "correction.temperature": (
        lambda v: {"correction": {"temperature": v}},
        [particles.COLDEST, 1e300],
        [0.0, particles.COLDEST / 2, math.inf, "1"],
    ),
    "candidates": (lambda v: {"candidates": v}, [1, 2, UNTIL], [0, 1.5, "1", True, None]),
    "candidates.ess": (lambda v: {"candidates": {**UNTIL, "ess": v}}, [5e-324, 9.0], [0.0, -1.0, "1"]),
    "candidates.at_most": (lambda v: {"candidates": {**UNTIL, "at_most": v}}, [1], [0, 1.5]),
    "candidates.first": (lambda v: {"candidates": {**UNTIL, "first": v}}, [1], [0, 1.5]),
    "window": (lambda v: {"window": v}, [[0, 1], [0.5, 0.5]], [[0.6, 0.5], [0, 1.1], [0], 1, None]),
    "selection": (lambda v: {"selection": v}, ["sir", "imh", "greedy", "speculative"], ["best", 1, None]),
    "remasking": (lambda v: {"remasking": v}, [None, {"name": "cap", "eta": 1.0}], [{"name": "cup"}, "cap", 1]),
    "plan": (lambda v: {"plan": v}, [{"name": "grid", "num_steps": 1}], [{"name": "net"}, "grid", 1, None]),
}
SHORT: dict[str, tuple[list[Any], list[Any]]] = {
    "num_steps": ([None, 1], [0, 1.5]),
    "tokens_per_pass": ([1], [0, None]),
    "num_particles": ([1], [0, None]),
    "window": ([[0, 1]], [[1, 0], None]),
    "target_ess": ([None, 5e-324], [0.0]),
    "selection": (["sir", "greedy"], ["best", {"_component_": "a.B"}]),
    "energy_temperature": ([particles.COLDEST], [particles.COLDEST / 2]),
    "temperature": ([5e-324], [0.0]),
    "nucleus": ([5e-324, 1.0], [0.0, 1.0 + 1e-9]),
}


@pytest.mark.parametrize("key", LIMITS)
def test_a_section_is_checked_before_anything_is_built(key: str) -> None:
    section, accepted, refused = LIMITS[key]
    for value in accepted:
        configs.section("sampler", section(value))
    for value in refused:
        with pytest.raises(ValueError, match=rf"^sampler\.{key.partition('.')[0]}\b"):
            configs.section("sampler", section(value))


@pytest.mark.parametrize("key", SHORT)
def test_so_are_the_short_keys_of_a_recipe(key: str) -> None:
    accepted, refused = SHORT[key]
    for value in accepted:
        configs.SHORT_KEYS[key](key, value)
    for value in refused:
        with pytest.raises(ValueError, match=rf"^{key}\b"):
            configs.SHORT_KEYS[key](key, value)


def test_every_key_stands_in_the_tables() -> None:
    assert {key.partition(".")[0] for key in LIMITS} == {*configs.SECTION, "correction"}
    assert {*SHORT, "sampler"} == set(configs.SHORT_KEYS)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"plan": {"name": "grid", "num_steps": 8}, "candidates": 3}, "grid num_steps=8, candidates=3"),
        ({"candidates": {"ess": 2.0, "at_most": 4}}, "ess=2.0 at_most=4"),
        ({"correction": {"_component_": "a.b:C", "weight": 2}}, "C weight=2"),
        ({"window": [0, 1]}, "window=[0, 1]"),
    ],
)
def test_a_section_is_said_in_a_few_words(section: dict[str, Any], said: str) -> None:
    assert configs.short(section) == said


def test_a_component_is_called_by_its_last_name_and_the_plain_values_beside_it() -> None:
    own = {"_component_": "a.b:Mine", "n": 2, "to": "x", "share": 0.5, "list": [1], "_hidden": 1}
    assert configs.called(own) == "Mine n=2 to=x share=0.5"


def test_a_component_is_offered_the_short_keys_that_are_given() -> None:
    settings = {"num_steps": 8, "tokens_per_pass": 2, "energy_temperature": 0.5, "temperature": 0.7, "nucleus": 1.0}
    told = {"num_steps": 8, "tokens_per_pass": 2, "temperature": 0.5}
    assert configs.offers(settings) == told
    assert configs.offers({**settings, "num_steps": None}, mask_id=3, vocabulary=None) == {
        **{"tokens_per_pass": 2, "temperature": 0.5, "mask_id": 3},
    }


@pytest.mark.parametrize(
    ("values", "named"),
    [(None, False), ({}, False), ({"temperature": 0.5}, False), ({"name": "joint"}, True)]
    + [({key: "x"}, True) for key in ("_component_", "energy")],
)
def test_a_correction_is_named_by_a_name_a_component_or_an_energy(values: Any, named: bool) -> None:
    assert configs.names_correction(values) == named
