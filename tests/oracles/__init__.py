"""Exact answers by enumeration, which judge the library and share no code with it.

A law over sequences is a float64 tensor (m,) * l of m symbols; the mask id is m, so `v = m + 1`. Small laws only
(m <= 4, l <= 6), except for the hidden Markov model, which is exact at any length. States are numbered in the order
of `all_masked_states`, sequences in that of `all_sequences`, which is the order of `law.flatten()`.

Convention: given visible tokens of probability zero, every completion is equally likely. A sampler can get there,
since tokens revealed together may be a pair that the data never show.
"""

from oracles.energies import EnergyFn, ar_energy, log_z, proposal_log_prob, residual_energy, zero_energy
from oracles.hidden_markov import (
    HiddenMarkov,
    hmm_log_prob,
    hmm_posterior_marginals,
    hmm_residual_energy,
    hmm_sample,
    random_hidden_markov,
)
from oracles.laws import (
    all_masked_states,
    all_sequences,
    empirical_law,
    index_of,
    markov,
    random_joint,
    random_markov,
    two_fair_bits,
    with_masks,
)
from oracles.likelihoods import entropy, exact_nll, expectation, kl, nelbo, sampler_nelbo, t_step_nelbo, total_variation
from oracles.models import ar_log_prob, joint_posterior, marginal_table, posterior_marginals, random_marginals
from oracles.parts import Lookup, MarginalsFn, OracleDenoiser, OracleEnergy
from oracles.samplers import (
    SIR_PAIR,
    Choose,
    adaptive_sir,
    first_hitting_law,
    imh,
    reveal_law,
    sampler_law,
    sir,
    sir_by_quadrature,
    step_law,
)

__all__ = [
    "SIR_PAIR",
    "Choose",
    "EnergyFn",
    "HiddenMarkov",
    "Lookup",
    "MarginalsFn",
    "OracleDenoiser",
    "OracleEnergy",
    "adaptive_sir",
    "all_masked_states",
    "all_sequences",
    "ar_energy",
    "ar_log_prob",
    "empirical_law",
    "entropy",
    "exact_nll",
    "expectation",
    "first_hitting_law",
    "hmm_log_prob",
    "hmm_posterior_marginals",
    "hmm_residual_energy",
    "hmm_sample",
    "imh",
    "index_of",
    "joint_posterior",
    "kl",
    "log_z",
    "marginal_table",
    "markov",
    "nelbo",
    "posterior_marginals",
    "proposal_log_prob",
    "random_hidden_markov",
    "random_joint",
    "random_marginals",
    "random_markov",
    "residual_energy",
    "reveal_law",
    "sampler_law",
    "sampler_nelbo",
    "sir",
    "sir_by_quadrature",
    "step_law",
    "t_step_nelbo",
    "total_variation",
    "two_fair_bits",
    "with_masks",
    "zero_energy",
]
