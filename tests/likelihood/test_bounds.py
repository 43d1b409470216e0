"""The bounds of samplers with steps and an energy lie above the exact likelihood of what the sampler does.

The expected bound is enumerated by `oracles.sampler_nelbo`, compared with the enumerated law of the sampler, and the
library's draws are compared with it: 5 s.d. at a fixed seed, one false alarm in a million a test, at seeds chosen at
random.
"""

import math
from functools import partial

import builders
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    Lookup,
    OracleDenoiser,
    OracleEnergy,
    all_sequences,
    ar_energy,
    exact_nll,
    marginal_table,
    random_joint,
    random_marginals,
    residual_energy,
    sampler_law,
    sir,
    two_fair_bits,
)
from oracles import sampler_nelbo as expected_bound
from oracles import t_step_nelbo as exact_t_step
from strategies import noise_schedules, step_grids
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor

from edlm import contracts
from edlm.contracts import Energy
from edlm.likelihood import bounds, nelbo, paper_nelbo
from edlm.likelihood.estimates import estimate
from edlm.models import energies
from edlm.process import schedules
from edlm.samplers import corrections
from edlm.samplers.plans import Grid
from edlm.samplers.sampler import Sampler

SYMBOLS, LENGTH = 2, 3
JOINT = random_joint(0, SYMBOLS, LENGTH, 1.5)
TABLE = random_marginals(1, SYMBOLS, LENGTH)  # far from the data's, so that the energy has much to correct
ENERGY = residual_energy(JOINT, TABLE)
DENOISER = OracleDenoiser(Lookup(TABLE), mask_id=SYMBOLS)
TEXTS = all_sequences(SYMBOLS, LENGTH)
SCHEDULE = schedules.log_linear()
SEED = torch.tensor(3)
ROWS = 20_000


def alphas(num_steps: int) -> Tensor:
    return 1.0 - schedules.uniform_grid(num_steps)


def exact_bound(num_steps: int, k: int, m: int = 1, window: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    return torch.stack([expected_bound(TABLE, alphas(num_steps), ENERGY, k, m, x, window) for x in TEXTS])


def exact_likelihood(num_steps: int, k: int, window: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    return exact_nll(sampler_law(TABLE, alphas(num_steps), ENERGY, sir(k), window=window), TEXTS)


def drawn(x_0: Tensor, num_steps: int | None, energy: Energy | None = None, **options: object) -> bounds.Bound:
    grid = None if num_steps is None else schedules.uniform_grid(num_steps)
    row = torch.arange(len(x_0))
    given_energy = OracleEnergy(ENERGY) if energy is None else energy
    options = {"num_particles": 2, **options}
    return builders.draft_bound(DENOISER, given_energy, SCHEDULE, grid, x_0, SEED, row, **options)


def many(x: list[int] | Tensor, rows: int = ROWS) -> Tensor:
    return torch.as_tensor(x).expand(rows, -1)


def agrees(values: Tensor, expected: float) -> bool:
    mean, error, _ = estimate(values)
    return abs(mean - expected) < 5 * error


# ---- The formula, by enumeration


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 6])
def test_the_bound_is_above_the_exact_likelihood_of_every_text(num_steps: int, k: int) -> None:
    bound, truth = exact_bound(num_steps, k), exact_likelihood(num_steps, k)
    assert (bound >= truth - 1e-9).all()
    assert bound.isfinite().all()
    if num_steps == 1 and k > 1:  # and not of the plain sampler, which is worse for some texts
        assert (bound < exact_likelihood(num_steps, 1)).any()


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_with_one_particle_it_is_the_t_step_nelbo(num_steps: int) -> None:
    torch.testing.assert_close(exact_bound(num_steps, 1), exact_t_step(TABLE, alphas(num_steps), TEXTS))


@pytest.mark.parametrize("num_steps", [2, 3])
def test_more_completions_are_tighter_and_still_a_bound(num_steps: int) -> None:
    one, two, three = (exact_bound(num_steps, 2, m) for m in (1, 2, 3))
    assert (one > two).all()
    assert (two > three).all()
    assert (three >= exact_likelihood(num_steps, 2) - 1e-9).all()


def test_one_step_that_reveals_everything_needs_no_completion() -> None:
    torch.testing.assert_close(exact_bound(1, 2, 1), exact_bound(1, 2, 3))


@pytest.mark.parametrize("window", [(0.0, 0.4), (0.5, 1.0)])
def test_inside_a_window_it_bounds_the_sampler_with_that_window(window: tuple[float, float]) -> None:
    assert (exact_bound(3, 2, window=window) >= exact_likelihood(3, 2, window) - 1e-9).all()


