"""Objectives have the expectation that they claim, and their minimum where theory puts it.

Expectations are exact: sums over every set of masks, every draft and every tuple of drafts.
"""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    all_sequences,
    ar_log_prob,
    exact_nll,
    joint_posterior,
    marginal_table,
    posterior_marginals,
    random_joint,
    random_marginals,
    residual_energy,
    t_step_nelbo,
)
from oracles import nelbo as exact_nelbo
from strategies import finite_energies, noise_schedules
from torch import Tensor

from edlm.objectives import losses as objectives
from edlm.process import schedules

close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-10)

JOINT = random_joint(0, 3, 3)
TABLE = random_marginals(1, 3, 3)  # an imperfect denoiser
X_0 = torch.tensor([0, 2, 1])


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---- Bounds of the likelihood


def masked_log_prob(table: Tensor) -> tuple[Tensor, Tensor]:
    """`log p_i(x_0^i | x_t)` of X_0 for every set of masks, zero where visible, (2^l, l), and the masks."""
    masked = all_sequences(2, len(X_0)).bool()
    x_t = torch.where(masked, table.shape[-1] - 1, X_0)
    log_prob = table[x_t.unbind(-1)].gather(-1, X_0.expand_as(x_t).unsqueeze(-1)).squeeze(-1)
    return torch.where(masked, log_prob, 0.0), masked


