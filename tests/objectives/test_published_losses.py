"""Losses and gradients of the published denoisers, and exactly where ours differ on purpose."""

import pytest
import torch
from published_numbers import (
    F64,
    LOG_LINEAR,
    SCHEDULES,
    STEPS,
    TIME_LOW,
    Batch,
    batch_of,
    cases,
    close,
    dtypes,
    ends_of_step,
    golden,
    gradients_agree,
    log_probabilities,
    loss_tolerance,
    masked_rows,
    mean_loss,
    smallest_time,
)
from tensordict import TensorDict
from torch import Tensor, nn

import edlm
from edlm import contracts
from edlm.nn.networks import Transformer
from edlm.objectives import losses
from edlm.process import categorical, schedules, training_times
from edlm.process.schedules import Schedule

CONTINUOUS = {
    "subs": ("loglinear", False),
    "subs_tc": ("loglinear", True),
    "subs_linear": ("linear", True),
    "subs_cosine": ("cosine", True),
    "subs_noantithetic": ("loglinear", False),
}


@cases
@dtypes
@pytest.mark.parametrize("variant", CONTINUOUS)
def test_continuous_loss(case, variant, dtype):
    numbers, weights = golden(f"loss_{case}"), golden(f"dit_{case}")
    schedule, conditioned = SCHEDULES[CONTINUOUS[variant][0]], CONTINUOUS[variant][1]
    u = numbers["u_t"].double()
    t = TIME_LOW + (1 - TIME_LOW) * u if variant == "subs_noantithetic" else None
    batch = batch_of(numbers, schedule, t=t)
    assert torch.equal(batch.x_t, numbers[f"{variant}.xt"])
    network = weights.network("sd.", dtype)
    denoiser = edlm.denoisers.subs(network, numbers.mask_id, schedule if conditioned else None)
    with torch.no_grad():
        log_prob = log_probabilities(denoiser, batch)
    weight = schedules.nelbo_weight(schedule, batch.t)
    expected = numbers.at(f"{variant}.token_loss", dtype)
    close(losses.nelbo(log_prob, weight), expected.sum(1), loss_tolerance(dtype))
    loss = mean_loss(losses.nelbo(log_prob * batch.valid, weight), batch)
    close(loss, numbers.at(f"{variant}.loss", dtype), loss_tolerance(dtype))


@cases
def test_continuous_loss_gradients(case):
    numbers, weights = golden(f"loss_{case}"), golden(f"dit_{case}")
    network = weights.network("sd.")
    batch = batch_of(numbers, LOG_LINEAR)
    log_prob = log_probabilities(edlm.denoisers.subs(network, numbers.mask_id), batch) * batch.valid
    mean_loss(losses.nelbo(log_prob, schedules.nelbo_weight(LOG_LINEAR, batch.t)), batch).backward()
    gradients_agree(network, numbers.part("subs.grad."))


class ToldTime(nn.Module):
    """A network that is told the number it is given for sigma, as the published change of variables tells it u."""

    def __init__(self, network: Transformer, told: Tensor) -> None:
        super().__init__()
        self.network, self.told, self.head, self.max_length = network, told, network.head, network.max_length

    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        return self.network(tokens, self.told, positions)


@cases
@pytest.mark.parametrize("variant", ["subs_is", "subs_cov", "subs_cov_tc"])
def test_importance_sampled_loss(case, variant):
    # Change of variables is the same law of 1 - alpha; it tells a time-conditioned network u where sigma belongs.
    numbers, weights = golden(f"loss_{case}"), golden(f"dit_{case}")
    low = smallest_time(LOG_LINEAR)
    u = batch_of(numbers, LOG_LINEAR).t
    t = training_times.importance_times(u, LOG_LINEAR, low)
    batch = batch_of(numbers, LOG_LINEAR, t=t)
    assert torch.equal(batch.x_t, numbers[f"{variant}.xt"])
    network = weights.network("sd.")
    told = ToldTime(network, u) if variant == "subs_cov_tc" else network
    with torch.no_grad():
        log_prob = log_probabilities(edlm.denoisers.subs(told, numbers.mask_id), batch)
    weight = training_times.importance_weight(LOG_LINEAR, t, low)
    # The published weight lacks `log(1 - alpha(1))`, the upper end of the integral; its other end is float32.
    missing = -(1 - LOG_LINEAR.alpha(torch.ones((), dtype=F64))).log()
    assert 0 < missing / weight[0] < 2e-4
    close(losses.nelbo(log_prob, weight + missing), numbers[f"{variant}.token_loss_f64"].sum(1), 2e-6)
    loss = mean_loss(losses.nelbo(log_prob * batch.valid, weight + missing), batch)
    close(loss, numbers[f"{variant}.loss_f64"], 2e-6)


@cases
@dtypes
def test_t_step_loss(case, dtype):
    numbers, weights = golden(f"loss_{case}"), golden(f"dit_{case}")
    batch = batch_of(numbers, LOG_LINEAR, t_step=True)
    assert torch.equal(batch.x_t, numbers["subs_T1000.xt"])
    with torch.no_grad():
        log_prob = log_probabilities(edlm.denoisers.subs(weights.network("sd.", dtype), numbers.mask_id), batch)
    alphas, expected = ends_of_step(LOG_LINEAR, batch.t), numbers.at("subs_T1000.token_loss", dtype)
    close(losses.t_step(log_prob, *alphas, STEPS), expected.sum(1), loss_tolerance(dtype))
    loss = mean_loss(losses.t_step(log_prob * batch.valid, *alphas, STEPS), batch)
    close(loss, numbers.at("subs_T1000.loss", dtype), loss_tolerance(dtype))


