"""The law of texts that a denoiser drafts and an AR model puts right: that of the AR model, whatever drafts."""

import itertools

import builders
import pytest
import torch
from drafting import (
    LENGTH,
    MASK,
    SEQUENCES,
    SYMBOLS,
    ar_decoder,
    ar_network,
    close,
    denoiser,
    heeding,
    log_prob,
    sampler,
)
from oracles import index_of
from scipy import stats
from torch import Tensor, nn

import edlm
from edlm.likelihood import enumeration, hidden_markov
from edlm.nn import networks
from edlm.nn.attention import Cache
from edlm.nn.networks import Transformer
from edlm.samplers import pipelines, plans
from edlm.samplers.corrections import Autoregressive

# ---- The law


@pytest.mark.parametrize("plan", [plans.Grid(1), plans.LeftToRight(1), plans.LeftToRight(3)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_its_enumerated_law_is_that_of_the_ar_model_whatever_the_denoiser_is(seed, plan) -> None:
    close(enumeration.law(sampler(denoiser(seed), plan=plan), LENGTH).flatten(), log_prob(SEQUENCES).sum(-1).exp())


def test_the_law_of_a_decoder_of_torchtune_is_that_decoders_own() -> None:
    network = ar_decoder(length=LENGTH)
    law = enumeration.law(sampler(law=Autoregressive(network, MASK)), LENGTH).flatten()
    close(law, log_prob(SEQUENCES, network).sum(-1).exp(), atol=1e-6)  # its norms are float32


def two_at_a_time() -> Tensor:
    """The law of texts of which a pass draws all masks in order and keeps any two: by plain loops, (m^l,)."""
    law, own = torch.zeros(len(SEQUENCES), dtype=torch.float64), log_prob(SEQUENCES)
    pairs = list(itertools.combinations(range(LENGTH), 2))
    for first in pairs:
        key = SEQUENCES[:, first[0]] * SYMBOLS + SEQUENCES[:, first[1]]
        before = torch.zeros(SYMBOLS**2, dtype=torch.float64).index_add(0, key, own.sum(-1).exp())[key]
        rest = [place for place in range(LENGTH) if place not in first]
        law += before * own[:, rest].sum(-1).exp() / len(pairs)
    return law


def test_of_a_scattered_plan_what_is_not_kept_is_summed_out() -> None:
    """Two of four in any order: `q(x^S)` with what stands left of S drawn from the AR model and forgotten."""
    close(enumeration.law(sampler(plan=plans.TokensPerPass(2)), LENGTH).flatten(), two_at_a_time())


STARTS = {"nothing": None, "prefix": torch.tensor([1, 2]), "infilling": torch.tensor([2, MASK, 0, MASK])}
MANNERS = {
    "anew": {"ahead": 2, "context": 3, "anew": True},
    "kept": {"ahead": 3, "context": None, "anew": False},
}


def soft() -> Transformer:
    """Every text likely enough to be counted."""
    network = ar_network()
    with torch.no_grad():
        network.head.weight.mul_(0.5)
        network.head.bias.mul_(0.5)
    return network


def law_of(network: Transformer, start: Tensor | None, temperature: float) -> Tensor:
    """`prod_{i masked} p_AR(x_i | x_<i)` of every text with the given tokens, (m^l,)."""
    given_ = torch.full((LENGTH,), MASK)
    if start is not None:
        given_[: len(start)] = start
    terms = torch.where(given_ == MASK, log_prob(SEQUENCES, network, temperature), 0.0)
    return torch.where(((given_ == SEQUENCES) | (given_ == MASK)).all(-1), terms.sum(-1).exp(), 0.0)


def p_value(tokens: Tensor, law: Tensor) -> float:
    """Of Pearson's test; texts of which fewer than five are expected count as one."""
    counts, wanted = torch.bincount(index_of(tokens, SYMBOLS), minlength=len(law)), len(tokens) * law
    assert not counts[law == 0].any()
    rare = wanted < 5
    cells = [torch.cat([each[~rare], each[rare].sum().unsqueeze(0)]) for each in (counts.double(), wanted)]
    found, expected = (each[cells[1] > 0] for each in cells)
    return float(stats.chisquare(found, expected).pvalue)


@pytest.mark.parametrize("manner", MANNERS.values(), ids=MANNERS)
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_texts_have_the_law_of_the_ar_model(start, manner) -> None:
    """Chi-square of 6,000 texts: false alarms 1e-4 for each of 6; a law 15 % hotter fails."""
    made = sampler(law=Autoregressive(soft(), MASK, **manner), proposal=edlm.samplers.Proposal(1.2))
    drawn = edlm.sample(pipelines.pipeline(made, LENGTH), 6_000, seed=3, prompt=start)
    assert (drawn["info", "rounds"].sum(1) > 1).any()
    assert p_value(drawn["tokens"], law_of(soft(), start, 1.2)) > 1e-4
    assert p_value(drawn["tokens"], law_of(soft(), start, 1.2 * 1.3)) < 1e-4


def test_of_a_scattered_plan_texts_have_the_law_that_is_enumerated() -> None:
    """Chi-square of 6,000 texts, false alarms 1e-4; the law of the plan from left to right fails."""
    network = heeding(LENGTH, 5.0)
    made = sampler(law=Autoregressive(network, MASK, ahead=2), plan=plans.TokensPerPass(2))
    drawn = edlm.sample(pipelines.pipeline(made, LENGTH), 6_000, seed=4)["tokens"]
    assert p_value(drawn, enumeration.law(made, LENGTH).flatten()) > 1e-4
    assert p_value(drawn, law_of(network, None, 1.0)) < 1e-4


# ---- A source of a known law


class OfSource(nn.Module):
    """A hidden Markov model as a causal network: its cache are the tokens, its states the laws of the next one."""

    def __init__(self, source: hidden_markov.Source, max_length: int) -> None:
        super().__init__()
        self.source, self.max_length = source, max_length
        self.head = networks.Head(source.num_symbols + 1, source.num_symbols + 1, bias=False)
        nn.init.eye_(self.head.weight)
        self.double()

    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        start, empty = torch.zeros_like(tokens[:, 0]), self.empty_cache(len(tokens), 0)
        return builders.at(self.follow(tokens, start, empty)[0], positions)

    def follow(self, tokens: Tensor, start: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        (b, m), symbols, states = tokens.shape, self.source.num_symbols, []
        for place in range(m):
            law = torch.zeros(b, symbols + 1, dtype=torch.float64)
            for begin in set(start.tolist()):
                rows = start == begin
                text = torch.cat([cache.keys[0, rows, 0, :begin, 0].long(), tokens[rows, : place + 1]], dim=1)[:, 1:]
                one_more = [torch.cat([text, torch.full_like(tokens[rows, :1], each)], 1) for each in range(symbols)]
                found = [hidden_markov.log_next(self.source, each)[:, -1] for each in one_more]
                law[rows, :symbols] = torch.stack(found, dim=1)
            states.append(law)
        own = tokens.double()[None, :, None, :, None]
        return torch.stack(states, dim=1), Cache(own, own)

    def empty_cache(self, b: int, length: int) -> Cache:
        return Cache(*torch.zeros(2, 1, b, 1, length, 1, dtype=torch.float64))


def test_of_an_exact_ar_model_texts_have_the_law_of_the_source() -> None:
    """Hidden Markov model, its exact denoiser drafting: chi-square of 2,000 texts, false alarms 1e-4; few refusals."""
    source = hidden_markov.random_hidden_markov(0, 2, SYMBOLS, strength=0.6)
    own = hidden_markov.denoiser(source, LENGTH)
    made = sampler(own, Autoregressive(OfSource(source, LENGTH), MASK, ahead=2))
    out = edlm.sample(pipelines.pipeline(made, LENGTH), 2_000, seed=0)
    law = hidden_markov.log_prob(source, SEQUENCES).exp()
    assert p_value(out["tokens"], law) > 1e-4
    assert out["info", "rounds"].sum(1).double().mean() < 2.6
    close(enumeration.law(made, LENGTH).flatten(), law)
