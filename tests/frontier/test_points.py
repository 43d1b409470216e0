"""Points of a frontier: the front, the cost of equal quality, and their errors."""

import math

import builders
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edlm.evaluation import quality
from edlm.frontier import points as frontier_points
from edlm.frontier.points import Point, Resampled, at, least_cost, pareto
from edlm.models import energies
from edlm.samplers.corrections import OfEnergy
from edlm.samplers.plans import Grid
from edlm.samplers.sampler import Proposal, Sampler

DENOISER = builders.tiny_denoiser(0, 4, vocab_size=5)
SIR = Sampler(DENOISER, Grid(4), correction=OfEnergy(energies.zero(), called="learned"), candidates=3)


def plain_in(num_steps: int, temperature: float = 1.0) -> Sampler:
    return Sampler(DENOISER, Grid(num_steps), Proposal(temperature))


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


def test_a_curve_that_is_one_point_or_flat_is_as_good_as_it_is() -> None:
    assert least_cost([2.0], [3.0], 2.0) == (3.0, "=")
    assert least_cost([2.0, 2.0], [3.0, 5.0], 2.0) == (3.0, "=")


def test_a_curve_is_read_between_its_points_and_nowhere_else() -> None:
    places, values = [3.0, 1.0, 2.0], [0.0, 10.0, 20.0]
    assert [at(places, values, place) for place in (1.0, 1.5, 2.0, 2.75, 3.0)] == [10.0, 15.0, 20.0, 5.0, 0.0]
    assert at(places, values, 0.99) is at(places, values, 3.01) is None
    assert (at([2.0], [7.0], 2.0), at([2.0, 2.0], [7.0, 7.0], 2.0)) == (7.0, 7.0)


def test_the_figures_of_a_record_known_by_hand() -> None:
    """Sums over sums, in bits per character and per token of the judge; ESS of the texts that an energy corrected."""
    record = {
        "nll": [2.0, 4.0, 6.0],
        "characters": [1, 3, 4],
        "judged_tokens": [1, 2, 3],
        "entropy": [1.0, 2.0, 6.0],
        "passes": [4, 4, 7],
        "calls": [2, 3, 4],
        "ess": [1.0, None, 3.0],
        "log_weight_std": [None, None, None],
        "divergences": {"2": [0.25, 0.5]},
        "seconds": 0.5,
    }
    own, drawn = frontier_points.point("x", SIR, "", record, 3, 40)
    means = {name: figure.mean for name, figure in own.figures.items()}
    assert means == {
        "bits_per_character": pytest.approx(12 / 8 / math.log(2)),
        "perplexity": pytest.approx(math.exp(2.0)),
        "entropy": pytest.approx(3.0),
        "passes": pytest.approx(5.0),
        "calls": pytest.approx(3.0),
        "ess": pytest.approx(2.0),
        "divergence_2": 0.25,
    }
    assert [own.cost(name) for name in ("seconds", "passes", "calls")] == pytest.approx([0.5, 5.0, 3.0])
    weights = quality.replicate_weights(3, 3, 40)
    passes = weights @ torch.tensor([4.0, 4.0, 7.0], dtype=torch.float64) / 3
    assert own.figures["passes"].standard_error == pytest.approx(float(passes.std()))
    assert own.figures["divergence_2"] == (0.25, 0.5, 3)
    nats, characters = (torch.tensor(record[key], dtype=torch.float64) for key in ("nll", "characters"))
    bits = (weights @ nats) / (weights @ characters) / math.log(2)
    assert drawn.bits == pytest.approx([12 / 8 / math.log(2), *bits.tolist()])
    assert math.isnan(frontier_points.point("x", SIR, "", {**record, "seconds": None}, 3, 2)[0].cost("seconds"))


def synthetic(setting: Sampler, bits: float, entropy: float, seconds: float) -> tuple[Point, Resampled]:
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
    return frontier_points.point(str(setting), setting, "", record, 0, 4)


def test_speed_up_at_equal_bits_and_entropy_on_curves_known_by_hand() -> None:
    """Plain bits are 10 - log2 T at temperature 1, entropy 3, and 2 less at temperature 0.5, entropy 2."""
    plain = [
        synthetic(plain_in(steps, temperature), 10 - math.log2(steps) - loss, entropy, steps / 100)
        for steps in (2, 8, 32)
        for temperature, loss, entropy in ((1.0, 0.0, 3.0), (0.5, 2.0, 2.0))
    ]
    energy = synthetic(SIR, 7.0, 2.5, 0.02)  # as good as T = 8, or at its entropy as good as T = 4
    beyond = synthetic(SIR.replace(candidates=9), 1.0, 3.5, 0.02)
    real, drawn = synthetic(plain_in(1), 0.1, 9.0, 0.001)
    held_out = real._replace(name="held-out text", setting=None), drawn
    points = {own.name: own for own in frontier_points.with_comparisons([held_out, *plain, energy, beyond])}
    found = points[str(SIR)].speedups
    for cost in ("seconds", "passes", "calls"):
        assert found[f"equal bits, {cost}"] == (pytest.approx(4.0), pytest.approx(0.0, abs=1e-9), "=", 1.0)
        matched = found[f"equal bits and entropy, {cost}"]
        assert matched == (pytest.approx(2.0), pytest.approx(0.0, abs=1e-9), "=", 1.0)
    other = points[str(beyond[0].setting)].speedups
    assert other["equal bits, seconds"] == (pytest.approx(16.0), 0.0, ">", 0.0)
    assert other["equal bits and entropy, seconds"] is None, "no plain setting has that entropy"
    assert points[str(plain_in(2))].speedups == {}
    assert points[str(beyond[0].setting)].fronts == {"entropy", "seconds", "passes", "calls"}
    assert points[str(SIR)].fronts == frozenset()
    assert points[str(plain_in(32, 0.5))].fronts == frozenset(), "the lowest entropy is no merit"


