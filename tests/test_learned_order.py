"""The bound of a learned order: exact where the denoiser knows all, and its gradient that of the whole bound."""

import itertools

import learned_order
import torch
from learned_order import Ordered, at_a_mask, log_chance, surrogate
from torch import Tensor

from edlm.nn.networks import Transformer

TEXTS = torch.tensor(list(itertools.product(range(2), repeat=3)))
MASKS = torch.tensor(list(itertools.product([False, True], repeat=3)))
LAW = torch.tensor([0.05, 0.1, 0.2, 0.05, 0.25, 0.05, 0.1, 0.2], dtype=torch.float64)
EARLY = torch.tensor([1.0, 1.9], dtype=torch.float64)  # the exponent of each token, wherever it stands


def tiny() -> Ordered:
    torch.manual_seed(3)
    sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "conditioning_size": 0}
    made = Ordered(Transformer(3, 3, **sizes), mask_id=2, spread=0.9)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.double()


def chances(exponents: Tensor, t: float) -> Tensor:
    """The probability of each set of masks of a text with these exponents (3,), by its formula: (8,)."""
    masked = t**exponents
    return torch.where(MASKS, masked, 1.0 - masked).prod(-1)


def test_with_the_true_law_and_the_true_estimate_the_bound_is_the_entropy() -> None:
    """Where a token's exponent is its own. By the midpoint rule over squares of t."""
    steps, total = 400, 0.0
    for number in range(steps):
        root = (number + 0.5) / steps
        t = root**2
        exponents = EARLY[TEXTS]
        joint = LAW.unsqueeze(1) * torch.stack([chances(each, t) for each in exponents])  # of texts and masks, (8, 8)
        for m, masked in enumerate(MASKS):
            seen = torch.where(masked, 2, TEXTS)
            for i in masked.nonzero().flatten().tolist():
                same = (seen.unsqueeze(1) == seen).all(-1).double()  # which texts look alike now
                weight = same * joint[:, m] * exponents[:, i]
                estimated = weight.sum(1) / (same * joint[:, m]).sum(1)
                of_token = (TEXTS[:, i].unsqueeze(1) == TEXTS[:, i]).double()
                log_p = ((weight * of_token).sum(1) / weight.sum(1)).log()
                added = at_a_mask(log_p, exponents[:, i], estimated)
                total += float((joint[:, m] * added).sum()) / t * 2.0 * root / steps
    torch.testing.assert_close(total, float(-(LAW * LAW.log()).sum()), atol=2e-4, rtol=0.0)


def test_a_wrong_estimate_costs_the_divergence_of_two_rates() -> None:
    """That of Poisson laws: nothing where they are equal, more the further they are apart."""
    exponent, estimated = torch.tensor([1.5, 1.5, 1.5, 1.0]), torch.tensor([1.5, 1.2, 1.9, 1.9])
    found = at_a_mask(torch.zeros(4), exponent, estimated)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Poisson(exponent), torch.distributions.Poisson(estimated)
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert float(found[0].abs()) < 1e-6 < float(found[1:].min())


def test_the_chance_of_masks_is_that_of_independent_tokens() -> None:
    exponents, t = torch.tensor([[1.0, 1.5, 1.9]], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    found = torch.cat([log_chance(masked.unsqueeze(0), exponents, t) for masked in MASKS]).exp()
    torch.testing.assert_close(found, chances(exponents[0], 0.3))


def test_over_all_masks_the_gradient_of_two_draws_is_that_of_the_bound() -> None:
    """Both of the network and of the order: summed over every pair of masks, with its probability."""
    model, x_0, t = tiny(), TEXTS[5:6], torch.tensor([0.4], dtype=torch.float64)

    def losses(masked: Tensor) -> tuple[Tensor, Tensor]:
        exponents = model.exponents(x_0)
        return model.loss(x_0, masked.unsqueeze(0), exponents, t), log_chance(masked.unsqueeze(0), exponents, t)

    every = [losses(masked) for masked in MASKS]
    exact = sum((loss * chance.exp()).sum() for loss, chance in every)
    pairs = [
        surrogate(torch.stack([one[0], two[0]]), torch.stack([one[1], two[1]])) * (one[1] + two[1]).exp().detach()
        for one in every
        for two in every
    ]
    own = list(model.parameters())
    expected = torch.autograd.grad(exact, own, allow_unused=True, retain_graph=True)  # type: ignore[arg-type]
    found = torch.autograd.grad(torch.stack(pairs).sum(), own, allow_unused=True)
    moved = 0
    for one, other in zip(found, expected, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other)
            moved += bool(other.abs().max() > 1e-6)
    assert moved > 10


def test_without_spread_it_is_the_bound_of_the_denoiser_alone() -> None:
    """Every exponent is 1, and the order has no gradient."""
    model = tiny()
    model.spread = 0.0
    exponents, t = model.exponents(TEXTS), torch.full((8,), 0.25, dtype=torch.float64)
    assert torch.equal(exponents, torch.ones_like(exponents))
    masked = torch.tensor([True, False, True]).expand(8, 3)
    hidden = model.network(torch.where(masked, 2, TEXTS))
    law = model.denoiser.logits(hidden.flatten(0, 1)).log_softmax(-1).view(8, 3, 3)
    expected = -law.gather(-1, TEXTS.unsqueeze(-1)).squeeze(-1)[:, [0, 2]].sum(1) / 0.25
    torch.testing.assert_close(model.loss(TEXTS, masked, exponents, t), expected)


def test_masks_are_those_of_their_exponents() -> None:
    """Drawn twice a text at one time, as training does: shares within five standard errors."""
    drawn: list[Tensor] = []
    model = tiny().float()

    def loss(x_0: Tensor, masked: Tensor, exponents: Tensor, t: Tensor) -> Tensor:
        drawn.append((masked.float() - t.unsqueeze(-1) ** exponents).detach())
        return exponents.sum(-1)

    model.loss = loss  # type: ignore[method-assign]
    for step in range(200):
        learned_order.training_loss(model, TEXTS, 0, step, 1e-3)
    every = torch.cat(drawn)
    assert every.shape == (200 * 2 * 8, 3)
    assert float(every.mean().abs()) < 5 * 0.5 / every.numel() ** 0.5
