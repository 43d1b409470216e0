"""Energies of the published code, their losses and validation figures, and exactly where ours differ on purpose."""

from typing import NamedTuple

import pytest
import torch
from builders import masked_positions
from published_numbers import (
    F64,
    LOG_LINEAR,
    STEPS,
    Batch,
    Golden,
    batch_of,
    by_sigma,
    cases,
    close,
    dtypes,
    ends_of_step,
    golden,
    gradients_agree,
    log_probabilities,
    logits_tolerance,
    mean_loss,
    told_tolerance,
)
from tensordict import TensorDict
from torch import Tensor, nn

import edlm
from edlm import contracts
from edlm.models import autoregressive, energies
from edlm.objectives import losses
from edlm.process import particles, schedules


@cases
@dtypes
@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("draft", ["x0", "x0_given"])
def test_energy(case, dtype, conditioned, draft):
    numbers = golden(f"ebm_bi_{case}")
    energy = energies.learned(numbers.network("ebm.", dtype))
    if conditioned:
        energy.module.schedule = by_sigma(numbers["sigma"].to(dtype))
    state = {
        contracts.CANDIDATES: numbers[draft].unsqueeze(1),
        contracts.X_T: numbers["xt"],
        contracts.T: torch.zeros(len(numbers["xt"])),
    }
    with torch.no_grad():
        ours = energy(TensorDict(state))[contracts.ENERGY].squeeze(1)
    expected = numbers.at(f"energy_tc{int(conditioned)}_{draft.removeprefix('x0_')}", dtype)
    close(ours, expected, (told_tolerance if conditioned else logits_tolerance)(dtype))


@cases
def test_energy_reads_x_t_first(case):
    numbers = golden(f"ebm_bi_{case}")
    network, x_t, x_0 = numbers.network("ebm."), numbers["xt"], numbers["x0"]
    with torch.no_grad():
        swapped = network(x_0, x_t)
    assert ((swapped - numbers.at("energy_tc0_x0", F64)).abs() > 1e-3).any()


def constant_in_the_logarithm(energy_positive: Tensor, energy_negative: Tensor) -> Tensor:
    """By how much `log(sigmoid(x) + 1e-8)` lowers the loss, at most: 1e-8 / sigmoid(x) for each of the two terms."""
    return 1e-8 * ((1 + energy_positive.exp()) + (1 + (-energy_negative).exp()))


@cases
def test_nce_loss_and_gradients(case):
    numbers = golden(f"ebm_bi_{case}")
    network = numbers.network("ebm.")
    batch = batch_of(numbers, LOG_LINEAR)
    assert torch.equal(batch.x_t, numbers["nce.xt"])
    pair = torch.stack([batch.x_0, numbers["nce.x0_neg"]], dim=1)
    state = {contracts.CANDIDATES: pair, contracts.X_T: batch.x_t, contracts.T: batch.t}
    positive, negative = energies.learned(network)(TensorDict(state))[contracts.ENERGY].unbind(1)
    close(positive, numbers.at("nce.energy_pos", F64), 1e-8)
    close(negative, numbers.at("nce.energy_neg", F64), 1e-8)
    rows = losses.nce(positive, negative.unsqueeze(1))
    gap = rows - numbers["nce.nlls_f64"].amax(1)  # one number per row, repeated where there is no padding
    assert (gap > -1e-12).all()
    assert (gap <= constant_in_the_logarithm(positive, negative) + 1e-12).all()
    loss = (rows.unsqueeze(1) * batch.valid).sum() / batch.valid.sum()
    close(loss, numbers["nce.loss_f64"], 1e-5)
    loss.backward()
    gradients_agree(network, numbers.part("nce.grad."))