def d3pm_loss(network: nn.Module, batch: Batch, mask_id: int, weigh: Schedule, told: Schedule | None) -> Tensor:
    """The D3PM loss as published, per position (b, l): KL of a step, and the reconstruction of the clean text."""

    def log_probs(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        denoiser = edlm.denoisers.d3pm(network, mask_id, told)
        everywhere = {contracts.X_T: x, contracts.T: t, contracts.POSITIONS: torch.arange(x.numel())}
        log_p = denoiser.log_prob(denoiser(TensorDict(everywhere))[contracts.HIDDEN]).view(*x.shape, -1)
        return log_p.gather(-1, batch.x_0.unsqueeze(-1)).squeeze(-1), log_p[..., mask_id]

    alphas = [alpha.unsqueeze(1).expand(batch.x_0.shape).flatten() for alpha in ends_of_step(weigh, batch.t)]
    log_p, log_p_mask = log_probs(batch.x_t, batch.t)
    masked = batch.x_t == mask_id
    flat = [value.flatten().unsqueeze(1) for value in (log_p, log_p_mask, masked)]
    step = losses.d3pm(*flat, *alphas, STEPS).view_as(log_p)
    return step - log_probs(batch.x_0, torch.zeros_like(batch.t))[0]


@cases
@pytest.mark.parametrize("variant", ["d3pm_T1000", "d3pm_T1000_tc"])
def test_d3pm_loss(case, variant):
    numbers, weights = golden(f"loss_{case}"), golden(f"dit_{case}")
    batch = batch_of(numbers, LOG_LINEAR, t_step=True)
    network, told = weights.network("sd."), LOG_LINEAR if variant.endswith("tc") else None
    # Published: masks are drawn with alpha = 1 - 0.999 t, the step is weighed with alpha = 1 - t.
    tokens = d3pm_loss(network, batch, numbers.mask_id, schedules.log_linear(), told)
    close(tokens, numbers[f"{variant}.token_loss_f64"], 1e-6)
    loss = (tokens * batch.valid).sum() / batch.valid.sum()
    close(loss, numbers[f"{variant}.loss_f64"], 1e-6)
    if variant == "d3pm_T1000":
        loss.backward()
        gradients_agree(network, numbers.part("d3pm_T1000.grad."))


@cases
def test_d3pm_with_one_schedule_differs_a_little_from_the_published_two(case):
    numbers, weights = golden(f"loss_{case}"), golden(f"dit_{case}")
    batch, network = batch_of(numbers, LOG_LINEAR, t_step=True), weights.network("sd.")
    with torch.no_grad():
        one = d3pm_loss(network, batch, numbers.mask_id, LOG_LINEAR, None).sum()
    relative = float(one / numbers["d3pm_T1000.token_loss_f64"].sum() - 1)
    assert 1e-7 < abs(relative) < 1e-3


@cases
def test_d3pm_that_cannot_predict_the_mask_is_the_t_step_loss_and_a_reconstruction(case):
    numbers, weights = golden(f"loss_{case}"), golden(f"dit_{case}")
    batch, network = batch_of(numbers, LOG_LINEAR, t_step=True), weights.network("sd.")
    denoiser = edlm.denoisers.subs(network, numbers.mask_id)
    with torch.no_grad():
        step = losses.t_step(log_probabilities(denoiser, batch), *ends_of_step(LOG_LINEAR, batch.t), STEPS)
        clean = categorical.token_log_prob(
            denoiser.logits(network(batch.x_0).flatten(0, 1)), batch.x_0.flatten().unsqueeze(1)
        ).view_as(batch.x_0)
    close(step - clean.sum(1), numbers["d3pm_T1000_subsmask.token_loss_f64"].sum(1), 1e-6)


@cases
@dtypes
@pytest.mark.parametrize(("variant", "noise"), [("sedd", "loglinear"), ("sedd_geometric", "geometric")])
def test_score_entropy(case, variant, noise, dtype):
    numbers, weights = golden(f"loss_{case}"), golden(f"dit_{case}")
    schedule, network = SCHEDULES[noise], weights.network("sd.", dtype)
    batch = batch_of(numbers, schedule)
    assert torch.equal(batch.x_t, numbers[f"{variant}.xt"])
    positions = masked_rows(numbers, batch.x_t)
    t = batch.t.unsqueeze(1).expand(batch.x_0.shape).flatten()[positions]
    denoiser = edlm.denoisers.sedd(network, numbers.mask_id, schedule)
    state = {contracts.X_T: batch.x_t, contracts.T: batch.t, contracts.POSITIONS: positions}
    hidden = denoiser(TensorDict(state))[contracts.HIDDEN]
    alpha, x_0 = schedule.alpha(t), batch.x_0.flatten()[positions]
    loss = losses.sedd(denoiser.log_score(hidden, alpha), x_0, alpha, schedule.alpha_slope(t), numbers.mask_id)
    close(loss, numbers.at(f"{variant}.token_loss", dtype).flatten()[positions], loss_tolerance(dtype))
    loss = (loss * batch.valid.flatten()[positions]).sum() / batch.valid.sum()
    close(loss, numbers.at(f"{variant}.loss", dtype), loss_tolerance(dtype))
    if variant == "sedd" and dtype == F64:
        loss.backward()
        gradients_agree(network, numbers.part("sedd.grad."))
