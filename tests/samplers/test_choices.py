"""Positions that are chosen from the pass: each rule beside its definition in plain loops."""

import pytest
import torch
from builders import tiny_denoiser
from choosing import RULES, slowly
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import edlm
from edlm import samplers, testing
from edlm.frontier import grid
from edlm.process import categorical, schedules
from edlm.samplers import configs, corrections, plans
from edlm.samplers.planning import Seen
from edlm.samplers.sampler import Sampler


def laws(seed: int, b: int, l: int, v: int) -> Tensor:
    """Laws of every kind of sharpness, some certain and some equal: (b, l, v)."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.0, 1.0, 4.0, 60.0])[torch.randint(4, (b, l), generator=generator)]
    logits = scale.unsqueeze(-1) * torch.randn(b, l, v, generator=generator, dtype=torch.float64)
    logits[..., -1] = -torch.inf
    return logits.softmax(-1)


def seen(law: Tensor) -> Seen:
    b, l, v = law.shape
    return Seen(*(value.view(b, l) for value in categorical.certainty(law.log().view(b * l, v))))


@pytest.mark.parametrize("plan", RULES, ids=str)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 7), st.integers(3, 6))
def test_each_rule_is_its_definition(plan: plans.Rule, seed: int, l: int, v: int) -> None:
    """And chooses masks alone, at least one of every row that has any."""
    law, b = laws(seed, 6, l, v), 6
    masked = torch.rand(b, l, generator=torch.Generator().manual_seed(seed)) < 0.7
    chosen = plan.choose(seen(law), masked)
    assert chosen.dtype == torch.bool
    assert not (chosen & ~masked).any()
    assert torch.equal(chosen.any(1), masked.any(1))
    for row in range(b):
        assert set(chosen[row].nonzero().flatten().tolist()) == slowly(plan, law[row].tolist(), masked[row].tolist())


@given(st.integers(0, 2**40), st.integers(2, 300), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_how_sure_a_law_is_is_what_its_probabilities_say(seed: int, v: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (8.0 * torch.randn(9, v, generator=generator)).to(dtype)
    logits[:3, 0] = -torch.inf
    found = categorical.certainty(logits)
    p = logits.double().softmax(-1)
    best = p.sort(-1, descending=True).values
    wanted = (torch.special.entr(p).sum(-1), best[:, 0], best[:, 0] - best[:, 1])
    rounding = 1e-12 if dtype == torch.float64 else 2e-6
    for own, expected in zip(found, wanted, strict=True):
        assert own.dtype == torch.float64
        torch.testing.assert_close(own, expected, rtol=rounding, atol=rounding)


def test_a_law_that_is_certain_has_no_entropy() -> None:
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf], [0.0, -200.0, -torch.inf]])
    found = categorical.certainty(logits)
    assert found.entropy.tolist() == [0.0, 0.0]
    assert found.confidence.tolist() == found.margin.tolist() == [1.0, 1.0]


def test_equals_are_taken_from_the_left_whatever_rounding_made_of_them() -> None:
    near = torch.tensor([[0.5 + 1e-12, 0.5, 0.5 - 1e-12, 0.5 + 1e-13]], dtype=torch.float64)
    masked = torch.ones_like(near, dtype=torch.bool)
    for by in ("entropy", "confidence", "margin"):
        chosen = plans.Ranked(2, by=by).choose(Seen(near, near, near), masked)
        assert chosen.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("plan", RULES, ids=str)
def test_a_position_is_chosen_where_nothing_is_a_number(plan: plans.Rule) -> None:
    """So the loop ends, and what was no number is told of."""
    nothing = torch.full((2, 4), torch.nan, dtype=torch.float64)
    masked = torch.tensor([[False, True, True, False], [False, False, False, True]])
    chosen = plan.choose(Seen(nothing, nothing, nothing), masked)
    assert chosen.any(1).all()
    assert not (chosen & ~masked).any()


def test_left_to_right_is_drawn_without_any_number() -> None:
    """What its passes reveal is what its rule says of the masks that are left, at the time of their share."""
    masked = torch.tensor([[True, False, True, True, True], [False] * 5, [True] * 5])
    for count in (1, 2, 3):
        plan, schedule = plans.LeftToRight(count), schedules.cosine()
        drawn = plan.draw(torch.full((3, 5), torch.nan), masked, schedule)
        left = masked.clone()
        for p in range(drawn.t.shape[1]):
            chosen = plan.choose(None, left)
            assert torch.equal(drawn.order == p, chosen)
            share = left.double().mean(-1)
            torch.testing.assert_close(1.0 - schedule.alpha(drawn.t[:, p]), share)
            left = left & ~chosen
        assert not left.any()
        assert drawn.passes.tolist() == [-(-int(row.sum()) // count) for row in masked]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: plans.EntropyBound(-0.1), r"gamma = -0.1 must be at least 0"),
        (lambda: plans.EntropyBound(float("nan")), r"gamma = nan must be at least 0"),
        (lambda: plans.EntropyBound(0.1, most=0), r"most = 0 must be at least 1, or null"),
        (lambda: plans.EntropyBound(0.1, by="luck"), r"by = 'luck' must be one of entropy, confidence, margin"),
        (lambda: plans.Confidence(1.5), r"threshold = 1.5 must lie in \[0, 1\]"),
        (lambda: plans.Ranked(0), r"count = 0 must be at least 1"),
        (lambda: plans.Ranked(2, by="luck"), r"by = 'luck' must be one of entropy, confidence, margin"),
        (lambda: plans.LeftToRight(0), r"count = 0 must be at least 1"),
    ],
)
def test_bad_input_is_named(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


@pytest.mark.parametrize("plan", [plans.Ranked(3), plans.LeftToRight(2)], ids=str)
def test_what_is_expected_of_a_count_is_what_a_text_takes(plan: plans.Plan) -> None:
    energy = corrections.OfEnergy(edlm.energies.zero(), "transition")
    sampler = Sampler(tiny_denoiser(), plan, correction=energy, candidates=2, window=(0.3, 0.8))
    info = edlm.sample(edlm.pipelines.pipeline(sampler, 8), 2)["info"]
    expected = samplers.expected(sampler, 8)
    assert expected.passes == info["t"].shape[1]
    assert [expected.corrected] * 2 == info["corrected"].sum(1).tolist()
    assert [expected.revealed * 8] * 2 == (info["corrected"] * info["revealed"]).sum(1).tolist()
    assert expected.entered == 1.0
    assert samplers.expected_passes(sampler, 8) == expected.passes


@pytest.mark.parametrize("plan", [plans.Ranked(3), plans.LeftToRight(3)], ids=str)
@pytest.mark.parametrize(
    ("window", "expected"),
    [((0.0, 1.0), (3.0, 3.0, 1.0, 1.0)), ((0.0, 0.3), (3.0, 1.0, 0.25, 1.0)), ((0.7, 0.9), (3.0, 0.0, 0.0, 0.0))],
)
def test_a_last_pass_reveals_what_is_left_and_a_window_may_have_none(
    plan: plans.Plan, window: tuple[float, float], expected: tuple[float, ...]
) -> None:
    assert plan.expected(schedules.log_linear(), 8, window) == expected


@pytest.mark.parametrize("plan", [plans.EntropyBound(), plans.Confidence()], ids=str)
def test_what_depends_on_the_tokens_is_not_made_up(plan: plans.Plan) -> None:
    sampler = Sampler(tiny_denoiser(), plan)
    assert samplers.expected(sampler, 8) is None
    assert samplers.expected_passes(sampler, 8) is None
    assert grid.expected_passes(sampler, 8) == 8.0, "the most it can be, for the time that is left"


@pytest.mark.parametrize("plan", RULES, ids=str)
def test_a_rule_stands_in_a_config_and_keeps_its_laws(plan: plans.Rule) -> None:
    section = samplers.config(Sampler(tiny_denoiser(), plan))
    assert section["plan"]["name"] == plan.name
    configs.section("sampler", section)
    assert samplers.from_config(section, tiny_denoiser()).plan == plan
    testing.check_rule(plan)