@cases
@pytest.mark.parametrize("t_step", [False, True])
def test_validation_of_the_energy(case, t_step):
    """Weight times `-log p_theta + E + log Z`, published with log Z from one draft and padding inside E."""
    numbers, name = golden(f"ebm_bi_{case}"), "val_T1000" if t_step else "val_T0"
    batch = batch_of(numbers, LOG_LINEAR, t_step)
    assert torch.equal(batch.x_t, numbers[f"{name}.xt"])
    with torch.no_grad():
        log_prob = log_probabilities(edlm.denoisers.subs(numbers.network("den."), numbers.mask_id), batch)
        network = numbers.network("ebm.")
        energy, of_draft = network(batch.x_t, batch.x_0), network(batch.x_t, numbers[f"{name}.x0_neg"])
    close(energy, numbers.at(f"{name}.energy_pos", F64), 1e-8)
    log_z = particles.log_mean_weight(particles.log_weights(of_draft.unsqueeze(1)))
    weight = schedules.nelbo_weight(LOG_LINEAR, batch.t)
    if t_step:  # T times the step's reveal probability is 1 / t on the log-linear schedule, as is the weight
        alpha_t, alpha_s = ends_of_step(LOG_LINEAR, batch.t)
        weight = STEPS * (alpha_s - alpha_t) / (1 - alpha_t)
    share = batch.valid.double().mean(1)  # padding takes its part of E + log Z out of the published number
    rows = losses.nelbo(log_prob * batch.valid, weight) + weight * share * (energy + log_z)
    close(rows, numbers[f"{name}.nlls_f64"].sum(1), 1e-6)
    close(mean_loss(rows, batch), numbers[f"{name}.loss_f64"], 1e-6)
    whole = batch.valid.all(1)
    close(
        (losses.nelbo(log_prob, weight) + weight * (energy + log_z))[whole],
        numbers[f"{name}.nlls_f64"].sum(1)[whole],
        1e-6,
    )


class ArEnergy(NamedTuple):
    """Our energy of some drafts, and what the published one adds: log p_theta of position 0 where it is masked."""

    ours: Tensor
    stray: Tensor


def ar_energy(numbers: Golden, ar: nn.Module, x_t: Tensor, draft: Tensor, carry_over: bool) -> ArEnergy:
    denoiser = edlm.denoisers.subs(numbers.network("den."), numbers.mask_id)
    batch = Batch(torch.ones(len(x_t), dtype=F64), draft, x_t, torch.ones_like(x_t).bool())
    with torch.no_grad():
        log_p = log_probabilities(denoiser, batch)
    energy = energies.residual_ar(ar, numbers.mask_id, bos_id=None, carry_over=carry_over)
    state = {
        contracts.CANDIDATES: draft.unsqueeze(1),
        contracts.X_T: x_t,
        contracts.POSITIONS: masked_positions(x_t, numbers.mask_id),
        contracts.LOG_P_CANDIDATES: log_p.unsqueeze(1),
    }
    return ArEnergy(energy(TensorDict(state))[contracts.ENERGY].squeeze(1), log_p[:, 0])


@cases
@dtypes
@pytest.mark.parametrize("carry_over", [False, True])
@pytest.mark.parametrize("draft", ["x0", "x0_given"])
def test_autoregressive_energy(case, dtype, carry_over, draft):
    """Published: AR part from position 1, denoiser part from 0. Ours: both from 1 when the first token is given."""
    numbers = golden(f"ebm_ar_{case}")
    with torch.no_grad():
        energy = ar_energy(numbers, numbers.network("ar.", dtype), numbers["xt"], numbers[draft], carry_over)
    name = f"co{int(carry_over)}_{draft.removeprefix('x0_')}"
    close(energy.ours + energy.stray, numbers.at(f"energy_{name}", dtype), logits_tolerance(dtype))
    masked_at_0 = numbers["xt"][:, 0] == numbers.mask_id
    assert (energy.stray[masked_at_0] < -0.1).all()
    assert (energy.stray[~masked_at_0] == 0).all()
    assert masked_at_0.any()


def published_nce(positive: Tensor, negative: Tensor) -> Tensor:
    return -((torch.sigmoid(-positive) + 1e-8).log() + (torch.sigmoid(negative) + 1e-8).log())


