"""Lists of values in a sweep: which samplers they stand for, in which order, and what is no sweep."""

from typing import Any

import pytest

from edlm.frontier import sweeps

GRID = {"name": "grid", "num_steps": 8}
BASE = "sweeps[0]"


def of(**sweep: Any) -> list[dict[str, Any]]:
    sweeps.check_sweep(BASE, sweep)
    return list(sweeps.samplers(sweep))


def test_values_by_themselves_are_one_sampler() -> None:
    whole = {"plan": GRID, "window": [0.5, 1.0], "candidates": 4, "selection": "sir", "correction": None}
    assert of(**whole) == [whole]
    assert of() == [{}]
    assert of(controls=["zero"], plan=GRID) == [{"plan": GRID}]


def test_lists_are_every_combination_the_slowest_axis_first() -> None:
    found = of(proposal={"temperature": [0.5, 1.0]}, candidates=[1, 2], plan={"name": "grid", "num_steps": [4, 8]})
    assert found == [
        {"plan": {"name": "grid", "num_steps": steps}, "candidates": k, "proposal": {"temperature": temperature}}
        for steps in (4, 8)
        for k in (1, 2)
        for temperature in (0.5, 1.0)
    ]


@pytest.mark.parametrize(
    ("window", "windows"),
    [
        ([0.0, 0.5], [[0.0, 0.5]]),
        ([[0.0, 0.5]], [[0.0, 0.5]]),
        ([[0.0, 0.5], [0.5, 1.0]], [[0.0, 0.5], [0.5, 1.0]]),
    ],
)
def test_a_window_is_a_list_itself(window: list[Any], windows: list[Any]) -> None:
    assert [each["window"] for each in of(window=window)] == windows


@pytest.mark.parametrize(
    ("times", "plans"),
    [([1.0, 0.5, 0.0], [[1.0, 0.5, 0.0]]), ([[1.0, 0.0], [1.0, 0.5, 0.0]], [[1.0, 0.0], [1.0, 0.5, 0.0]])],
)
def test_so_are_the_times_of_a_plan(times: list[Any], plans: list[Any]) -> None:
    found = list(sweeps.samplers({"plan": {"name": "times", "at": times}}))
    assert [each["plan"]["at"] for each in found] == plans


def test_sections_may_stand_in_lists_with_lists_inside() -> None:
    plans: list[Any] = [{"name": "grid", "num_steps": [4, 8]}, {"name": "tokens_per_pass"}]
    assert [each["plan"] for each in of(plan=plans)] == [
        {"name": "grid", "num_steps": 4},
        {"name": "grid", "num_steps": 8},
        {"name": "tokens_per_pass"},
    ]
    until = of(candidates=[2, {"ess": [2.0, 3.0], "at_most": 8}])
    assert [each["candidates"] for each in until] == [2, *({"ess": ess, "at_most": 8} for ess in (2.0, 3.0))]


@pytest.mark.parametrize(("value", "found"), [(0.5, [0.5]), ([1, 0.5], [1.0, 0.5])])
def test_an_ar_model_by_itself_has_temperatures(value: Any, found: list[float]) -> None:
    sweep = {"ar": {"temperature": value}}
    sweeps.check_sweep(BASE, sweep)
    assert sweeps.temperatures(sweep) == found
    assert sweeps.called(sweep) == []


def test_energies_and_components_are_found_by_their_names() -> None:
    own = {"_component_": "a.B"}
    sweep = {"correction": [{"name": "energy", "called": ["learned", "other"]}, None, own, {"name": "energy"}]}
    assert sweeps.called(sweep) == ["learned", "other"]
    assert sweeps.called({"correction": [{"name": "energy", "called": "a"}] * 2}) == ["a"]
    inside = {"name": "energy", "energy": own}
    for correction, found in ((None, None), (own, own), (inside, inside), ({"name": "energy", "energy": "x"}, None)):
        assert sweeps.component({"correction": correction}) == found
    assert sweeps.component({}) is None


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        (3, "sweeps[0] = 3 must be a section with the axes of a sampler, or with `ar`"),
        (None, "sweeps[0] = None must be a section with the axes of a sampler, or with `ar`"),
        ({"plans": GRID}, "sweeps[0].plans"),
        ({"candidates": []}, "sweeps[0]: an empty list is no value, and leaves no sampler"),
        ({"candidates": 0}, "sweeps[0].candidates"),
        ({"candidates": [1, 0]}, "sweeps[0].candidates"),
        ({"candidates": {"ess": 0.0, "at_most": 2}}, "sweeps[0].candidates"),
        ({"candidates": {"ess": 1.5, "at_most": 0}}, "sweeps[0].candidates"),
        ({"candidates": {"ess": 1.5, "at_most": 4, "first": 0}}, "sweeps[0].candidates"),
        ({"candidates": {"at_most": 4}}, "sweeps[0].candidates"),
        ({"plan": 4}, "sweeps[0].plan = 4 must be a section with a name, one of "),
        ({"plan": {"name": "lost"}}, "sweeps[0].plan.name"),
        ({"plan": {"name": "grid", "num_steps": 0}}, "sweeps[0].plan"),
        ({"plan": {"name": "grid", "steps": 8}}, "sweeps[0].plan.steps"),
        ({"correction": "energy"}, "sweeps[0].correction = 'energy' must be a section with a name, one of "),
        ({"correction": {"name": "lost"}}, "sweeps[0].correction.name"),
        ({"remasking": {"name": "cap", "eta": 2.0}}, "sweeps[0].remasking: "),
        ({"remasking": {"name": "cap", "eta": "x"}}, "sweeps[0].remasking"),
        ({"remasking": {"name": "cap", "beta": 0.1}}, "sweeps[0].remasking.beta"),
        ({"selection": "lost"}, "sweeps[0].selection"),
        ({"proposal": {"temperature": 0.0}}, "sweeps[0].proposal.temperature"),
        ({"proposal": {"nucleus": 0}}, "sweeps[0].proposal.nucleus"),
        ({"proposal": {"nucleus": 1.1}}, "sweeps[0].proposal.nucleus"),
        ({"proposal": 1.0}, "sweeps[0].proposal"),
        ({"window": [0.6, 0.5]}, "sweeps[0].window"),
        ({"controls": ["lost"]}, "sweeps[0].controls"),
        ({"controls": "zero"}, "sweeps[0].controls"),
        ({"ar": {"temperature": []}}, "sweeps[0].ar.temperature"),
        ({"ar": {"temperature": [1.0, 0.0]}}, "sweeps[0].ar.temperature"),
        ({"ar": {}}, "sweeps[0].ar"),
        ({"ar": {"temperature": 1.0}, "plan": GRID}, "sweeps[0].plan"),
        ({"plan": {"_component_": 3}}, "sweeps[0].plan"),
    ],
)
def test_what_is_no_sweep_is_refused_by_its_key(sweep: Any, said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        sweeps.check_sweep(BASE, sweep)
    assert said in str(error.value)
