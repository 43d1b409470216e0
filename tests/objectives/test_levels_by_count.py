"""The NELBO trained from passes: its mean over all of them is the bound, and a batch is spread over them evenly."""

import itertools

import pytest
import torch
from builders import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edlm import contracts
from edlm.models import denoisers
from edlm.nn.networks import Transformer
from edlm.objectives import batches, denoising
from edlm.process import schedules

V, L, MASK, PAD = 4, 4, 3, 2
SCHEDULE = schedules.log_linear()


def network() -> Transformer:
    made = Transformer(V, L, hidden_size=8, num_layers=1, num_heads=2, conditioning_size=0).double().eval()
    randomise(made, 3)
    return made


def run(x_0: Tensor, seed: int = 0, pad_id: int | None = None) -> dict[str, Tensor]:
    stages = denoising.denoising(denoisers.subs(network(), MASK), SCHEDULE, pad_id=pad_id, noise_levels="by_count")
    with torch.no_grad():
        out = stages(batches.training_batch(x_0, seed, torch.arange(len(x_0)), 0, len(x_0)))
    return dict(out.items())


def exact_bound(x_0: Tensor) -> Tensor:
    """`E sum of the passes`: each subset of m masks equally likely, and each of its masks next."""
    denoiser, total = denoisers.subs(network(), MASK), torch.zeros((), dtype=torch.float64)
    for m in range(1, L + 1):
        subsets = list(itertools.combinations(range(L), m))
        for chosen in subsets:
            masked = torch.zeros(L, dtype=torch.bool)
            masked[list(chosen)] = True
            x_t, places = torch.where(masked, MASK, x_0)[None], masked.nonzero().squeeze(1)
            with torch.no_grad():
                log_p = denoiser.token_log_prob(denoiser.network(x_t, None, places), x_0[places])
            total -= log_p.mean() / len(subsets)
    return total


def test_its_mean_is_the_bound_that_enumeration_gives() -> None:
    """Four thousand rows of one text, stratified over the passes; at four standard errors, one run in 15,000 fails."""
    x_0 = torch.tensor([0, 1, 1, 2])
    losses = run(x_0.repeat(4000, 1))[contracts.LOSS].double()
    assert abs(float(losses.mean() - exact_bound(x_0))) < 4 * float(losses.std()) / len(losses) ** 0.5


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6))
def test_every_pass_is_there_equally_often_and_weighs_what_it_masks(seed: int, times: int) -> None:
    found = run(torch.randint(0, 2, (times * L, L), generator=torch.Generator().manual_seed(seed)), seed)
    masked = found[contracts.X_T] == MASK
    counts = masked.sum(1)
    assert torch.equal(counts.bincount(minlength=L + 1), torch.tensor([0, *[times] * L]))
    torch.testing.assert_close(found[contracts.WEIGHT], L / counts.double())
    assert torch.equal(masked.flatten().nonzero().squeeze(1), found[contracts.POSITIONS])


def test_padding_is_never_masked_and_makes_no_pass() -> None:
    x_0 = torch.tensor([[0, 1, PAD, PAD], [1, PAD, PAD, PAD]]).repeat(8, 1)
    found = run(x_0, 5, PAD)
    masked = found[contracts.X_T] == MASK
    assert not masked[x_0 == PAD].any()
    assert (masked.sum(1) >= 1).all()
    torch.testing.assert_close(found[contracts.WEIGHT] * masked.sum(1), (x_0 != PAD).sum(1).to(found[contracts.WEIGHT]))


def test_a_text_is_at_the_time_at_which_the_schedule_expects_its_masks() -> None:
    """All masked, it is at 1; the more there is to read, the earlier."""
    found = run(torch.zeros(64, L, dtype=torch.int64))
    share = (found[contracts.X_T] == MASK).double().mean(1)
    assert (1.0 - SCHEDULE.alpha(found[contracts.T])).tolist() == pytest.approx(share.tolist())