@cases
@pytest.mark.parametrize("carry_over", [False, True])
def test_nce_of_the_autoregressive_energy(case, carry_over):
    numbers, name = golden(f"ebm_ar_{case}"), f"nce_co{int(carry_over)}"
    ar, batch = numbers.network("ar."), batch_of(numbers, LOG_LINEAR)
    assert torch.equal(batch.x_t, numbers[f"{name}.xt"])
    positive, negative = (
        sum(ar_energy(numbers, ar, batch.x_t, draft, carry_over)) for draft in (batch.x_0, numbers[f"{name}.x0_neg"])
    )
    close(positive, numbers.at(f"{name}.energy_pos", F64), 1e-8)
    close(negative, numbers.at(f"{name}.energy_neg", F64), 1e-8)
    expected = numbers[f"{name}.nlls_f64"].amax(1)
    close(published_nce(positive, negative), expected, 1e-8)
    gap = losses.nce(positive, negative.unsqueeze(1)) - expected
    assert (gap > -1e-9).all()
    assert (gap <= constant_in_the_logarithm(positive, negative) + 1e-9).all()
    if carry_over:
        rows = published_nce(positive, negative).unsqueeze(1) * batch.valid
        (rows.sum() / batch.valid.sum()).backward()
        gradients_agree(ar, numbers.part(f"{name}.grad."))


@cases
def test_the_published_nce_is_flat_where_ours_still_teaches(case):
    numbers = golden(f"ebm_ar_{case}")
    energy = numbers.at("nce_co0.energy_pos", F64).clone().requires_grad_()
    far = energy.detach() > 18.5
    assert far.any()
    loss = losses.nce(energy, torch.full((len(energy), 1), 100.0, dtype=F64))
    (slope,) = torch.autograd.grad(loss.sum(), energy)
    (flat,) = torch.autograd.grad(published_nce(energy, torch.full_like(energy, 100.0)).sum(), energy)
    assert (slope[far] > 0.999).all()
    assert (flat[far] < 0.5).all()
    assert (numbers["nce_co0.nlls_f64"] <= 18.43 * 2).all()


@cases
@pytest.mark.parametrize("carry_over", [False, True])
@pytest.mark.parametrize("t_step", [False, True])
def test_validation_of_the_autoregressive_energy(case, carry_over, t_step):
    """Published without log Z, and free of charge for position 0, whose stray term takes its own cost away."""
    numbers, name = golden(f"ebm_ar_{case}"), f"val_T{STEPS if t_step else 0}_co{int(carry_over)}"
    batch = batch_of(numbers, LOG_LINEAR, t_step)
    assert torch.equal(batch.x_t, numbers[f"{name}.xt"])
    with torch.no_grad():
        ar = numbers.network("ar.")
        log_prob = log_probabilities(edlm.denoisers.subs(numbers.network("den."), numbers.mask_id), batch)
        energy, stray = ar_energy(numbers, ar, batch.x_t, batch.x_0, carry_over)
        log_ar = autoregressive.ar_log_prob(ar, batch.x_0, numbers.mask_id, bos_id=None)
    weight = schedules.nelbo_weight(LOG_LINEAR, batch.t)
    share = batch.valid.double().mean(1)
    rows = losses.nelbo(log_prob * batch.valid, weight) + weight * share * (energy + stray)
    close(rows, numbers[f"{name}.nlls_f64"].sum(1), 1e-6)
    close(mean_loss(rows, batch), numbers[f"{name}.loss_f64"], 1e-6)
    # By identity the sum is the AR model's own cost, of all positions or of the masked ones, position 0 left out.
    counted = (batch.x_t == numbers.mask_id) if carry_over else torch.ones_like(batch.x_t).bool()
    whole = batch.valid.all(1)
    cost = -weight * torch.where(counted, log_ar, 0.0).sum(1)
    close(cost[whole], numbers[f"{name}.nlls_f64"].sum(1)[whole], 1e-6)
