"""The oracles judge each other: every claim is computed in two ways, or against a value known in closed form."""

from itertools import product

import pytest
import torch
from oracle_laws import LAWS, close, laws, sequences_of, states_of
from oracles import (
    Lookup,
    all_masked_states,
    all_sequences,
    ar_energy,
    ar_log_prob,
    empirical_law,
    entropy,
    imh,
    index_of,
    joint_posterior,
    log_z,
    marginal_table,
    markov,
    posterior_marginals,
    proposal_log_prob,
    random_joint,
    random_marginals,
    residual_energy,
    sir,
    sir_by_quadrature,
    two_fair_bits,
)

# ---- Laws and enumeration


@laws
def test_joint_laws_sum_to_one_and_sequences_follow_their_order(joint):
    close(joint.sum(), torch.tensor(1.0, dtype=torch.float64))
    sequences = sequences_of(joint)
    assert torch.equal(joint[sequences.unbind(-1)], joint.flatten())
    assert torch.equal(index_of(sequences, joint.shape[0]), torch.arange(joint.numel()))
    assert len(states_of(joint)) == (joint.shape[0] + 1) ** joint.ndim


def test_markov_is_the_product_of_its_transitions():
    initial = torch.tensor([0.25, 0.75], dtype=torch.float64)
    transition = torch.tensor([[0.5, 0.5], [0.125, 0.875]], dtype=torch.float64)
    law = markov(initial, transition, 3)
    assert law[1, 0, 1] == 0.75 * 0.125 * 0.5
    assert law.shape == (2, 2, 2)


def test_empirical_law_counts_sequences():
    tokens = torch.tensor([[0, 1], [0, 1], [1, 1], [0, 0]])
    assert empirical_law(tokens, 2).tolist() == [0.25, 0.5, 0.0, 0.25]


def test_two_fair_bits_have_one_bit_of_entropy():
    close(entropy(two_fair_bits()), torch.tensor(2.0, dtype=torch.float64).log())


# ---- Denoiser and autoregressive model


@laws
def test_posterior_marginals_are_those_of_the_joint_posterior(joint):
    symbols = joint.shape[0]
    posterior = joint_posterior(joint, states_of(joint)).exp()
    marginals = posterior_marginals(joint, states_of(joint)).exp()
    for position, symbol in product(range(joint.ndim), range(symbols)):
        has = sequences_of(joint)[:, position] == symbol
        close(marginals[:, position, symbol], posterior[:, has].sum(-1))
    assert (marginals[states_of(joint) == symbols][:, symbols] == 0).all()
    close(marginals.sum(-1), torch.ones_like(marginals[..., 0]))


@laws
def test_table_and_leading_dimensions_agree_with_the_function(joint):
    states = states_of(joint)
    expected = posterior_marginals(joint, states)
    assert torch.equal(Lookup(marginal_table(joint))(states), expected)
    assert torch.equal(posterior_marginals(joint, states.unsqueeze(1)).squeeze(1), expected)


def test_impossible_state_has_uniform_completions():
    joint = two_fair_bits().unsqueeze(-1) * torch.tensor([0.9, 0.1], dtype=torch.float64)
    x_t = torch.tensor([[0, 1, 2]])
    close(posterior_marginals(joint, x_t).exp()[0, 2], torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))
    close(joint_posterior(joint, x_t).exp()[0, 2:4], torch.tensor([0.5, 0.5], dtype=torch.float64))
    candidates = torch.tensor([[[0, 1, 0], [0, 1, 1]]])
    close(residual_energy(joint)(candidates, x_t), torch.zeros(1, 2, dtype=torch.float64))
    close(ar_log_prob(joint, candidates[0, 0]).exp(), torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64))


@laws
def test_autoregressive_conditionals_multiply_to_the_joint(joint):
    log_p = ar_log_prob(joint, sequences_of(joint))
    close(log_p.sum(-1), joint.flatten().log())
    close(log_p[:, 0].exp(), joint.sum(list(range(1, joint.ndim)))[sequences_of(joint)[:, 0]])


def test_random_marginals_are_a_denoiser():
    table = random_marginals(0, 3, 3)
    states = all_masked_states(3, 3)
    law = Lookup(table)(states).exp()
    close(law.sum(-1), torch.ones(64, 3, dtype=torch.float64))
    visible = states < 3
    assert torch.equal(law[visible].argmax(-1), states[visible])
    assert (law[..., 3][~visible] == 0).all()


# ---- Energies


@laws
def test_residual_energy_is_the_log_ratio_to_the_joint_posterior(joint):
    x_t = states_of(joint)
    drafts = sequences_of(joint).expand(len(x_t), -1, -1)
    agrees = ((drafts == x_t.unsqueeze(1)) | (x_t.unsqueeze(1) == joint.shape[0])).all(-1)
    log_p = proposal_log_prob(marginal_table(joint), drafts, x_t)
    expected = log_p - joint_posterior(joint, x_t)
    close(residual_energy(joint)(drafts, x_t)[agrees], expected[agrees])


