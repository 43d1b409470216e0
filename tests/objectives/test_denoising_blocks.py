"""Training of denoisers of blocks: its mean is the bound, one block is MDLM, one token a block is autoregressive."""

from functools import partial

import pytest
import torch
from block_networks import LENGTH, MASK, chance, chance_by_time, denoiser, every_text, exact_nelbo, log_prob
from tensordict import TensorDict
from torch import Tensor

from edlm.objectives import blocks, denoising
from edlm.objectives.batches import training_batch
from edlm.process import schedules, training_times

SCHEDULES = {"log_linear": schedules.log_linear(), "cosine": schedules.cosine()}
TEXT = torch.tensor([2, 0, 1, 1])
kinds = pytest.mark.parametrize("masks", ["by_time", "by_count"])


def batch(rows: int, text: Tensor = TEXT, step: int = 0) -> TensorDict:
    return training_batch(text.repeat(rows, 1), 7, torch.arange(rows), step, rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_mean_of_the_loss_by_time_is_the_bound_less_the_times_left_out(name: str, size: int):
    """Within 4.5 standard errors: one of 150,000 such tests fails by chance."""
    model, times = denoiser(size), (0.1, 0.9)
    loss = blocks.denoising(model, SCHEDULES[name], times)(batch(6000))["loss"]
    exact = exact_nelbo(model.network, size, TEXT, partial(chance_by_time, SCHEDULES[name], *times))
    close_to(exact, loss)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_mean_of_the_loss_by_count_is_the_bound(size: int):
    model = denoiser(size)
    loss = blocks.denoising(model, SCHEDULES["cosine"], (0.0, 1.0), "by_count")(batch(6000))["loss"]
    close_to(exact_nelbo(model.network, size, TEXT), loss)


def close_to(exact: float, loss: Tensor) -> None:
    loss = loss.detach()
    error = float(loss.std()) / len(loss) ** 0.5
    assert abs(float(loss.mean()) - exact) < max(4.5 * error, 1e-9)
    assert error < 0.02 * exact


@pytest.mark.parametrize("size", [None, LENGTH])
def test_with_one_block_it_is_mdlm(size: int | None):
    model, inputs = denoiser(size), batch(8)
    ours = blocks.denoising(model, SCHEDULES["cosine"], (0.1, 1.0))(inputs)
    theirs = denoising.denoising(model, SCHEDULES["cosine"], 0.1)(inputs)
    for key in ("x_t", "t", "positions", "log_prob"):
        assert torch.equal(ours[key], theirs[key])
    torch.testing.assert_close(ours["loss"], theirs["loss"], rtol=1e-12, atol=0.0)


@kinds
@pytest.mark.parametrize("size", [1, 2, LENGTH])
def test_even_weights_give_the_cross_entropy_of_the_same_masks(size: int, masks: blocks.NoiseLevels):
    options = {"times": (0.1, 1.0), "noise_levels": masks}
    even, weighed = (
        blocks.denoising(denoiser(size), SCHEDULES["log_linear"], **options, loss_weights=weights)(batch(8))
        for weights in ("even", "nelbo")
    )
    for key in ("x_t", "t", "positions", "log_prob"):
        assert torch.equal(even[key], weighed[key])
    torch.testing.assert_close(even["loss"], -even["log_prob"].sum(-1), rtol=1e-12, atol=0.0)
    if size == LENGTH and masks == "by_time":
        mdlm = denoising.denoising(denoiser(size), SCHEDULES["log_linear"], 0.1, loss_weights="even")(batch(8))
        torch.testing.assert_close(even["loss"], mdlm["loss"], rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("text", every_text()[::13].unbind())
def test_one_token_a_block_has_the_exact_likelihood_whatever_is_drawn(text: Tensor):
    model = denoiser(1)
    loss = blocks.denoising(model, SCHEDULES["log_linear"], noise_levels="by_count")(batch(3, text))["loss"]
    chain = 0.0
    for i in range(LENGTH):
        chain -= float(log_prob(model.network, torch.cat([text[:i], torch.tensor([MASK])]))[i, text[i]])
    torch.testing.assert_close(loss, torch.full((3,), chain, dtype=torch.float64), rtol=1e-11, atol=0.0)


@kinds
def test_blocks_have_times_of_their_own_in_the_range(masks: blocks.NoiseLevels):
    model = denoiser(2)
    out = blocks.denoising(model, SCHEDULES["log_linear"], (0.5, 0.9), masks)(batch(64))
    weights = out["weights"].unflatten(1, (2, 2))
    assert torch.equal(weights[..., 0], weights[..., 1])
    if masks == "by_time":
        assert not torch.equal(weights[:, 0], weights[:, 1])
        assert 1 / 0.9 <= float(weights.min()) <= float(weights.max()) <= 1 / 0.5
    else:
        assert set(out["weights"].unique().tolist()) == {1.0}  # ceil(t 2) = 2 for every t above a half


def test_every_block_is_stratified_over_the_batch():
    t = training_times.of_blocks(torch.rand(8, 3, dtype=torch.float64), torch.arange(8), 8, 0.2, 0.6)
    found = ((t - 0.2) / 0.4 * 8).floor().long()
    assert found.sort(0).values.tolist() == [[j] * 3 for j in range(8)]


@kinds
def test_parts_of_a_batch_have_the_losses_of_the_whole(masks: blocks.NoiseLevels):
    pipeline = blocks.denoising(denoiser(2), SCHEDULES["log_linear"], noise_levels=masks)
    whole = pipeline(batch(6))["loss"]
    rows = torch.arange(2, 5)
    torch.testing.assert_close(pipeline(training_batch(TEXT.repeat(3, 1), 7, rows, 0, 6))["loss"], whole[2:5])


@kinds
def test_padding_is_never_masked_and_does_not_count(masks: blocks.NoiseLevels):
    """A text that ends inside a block, and before one: its loss is that of the text alone."""
    model, text = denoiser(2, pad_id=2, max_length=6), torch.tensor([1, 0, 1, 2, 2, 2])
    low = 0.1 if masks == "by_time" else 0.0
    out = blocks.denoising(model, SCHEDULES["log_linear"], (low, 1.0), masks, 2)(batch(6000, text))
    assert not (out["x_t"][:, 3:] != 2).any()
    assert torch.equal(out["log_prob"][:, 3:], torch.zeros(6000, 3).double())
    chances = partial(chance_by_time, SCHEDULES["log_linear"], 0.1, 1.0) if masks == "by_time" else chance
    close_to(exact_nelbo(model.network, 2, text[:3], chances), out["loss"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"times": (0.5, 0.5)}, r"times = \(0.5, 0.5\) must satisfy 0 <= low < high <= 1"),
        ({"times": (0.0, 1.1)}, "must satisfy"),
        ({"noise_levels": "both"}, "noise_levels = 'both' must be one of by_time, by_count"),
        ({"loss_weights": "odd"}, "loss_weights = 'odd' must be one of nelbo, even"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        blocks.denoising(denoiser(2), SCHEDULES["log_linear"], **options)


def test_a_denoiser_of_blocks_that_is_told_the_time_is_refused():
    model = denoiser(2)
    told = type(model)(model.network, MASK, schedules.log_linear(1e-3))
    with pytest.raises(ValueError, match="is told no time"):
        blocks.denoising(told, schedules.log_linear(1e-3))


def test_the_gradient_is_that_of_the_loss():
    """The head is run once, with the weights that follow: `score` is told of them."""
    model = denoiser(2)
    out = blocks.denoising(model, SCHEDULES["log_linear"], (0.1, 1.0))(batch(4))
    (found,) = torch.autograd.grad(out["loss"].sum(), model.network.head.weight)
    x_t, weights = out["x_t"], out["weights"]
    logits = model.network.head(model.network(x_t, clean=TEXT.repeat(4, 1)))
    log_p = logits.index_fill(2, torch.tensor([MASK]), -torch.inf).log_softmax(-1)
    taken = log_p.gather(2, TEXT.repeat(4, 1).unsqueeze(-1)).squeeze(-1)
    wanted = -(taken * weights * (x_t == MASK)).sum()
    (expected,) = torch.autograd.grad(wanted, model.network.head.weight)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