def test_the_error_of_a_speed_up_is_that_of_texts_drawn_together() -> None:
    """Bits of all settings move by one amount per text: each figure has an error, what is gained has none."""
    shift = [0.1 * i for i in range(10)]

    def moved(setting: Sampler, bits: float, seconds: float) -> tuple[Point, Resampled]:
        nats = [(bits + each) * math.log(2) for each in shift]
        record = {"nll": nats, "characters": [1] * 10, "judged_tokens": [1] * 10, "entropy": [1.0] * 10}
        record |= {"divergences": {}, "passes": [1] * 10, "calls": [1] * 10, "seconds": seconds}
        return frontier_points.point("", setting, "", record, 0, 50)

    curve = [moved(plain_in(steps), bits, float(steps)) for steps, bits in ((1, 4.0), (4, 2.0))]
    own, *_ = frontier_points.with_comparisons([moved(SIR, 3.0, 1.0), *curve])
    assert own.figures["bits_per_character"].standard_error > 0.05
    gain = own.speedups["equal bits, seconds"]
    assert gain is not None
    assert (gain.ratio, gain.bound, gain.inside) == (pytest.approx(2.0), "=", 1.0)
    assert gain.error < 1e-9


VARIED = [0.1 * i - 0.45 for i in range(10)]  # what is added to ten texts, zero in the mean


@pytest.mark.parametrize(
    ("varied", "entropy"),
    [("own bits", 2.5), ("plain bits", 2.5), ("own entropy", 2.5), ("plain entropy", 2.5), ("own entropy", 2.905)],
)
def test_the_error_of_a_speed_up_is_the_deviation_of_what_replicates_say(varied: str, entropy: float) -> None:
    """Plain curves as above, in full between 1 and 64 steps: log2 T = 10 - bits, or 4 - bits + 2 entropy if matched.

    Where a replicate's entropy is past the plain ones, 2 to 3, it has no figure.
    """

    def point(setting: Sampler, bits: float, entropy: float, seconds: float) -> tuple[Point, Resampled]:
        whose, what = varied.split()
        moves = whose == ("plain" if setting.correction is None else "own")
        record = {
            "nll": [(bits + each * (moves and what == "bits")) * math.log(2) for each in VARIED],
            "entropy": [entropy + each * (moves and what == "entropy") for each in VARIED],
            **{name: [1] * 10 for name in ("characters", "judged_tokens", "passes", "calls")},
            **{"divergences": {}, "seconds": seconds},
        }
        return frontier_points.point(str(setting), setting, "", record, 3, 50)

    plain = [
        point(plain_in(steps, temperature), 10 - math.log2(steps) - loss, at, steps / 100)
        for steps in (1, 4, 64)
        for temperature, loss, at in ((1.0, 0.0, 3.0), (0.5, 2.0, 2.0))
    ]
    found = frontier_points.with_comparisons([point(SIR, 7.0, entropy, 0.02), *plain])[0].speedups
    shift = quality.replicate_weights(10, 3, 50) @ torch.tensor(VARIED, dtype=torch.float64) / 10
    bits = {"own bits": shift, "plain bits": -shift}.get(varied, 0.0 * shift)
    of_text = entropy + {"own entropy": shift, "plain entropy": -shift}.get(varied, 0.0 * shift)
    inside = (of_text > 2.0) & (of_text < 3.0)
    assert bool(inside.all()) == (entropy == 2.5)
    for name, steps, ratio, there in (
        ("equal bits", 2.0 ** (3.0 - bits), 4.0, inside | True),
        ("equal bits and entropy", 2.0 ** (2.0 * of_text - 3.0 - bits), 2.0 ** (2.0 * entropy - 4.0), inside),
    ):
        error = pytest.approx(float((steps / 100 / 0.02)[there].std()), abs=1e-9)
        share = pytest.approx(float(there.double().mean()))
        assert found[f"{name}, seconds"] == (pytest.approx(ratio), error, "=", share)


def test_errors_are_those_of_the_bootstrap() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    expected = quality.bootstrap(quality.mean(values), [4], 7, 50)
    weights = quality.replicate_weights(4, 7, 50)
    assert float((weights @ values / 4).std()) == pytest.approx(expected.standard_error)
    with pytest.raises(ValueError, match="at least 2 texts, got 1"):
        quality.replicate_weights(1, 0)
