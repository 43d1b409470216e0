"""The law of whole samplers: frequencies of many samples against enumeration.

A law is judged by one chi-square test at a fixed seed. All tests that judge so together raise a false alarm with
probability 1e-3 at most (over seeds; Bonferroni over `TESTS` of them). That a wrong sampler does not get through is
shown in every case: the same sample must be rejected by the law of a twin with one fault, and the chance to miss a
twin is computed, too, and below 1e-3.
"""

import builders
import pytest
import torch
from enumerated_samplers import (
    ENERGY,
    JOINT,
    LENGTH,
    MARGINALS,
    SAMPLES,
    SCHEDULES,
    SYMBOLS,
    Case,
    counts_of,
    grouped_law,
    windowed_first_hitting_law,
)
from goodness_of_fit import fits, judge
from oracles import (
    EnergyFn,
    Lookup,
    OracleDenoiser,
    OracleEnergy,
    adaptive_sir,
    all_sequences,
    exact_nll,
    expectation,
    first_hitting_law,
    index_of,
    marginal_table,
    proposal_log_prob,
    random_joint,
    residual_energy,
    sampler_law,
    sir,
    total_variation,
    two_fair_bits,
    zero_energy,
)
from torch import Tensor

import edlm
from edlm.models import energies
from edlm.process import categorical, schedules


def powered(energy: EnergyFn, power: float) -> EnergyFn:
    return lambda candidates, x_t: power * energy(candidates, x_t)


STEPS = [1, 2, 3, None]


def slow(*arguments: object) -> object:
    """Not slow alone, but there are many of them."""
    return pytest.param(*arguments, marks=pytest.mark.slow)


@pytest.mark.parametrize("num_steps", STEPS)
def test_plain_sampling(num_steps: int | None):
    case = Case(num_steps)
    others = {f"{n} steps": Case(n).law() for n in STEPS if n != num_steps}
    judge(counts_of(case.sample()["tokens"]), case.law(), others | {"corrected": Case(num_steps, k=2).law()})


@pytest.mark.parametrize("num_steps", [slow(1), 2, slow(3), slow(None)])
@pytest.mark.parametrize(("selection", "k"), [("sir", 2), ("sir", 4), ("imh", 2), slow("imh", 4), slow("greedy", 3)])
def test_corrected_sampling(num_steps: int | None, selection: str, k: int):
    case = Case(num_steps, selection, k)
    twins = {
        "one particle fewer": case._replace(k=k - 1).law(),
        "one particle more": case._replace(k=k + 1).law(),
        "sign of the energy": case.law(powered(ENERGY, -1.0)),
        "steps": case._replace(num_steps=4 if num_steps is None else num_steps + 1).law(),
    }
    if selection == "sir":
        twins["sir for imh"] = case._replace(selection="imh").law()
    if selection != "greedy":  # which does not depend on the size of an energy
        twins["weights to the power of 1.5"] = case.law(powered(ENERGY, 1.5))
    judge(counts_of(case.sample()["tokens"]), case.law(), twins)


@pytest.mark.parametrize("k", [1, slow(3)])
def test_a_fixed_number_of_tokens_per_pass(k: int):
    laws = {size: grouped_law(size, sir(k)) for size in (1, 2, 3)}
    torch.testing.assert_close(laws[1], first_hitting_law(MARGINALS, ENERGY, sir(k)))
    kernel = builders.importance(
        schedules.log_linear(), OracleDenoiser(Lookup(MARGINALS), SYMBOLS), OracleEnergy(ENERGY), k
    )
    tokens = edlm.sample(builders.sampling(kernel, LENGTH, tokens_per_pass=2), SAMPLES)["tokens"]
    twins = {"one at a time": laws[1], "all at once": laws[3], "two steps": Case(2, k=k).law()}
    judge(counts_of(tokens), laws[2], twins)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [2, 3, 4, None])
@pytest.mark.parametrize("selection", ["sir", "imh"])
def test_a_window_is_closed_and_at_high_times(num_steps: int | None, selection: str):
    case = Case(num_steps, selection, 3, window=(0.5, 1.0))
    twins = {"plain": Case(num_steps).law(), "low times": case._replace(window=(0.0, 0.5)).law()}
    if num_steps != 2:  # with two steps the window (0.5, 1) is everything, since the second one starts at 0.5
        twins["no window"] = case._replace(window=(0.0, 1.0)).law()
    if num_steps is None:
        del twins["low times"]
    else:
        twins["a step later"] = case._replace(window=(0.5 - 1.0 / num_steps, 1.0)).law()
        twins["a step earlier"] = case._replace(window=(0.5 + 1.0 / num_steps, 1.0)).law()
    twins = {name: twin for name, twin in twins.items() if total_variation(twin, case.law()) > 1e-9}
    assert len(twins) >= 2
    judge(counts_of(case.sample()["tokens"]), case.law(), twins)


