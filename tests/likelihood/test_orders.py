"""Bounds of K orders from either side, against all orders of a small space gone through one by one."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from builders import tiny_denoiser, wave_marginals
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import OracleDenoiser, all_sequences
from tensordict import TensorDict
from torch import Tensor

import edlm
from edlm import contracts
from edlm.likelihood import bounds, enumeration, hidden_markov, orders, steps
from edlm.process import noise
from edlm.process.noise import Stream
from edlm.samplers.corrections import ChainRule
from edlm.samplers.sampler import Proposal, Sampler

SYMBOLS, LENGTH = 3, 3
TEXTS = all_sequences(SYMBOLS, LENGTH)
ROW = torch.arange(len(TEXTS))
SEED = torch.tensor(0)
ORDERS = list(itertools.permutations(range(LENGTH)))


def plain(seed: int, plan: object = edlm.plans.TokensPerPass(1)) -> Sampler:
    return Sampler(OracleDenoiser(wave_marginals(seed, SYMBOLS, LENGTH), SYMBOLS), plan)


def in_order(seed: int, plan: object) -> Sampler:
    denoiser = tiny_denoiser(seed, SYMBOLS, vocab_size=SYMBOLS + 1, max_length=LENGTH)
    return Sampler(denoiser, plan, correction=ChainRule(), selection="speculative")


def along(sampler: Sampler, each: Sequence[Sequence[int]] = ORDERS) -> Tensor:
    """`ll` of every text in each order, one position after the other, the others given: (texts, orders)."""
    found = torch.zeros(len(TEXTS), len(each), dtype=torch.float64)
    for column, order in enumerate(each):
        for number, place in enumerate(order):
            masked = torch.zeros(LENGTH, dtype=torch.bool)
            masked[list(order[number:])] = True
            x_t = torch.where(masked, SYMBOLS, TEXTS)
            positions = torch.arange(len(TEXTS)) * LENGTH + place
            inputs = {contracts.X_T: x_t, contracts.T: torch.ones(len(TEXTS)), contracts.POSITIONS: positions}
            logits = sampler.denoiser.logits(sampler.denoiser(TensorDict(inputs))[contracts.HIDDEN])
            log_p = logits.double().log_softmax(-1)
            found[:, column] += log_p.gather(-1, TEXTS[:, place, None]).squeeze(-1)
    return found


def expected(ll: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Both ends by going through all `6^k` choices of k orders: nats of every text (texts,)."""
    upper, lower = torch.zeros(2, len(ll), dtype=torch.float64)
    choices = list(itertools.product(range(ll.shape[1]), repeat=k))
    for chosen in choices:
        p = ll[:, list(chosen)].exp()
        upper -= p.mean(1).log() / len(choices)
        for one in range(k):
            psi = p[:, [other for other in range(k) if other != one]].mean(1)
            lower -= (psi.log() + p[:, one] / psi - 1.0) / k / len(choices)
    return upper, lower


@given(seed=st.integers(0, 10_000))
@settings(max_examples=5)
def test_the_ends_close_in_on_the_likelihood_from_either_side(seed: int) -> None:
    ll = along(plain(seed))
    nll = -ll.exp().mean(1).log()
    torch.testing.assert_close(nll, -enumeration.law(plain(seed), LENGTH).flatten().log())
    found = [expected(ll, k) for k in (2, 3, 4)]
    first = -ll.mean(1)
    for (wide, low), (narrow, high) in itertools.pairwise([(first, nll * 0.0 - math.inf), *found]):
        assert (wide >= narrow - 1e-12).all()
        assert (high >= low - 1e-12).all()
    for upper, lower in found:
        assert (upper > nll - 1e-12).all()
        assert (lower < nll + 1e-12).all()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_draws_have_the_ends_as_their_means(k: int) -> None:
    """Five standard errors over 3,000 draws of each text; twice the gap to the likelihood would be seen."""
    sampler, n = plain(1), 3_000
    ll = along(sampler)
    nll = -ll.exp().mean(1).log()
    upper, lower = expected(ll, k) if k > 1 else (-ll.mean(1), None)
    drawn = orders.bound(sampler, TEXTS.repeat(n, 1), SEED, torch.arange(n * len(TEXTS)), num_orders=k)
    for own, wanted in ((drawn.upper, upper), (drawn.lower, lower)):
        if wanted is None:
            assert own.isnan().all()
            continue
        values = LENGTH * own.view(n, -1)
        mean, error = values.mean(), values.mean(1).std() / n**0.5
        assert abs(mean - wanted.mean()) < 5 * error
        assert abs(mean - wanted.mean()) < 0.1 * (wanted - nll).mean().abs()


