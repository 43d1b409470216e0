"""The bound of a sampler that weighs transitions, against enumeration and the exact likelihood."""

import math

import builders
import pytest
import torch
from oracles import (
    EnergyFn,
    Lookup,
    OracleDenoiser,
    OracleEnergy,
    all_sequences,
    entropy,
    exact_nll,
    expectation,
    proposal_log_prob,
    random_joint,
    residual_energy,
    sampler_law,
    sir,
    t_step_nelbo,
    zero_energy,
)
from small_law import JOINT, LENGTH, SYMBOLS, TABLES, alphas, every_table
from torch import Tensor

from edlm.likelihood import bounds, estimates
from edlm.process import schedules


def exact_bound(table: Tensor, energy: EnergyFn, num_steps: int, k: int, x_0: Tensor) -> Tensor:
    """The bound of every text, (b, l) to nats (b,): a sum over steps, masks, revealed sets and k - 1 draws."""
    symbols, length = table.shape[-1] - 1, x_0.shape[1]
    total = torch.zeros(len(x_0), dtype=torch.float64)
    for masked in all_sequences(2, length).bool():
        for revealed in all_sequences(2, length).bool():
            if not revealed.any() or (revealed & ~masked).any():
                continue
            n, m = int(masked.sum()), int(revealed.sum())
            chance = 0.0
            for step in range(num_steps):
                share = 1 / (num_steps - step)  # of the masks that a step reveals
                chance += (
                    (step / num_steps) ** (length - n)
                    * (1 - step / num_steps) ** n
                    * (share**m * (1 - share) ** (n - m))
                )
            x_t = torch.where(masked, symbols, x_0)
            total += chance * _bound_of_step(table, energy, x_t, torch.where(revealed, x_0, x_t), revealed, k)
    return total


def _bound_of_step(table: Tensor, energy: EnergyFn, x_t: Tensor, x_s: Tensor, revealed: Tensor, k: int) -> Tensor:
    tokens = all_sequences(table.shape[-1] - 1, int(revealed.sum()))
    draws = x_t.unsqueeze(1).repeat(1, len(tokens), 1)
    draws[..., revealed] = tokens
    log_p, log_w = proposal_log_prob(table, draws, x_t), -energy(draws, x_t)
    own_p, own_w = proposal_log_prob(table, x_s.unsqueeze(1), x_t), -energy(x_s.unsqueeze(1), x_t)
    others_p, sums = torch.zeros_like(own_p), own_w
    for _ in range(k - 1):
        others_p = (others_p.unsqueeze(-1) + log_p.unsqueeze(1)).flatten(1)
        sums = torch.logaddexp(sums.unsqueeze(-1), log_w.unsqueeze(1)).flatten(1)
    return (others_p.exp() * (sums - own_w - math.log(k))).sum(1) - own_p.squeeze(1)


def drawn(energy: EnergyFn, num_steps: int, k: int | None, x_0: Tensor, **options: object) -> bounds.Bound:
    """Of the wrong denoiser."""
    denoiser, row = OracleDenoiser(Lookup(TABLES["wrong"]), SYMBOLS), torch.arange(len(x_0))
    keys = schedules.log_linear(), schedules.uniform_grid(num_steps), x_0, torch.tensor(3), row
    return builders.transition_bound(denoiser, OracleEnergy(energy), *keys, num_particles=k, **options)


def drawn_bound(energy: EnergyFn, num_steps: int, k: int | None, x_0: Tensor, **options: object) -> Tensor:
    """In nats per text."""
    return LENGTH * drawn(energy, num_steps, k, x_0, **options).nats


ENERGY = residual_energy(JOINT, TABLES["wrong"])
SEQUENCES = all_sequences(SYMBOLS, LENGTH)


@every_table
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
def test_the_bound_lies_above_the_exact_likelihood_for_every_text(table: Tensor, num_steps: int):
    exact, wrong = residual_energy(JOINT, table), residual_energy(random_joint(5, SYMBOLS, LENGTH, 2.0), table)
    for energy in (exact, wrong, zero_energy):
        for k in (1, 2, 3):
            sampled = sampler_law(table, alphas(num_steps), energy, sir(k), "revealed")
            bound, nll = exact_bound(table, energy, num_steps, k, SEQUENCES), exact_nll(sampled, SEQUENCES)
            assert (bound > nll - 1e-12).all()
            if k == 1 or energy is zero_energy:
                torch.testing.assert_close(bound, t_step_nelbo(table, alphas(num_steps), SEQUENCES))
    plain, *corrected = (
        float(expectation(JOINT, exact_bound(table, exact, num_steps, k, SEQUENCES))) for k in (1, 2, 3)
    )
    assert plain > corrected[0] + 0.02 > corrected[1] + 0.02 > float(entropy(JOINT))


@pytest.mark.parametrize(("num_steps", "k"), [(1, 2), (2, 3), (5, 2), (2, 1)])
def test_draws_of_the_bound_have_it_as_their_mean(num_steps: int, k: int):
    """Five standard errors; at a fixed seed, and one that is 2 % off is rejected."""
    draws = drawn_bound(ENERGY, num_steps, k, SEQUENCES.repeat(4000, 1))
    mean, error, _ = estimates.estimate(draws)
    expected = float(exact_bound(TABLES["wrong"], ENERGY, num_steps, k, SEQUENCES).mean())
    assert abs(mean - expected) < 5 * error
    assert abs(mean - 1.02 * expected) > 5 * error


