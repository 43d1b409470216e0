"""The cases and sweeps of a config: which are run, with which sizes, and what makes none."""

from typing import Any

import pytest

from edlm.benchmark import cases

PLAIN: dict[str, Any] = {
    **{"vocab_size": 9, "length": 4, "rows": 2, "num_steps": 8, "num_particles": 1, "method": "plain"},
    **{"repeats": 3, "textbook_steps": None, "target": 2.0, "memory_target": None, "machinery_target": 0.5},
}
ENERGY = {**PLAIN, "method": "importance", "num_particles": 4, "textbook_steps": 8, "target": None}


def of(*every: dict[str, Any], only: list[int] | None = None) -> Any:
    return cases.chosen({"cases": list(every), "only": only})


def test_all_cases_are_run_or_those_that_are_named_in_their_order() -> None:
    targets = {"target": 2.0, "memory_target": None, "machinery_target": 0.5}
    first, second = of(PLAIN, ENERGY)
    assert first[1] == targets
    assert second[1] == {**targets, "target": None}
    assert [case.num_particles for case, _ in of(PLAIN, ENERGY)] == [1, 4]
    assert of(PLAIN, ENERGY, only=[1, 0]) == [second, first]
    assert of(PLAIN, ENERGY, only=[]) == []
    assert first[0]._asdict().items() >= {key: PLAIN[key] for key in ("length", "rows", "repeats", "method")}.items()


def test_a_number_that_no_case_has_is_named() -> None:
    with pytest.raises(ValueError, match=r"^only = \[0, 2\] names case 2, and they are numbered 0\.\.1$"):
        of(PLAIN, ENERGY, only=[0, 2])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_particles": 2}, "cases[1].num_particles = 2 must be 1 for the plain method"),
        ({"textbook_steps": 9}, "cases[1].textbook_steps = 9 must be at most num_steps = 8"),
    ],
)
def test_a_case_that_cannot_be_is_named_by_its_key(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        of(PLAIN, {**PLAIN, **changed})
    assert str(error.value) == said
    of(PLAIN, {**PLAIN, "textbook_steps": 8})


@pytest.mark.parametrize("axis", cases.AXES)
def test_a_sweep_has_a_case_at_each_value_of_its_list(axis: str) -> None:
    found, every = cases.sweep("growth[0]", {**ENERGY, "textbook_steps": None, axis: [8, 9, 12]})
    assert found == axis
    assert [getattr(case, axis) for case in every] == [8, 9, 12]
    assert all(case.repeats == 3 for case in every)


ONE = "needs one, of num_steps, length, num_particles, rows, vocab_size"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, f"growth[0] has 0 lists (), and {ONE}"),
        (
            {"rows": [1, 2], "length": [1, 2]},
            f"growth[0] has 2 lists (length, rows), and {ONE}",
        ),
        ({"rows": [2, 1]}, "growth[0].rows = [2, 1] must rise"),
        ({"rows": [1, 1]}, "growth[0].rows = [1, 1] must rise"),
        ({"num_particles": [1, 2]}, "growth[0].num_particles = 2 must be 1 for the plain method"),
    ],
)
def test_what_is_no_sweep_is_named_by_its_key(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        cases.sweep("growth[0]", {**PLAIN, **changed})
    assert str(error.value) == said


@pytest.mark.parametrize(("value", "right"), [(3, True), ([3, 4], True), (2, False), ([3], False), ([3, 2], False)])
def test_a_size_of_a_sweep_is_a_number_or_several(value: Any, right: bool) -> None:
    if right:
        cases.SWEEP["vocab_size"]("growth[0].vocab_size", value)
        return
    with pytest.raises(ValueError, match=r"^growth\[0\]\.vocab_size"):
        cases.SWEEP["vocab_size"]("growth[0].vocab_size", value)