@pytest.mark.parametrize(
    "plan", [edlm.plans.Grid(2), edlm.plans.TokensPerPass(1), edlm.plans.TokensPerPass(2)], ids=str
)
@pytest.mark.parametrize("ordered", [False, True])
def test_one_order_is_the_bound_of_the_sampler_draw_by_draw(plan: object, ordered: bool) -> None:
    sampler = in_order(3, plan) if ordered else plain(3, plan)
    found, own = orders.bound(sampler, TEXTS, SEED, ROW, num_orders=1), bounds.of_sampler(sampler, TEXTS, SEED, ROW)
    torch.testing.assert_close(found.upper, own.nats)
    assert torch.equal(found.denoiser_passes.long(), own.denoiser_passes)
    assert torch.equal(found.passes, own.passes.double())
    assert found.lower.isnan().all()
    assert found.unreliable.all(), "one order has nothing to be compared with"


def test_each_order_is_a_plan_of_its_own_and_is_paid_for() -> None:
    sampler, k = plain(2), 4
    found = orders.bound(sampler, TEXTS, SEED, ROW, num_orders=k)
    table = along(sampler)
    uniforms = [noise.grid(SEED, ROW, number, Stream.EVALUATION, LENGTH) for number in range(k)]
    numbers = [[ORDERS.index(tuple(each)) for each in u.argsort(1, descending=True).tolist()] for u in uniforms]
    ll = table.gather(1, torch.tensor(numbers).T)
    assert max(len({*row}) for row in torch.tensor(numbers).T.tolist()) > 2
    torch.testing.assert_close(LENGTH * found.upper, -ll.exp().mean(1).log())
    torch.testing.assert_close(found.ess, ll.exp().sum(1) ** 2 / (2 * ll).exp().sum(1))
    assert torch.equal(found.unreliable, found.ess - 1.0 < 0.5 * (k - 1))
    assert found.unreliable.unique().tolist() == [False, True]
    assert (found.denoiser_passes == k * LENGTH).all()
    assert (found.passes == LENGTH).all(), "a mean over the orders"
    assert (found.energy_passes == 0.0).all()


@pytest.mark.parametrize("plan", [edlm.plans.TokensPerPass(1), edlm.plans.TokensPerPass(2)], ids=str)
def test_of_exact_parts_both_ends_are_the_likelihood(plan: object) -> None:
    """One by one the exact denoiser gives every order the same; several at once it does not, and the ends part."""
    source = hidden_markov.random_markov(1, SYMBOLS)
    found = orders.bound(Sampler(hidden_markov.denoiser(source, LENGTH), plan), TEXTS, SEED, ROW, num_orders=4)
    nll = -hidden_markov.log_prob(source, TEXTS) / LENGTH
    if plan == edlm.plans.TokensPerPass(1):
        torch.testing.assert_close(found.upper, nll)
        torch.testing.assert_close(found.lower, nll)
        torch.testing.assert_close(found.ess, torch.full_like(nll, 4.0))
        assert not found.unreliable.any()
    else:
        assert not torch.allclose(found.upper, nll)


