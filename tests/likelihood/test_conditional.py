"""The likelihood of a part of a text given the rest: a bound whose mean is enumerated, and what is exact.

Three symbols, four positions, every set of scored positions, every text. Statistical tests have a fixed seed; with
seeds chosen at random each comparison would fail once in a million times (5 s.d.).
"""

import itertools
import math
from functools import cache

import pytest
import torch
from builders import tiny_denoiser, tiny_network
from oracles import Lookup, OracleDenoiser, all_sequences, index_of, random_marginals
from tensordict import TensorDict
from torch import Tensor

from edlm.likelihood import conditional, exact
from edlm.models import autoregressive
from edlm.samplers import plans
from edlm.samplers.sampler import Sampler

SYMBOLS, LENGTH = 3, 4
TABLE = random_marginals(1, SYMBOLS, LENGTH, strength=1.5)
DENOISER = OracleDenoiser(Lookup(TABLE), mask_id=SYMBOLS)
TEXTS = all_sequences(SYMBOLS, LENGTH)
SETS = [where for n in range(1, LENGTH + 1) for where in itertools.combinations(range(LENGTH), n)]
SEED = torch.tensor(3)


def log_p(x_0: tuple[int, ...], masked: tuple[int, ...], i: int) -> float:
    """`log p_i(x_0^i)` in the state with these masks, from the table itself."""
    state = tuple(SYMBOLS if j in masked else token for j, token in enumerate(x_0))
    return float(TABLE[(*state, i, x_0[i])])


@cache
def written(x_0: tuple[int, ...], masked: tuple[int, ...]) -> float:
    """The probability that one position at a time, in a random order, writes these tokens given the others."""
    if not masked:
        return 1.0
    left = [tuple(j for j in masked if j != i) for i in masked]
    ways = zip(masked, left, strict=True)
    return sum(math.exp(log_p(x_0, masked, i)) * written(x_0, rest) for i, rest in ways) / len(masked)


@cache
def mean_nats(x_0: tuple[int, ...], masked: tuple[int, ...]) -> float:
    """The mean over those orders of the nats of one."""
    if not masked:
        return 0.0
    left = [tuple(j for j in masked if j != i) for i in masked]
    return sum(mean_nats(x_0, rest) - log_p(x_0, masked, i) for i, rest in zip(masked, left, strict=True)) / len(masked)


def scored(where: tuple[int, ...], rows: int = 1) -> Tensor:
    return torch.tensor([i in where for i in range(LENGTH)]).expand(rows, -1)


def bound(x_0: Tensor, where: tuple[int, ...], num_draws: int) -> conditional.Bound:
    keys = torch.arange(len(x_0))
    return conditional.bound(DENOISER, x_0, scored(where, len(x_0)), SEED, keys, num_draws=num_draws)


def test_the_enumerated_bound_lies_above_the_law_of_what_is_written_and_touches_it_for_one_token() -> None:
    texts = list(map(tuple, TEXTS.tolist()))
    gaps = {where: [mean_nats(x_0, where) + math.log(written(x_0, where)) for x_0 in texts] for where in SETS}
    assert all(gap > -1e-9 for found in gaps.values() for gap in found)
    assert all(abs(gap) < 1e-9 for where, found in gaps.items() if len(where) == 1 for gap in found)
    assert max(gaps[SETS[-1]]) > 1.0
    assert sum(written(x_0, (1, 3)) for x_0 in texts) == pytest.approx(SYMBOLS**2)


@pytest.mark.parametrize("where", SETS, ids=str)
def test_its_mean_is_the_enumerated_bound_given_every_context(where: tuple[int, ...]) -> None:
    texts = TEXTS[[5, 40, 77]]
    found = bound(texts, where, 20_000)
    truth = torch.tensor([mean_nats(x_0, where) for x_0 in map(tuple, texts.tolist())], dtype=torch.float64)
    assert ((found.nats - truth).abs() < 5 * found.standard_error + 1e-9).all()
    assert not ((found.nats - 1.05 * truth).abs() < 5 * found.standard_error + 1e-9).any()


def test_draws_of_one_text_are_stratified_over_its_passes() -> None:
    """Of 12 draws of 3 tokens 3 to 5 meet each number of masks; independent ones would do so of one text in five."""
    seen: list[int] = []

    class Watched(OracleDenoiser):
        def forward(self, tensordict: TensorDict) -> TensorDict:
            seen.extend((tensordict["x_t"] == SYMBOLS).sum(-1).tolist())
            return super().forward(tensordict)

    watched, rows = Watched(Lookup(TABLE), mask_id=SYMBOLS), 30
    conditional.bound(watched, TEXTS[:rows], scored((0, 2, 3), rows), SEED, torch.arange(rows), num_draws=12)
    counts = torch.stack([torch.bincount(masks, minlength=4)[1:] for masks in torch.tensor(seen).split(12)])
    assert len(counts) == rows
    assert ((counts >= 3) & (counts <= 5)).all()
    assert len(counts.unique(dim=0)) > 1


