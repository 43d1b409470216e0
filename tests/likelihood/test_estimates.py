"""Means with their errors, worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from edlm.likelihood import estimates
from edlm.likelihood.estimates import Estimate


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_a_mean_over_rows_has_the_error_of_the_mean() -> None:
    assert estimates.estimate(values(1.0, 3.0)) == Estimate(2.0, 1.0, 2)
    assert estimates.estimate(values(0.0, 0.0, 3.0)) == Estimate(1.0, pytest.approx(1.0), 3)


def test_rows_count_as_many_times_as_they_have_tokens() -> None:
    found = estimates.estimate(values(1.0, 4.0), torch.tensor([2, 1]))
    assert found.mean == pytest.approx(2.0)
    assert found.standard_error == pytest.approx(math.sqrt(2.0 * (4.0 + 4.0)) / 3.0)
    assert found.n == 2
    assert estimates.estimate(values(1.0, 4.0), torch.tensor([5, 5])) == estimates.estimate(values(1.0, 4.0))


def test_an_excess_is_a_ratio_with_the_error_of_what_is_left() -> None:
    found = estimates.excess(values(3.0, 3.0), values(2.0, 1.0), torch.tensor([1, 2]))
    assert found.mean == pytest.approx(9.0 / 4.0 - 1.0)
    left = [3.0 - 2.25 * 2.0, 6.0 - 2.25 * 2.0]
    assert found.standard_error == pytest.approx(math.sqrt(2.0 * sum(x * x for x in left)) / 4.0)
    assert found.n == 2
    same = estimates.excess(values(3.0, 6.0), values(2.0, 4.0), torch.tensor([1, 1]))
    assert (same.mean, same.standard_error) == (pytest.approx(0.5), pytest.approx(0.0, abs=1e-12))


@pytest.mark.parametrize("n", [0, 1])
def test_one_row_has_no_error(n: int) -> None:
    for call in (
        lambda: estimates.estimate(torch.ones(n)),
        lambda: estimates.excess(torch.ones(n), torch.ones(n), torch.ones(n)),
    ):
        with pytest.raises(ValueError, match=f"^an error bar needs at least 2 rows, got {n}$"):
            call()


def test_bits_and_perplexity_are_those_of_nats() -> None:
    found = Estimate(3.0 * math.log(2), 0.5 * math.log(2), 4)
    assert (found.bits, found.bits_error) == (pytest.approx(3.0), pytest.approx(0.5))
    assert found.perplexity == pytest.approx(8.0)
    assert Estimate(709.0, 0.0, 2).perplexity == math.exp(709.0)
    assert Estimate(710.0, 0.0, 2).perplexity == math.inf
