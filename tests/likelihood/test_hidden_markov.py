"""Sources against enumeration and against an oracle of their own: every law that they say is exact is."""

import math

import builders
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    HiddenMarkov,
    OracleDenoiser,
    all_masked_states,
    all_sequences,
    ar_energy,
    empirical_law,
    hmm_log_prob,
    hmm_posterior_marginals,
    hmm_residual_energy,
    marginal_table,
    markov,
    posterior_marginals,
    random_markov,
    residual_energy,
    total_variation,
)
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts, testing
from edlm.likelihood import hidden_markov
from edlm.likelihood.hidden_markov import Source
from edlm.process import schedules
from edlm.samplers import pipelines

SYMBOLS, LENGTH = 3, 4
STATES = all_masked_states(SYMBOLS, LENGTH)
CHAIN = torch.tensor([[0.9, 0.05, 0.05], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1]], dtype=torch.float64)
SOURCES = {
    "hidden": hidden_markov.random_hidden_markov(0, 4, SYMBOLS),
    "chain": hidden_markov.random_markov(1, SYMBOLS),
    "given start": hidden_markov.markov(CHAIN, torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)),
}
every_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


def joint(source: Source, length: int = LENGTH) -> Tensor:
    law = hidden_markov.log_prob(source, all_sequences(source.num_symbols, length)).exp()
    return law.view((source.num_symbols,) * length)


def candidates_of(x_t: Tensor, seed: int = 0, k: int = 3) -> Tensor:
    """Some masks of each state filled in at random: (b, k, l)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, SYMBOLS, (len(x_t), k, x_t.shape[1]), generator=generator)
    filled = (torch.rand(len(x_t), 1, x_t.shape[1], generator=generator) < 0.6) & (x_t == SYMBOLS).unsqueeze(1)
    return torch.where(filled, drawn, x_t.unsqueeze(1))


def test_a_chain_is_the_law_of_its_tables() -> None:
    source = SOURCES["given start"]
    torch.testing.assert_close(joint(source), markov(source.initial, CHAIN, LENGTH), rtol=1e-12, atol=0.0)


@every_source
def test_every_law_is_that_of_the_oracle(source: Source) -> None:
    oracle = HiddenMarkov(*source)
    torch.testing.assert_close(
        hidden_markov.log_prob(source, STATES), hmm_log_prob(oracle, STATES), rtol=1e-12, atol=1e-12
    )
    positions = (STATES == SYMBOLS).flatten().nonzero().squeeze(-1)
    denoiser = hidden_markov.denoiser(source, LENGTH)
    found = denoiser(TensorDict({contracts.X_T: STATES, contracts.POSITIONS: positions}))
    wanted = hmm_posterior_marginals(oracle, STATES).flatten(0, 1)[positions]
    law = denoiser.logits(found[contracts.HIDDEN]).softmax(-1)
    torch.testing.assert_close(law, wanted.exp(), rtol=1e-12, atol=1e-15)


@every_source
def test_marginals_and_energies_are_those_of_the_enumerated_law(source: Source) -> None:
    """Drafts and partly filled candidates alike; the denoiser's log-probabilities are the enumerated marginals'."""
    x_t, law = STATES[:-1:7], joint(source)
    marginals = posterior_marginals(law, x_t)
    for candidates in (candidates_of(x_t), torch.where(x_t == SYMBOLS, 1, x_t).unsqueeze(1)):
        log_p = marginals.unsqueeze(1).expand(*candidates.shape, -1).gather(-1, candidates.unsqueeze(-1)).squeeze(-1)
        log_p = torch.where(candidates != x_t.unsqueeze(1), log_p, 0.0)
        inputs = {contracts.CANDIDATES: candidates, contracts.X_T: x_t, contracts.LOG_P_CANDIDATES: log_p}
        found = hidden_markov.energy(source)(TensorDict(inputs))[contracts.ENERGY]
        torch.testing.assert_close(found, residual_energy(law)(candidates, x_t), rtol=1e-9, atol=1e-12)


@every_source
def test_the_carry_over_energy_is_that_of_the_enumerated_autoregressive_model(source: Source) -> None:
    law, drafts = joint(source), all_sequences(SYMBOLS, LENGTH)
    candidates = torch.where((STATES == SYMBOLS).unsqueeze(1), drafts, STATES.unsqueeze(1))
    log_p = posterior_marginals(law, STATES).unsqueeze(1).expand(*candidates.shape, -1)
    log_p = log_p.gather(-1, candidates.unsqueeze(-1)).squeeze(-1)
    log_p = torch.where(candidates != STATES.unsqueeze(1), log_p, 0.0)
    inputs = {contracts.CANDIDATES: candidates, contracts.X_T: STATES, contracts.LOG_P_CANDIDATES: log_p}
    found, posterior = (
        energy(source)(TensorDict(inputs))[contracts.ENERGY]
        for energy in (hidden_markov.carry_over_energy, hidden_markov.energy)
    )
    wanted = ar_energy(law, marginal_table(law), carry_over=True)(candidates, STATES)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(found, posterior)


def test_the_energy_is_exact_where_nothing_can_be_enumerated() -> None:
    """64 tokens, against the oracle's own forward-backward; and the chain rule: energies of two halves add up."""
    source, length = SOURCES["hidden"], 64
    x_0 = hidden_markov.texts(source, 6, length, seed=3)
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(6, length, generator=generator)
    x_t, x_s = (torch.where(u < level, SYMBOLS, x_0) for level in (0.8, 0.3))
    oracle = hmm_residual_energy(HiddenMarkov(*source))
    log_p = hmm_posterior_marginals(HiddenMarkov(*source), x_t).gather(-1, x_0.unsqueeze(-1)).squeeze(-1)
    log_p = torch.where(x_s != x_t, log_p, 0.0).unsqueeze(1)
    inputs = {contracts.CANDIDATES: x_s.unsqueeze(1), contracts.X_T: x_t, contracts.LOG_P_CANDIDATES: log_p}
    found = hidden_markov.energy(source)(TensorDict(inputs))[contracts.ENERGY]
    torch.testing.assert_close(found, oracle(x_s.unsqueeze(1), x_t), rtol=1e-10, atol=1e-10)
    whole, rest = (hidden_markov.log_conditional(source, x_0.unsqueeze(1), state) for state in (x_t, x_s))
    torch.testing.assert_close(whole, hidden_markov.log_conditional(source, x_s.unsqueeze(1), x_t) + rest)