@laws
@pytest.mark.parametrize("exact", [True, False])
def test_residual_energy_is_normalised_on_drafts_and_on_transitions(joint, exact):
    table = marginal_table(joint) if exact else random_marginals(5, joint.shape[0], joint.ndim)
    energy = residual_energy(joint, table)
    for reveal in [None, *all_sequences(2, joint.ndim).bool()]:
        masks = None if reveal is None else reveal.expand_as(states_of(joint))
        close(log_z(table, energy, states_of(joint), masks), torch.zeros(len(states_of(joint)), dtype=torch.float64))


@laws
def test_normalisers_of_the_autoregressive_energies(joint):
    ar = random_joint(7, joint.shape[0], joint.ndim)
    for table in (marginal_table(joint), random_marginals(5, joint.shape[0], joint.ndim)):
        carried = log_z(table, ar_energy(ar, table, carry_over=True), states_of(joint))
        close(carried, torch.zeros_like(carried))
        posterior = log_z(table, ar_energy(ar, table, carry_over=False), states_of(joint))
        agrees = joint_posterior(ar, states_of(joint)) > -torch.inf
        close(posterior, (agrees * ar.flatten()).sum(-1).log())


def test_posterior_autoregressive_energy_is_the_residual_energy_up_to_a_constant():
    joint = LAWS[0]
    x_t = torch.tensor([[3, 1, 3], [3, 3, 3]])
    drafts = torch.tensor([[[0, 1, 0], [2, 1, 1]], [[0, 1, 2], [2, 2, 2]]])
    difference = ar_energy(joint, marginal_table(joint), False)(drafts, x_t) - residual_energy(joint)(drafts, x_t)
    close(difference[:, 0], difference[:, 1])


def test_a_draft_outside_the_law_has_infinite_energy():
    energy = residual_energy(two_fair_bits())(torch.tensor([[[0, 1], [1, 1]]]), torch.tensor([[2, 2]]))
    assert energy[0, 0] == torch.inf
    close(energy[0, 1], -torch.tensor(2.0, dtype=torch.float64).log())


# ---- Choice among candidates


def test_choices_against_enumeration_of_all_tuples():
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(1, 4, generator=generator, dtype=torch.float64).log_softmax(-1)
    log_w = torch.randn(1, 4, generator=generator, dtype=torch.float64)
    log_w[0, 2] = -torch.inf
    p, w = log_p[0].exp(), log_w[0].exp()
    law_of_sir, law_of_imh = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for drafts in product(range(4), repeat=3):
        mass, weights = p[list(drafts)].prod(), w[list(drafts)]
        share = weights / weights.sum() if weights.sum() > 0 else torch.ones(3, dtype=torch.float64) / 3
        law_of_sir.index_add_(0, torch.tensor(drafts), mass * share)
        for accepted in product((True, False), repeat=2):
            state, chance = drafts[0], 1.0
            for draft, moves in zip(drafts[1:], accepted, strict=True):
                ratio = min(1.0, float(w[draft] / w[state])) if w[state] > 0 else float(w[draft] > 0)
                chance *= ratio if moves else 1.0 - ratio
                state = draft if moves else state
            law_of_imh[state] += mass * chance
    close(sir(3)(log_p, log_w)[0], law_of_sir)
    close(imh(3)(log_p, log_w)[0], law_of_imh)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_integral_over_exponentials_is_the_sum_over_tuples(k):
    generator = torch.Generator().manual_seed(k)
    log_p, log_w = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    log_p = log_p.log_softmax(-1)
    for strength in (0.0, 1.0, 3.0):
        close(sir_by_quadrature(k)(log_p, strength * log_w), sir(k)(log_p, strength * log_w), atol=1e-6)
    assert float((sir_by_quadrature(k)(log_p, log_w) - sir(k + 1)(log_p, log_w)).abs().max()) > 1e-3


@pytest.mark.parametrize("choose", [sir(1), imh(1)])
def test_one_particle_is_the_proposal(choose):
    log_p = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    close(choose(log_p, torch.tensor([[5.0, -torch.inf, 0.0]], dtype=torch.float64)), log_p.exp())


def test_many_particles_approach_the_target():
    log_p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    log_w = torch.tensor([[-1.0, 0.0, 0.5]], dtype=torch.float64)
    target = (log_p + log_w).softmax(-1)
    distance = [float((sir(k)(log_p, log_w) - target).abs().sum()) for k in (1, 2, 4, 8)]
    assert distance == sorted(distance, reverse=True)
    close(imh(200)(log_p, log_w), target)
