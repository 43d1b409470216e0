"""The curve of likelihoods: what is compared with what, and how its picture and its errors are made."""

import itertools

import pytest
import torch
from builders import tiny_denoiser
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import edlm
from edlm.data.pieces import Excerpt
from edlm.evaluation import figures
from edlm.evaluation.figures import TextSet
from edlm.evaluation.scores import Scores
from edlm.frontier import curve, curve_plot
from edlm.likelihood import estimates
from edlm.process import noise
from edlm.process.noise import Stream
from edlm.samplers.corrections import ChainRule
from edlm.samplers.sampler import Sampler


def test_a_rule_is_told_by_its_words_and_a_way_by_what_writes() -> None:
    sampler = Sampler(tiny_denoiser(), edlm.plans.Ranked(4, by="margin"))
    assert curve.rule_of(sampler) == curve.rule_of(sampler.replace(plan=edlm.plans.Ranked(1, by="margin")))
    assert curve.rule_of(sampler) == "ranked margin"
    assert curve.rule_of(sampler.replace(plan=edlm.plans.Ranked(4))) == "ranked confidence"
    weighed = sampler.replace(correction=ChainRule(), candidates=8)
    ways = [curve.way_of(each) for each in (sampler, weighed.replace(candidates=1, selection="speculative"), weighed)]
    assert ways == ["plain", "in order", "chain_rule, k=8"]


def test_the_error_of_an_excess_is_paired() -> None:
    """2,000 repetitions of 30 texts, which differ by far more than two settings do: the error is the spread there is.

    A chi-square of 2,000 differs from its mean by 16 % of it with probability below 1e-6.
    """
    n, repetitions = 30, 2_000
    normal = torch.special.ndtri(noise.grid(0, torch.arange(3 * repetitions), 0, Stream.EVALUATION, n))
    texts, one, other = normal.view(3, repetitions, n)
    values, others = 2.2 + 0.4 * texts + 0.02 * one, 2.0 + 0.4 * texts + 0.02 * other
    tokens = torch.full((n,), 64)
    found = [estimates.excess(*each, tokens) for each in zip(values, others, strict=True)]
    ratio = torch.tensor([each.mean for each in found])
    errors = torch.tensor([each.standard_error for each in found])
    assert float(errors.square().mean()) == pytest.approx(float(ratio.var()), rel=0.16)
    assert float(ratio.mean()) == pytest.approx(0.1, abs=0.002)
    alone = estimates.estimate(values[0]).standard_error / 2.0
    assert float(errors.mean()) < 0.3 * alone


def test_an_excess_counts_every_token_once() -> None:
    values, others = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0])
    assert estimates.excess(values, others, torch.tensor([1, 3])).mean == pytest.approx(10 / 7 - 1)
    same = estimates.excess(values, values, torch.tensor([1, 3]))
    assert (same.mean, same.standard_error) == (0.0, 0.0)
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        estimates.excess(values[:1], others[:1], torch.tensor([1]))


def test_values_stand_in_the_order_of_the_texts_whatever_their_lengths() -> None:
    excerpts = [Excerpt(torch.arange(length), 0) for length in (3, 5, 4, 5, 3, 4, 2)]
    texts = TextSet("some", excerpts, 7, 26)

    def score(tokens: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        return Scores({"length": scored.sum(1).double(), "row": row.double()}, {"denoiser": len(row)}, steps=row + 1)

    scores, tokens, _ = figures.collect("m", score, texts, 2, 0, torch.device("cpu"))
    assert tokens.tolist() == scores.nats["length"].tolist() == [3, 5, 4, 5, 3, 4, 2]
    assert scores.nats["row"].tolist() == list(range(7))
    assert scores.steps is not None
    assert scores.steps.tolist() == list(range(1, 8))
    assert scores.passes == {"denoiser": 7}
    assert scores.ess is None


@given(places=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12), least=st.floats(0.01, 0.1))
def test_names_are_moved_apart_and_keep_their_order(places: list[float], least: float) -> None:
    found = curve_plot.spaced(places, least)
    order = sorted(range(len(places)), key=lambda number: places[number])
    for before, after in itertools.pairwise(order):
        assert found[after] >= found[before] + least - 1e-12
    assert all(moved >= place for moved, place in zip(found, places, strict=True))
    assert found[order[0]] == places[order[0]]


def test_labels_are_words() -> None:
    curve.labels("labels", {"tokens per pass": "random"})
    for wrong in ({"a": 1}, ["a"], "a", {1: "a"}):
        with pytest.raises(ValueError, match=r"labels = .* must be a section with a name for each rule"):
            curve.labels("labels", wrong)
