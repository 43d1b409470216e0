"""Schedules, training times and reverse steps of the published code beside ours."""

import pytest
import torch
from published_numbers import (
    F64,
    LOG_LINEAR,
    SCHEDULES,
    TIME_LOW,
    cases,
    close,
    dtypes,
    golden,
    logits_tolerance,
    masked_rows,
    smallest_time,
    told_tolerance,
)
from tensordict import TensorDict

import edlm
from edlm import contracts
from edlm.process import absorbing, schedules, training_times


@dtypes
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name, dtype):
    # The published float64 numbers hold float32 constants.
    numbers, schedule = golden("noise"), SCHEDULES[name]
    t = numbers.at("t", dtype)
    sigma, expected = schedules.sigma(schedule, t), numbers.at(f"{name}.sigma", dtype)
    slope, expected_slope = -schedule.alpha_slope(t) / schedule.alpha(t), numbers.at(f"{name}.dsigma", dtype).to(dtype)
    # float32: sigma goes through alpha here, which rounds to 6e-8 where sigma is small.
    assert torch.allclose(sigma, expected, rtol=2e-7 if dtype == F64 else 1e-6, atol=0.0 if dtype == F64 else 1.2e-7)
    visible = schedule.alpha(t) > 1e-6  # below it float32 leaves nothing of the quotient
    assert torch.allclose(slope[visible], expected_slope[visible], rtol=2e-7 if dtype == F64 else 1e-6, atol=0.0)


def test_the_published_code_has_no_polynomial_schedule_and_ours_is_exact_at_both_ends():
    assert golden("noise").config["status"]["polynomial"].startswith("FAILS")
    ends = torch.tensor([0.0, 1.0], dtype=F64)
    assert schedules.polynomial(2.0).alpha(ends).tolist() == [1.0, 0.0]
    # Published: sigma ends at -log(1e-3). Ours without eps ends with no token left.
    assert schedules.sigma(schedules.log_linear(), ends).tolist() == [0.0, float("inf")]
    assert golden("noise")["loglinear.sigma_f64"][-1] == pytest.approx(6.9077, abs=1e-4)


@pytest.mark.parametrize("name", ["loglinear", "linear"])
def test_importance_sampled_times(name):
    numbers, schedule = golden("noise"), SCHEDULES[name]
    times = training_times.importance_times(numbers["t_f64"], schedule, smallest_time(schedule))
    # The ends of the published transform are float32 numbers: log(1 - exp(-1e-3)) keeps five digits.
    assert torch.allclose(times, numbers[f"{name}.is_transform_f64"], rtol=2e-5, atol=1e-6)


def test_importance_sampled_times_are_finite_where_the_published_ones_are_not():
    numbers, schedule = golden("noise"), SCHEDULES["linear_default"]  # sigma_min = 0
    assert not numbers["linear_default.is_transform_f64"].isfinite().all()
    times = training_times.importance_times(numbers["t_f64"], schedule, low=1e-3)
    assert times.isfinite().all()
    assert torch.allclose(times[[0, -1]], torch.tensor([1e-3, 1.0], dtype=F64))


@pytest.mark.parametrize("n", [1, 5, 8])
@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("antithetic", [False, True])
def test_training_times(n, importance, antithetic):
    numbers = golden("sample_t")
    u, row = numbers[f"n{n}.u"].double(), torch.arange(n)
    # Without strata every row is a batch of its own.
    t = training_times.stratified_times(u, row if antithetic else 0 * row, n if antithetic else 1, TIME_LOW)
    if importance:
        t = training_times.importance_times(t, LOG_LINEAR, smallest_time(LOG_LINEAR))
    expected = numbers[f"n{n}.t_anti{int(antithetic)}_imp{int(importance)}_f64"]
    # i / n is float32 in the published code, and so are the ends of its transform.
    assert torch.allclose(t, expected, rtol=1e-5 if importance else 0.0, atol=5e-8)


@cases
@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("update", ["cache", "ddpm"])
def test_a_plain_step_has_the_published_weights(case, conditioned, update):
    """`p(x_0) (alpha_s - alpha_t)` for a token, `1 - alpha_s` for the mask: SUBS and the reveal plan imply both."""
    numbers, weights = golden(f"ddpm_{case}"), golden(f"dit_{case}")
    x, t = numbers["x"], numbers["t"].double().squeeze(1)
    s, positions = t - numbers["dt"], masked_rows(numbers, x)
    denoiser = edlm.denoisers.subs(weights.network("sd."), numbers.mask_id, LOG_LINEAR if conditioned else None)
    with torch.no_grad():
        state = {contracts.X_T: x, contracts.T: t, contracts.POSITIONS: positions}
        p_x_0 = denoiser.logits(denoiser(TensorDict(state))[contracts.HIDDEN]).softmax(-1)
    alpha_t, alpha_s = LOG_LINEAR.alpha(t), LOG_LINEAR.alpha(s)
    of_row = (positions // x.shape[1]).long()
    expected = numbers[f"{update}_tc{int(conditioned)}.q_xs_f64"].flatten(0, 1)[positions]
    ours = p_x_0 * (alpha_s - alpha_t)[of_row].unsqueeze(1)
    ours[:, numbers.mask_id] = (1 - alpha_s)[of_row]
    tolerance = told_tolerance if conditioned else logits_tolerance
    close(ours / ours.sum(1, keepdim=True), expected / expected.sum(1, keepdim=True), tolerance(F64))
    for row in of_row.unique().tolist():
        stay = expected[of_row == row][0, numbers.mask_id] / expected[of_row == row][0].sum()
        assert revealed_share(float(t[row]), float(s[row])) == pytest.approx(1 - float(stay), abs=2e-4)


def revealed_share(t: float, s: float) -> float:
    """Of the positions that are masked at t, the share that the reveal plan reveals until s."""
    count = 20_000
    uniforms = (torch.arange(count, dtype=F64).unsqueeze(0) + 0.5) / count
    plan = absorbing.reveal_plan(
        uniforms, torch.ones_like(uniforms).bool(), LOG_LINEAR, torch.tensor([1.0, t, s, 0.0], dtype=F64)
    )
    return float((plan.order == 1).sum() / (plan.order >= 1).sum())
