"""The exact law of a sampler, against the oracle's own enumeration and against texts that the library draws."""

import math
from functools import partial

import builders
import pytest
import torch
from builders import of_transitions, tiny_denoiser, tiny_energy
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    all_sequences,
    empirical_law,
    first_hitting_law,
    marginal_table,
    residual_energy,
    total_variation,
)
from oracles import imh as oracle_imh
from oracles import sampler_law as oracle_law
from oracles import sir as oracle_sir
from torch import Tensor

from edlm.contracts import Positions
from edlm.likelihood import hidden_markov
from edlm.models import energies
from edlm.process import particles, schedules
from edlm.samplers import pipelines, selections

SYMBOLS, LENGTH = 2, 3
SOURCE = hidden_markov.random_hidden_markov(2, 3, SYMBOLS, 3.0)
JOINT = hidden_markov.log_prob(SOURCE, all_sequences(SYMBOLS, LENGTH)).exp().view((SYMBOLS,) * LENGTH)
TABLE = marginal_table(JOINT)
DENOISER, ENERGY = hidden_markov.denoiser(SOURCE, LENGTH), hidden_markov.energy(SOURCE)
LINEAR = schedules.log_linear()
CHOICES = {"sir": (selections.sir_law, oracle_sir), "imh": (selections.imh_law, oracle_imh)}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("proposes", ["masked", "revealed"])
@pytest.mark.parametrize("num_particles", [1, 2, 4])
def test_it_is_the_oracle_s_law(choice: str, proposes: Positions, num_particles: int) -> None:
    _, oracle = CHOICES[choice]
    for num_steps in (1, 3):
        grid = schedules.uniform_grid(num_steps)
        found = builders.law_of(DENOISER, LINEAR, grid, LENGTH, ENERGY, num_particles, choice, proposes)
        wanted = oracle_law(TABLE, 1.0 - grid, residual_energy(JOINT), oracle(num_particles), proposes)
        torch.testing.assert_close(found.flatten(), wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("proposes", ["masked", "revealed"])
def test_one_position_at_a_time_is_the_oracle_s_law(proposes: Positions) -> None:
    found = builders.law_of(DENOISER, LINEAR, None, LENGTH, ENERGY, 3, "sir", proposes)
    wanted = first_hitting_law(TABLE, residual_energy(JOINT), oracle_sir(3), proposes)
    torch.testing.assert_close(found.flatten(), wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("proposes", ["masked", "revealed"])
def test_it_is_the_law_of_the_texts_that_the_library_draws(proposes: Positions) -> None:
    """A network's energy, tempered proposals, another schedule; 10,000 texts, wrong with probability 1e-6."""
    n, linear = 10_000, schedules.cosine()
    network = tiny_energy(1, SYMBOLS + 1, LENGTH)
    energy = energies.scaled(network, 20.0)
    build = of_transitions if proposes == "revealed" else builders.importance
    kernel = build(linear, DENOISER, energy, 3, selection=particles.sir, proposal_temperature=0.7)
    drawn = pipelines.sample(builders.sampling(kernel, LENGTH, 2), n, seed=0)["tokens"]
    grid = schedules.uniform_grid(2)
    laws = [
        builders.law_of(DENOISER, linear, grid, LENGTH, each, k, "sir", proposes, heat)
        for each, k, heat in ((energy, 3, 0.7), (energy, 1, 0.7), (None, 1, 1.0))
    ]
    limit = math.sqrt(SYMBOLS**LENGTH / n) / 2 + math.sqrt(math.log(1e6) / (2 * n))
    far = [float(total_variation(empirical_law(drawn, SYMBOLS), law)) for law in laws]
    assert far[0] < limit < 0.5 * min(far[1:])


@given(
    q=st.lists(st.floats(0.05, 1.0), min_size=3, max_size=3),
    log_w=st.lists(st.floats(-12.0, 12.0), min_size=3, max_size=3),
    k=st.integers(1, 4),
)
@settings(max_examples=60)
def test_the_quadrature_is_exact(q: list[float], log_w: list[float], k: int) -> None:
    log_q = torch.tensor([q], dtype=torch.float64).log().log_softmax(-1)
    weights = torch.tensor([log_w], dtype=torch.float64)
    torch.testing.assert_close(
        selections.sir_law(log_q, weights, k), oracle_sir(k)(log_q, weights), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("name", CHOICES)
def test_a_candidate_without_weight_is_kept_only_among_its_like(name: str) -> None:
    """SIR and Metropolis-Hastings alike, and where none has any weight all are draws of the proposal."""
    own, oracle = CHOICES[name]
    log_q = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]], dtype=torch.float64).log()
    log_w = torch.tensor([[0.0, -math.inf, 1.0], [-math.inf] * 3], dtype=torch.float64)
    torch.testing.assert_close(own(log_q, log_w, 3), oracle(3)(log_q, log_w), rtol=1e-8, atol=1e-12)


def law_of(steps: int | None, proposes: Positions, k: int) -> Tensor:
    grid = None if steps is None else schedules.uniform_grid(steps)
    return builders.law_of(DENOISER, LINEAR, grid, LENGTH, ENERGY, k, "sir", proposes)


def test_the_exact_energy_leads_to_the_data_and_drafts_spoil_single_tokens() -> None:
    far = {k: float(total_variation(law_of(1, "revealed", k), JOINT)) for k in (1, 4, 64)}
    assert far[1] > 2 * far[4] > 4 * far[64]
    torch.testing.assert_close(law_of(None, "revealed", 2), JOINT, rtol=1e-8, atol=0.0)
    assert total_variation(law_of(None, "masked", 2), JOINT) > 1e-3


def test_what_more_and_more_candidates_tend_to_is_the_law_of_many() -> None:
    """With the exact energy the data's own, at one step."""
    limit = partial(builders.law_of, DENOISER, LINEAR, schedules.uniform_grid(1), LENGTH, ENERGY)
    torch.testing.assert_close(limit(2, "speculative", "revealed"), JOINT, rtol=1e-8, atol=0.0)
    log_q, log_w = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_q = log_q.log_softmax(-1)
    for choice in (selections.sir_law, selections.imh_law):
        near, far = ((choice(log_q, log_w, k) - selections.limit_law(log_q, log_w, k)).abs().sum() for k in (256, 4))
        assert near < 0.02 < far


def test_what_cannot_be_enumerated_is_refused() -> None:
    with pytest.raises(ValueError, match="3 symbols and length = 8 have 5764801 transitions, more than 1048576"):
        builders.law_of(hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8), LINEAR, None, 8)
    told = tiny_denoiser(0, SYMBOLS, schedules.log_linear(1e-3), vocab_size=SYMBOLS + 1, max_length=LENGTH)
    with pytest.raises(ValueError, match="the denoiser changes with the time t"):
        builders.law_of(told, LINEAR, None, LENGTH)