def test_one_particle_and_no_energy_are_the_plain_bound_draw_by_draw():
    x_0 = SEQUENCES.repeat(20, 1)
    plain = drawn_bound(ENERGY, 2, 1, x_0)
    torch.testing.assert_close(drawn_bound(zero_energy, 2, 4, x_0), plain)
    assert not torch.allclose(drawn_bound(ENERGY, 2, 4, x_0), plain)
    torch.testing.assert_close(
        drawn_bound(ENERGY, 2, 4, x_0, temperature=2.0), drawn_bound(lambda *x: ENERGY(*x) / 2, 2, 4, x_0)
    )


def test_the_limit_of_many_particles_under_an_energy_with_z_of_one():
    """Of the exact energy it is the exact likelihood, draw by draw, whatever the plan; and what more particles near."""
    x_0 = SEQUENCES.repeat(20, 1)
    for num_steps in (1, 2, 5):
        found = drawn(ENERGY, num_steps, None, x_0)
        torch.testing.assert_close(LENGTH * found.nats, -JOINT.flatten().log().repeat(20))
        plain = LENGTH * (found.nats - found.excess)
        torch.testing.assert_close(plain, drawn_bound(ENERGY, num_steps, 1, x_0))
        assert torch.equal(found.energy_passes, found.denoiser_passes)
        assert found.ess.isnan().all()

    def of_data(k: int | None, **options: object) -> float:
        return float(drawn_bound(ENERGY, 2, k, x_0, **options).view(20, -1).mean(0) @ JOINT.flatten())

    assert of_data(None) < of_data(None, window=(0.6, 1.0)) < of_data(1)
    far = [of_data(k) - of_data(None) for k in (2, 8, 64)]
    assert far[0] > 2 * far[1] > 6 * far[2] > 0.0
    with pytest.raises(ValueError, match=r"temperature = 2.0 of the correction must be 1"):
        drawn(ENERGY, 2, None, x_0, temperature=2.0)


@pytest.mark.parametrize("num_passes", [1, 2])
def test_a_few_passes_stand_for_all_of_a_text(num_passes: int):
    """Five standard errors; at a fixed seed, and one that is 4 % off is rejected."""
    bound = drawn(ENERGY, 3, 2, SEQUENCES.repeat(4000, 1), num_passes=num_passes)
    mean, error, _ = estimates.estimate(LENGTH * bound.nats)
    expected = float(exact_bound(TABLES["wrong"], ENERGY, 3, 2, SEQUENCES).mean())
    assert abs(mean - expected) < 5 * error
    assert abs(mean - 1.04 * expected) > 5 * error
    assert (bound.denoiser_passes == num_passes).all()


def test_what_is_given_is_read_and_not_scored_in_the_bound():
    """One step reveals the rest at once: five standard errors from enumeration, and one that is 4 % off is rejected."""
    scored = torch.tensor([False, True, True])
    x_0 = SEQUENCES[5:6]
    x_t = torch.where(scored, SYMBOLS, x_0)
    expected = float(_bound_of_step(TABLES["wrong"], ENERGY, x_t, x_0, scored, 2)) / 2
    rows = x_0.expand(20_000, -1)
    mean, error, _ = estimates.estimate(drawn(ENERGY, 1, 2, rows, scored=scored.expand_as(rows)).nats)
    assert abs(mean - expected) < 5 * error
    assert abs(mean - 1.04 * expected) > 5 * error


def test_a_pass_outside_the_window_is_plain_in_the_bound():
    """Passes do not wait for each other, so two windows that share no pass add up to both, draw by draw."""
    x_0 = SEQUENCES.repeat(20, 1)
    plain, whole = drawn_bound(ENERGY, 2, 1, x_0), drawn_bound(ENERGY, 2, 4, x_0)
    late, early = (drawn_bound(ENERGY, 2, 4, x_0, window=window) for window in ((0.6, 1.0), (0.0, 0.6)))
    torch.testing.assert_close(late + early, whole + plain)
    assert not torch.allclose(late, plain)
    assert not torch.allclose(early, plain)


def test_a_text_without_weight_is_impossible_and_where_nothing_has_any_it_is_plain():
    def none_of_it(candidates: Tensor, x_t: Tensor) -> Tensor:
        return torch.where((candidates == 1).any(-1), torch.inf, 0.0).double()

    x_0 = torch.tensor([[0, 0, 0], [0, 0, 1]])
    values = drawn_bound(none_of_it, 1, 64, x_0)
    assert values.isfinite().tolist() == [True, False]
    torch.testing.assert_close(
        drawn_bound(lambda *x: zero_energy(*x) + torch.inf, 2, 3, x_0), drawn_bound(ENERGY, 2, 1, x_0)
    )


def test_a_bound_of_no_particles_is_an_error():
    with pytest.raises(ValueError, match="candidates = 0 must be at least 1"):
        drawn_bound(ENERGY, 2, 0, SEQUENCES)