@pytest.mark.parametrize("ordered", [False, True])
def test_the_ends_lie_on_either_side_of_the_law_of_the_sampler(ordered: bool) -> None:
    """Of a grid: in order they are nearly one, so five standard errors aside; plain they are apart by three."""
    plan, n = edlm.plans.Grid(2), 100 if ordered else 1_000
    sampler = in_order(8, plan) if ordered else plain(8, plan)
    law = enumeration.law(sampler, LENGTH).flatten()
    drawn = orders.bound(sampler, TEXTS.repeat(n, 1), SEED, torch.arange(n * len(TEXTS)), num_orders=8)
    above, below = (LENGTH * each.view(n, -1) @ law + law @ law.log() for each in (drawn.upper, drawn.lower))
    apart = -5 if ordered else 3
    assert float(above.mean()) > apart * float(above.std()) / n**0.5
    assert float(below.mean()) < -apart * float(below.std()) / n**0.5
    assert float(above.mean() - below.mean()) > 0.0


def test_what_is_given_is_read_and_not_scored() -> None:
    """Two positions are left, which have two orders."""
    sampler, k = plain(4), 4
    scored = torch.tensor([True, False, True]).expand_as(TEXTS)
    found = orders.bound(sampler, TEXTS, SEED, ROW, num_orders=k, scored=scored)
    uniforms = torch.stack([noise.grid(SEED, ROW, number, Stream.EVALUATION, LENGTH) for number in range(k)], dim=1)
    right_first = (uniforms[..., 2] > uniforms[..., 0]).long()
    ll = along(sampler, [(0, 2), (2, 0)]).gather(1, right_first)
    torch.testing.assert_close(2 * found.upper, -ll.exp().mean(1).log())
    assert (found.denoiser_passes == 2 * k).all()


def test_a_text_outside_the_nucleus_has_an_infinite_nll_and_a_lower_end() -> None:
    """Where no order gives it anything, psi is a constant, which bounds as any does."""
    sampler = plain(5).replace(proposal=Proposal(1.0, 0.4))
    found = orders.bound(sampler, TEXTS, SEED, ROW, num_orders=3)
    impossible = found.upper == torch.inf
    assert 0 < int(impossible.sum()) < len(TEXTS)
    assert found.lower.isfinite()[impossible].all()
    assert found.unreliable[impossible].all()
    wanted = (LENGTH * math.log(SYMBOLS + 1) + 1.0) / LENGTH
    torch.testing.assert_close(found.lower[impossible], torch.full_like(found.lower[impossible], wanted))


@pytest.mark.parametrize(("spread", "reliable"), [(0.3, True), (3.0, False)])
def test_an_interval_is_known_to_be_unreliable_where_a_few_orders_carry_it(spread: float, reliable: bool) -> None:
    """2,000 texts whose orders are log-normal, 16 of each: the mean of `exp ll` is known, and in most texts missed."""
    n, k = 2_000, 16
    normal = torch.special.ndtri(noise.grid(0, torch.arange(n), 0, Stream.EVALUATION, k))
    ll = spread * normal - spread**2 / 2  # E exp ll = 1
    share = float((orders.particles.ess(ll) - 1 >= orders.RELIABLE_SHARE * (k - 1)).double().mean())
    claimed = float((orders.tube(ll, torch.zeros(n)) < 0.0).double().mean())  # that log p is below what it is, 0
    if reliable:
        assert share > 0.99
        assert abs(float(orders.tube(ll, torch.zeros(n)).mean())) < 0.02
    else:
        assert share < 0.05
        assert claimed > 0.5, "most texts are told an upper end of log p that is too low"


