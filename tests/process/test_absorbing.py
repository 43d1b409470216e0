"""Corruption keeps tokens with probability alpha; a reveal plan is ancestral sampling with its noise drawn ahead.

The statistical tests have fixed seeds and a false alarm rate of 1e-4 each for a seed chosen at random.
"""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from strategies import LARGEST, SMALLEST, batches, distinct_uniforms, masks, noise_schedules, step_grids, uniforms
from torch import Tensor

from edlm.process import absorbing, noise, schedules
from edlm.process.absorbing import RevealPlan
from edlm.process.noise import Stream
from edlm.process.schedules import Schedule

FALSE_ALARM, CPU = 1e-4, torch.device("cpu")
ONE = torch.ones((), dtype=torch.float64)
POINTS = ((torch.arange(1000) + 0.5) / 1000).double().unsqueeze(0)  # integrates over a uniform, to 1 / 1000


class Case(NamedTuple):
    u: Tensor
    masked: Tensor
    schedule: Schedule
    grid: Tensor | None

    def plan(self) -> RevealPlan:
        return absorbing.reveal_plan(*self)


@st.composite
def cases(draw: st.DrawFn, *, with_grid: bool | None = None, distinct: bool = False) -> Case:
    b, length = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    u = draw(distinct_uniforms(b, length) if distinct else uniforms(b, length))
    grids = {None: st.none() | step_grids(), True: step_grids(), False: st.none()}[with_grid]
    return Case(u, draw(masks(b, length)), draw(noise_schedules()), draw(grids))


def share_still_masked(schedule: Schedule, t: Tensor) -> Tensor:
    return (1.0 - schedule.alpha(t)) / (1.0 - schedule.alpha(ONE))


# ---- Corruption


@given(batches(), st.data())
def test_corruption_alters_no_token_that_it_keeps(batch, data):
    b, length = batch.x_0.shape
    alpha, u = data.draw(uniforms(b)), data.draw(uniforms(b, length))
    x_t = absorbing.corrupt(batch.x_0, alpha, u, batch.mask_id)
    assert torch.equal(x_t == batch.mask_id, u < 1.0 - alpha.unsqueeze(-1))
    assert ((x_t == batch.x_0) | (x_t == batch.mask_id)).all()


@given(batches(), st.data())
def test_nothing_is_masked_at_alpha_one_and_everything_at_alpha_zero(batch, data):
    u = data.draw(uniforms(*batch.x_0.shape))
    ones = torch.ones(len(u), dtype=torch.float64)
    assert torch.equal(absorbing.corrupt(batch.x_0, ones, u, batch.mask_id), batch.x_0)
    assert (absorbing.corrupt(batch.x_0, 0 * ones, u, batch.mask_id) == batch.mask_id).all()


@given(batches(), st.data())
def test_positions_to_keep_are_never_masked(batch, data):
    u, keep = data.draw(uniforms(*batch.x_0.shape)), data.draw(masks(*batch.x_0.shape))
    alpha = data.draw(uniforms(len(u)))
    x_t = absorbing.corrupt(batch.x_0, alpha, u, batch.mask_id, keep)
    assert torch.equal(x_t[keep], batch.x_0[keep])
    assert torch.equal(x_t[~keep], absorbing.corrupt(batch.x_0, alpha, u, batch.mask_id)[~keep])


@given(batches(), st.data())
def test_a_larger_alpha_masks_a_part_of_what_a_smaller_one_masks(batch, data):
    u = data.draw(uniforms(*batch.x_0.shape))
    low, high = data.draw(uniforms(2, len(u))).sort(0).values
    masked = [absorbing.corrupt(batch.x_0, alpha, u, batch.mask_id) == batch.mask_id for alpha in (low, high)]
    assert (masked[0] >= masked[1]).all()


