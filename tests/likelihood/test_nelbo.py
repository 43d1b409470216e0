"""Estimates of the NELBO have the exact NELBO as their mean, and say how far off they may be.

Statistical tests have fixed seeds; with seeds chosen at random each would fail once in a million times (5 s.d.), unless
another rate is stated.
"""

import math
from functools import partial

import pytest
import torch
from builders import tiny_denoiser
from oracles import (
    Lookup,
    OracleDenoiser,
    all_sequences,
    entropy,
    exact_nll,
    hmm_log_prob,
    hmm_posterior_marginals,
    hmm_sample,
    marginal_table,
    random_hidden_markov,
    random_joint,
    random_marginals,
)
from oracles import nelbo as exact_nelbo
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from edlm import contracts
from edlm.likelihood import estimates, nelbo
from edlm.likelihood.estimates import Estimate
from edlm.process import categorical, schedules
from edlm.process.schedules import Schedule

SYMBOLS, LENGTH = 3, 3
JOINT = random_joint(0, SYMBOLS, LENGTH, strength=1.5)
ORACLE = OracleDenoiser(Lookup(marginal_table(JOINT)), mask_id=SYMBOLS)
TABLE = random_marginals(1, SYMBOLS, LENGTH)
IMPERFECT = OracleDenoiser(Lookup(TABLE), mask_id=SYMBOLS)
SCHEDULES = {
    "log_linear": schedules.log_linear(),
    "cosine": schedules.cosine(),
    "log_linear_eps": schedules.log_linear(0.1),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
SEED = torch.tensor(5)


class MaskCounter(TensorDictModuleBase):
    """A denoiser of one symbol whose NELBO term in a state is the share of masks in it; it records the times."""

    mask_id, vocab_size, max_length = 1, 2, 1024

    def __init__(self) -> None:
        super().__init__()
        self.in_keys, self.out_keys = [contracts.X_T, contracts.T, contracts.POSITIONS], [contracts.HIDDEN]

    def forward(self, tensordict: TensorDict) -> TensorDict:
        x_t = tensordict[contracts.X_T]
        self.seen = x_t, tensordict[contracts.T]
        share = (x_t == 1).double().mean(1, keepdim=True).expand(x_t.shape).flatten()[tensordict[contracts.POSITIONS]]
        return tensordict.set(contracts.HIDDEN, -share.unsqueeze(-1))

    def logits(self, hidden: Tensor) -> Tensor:
        """Log-probabilities (n, 2); the rest of the mass is on the mask, where nothing is asked."""
        return torch.cat([hidden, (-torch.expm1(hidden)).log()], dim=-1)


def draws(denoiser: contracts.Denoiser, schedule: Schedule, x_0: Tensor, seed: Tensor = SEED) -> Tensor:
    return nelbo.nelbo(denoiser, schedule, x_0, seed, torch.arange(len(x_0)))


def texts(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return all_sequences(SYMBOLS, LENGTH)[torch.multinomial(JOINT.flatten(), n, True, generator=generator)]


def agrees(values: Tensor, expected: float) -> bool:
    mean, error, _ = estimates.estimate(values)
    return abs(mean - expected) < 5 * error


# ---- Its mean


@every_schedule
def test_with_the_true_posterior_the_nelbo_is_the_entropy(schedule):
    values = draws(ORACLE, schedule, texts(20_000))
    truth = float(entropy(JOINT)) / LENGTH
    assert agrees(values, truth)
    assert not agrees(values, 1.03 * truth)
    assert not agrees(draws(IMPERFECT, schedule, texts(20_000)), truth)


@every_schedule
@pytest.mark.parametrize("x_0", [[0, 0, 0], [2, 1, 0]])
def test_the_nelbo_of_a_text_is_the_exact_one_of_an_imperfect_denoiser(schedule, x_0):
    values = draws(IMPERFECT, schedule, torch.tensor([x_0]).expand(20_000, -1))
    truth = exact_nelbo(TABLE, torch.tensor([x_0])).item() / LENGTH
    assert agrees(values, truth)
    assert not agrees(values, 1.04 * truth)


def test_the_gap_to_the_likelihood_closes_for_every_text_under_the_true_posterior():
    for x_0 in ([0, 1, 2], [1, 1, 1]):
        values = draws(ORACLE, schedules.cosine(), torch.tensor([x_0]).expand(10_000, -1))
        assert agrees(values, exact_nll(JOINT, torch.tensor(x_0)).item() / LENGTH)


def test_long_texts_score_their_own_likelihood():
    hmm = random_hidden_markov(0, 3, 4)
    x = hmm_sample(hmm, torch.Generator().manual_seed(0), 1000, 12)
    denoiser = OracleDenoiser(partial(hmm_posterior_marginals, hmm), mask_id=4)
    difference = draws(denoiser, schedules.log_linear(), x) + hmm_log_prob(hmm, x) / 12
    assert agrees(difference, 0.0)


def test_every_row_alone_is_unbiased_and_not_the_mean_of_all_only():
    # A row's pass is one of two, so its value 1 or 1/2, a fair coin; 300 tosses, 5 s.d. are 43.
    x_0, counts = torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4)
    for seed in range(300):
        counts += draws(MaskCounter(), schedules.log_linear(), x_0, torch.tensor(seed)) == 1.0
    assert ((counts - 150).abs() < 43).all()


# ---- How it is drawn


def test_passes_are_stratified_over_the_rows():
    x_0 = torch.zeros(12, 4, dtype=torch.int64)
    for seed in range(20):
        masks = (draws(MaskCounter(), schedules.log_linear(), x_0, torch.tensor(seed)) * 4).round().long()
        counts = torch.bincount(masks, minlength=5)
        assert counts[0] == 0
        assert ((counts[1:] >= 2) & (counts[1:] <= 4)).all()  # 3 of each, give or take the ends of the strata


@every_schedule
def test_the_denoiser_is_told_the_time_of_the_state_that_it_sees(schedule):
    # About 2000 rows have a time near 1/2; the share of masks in them has a standard error below 0.006.
    counter, length = MaskCounter(), 5
    draws(counter, schedule, torch.zeros(20_000, length, dtype=torch.int64))
    x_t, t = counter.seen
    # One position is revealed at t itself; the others are masked with the probability of t.
    near = (t - 0.5).abs() < 0.05
    masked = ((x_t[near] == 1).double().sum(1) - 1).mean() / (length - 1)
    one, half = (schedule.alpha(torch.tensor(at, dtype=torch.float64)) for at in (1.0, 0.5))
    assert abs(masked - (1 - half) / (1 - one)) < 0.03


def test_a_row_is_a_function_of_the_seed_and_the_rows_of_the_call():
    x_0 = texts(6)
    assert torch.equal(draws(ORACLE, schedules.cosine(), x_0), draws(ORACLE, schedules.cosine(), x_0))
    other = nelbo.nelbo(ORACLE, schedules.cosine(), x_0, SEED, torch.arange(6) + 100)
    assert not torch.equal(draws(ORACLE, schedules.cosine(), x_0), other)


def test_a_denoiser_without_a_sense_of_time_and_one_with_it_both_work():
    x_0 = torch.randint(4, (8, 6), generator=torch.Generator().manual_seed(0))
    timed = tiny_denoiser(schedule=schedules.log_linear(1e-3))
    for denoiser in (tiny_denoiser(), timed):
        values = draws(denoiser, schedules.log_linear(1e-3), x_0)
        assert (values.shape, values.dtype, values.requires_grad) == ((8,), torch.float64, False)
        assert (values > 0.0).all()
        assert values.isfinite().all()


# ---- Estimates


def test_an_estimate_is_a_mean_with_its_standard_error():
    result = estimates.estimate(torch.tensor([1.0, 2.0, 6.0]))
    assert result == Estimate(3.0, math.sqrt(7.0 / 3.0), 3)


def test_an_estimate_is_told_in_bits_and_as_perplexity():
    result = Estimate(mean=2 * math.log(2), standard_error=math.log(2) / 4, n=9)
    assert (result.bits, result.bits_error) == (2.0, 0.25)
    assert result.perplexity == pytest.approx(4.0)
    assert Estimate(mean=1e4, standard_error=1.0, n=2).perplexity == math.inf


@pytest.mark.parametrize("n", [0, 1])
def test_an_error_bar_needs_two_rows(n):
    with pytest.raises(ValueError, match=f"at least 2 rows, got {n}"):
        estimates.estimate(torch.zeros(n))


def test_what_is_left_at_a_noise_level_is_of_scored_positions_alone() -> None:
    x_0 = torch.tensor([[0, 1, 2], [2, 2, 0]])
    scored = torch.tensor([[True, False, True], [False, True, False]])
    ones, seed, row = torch.ones(2, dtype=torch.float64), torch.tensor(0), torch.arange(2)
    found = nelbo.masked_nll(IMPERFECT, schedules.log_linear(), x_0, ones, seed, row, scored)
    positions = scored.flatten().nonzero().squeeze(-1)
    x_t = torch.where(scored, SYMBOLS, x_0)  # at time 1 all that may be masked is
    state = TensorDict({contracts.X_T: x_t, contracts.T: ones, contracts.POSITIONS: positions})
    log_p = IMPERFECT.logits(IMPERFECT(state)[contracts.HIDDEN]).log_softmax(-1)
    nats = -log_p[torch.arange(3), x_0.flatten()[positions]].double()
    assert found.tolist() == pytest.approx([float(nats[:2].mean()), float(nats[2])])


def test_at_a_noise_level_each_row_is_masked_by_itself_and_one_without_masks_has_no_figure() -> None:
    """Five standard errors of 4000 rows at a fixed seed: a quarter of the tokens is masked, 27/64 of rows get none."""
    row = torch.arange(4000)
    x_0, t = torch.tensor([[0, 1, 2]]).expand(len(row), -1), torch.full((len(row),), 0.25, dtype=torch.float64)
    found = nelbo.masked_nll(IMPERFECT, schedules.log_linear(), x_0, t, SEED, row)
    share = 0.75**3
    assert abs(float(found.isnan().double().mean()) - share) < 5 * math.sqrt(share * (1 - share) / len(row))


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_the_vocabulary_head_takes_a_few_rows_at_once_and_the_figures_stay(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x_0, row = torch.tensor([[0, 1, 2], [2, 2, 0]]), torch.arange(2)
    expected = nelbo.nelbo(IMPERFECT, schedules.log_linear(), x_0, SEED, row)
    seen: list[int] = []
    logits = type(IMPERFECT).logits
    monkeypatch.setattr(categorical, "rows_at_once", lambda vocab_size, device: rows)
    monkeypatch.setattr(type(IMPERFECT), "logits", lambda own, states: seen.append(len(states)) or logits(own, states))
    torch.testing.assert_close(nelbo.nelbo(IMPERFECT, schedules.log_linear(), x_0, SEED, row), expected)
    assert max(seen) <= rows


@pytest.mark.parametrize(("ids", "taken"), [((0, 3), True), ((0, 4), False), ((-1, 3), False)])
def test_ids_of_a_text_are_those_of_the_vocabulary(ids: tuple[int, int], taken: bool) -> None:
    denoiser, x_0 = tiny_denoiser(0, 2, vocab_size=4), torch.tensor([ids])
    if taken:
        nelbo.check_texts(denoiser, x_0, None)
    else:
        with pytest.raises(ValueError, match=rf"x_0 holds token ids in {ids[0]}\.\.{ids[1]}, and .* in 0\.\.3"):
            nelbo.check_texts(denoiser, x_0, None)
