"""Statistics of samples: diversity, and distance to held-out text. Errors are bootstrapped over texts.

A text is a row of token ids, int64 (l,). Every statistic is a function of weights over texts, which are all one as
measured. A bootstrap replicate draws as many texts again, with replacement, by keyed uniforms (Efron 1979).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from edlm.likelihood.estimates import Estimate
from edlm.process import noise
from edlm.process.noise import Stream

_TOGETHER = 1 << 18  # uniforms that are drawn in one call

Statistic = Callable[..., Tensor]  # weights over the texts of each set, (n,) float64 each, to a scalar


class Grams(NamedTuple):
    """All n-grams of some texts: the number of each, and the text it stands in, int64 (count,); how many differ."""

    number: Tensor
    owner: Tensor
    distinct: int


def bootstrap(statistic: Statistic, sizes: Sequence[int], seed: int, replicates: int = 200) -> Estimate:
    """Estimate a statistic and its standard deviation over bootstrap replicates.

    Args:
        statistic: a function of weights over the texts of each set.
        sizes: number of texts of each set.
        seed: seed of the draws.
        replicates: how many are drawn.

    Returns:
        The value, its error and the number of texts of the first set.

    Raises:
        ValueError: unless every set has two texts.

    Example:
        >>> lengths = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        >>> bootstrap(mean(lengths), sizes=[3], seed=0).mean
        2.0
    """
    if min(sizes) < 2:
        raise ValueError(f"a bootstrap error needs at least 2 texts, got {min(sizes)}")
    value = statistic(*(torch.ones(size, dtype=torch.float64) for size in sizes))
    numbers = 2 * torch.arange(replicates)
    of_sets = (_weights(size, seed, numbers + which) for which, size in enumerate(sizes))
    drawn = [statistic(*weights) for weights in zip(*of_sets, strict=True)]
    return Estimate(float(value), float(torch.stack(drawn).std()), sizes[0])


def replicate_weights(size: int, seed: int, replicates: int = 200) -> Tensor:
    """Draw the weights over texts of a bootstrap's replicates.

    For statistics of several sets whose texts belong together one by one, drawn together.

    Args:
        size: number of texts.
        seed: seed of the draws.
        replicates: how many are drawn.

    Returns:
        Weights, float64 (replicates, size): those that `bootstrap` gives a first set.

    Raises:
        ValueError: for fewer than two texts.

    Example:
        >>> replicate_weights(4, seed=0, replicates=2).sum(-1).tolist()
        [4.0, 4.0]
    """
    if size < 2:
        raise ValueError(f"a bootstrap error needs at least 2 texts, got {size}")
    return torch.stack([*_weights(size, seed, 2 * torch.arange(replicates))])


def half_sampling(statistic: Statistic, size: int, seed: int, replicates: int = 200) -> Estimate:
    """Estimate a statistic of one set, and its deviation over halves of the set, drawn without replacement.

    For statistics that a text drawn twice would spoil: its copy adds no new n-grams. A half of m of n texts varies by
    `(n - m) / m` times the variance of the whole, which is taken out.

    Args:
        statistic: a function of weights over the texts.
        size: number of texts.
        seed: seed of the draws.
        replicates: how many halves are drawn.

    Returns:
        The value, its error and the number of texts.

    Raises:
        ValueError: for fewer than two texts.

    Example:
        >>> texts = [torch.tensor([0, 1, 0]), torch.tensor([2, 3, 2])]
        >>> half_sampling(distinct(grams(texts, 2)), size=2, seed=0).mean
        1.0
    """
    if size < 2:
        raise ValueError(f"an error by halves needs at least 2 texts, got {size}")
    half = size // 2
    value = statistic(torch.ones(size, dtype=torch.float64))
    ranks = (some.argsort().argsort() for some in _uniforms(size, seed, torch.arange(replicates)))
    drawn = torch.stack([statistic(weights) for some in ranks for weights in (some < half).double()])
    return Estimate(float(value), float(drawn.std()) * (half / (size - half)) ** 0.5, size)


def grams(texts: Sequence[Tensor], n: int) -> Grams:
    """Number the n-grams of texts, equal ones alike.

    Args:
        texts: int64 (l,) each; one shorter than n has no n-gram.
        n: tokens of an n-gram.

    Returns:
        The n-grams of all texts.

    Raises:
        ValueError: if no text has n tokens.

    Example:
        >>> grams([torch.tensor([5, 7, 5, 7])], 2).number.tolist()
        [0, 1, 0]
    """
    if max((len(text) for text in texts), default=0) < n:
        raise ValueError(f"n-grams of n = {n} need a text of at least {n} tokens")
    tokens = torch.cat(list(texts))
    owner = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(text) for text in texts]))
    base, number = int(tokens.max()) + 1, tokens
    for later in range(1, n):
        number = (number[:-1] * base + tokens[later:]).unique(return_inverse=True)[1]  # small again: no overflow
    inside = owner[: len(number)] == owner[n - 1 :]
    values, number = number[inside].unique(return_inverse=True)
    return Grams(number, owner[: len(inside)][inside], len(values))


def unigram_entropy(texts: Sequence[Tensor]) -> Tensor:
    """Compute the entropy of token frequencies in each text (Zheng et al. 2024, arXiv 2409.02908).

    It is low where a text repeats itself. A sampler that sharpens its law lowers it, and its judged perplexity with it.

    Args:
        texts: int64 (l,) each.

    Returns:
        Nats, float64 (n,).

    Example:
        >>> unigram_entropy([torch.tensor([0, 0, 1, 1])])  # log 2
        tensor([0.6931], dtype=torch.float64)
    """
    return torch.stack([_entropy(torch.bincount(text).double()) for text in texts])


def repetition(texts: Sequence[Tensor], n: int) -> Tensor:
    """Compute the share of a text's n-grams that stood in it before (seq-rep-n, Welleck et al. 2020).

    Args:
        texts: int64 (l,) each.
        n: tokens of an n-gram.

    Returns:
        Shares, float64 (n,).

    Raises:
        ValueError: if a text has fewer than n tokens.

    Example:
        >>> repetition([torch.tensor([0, 1, 0, 1])], 1)
        tensor([0.5000], dtype=torch.float64)
    """
    return torch.stack([1.0 - distinct(grams([text], n))(torch.ones(1, dtype=torch.float64)) for text in texts])


def distinct(found: Grams) -> Statistic:
    """Build distinct-n: distinct n-grams over all n-grams, of all texts together (Li et al. 2016, arXiv 1510.03055).

    It falls as texts are added: compare equal numbers of texts of equal length. Take its error from `half_sampling`.

    Args:
        found: the n-grams of the texts.

    Returns:
        A function of weights over the texts.

    Example:
        >>> distinct(grams([torch.tensor([0, 1, 0, 1])], 1))(torch.ones(1, dtype=torch.float64))
        tensor(0.5000, dtype=torch.float64)
    """

    def statistic(weights: Tensor) -> Tensor:
        counts = _histogram(found, weights)
        return (counts > 0).double().sum() / counts.sum()

    return statistic


def divergence(found: Grams) -> Statistic:
    """Build the Jensen-Shannon divergence in nats, at most log 2, between the n-grams of two sets of texts.

    Finite sets of the same law have a distance above zero too, larger for larger n and fewer texts. Report it beside
    the distance of two sets of real text.

    Args:
        found: the n-grams of both sets, the texts of the first one first.

    Returns:
        A function of weights over the texts of either set.

    Example:
        >>> found = grams([torch.tensor([0, 0]), torch.tensor([1, 1])], 1)
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> divergence(found)(one, one)  # log 2
        tensor(0.6931, dtype=torch.float64)
    """

    def statistic(samples: Tensor, reference: Tensor) -> Tensor:
        p = _histogram(found, torch.cat([samples, torch.zeros_like(reference)]))
        q = _histogram(found, torch.cat([torch.zeros_like(samples), reference]))
        middle = p / p.sum() + q / q.sum()
        return (_entropy(middle) - (_entropy(p) + _entropy(q)) / 2).clamp(min=0.0)

    return statistic


def mean(values: Tensor) -> Statistic:
    """Build the mean of a value per text.

    Args:
        values: (n,).

    Returns:
        A function of weights over the texts.

    Example:
        >>> mean(torch.tensor([1.0, 3.0]))(torch.ones(2))
        tensor(2.)
    """
    return lambda weights: (weights * values).sum() / weights.sum()


def perplexity(nll: Tensor, tokens: Tensor) -> Statistic:
    """Build `exp(sum nll / sum tokens)`, over all tokens of all texts.

    Args:
        nll: nats of each text, (n,).
        tokens: number of each text's tokens, (n,).

    Returns:
        A function of weights over the texts.

    Example:
        >>> perplexity(torch.tensor([0.0, 1.3863]), torch.tensor([1.0, 1.0]))(torch.ones(2))  # sqrt(4)
        tensor(2.0000)
    """
    return lambda weights: ((weights * nll).sum() / (weights * tokens).sum()).exp()


def _histogram(found: Grams, weights: Tensor) -> Tensor:
    return torch.bincount(found.number, weights[found.owner], minlength=found.distinct)


def _entropy(counts: Tensor) -> Tensor:
    """Compute the entropy in nats of the frequencies of counts, zeros among them: (v,) to ()."""
    share = counts / counts.sum()
    return -torch.special.xlogy(share, share).sum()


def _uniforms(size: int, seed: int, numbers: Tensor) -> Iterator[Tensor]:
    """Draw a uniform for each text in the replicate of each number (r,): float64 (some, size), together all of r."""
    for some in numbers.split(max(1, _TOGETHER // size)):
        yield noise.uniforms(seed, torch.arange(size), some.unsqueeze(-1), Stream.EVALUATION).squeeze(-1)


def _weights(size: int, seed: int, numbers: Tensor) -> Iterator[Tensor]:
    """Count how often each text is drawn in `size` draws with replacement, for each number: float64 (size,)."""
    for uniforms in _uniforms(size, seed, numbers):
        drawn = torch.zeros_like(uniforms)
        yield from drawn.scatter_add_(1, (uniforms * size).long(), torch.ones_like(uniforms))
