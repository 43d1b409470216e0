"""A schedule falls from 1 to 0, its slope is its derivative and its inverse its inverse; grids run from 1 to 0."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import noise_schedules, step_grids, uniforms, unit_floats
from torch import Tensor

from edlm.process import schedules, training_times
from edlm.process.schedules import Schedule

EXACT = {
    "log_linear": schedules.log_linear(),
    "cosine": schedules.cosine(),
    "cosine_squared": schedules.cosine_squared(),
    "polynomial": schedules.polynomial(),
    "polynomial_1": schedules.polynomial(1.0),
}
LIMITED = {
    "log_linear_eps": schedules.log_linear(1e-3),
    "cosine_eps": schedules.cosine(0.1),
    "cosine_squared_eps": schedules.cosine_squared(0.1),
    "linear": schedules.linear(),
    "geometric": schedules.geometric(),
}
ALL = EXACT | LIMITED
every = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
INSIDE = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def times() -> st.SearchStrategy[Tensor]:
    return st.lists(unit_floats(), min_size=2, max_size=8).map(lambda values: double(sorted(values)))


# ---- The laws of a schedule


@pytest.mark.parametrize("schedule", EXACT.values(), ids=EXACT)
def test_an_exact_schedule_runs_from_one_to_zero(schedule):
    assert schedule.alpha(double(0.0)) == 1.0
    assert schedule.alpha(double(1.0)) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(
    ("schedule", "start", "end"),
    [
        (schedules.log_linear(1e-3), 1.0, 1e-3),
        (schedules.cosine(0.1), 1.0, 0.1),
        (schedules.cosine_squared(0.1), 1.0, 0.1),
        (schedules.linear(0.5, 7.0), 0.6065306597126334, 9.118819655545162e-4),
        (schedules.geometric(1e-4, 20.0), 0.9999000049998333, 2.061153622438558e-09),
    ],
)
def test_a_limited_schedule_ends_where_its_arguments_say(schedule, start, end):
    assert float(schedule.alpha(double(0.0))) == pytest.approx(start, rel=1e-12)
    assert float(schedule.alpha(double(1.0))) == pytest.approx(end, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "alpha"),
    [
        ("log_linear", 0.75),
        ("cosine", 0.9238795325112867),
        ("cosine_squared", 0.8535533905932737),
        ("polynomial", 0.9375),
    ],
)
def test_alpha_at_a_quarter_is_that_of_the_formula(name, alpha):
    assert float(EXACT[name].alpha(double(0.25))) == pytest.approx(alpha, rel=1e-14)


def test_sigma_of_the_sigma_schedules_is_a_line_and_a_geometric_progression():
    t = double([0.0, 0.5, 1.0])
    torch.testing.assert_close(schedules.sigma(schedules.linear(1.0, 3.0), t), double([1.0, 2.0, 3.0]))
    torch.testing.assert_close(schedules.sigma(schedules.geometric(0.01, 4.0), t), double([0.01, 0.2, 4.0]))


@given(noise_schedules(), times())
def test_alpha_is_a_probability_that_never_rises(schedule, t):
    alpha = schedule.alpha(t)
    assert ((alpha >= 0.0) & (alpha <= 1.0)).all()
    assert (alpha.diff() <= 1e-15).all()
    assert (schedule.alpha_slope(t) <= 0.0).all()


@every
def test_alpha_falls_strictly(schedule):
    assert (schedule.alpha(INSIDE).diff() < 0.0).all()


@every
def test_the_slope_is_the_derivative(schedule):
    t = INSIDE.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    torch.testing.assert_close(schedule.alpha_slope(INSIDE), derivative, rtol=1e-10, atol=1e-14)
    step = 1e-6
    differences = (schedule.alpha(INSIDE + step) - schedule.alpha(INSIDE - step)) / (2 * step)
    torch.testing.assert_close(schedule.alpha_slope(INSIDE), differences, rtol=1e-6, atol=1e-8)


@given(noise_schedules(), times())
def test_alpha_undoes_the_inverse(schedule, t):
    alpha = schedule.alpha(t)
    torch.testing.assert_close(schedule.alpha(schedule.inverse(alpha)), alpha, rtol=0.0, atol=1e-12)


@every
def test_the_inverse_undoes_alpha(schedule):
    torch.testing.assert_close(schedule.inverse(schedule.alpha(INSIDE)), INSIDE, rtol=0.0, atol=1e-9)


@every
def test_functions_keep_shape_and_type(schedule):
    t = torch.tensor([[0.25, 0.5, 0.75]])
    for function in schedule:
        assert (function(t).shape, function(t).dtype) == ((1, 3), torch.float32)


# ---- Derived quantities


@every
def test_sigma_is_minus_log_alpha(schedule):
    torch.testing.assert_close((-schedules.sigma(schedule, INSIDE)).exp(), schedule.alpha(INSIDE))


def test_sigma_is_infinite_where_nothing_is_kept():
    assert schedules.sigma(schedules.log_linear(), double(1.0)) == torch.inf


@every
def test_the_nelbo_weight_is_the_rate_at_which_masks_are_revealed(schedule):
    # The chance that a mask at t is gone a moment earlier, per time.
    step = 1e-7
    alpha, earlier = schedule.alpha(INSIDE), schedule.alpha(INSIDE - step)
    rate = (earlier - alpha) / (1.0 - alpha) / step
    torch.testing.assert_close(schedules.nelbo_weight(schedule, INSIDE), rate, rtol=1e-4, atol=1e-8)


def test_the_nelbo_weight_of_the_log_linear_schedule_is_one_over_t_whatever_eps():
    for eps in (0.0, 1e-3, 0.5):
        torch.testing.assert_close(schedules.nelbo_weight(schedules.log_linear(eps), INSIDE), 1.0 / INSIDE)


# ---- Grids


@given(st.sampled_from([schedules.uniform_grid, schedules.cosine_grid]), st.integers(1, 2000))
def test_a_grid_falls_strictly_from_exactly_one_to_exactly_zero(grid, num_steps):
    values = grid(num_steps)
    assert (values.shape, values.dtype) == ((num_steps + 1,), torch.float64)
    assert (values[0], values[-1]) == (1.0, 0.0)
    assert (values.diff() < 0.0).all()


def test_grids_in_closed_form():
    torch.testing.assert_close(schedules.uniform_grid(4), double([1.0, 0.75, 0.5, 0.25, 0.0]))
    torch.testing.assert_close(schedules.cosine_grid(3), double([1.0, 0.75**0.5, 0.5, 0.0]))


@given(noise_schedules(exact=True), step_grids())
def test_the_chances_of_a_step_multiply_to_that_of_the_whole_grid(schedule, grid):
    alpha = schedule.alpha(grid[:-1])
    stays = (1.0 - alpha[1:]) / (1.0 - alpha[:-1])
    torch.testing.assert_close(stays.prod(), (1.0 - alpha[-1]) / (1.0 - alpha[0]))


# ---- Training times


@given(st.integers(1, 32), st.sampled_from([0.0, 1e-3, 0.5]), st.data())
def test_every_stratum_holds_one_time(num_rows, low, data):
    u = data.draw(uniforms(num_rows)).clamp(1e-9, 1 - 1e-9)
    t = training_times.stratified_times(u, torch.arange(num_rows), num_rows, low)
    assert ((t - low) / (1 - low) * num_rows).floor().long().sort().values.tolist() == list(range(num_rows))
    assert t.dtype == torch.float64


@given(st.integers(1, 32), st.sampled_from([0.0, 1e-3, 0.5]), st.data())
def test_times_lie_between_low_and_one_at_the_edges_of_the_uniforms_too(num_rows, low, data):
    t = training_times.stratified_times(data.draw(uniforms(num_rows)), torch.arange(num_rows), num_rows, low)
    assert ((t >= low) & (t <= 1.0)).all()


@given(st.integers(2, 16), st.data())
def test_a_split_batch_gets_the_times_of_the_undivided_one(num_rows, data):
    u, row, cut = data.draw(uniforms(num_rows)), torch.arange(num_rows), data.draw(st.integers(1, num_rows - 1))
    parts = [training_times.stratified_times(u[part], row[part], num_rows) for part in (slice(cut), slice(cut, None))]
    assert torch.equal(torch.cat(parts), training_times.stratified_times(u, row, torch.tensor(num_rows)))


@every
def test_importance_times_run_from_low_to_one(schedule):
    t = training_times.importance_times(double([0.0, 1.0]), schedule, low=0.1)
    torch.testing.assert_close(t, double([0.1, 1.0]), rtol=0.0, atol=1e-7)


@every
def test_importance_times_are_as_dense_as_the_nelbo_weight_is_large(schedule):
    u = INSIDE.clone().requires_grad_()
    t = training_times.importance_times(u, schedule, low=0.1)
    (per_u,) = torch.autograd.grad(t.sum(), u)
    constant = training_times.importance_weight(schedule, t.detach(), low=0.1)
    torch.testing.assert_close(schedules.nelbo_weight(schedule, t.detach()) * per_u, constant, rtol=1e-5, atol=0.0)
    assert constant.shape == t.shape


# ---- Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.log_linear(eps=1.0), r"eps = 1\.0"),
        (lambda: schedules.cosine(eps=-0.5), r"eps = -0\.5"),
        (lambda: schedules.cosine_squared(eps=2.0), r"eps = 2\.0"),
        (lambda: schedules.linear(3.0, 2.0), r"sigma_min = 3\.0 must be at least 0 and below sigma_max = 2\.0"),
        (lambda: schedules.geometric(0.0, 2.0), r"sigma_min = 0\.0 must be above 0 and below sigma_max = 2\.0"),
        (lambda: schedules.polynomial(0.5), r"power = 0\.5"),
        (lambda: schedules.uniform_grid(0), r"num_steps = 0"),
        (lambda: schedules.cosine_grid(-3), r"num_steps = -3"),
        (lambda: training_times.stratified_times(double([0.5]), torch.tensor([0]), 1, low=1.0), r"low = 1\.0"),
        (lambda: training_times.importance_times(double([0.5]), schedules.cosine(), low=0.0), r"low = 0\.0"),
        (lambda: training_times.importance_weight(schedules.cosine(), double([0.5]), low=1.0), r"low = 1\.0"),
    ],
)
def test_errors_name_the_key_and_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_schedule_can_be_anyones():
    mine = Schedule(alpha=lambda t: 1 - t**4, alpha_slope=lambda t: -4 * t**3, inverse=lambda a: (1 - a) ** 0.25)
    torch.testing.assert_close(schedules.nelbo_weight(mine, INSIDE), 4.0 / INSIDE)


@pytest.mark.parametrize("make", [schedules.log_linear, schedules.cosine, schedules.cosine_squared])
def test_alpha_is_not_negative_in_float32_either(make):
    assert make().alpha(torch.ones(1)) >= 0


@pytest.mark.parametrize(
    "window",
    [0.5, "ab", None, (0.1,), (0.1, 0.2, 0.3), (0.2, "x"), ("x", 0.2), (None, 1), (0.5, 0.2), (-0.1, 1), (0, 1.1)],
)
def test_what_is_no_window_is_named(window: object) -> None:
    with pytest.raises(ValueError, match=r"^window = .* must (be two times|satisfy)"):
        schedules.check_window(window)  # type: ignore[arg-type]
