"""Blocks from left to right: their passes, their law by enumeration, and the two ends, one block and one token each."""

import math
from collections.abc import Callable
from functools import cache
from itertools import product

import pytest
import torch
from block_networks import LENGTH, MASK, SYMBOLS, denoiser, every_text, log_prob
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import edlm
from edlm.likelihood import bounds, enumeration
from edlm.process import schedules
from edlm.samplers import configs, corrections, pipelines, planning, plans
from edlm.samplers.sampler import Sampler

SCHEDULE = schedules.log_linear()
Law = Callable[[tuple[int, ...]], list[list[float]]]  # of each place, given what is known
INSIDE = [plans.Grid(3), plans.TokensPerPass(1), plans.TokensPerPass(2), plans.LeftToRight(2), plans.Grid(1)]


def uniforms(b: int, l: int, seed: int) -> Tensor:
    return torch.rand(b, l, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- The passes of a plan


@given(st.sampled_from(INSIDE), st.integers(1, 5), st.integers(1, 11), st.integers(0, 2**32), st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_each_block_has_the_passes_of_its_own_plan_after_those_before_it(
    within: plans.Drawn, size: int, length: int, seed: int, given_share: float
):
    noise, masked = uniforms(3, length, seed), uniforms(3, length, seed + 1) >= given_share
    drawn = plans.blocks(size, within).draw(noise, masked, SCHEDULE)
    for row in range(3):
        before, times = 0, []
        for start in range(0, length, size):
            part = slice(start, start + size)
            alone = within.draw(noise[row : row + 1, part], masked[row : row + 1, part], SCHEDULE)
            expected = torch.where(alone.order < 0, -1, alone.order + before)[0]
            assert torch.equal(drawn.order[row, part], expected)
            before += int(alone.passes)
            times += alone.t[0, : int(alone.passes)].tolist()
        assert int(drawn.passes[row]) == before
        assert drawn.t[row].tolist() == times + [0.0] * (drawn.t.shape[1] - before)
    assert drawn.t.shape[1] == int(drawn.passes.max())


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 11), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_a_plan_that_is_drawn_and_a_rule_chooses_what_it_draws(size: int, count: int, length: int, seed: int):
    """Of any state what is drawn for its first pass, whatever the laws of the pass are."""
    plan, masked = plans.blocks(size, plans.LeftToRight(count)), uniforms(3, length, seed) < 0.6
    assert planning.is_drawn(plan)
    assert planning.is_rule(plan)
    laws = planning.Seen(*(torch.rand(3, length, dtype=torch.float64) for _ in planning.Seen._fields))
    first = plan.draw(uniforms(3, length, seed + 1), masked, SCHEDULE).order == 0
    assert torch.equal(plan.choose(laws, masked) & masked, first)
    assert not planning.is_rule(plans.blocks(size, plans.TokensPerPass(count)))


@pytest.mark.parametrize("within", INSIDE, ids=str)
@pytest.mark.parametrize("window", [(0.0, 1.0), (0.4, 1.0), (0.2, 0.7)])
def test_expected_figures_are_means_over_drawn_plans(within: plans.Drawn, window: tuple[float, float]):
    """Each within 5 standard errors. A window of all times is entered once, another one by at most every block."""
    plan, rows, length = plans.blocks(3, within), 4000, 7
    drawn = plan.draw(uniforms(rows, length, 5), torch.ones(rows, length, dtype=torch.bool), SCHEDULE)
    runs = torch.arange(drawn.t.shape[1]) < drawn.passes.unsqueeze(-1)
    inside = schedules.inside(drawn.t, window) & runs
    revealed = (drawn.order.unsqueeze(-1) == torch.arange(drawn.t.shape[1])).sum(1)
    entries = (inside & ~inside.roll(1, 1)).sum(1) if window != (0.0, 1.0) else torch.ones(rows)
    expected = plan.expected(SCHEDULE, length, window)
    found = {
        "passes": drawn.passes.double(),
        "corrected": inside.sum(1).double(),
        "revealed": (revealed * inside).sum(1).double() / length,
    }
    for name, values in found.items():
        error = float(values.std()) / rows**0.5
        assert abs(float(values.mean()) - getattr(expected, name)) <= 5 * error + 1e-9, name
    assert float(entries.double().mean()) <= expected.entered + 0.05


@pytest.mark.parametrize("within", INSIDE, ids=str)
@pytest.mark.parametrize("window", [(0.0, 1.0), (0.4, 1.0), (0.2, 0.7), (0.0, 0.3)])
def test_a_window_is_entered_by_every_block_with_a_pass_in_it(within: plans.Drawn, window: tuple[float, float]):
    """A mean over drawn plans within 5 standard errors; a window of all times is entered once."""
    plan, rows, length = plans.blocks(3, within), 4000, 7
    drawn = plan.draw(uniforms(rows, length, 5), torch.ones(rows, length, dtype=torch.bool), SCHEDULE)
    inside = schedules.inside(drawn.t, window).gather(1, drawn.order)
    entered = torch.stack([inside[:, part.start : part.stop].any(1) for part in plan.parts(length)]).sum(0).double()
    found = torch.ones(rows).double() if window == (0.0, 1.0) else entered
    error = 5 * float(found.std()) / rows**0.5 + 1e-9
    assert abs(float(found.mean()) - plan.expected(SCHEDULE, length, window).entered) <= error


def test_one_block_is_the_plan_inside():
    noise, masked = uniforms(5, 6, 0), uniforms(5, 6, 1) > 0.2
    for within in INSIDE:
        found, alone = (each.draw(noise, masked, SCHEDULE) for each in (plans.blocks(6, within), within))
        for ours, theirs in zip(found, alone, strict=True):
            assert torch.equal(ours, theirs)


def test_a_chosen_plan_is_asked_for_the_leftmost_block_with_masks_alone():
    plan = plans.blocks(2, plans.Ranked(2))
    sure = torch.tensor([[0.1, 0.2, 0.9, 0.8, 0.7], [0.1, 0.2, 0.3, 0.9, 0.1], [0.0, 0.0, 0.0, 0.0, 0.9]])
    masked = torch.tensor([[True] * 5, [False, False, True, True, True], [False] * 4 + [True]])
    seen = planning.Seen(1 - sure, sure, sure)
    assert plan.choose(seen, masked).tolist() == [
        [True, True, False, False, False],
        [False, False, True, True, False],
        [False, False, False, False, True],
    ]
    assert plan.expected(SCHEDULE, 5, (0.0, 1.0)).passes == 3.0
    assert plans.blocks(2, plans.EntropyBound()).expected(SCHEDULE, 5, (0.0, 1.0)) is None


# ---- The law


@cache
def brute_law(size: int, within: str) -> Tensor:
    """The law of a network of blocks with T = 1 or one by one, block after block, by loops over texts and orders."""
    net = denoiser(size).network
    law = cache(lambda x_t: log_prob(net, torch.tensor(x_t)).exp().tolist())  # of what is known, however it is filled
    found = torch.zeros((SYMBOLS,) * LENGTH, dtype=torch.float64)
    for text in every_text().tolist():
        chance = 1.0
        for start in range(0, LENGTH, size):
            end = min(start + size, LENGTH)
            chance *= _block(law, text, start, end, within, ())
        found[tuple(text)] = chance
    return found


def _block(law: Law, text: list[int], start: int, end: int, within: str, known: tuple[int, ...]) -> float:
    """The chance to write the rest of a block, what is known of it given; one by one all orders are as likely."""
    left = [i for i in range(start, end) if i not in known]
    if not left:
        return 1.0
    p = law(tuple(MASK if i in left else text[i] for i in range(end)))
    if within == "at once":
        return math.prod(p[i][text[i]] for i in left)
    ways = [p[i][text[i]] * _block(law, text, start, end, within, (*known, i)) for i in left]
    return sum(ways) / len(left)


@pytest.mark.parametrize(
    ("size", "within"),
    [
        *product((1, 2, 3, 4), ["at once"]),
        *product((1, 2, 3), ["one by one"]),
        pytest.param(4, "one by one", marks=pytest.mark.slow),
    ],
)
def test_the_law_is_the_product_over_blocks_and_sums_to_one(size: int, within: str):
    inside = {"at once": plans.Grid(1), "one by one": plans.first_hitting()}[within]
    law = enumeration.law(Sampler(denoiser(size), plans.blocks(size, inside)), LENGTH)
    torch.testing.assert_close(law.sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(law, brute_law(size, within), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("within", [plans.LeftToRight(1), plans.Ranked(1), plans.EntropyBound(0.3), plans.Grid(2)])
def test_the_law_of_any_plan_inside_is_a_law_and_blocks_of_one_are_all_the_same(within: plans.Plan):
    two = enumeration.law(Sampler(denoiser(2), plans.blocks(2, within)), LENGTH)
    torch.testing.assert_close(two.sum(), torch.tensor(1.0, dtype=torch.float64))
    one = enumeration.law(Sampler(denoiser(1), plans.blocks(1, within)), LENGTH)
    torch.testing.assert_close(one, brute_law(1, "at once"), rtol=1e-10, atol=1e-14)


def test_a_network_of_one_block_has_the_law_and_the_tokens_of_one_without():
    for plan in (plans.Grid(3), plans.first_hitting()):
        ours = Sampler(denoiser(LENGTH), plans.blocks(LENGTH, plan))
        theirs = Sampler(denoiser(None), plan)
        assert torch.equal(enumeration.law(ours, LENGTH), enumeration.law(theirs, LENGTH))
        drawn = [edlm.sample(pipelines.pipeline(each, LENGTH), 20, seed=3)["tokens"] for each in (ours, theirs)]
        assert torch.equal(*drawn)


@pytest.mark.slow
@pytest.mark.parametrize("within", [plans.Grid(2), plans.first_hitting(), plans.Ranked(1)], ids=str)
def test_what_is_drawn_has_the_enumerated_law(within: plans.Plan):
    """Chi-square of 20,000 texts over 81: above 160 by chance once in 4 million times."""
    sampler, rows = Sampler(denoiser(2), plans.blocks(2, within)), 20_000
    law = enumeration.law(sampler, LENGTH).flatten()
    tokens = edlm.sample(pipelines.pipeline(sampler, LENGTH), rows, seed=11)["tokens"]
    number = (tokens * SYMBOLS ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
    counts = torch.bincount(number, minlength=len(law)).double()
    seldom = law * rows < 5.0
    pairs = [(counts[~seldom], law[~seldom] * rows), (counts[seldom].sum().view(1), law[seldom].sum().view(1) * rows)]
    chi = sum(float(((own - mean) ** 2 / mean.clamp(min=1e-9)).sum()) for own, mean in pairs if mean.sum() > 0)
    assert chi < 160


def test_the_bound_of_a_sampler_is_above_its_law_and_exact_where_there_is_one_way():
    texts, row = every_text(), torch.arange(SYMBOLS**LENGTH)
    for size, within in ((1, plans.first_hitting()), (2, plans.Grid(1)), (2, plans.first_hitting())):
        sampler = Sampler(denoiser(size), plans.blocks(size, within))
        law = enumeration.law(sampler, LENGTH).flatten()
        found = [bounds.of_sampler(sampler, texts, torch.tensor(seed), row).nats for seed in range(8)]
        mean = torch.stack(found).mean(0) * LENGTH
        if size == 1 or isinstance(within, plans.Grid):
            torch.testing.assert_close(mean, -law.log(), rtol=1e-9, atol=1e-9)
        else:
            assert float((law * (mean + law.log())).sum()) > 0


@pytest.mark.parametrize(
    "correction", [corrections.ChainRule(), corrections.OfEnergy(edlm.energies.zero(), "transition")]
)
def test_corrections_inside_a_block_have_a_law_of_their_own(correction: corrections.Correction):
    sampler = Sampler(denoiser(2), plans.blocks(2, plans.Grid(1)), correction=correction, candidates=2)
    law = enumeration.law(sampler, LENGTH)
    torch.testing.assert_close(law.sum(), torch.tensor(1.0, dtype=torch.float64))
    plain = enumeration.law(Sampler(denoiser(2), plans.blocks(2, plans.Grid(1))), LENGTH)
    assert torch.allclose(law, plain) == (correction.name == "energy")


def test_speculation_in_a_block_is_the_law_in_order():
    """With all of a block at once and speculation, the first token's law times that of the second given it."""
    model = denoiser(2)
    sampler = Sampler(
        model, plans.blocks(2, plans.Grid(1)), correction=corrections.ChainRule(), selection="speculative"
    )
    law = enumeration.law(sampler, LENGTH)
    torch.testing.assert_close(law.sum(), torch.tensor(1.0, dtype=torch.float64))
    first = law.sum((1, 2, 3))
    torch.testing.assert_close(first, log_prob(model.network, torch.tensor([MASK, MASK]))[0, :SYMBOLS].exp())


# ---- Prompts, configs, refusals


def test_what_is_given_in_a_later_block_is_not_seen_before_it():
    """An infilling prompt: blocks to its left are those of no prompt."""
    pipeline = pipelines.pipeline(Sampler(denoiser(2), plans.blocks(2)), LENGTH)
    prompt = torch.tensor([MASK, MASK, MASK, 1])
    free, led = (edlm.sample(pipeline, 30, seed=4, prompt=each)["tokens"] for each in (None, prompt))
    assert torch.equal(free[:, :2], led[:, :2])
    assert (led[:, 3] == 1).all()


def test_a_plan_has_a_config_form_with_the_plan_inside():
    model = denoiser(2)
    for within in (plans.Grid(4, "cosine"), plans.TokensPerPass(2), plans.Ranked(1), plans.EntropyBound(0.2)):
        sampler = Sampler(model, plans.blocks(2, within))
        values = configs.config(sampler)
        configs.section("sampler", values)
        assert configs.from_config(values, model) == sampler


def test_a_denoiser_of_blocks_has_its_blocks_whatever_plan_a_config_says():
    model = denoiser(2)
    grid = {"name": "grid", "num_steps": 3}
    assert configs.from_config({"plan": grid}, model).plan == plans.blocks(2, plans.Grid(3))
    assert configs.from_config({}, model).plan == plans.blocks(2)
    finer = {"name": "in_blocks", "size": 1, "within": grid}
    assert configs.from_config({"plan": finer}, model).plan == plans.blocks(1, plans.Grid(3))
    assert configs.from_config({"plan": grid}, denoiser(None)).plan == plans.Grid(3)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lambda: plans.blocks(0), "size = 0 must be at least 1"),
        (lambda: plans.blocks(2, plans.blocks(2)), "a block has no blocks of its own"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(plan: object, message: str):
    with pytest.raises(ValueError, match=message):
        plan()


@pytest.mark.parametrize("plan", [plans.Grid(3), plans.blocks(3), plans.blocks(4)])
def test_a_denoiser_of_blocks_refuses_a_plan_that_leaves_one_unfinished(plan: plans.Plan):
    with pytest.raises(ValueError, match=r"reads blocks of 2, each after finished ones, so it needs plans.blocks\(2,"):
        Sampler(denoiser(2), plan)


def test_a_text_has_a_name_that_tells_its_blocks():
    assert str(Sampler(denoiser(2), plans.blocks(2, plans.Grid(4)))) == "plain, blocks of 2, T=4"