def test_what_has_no_such_bounds_is_refused_with_the_reason() -> None:
    sampler = in_order(0, edlm.plans.Grid(2))
    assert orders.missing(sampler) == ""
    for other, reason in (
        (sampler.replace(plan=edlm.plans.LeftToRight()), "its plan, left to right, is a rule"),
        (sampler.replace(plan=edlm.plans.Ranked(2)), "is a rule: a text has one order, and its likelihood is exact"),
        (sampler.replace(selection="sir", candidates=2), "the law of what is kept of 2 candidates is not known"),
    ):
        with pytest.raises(ValueError, match=reason):
            orders.bound(other, TEXTS, SEED, ROW, num_orders=2)
    with pytest.raises(ValueError, match="num_orders = 0 must be at least 1"):
        orders.bound(sampler, TEXTS, SEED, ROW, num_orders=0)
    scored = torch.ones_like(TEXTS, dtype=torch.bool)
    scored[2] = False
    with pytest.raises(ValueError, match="row 2 has no scored position"):
        orders.bound(sampler, TEXTS, SEED, ROW, num_orders=2, scored=scored)


@pytest.mark.parametrize("num_orders", [2, 4])
def test_a_text_of_which_one_order_carries_all_is_unreliable_at_any_number(num_orders: int) -> None:
    """At two orders too, where an effective sample size is never below one."""
    sampler = plain(5).replace(proposal=Proposal(0.02, 1.0))
    found = orders.bound(sampler, TEXTS, SEED, ROW, num_orders=num_orders)
    alone = found.ess < 1.01
    assert bool(alone.any())
    assert bool(found.unreliable[alone].all())


def test_figures_follow_from_what_is_known_along_each_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three orders of two texts of two tokens, with probabilities written down by hand."""
    p = torch.tensor([[0.25, 0.25, 0.0], [0.5, 0.125, 0.125]], dtype=torch.float64)  # by text and order
    written = steps.Written(p.T.flatten().log(), torch.tensor([2, 2, 4, 4, 6, 6]), torch.tensor([0, 1, 0, 1, 0, 1]))
    monkeypatch.setattr(orders.steps, "of_plan", lambda sampler, plan, texts, size: written)
    sampler = Sampler(hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 2))
    found = orders.bound(sampler, torch.zeros(2, 2).long(), SEED, torch.arange(2), num_orders=3)
    assert found.upper.tolist() == pytest.approx([-math.log(0.5 / 3) / 2, -math.log(0.75 / 3) / 2])
    tube = [
        (2 * (math.log(0.125) + 1.0) + math.log(0.25) - 1.0) / 3,
        (math.log(0.125) + 3.0 + 2 * (math.log(0.3125) + 0.125 / 0.3125 - 1.0)) / 3,
    ]
    assert found.lower.tolist() == pytest.approx([-each / 2 for each in tube])
    assert found.ess.tolist() == pytest.approx([2.0, 0.75**2 / (0.25 + 2 / 64)])
    assert found.denoiser_passes.tolist() == [6.0, 6.0]
    assert found.energy_passes.tolist() == [0.0, 1.5]
    assert found.passes.tolist() == [2.0, 2.0]


@pytest.mark.parametrize(("weights", "unreliable"), [((1, 1, 0), False), ((1, 0, 0), True), ((1, 1, 1), False)])
def test_half_of_the_way_from_one_order_to_all_is_reliable(
    weights: tuple[int, ...], unreliable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders.particles, "ess", lambda _: torch.tensor([float(sum(weights))]).double())
    log_p = torch.tensor(weights, dtype=torch.float64).log()
    written = steps.Written(log_p, torch.ones(3).long(), torch.ones(3).long())
    monkeypatch.setattr(orders.steps, "of_plan", lambda *_: written)
    sampler = Sampler(hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 2))
    found = orders.bound(sampler, torch.zeros(1, 2).long(), SEED, torch.arange(1), num_orders=3)
    assert found.unreliable.tolist() == [unreliable]


def test_one_order_has_no_lower_end_and_is_not_reliable() -> None:
    found = orders.bound(plain(0), TEXTS[:2], SEED, ROW[:2], num_orders=1)
    assert found.lower.isnan().all()
    assert found.unreliable.tolist() == [True, True]
    assert found.ess.tolist() == [1.0, 1.0]