@pytest.mark.parametrize("alpha", [0.02, 0.5, 0.9])
def test_each_token_is_kept_with_probability_alpha(alpha):
    u = noise.grid(1, torch.arange(100), 0, Stream.CORRUPTION, 300)
    x_t = absorbing.corrupt(torch.zeros(100, 300, dtype=torch.int64), torch.full((100,), alpha).double(), u, 1)
    kept = int((x_t == 0).sum())
    assert stats.binomtest(kept, u.numel(), alpha).pvalue > FALSE_ALARM
    assert stats.binomtest(kept, u.numel(), alpha + 0.02).pvalue < FALSE_ALARM


# ---- Reveal times


@given(noise_schedules(), st.floats(0.0, 1.0))
def test_reveal_times_have_the_law_of_the_process(schedule, t):
    share = (absorbing.reveal_times(POINTS, schedule) <= t).double().mean()
    expected = share_still_masked(schedule, torch.tensor(t, dtype=torch.float64))
    assert abs(share - expected.clamp(min=0.0)) <= 1e-3


@given(noise_schedules(), uniforms(2, 5))
def test_a_larger_uniform_is_revealed_earlier_and_all_inside_the_unit_interval(schedule, u):
    tau = absorbing.reveal_times(u.sort(-1).values, schedule)
    assert (tau.diff() >= 0.0).all()
    assert ((tau >= 0.0) & (tau <= 1.0)).all()


# ---- Plans


@given(cases())
def test_each_masked_position_is_revealed_in_one_pass_and_no_given_one_is(case):
    plan = case.plan()
    assert torch.equal(plan.order == -1, ~case.masked)
    assert (plan.order < plan.passes.unsqueeze(-1)).all()
    assert plan.order.dtype == plan.passes.dtype == torch.int64


@given(cases())
def test_every_pass_reveals_something(case):
    plan = case.plan()
    for order, passes in zip(plan.order, plan.passes, strict=True):
        assert set(order[order >= 0].tolist()) == set(range(int(passes)))


@given(cases())
def test_a_row_needs_no_more_passes_than_it_has_steps_or_masks(case):
    plan = case.plan()
    assert (plan.passes <= case.masked.sum(-1)).all()
    assert case.grid is None or (plan.passes <= len(case.grid) - 1).all()
    assert plan.t.shape == (len(case.u), int(plan.passes.max()))


@given(cases(distinct=True))
def test_times_fall_strictly_while_a_row_runs_and_are_zero_after(case):
    plan = case.plan()
    for t, passes in zip(plan.t, plan.passes.tolist(), strict=True):
        assert (t[:passes].diff() < 0.0).all()
        assert (t[:passes] > 0.0).all()
        assert (t[passes:] == 0.0).all()


@given(cases())
def test_a_row_of_a_batch_has_the_plan_it_has_alone(case):
    plan = case.plan()
    for i in range(len(case.u)):
        alone = Case(case.u[i : i + 1], case.masked[i : i + 1], case.schedule, case.grid).plan()
        passes = int(alone.passes[0])
        assert torch.equal(plan.order[i], alone.order[0])
        assert torch.equal(plan.t[i, :passes], alone.t[0])
        assert plan.passes[i] == passes


@given(cases(), st.data())
def test_tokens_given_elsewhere_do_not_move_the_step_of_a_position(case, data):
    fewer = case._replace(masked=case.masked & data.draw(masks(*case.masked.shape)))
    plan, other = case.plan(), fewer.plan()
    still = fewer.masked
    assert torch.equal(_start(plan, still), _start(other, still))


def _start(plan: RevealPlan, where: Tensor) -> Tensor:
    """Time of the pass that reveals each position."""
    return plan.t.gather(1, plan.order.clamp(min=0))[where] if plan.t.numel() else plan.t.new_zeros(0)


@given(cases(with_grid=True))
def test_a_step_reveals_the_uniforms_between_what_stays_masked_after_and_before_it(case):
    plan, stays = case.plan(), share_still_masked(case.schedule, case.grid)
    stays = torch.cat([ONE.view(1), stays[1:-1], 0 * ONE.view(1)])
    for i, j in case.masked.nonzero().tolist():
        n = [n for n in range(len(case.grid) - 1) if stays[n + 1] <= case.u[i, j] < stays[n]]
        assert _start(plan, _at(case.masked, i, j)).tolist() == case.grid[n].tolist()