def test_its_texts_are_drawn_from_its_law_whatever_the_batch() -> None:
    """20,000 texts: total variation below `sqrt(81 / n) / 2 + sqrt(log 1e6 / 2n)` but once in 1e6 (McDiarmid)."""
    source, n = SOURCES["hidden"], 20_000
    drawn = hidden_markov.texts(source, n, LENGTH, seed=0)
    limit = math.sqrt(SYMBOLS**LENGTH / n) / 2 + math.sqrt(math.log(1e6) / (2 * n))
    assert total_variation(empirical_law(drawn, SYMBOLS), joint(source)) < limit
    assert total_variation(empirical_law(drawn, SYMBOLS), joint(SOURCES["chain"])) > 2 * limit
    assert torch.equal(hidden_markov.texts(source, 5, LENGTH, seed=0, first_row=7), drawn[7:12])


@every_source
@pytest.mark.parametrize("distance", [1, 2, 3])
def test_the_law_of_pairs_is_that_of_the_enumerated_law(source: Source, distance: int) -> None:
    law, places = joint(source), range(LENGTH - distance)
    wanted = torch.stack([law.sum([i for i in range(LENGTH) if i not in (p, p + distance)]) for p in places]).mean(0)
    torch.testing.assert_close(hidden_markov.pair_law(source, LENGTH, distance), wanted)


@given(seed=st.integers(0, 2**32 - 1), hidden=st.integers(1, 5), symbols=st.integers(2, 5), strength=st.floats(0, 4))
@settings(max_examples=25)
def test_a_random_source_is_stationary_and_positive(seed: int, hidden: int, symbols: int, strength: float) -> None:
    source = hidden_markov.random_hidden_markov(seed, hidden, symbols, strength)
    torch.testing.assert_close(source.initial @ source.transition, source.initial, atol=1e-9, rtol=0.0)
    for table in source:
        torch.testing.assert_close(table.sum(-1), torch.ones(table.shape[:-1]).double())
    assert all(float(table.min()) > 0.0 for table in (source.transition, source.emission))
    again = hidden_markov.random_hidden_markov(seed, hidden, symbols, strength)
    for one, other in zip(source, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)  # a solver may round by where its memory lies


