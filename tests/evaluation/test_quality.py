"""Figures of samples: exact on texts small enough to count by hand, their errors those of the bootstrap."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edlm.evaluation import quality
from edlm.likelihood.estimates import Estimate

texts_of_ids = st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=8), min_size=1, max_size=5)


def texts(*rows: list[int]) -> list[Tensor]:
    return [torch.tensor(row) for row in rows]


def ones(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.float64)


def counted(rows: list[list[int]], n: int) -> Counter:
    return Counter(tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1))


@given(texts_of_ids, st.integers(1, 3))
def test_grams_are_counted_as_by_hand_and_never_across_texts(rows: list[list[int]], n: int) -> None:
    found = quality.grams(texts(*rows), n)
    counts = torch.bincount(found.number, minlength=found.distinct)
    assert sorted(counts.tolist()) == sorted(counted(rows, n).values())
    per_text = torch.bincount(found.owner, minlength=len(rows)).tolist()
    assert per_text == [len(row) - n + 1 for row in rows]


def test_ids_as_large_as_a_real_vocabulary_do_not_overflow() -> None:
    row = torch.tensor([50256, 50255, 50256, 50255, 50256, 7, 50256, 50255])
    assert quality.grams([row], 4).distinct == len(counted([row.tolist()], 4))


def test_a_text_that_is_too_short_is_named() -> None:
    with pytest.raises(ValueError, match="need a text of at least 3 tokens"):
        quality.grams(texts([1, 2], [0]), 3)
    with pytest.raises(ValueError, match="need a text of at least 1 tokens"):
        quality.grams([], 1)
    with pytest.raises(ValueError, match="need a text of at least 2 tokens"):
        quality.repetition(texts([1, 2], [0]), 2)


def test_unigram_entropy_is_that_of_each_text() -> None:
    values = quality.unigram_entropy(texts([0, 0, 0, 0], [0, 1, 0, 1], [5, 6, 7, 8]))
    torch.testing.assert_close(values, torch.tensor([0.0, math.log(2), math.log(4)], dtype=torch.float64))


def test_repetition_is_the_share_of_grams_seen_before() -> None:
    values = quality.repetition(texts([0, 1, 2, 3, 4], [0, 1, 0, 1, 0], [1, 1, 1, 1, 1]), 2)
    torch.testing.assert_close(values, torch.tensor([0.0, 0.5, 0.75], dtype=torch.float64))


@given(texts_of_ids, st.integers(1, 3))
def test_distinct_is_the_share_of_grams_that_differ_over_all_texts(rows: list[list[int]], n: int) -> None:
    found = counted(rows, n)
    value = quality.distinct(quality.grams(texts(*rows), n))(ones(len(rows)))
    assert value.item() == pytest.approx(len(found) / found.total())


def test_weights_count_a_text_as_often() -> None:
    twice = quality.distinct(quality.grams(texts([0, 1], [0, 2]), 1))(torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert twice.item() == pytest.approx(3 / 6)


def test_divergence_is_zero_for_equal_laws_and_log_2_for_disjoint_ones() -> None:
    same = quality.divergence(quality.grams(texts([0, 1, 0], [1, 0, 1], [0, 1, 0], [1, 0, 1]), 2))
    assert same(ones(2), ones(2)).item() == pytest.approx(0.0, abs=1e-12)
    apart = quality.divergence(quality.grams(texts([0, 1], [0, 1], [2, 3]), 1))
    assert apart(ones(2), ones(1)).item() == pytest.approx(math.log(2))


@given(texts_of_ids, texts_of_ids)
def test_divergence_is_the_formula_of_jensen_and_shannon(one: list[list[int]], other: list[list[int]]) -> None:
    p, q = counted(one, 2), counted(other, 2)
    total = 0.0
    for a, b in (((p, q)), ((q, p))):
        for gram, count in a.items():
            share = count / a.total()
            total += share * math.log(share / ((share + b[gram] / b.total()) / 2)) / 2
    found = quality.divergence(quality.grams(texts(*one, *other), 2))(ones(len(one)), ones(len(other)))
    assert found.item() == pytest.approx(total, abs=1e-9)
    back = quality.divergence(quality.grams(texts(*other, *one), 2))(ones(len(other)), ones(len(one)))
    assert back.item() == pytest.approx(found.item(), abs=1e-9)


def test_perplexity_is_over_all_tokens() -> None:
    nll, tokens = torch.tensor([2.0, 10.0], dtype=torch.float64), torch.tensor([1, 5])
    assert quality.perplexity(nll, tokens)(ones(2)).item() == pytest.approx(math.exp(2.0))


# ---- Errors


def test_the_bootstrap_error_of_a_mean_is_its_standard_error() -> None:
    # The deviation over r replicates has a relative error of 1 / sqrt(2 r), 1.6 % here.
    values = torch.linspace(0, 1, 50, dtype=torch.float64) ** 2
    result = quality.bootstrap(quality.mean(values), [50], seed=0, replicates=2000)
    assert result.mean == pytest.approx(values.mean().item())
    expected = values.std(correction=0).item() / math.sqrt(50)
    assert result.standard_error == pytest.approx(expected, rel=0.08)
    assert result.n == 50


def test_both_sets_of_a_divergence_are_resampled() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, (20,), generator=generator) for _ in range(12)]
    statistic = quality.divergence(quality.grams(rows, 1))
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(one: Tensor, other: Tensor) -> Tensor:
        seen.append((one, other))
        return statistic(one, other)

    result = quality.bootstrap(spy, [5, 7], seed=1, replicates=20)
    assert result.standard_error > 0
    assert all((one.sum(), other.sum()) == (5, 7) for one, other in seen)
    assert len({tuple(one.tolist()) for one, _ in seen}) > 10
    assert len({tuple(other.tolist()) for _, other in seen}) > 10
    assert quality.bootstrap(statistic, [5, 7], seed=1, replicates=20) == result, "a function of the seed"
    assert quality.bootstrap(statistic, [5, 7], seed=2, replicates=20) != result


@pytest.mark.parametrize("n", [50, 51, 3])
def test_the_error_by_halves_of_a_mean_is_its_standard_error(n: int) -> None:
    values = torch.linspace(0, 1, n, dtype=torch.float64) ** 2
    result = quality.half_sampling(quality.mean(values), n, seed=0, replicates=2000)
    assert result.mean == pytest.approx(values.mean().item())
    assert result.standard_error == pytest.approx(values.std().item() / math.sqrt(n), rel=0.08)


def test_texts_that_share_nothing_leave_distinct_no_error() -> None:
    statistic = quality.distinct(quality.grams(texts([0, 1], [2, 3], [4, 5], [6, 7]), 1))
    assert quality.half_sampling(statistic, 4, seed=0, replicates=20) == Estimate(1.0, 0.0, 4)
    assert quality.bootstrap(statistic, [4], seed=0, replicates=20).standard_error > 0.05, "what halves are for"


def test_an_error_needs_two_texts() -> None:
    with pytest.raises(ValueError, match="at least 2 texts, got 1"):
        quality.half_sampling(quality.mean(ones(1)), 1, seed=0)
    with pytest.raises(ValueError, match="at least 2 texts, got 1"):
        quality.bootstrap(quality.mean(ones(1)), [1], seed=0)


def test_figures_are_estimates() -> None:
    assert isinstance(quality.bootstrap(quality.mean(ones(3)), [3], seed=0, replicates=3), Estimate)
    assert all(a == b for a, b in pairwise(quality.unigram_entropy(texts([0], [1])).tolist()))
