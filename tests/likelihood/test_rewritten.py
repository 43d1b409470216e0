"""The enumerated law of a sampler that masks tokens again: by another enumeration, by texts, and of the process."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import all_sequences, empirical_law, marginal_table, random_joint
from scipy.stats import chi2
from torch import Tensor

import edlm
from edlm.likelihood import bounds, enumeration, hidden_markov, rewritten
from edlm.samplers import plans, remasking
from edlm.samplers.remasking import Cap, Confidence, ForwardBackward, Loop, Remasking, Rescale
from edlm.samplers.sampler import Proposal, Sampler

SYMBOLS, LENGTH = 3, 3
SOURCE = hidden_markov.random_hidden_markov(1, 4, SYMBOLS, 3.0)
RULES = [Cap(0.2), Rescale(0.3), Loop(0.6, 0.2, 0.5, 0.3), ForwardBackward()]
every_rule = pytest.mark.parametrize("rule", RULES, ids=str)
numbers = st.floats(0.0, 1.0)


def sampler(rule: Remasking | None, steps: int = 4, length: int = LENGTH) -> Sampler:
    return Sampler(hidden_markov.denoiser(SOURCE, length), plans.Grid(steps), remasking=rule)


def laws_of(joint: Tensor) -> rewritten.Laws:
    """The exact denoiser's laws, by the oracle's own enumeration of (m,) * l."""
    length, symbols = joint.ndim, len(joint)
    found = []
    for size in range(length + 1):
        for masked in itertools.combinations(range(length), size):
            visible = [i for i in range(length) if i not in masked]
            rows = []
            for word in itertools.product(range(symbols), repeat=len(visible)):
                given_now = joint[tuple(word[visible.index(i)] if i in visible else slice(None) for i in range(length))]
                p = given_now / given_now.sum()
                rows.append([p.movedim(k, 0).reshape(symbols, -1).sum(-1) for k in range(size)])
            stacked = [torch.stack(row) if row else torch.zeros(0, symbols) for row in rows]
            found.append((masked, torch.stack(stacked).double()))
    return found


def slow_step(mass: Tensor, table: Tensor, sigma: float, reveal: float) -> Tensor:
    """From every state to every state, one position after another."""
    mask, after = len(mass) - 1, torch.zeros_like(mass)
    states = list(itertools.product(range(mask + 1), repeat=mass.ndim))
    for x_t in states:
        p = table[x_t].exp()
        for x_s in states:
            chance = 1.0
            for i, (old, new) in enumerate(zip(x_t, x_s, strict=True)):
                if old == mask:
                    chance *= (1.0 - reveal) if new == mask else reveal * float(p[i, new])
                else:
                    chance *= sigma if new == mask else (1.0 - sigma) * (old == new)
            after[x_s] += mass[x_t] * chance
    return after


@given(st.integers(0, 1000), numbers, numbers)
@settings(max_examples=15)
def test_a_step_is_the_sum_over_all_pairs_of_states(seed: int, sigma: float, reveal: float) -> None:
    joint = random_joint(seed, 2, 2, 1.5)
    mass = torch.rand(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = rewritten.step(mass / mass.sum(), laws_of(joint), sigma, reveal)
    wanted = slow_step(mass / mass.sum(), marginal_table(joint), sigma, reveal)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert float(found.sum()) == pytest.approx(1.0)


@every_rule
def test_a_text_s_noised_states_are_kept_by_every_step(rule: Remasking) -> None:
    """With a denoiser that knows x_0 the law of x_s is q(x_s | x_0) after each step, exactly."""
    x_0 = (2, 0, 1)
    sure = [
        (
            masked,
            torch.eye(SYMBOLS, dtype=torch.float64)[[x_0[i] for i in masked]].expand(SYMBOLS ** (LENGTH - n), n, -1),
        )
        for n in range(LENGTH + 1)
        for masked in itertools.combinations(range(LENGTH), n)
    ]
    _, alphas = remasking.path(rule, plans.Grid(6), sampler(rule).denoiser.schedule)
    found = rewritten.states(sampler(rule, 6), sure, LENGTH)
    for alpha, mass in zip(alphas, found, strict=True):
        wanted = torch.zeros_like(mass)
        for kept in itertools.product((False, True), repeat=LENGTH):
            state = tuple(x if keep else SYMBOLS for x, keep in zip(x_0, kept, strict=True))
            wanted[state] = alpha ** sum(kept) * (1.0 - alpha) ** (LENGTH - sum(kept))
        torch.testing.assert_close(mass, wanted, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_without_a_chance_it_is_the_law_of_the_plan(steps: int) -> None:
    wanted = enumeration.law(sampler(None, steps), LENGTH)
    for rule in (Cap(0.0), Rescale(0.0)):
        torch.testing.assert_close(enumeration.law(sampler(rule, steps), LENGTH), wanted, rtol=1e-9, atol=1e-12)
    far = enumeration.law(sampler(Cap(0.2), steps), LENGTH) - wanted
    assert (float(far.abs().sum()) > 1e-4) == (steps > 2), (
        "nothing is visible before the first, and the last masks none"
    )


@every_rule
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_it_is_the_law_of_the_texts_that_are_drawn(rule: Remasking, temperature: float) -> None:
    """20,000 texts, chi-square with 26 degrees of freedom, wrong with probability 1e-6; plain ones are told apart."""
    n, hot = 20_000, sampler(rule).replace(proposal=Proposal(temperature))
    law = enumeration.law(hot, LENGTH).flatten()
    tokens = edlm.sample(edlm.pipelines.pipeline(hot, LENGTH), n, seed=1)["tokens"]
    found = empirical_law(tokens, SYMBOLS).flatten()
    assert float(law.sum()) == pytest.approx(1.0)
    assert n * float(((found - law).square() / law).sum()) < chi2.isf(1e-6, SYMBOLS**LENGTH - 1)


def test_rewriting_at_one_share_leads_to_the_data_where_plain_steps_do_not() -> None:
    """Ever more steps of a loop that rewrites one token at a time, about, are a Gibbs sampler of the source."""
    q = hidden_markov.log_prob(SOURCE, all_sequences(SYMBOLS, LENGTH)).exp().view((SYMBOLS,) * LENGTH)
    rule = Loop(0.9, 0.05, 0.9, 0.02)
    far = [float((enumeration.law(sampler(rule, steps), LENGTH) - q).abs().sum() / 2) for steps in (20, 400)]
    assert far[1] < 0.2 * far[0]


def test_what_is_not_enumerated_and_not_bounded_says_why() -> None:
    assert enumeration.missing(sampler(Confidence())).startswith("the law of 'confidence' is not enumerated")
    with pytest.raises(ValueError, match="the law of 'confidence' is not enumerated"):
        enumeration.law(sampler(Confidence()), LENGTH)
    with pytest.raises(ValueError, match="a step can be enumerated only without remasking"):
        enumeration.transitions_of(sampler(Cap()), LENGTH)
    with pytest.raises(ValueError, match=r"no bound is known of a sampler that masks tokens again: cap 0\.008"):
        bounds.of_sampler(sampler(Cap()), torch.zeros(1, LENGTH, dtype=torch.int64), torch.tensor(0), torch.arange(1))
    with pytest.raises(ValueError, match="5764801 transitions, more than"):
        enumeration.law(sampler(Cap(), length=8), 8)
