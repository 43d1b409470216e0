"""Comparisons of trainings: what a variant changes, when a bound is reached, and the table."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from smallest import NETWORK, settings_of

from edlm.nn.networks import Transformer
from edlm.training import speedrun
from edlm.training.speedrun import Training

LN_2 = math.log(2)
FALLING = st.lists(st.floats(0.5, 4.0), min_size=2, max_size=6, unique=True).map(lambda each: sorted(each)[::-1])


def training(*bounds: float, seconds: float | None = 10.0, flops: float = 1e9, test: float = 2.0) -> Training:
    """One with a validation every ten steps."""
    return Training(tuple((10 * number, each) for number, each in enumerate(bounds, 1)), seconds, flops, test)


def test_sections_are_merged_and_a_component_takes_the_place_of_another() -> None:
    base = {"optimizer": {"_component_": "a", "lr": 1.0}, "network": {"_component_": "b", "sizes": {"h": 1, "l": 2}}}
    own = speedrun.changed(base, {"optimizer": {"_component_": "c"}, "network": {"sizes": {"h": 3}}, "steps": 4})
    assert own == {
        "optimizer": {"_component_": "c"},
        "network": {"_component_": "b", "sizes": {"h": 3, "l": 2}},
        "steps": 4,
    }
    assert base["network"]["sizes"] == {"h": 1, "l": 2}


@given(FALLING, st.floats(0.0, 1.0))
def test_a_bound_is_reached_on_the_line_between_two_validations(bounds: list[float], where: float) -> None:
    own = training(*bounds)
    high, low = bounds[-2:]
    step = speedrun.reached(own, low + where * (high - low))
    assert step == pytest.approx(own.steps - 10 * where)
    assert speedrun.reached(own, bounds[0] + 1.0) == 10
    assert speedrun.reached(own, low - 1e-9) is None


def test_a_bound_that_is_lost_again_was_reached_the_first_time() -> None:
    assert speedrun.reached(training(3.0, 2.0, 3.0, 1.0), 2.5) == 15.0


def test_shares_are_of_the_cost_at_which_the_first_ended() -> None:
    first = training(3.0, 2.0, seconds=10.0)
    dear = training(2.5, 1.5, seconds=40.0, flops=3e9)  # reaches 2.0 at step 15 of 20
    assert speedrun.share(dear, first, seconds=True) == pytest.approx(0.75 * 4)
    assert speedrun.share(dear, first, seconds=False) == pytest.approx(0.75 * 3)
    assert speedrun.share(first, dear, seconds=True) is None
    assert speedrun.share(dear._replace(seconds=None), first, seconds=True) is None
    assert speedrun.share(dear._replace(seconds=None), first, seconds=False) == pytest.approx(2.25)


def test_differences_are_paired_by_seed() -> None:
    runs = {
        "published": [training(3.0, 2.0, test=LN_2 * 2.0), training(3.0, 2.0, test=LN_2 * 3.0)],
        "other": [training(2.0, 1.0, test=LN_2 * 1.5), training(2.0, 1.0, test=LN_2 * 2.5)],
        "slow": [training(3.0, 2.5, test=LN_2 * 2.5), training(2.5, 1.9, test=LN_2 * 2.5)],
    }
    head, first, other, slow = speedrun.table(runs, [2.5 / LN_2])
    assert head[:6] == ["variant", "seeds", "GFLOP a step", "seconds a step", "bits (test)", "minus the first"]
    assert first == ["published", "2", "1", "0.5", "2.50 ± 0.50", "", "1", "1", "7.5"]
    assert other == ["other", "2", "1", "0.5", "2.00 ± 0.50", "-0.5", "0.5", "0.5", "5"]
    assert slow[5:8] == ["0.00 ± 0.50", "reached by 1 of 2", "reached by 1 of 2"]
    assert speedrun.table({"published": runs["published"][:1]}, [])[1][4] == "2"
    assert speedrun.table({"published": [training(3.0, 2.0, seconds=None)]}, [1.0])[1][3::5] == ["-", "not reached"]


def test_the_share_of_seconds_stands_before_that_of_operations() -> None:
    runs = {"published": [training(3.0, 2.0)], "dear": [training(2.5, 1.5, seconds=40.0, flops=3e9)]}
    head, _, dear = speedrun.table(runs, [])
    assert dict(zip(head, dear, strict=True)) | {
        "seconds to its bound, a share": "3",
        "operations to its bound, a share": "2.25",
    } == dict(zip(head, dear, strict=True))


def test_a_step_of_blocks_reads_two_copies_of_a_text() -> None:
    network = Transformer(28, 32, **NETWORK)
    own: dict[str, Any] = {"batch_size": 2, "length": 32, "block": None}
    h, tokens = NETWORK["hidden_size"], 64
    head = 2 * h * 28 * tokens / 2
    assert speedrun.step_flops(network, own) == 3 * (tokens * (24 * h * h + 4 * 32 * h) + head)
    assert speedrun.step_flops(network, {**own, "block": 32}) == speedrun.step_flops(network, own)
    assert speedrun.step_flops(network, {**own, "block": 4}) == 3 * (2 * tokens * (24 * h * h + 4 * 64 * h) + head)


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ({"fast": {"stepz": 3}}, "variants.fast.stepz"),
        ({"fast": {"steps": 0}}, "variants.fast.steps = 0"),
        ({"fast": {"objective": "blocks"}}, "variants.fast: "),
    ],
)
def test_what_a_variant_makes_of_the_base_is_checked_before_anything_is_trained(
    variants: dict[str, Any], said: str
) -> None:
    settings = {**settings_of("speedrun"), "variants": variants}
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        speedrun.check(settings)


@pytest.mark.parametrize(
    "wrong", [None, [], {}, {"a/b": {}}, {"..": {}}, {"": {}}, {"fast": 3}, {"a b": {}, "a_b": {}}]
)
def test_names_of_variants_are_those_of_folders(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"^variants"):
        speedrun.variants("variants", wrong)
    speedrun.variants("variants", {"published": {}, "Muon 5e-3 by_count": {"steps": 3}, 2: {}})


def test_variants_of_other_seeds_are_compared_with_as_many_as_there_are() -> None:
    two, one = (
        [training(3.0, 2.0, test=LN_2 * 2.0), training(3.0, 2.0, test=LN_2 * 4.0)],
        [training(2.0, 1.0, test=LN_2)],
    )
    for first, other, difference in ((two, one, "-1"), (one, two, "1")):
        _, _, row = speedrun.table({"first": first, "other": other}, [])
        assert (row[1], row[5]) == (str(len(other)), difference)
    assert speedrun.over_seeds([]) == "-"
    assert (speedrun.over_seeds([2.0]), speedrun.over_seeds([1.0, 3.0])) == ("2", "2.0 ± 1.0")