def _at(like: Tensor, i: int, j: int) -> Tensor:
    return torch.zeros_like(like).index_put((torch.tensor(i), torch.tensor(j)), torch.tensor(True))


def test_a_uniform_at_the_end_of_a_step_belongs_to_that_step():
    u = torch.tensor([[0.25, 0.5, 0.75]], dtype=torch.float64)
    plan = absorbing.reveal_plan(u, u > 0, schedules.log_linear(), schedules.uniform_grid(4))
    assert _start(plan, u > 0).tolist() == [0.5, 0.75, 1.0]


@given(noise_schedules(), step_grids())
def test_a_plan_reveals_a_mask_with_the_chance_of_the_ancestral_sampler(schedule, grid):
    plan = absorbing.reveal_plan(POINTS, torch.ones_like(POINTS, dtype=torch.bool), schedule, grid)
    start, masked = _start(plan, plan.order >= 0), 1.0
    alpha = torch.cat([schedule.alpha(grid[:-1]), ONE.view(1)])  # the last step reveals all
    for n in range(len(grid) - 1):
        revealed = masked * float((alpha[n + 1] - alpha[n]) / (1.0 - alpha[n]))
        assert abs(float((start == grid[n]).double().mean()) - revealed) <= 2e-3
        masked -= revealed


# ---- One position per pass


@given(cases(with_grid=False, distinct=True))
def test_without_a_grid_positions_come_one_by_one_in_order_of_falling_reveal_time(case):
    plan, tau = case.plan(), absorbing.reveal_times(case.u, case.schedule)
    assert torch.equal(plan.passes, case.masked.sum(-1))
    for i, masked in enumerate(case.masked):
        places = masked.nonzero().squeeze(-1)
        expected = places[case.u[i, places].argsort(descending=True)]
        assert plan.order[i, expected].tolist() == list(range(len(places)))
        assert torch.equal(plan.t[i, : len(places)], tau[i, expected])


