"""The bound of a denoiser of blocks: its mean over random passes, and what it is where it is exact."""

import pytest
import torch
from block_networks import LENGTH, MASK, denoiser, every_text, exact_nelbo, log_prob
from torch import Tensor

from edlm.likelihood import nelbo
from edlm.process import absorbing, noise, schedules
from edlm.process.noise import Stream

SCHEDULE, SEED = schedules.log_linear(), torch.tensor(5)
TEXT = torch.tensor([2, 0, 1, 1])


def drawn(size: int | None, text: Tensor, rows: int, scored: Tensor | None = None, **changes: object) -> Tensor:
    given = None if scored is None else scored.repeat(rows, 1)
    model = denoiser(size, **changes)
    return nelbo.nelbo(model, SCHEDULE, text.repeat(rows, 1), SEED, torch.arange(rows), given)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_its_mean_is_the_sum_over_every_set_of_masks(size: int):
    """Within 4.5 standard errors of 6000 rows; they are stratified, so the error is less."""
    found = drawn(size, TEXT, 6000)
    exact = exact_nelbo(denoiser(size).network, size, TEXT) / LENGTH
    assert abs(float(found.mean()) - exact) < max(4.5 * float(found.std()) / 6000**0.5, 1e-10)


def test_a_row_has_a_pass_of_its_own_in_every_block_and_each_is_as_likely():
    rows = torch.arange(900)
    _, t, masked = nelbo.before_random_passes(SCHEDULE, TEXT.repeat(900, 1), MASK, SEED, rows, None, 2)
    count = masked.unflatten(1, (2, 2)).sum(2)
    assert t.shape == (900, 2)
    for block in range(2):
        assert abs(int((count[:, block] == 1).sum()) - 450) <= 1  # strata leave no chance but at their ends
    assert not torch.equal(count[:, 0], count[:, 1])


def test_one_token_a_block_is_the_exact_likelihood_and_all_texts_have_a_total_of_one():
    texts, model = every_text(), denoiser(1)
    found = nelbo.nelbo(model, SCHEDULE, texts, SEED, torch.arange(len(texts))) * LENGTH
    torch.testing.assert_close((-found).exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    for text, nats in zip(texts[::9], found[::9], strict=True):
        chain = -sum(
            log_prob(model.network, torch.cat([text[:i], torch.tensor([MASK])]))[i, text[i]] for i in range(LENGTH)
        )
        torch.testing.assert_close(nats, chain)


def test_one_block_is_the_bound_of_a_denoiser_without_blocks():
    assert torch.equal(drawn(LENGTH, TEXT, 50), drawn(None, TEXT, 50))


def test_what_is_given_is_not_scored_in_any_block():
    """A prompt of a block and a half: what is left is the bound of two tokens, per token."""
    scored = torch.tensor([False, False, False, True, True, True])
    text = torch.tensor([2, 0, 1, 1, 0, 2])
    found = drawn(2, text, 4000, scored, max_length=6)
    net = denoiser(2, max_length=6).network
    x_t = torch.tensor([2, 0, 1, MASK])
    exact = -float(log_prob(net, x_t)[3, 1])
    exact += exact_nelbo(net, 2, text) - exact_nelbo(net, 2, text[:4])
    assert abs(float(found.mean()) - exact / 3) < 4.5 * float(found.std()) / 4000**0.5


def test_a_row_does_not_depend_on_the_rows_beside_it_but_for_its_strata():
    text = every_text()[:4]
    scores = [
        nelbo.data_log_prob(
            denoiser(2),
            text[rows],
            torch.where(text[rows] == 1, MASK, text[rows]),
            torch.zeros(2),
            (text[rows] == 1).flatten().nonzero().squeeze(-1),
            after_clean=True,
        )
        for rows in (slice(0, 2), slice(2, 4))
    ]
    masked = text == 1
    whole = nelbo.data_log_prob(
        denoiser(2), text, torch.where(masked, MASK, text), torch.zeros(4), masked.flatten().nonzero().squeeze(-1), True
    )
    torch.testing.assert_close(whole, torch.cat(scores))


def test_at_one_noise_level_blocks_are_read_after_clean_ones():
    model, rows = denoiser(2), torch.arange(40)
    texts, t = TEXT.repeat(40, 1), torch.full((40,), 0.6, dtype=torch.float64)
    found = nelbo.masked_nll(model, SCHEDULE, texts, t, SEED, rows)
    x_t = absorbing.corrupt(texts, 1.0 - t, noise.grid(SEED, rows, 0, Stream.EVALUATION, LENGTH), MASK)
    for row in range(40):
        nats = []
        for i in (x_t[row] == MASK).nonzero().flatten().tolist():
            start = i // 2 * 2
            alone = torch.cat([TEXT[:start], x_t[row, start : start + 2]])
            nats.append(-float(log_prob(model.network, alone)[i, TEXT[i]]))
        expected = torch.tensor(sum(nats) / len(nats) if nats else torch.nan, dtype=torch.float64)
        torch.testing.assert_close(found[row], expected, equal_nan=True)


def test_block_j_of_a_row_has_the_stratum_of_row_plus_j() -> None:
    rows, seed = torch.arange(5, 9), torch.tensor(3)
    shift = noise.uniforms(seed, rows[:1], 1, Stream.TIME)
    strata = ((nelbo._strata(seed, rows, 3) - shift) % 1.0 * len(rows)).floor().long()
    assert torch.equal(strata, (torch.arange(4).unsqueeze(-1) + torch.arange(3)) % 4)