def test_a_value_depends_on_no_other_row_and_more_draws_have_a_smaller_error() -> None:
    whole, where = bound(TEXTS, (1, 2, 3), 8), scored((1, 2, 3))
    alone = [
        conditional.bound(DENOISER, TEXTS[i : i + 1], where, SEED, torch.tensor([i]), num_draws=8).nats for i in (0, 13)
    ]
    assert torch.equal(torch.cat(alone), whole.nats[[0, 13]])
    more = bound(TEXTS, (1, 2, 3), 128)
    assert more.standard_error.mean() < 0.5 * whole.standard_error.mean()
    assert bound(TEXTS[:1], (1,), 1).standard_error.isnan().all()


@pytest.mark.parametrize("count", [1, 2])
def test_of_a_plan_that_is_a_rule_the_conditional_is_exact_and_sums_to_one(count: int) -> None:
    sampler = Sampler(DENOISER, plans.LeftToRight(count))
    for where in ((2, 3), (0, 3), (1, 2, 3)):
        found = exact.of_sampler(sampler, TEXTS, scored(where, len(TEXTS))).nats * len(where)
        context = torch.where(scored(where), 0, TEXTS)
        mass = torch.zeros(SYMBOLS**LENGTH, dtype=torch.float64)
        mass.index_add_(0, index_of(context, SYMBOLS), (-found).exp())
        assert torch.allclose(mass[mass > 0], torch.ones(()).double())


def test_greedy_decoding_writes_one_continuation_of_every_context() -> None:
    for where in ((3,), (1, 3), (1, 2, 3)):
        found = conditional.greedy(DENOISER, TEXTS, scored(where, len(TEXTS)))
        assert int(found.sum()) == SYMBOLS ** (LENGTH - len(where))
        for x_0 in map(tuple, TEXTS[found].tolist()):
            for number, i in enumerate(where):
                state = tuple(SYMBOLS if j in where[number:] else token for j, token in enumerate(x_0))
                assert int(TABLE[(*state, i)].argmax()) == x_0[i]


def test_an_autoregressive_model_is_scored_exactly_with_a_bos_and_without() -> None:
    network, mask = tiny_network(vocab_size=6, causal=True, conditioning_size=0), 4
    texts = torch.randint(4, (7, 8), generator=torch.Generator().manual_seed(0))
    where = torch.arange(8) >= 3
    for bos_id in (None, 5):
        found = conditional.in_order(network, texts, where.expand(7, -1), mask, bos_id)
        expected = autoregressive.ar_log_prob(network, texts, mask, bos_id)
        assert torch.allclose(found.nats, -expected[:, where].sum(-1))
    likely = texts.clone()
    for i in range(3, 8):
        scores = [
            autoregressive.ar_log_prob(network, torch.cat([likely[:, :i], torch.full((7, 1), token)], 1), mask, 5)[:, i]
            for token in range(6)
            if token != mask
        ]
        best = torch.stack(scores, 1).argmax(1)
        likely[:, i] = torch.where(best >= mask, best + 1, best)
    assert conditional.in_order(network, likely, where.expand(7, -1), mask, 5).greedy.all()
    likely[:, 5] = (likely[:, 5] + 1) % 4
    assert not conditional.in_order(network, likely, where.expand(7, -1), mask, 5).greedy.any()


def test_what_cannot_be_scored_is_refused_in_one_line() -> None:
    denoiser, texts = tiny_denoiser(), torch.zeros(1, 8, dtype=torch.int64)
    keys, every = (SEED, torch.arange(1)), torch.ones(1, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^num_draws = 0 "):
        conditional.bound(denoiser, texts, every, *keys, num_draws=0)
    for call in (
        lambda none: conditional.bound(denoiser, texts, none, *keys, num_draws=2),
        lambda none: conditional.greedy(denoiser, texts, none),
        lambda none: conditional.in_order(tiny_network(causal=True), texts, none, 4, 4),
    ):
        with pytest.raises(ValueError, match=r"^row 0 has no scored position$"):
            call(~every)
    with pytest.raises(ValueError, match=r"^without a bos_id the first token of a text has no law of its own"):
        conditional.in_order(tiny_network(causal=True), texts, every, 4, None)