def test_given_what_cannot_be_every_completion_is_as_likely() -> None:
    """A chain that never goes from 1 to 1: such a text has probability zero, and a step given one draws uniformly."""
    source = hidden_markov.markov(torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=torch.float64))
    impossible = torch.tensor([[1, 1, 2]])
    assert hidden_markov.log_prob(source, impossible) == -math.inf
    denoiser = hidden_markov.denoiser(source, 3)
    found = denoiser(TensorDict({contracts.X_T: impossible, contracts.POSITIONS: torch.tensor([2])}))
    torch.testing.assert_close(denoiser.logits(found["hidden"]).softmax(-1), torch.tensor([[0.5, 0.5, 0.0]]).double())
    filled = torch.tensor([[[1, 1, 0]]])
    assert hidden_markov.log_conditional(source, filled, impossible) == -math.log(2)
    log_p = torch.tensor([[[0.0, 0.0, -math.log(2)]]])
    inputs = {contracts.CANDIDATES: filled, contracts.X_T: impossible, contracts.LOG_P_CANDIDATES: log_p}
    assert float(hidden_markov.energy(source)(TensorDict(inputs))[contracts.ENERGY]) == pytest.approx(0.0, abs=1e-7)
    assert hidden_markov.log_conditional(source, torch.tensor([[[1, 1, 2]]]), torch.tensor([[2, 1, 2]])) == -math.inf


def test_the_denoiser_keeps_the_laws_of_every_denoiser() -> None:
    testing.check_denoiser(hidden_markov.denoiser(SOURCES["hidden"], LENGTH), LENGTH)


def test_under_exact_parts_the_bound_of_transitions_falls_to_the_data_s_own_likelihood() -> None:
    """128 texts, paired draws of a bound: `-log q <= bound` in the mean, plain, and less so with more particles."""
    source, length = SOURCES["hidden"], 16
    x_0, row = hidden_markov.texts(source, 128, length, seed=1), torch.arange(128)
    denoiser, energy, linear = (
        hidden_markov.denoiser(source, length),
        hidden_markov.energy(source),
        schedules.log_linear(),
    )
    above = []
    for k in (1, 4, 16):
        args = (denoiser, energy, linear, schedules.uniform_grid(2), x_0, torch.tensor(0), row)
        gap = builders.transition_bound(*args, num_particles=k).nats + hidden_markov.log_prob(source, x_0) / length
        above.append((float(gap.mean()), float(gap.std()) / 128**0.5))
    assert all(mean > 3 * error for mean, error in above)
    assert above[0][0] > 1.5 * above[1][0] > 2 * above[2][0]
    plain = builders.plain_bound(denoiser, linear, schedules.uniform_grid(2), x_0, torch.tensor(0), row)
    assert float((plain.nats + hidden_markov.log_prob(source, x_0) / length).mean()) == pytest.approx(
        above[0][0], rel=0.2
    )


def test_a_sampler_of_exact_parts_is_that_of_the_oracle_s() -> None:
    """The same texts of the same noise as with a denoiser that looks its laws up in an enumerated table."""
    source = SOURCES["hidden"]
    table = OracleDenoiser(lambda x_t: posterior_marginals(joint(source), x_t), SYMBOLS, LENGTH)
    linear = schedules.log_linear()
    drawn = [
        pipelines.sample(builders.sampling(builders.ancestral(linear, each), LENGTH, 2), 64, seed=0)["tokens"]
        for each in (table, hidden_markov.denoiser(source, LENGTH))
    ]
    assert torch.equal(*drawn)
    assert random_markov(0, SYMBOLS, LENGTH).shape == joint(source).shape


@pytest.mark.parametrize(
    ("transition_table", "emission", "said"),
    [
        ([[0.5, 0.5]], [[1.0]], "transition has the shape"),
        ([[0.5, 0.6], [0.5, 0.5]], [[1.0], [1.0]], "transition must hold laws"),
        ([[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0]], "emission has the shape"),
        ([[0.5, 0.5], [0.5, 0.5]], [[1.5, -0.5], [0.5, 0.5]], "emission must hold laws"),
    ],
)
def test_tables_that_hold_no_laws_are_refused(transition_table: list, emission: list, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        hidden_markov.hidden_markov(torch.tensor(transition_table), torch.tensor(emission))


def test_a_source_without_states_or_with_a_single_symbol_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden = 0 must be at least 1"):
        hidden_markov.random_hidden_markov(0, 0, 3)
    with pytest.raises(ValueError, match="symbols = 1 must be at least 2"):
        hidden_markov.random_markov(0, 1)
