"""Noise levels of training: every way of drawing them gives the NELBO on average, exactly by enumeration of counts."""

import itertools
import math

import pytest
import torch
from tensordict import TensorDict

from edlm import contracts
from edlm.likelihood import hidden_markov
from edlm.objectives import batches, denoising
from edlm.process import schedules, training_times

LENGTH, SYMBOLS = 4, 3
SOURCE = hidden_markov.random_markov(3, SYMBOLS)
DENOISER = hidden_markov.denoiser(SOURCE, LENGTH)
TEXT = torch.tensor([[0, 2, 1, 1]])


def exact_nelbo() -> float:
    """`sum_m mean over sets of m masks of (1/m) sum_{i masked} -log p_i`, by enumeration."""
    total = 0.0
    for m in range(1, LENGTH + 1):
        sets = list(itertools.combinations(range(LENGTH), m))
        for masked in sets:
            x_t = TEXT.clone()
            x_t[0, list(masked)] = SYMBOLS
            asked = {
                contracts.X_T: x_t,
                contracts.T: torch.ones(1, dtype=torch.float64),
                contracts.POSITIONS: torch.tensor(masked),
            }
            hidden = DENOISER(TensorDict(asked))[contracts.HIDDEN]
            log_p = DENOISER.logits(hidden).double().log_softmax(-1)
            own = log_p.gather(-1, TEXT[0, list(masked)].unsqueeze(-1)).sum()
            total -= float(own) / m / len(sets)
    return total


@pytest.mark.parametrize("levels", ["by_time", "by_count", "bell"])
def test_the_mean_loss_is_the_nelbo(levels: denoising.NoiseLevels) -> None:
    """4 standard errors of 4,096 draws: one run in 16,000 would fail by chance; the draws are fixed."""
    rows = 4096
    pipeline = denoising.denoising(DENOISER, schedules.log_linear(), 0.0, None, levels)
    batch = batches.training_batch(TEXT.expand(rows, -1), 0, torch.arange(rows), 0, rows, rows * LENGTH)
    loss = pipeline(batch)[contracts.LOSS].double()
    error = float(loss.std()) / math.sqrt(rows)
    assert abs(float(loss.mean()) - exact_nelbo()) < 4 * error


def test_even_weights_give_the_cross_entropy_of_the_masks() -> None:
    rows = 64
    pipeline = denoising.denoising(DENOISER, schedules.log_linear(), 0.0, None, "by_count", "even")
    batch = batches.training_batch(TEXT.expand(rows, -1), 0, torch.arange(rows), 0, rows, rows * LENGTH)
    out = pipeline(batch)
    assert torch.allclose(out[contracts.LOSS], -out[contracts.LOG_PROB].sum(-1))


def test_counts_are_stratified_and_padding_is_never_masked() -> None:
    rows, pad = 8, 1
    text = torch.tensor([[0, 2, pad, pad]]).expand(rows, -1)
    corrupt = denoising.corruption_by_count(SYMBOLS, schedules.log_linear(), pad, bell=False)
    out = corrupt(batches.training_batch(text, 0, torch.arange(rows), 0, rows, rows * 2))
    masked = out[contracts.X_T] == SYMBOLS
    assert masked[:, 2:].sum() == 0
    assert sorted(masked.sum(1).tolist()) == [1, 1, 1, 1, 2, 2, 2, 2]
    assert torch.allclose(out[contracts.WEIGHT], 2.0 / masked.sum(1).double())


def test_the_bell_is_a_law() -> None:
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    share, density = training_times.bell(u)
    assert bool((share.diff() > 0).all())
    assert torch.allclose(density[1:-1], (u[2:] - u[:-2]) / (share[2:] - share[:-2]), rtol=1e-4)
    assert (float(density.min()) >= 0.2, float(share[0]) < 3e-4, float(share[-1]) > 1 - 3e-4) == (True, True, True)
