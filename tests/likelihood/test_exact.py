"""Exact likelihoods of samplers whose plan is a rule, against a slow enumeration that shares nothing with them."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import block_networks
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
from edlm.contracts import Denoiser
from edlm.likelihood import bounds, enumeration, exact, hidden_markov, nelbo
from edlm.models import chain_rule
from edlm.samplers.corrections import ChainRule
from edlm.samplers.rounds import UntilEss
from edlm.samplers.sampler import Proposal, Sampler

SYMBOLS, LENGTH = 3, 4
TEXTS = all_sequences(SYMBOLS, LENGTH)
Laws = list[list[float]]  # by position and symbol
State = tuple[int, ...]
Rule = Callable[[Laws, list[int]], list[int]]


# ---- Rules in plain Python, and the law of a sampler by going through all that can happen


def entropy_of(law: Sequence[float]) -> float:
    return -sum(p * math.log(p) for p in law if p > 0.0)


def tied(value: float) -> int:
    """Equal for what differs by rounding: of masks alone a network has one law. Then left comes first."""
    return round(value * 2**20)


def entropy_bound(gamma: float) -> Rule:
    def rule(laws: Laws, masks: list[int]) -> list[int]:
        order = sorted(masks, key=lambda i: tied(entropy_of(laws[i])))
        fits = [k for k in range(1, len(order) + 1) if sum(entropy_of(laws[i]) for i in order[: k - 1]) <= gamma]
        return order[: max(fits)]

    return rule


def above(threshold: float) -> Rule:
    def rule(laws: Laws, masks: list[int]) -> list[int]:
        return [i for i in masks if max(laws[i]) > threshold] or [max(masks, key=lambda i: tied(max(laws[i])))]

    return rule


def widest_margin(count: int) -> Rule:
    def rule(laws: Laws, masks: list[int]) -> list[int]:
        lead = {i: tied(sorted(laws[i])[-1] - sorted(laws[i])[-2]) for i in masks}
        return sorted(masks, key=lambda i: -lead[i])[:count]

    return rule


def from_the_left(count: int) -> Rule:
    return lambda laws, masks: masks[:count]


def in_blocks(size: int, rule: Rule) -> Rule:
    return lambda laws, masks: rule(laws, [i for i in masks if i // size == masks[0] // size])


TWO = edlm.plans.LeftToRight(2)
RULES = {
    "entropy bound": (edlm.plans.EntropyBound(1.1), entropy_bound(1.1)),
    "one by one by entropy": (edlm.plans.EntropyBound(0.0), entropy_bound(0.0)),
    "threshold": (edlm.plans.Confidence(0.6), above(0.6)),
    "margin": (edlm.plans.Ranked(2, by="margin"), widest_margin(2)),
    "left to right": (edlm.plans.LeftToRight(1), from_the_left(1)),
    "three from the left": (edlm.plans.LeftToRight(3), from_the_left(3)),
    "two from the left, in blocks": (edlm.plans.blocks(3, TWO), in_blocks(3, from_the_left(2))),
}


def laws_of(denoiser: Denoiser, state: State, proposal: Proposal) -> Laws:
    """`p_i` at every mask, tempered and cut to the nucleus by hand."""
    masks = [i for i, token in enumerate(state) if token == SYMBOLS]
    x_t, t = torch.tensor([state]), torch.tensor([len(masks) / len(state)], dtype=torch.float64)
    inputs = TensorDict({contracts.X_T: x_t, contracts.T: t, contracts.POSITIONS: torch.tensor(masks)})
    found: Laws = [[] for _ in state]
    logits = denoiser.logits(denoiser(inputs)[contracts.HIDDEN])[:, :SYMBOLS].double()
    for i, row in zip(masks, logits, strict=True):
        law = (row / proposal.temperature).softmax(-1).tolist()
        kept, mass = set(), 0.0
        for v in sorted(range(SYMBOLS), key=lambda v: -law[v]):
            if mass < proposal.nucleus:
                kept.add(v)
            mass += law[v]
        total = sum(law[v] for v in kept)
        found[i] = [law[v] / total if v in kept else 0.0 for v in range(SYMBOLS)]
    return found


def fillings(state: State, where: Sequence[int]) -> Iterator[State]:
    for tokens in itertools.product(range(SYMBOLS), repeat=len(where)):
        after = list(state)
        for i, token in zip(where, tokens, strict=True):
            after[i] = token
        yield tuple(after)


def plain_chances(laws: Laws, filled: Sequence[State], where: Sequence[int]) -> list[float]:
    return [math.prod(laws[i][after[i]] for i in where) for after in filled]


@torch.no_grad()
def ordered_chances(
    denoiser: Denoiser, laws: Laws, before: State, filled: Sequence[State], where: Sequence[int]
) -> list[float]:
    """`prod p e^-E` under the chain rule, which is a law of what is new; read as an energy, with a pass of its own."""
    log_p = torch.zeros(1, len(filled), len(before), dtype=torch.float64)
    for number, after in enumerate(filled):
        for i in where:
            log_p[0, number, i] = math.log(laws[i][after[i]])
    inputs = {
        contracts.X_T: torch.tensor([before]),
        contracts.T: torch.tensor([before.count(SYMBOLS) / len(before)], dtype=torch.float64),
        contracts.POSITIONS: torch.tensor(sorted(where)),
        contracts.CANDIDATES: torch.tensor([filled]),
        contracts.LOG_P_CANDIDATES: log_p,
    }
    energy = chain_rule.energy(denoiser)(TensorDict(inputs))[contracts.ENERGY]
    return (log_p.sum(-1) - energy).exp().squeeze(0).tolist()


def slow_law(
    sampler: Sampler, rule: Rule, start: State = (SYMBOLS,) * LENGTH, window: tuple[float, float] = (0.0, 1.0)
) -> dict[State, float]:
    """The probability of every text that a sampler can write, from a state on."""
    laws = cache(lambda state: laws_of(sampler.denoiser, state, sampler.proposal))
    mass: dict[State, float] = {start: 1.0}
    texts: dict[State, float] = {}
    while mass:
        state, chance = mass.popitem()
        masks = [i for i, token in enumerate(state) if token == SYMBOLS]
        if not masks:
            texts[state] = texts.get(state, 0.0) + chance
            continue
        where = rule(laws(state), masks)
        inside = window[0] - 1e-9 <= len(masks) / len(state) <= window[1] + 1e-9
        filled = list(fillings(state, where))
        if sampler.chooses.in_order and inside:
            chances = ordered_chances(sampler.denoiser, laws(state), state, filled, where)
        else:
            chances = plain_chances(laws(state), filled, where)
        for after, own in zip(filled, chances, strict=True):
            mass[after] = mass.get(after, 0.0) + chance * own
    return texts


def probabilities(sampler: Sampler, texts: Tensor = TEXTS, scored: Tensor | None = None) -> Tensor:
    found = exact.of_sampler(sampler, texts, scored)
    tokens = texts.shape[1] if scored is None else scored.sum(1)
    return (-tokens * found.nats).exp()


def assert_is(found: Tensor, law: dict[State, float], texts: Tensor = TEXTS) -> None:
    wanted = torch.tensor([law.get(tuple(text), 0.0) for text in texts.tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-14)


def plain(seed: int, plan: object, proposal: Proposal = Proposal()) -> Sampler:  # noqa: B008
    return Sampler(OracleDenoiser(wave_marginals(seed, SYMBOLS, LENGTH), SYMBOLS), plan, proposal)


def in_order(seed: int, plan: object) -> Sampler:
    denoiser = tiny_denoiser(seed, SYMBOLS, vocab_size=SYMBOLS + 1, max_length=LENGTH)
    return Sampler(denoiser, plan, correction=ChainRule(), selection="speculative")


# ---- Laws


@pytest.mark.parametrize("name", RULES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=6)
def test_plain_it_is_the_law_of_all_that_can_happen(name: str, seed: int) -> None:
    plan, rule = RULES[name]
    sampler = plain(seed, plan)
    found = probabilities(sampler)
    assert_is(found, slow_law(sampler, rule))
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", RULES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=3)
def test_in_order_it_is_the_law_of_all_that_can_happen(name: str, seed: int) -> None:
    plan, rule = RULES[name]
    sampler = in_order(seed, plan)
    found = probabilities(sampler)
    assert_is(found, slow_law(sampler, rule))
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_temperature_and_nucleus_are_a_part_of_the_law(name: str) -> None:
    """Outside the nucleus a token has probability zero, and a text an infinite NLL."""
    plan, rule = RULES[name]
    for proposal in (Proposal(0.6, 1.0), Proposal(1.0, 0.8), Proposal(1.7, 0.9)):
        sampler = plain(3, plan, proposal)
        found = probabilities(sampler)
        assert_is(found, slow_law(sampler, rule))
        assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)
        if proposal.nucleus < 1.0:
            assert (exact.of_sampler(sampler, TEXTS).nats == torch.inf).any()
        one_after_the_other = probabilities(in_order(3, plan).replace(proposal=proposal))
        assert float(one_after_the_other.sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("build", [plain, in_order])
@pytest.mark.parametrize("name", RULES)
def test_it_is_the_library_s_own_enumeration(name: str, build: Callable[..., Sampler]) -> None:
    sampler = build(11, RULES[name][0])
    torch.testing.assert_close(probabilities(sampler), enumeration.law(sampler, LENGTH).flatten(), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("build", [plain, in_order])
@pytest.mark.parametrize("name", RULES)
def test_what_is_given_stays_and_is_not_scored(name: str, build: Callable[..., Sampler]) -> None:
    plan, rule = RULES[name]
    sampler, given_tokens = build(5, plan), (SYMBOLS, 2, SYMBOLS, SYMBOLS)
    texts = TEXTS[TEXTS[:, 1] == 2]
    scored = torch.tensor([True, False, True, True]).expand_as(texts)
    found = probabilities(sampler, texts, scored)
    assert_is(found, slow_law(sampler, rule, given_tokens), texts)
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("window", [(0.0, 0.6), (0.6, 1.0)])
@pytest.mark.parametrize("name", ["three from the left", "margin", "entropy bound"])
def test_a_pass_that_starts_outside_the_window_is_plain(name: str, window: tuple[float, float]) -> None:
    plan, rule = RULES[name]
    sampler = in_order(2, plan).replace(window=window)
    found = probabilities(sampler)
    assert_is(found, slow_law(sampler, rule, window=window))
    other = sampler.replace(window=(0.0, 1.0)) if window[0] == 0.0 else sampler.replace(window=(0.0, 0.1))
    assert not torch.allclose(found, probabilities(other))


def test_texts_are_drawn_with_these_probabilities() -> None:
    """10,000 texts of each of two samplers; a sampler that is exact fails with probability 1e-6."""
    n = 10_000
    limit = math.sqrt(SYMBOLS**LENGTH / n) / 2 + math.sqrt(math.log(1e6) / (2 * n))
    drawn = [in_order(4, edlm.plans.Ranked(2, by="margin")), plain(4, edlm.plans.EntropyBound(1.1))]
    for sampler, other in itertools.permutations(drawn):
        tokens = edlm.sample(edlm.pipelines.pipeline(sampler, LENGTH), n, seed=0)["tokens"]
        share = torch.bincount((tokens * SYMBOLS ** torch.arange(LENGTH - 1, -1, -1)).sum(1), minlength=len(TEXTS)) / n
        far, farther = ((share - probabilities(each)).abs().sum() / 2 for each in (sampler, other))
        assert far < limit < farther


# ---- Rows, counts and what is refused


@pytest.mark.parametrize("build", [plain, in_order])
def test_a_row_has_its_own_pace_whatever_is_beside_it(build: Callable[..., Sampler]) -> None:
    sampler = build(0, edlm.plans.Confidence(0.55))
    scored = torch.ones_like(TEXTS, dtype=torch.bool)
    scored[::2, 0] = False
    together = exact.of_sampler(sampler, TEXTS, scored)
    assert len(together.passes.unique()) > 1
    for number in (0, 1, 40, 80):
        one = slice(number, number + 1)
        alone = exact.of_sampler(sampler, TEXTS[one], scored[one])
        torch.testing.assert_close(alone, type(alone)(*(each[one] for each in together)))


def test_passes_and_what_is_read_are_those_of_the_sampler() -> None:
    """Of m new tokens two are read in order for each but the first; the path is that on which the text was drawn."""
    for plan in (edlm.plans.Confidence(0.55), edlm.plans.Ranked(3), edlm.plans.LeftToRight(3)):
        sampler = in_order(1, plan)
        drawn = edlm.sample(edlm.pipelines.pipeline(sampler, LENGTH), 20, seed=3)
        found = exact.of_sampler(sampler, drawn["tokens"])
        revealed = drawn["info", "revealed"]
        assert torch.equal(found.passes, (revealed > 0).sum(1))
        assert torch.equal(found.denoiser_passes, found.passes.double())
        assert torch.equal(found.energy_passes, 2 * (revealed - 1).clamp(min=0).sum(1) / LENGTH)


def test_what_has_no_exact_likelihood_is_refused_with_the_reason() -> None:
    rule = in_order(0, edlm.plans.LeftToRight(2))
    weighed = rule.replace(selection="sir", candidates=4)
    assert exact.missing(rule) == ""
    assert exact.missing(weighed.replace(candidates=1)) == "", "one candidate weighs nothing"
    for sampler, reason in (
        (rule.replace(plan=edlm.plans.Grid(3)), "its plan, T=3, is drawn"),
        (weighed, "the law of what is kept of 4 candidates is not known, only a bound of it"),
        (weighed.replace(candidates=UntilEss(2.0, 4)), "the law of what is kept of k<=4 until ESS 2 candidates"),
    ):
        with pytest.raises(ValueError, match=reason):
            exact.of_sampler(sampler, TEXTS)
    with pytest.raises(ValueError, match="row 1 has no scored position"):
        exact.of_sampler(rule, TEXTS[:2], torch.tensor([[True] * LENGTH, [False] * LENGTH]))


def test_a_denoiser_of_blocks_from_left_to_right_has_the_law_of_its_blocks() -> None:
    """It reads no later block, and in order a block is the product of the laws of its tokens."""
    own = block_networks.denoiser(2, 3)
    for selection, count in (("sir", 1), ("sir", 2), ("speculative", 2)):
        plan = edlm.plans.blocks(2, edlm.plans.LeftToRight(count))
        how = {"correction": ChainRule(), "selection": selection} if selection == "speculative" else {}
        sampler = Sampler(own, plan, **how)
        assert exact.missing(sampler) == ""
        found = probabilities(sampler, block_networks.every_text())
        assert float(found.sum()) == pytest.approx(1.0, abs=1e-9)
        torch.testing.assert_close(found, enumeration.law(sampler, LENGTH).flatten(), rtol=1e-8, atol=0.0)


# ---- Beside bounds


SOURCE = hidden_markov.random_markov(0, SYMBOLS)
EXACT = hidden_markov.denoiser(SOURCE, LENGTH)


def test_of_the_exact_denoiser_left_to_right_is_the_data_and_the_plain_bound_lies_above() -> None:
    log_p = hidden_markov.log_prob(SOURCE, TEXTS)
    torch.testing.assert_close(probabilities(Sampler(EXACT, edlm.plans.LeftToRight())).log(), log_p)
    together = Sampler(EXACT, edlm.plans.LeftToRight(2))
    divergence = float((log_p.exp() * (log_p - probabilities(together).log())).sum())
    assert divergence > 0.05
    many = TEXTS.repeat(200, 1)
    row = torch.arange(len(many))
    drawn = nelbo.nelbo(EXACT, EXACT.schedule, many, torch.tensor(0), row)
    found = LENGTH * drawn.view(200, -1).mean(0) @ log_p.exp()
    assert float(found) == pytest.approx(-float(log_p.exp() @ log_p), abs=0.02), "every order is as good"
    wrong = OracleDenoiser(wave_marginals(7, SYMBOLS, LENGTH, 0.7), SYMBOLS)
    elbo = LENGTH * bounds.of_sampler(Sampler(wrong), many, torch.tensor(0), row).nats.view(200, -1).mean(0)
    sure = enumeration.law(Sampler(wrong), LENGTH).flatten()
    assert float(sure @ elbo) > -float(sure @ sure.log()) + 0.005


@pytest.mark.parametrize("name", RULES)
def test_the_bound_of_a_rule_without_candidates_is_exact(name: str) -> None:
    row = torch.arange(len(TEXTS))
    for build in (plain, in_order):
        sampler = build(6, RULES[name][0])
        found = bounds.of_sampler(sampler, TEXTS, torch.tensor(0), row)
        torch.testing.assert_close(found.nats, exact.of_sampler(sampler, TEXTS).nats)
        assert torch.equal(found.passes, exact.of_sampler(sampler, TEXTS).passes)
        readings = 1 if hasattr(sampler.plan, "draw") else 2  # the path is followed first
        assert torch.equal(found.denoiser_passes, readings * found.passes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["margin", "three from the left"])
def test_candidates_along_a_rule_have_a_bound_above_their_law(name: str) -> None:
    """Means over 100 draws of each text lie above by enumeration, five standard errors aside, and near it."""
    sampler = in_order(9, RULES[name][0]).replace(selection="sir", candidates=3)
    law = enumeration.law(sampler, LENGTH).flatten()
    row = torch.arange(100 * len(TEXTS))
    drawn = bounds.of_sampler(sampler, TEXTS.repeat(100, 1), torch.tensor(1), row)
    values = LENGTH * drawn.nats.view(100, -1)
    gap, error = values.mean(0) + law.log(), values.std(0) / 100**0.5
    assert (gap > -5 * error).all()
    assert 0.0 < float(law @ gap) < 0.3
    alone = LENGTH * exact.of_sampler(sampler.replace(correction=None, selection="sir", candidates=1), TEXTS).nats
    assert float(law @ values.mean(0)) < float(law @ alone) - 0.001, "closer than what the plain sampler gives it"


def test_a_pass_is_at_the_time_at_which_the_sampler_takes_it() -> None:
    for plan in (edlm.plans.Ranked(2), edlm.plans.Confidence(0.55), edlm.plans.LeftToRight(3)):
        sampler = plain(2, plan)
        drawn = edlm.sample(edlm.pipelines.pipeline(sampler, LENGTH), 20, seed=0)
        wanted = torch.ones_like(drawn["tokens"], dtype=torch.bool)
        chosen = not hasattr(plan, "draw")
        path = exact.follow(sampler, drawn["tokens"], wanted)[0] if chosen else exact.of_rule(sampler, wanted)
        times = drawn["info", "t"][:, : path.t.shape[1]]
        torch.testing.assert_close(path.t[:, : times.shape[1]], times)
