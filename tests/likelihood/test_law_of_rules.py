"""The exact law of samplers whose plan is a rule, beside a slow enumeration and beside the texts that are drawn."""

import itertools
from collections.abc import Callable

import builders
import pytest
import scipy.stats
import torch
from builders import wave_energy, wave_marginals
from choosing import RULES, slowly, varied
from hypothesis import given
from hypothesis import strategies as st
from oracles import OracleDenoiser, OracleEnergy, all_sequences, empirical_law, marginal_table, random_joint, sir
from oracles.parts import Lookup
from torch import Tensor

import edlm
from edlm.likelihood import bounds, enumeration
from edlm.process import categorical
from edlm.samplers import corrections, pipelines, plans
from edlm.samplers.planning import Seen
from edlm.samplers.sampler import Sampler

SYMBOLS, LENGTH = 3, 4
MARGINALS, ENERGY = wave_marginals(5, SYMBOLS, LENGTH), wave_energy(5, LENGTH, 1.5)
DENOISER = OracleDenoiser(MARGINALS, SYMBOLS)
OF_DRAFTS, OF_TRANSITIONS = (builders.scoped(OracleEnergy(ENERGY), scope) for scope in ("draft", "transition"))
Chooses = Callable[[Tensor, Tensor], Tensor]


def slow_law(plan: plans.Rule, chooses: Chooses, drafts: bool = False) -> Tensor:
    """The law of every text, state by state in plain loops: what is kept of a state's candidates by `chooses`."""
    mass, texts = {(SYMBOLS,) * LENGTH: 1.0}, dict[tuple[int, ...], float]()
    while mass:
        after = dict[tuple[int, ...], float]()
        for state, chance in mass.items():
            law = MARGINALS(torch.tensor([state]))[0].exp()
            masked = [token == SYMBOLS for token in state]
            new = slowly(plan, law.tolist(), masked)
            filled = [i for i in range(LENGTH) if (masked[i] if drafts else i in new)]
            words = list(itertools.product(range(SYMBOLS), repeat=len(filled)))
            candidates = [[*state] for _ in words]
            for word, candidate in zip(words, candidates, strict=True):
                for i, token in zip(filled, word, strict=True):
                    candidate[i] = token
            log_p = torch.stack([law[filled, list(word)].log().sum() for word in words])
            energy = ENERGY(torch.tensor([candidates]), torch.tensor([state]))
            kept = chooses(log_p.unsqueeze(0), -energy)[0].tolist()
            for candidate, probability in zip(candidates, kept, strict=True):
                x = tuple(
                    token if i in new else old for i, (token, old) in enumerate(zip(candidate, state, strict=True))
                )
                where = after if SYMBOLS in x else texts
                where[x] = where.get(x, 0.0) + chance * probability
        mass = after
    return torch.tensor([texts.get(tuple(x), 0.0) for x in all_sequences(SYMBOLS, LENGTH).tolist()]).double()


WAYS: dict[str, tuple[Chooses, bool, dict[str, object]]] = {
    "plain": (lambda log_p, _: log_p.exp(), False, {}),
    "sir": (sir(2), False, {"correction": corrections.OfEnergy(OF_TRANSITIONS, "transition"), "candidates": 2}),
    "sir of drafts": (sir(2), True, {"correction": corrections.OfEnergy(OF_DRAFTS, "draft"), "candidates": 2}),
    "in order": (
        lambda log_p, log_w: (log_p + log_w).softmax(-1),
        False,
        {"correction": builders.Normalised(OF_TRANSITIONS), "selection": "speculative"},
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("plan", [RULES[1], RULES[2], RULES[4], RULES[5], RULES[8], RULES[11]], ids=str)
def test_it_is_the_law_of_the_slow_enumeration(plan: plans.Rule, way: str) -> None:
    chooses, drafts, axes = WAYS[way]
    found = enumeration.law(Sampler(DENOISER, plan, **axes), LENGTH)
    torch.testing.assert_close(found.flatten(), slow_law(plan, chooses, drafts), rtol=1e-6, atol=1e-9)
    assert abs(float(found.sum()) - 1.0) < 1e-9


def improbable(tokens: Tensor, law: Tensor) -> float:
    """The p-value of texts under a law by a chi-square test, rare ones taken together."""
    expected = len(tokens) * law.flatten()
    counts = len(tokens) * empirical_law(tokens, SYMBOLS)
    rare = expected < 5.0
    table = torch.stack([counts, expected])
    together = torch.cat([table[:, ~rare], table[:, rare].sum(1, keepdim=True)], 1)
    together = together[:, together[1] > 0.0]
    assert not counts[expected == 0.0].any()
    return float(scipy.stats.chisquare(*together.tolist()).pvalue)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{}, {"correction": corrections.ChainRule(), "selection": "speculative"}], ids=str)