def chance_of_masks(masked: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(masked, 1.0 - alpha, alpha).prod(-1)


@pytest.mark.parametrize("schedule", [schedules.log_linear(), schedules.cosine(), schedules.polynomial(2.0)])
def test_the_nelbo_has_its_expectation_over_times_and_masks(schedule):
    log_prob, masked = masked_log_prob(TABLE)
    total = 0.0
    for t in (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000:
        loss = objectives.nelbo(log_prob, schedules.nelbo_weight(schedule, t).expand(len(masked)))
        total += float((chance_of_masks(masked, schedule.alpha(t)) * loss).sum()) / 2000
    assert total == pytest.approx(exact_nelbo(TABLE, X_0.unsqueeze(0)).item(), rel=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_the_t_step_loss_has_its_expectation_over_steps_and_masks(num_steps):
    log_prob, masked = masked_log_prob(TABLE)
    alphas = schedules.cosine().alpha(schedules.uniform_grid(num_steps)).round(decimals=12)
    total = 0.0
    for alpha_t, alpha_s in pairwise(alphas):
        loss = objectives.t_step(log_prob, alpha_t.expand(8), alpha_s.expand(8), num_steps)
        total += float((chance_of_masks(masked, alpha_t) * loss).sum()) / num_steps
    assert total == pytest.approx(t_step_nelbo(TABLE, alphas, X_0.unsqueeze(0)).item(), rel=1e-9)


def test_many_steps_make_the_t_step_loss_the_nelbo():
    schedule, num_steps = schedules.cosine(), 10**6
    t = torch.linspace(0.01, 1.0, 50, dtype=torch.float64)
    log_prob = -torch.rand(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = objectives.t_step(log_prob, schedule.alpha(t), schedule.alpha(t - 1 / num_steps), num_steps)
    torch.testing.assert_close(step, objectives.nelbo(log_prob, schedules.nelbo_weight(schedule, t)), rtol=1e-3, atol=0)


def test_next_token_is_the_exact_negative_log_likelihood():
    x = all_sequences(3, 3)
    close(objectives.next_token(ar_log_prob(JOINT, x)), exact_nll(JOINT, x))


@pytest.mark.parametrize(("alpha_t", "alpha_s"), [(0.0, 0.5), (0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (0.25, 0.5)])
def test_t_step_losses_and_their_gradients_are_finite_at_the_ends_of_the_grid(alpha_t, alpha_s):
    log_prob = double([[-1.0, 0.0]]).requires_grad_()
    log_prob_mask = double([[-2.0, -2.0]]).requires_grad_()
    masked = torch.tensor([[True, False]])
    ends = double([alpha_t]), double([alpha_s])
    losses = [
        objectives.t_step(log_prob, *ends, num_steps=3),
        objectives.d3pm(log_prob, log_prob_mask, masked, *ends, num_steps=3),
    ]
    for loss in losses:
        gradients = torch.autograd.grad(loss.sum(), (log_prob, log_prob_mask), allow_unused=True)
        assert loss.isfinite().all()
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


# ---- Baselines


@given(st.floats(0.01, 0.98), st.floats(0.01, 0.98), st.floats(0.05, 0.9), st.floats(0.05, 0.95))
def test_d3pm_is_the_divergence_of_one_step_of_the_process(alpha_1, alpha_2, p_mask, share):
    alpha_t, alpha_s = min(alpha_1, alpha_2), max(alpha_1, alpha_2) + 0.01
    p_token = share * (1 - p_mask)  # of the data's token; other tokens have the rest
    q = {"token": (alpha_s - alpha_t) / (1 - alpha_t), "mask": (1 - alpha_s) / (1 - alpha_t)}
    # p(x_s, x_t = mask) = sum over x_0 of q(x_s, x_t = mask | x_0) p(x_0)
    p = {"token": p_token * (alpha_s - alpha_t), "mask": (1 - p_mask) * (1 - alpha_s) + p_mask}
    p_mask_at_t = (1 - p_mask) * (1 - alpha_t) + p_mask
    expected = sum(q[k] * math.log(q[k] * p_mask_at_t / p[k]) for k in q)
    arguments = double([[p_token, 1.0]]).log(), double([[p_mask, 0.9]]).log(), torch.tensor([[True, False]])
    loss = objectives.d3pm(*arguments, double([alpha_t]), double([alpha_s]), num_steps=7)
    assert loss.item() == pytest.approx(7 * expected, rel=1e-9, abs=1e-9)


@given(finite_energies(2, 3, bound=5.0), st.floats(0.0, 0.9))
def test_d3pm_that_cannot_predict_the_mask_is_the_t_step_loss(log_prob, alpha):
    masked = torch.tensor([[True, False, True], [True, True, False]])
    log_prob = torch.where(masked, -log_prob.abs(), 0.0)
    ends = double([alpha, alpha]), double([alpha + 0.1, alpha + 0.05])
    d3pm = objectives.d3pm(log_prob, torch.full_like(log_prob, -torch.inf), masked, *ends, num_steps=4)
    close(d3pm, objectives.t_step(log_prob, *ends, num_steps=4))


@given(finite_energies(3, 5, bound=8.0), st.floats(0.01, 0.99))
def test_score_entropy_is_never_negative_and_ignores_the_masks_own_score(log_score, alpha):
    x_0, alphas, slope = torch.tensor([0, 1, 3]), double([alpha] * 3), double([-1.0] * 3)
    loss = objectives.sedd(log_score, x_0, alphas, slope, mask_id=4)
    assert (loss >= -1e-9).all()
    assert torch.equal(loss, objectives.sedd(log_score.index_fill(1, torch.tensor(4), 3.0), x_0, alphas, slope, 4))


def test_score_entropy_is_zero_at_the_true_ratio():
    alpha = double([0.1, 0.5, 0.9])
    log_score = torch.full((3, 4), -torch.inf, dtype=torch.float64)
    log_score[:, 2] = alpha.logit()
    loss = objectives.sedd(log_score, torch.tensor([2, 2, 2]), alpha, double([-1.0] * 3), mask_id=3)
    close(loss, double([0.0] * 3))


@given(noise_schedules(), st.floats(0.05, 0.95))
def test_score_entropy_of_scores_that_sum_to_the_ratio_is_the_nelbo(schedule, t):
    log_p = double([[0.2, 0.3, 0.5]]).log()
    time = double([t])
    alpha = schedule.alpha(time)
    log_score = torch.cat([log_p + alpha.logit(), double([[0.0]])], dim=-1)
    loss = objectives.sedd(log_score, torch.tensor([1]), alpha, schedule.alpha_slope(time), mask_id=3)
    close(loss, objectives.nelbo(log_p[:, 1:2], schedules.nelbo_weight(schedule, time)))


# ---- Contrastive objectives


def test_an_energy_that_knows_nothing_scores_log_two_twice_or_the_log_of_the_choices():
    for n in (1, 2, 7):
        zeros = torch.zeros(3), torch.zeros(3, n)
        torch.testing.assert_close(objectives.nce(*zeros), torch.full((3,), 2 * math.log(2)))
        torch.testing.assert_close(objectives.info_nce(*zeros), torch.full((3,), math.log(1 + n)))
        assert objectives.nce_accuracy(*zeros).tolist() == [0.5] * 3


@given(finite_energies(2, bound=30.0), finite_energies(2, 3, bound=30.0))
def test_nce_is_the_cross_entropy_of_telling_data_from_drafts(positive, negative):
    is_data, is_draft = torch.sigmoid(-positive).log(), torch.sigmoid(negative).log().mean(-1)
    torch.testing.assert_close(objectives.nce(positive, negative), -is_data - is_draft, rtol=1e-9, atol=1e-9)


@given(finite_energies(2, bound=30.0), finite_energies(2, 3, bound=30.0), st.floats(-100.0, 100.0))
def test_info_nce_is_the_cross_entropy_of_finding_the_data_whatever_is_added_to_all(positive, negative, shift):
    weights = torch.cat([positive.unsqueeze(-1), negative], -1).neg().exp()
    expected = -(weights[:, 0] / weights.sum(-1)).log()
    torch.testing.assert_close(objectives.info_nce(positive, negative), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(objectives.info_nce(positive + shift, negative + shift), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("objective", [objectives.nce, objectives.info_nce])
@pytest.mark.parametrize("size", [30.0, 1e3])
def test_gradients_stay_finite_and_alive_where_the_energy_is_most_wrong(objective, size):
    positive, negative = torch.tensor([size]).requires_grad_(), torch.tensor([[-size, -size]]).requires_grad_()
    loss = objective(positive, negative)
    gradients = torch.autograd.grad(loss.sum(), (positive, negative))
    assert loss.isfinite().all()
    assert gradients[0].item() == pytest.approx(1.0)
    assert gradients[1].sum().item() == pytest.approx(-1.0)


def test_the_published_form_learns_nothing_there():
    positive = torch.tensor([30.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(-(torch.sigmoid(-positive) + 1e-8).log().sum(), positive)
    assert gradient.abs() < 1e-4


@given(finite_energies(2, bound=3.0), finite_energies(2, 4, bound=3.0))
def test_accuracy_counts_ordered_pairs_and_half_of_the_ties(positive, negative):
    positive, negative = positive.round(), negative.round()
    expected = [
        sum(1.0 if draft > data else 0.5 if draft == data else 0.0 for draft in drafts) / 4
        for data, drafts in zip(positive.tolist(), negative.tolist(), strict=True)
    ]
    assert objectives.nce_accuracy(positive, negative).tolist() == expected


# ---- The optimum of contrastive learning


def laws_at(x_t: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Data and denoiser as laws of whole drafts of x_t, (d,) each, and the residual energy between them, (d,)."""
    state = torch.tensor([x_t])
    data = joint_posterior(JOINT, state).exp()[0]
    possible = data > 0
    drafts = all_sequences(3, 3)[possible]
    marginals = posterior_marginals(JOINT, state)[0]
    proposal = marginals.gather(-1, drafts.T).sum(0).exp()
    return data[possible], proposal, residual_energy(JOINT, marginal_table(JOINT))(drafts.unsqueeze(0), state)[0]


def expected_loss(objective: object, energy: Tensor, data: Tensor, proposal: Tensor, n: int) -> Tensor:
    """Mean over the data and over n drafts, all of them: energies (d,) to a scalar."""
    tuples = torch.cartesian_prod(*[torch.arange(len(energy))] * n).view(-1, n)
    chance = data.unsqueeze(1) * proposal[tuples].prod(-1)  # (d, d^n)
    losses = torch.stack([objective(e.expand(len(tuples)), energy[tuples]) for e in energy])
    return (chance * losses).sum()


@pytest.mark.parametrize("x_t", [[3, 3, 0], [1, 3, 3]])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("objective", [objectives.nce, objectives.info_nce])
def test_the_optimum_is_the_residual_energy_whatever_the_number_of_negatives(objective, n, x_t):
    data, proposal, residual = laws_at(x_t)
    close(residual, -(data / proposal).log())
    energy = residual.clone().requires_grad_()
    loss = expected_loss(objective, energy, data, proposal, n)
    (gradient,) = torch.autograd.grad(loss, energy, create_graph=True)
    close(gradient, torch.zeros_like(gradient))
    for direction in torch.eye(len(energy), dtype=torch.float64):
        (curvature,) = torch.autograd.grad(gradient @ direction, energy, retain_graph=True)
        assert curvature @ direction > 1e-3  # a minimum, and elsewhere the gradient is not zero


@pytest.mark.parametrize(("objective", "n"), [(objectives.nce, 1), (objectives.nce, 2), (objectives.info_nce, 2)])
def test_a_table_trained_from_zero_becomes_the_residual_energy(objective, n):
    data, proposal, residual = laws_at([3, 3, 0])
    energy = torch.zeros_like(residual).requires_grad_()
    optimizer = torch.optim.LBFGS([energy], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = expected_loss(objective, energy, data, proposal, n)
        value.backward()
        return value

    optimizer.step(loss)
    learned = energy.detach()
    if objective is objectives.info_nce:  # known up to a constant, which no sample depends on
        learned = learned - (learned - residual).mean()
    torch.testing.assert_close(learned, residual, rtol=0, atol=1e-4)


@pytest.mark.parametrize("n", [1, 3])
def test_nce_knows_z_and_info_nce_does_not(n):
    data, proposal, residual = laws_at([3, 3, 0])
    for objective, moves in ((objectives.nce, True), (objectives.info_nce, False)):
        shifted = (residual + 0.7).requires_grad_()
        (gradient,) = torch.autograd.grad(expected_loss(objective, shifted, data, proposal, n), shifted)
        assert bool(gradient.abs().max() > 1e-3) == moves