@pytest.mark.parametrize("num_steps", [2, slow(None)])
@pytest.mark.parametrize("temperature", [0.5, slow(2.0)])
def test_temperature_divides_the_energy(num_steps: int | None, temperature: float):
    case = Case(num_steps, k=3, temperature=temperature)
    twins = {"inverted": case._replace(temperature=1 / temperature).law(), "none": case._replace(temperature=1.0).law()}
    judge(counts_of(case.sample()["tokens"]), case.law(), twins)


@pytest.mark.slow
def test_experts_multiply():
    """The law of a sampler with a product is that of the sum of energies, and of neither expert alone."""
    other = residual_energy(random_joint(7, SYMBOLS, LENGTH, 1.5), MARGINALS)
    case, product = Case(2, k=3), energies.product(OracleEnergy(ENERGY), energies.scaled(OracleEnergy(other), 0.5))
    kernel = builders.importance(schedules.log_linear(), OracleDenoiser(Lookup(MARGINALS), SYMBOLS), product, case.k)
    tokens = edlm.sample(builders.sampling(kernel, LENGTH, case.num_steps), SAMPLES, seed=2024)["tokens"]
    twins = {"the first alone": case.law(), "the second alone": case.law(lambda x, x_t: 0.5 * other(x, x_t))}
    counts = torch.bincount(index_of(tokens, SYMBOLS), minlength=SYMBOLS**LENGTH)
    judge(counts, case.law(lambda x, x_t: ENERGY(x, x_t) + 0.5 * other(x, x_t)), twins)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("k", [1, 3])
def test_schedules_and_grids(schedule: str, k: int):
    for grid in (schedules.uniform_grid, schedules.cosine_grid):
        case = Case(3, k=k, schedule=schedule, grid=grid)
        other = {"cosine": "log_linear", "linear": "log_linear"}.get(schedule, "cosine")
        twins = {"schedule": case._replace(schedule=other).law(), "a step off": case._replace(num_steps=2).law()}
        judge(counts_of(case.sample()["tokens"]), case.law(), twins)


@pytest.mark.slow
@pytest.mark.parametrize("start", [(0, 2, 2), (2, 2, 1), (2, 0, 2)])
def test_a_prompt_conditions_as_the_visible_tokens_do(start: tuple[int, ...]):
    case = Case(2, k=3, start=start)
    law, counts = case.law(), counts_of(case.sample()["tokens"])
    given = law > 0
    assert counts[~given].sum() == 0
    shuffled = Case(2, k=3).law()[given]
    plain = case._replace(k=1).law()[given]
    judge(counts[given], law[given], {"unconditional": shuffled / shuffled.sum(), "plain": plain})


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["sir", "imh", "greedy"])
def test_zero_energy_leaves_the_plain_law(selection: str):
    case = Case(2, selection, 3)
    judge(counts_of(case.sample(zero_energy)["tokens"]), Case(2).law(), {"corrected": case.law()})


def test_the_plain_temperature_divides_the_logits():
    tempered = (MARGINALS / 0.5).log_softmax(-1)
    kernel = builders.ancestral(schedules.log_linear(), OracleDenoiser(Lookup(MARGINALS), SYMBOLS), temperature=0.5)
    tokens = edlm.sample(builders.sampling(kernel, LENGTH, 2), SAMPLES)["tokens"]
    alphas = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    hot = sampler_law((MARGINALS * 0.5).log_softmax(-1), alphas)
    judge(counts_of(tokens), sampler_law(tempered, alphas), {"none": Case(2).law(), "inverted": hot})


def proposed(temperature: float, nucleus: float) -> Tensor:
    """The law that drafts are really drawn from, a table as MARGINALS."""
    logits = (MARGINALS / temperature).flatten(0, -2)
    return categorical.nucleus(logits, nucleus).log_softmax(-1).view_as(MARGINALS)


