"""Points of a frontier: the front, the cost of equal quality, and their errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edlm import quality
from edlm.recipes import _frontier_points
from edlm.recipes._frontier_grid import Setting
from edlm.recipes._frontier_points import Point, Resampled, at, least_cost, pareto

SIR = Setting("sir", "learned", 4, 3, (0.0, 1.0), 1.0)


def test_the_front_of_points_known_by_hand() -> None:
    points = [(1.0, 5.0), (2.0, 3.0), (2.0, 4.0), (3.0, 3.0), (4.0, 1.0), (4.0, 1.0), (0.0, math.nan)]
    assert pareto(points) == [True, True, False, False, True, True, False]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_is_those_that_none_beats_and_beats_all_others(points: list[tuple[int, int]]) -> None:
    best = [point for point, on in zip(points, pareto(points), strict=True) if on]
    assert best
    for point in points:
        beaten = any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in best)
        assert beaten == (point not in best)


@pytest.mark.parametrize(
    ("wanted", "cost", "bound"),
    [
        (4.0, 1.0, "="),
        (5.0, 1.0, "<"),
        (3.0, 2.0, "="),
        (2.0, 4.0, "="),
        (1.5, 8.0, "="),
        (1.0, 16.0, "="),
        (0.9, 16.0, ">"),
    ],
)
def test_the_least_cost_on_a_curve_known_by_hand(wanted: float, cost: float, bound: str) -> None:
    """Values 4, 2, 1 at costs 1, 4, 16, given in any order: linear in value and log cost."""
    assert least_cost([1.0, 4.0, 2.0], [16.0, 1.0, 4.0], wanted) == (pytest.approx(cost), bound)


def test_the_first_time_a_noisy_curve_is_low_enough_counts() -> None:
    assert least_cost([4.0, 2.0, 3.0, 1.0], [1.0, 4.0, 16.0, 64.0], 2.5)[0] == pytest.approx(
        math.exp(0.75 * math.log(4))
    )


def test_a_curve_is_read_between_its_points_and_nowhere_else() -> None:
    places, values = [3.0, 1.0, 2.0], [0.0, 10.0, 20.0]
    assert [at(places, values, place) for place in (1.0, 1.5, 2.0, 2.75, 3.0)] == [10.0, 15.0, 20.0, 5.0, 0.0]
    assert at(places, values, 0.99) is at(places, values, 3.01) is None
    assert (at([2.0], [7.0], 2.0), at([2.0, 2.0], [7.0, 7.0], 2.0)) == (7.0, 7.0)


def synthetic(setting: Setting, bits: float, entropy: float, seconds: float) -> tuple[Point, Resampled]:
    """A point of ten equal texts: every replicate says the same."""
    record = {
        "nll": [bits * math.log(2) * 5] * 10,
        "characters": [5] * 10,
        "judged_tokens": [5] * 10,
        "entropy": [entropy] * 10,
        "divergences": {},
        "passes": [seconds * 100] * 10,
        "calls": [seconds * 200] * 10,
        "seconds": seconds,
    }
    return _frontier_points.point(str(setting), setting, "", record, 0, 4)


def test_speed_up_at_equal_bits_and_entropy_on_curves_known_by_hand() -> None:
    """Plain bits are 10 - log2 T at temperature 1, entropy 3, and 2 less at temperature 0.5, entropy 2."""
    plain = [
        synthetic(Setting.plain(steps, temperature), 10 - math.log2(steps) - loss, entropy, steps / 100)
        for steps in (2, 8, 32)
        for temperature, loss, entropy in ((1.0, 0.0, 3.0), (0.5, 2.0, 2.0))
    ]
    energy = synthetic(SIR, 7.0, 2.5, 0.02)  # as good as T = 8, or at its entropy as good as T = 4
    beyond = synthetic(SIR._replace(num_particles=9), 1.0, 3.5, 0.02)
    points = {own.name: own for own in _frontier_points.with_comparisons([*plain, energy, beyond])}
    found = points[str(SIR)].speedups
    for cost in ("seconds", "passes", "calls"):
        assert found[f"equal bits, {cost}"] == (pytest.approx(4.0), pytest.approx(0.0, abs=1e-9), "=", 1.0)
        matched = found[f"equal bits and entropy, {cost}"]
        assert matched == (pytest.approx(2.0), pytest.approx(0.0, abs=1e-9), "=", 1.0)
    other = points[str(beyond[0].setting)].speedups
    assert other["equal bits, seconds"] == (pytest.approx(16.0), 0.0, ">", 0.0)
    assert other["equal bits and entropy, seconds"] is None, "no plain setting has that entropy"
    assert points[str(Setting.plain(2))].speedups == {}
    assert points[str(beyond[0].setting)].fronts == {"entropy", "seconds", "passes", "calls"}
    assert points[str(SIR)].fronts == frozenset()
    assert points[str(Setting.plain(32, 0.5))].fronts == frozenset(), "the lowest entropy is no merit"


def test_the_error_of_a_speed_up_is_that_of_texts_drawn_together() -> None:
    """Bits of all settings move by one amount per text: each figure has an error, what is gained has none."""
    shift = [0.1 * i for i in range(10)]

    def moved(setting: Setting, bits: float, seconds: float) -> tuple[Point, Resampled]:
        nats = [(bits + each) * math.log(2) for each in shift]
        record = {"nll": nats, "characters": [1] * 10, "judged_tokens": [1] * 10, "entropy": [1.0] * 10}
        record |= {"divergences": {}, "passes": [1] * 10, "calls": [1] * 10, "seconds": seconds}
        return _frontier_points.point("", setting, "", record, 0, 50)

    curve = [moved(Setting.plain(steps), bits, float(steps)) for steps, bits in ((1, 4.0), (4, 2.0))]
    own, *_ = _frontier_points.with_comparisons([moved(SIR, 3.0, 1.0), *curve])
    assert own.figures["bits_per_character"].standard_error > 0.05
    gain = own.speedups["equal bits, seconds"]
    assert gain is not None
    assert (gain.ratio, gain.bound, gain.inside) == (pytest.approx(2.0), "=", 1.0)
    assert gain.error < 1e-9


def test_errors_are_those_of_the_bootstrap() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    expected = quality.bootstrap(quality.mean(values), [4], 7, 50)
    weights = quality.replicate_weights(4, 7, 50)
    assert float((weights @ values / 4).std()) == pytest.approx(expected.standard_error)
    with pytest.raises(ValueError, match="at least 2 texts, got 1"):
        quality.replicate_weights(1, 0)
