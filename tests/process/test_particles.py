"""The kept particle has the law of its rule, low energy is likely, and log Z is enclosed.

Exact laws are found by running a rule on evenly spaced uniforms: an interval of width p holds n p of n points, give or
take one.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import LARGEST, SMALLEST, energies, finite_energies, uniforms
from torch import Tensor

from edlm.contracts import Selection
from edlm.process import particles

RULES = {"sir": particles.sir, "imh": particles.imh, "greedy": particles.greedy}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
POINTS = 2048
NEVER = -math.inf


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int]:
    return draw(st.integers(1, 4)), draw(st.integers(1, 5))


@st.composite
def weights_and_uniforms(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    shape = draw(shapes())
    return -draw(energies(*shape)), draw(uniforms(*shape))


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def midpoints(n: int) -> Tensor:
    return ((torch.arange(n) + 0.5) / n).double()


def law_of(rule: Selection, log_weights: Tensor, points: int = POINTS) -> Tensor:
    """Probability of each particle, (k,) to (k,), for a rule that uses one of the uniforms; all are the same one."""
    k = len(log_weights)
    u = midpoints(points).unsqueeze(-1).expand(-1, k)
    return torch.bincount(rule(log_weights.expand(points, k), u), minlength=k) / points


# ---- Log-weights


@given(energies(2, 3), st.sampled_from([0.5, 1.0, 3.0]))
def test_log_weights_are_minus_energy_over_temperature_in_float64(energy, temperature):
    expected = -energy.float().double() / temperature
    assert torch.equal(particles.log_weights(energy.float(), temperature), expected)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature = {temperature}"):
        particles.log_weights(torch.zeros(1, 2), temperature)


# ---- Effective sample size and spread


@given(weights_and_uniforms())
def test_ess_lies_between_one_and_the_number_of_particles(example):
    log_w, _ = example
    ess, some = particles.ess(log_w), (log_w > NEVER).any(-1)
    assert ((ess[some] >= 1.0 - 1e-9) & (ess[some] <= (log_w[some] > NEVER).sum(-1).double() + 1e-9)).all()
    assert (ess[~some] == 0.0).all()


def test_ess_of_large_log_weights_keeps_its_digits():
    log_w = torch.tensor([[-1e9, -1e9, -math.inf], [3e12 + 1, 3e12 + 1, 3e12 + 1]], dtype=torch.float64)
    torch.testing.assert_close(particles.ess(log_w), torch.tensor([2.0, 3.0]).double(), rtol=0.0, atol=1e-12)


@given(finite_energies(3, 4), st.floats(-1e3, 1e3))
def test_ess_is_that_of_the_formula_and_of_any_shift(energy, shift):
    weights = (-energy - (-energy).amax(-1, keepdim=True)).exp()
    expected = weights.sum(-1) ** 2 / (weights**2).sum(-1)
    torch.testing.assert_close(particles.ess(-energy), expected, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(particles.ess(-energy + shift), expected, rtol=1e-9, atol=0.0)


def test_ess_of_even_and_of_one_sided_weights():
    log_w = torch.tensor([[0.0] * 4, [0.0, 0.0, NEVER, NEVER], [9e3, 0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(particles.ess(log_w), torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))


def test_log_weight_std_divides_by_one_less_than_the_number_of_particles():
    assert particles.log_weight_std(row(1.0, 2.0, 6.0)).item() == pytest.approx(7.0**0.5)
    assert particles.log_weight_std(row(3.0)).item() == 0.0


# ---- Laws of the rules


@given(weights_and_uniforms())
def test_sir_keeps_a_particle_with_its_share_of_the_weight(example):
    for log_w in example[0]:
        law = law_of(particles.sir, log_w)
        share = log_w.softmax(-1) if (log_w > NEVER).any() else torch.eye(len(log_w), dtype=torch.float64)[0]
        assert (law - share).abs().max() <= 1.0 / POINTS + 1e-12


@given(finite_energies(2, bound=3.0))
def test_imh_moves_to_a_second_particle_with_the_ratio_of_weights(energy):
    accept = min(1.0, math.exp(float(energy[0] - energy[1])))
    assert abs(float(law_of(particles.imh, -energy)[1]) - accept) <= 1.0 / POINTS


@given(finite_energies(3, bound=3.0))
def test_imh_goes_through_three_particles_in_their_order(energy):
    u = torch.cartesian_prod(midpoints(1), midpoints(64), midpoints(64))
    law = torch.bincount(particles.imh(-energy.expand(len(u), 3), u), minlength=3) / len(u)
    ratio = [[math.exp(min(0.0, float(energy[i] - energy[j]))) for j in range(3)] for i in range(3)]
    second = ratio[0][1]
    third = second * ratio[1][2] + (1 - second) * ratio[0][2]
    expected = torch.tensor([(1 - second) * (1 - ratio[0][2]), second * (1 - ratio[1][2]), third])
    assert (law - expected).abs().max() <= 2.0 / 64


@given(finite_energies(3, 5))
def test_greedy_keeps_the_lowest_energy_and_the_first_of_several(energy):
    energy = energy.round()
    expected = [row.index(min(row)) for row in energy.tolist()]
    assert particles.greedy(-energy, torch.zeros(3, 5)).tolist() == expected


# ---- Laws that hold for every rule


@every_rule
@given(weights_and_uniforms(), st.sampled_from([-1024.0, -1.0, 0.5, 64.0]))
def test_a_constant_added_to_the_log_weights_changes_nothing(rule, example, shift):
    log_w, u = example
    log_w = log_w.mul(64).round().div(64)  # so that the shifted ones are exact
    assert torch.equal(rule(log_w, u), rule(log_w + shift, u))


@every_rule
@given(weights_and_uniforms())
def test_a_particle_of_weight_zero_is_never_kept_and_of_none_with_weight_the_first(rule, example):
    log_w, u = example
    chosen = rule(log_w, u)
    kept = log_w.gather(1, chosen.unsqueeze(-1)).squeeze(-1)
    some = (log_w > NEVER).any(-1)
    assert (kept[some] > NEVER).all()
    assert (chosen[~some] == 0).all()


@every_rule
@pytest.mark.parametrize("edge", [0.0, SMALLEST, LARGEST])
def test_weights_of_zero_at_either_end_are_passed_over_at_the_edges_of_the_uniform(rule, edge):
    log_w = row(NEVER, NEVER, 0.0, -3.0, NEVER)
    assert rule(log_w, torch.full((1, 5), edge).double()).item() in (2, 3)


@every_rule
@given(weights_and_uniforms())
def test_one_particle_is_kept_with_certainty(rule, example):
    log_w, u = example
    assert (rule(log_w[:, :1], u[:, :1]) == 0).all()


@every_rule
@given(weights_and_uniforms())
def test_rows_do_not_see_each_other(rule, example):
    log_w, u = example
    alone = [rule(log_w[i : i + 1], u[i : i + 1]) for i in range(len(log_w))]
    together = rule(log_w, u)
    assert together.dtype == torch.int64
    assert torch.equal(together, torch.cat(alone))


@every_rule
@given(finite_energies(4, bound=4.0), st.integers(0, 3), st.floats(0.0, 4.0))
def test_a_lower_energy_never_lowers_a_particles_probability(rule, energy, j, drop):
    lower = energy.index_add(0, torch.tensor([j]), row(-drop)[0])
    before, after = law_of(rule, -energy)[j], law_of(rule, -lower)[j]
    assert after >= before - 1.5 / POINTS  # one point of the integral


@every_rule
def test_low_energy_is_likely(rule):
    law = law_of(rule, -torch.tensor([2.0, 0.0], dtype=torch.float64))
    assert law[1] > 0.8


@given(finite_energies(5, bound=4.0), st.permutations(range(5)))
def test_the_laws_of_sir_and_greedy_do_not_depend_on_the_order_of_the_particles(energy, order):
    order = torch.tensor(order)
    assert (law_of(particles.sir, -energy)[order] - law_of(particles.sir, -energy[order])).abs().max() <= 1.5 / POINTS
    chosen = [particles.greedy(e.unsqueeze(0), e) for e in (-energy, -energy[order])]
    assert energy[chosen[0]] == energy[order][chosen[1]]


@given(uniforms(2, 4))
def test_a_low_temperature_makes_sir_greedy_and_a_high_one_makes_it_even(u):
    energy = torch.tensor([[3.0, 1.0, 2.0, 5.0], [0.0, -1.0, -7.0, -2.0]])
    cold, hot = particles.log_weights(energy, 1e-4), particles.log_weights(energy, 1e9)
    assert torch.equal(particles.sir(cold, u), particles.greedy(cold, u))
    torch.testing.assert_close(law_of(particles.sir, hot[0]), torch.full((4,), 0.25), rtol=0.0, atol=1.0 / POINTS)


# ---- Estimates of log Z


def mean_weight(log_weights: list[float]) -> float:
    return math.log(sum(map(math.exp, log_weights)) / len(log_weights))


@given(finite_energies(2, 5, bound=20.0))
def test_log_mean_weight_is_the_log_of_the_mean_weight(energy):
    expected = [mean_weight(log_w) for log_w in (-energy).tolist()]
    assert particles.log_mean_weight(-energy).tolist() == pytest.approx(expected, abs=1e-9)


@given(st.integers(2, 6), st.data())
def test_the_leave_one_out_pair_is_that_of_its_formula(n, data):
    log_w = -data.draw(finite_energies(2, n, bound=20.0))
    lower, upper = particles.log_z_bounds(log_w)
    for i, w in enumerate(log_w.tolist()):
        whole = mean_weight(w)
        left_out = sum(mean_weight(w[:j] + w[j + 1 :]) for j in range(n)) / n
        assert lower[i].item() == pytest.approx(whole, abs=1e-9)
        assert upper[i].item() == pytest.approx((2 * n - 1) * whole - 2 * (n - 1) * left_out, abs=1e-8)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_in_expectation_the_pair_encloses_log_z(n):
    # Log-normal weights of s.d. 1, so log Z = 1/2. Fixed seed; either mean would be on the wrong side by 4 standard
    # errors, were it at log Z, for 3 seeds of 100 000.
    generator = torch.Generator().manual_seed(n)
    log_w = torch.randn(20_000, n, generator=generator, dtype=torch.float64)
    for side, values in zip((-1.0, 1.0), particles.log_z_bounds(log_w), strict=True):
        gap = side * (values - 0.5)
        assert gap.mean() > 4.0 * gap.std() / len(gap) ** 0.5
        assert gap.mean() < 1.5 / n  # about half the weights' variance (e - 1) over n


def test_equal_weights_leave_nothing_to_estimate():
    for bound in particles.log_z_bounds(row(0.7, 0.7, 0.7)):
        assert bound.item() == pytest.approx(0.7, abs=1e-12)


def test_the_pair_needs_two_weights():
    with pytest.raises(ValueError, match="at least 2 weights, got 1"):
        particles.log_z_bounds(torch.zeros(3, 1))


def test_log_weight_std_is_infinite_where_a_weight_is_zero():
    log_weights = torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf], [1.0, 1.0]], dtype=torch.float64)
    assert particles.log_weight_std(log_weights).tolist() == [torch.inf, torch.inf, 0.0]
