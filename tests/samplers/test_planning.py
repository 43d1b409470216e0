"""What a text takes where every pass reveals as many tokens, counted by hand."""

import pytest

from edlm.process import schedules
from edlm.samplers import planning, plans
from edlm.samplers.planning import Expected

LINEAR = schedules.log_linear()


@pytest.mark.parametrize(
    ("length", "count", "window", "expected"),
    [
        (4, 1, (0.0, 1.0), Expected(4.0, 4.0, 1.0, 1.0)),
        (10, 4, (0.0, 1.0), Expected(3.0, 3.0, 1.0, 1.0)),
        (10, 4, (0.5, 1.0), Expected(3.0, 2.0, 0.8, 1.0)),  # passes start with 10, 6 and 2 masks
        (10, 4, (0.0, 0.3), Expected(3.0, 1.0, 0.2, 1.0)),
        (10, 4, (0.3, 0.5), Expected(3.0, 0.0, 0.0, 0.0)),
        (3, 8, (0.0, 1.0), Expected(1.0, 1.0, 1.0, 1.0)),
        (3, 3, (0.0, 1.0), Expected(1.0, 1.0, 1.0, 1.0)),
    ],
)
def test_passes_inside_a_window_and_what_they_reveal(
    length: int, count: int, window: tuple[float, float], expected: Expected
) -> None:
    assert planning.by_count(LINEAR, length, window, count) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("plan", "kinds"),
    [
        (plans.Grid(4), (True, False, True)),
        (plans.TokensPerPass(2), (True, False, True)),
        (plans.LeftToRight(), (True, True, False)),
        (plans.EntropyBound(), (False, True, False)),
    ],
)
def test_a_plan_is_drawn_or_a_rule_or_both(plan: planning.Plan, kinds: tuple[bool, bool, bool]) -> None:
    assert (planning.is_drawn(plan), planning.is_rule(plan), planning.is_random(plan)) == kinds
    assert not planning.is_drawn(type(plan))  # type: ignore[arg-type]
    assert not planning.is_rule(type(plan))  # type: ignore[arg-type]


def test_a_plan_has_its_own_name_or_the_one_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PLANS", {})
    planning.register(plans.Grid)
    planning.register(plans.Grid, "other")
    assert set(planning.PLANS) == {"grid", "other"}