def test_it_is_the_law_of_the_texts_that_are_drawn(axes: dict[str, object]) -> None:
    """Every rule, 4000 texts each: a right one fails one run in 1e5; the texts are those of no other law tried."""
    own, n = varied(vocab_size=SYMBOLS + 1, max_length=LENGTH), 4000
    some = [
        plans.EntropyBound(0.5),
        plans.EntropyBound(1.0),
        plans.EntropyBound(2.0, 3, "margin"),
        plans.Confidence(0.5),
    ]
    samplers = [Sampler(own, plan, **axes) for plan in some]
    laws = [enumeration.law(each, LENGTH) for each in samplers]
    for number, each in enumerate(samplers):
        tokens = edlm.sample(pipelines.pipeline(each, LENGTH), n, seed=7)["tokens"]
        assert improbable(tokens, laws[number]) > 1e-5 / (2 * len(some))
        if not axes:  # in order, laws are nearer
            assert max(improbable(tokens, law) for law in laws[:number] + laws[number + 1 :]) < 1e-8


def test_one_position_a_pass_in_any_order_is_the_law_of_a_denoiser_that_is_exact() -> None:
    """Whatever orders them; several at once are not, and the further away the larger the bound."""
    joint = random_joint(3, SYMBOLS, LENGTH, 1.5)
    exact = OracleDenoiser(Lookup(marginal_table(joint)), SYMBOLS)
    for plan in (plans.EntropyBound(0.0), plans.Ranked(1, by="margin"), plans.Confidence(1.0), plans.LeftToRight()):
        torch.testing.assert_close(enumeration.law(Sampler(exact, plan), LENGTH), joint, rtol=1e-8, atol=1e-12)
    far = [
        float((enumeration.law(Sampler(exact, plan), LENGTH) - joint).abs().sum() / 2)
        for plan in (plans.EntropyBound(0.3), plans.EntropyBound(1.0), plans.EntropyBound(9.0))
    ]
    assert 0.0 < far[0] < far[1] < far[2]


@given(st.integers(0, 2**40), st.floats(0.0, 3.0), st.sampled_from(["entropy", "confidence", "margin"]))
def test_what_an_entropy_bound_takes_shares_no_more_information_than_its_budget(
    seed: int, gamma: float, by: str
) -> None:
    """`sum H_i - H(S) <= gamma` for the joint law of the tokens, whose marginals the plan sees; it takes all it can."""
    joint = random_joint(seed, SYMBOLS, LENGTH, 3.0)
    axes = range(LENGTH)
    laws = torch.stack([joint.sum([j for j in axes if j != i]) for i in axes])
    seen = Seen(*(value.unsqueeze(0) for value in categorical.certainty(laws.log())))
    chosen = plans.EntropyBound(gamma, by=by).choose(seen, torch.ones(1, LENGTH, dtype=torch.bool))[0]
    taken = [i for i in axes if chosen[i]]
    own = joint.sum([j for j in axes if j not in taken]) if len(taken) < LENGTH else joint
    shared = seen.entropy[0, taken].sum() - torch.special.entr(own).sum()
    assert shared <= gamma + 1e-9 or len(taken) == 1
    if len(taken) < LENGTH:
        order = (seen.entropy if by == "entropy" else -getattr(seen, by))[0].argsort()
        more = seen.entropy[0, order[: len(taken) + 1]]
        assert more.sum() - more.max() > gamma - 1e-9


@pytest.mark.parametrize("plan", [plans.LeftToRight(2), plans.EntropyBound(1.0), plans.Confidence(), plans.Ranked(3)])
def test_the_bound_of_a_plan_without_chance_is_its_likelihood(plan: plans.Rule) -> None:
    sampler = Sampler(DENOISER, plan)
    texts = all_sequences(SYMBOLS, LENGTH)
    found = bounds.of_sampler(sampler, texts, torch.tensor(0), torch.arange(len(texts)))
    law = enumeration.law(sampler, LENGTH).flatten()
    torch.testing.assert_close(found.nats * LENGTH, -law.log())


def test_a_plan_that_says_nothing_of_its_chances_is_refused() -> None:
    class Silent:
        name = "silent"

        def draw(self, *arguments: object) -> object:
            return plans.TokensPerPass(1).draw(*arguments)

        def expected(self, *arguments: object) -> object:
            return plans.TokensPerPass(1).expected(*arguments)

        def __str__(self) -> str:
            return self.name

    assert enumeration.missing(Sampler(DENOISER, Silent())) == "the plan silent says nothing of its chances"
