"""Negatives of contrastive training: drafts of the denoiser, and independent of each other."""

import torch
from enumerated_samplers import LENGTH, MARGINALS, SAMPLES, SYMBOLS
from goodness_of_fit import chi_square, threshold
from oracles import Lookup, OracleDenoiser, all_masked_states, all_sequences, index_of, proposal_log_prob
from tensordict import TensorDict
from torch import Tensor

import edlm
from edlm import contracts
from edlm.objectives import contrastive
from edlm.process import schedules


def negatives(samples: int, num_negatives: int) -> TensorDict:
    pipeline = contrastive.contrastive(
        OracleDenoiser(Lookup(MARGINALS), SYMBOLS), edlm.energies.zero(), schedules.log_linear(), num_negatives
    )
    x_0 = all_sequences(SYMBOLS, LENGTH).repeat(samples // SYMBOLS**LENGTH, 1)
    return pipeline(
        TensorDict(
            {
                contracts.X_0: x_0,
                contracts.SEED: torch.tensor(7),
                contracts.ROW: torch.arange(samples),
                contracts.STEP: torch.tensor(3),
                contracts.NUM_ROWS: torch.tensor(samples),
            }
        )
    )


def conditional_chi_square(out: TensorDict, particle: int, log_p: Tensor) -> tuple[float, int]:
    """Chi-square of candidates given their x_t, summed over all states, and its degrees of freedom."""
    state = index_of(out[contracts.X_T], SYMBOLS + 1)
    candidate = index_of(out[contracts.CANDIDATES][:, particle], SYMBOLS)
    counts = torch.zeros(log_p.shape, dtype=torch.float64)
    counts.index_put_((state, candidate), torch.ones(len(state), dtype=torch.float64), accumulate=True)
    law = log_p.exp()
    degrees = ((law > 0).sum(1) - 1)[counts.sum(1) > 0].sum()
    return chi_square(counts.flatten(), (law * counts.sum(1, keepdim=True)).flatten()), int(degrees)


def test_negatives_are_drafts_of_the_denoiser():
    states, sequences = all_masked_states(SYMBOLS, LENGTH), all_sequences(SYMBOLS, LENGTH)
    log_p = proposal_log_prob(MARGINALS, sequences.expand(len(states), -1, -1), states)
    agrees = ((sequences == states.unsqueeze(1)) | (states == SYMBOLS).unsqueeze(1)).all(-1)
    log_p = torch.where(agrees, log_p, -torch.inf)
    out = negatives(SAMPLES, 2)
    sharper = torch.where(agrees, 1.05 * log_p, -torch.inf).log_softmax(-1)
    for particle in (1, 2):
        statistic, degrees = conditional_chi_square(out, particle, log_p)
        assert statistic < threshold(degrees)
        assert conditional_chi_square(out, particle, sharper)[0] > threshold(degrees)


def test_negatives_of_a_row_are_independent():
    out = negatives(SAMPLES, 2)
    everything = (out[contracts.X_T] == SYMBOLS).all(1)
    first, second = index_of(out[contracts.CANDIDATES][everything, 1:], SYMBOLS).unbind(1)
    table = torch.bincount(first * 8 + second, minlength=64).double().view(8, 8)
    single = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    assert chi_square(table.flatten(), single.flatten()) < threshold(49)
    assert chi_square(torch.diag(table.sum(1)).flatten(), single.flatten()) > threshold(49)  # one draw used twice