# ---- The library's draws have that expectation


CASES = [
    (1, {"num_particles": 2}),
    (2, {"num_particles": 2}),
    (3, {"num_particles": 3}),
    (3, {"num_particles": 2, "num_completions": 2}),
    (3, {"num_particles": 2, "window": (0.5, 1.0)}),
    (3, {"num_particles": 2, "num_passes": 2}),
    (4, {"num_particles": 2, "num_passes": 1}),
]


@pytest.mark.parametrize(("num_steps", "options"), CASES)
@pytest.mark.parametrize("number", [1, 6])
def test_the_draws_average_to_the_enumerated_bound(num_steps: int, options: dict, number: int) -> None:
    k, m = options["num_particles"], options.get("num_completions", 1)
    expected = expected_bound(
        TABLE, alphas(num_steps), ENERGY, k, m, TEXTS[number], options.get("window", (0.0, 1.0))
    ).item()
    values = drawn(many(TEXTS[number]), num_steps, **options).nats
    assert agrees(values, expected / LENGTH)
    assert not agrees(values, 1.05 * expected / LENGTH)
    assert not agrees(values, 0.95 * expected / LENGTH)


def test_passes_that_stand_for_all_are_spread_evenly() -> None:
    """As many as there are: each of them once."""
    torch.testing.assert_close(
        drawn(TEXTS, None, num_particles=3, num_passes=LENGTH).nats, drawn(TEXTS, None, num_particles=3).nats
    )


def test_a_temperature_divides_the_energy() -> None:
    half = OracleEnergy(lambda x, x_t: ENERGY(x, x_t) / 2)
    torch.testing.assert_close(
        drawn(TEXTS, 2, num_particles=3, temperature=2.0).nats, drawn(TEXTS, 2, energy=half, num_particles=3).nats
    )


def test_one_position_at_a_time_is_the_limit_of_many_steps() -> None:
    # Two of three positions share one of 400 steps with probability below 1 %.
    limit = expected_bound(TABLE, alphas(400), ENERGY, 2, 1, TEXTS[5]).item() / LENGTH
    values = drawn(many(TEXTS[5]), None).nats
    assert abs(estimate(values).mean - limit) < 0.01 * limit + 5 * estimate(values).standard_error


@given(noise_schedules(), step_grids() | st.none(), st.integers(0, 2**62), st.integers(1, 4) | st.none())
@settings(max_examples=40, deadline=None)
def test_one_particle_is_the_t_step_nelbo_term_by_term(schedule, grid, seed, num_passes) -> None:
    keys = schedule, grid, TEXTS, torch.tensor(seed), torch.arange(len(TEXTS))
    plain = builders.plain_bound(DENOISER, *keys, num_passes=num_passes).nats
    for energy in (energies.zero(), OracleEnergy(ENERGY)):
        one = builders.draft_bound(DENOISER, energy, *keys, num_particles=1, num_completions=3, num_passes=num_passes)
        assert torch.equal(one.nats, plain)
        assert (one.excess == 0).all()
        assert (one.energy_passes == 0).all()
        assert one.ess.isnan().all()
    both = builders.draft_bound(DENOISER, OracleEnergy(ENERGY), *keys, num_particles=2, num_passes=num_passes)
    torch.testing.assert_close(both.nats - both.excess, plain)
    if num_passes is None:  # an energy that says nothing leaves every weight equal
        flat = builders.draft_bound(DENOISER, energies.zero(), *keys, num_particles=3, num_completions=2)
        torch.testing.assert_close(flat.nats, plain)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_the_t_step_nelbo_averages_to_its_formula(num_steps: int) -> None:
    expected = exact_t_step(TABLE, alphas(num_steps), TEXTS[2:3]).item() / LENGTH
    keys = SCHEDULE, schedules.uniform_grid(num_steps), many(TEXTS[2]), SEED, torch.arange(ROWS)
    values = builders.plain_bound(DENOISER, *keys).nats
    assert agrees(values - expected + 1e-9 * torch.linspace(-1, 1, ROWS), 0.0)  # one step leaves nothing to chance
    assert not agrees(values, 1.05 * expected)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    whole = drawn(TEXTS, 2, num_particles=3, num_completions=2).nats
    for row in range(len(TEXTS)):
        alone = builders.draft_bound(
            DENOISER,
            OracleEnergy(ENERGY),
            SCHEDULE,
            schedules.uniform_grid(2),
            TEXTS[row : row + 1],
            SEED,
            torch.tensor([row]),
            num_particles=3,
            num_completions=2,
        )
        torch.testing.assert_close(alone.nats, whole[row : row + 1])


