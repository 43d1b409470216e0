"""The oracles judge each other: likelihoods, the hidden Markov model, and what makes parts of the library of them."""

from functools import partial
from itertools import permutations

import pytest
import torch
from oracle_laws import LAWS, close, grid, laws, product_of_marginals, sequences_of
from oracles import (
    HiddenMarkov,
    Lookup,
    OracleDenoiser,
    OracleEnergy,
    all_masked_states,
    all_sequences,
    empirical_law,
    entropy,
    exact_nll,
    expectation,
    hmm_log_prob,
    hmm_posterior_marginals,
    hmm_residual_energy,
    hmm_sample,
    joint_posterior,
    kl,
    marginal_table,
    markov,
    nelbo,
    posterior_marginals,
    random_hidden_markov,
    random_marginals,
    residual_energy,
    sampler_law,
    t_step_nelbo,
    total_variation,
)
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import Tensor

from edlm import contracts

# ---- Likelihoods


@laws
def test_continuous_nelbo_of_the_ideal_denoiser_is_the_entropy(joint):
    values = nelbo(marginal_table(joint), sequences_of(joint))
    close(expectation(joint, values), entropy(joint))
    close(values, exact_nll(joint, sequences_of(joint)))


def test_continuous_nelbo_is_the_average_over_orders():
    table, x_0 = random_marginals(3, 2, 4), all_sequences(2, 4)
    total = torch.zeros(16, dtype=torch.float64)
    for order in permutations(range(4)):
        x_t = torch.full_like(x_0, 2)
        for position in order:
            total -= Lookup(table)(x_t)[:, position].gather(-1, x_0[:, position : position + 1]).squeeze(-1)
            x_t[:, position] = x_0[:, position]
    close(nelbo(table, x_0), total / 24)


@laws
def test_t_step_nelbo_falls_from_the_marginal_entropies_to_the_entropy(joint):
    values = [
        float(expectation(joint, t_step_nelbo(marginal_table(joint), grid(n), sequences_of(joint))))
        for n in (1, 2, 4, 8, 4000)
    ]
    assert values == sorted(values, reverse=True)
    marginals = product_of_marginals(joint)
    assert values[0] == pytest.approx(float(entropy(joint) + kl(joint, marginals)), abs=1e-12)
    assert 0.0 <= values[-1] - float(entropy(joint)) < 1e-3


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_t_step_nelbo_bounds_the_sampler(num_steps):
    table, x = random_marginals(3, 3, 3), all_sequences(3, 3)
    bound = t_step_nelbo(table, grid(num_steps), x)
    law = sampler_law(table, grid(num_steps))
    assert (bound >= exact_nll(law, x) - 1e-12).all()


def test_distances_on_known_values():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    assert total_variation(p, q) == 0.5
    assert kl(p, q) == pytest.approx(0.6931472)
    assert kl(q, p) == torch.inf


# ---- Hidden Markov model


def joint_of(hmm: HiddenMarkov, length: int) -> Tensor:
    law = markov(hmm.initial, hmm.transition, length)
    for _ in range(length):
        law = torch.tensordot(law, hmm.emission, dims=([0], [0]))  # each axis moves to the end as it is emitted
    return law


def test_hidden_markov_against_enumeration():
    hmm = random_hidden_markov(0, 3, 2)
    joint, states = joint_of(hmm, 5), all_masked_states(2, 5)
    assert hmm.emission.shape == (3, 2)
    close(hmm_log_prob(hmm, all_sequences(2, 5)), joint.flatten().log())
    agrees = joint_posterior(joint, states) > -torch.inf
    close(hmm_log_prob(hmm, states), (agrees * joint.flatten()).sum(-1).log())
    close(hmm_posterior_marginals(hmm, states), posterior_marginals(joint, states))
    x_t = torch.tensor([[2, 0, 2, 2, 1]])
    candidates = torch.tensor([[[1, 0, 0, 1, 1], [0, 0, 2, 1, 1], [2, 0, 2, 2, 1]]])
    close(hmm_residual_energy(hmm)(candidates, x_t), residual_energy(joint)(candidates, x_t))


def test_hidden_markov_samples_follow_the_law():
    hmm = random_hidden_markov(1, 3, 2)
    tokens = hmm_sample(hmm, torch.Generator().manual_seed(0), 40_000, 3)
    assert total_variation(empirical_law(tokens, 2), joint_of(hmm, 3)) < 0.02


def test_hidden_markov_at_length_256():
    hmm = random_hidden_markov(2, 8, 16)
    x_0 = hmm_sample(hmm, torch.Generator().manual_seed(0), 8, 256)
    x_t = torch.where(torch.rand(8, 256, generator=torch.Generator().manual_seed(1)) < 0.5, 16, x_0)
    log_p = hmm_posterior_marginals(hmm, x_t)
    close(log_p.exp().sum(-1), torch.ones(8, 256, dtype=torch.float64))
    assert torch.isfinite(hmm_residual_energy(hmm)(x_0.unsqueeze(1), x_t)).all()
    one_filled = x_t.clone()
    position = int((x_t[0] == 16).nonzero()[0])
    one_filled[0, position] = 3
    ratio = hmm_log_prob(hmm, one_filled)[0] - hmm_log_prob(hmm, x_t)[0]
    close(ratio, log_p[0, position, 3], atol=1e-9)


# ---- Adapters


def test_adapters_keep_the_contracts():
    joint = LAWS[0]
    denoiser = OracleDenoiser(Lookup(marginal_table(joint)), mask_id=3)
    energy = OracleEnergy(residual_energy(joint))
    assert isinstance(denoiser, contracts.Denoiser)
    x_t = torch.tensor([[3, 1, 3], [0, 3, 3]])
    candidates = torch.tensor([[[0, 1, 2], [1, 1, 1]], [[0, 0, 0], [0, 3, 2]]])
    inputs = TensorDict(
        {
            contracts.X_T: x_t,
            contracts.T: torch.ones(2, dtype=torch.float64),
            contracts.POSITIONS: torch.tensor([0, 5, 6]),  # the last one is padding
            contracts.CANDIDATES: candidates,
        }
    )
    before = inputs.clone()
    outputs = TensorDictSequential(denoiser, energy, inplace=False)(inputs)
    assert set(inputs.keys()) == set(before.keys())
    expected = posterior_marginals(joint, x_t)
    logits = denoiser.logits(outputs[contracts.HIDDEN])
    assert torch.equal(logits[:2], torch.stack([expected[0, 0], expected[1, 2]]))
    close(logits[2].exp(), torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64))
    assert torch.equal(outputs[contracts.ENERGY], residual_energy(joint)(candidates, x_t))


def test_adapter_of_a_hidden_markov_model():
    hmm = random_hidden_markov(0, 3, 2)
    denoiser = OracleDenoiser(partial(hmm_posterior_marginals, hmm), mask_id=2)
    x_t = torch.tensor([[2, 0, 2, 1]])
    inputs = TensorDict({contracts.X_T: x_t, contracts.T: torch.ones(1), contracts.POSITIONS: torch.arange(4)})
    assert torch.equal(denoiser(inputs)[contracts.HIDDEN], hmm_posterior_marginals(hmm, x_t)[0])