@given(cases(with_grid=False, distinct=True), st.integers(1, 4))
def test_several_positions_per_pass_are_taken_in_the_same_order(case, size):
    one, several = case.plan(), absorbing.reveal_plan(case.u, case.masked, case.schedule, None, size)
    assert torch.equal(several.order, torch.where(case.masked, one.order // size, -1))
    assert torch.equal(several.passes, -(-one.passes // size))
    assert torch.equal(several.t, one.t[:, ::size])  # the reveal time of the first of a pass


@given(cases(with_grid=False))
def test_even_equal_uniforms_are_revealed_one_by_one(case):
    assert torch.equal(case.plan().passes, case.masked.sum(-1))


@pytest.mark.parametrize("schedule", [schedules.log_linear(), schedules.cosine(), schedules.linear()])
def test_ever_finer_grids_lead_to_one_position_per_pass(schedule):
    u = noise.grid(0, torch.arange(3), 0, Stream.REVEAL, 40)
    masked = u > 0.2
    fine = absorbing.reveal_plan(u, masked, schedule, schedules.uniform_grid(10**6))
    limit = absorbing.reveal_plan(u, masked, schedule)
    assert torch.equal(fine.order, limit.order)
    torch.testing.assert_close(fine.t, limit.t, rtol=0.0, atol=1e-6)


# ---- Extremes


@pytest.mark.parametrize("schedule", [schedules.log_linear(0.1), schedules.linear(0.5, 1.0), schedules.geometric(1e-2)])
@pytest.mark.parametrize("grid", [None, schedules.uniform_grid(1), schedules.uniform_grid(7)])
def test_a_schedule_that_ends_short_of_its_limits_leaves_no_mask(schedule, grid):
    u = torch.tensor([[SMALLEST, 0.25, 0.999, LARGEST]], dtype=torch.float64)
    plan = absorbing.reveal_plan(u, torch.ones_like(u, dtype=torch.bool), schedule, grid)
    assert (plan.order >= 0).all()


@pytest.mark.parametrize("grid", [None, schedules.uniform_grid(3)])
def test_a_row_with_nothing_masked_needs_no_pass(grid):
    u = torch.full((2, 3), 0.5).double()
    plan = absorbing.reveal_plan(u, torch.zeros(2, 3, dtype=torch.bool), schedules.log_linear(), grid)
    assert plan.passes.tolist() == [0, 0]
    assert plan.t.shape == (2, 0)
    assert (plan.order == -1).all()


def test_one_step_reveals_everything_at_once():
    u = noise.grid(0, torch.arange(2), 0, Stream.REVEAL, 5)
    plan = absorbing.reveal_plan(u, torch.ones_like(u, dtype=torch.bool), schedules.cosine(), schedules.uniform_grid(1))
    assert (plan.order == 0).all()
    assert plan.t.tolist() == [[1.0], [1.0]]


def test_a_grid_of_any_precision_gives_the_plan_of_its_times():
    u = noise.grid(0, torch.arange(3), 0, Stream.REVEAL, 6)
    masked, grid = torch.ones_like(u, dtype=torch.bool), schedules.uniform_grid(4)  # quarters are exact in any of them
    plans = [absorbing.reveal_plan(u, masked, schedules.log_linear(), times) for times in (grid, grid.float())]
    assert torch.equal(plans[0].order, plans[1].order)
    assert torch.equal(plans[0].t, plans[1].t)


@pytest.mark.parametrize("times", [[0.0, 0.5, 1.0], [1.0, 0.5, 0.5, 0.0], [0.9, 0.0], [1.0, 0.1], [1.0]])
def test_a_grid_must_fall_from_one_to_zero(times):
    u = noise.grid(0, torch.arange(2), 0, Stream.REVEAL, 3)
    with pytest.raises(ValueError, match="must fall from 1 to 0"):
        absorbing.reveal_plan(u, u < 1.0, schedules.log_linear(), torch.tensor(times))


# ---- Revealing


@given(batches(), st.data())
def test_revealing_takes_the_draft_at_the_positions_and_nothing_else(batch, data):
    positions = data.draw(masks(*batch.x_0.shape))
    before = batch.x_t.clone()
    x_s = absorbing.reveal(batch.x_t, batch.x_0, positions)
    assert torch.equal(x_s[positions], batch.x_0[positions])
    assert torch.equal(x_s[~positions], batch.x_t[~positions])
    assert torch.equal(batch.x_t, before)


@given(cases(), st.data())
def test_revealing_all_passes_of_a_plan_restores_the_text(case, data):
    x_0 = torch.arange(case.u.numel()).view(case.u.shape)
    x, plan = torch.where(case.masked, -1, x_0), case.plan()
    for p in range(plan.t.shape[1]):
        x = absorbing.reveal(x, x_0, plan.order == p)
    assert torch.equal(x, x_0)


@given(st.integers(1, 9), st.integers(0, 5), st.sampled_from([-(2**40), -1, 0, 2**40]))
def test_a_prompt_holds_ids_of_the_vocabulary_alone(vocab_size: int, place: int, beyond: int) -> None:
    """Those on its ends are taken, the next ones are named."""
    prompt = torch.arange(6) % vocab_size
    for good in (0, vocab_size - 1):
        given_ = prompt.index_fill(0, torch.tensor([place]), good)
        assert torch.equal(absorbing.starting_tokens(2, 6, 0, vocab_size, given_, CPU), given_.expand(2, -1))
    bad = beyond if beyond < 0 else vocab_size + beyond
    with pytest.raises(ValueError, match=f"^prompt holds token id {bad}, outside the vocabulary 0..{vocab_size - 1}$"):
        absorbing.starting_tokens(2, 6, 0, vocab_size, prompt.index_fill(0, torch.tensor([place]), bad), CPU)