def test_what_each_network_reads_is_counted() -> None:
    bound = drawn(TEXTS, None, num_particles=3, num_completions=2, window=(0.0, 1.0))
    assert (bound.denoiser_passes == LENGTH).all()
    assert (bound.energy_passes == LENGTH * (3 - 1 + 2)).all()
    assert ((bound.ess >= 1) & (bound.ess <= 3)).all()
    few = drawn(TEXTS, None, num_particles=3, num_passes=2)
    assert (few.denoiser_passes == 2).all()


def test_the_energy_is_told_the_log_probability_of_what_it_weighs() -> None:
    seen: list[TensorDict] = []

    def spy(candidates: Tensor, x_t: Tensor, log_p: Tensor) -> Tensor:
        seen.append(TensorDict({"x": candidates, "x_t": x_t, "log_p": log_p}))
        return torch.zeros(candidates.shape[:2], dtype=torch.float64)

    keys = [contracts.CANDIDATES, contracts.X_T, contracts.LOG_P_CANDIDATES]
    energy = TensorDictModule(spy, in_keys=keys, out_keys=[contracts.ENERGY])
    drawn(TEXTS, 2, energy=energy, num_particles=3, num_completions=2)
    assert seen
    for state in seen:
        log_p = TABLE[tuple(state["x_t"].unbind(-1))].unsqueeze(1).expand(*state["x"].shape, -1)
        log_p = log_p.gather(-1, state["x"].unsqueeze(-1)).squeeze(-1)
        masked = (state["x_t"] == SYMBOLS).unsqueeze(1)
        torch.testing.assert_close(state["log_p"], torch.where(masked, log_p, 0.0))


# ---- Given positions


def test_given_positions_are_conditioned_on_and_not_scored() -> None:
    scored = torch.tensor([False, True, True])
    start = torch.tensor([1, SYMBOLS, SYMBOLS])
    law = sampler_law(TABLE, alphas(1), ENERGY, sir(2), start=start)
    x_0 = torch.tensor([1, 0, 1])
    truth = exact_nll(law, x_0).item()
    values = drawn(many(x_0), 1, scored=many(scored)).nats  # one step that reveals all: the bound has Jensen's gap only
    plain = builders.plain_bound(
        DENOISER, SCHEDULE, schedules.uniform_grid(1), many(x_0, 2), SEED, torch.arange(2), scored=many(scored, 2)
    )
    x_t = start.clone()
    expected = -sum(TABLE[tuple(x_t)][i, x_0[i]] for i in (1, 2)) / 2
    torch.testing.assert_close(plain.nats, expected.expand(2))
    assert estimate(values).mean >= truth / 2 - 5 * estimate(values).standard_error


def test_the_continuous_nelbo_of_given_positions_is_that_of_the_rest() -> None:
    scored, x_0 = torch.tensor([True, False, True]), torch.tensor([0, 1, 1])
    row = torch.arange(ROWS)
    values = nelbo.nelbo(DENOISER, SCHEDULE, many(x_0), SEED, row, many(scored))
    both = TABLE[SYMBOLS, 1, SYMBOLS]
    first = -(both[0, 0] + both[2, 1]) / 2
    last = -(TABLE[SYMBOLS, 1, 1][0, 0] + TABLE[0, 1, SYMBOLS][2, 1]) / 2
    assert agrees(values, ((first + last) / 2).item())


@pytest.mark.parametrize("function", [partial(builders.plain_bound, grid=None), partial(paper_nelbo.figure)])
def test_a_row_without_a_scored_position_is_refused(function) -> None:
    scored = torch.tensor([[True, True, True], [False, False, False]])
    extra = {} if "grid" in function.keywords else {"energy": energies.zero(), "num_particles": 2}
    with pytest.raises(ValueError, match="row 1 has no scored position"):
        function(DENOISER, schedule=SCHEDULE, x_0=TEXTS[:2], seed=SEED, row=torch.arange(2), scored=scored, **extra)


def test_a_window_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"window = \(0.8, 0.4\) must satisfy 0 <= low <= high <= 1"):
        drawn(TEXTS, 2, num_particles=2, window=(0.8, 0.4))