def corrected_for(proposal: Tensor) -> EnergyFn:
    """The energy against another proposal than the denoiser: `E - log p_theta + log q` of the new tokens."""

    def energy(candidates: Tensor, x_t: Tensor) -> Tensor:
        log_p, log_q = (proposal_log_prob(table, candidates, x_t) for table in (MARGINALS, proposal))
        return ENERGY(candidates, x_t) - log_p + log_q.clamp(min=-1e9)  # what q cannot draw has no weight anyway

    return energy


@pytest.mark.parametrize(("temperature", "nucleus"), [(0.6, 1.0), slow(1.7, 1.0), (1.0, 0.75), slow(0.8, 0.9)])
def test_another_proposal_is_weighed_against_the_denoiser(temperature: float, nucleus: float):
    denoiser, proposal = OracleDenoiser(Lookup(MARGINALS), SYMBOLS), proposed(temperature, nucleus)
    kernel = builders.importance(
        schedules.log_linear(),
        denoiser,
        OracleEnergy(ENERGY),
        num_particles=3,
        proposal_temperature=temperature,
        nucleus=nucleus,
    )
    counts = counts_of(edlm.sample(builders.sampling(kernel, LENGTH, 2), SAMPLES)["tokens"])
    alphas = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    law = sampler_law(proposal, alphas, corrected_for(proposal), sir(3))
    twins = {"proposed by the denoiser": Case(2, k=3).law(), "plain": sampler_law(proposal, alphas)}
    if temperature != 1.0:  # of two symbols a nucleus holds one or both, and its weights are all alike
        twins["not weighed"] = sampler_law(proposal, alphas, ENERGY, sir(3))
    possible = law > 0
    assert counts[~possible].sum() == 0
    twins = {name: twin[possible] / twin[possible].sum() for name, twin in twins.items()}
    judge(counts[possible], law[possible], twins)


@pytest.mark.slow
@pytest.mark.parametrize("nucleus", [0.6, 0.8])
def test_plain_sampling_from_a_nucleus(nucleus: float):
    denoiser, alphas = OracleDenoiser(Lookup(MARGINALS), SYMBOLS), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    kernel = builders.ancestral(schedules.log_linear(), denoiser, nucleus=nucleus)
    counts = counts_of(edlm.sample(builders.sampling(kernel, LENGTH, 2), SAMPLES)["tokens"])
    law = sampler_law(proposed(1.0, nucleus), alphas)
    possible = law > 0
    assert counts[~possible].sum() == 0
    whole = Case(2).law()[possible]
    judge(counts[possible], law[possible], {"whole law": whole / whole.sum()})


@pytest.mark.slow
@pytest.mark.parametrize("target_ess", [1.5, 1.9])
def test_particles_drawn_until_they_suffice(target_ess: float):
    denoiser = OracleDenoiser(Lookup(MARGINALS), SYMBOLS)
    fixed = builders.importance(schedules.log_linear(), denoiser, OracleEnergy(ENERGY), 4)
    kernel = builders.in_rounds(fixed, target_ess, 1)
    tokens = edlm.sample(builders.sampling(kernel, LENGTH, 2), SAMPLES)["tokens"]
    law = Case(2).law(choose=adaptive_sir([1, 2, 4], target_ess), energy=ENERGY)
    judge(counts_of(tokens), law, {f"always {k}": Case(2, k=k).law() for k in (1, 2, 4)})


@pytest.mark.slow
def test_a_sliding_window_continues_by_the_law_of_what_it_still_sees():
    kernel = builders.importance(
        schedules.log_linear(),
        OracleDenoiser(Lookup(MARGINALS), SYMBOLS, LENGTH),
        OracleEnergy(ENERGY),
        num_particles=2,
    )
    pipeline = builders.sampling(kernel, LENGTH, 2)
    tokens = edlm.extend(pipeline, LENGTH + 1, 1, SAMPLES, seed=7)["tokens"]
    first = Case(2, k=2).law()
    law, swapped = torch.zeros(2, 2, 2, 2, dtype=torch.float64), torch.zeros(2, 2, 2, 2, dtype=torch.float64)
    for (a, b, c), mass in zip(all_sequences(SYMBOLS, LENGTH).tolist(), first.tolist(), strict=True):
        law[a, b, c] = mass * Case(2, k=2, start=(b, c, SYMBOLS)).law().view(2, 2, 2)[b, c]
        swapped[a, b, c] = mass * Case(2, k=2, start=(a, b, SYMBOLS)).law().view(2, 2, 2)[a, b]
    judge(counts_of(tokens), law, {"another window": swapped, "independent": (first[:, None] * 0.5).expand(-1, 2)})


