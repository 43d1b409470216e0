"""An estimate with its number of texts and its error."""

import math
import sys
from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A mean over n independent rows with its standard error, in the unit of its values.

    `bits` and `perplexity` are for those in nats per token.
    """

    mean: float
    standard_error: float
    n: int

    @property
    def bits(self) -> float:
        """The mean in bits: bits per character for a character vocabulary."""
        return self.mean / math.log(2)

    @property
    def bits_error(self) -> float:
        """The standard error in bits."""
        return self.standard_error / math.log(2)

    @property
    def perplexity(self) -> float:
        """`exp(mean)`, infinite where no float64 holds it."""
        return math.exp(self.mean) if self.mean < math.log(sys.float_info.max) else math.inf


def estimate(values: Tensor, tokens: Tensor | None = None) -> Estimate:
    """Estimate the mean of per-row values (n,) and its error; with `tokens` (n,) every row counts that many times.

    The mean is then `sum c v / sum c`, over tokens, and its error that of a ratio of two means over rows:
    `sqrt(n / (n - 1) sum (c (v - mean))^2) / sum c`. Raises ValueError for fewer than two rows.
    """
    n = values.numel()
    if n < 2:
        raise ValueError(f"an error bar needs at least 2 rows, got {n}")
    values = values.double()
    share = torch.ones_like(values) if tokens is None else tokens.to(values) / tokens.double().mean()
    mean = (share * values).mean()
    spread = (share * (values - mean)).square().sum() / (n - 1)
    return Estimate(float(mean), math.sqrt(float(spread) / n), n)


def excess(values: Tensor, others: Tensor, tokens: Tensor) -> Estimate:
    """Estimate by what share the mean of values (n,) is above that of others on the same rows, each row `tokens` times.

    `sum c v / sum c w - 1`. Both are of the same rows, so what they share is no part of the error:
    `sqrt(n / (n - 1) sum (c (v - r w))^2) / sum c w`, r the ratio. Raises ValueError for fewer than two rows.
    """
    n = values.numel()
    if n < 2:
        raise ValueError(f"an error bar needs at least 2 rows, got {n}")
    own, other = tokens * values.double(), tokens * others.double()
    ratio = own.sum() / other.sum()
    left = (own - ratio * other).square().sum() * n / (n - 1)
    return Estimate(float(ratio) - 1.0, math.sqrt(float(left)) / float(other.sum()), n)