@pytest.mark.parametrize("name", ["candidates", "num_completions", "num_passes"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} = 0 must be at least 1"):
        drawn(TEXTS, 2, **{"num_particles" if name == "candidates" else name: 0})


# ---- The paper's figure


def paper(denoiser, energy, x_0: Tensor, n: int, schedule=SCHEDULE) -> paper_nelbo.Figure:
    return paper_nelbo.figure(denoiser, energy, schedule, x_0, SEED, torch.arange(len(x_0)), num_particles=n)


def test_two_identical_fair_bits_score_half_their_entropy() -> None:
    """Section 5 of the mathematics: entropy 1 bit, the score 0.5 bit under the true posterior."""
    law = two_fair_bits()
    denoiser = OracleDenoiser(Lookup(marginal_table(law)), mask_id=2)
    x_0 = torch.tensor([[0, 0], [1, 1]]).repeat(500, 1)
    figure = paper(denoiser, OracleEnergy(residual_energy(law)), x_0, 256)
    per_text_bits = 2 * estimate(figure.lower).mean / math.log(2)
    assert per_text_bits == pytest.approx(0.5, abs=0.01)
    assert 2 * estimate(figure.upper).mean / math.log(2) == pytest.approx(0.5, abs=0.01)
    plain = nelbo.nelbo(denoiser, SCHEDULE, x_0, SEED, torch.arange(len(x_0)))
    assert 2 * estimate(plain).mean / math.log(2) == pytest.approx(1.0, abs=0.1)


def test_under_the_carry_over_energy_it_is_the_likelihood_of_the_ar_model() -> None:
    """`E = sum_masked [-log p_AR + log p_theta]` and Z = 1: the denoiser drops out, whatever it is."""
    energy = OracleEnergy(ar_energy(JOINT, TABLE, carry_over=True))
    for number in (0, 5):
        truth = exact_nll(JOINT, TEXTS[number]).item() / LENGTH
        figure = paper(DENOISER, energy, many(TEXTS[number], 2000), 128)
        # The pair's ends miss log Z = 0 by the bias of 128 drafts, below 0.02 nats.
        for values in (figure.lower, figure.upper):
            mean, error, _ = estimate(values)
            assert abs(mean - truth) < 5 * error + 0.02
        assert not agrees(figure.lower, 1.2 * truth + 0.02)


def test_with_no_energy_it_is_the_nelbo() -> None:
    figure = paper(DENOISER, energies.zero(), TEXTS, 4)
    plain = nelbo.nelbo(DENOISER, SCHEDULE, TEXTS, SEED, torch.arange(len(TEXTS)))
    torch.testing.assert_close(figure.lower, plain)
    torch.testing.assert_close(figure.upper, plain)
    torch.testing.assert_close(figure.ess, torch.full((len(TEXTS),), 4.0, dtype=torch.float64))
    assert (figure.log_weight_std == 0).all()


def test_a_constant_of_the_energy_changes_nothing() -> None:
    shifted = OracleEnergy(lambda x, x_t: ENERGY(x, x_t) + 7.0)
    one, other = (paper(DENOISER, energy, TEXTS, 4) for energy in (OracleEnergy(ENERGY), shifted))
    torch.testing.assert_close(other.lower, one.lower)
    torch.testing.assert_close(other.upper, one.upper)
    torch.testing.assert_close(drawn(TEXTS, 2).nats, drawn(TEXTS, 2, energy=shifted).nats)


def test_the_pair_needs_two_drafts() -> None:
    with pytest.raises(ValueError, match="num_particles = 1 must be at least 2"):
        paper(DENOISER, energies.zero(), TEXTS, 1)


# ---- Means over rows of unequal length


def test_a_mean_over_tokens_weighs_rows_by_their_length() -> None:
    values, tokens = torch.tensor([1.0, 3.0]), torch.tensor([3, 1])
    result = estimate(values, tokens)
    assert result.mean == 1.5
    assert result.standard_error == pytest.approx(math.sqrt(2 * (1.5**2 + 1.5**2)) / 4)
    assert estimate(values, torch.tensor([5, 5])) == estimate(values)


@pytest.mark.parametrize(("candidates", "has"), [(1, True), (2, False)])
def test_one_candidate_has_a_bound_whatever_selects_it(candidates: int, has: bool) -> None:
    correction = corrections.OfEnergy(energies.zero(), "draft")
    options = {"correction": correction, "candidates": candidates, "selection": "greedy"}
    said = bounds.missing(Sampler(builders.tiny_denoiser(0, 4, vocab_size=5), Grid(2), **options))
    assert said == ("" if has else "no bound is known of selection = 'greedy'")