@pytest.mark.parametrize("num_steps", [slow(1), 2, slow(3), slow(None)])
@pytest.mark.parametrize(("selection", "k"), [("sir", 2), slow("sir", 4), slow("imh", 3), slow("greedy", 3)])
def test_corrected_transitions(num_steps: int | None, selection: str, k: int):
    case = Case(num_steps, selection, k, proposes="revealed")
    twins = {
        "one particle fewer": case._replace(k=k - 1).law(),
        "one particle more": case._replace(k=k + 1).law(),
        "sign of the energy": case.law(powered(ENERGY, -1.0)),
        "steps": case._replace(num_steps=4 if num_steps is None else num_steps + 1).law(),
        "whole drafts": case._replace(proposes="masked").law(),
    }
    if num_steps == 1:  # the only step reveals everything, and its candidates are whole drafts
        torch.testing.assert_close(twins.pop("whole drafts"), case.law())
    judge(counts_of(case.sample()["tokens"]), case.law(), twins)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [2, None])
def test_transitions_in_a_window_from_a_prompt_and_at_a_temperature(num_steps: int | None):
    window = Case(num_steps, k=3, window=(0.6, 1.0), proposes="revealed")
    judge(
        counts_of(window.sample()["tokens"]),
        window.law(),
        {"no window": window._replace(window=(0.0, 1.0)).law(), "plain": window._replace(k=1).law()},
    )
    hot = Case(num_steps, k=3, temperature=2.0, proposes="revealed")
    judge(counts_of(hot.sample()["tokens"]), hot.law(), {"cold": hot._replace(temperature=1.0).law()})
    given_one = Case(2, k=3, start=(2, 0, 2), proposes="revealed")
    law, counts = given_one.law(), counts_of(given_one.sample()["tokens"])
    possible = law > 0
    assert counts[~possible].sum() == 0
    judge(counts[possible], law[possible], {"plain": given_one._replace(k=1).law()[possible]})


@pytest.mark.slow
def test_two_fair_bits_agree_as_often_as_enumeration_says():
    """No factorised step draws two identical bits; with k drafts at one step SIR fails only if all drafts do."""
    joint = two_fair_bits()
    table = marginal_table(joint)
    energy = residual_energy(joint)
    for k, failures in ((1, 1 / 2), (2, 1 / 4), (4, 1 / 16)):
        kernel = builders.importance(
            schedules.log_linear(), OracleDenoiser(Lookup(table), 2), OracleEnergy(energy), num_particles=k
        )
        tokens = edlm.sample(builders.sampling(kernel, 2, 1), SAMPLES)["tokens"]
        expected = torch.tensor([1 - failures, failures, failures, 1 - failures], dtype=torch.float64) / 2
        twin = torch.tensor([1 - failures, 2 * failures, 0.0, 1 - failures], dtype=torch.float64) / 2
        assert fits(counts_of(tokens), expected)
        assert not fits(counts_of(tokens), twin)


@pytest.mark.slow
def test_more_particles_come_closer_to_the_data_and_a_flipped_sign_goes_away_from_it():
    def nll(case: Case, energy: EnergyFn = ENERGY) -> float:
        return float(exact_nll(JOINT, case.sample(energy, 50_000)["tokens"]).mean())

    plain, corrected, flipped = nll(Case(1)), nll(Case(1, k=4)), nll(Case(1, k=4), powered(ENERGY, -1.0))
    assert corrected < plain - 0.1
    assert flipped > plain + 0.1
    law = Case(1, k=4).law()
    assert corrected == pytest.approx(
        float(expectation(law, exact_nll(JOINT, all_sequences(SYMBOLS, LENGTH)))), abs=0.02
    )
    assert total_variation(law, JOINT) < total_variation(Case(1).law(), JOINT)


def test_the_windowed_first_hitting_law_is_the_oracle_s_at_both_ends():
    """`enumerated_samplers` derives the law with a window itself; a full and an empty one are known without it."""
    for inside, expected in ((1.0, first_hitting_law(MARGINALS, ENERGY, sir(3))), (0.0, first_hitting_law(MARGINALS))):
        torch.testing.assert_close(windowed_first_hitting_law(ENERGY, sir(3), 1.0, inside), expected)
