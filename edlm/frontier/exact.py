"""Figures of a sampler beside a source of a known law: exact distances, where texts are few, bounds, samples."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edlm.evaluation import quality
from edlm.frontier import draws
from edlm.likelihood import bounds, enumeration, hidden_markov
from edlm.likelihood.enumeration import Transitions
from edlm.likelihood.estimates import Estimate, estimate
from edlm.likelihood.hidden_markov import Source
from edlm.samplers import plans
from edlm.samplers.sampler import Sampler

Figures = dict[str, list[float]]  # name -> [mean, standard error]
_TOKENS = 1 << 16  # of the texts that are bounded at a time
Known = list[tuple[Sampler, Transitions]]  # what steps write, of samplers on any plan


class Beside(NamedTuple):
    """The company of samplers: a source, texts of it to compare with and texts of it to be bounded, and the seed.

    entropy: of the source's texts in nats per token, as these texts estimate it. distances: of the pairs of tokens.
    """

    source: Source
    length: int
    entropy: Estimate
    bounded: Tensor
    distances: Sequence[int]
    seed: int
    replicates: int

    @property
    def is_small(self) -> bool:
        """Whether the law of a sampler can be enumerated."""
        return (2 * self.source.num_symbols + 1) ** self.length <= enumeration.MOST_TRANSITIONS


def of_texts(tokens: Tensor, beside: Beside) -> Figures:
    """Estimate `-log q` per token less the entropy, which is no KL, and the total variation of pairs of tokens."""
    nll = estimate(-hidden_markov.log_prob(beside.source, tokens) / beside.length)
    error = math.hypot(nll.standard_error, beside.entropy.standard_error)
    figures = {"excess": [nll.mean - beside.entropy.mean, error]}
    for distance in beside.distances:
        figures[f"pairs_{distance}"] = _pairs(tokens, distance, beside)
    return figures


def of_sampler(sampler: Sampler, beside: Beside, known: Known | None = None) -> Figures:
    """Compute the exact total variation and KL in nats per token of a small space, and a bound of the KL at any length.

    KL is `E_q log(q / p)`, from the law of the source to that of the sampler, the nats that coding with it would cost.
    The bound is the mean over texts of the source of what `bounds` says of the sampler, plus `log q`. What is not known
    of a sampler is left out. known: what steps write, kept for samplers that differ in their plan alone.
    """
    figures: Figures = {}
    if beside.is_small and not enumeration.missing(sampler):
        figures |= _exact(sampler, beside, [] if known is None else known)
    if not bounds.missing(sampler):
        found = estimate(torch.cat([_of_rows(sampler, row, beside) for row in _rows(beside)]))
        figures["kl_bound"] = [found.mean, found.standard_error]
    return figures


def _rows(beside: Beside) -> Iterable[Tensor]:
    """Number the texts, so many at a time that they take little memory."""
    return torch.arange(len(beside.bounded)).split(max(1, _TOKENS // beside.length))


def _of_rows(sampler: Sampler, row: Tensor, beside: Beside) -> Tensor:
    """Bound the KL of these texts, in nats per token (n,)."""
    texts = beside.bounded[row]
    bound = bounds.of_sampler(sampler, texts, torch.tensor(beside.seed), row).nats
    return bound + hidden_markov.log_prob(beside.source, texts) / beside.length


def _law(sampler: Sampler, length: int, known: Known) -> Tensor:
    if sampler.remasking is not None:  # its steps are not the same for every plan
        return enumeration.law(sampler, length)
    of_any_plan = sampler.replace(plan=plans.first_hitting())
    steps = next((steps for each, steps in known if each == of_any_plan), None)
    if steps is None:
        steps = enumeration.transitions_of(of_any_plan, length)
        known.append((of_any_plan, steps))
    return enumeration.law_of(steps, sampler, length)


def _exact(sampler: Sampler, beside: Beside, known: Known) -> Figures:
    symbols = beside.source.num_symbols
    law = _law(sampler, beside.length, known).flatten()
    digits = symbols ** torch.arange(beside.length - 1, -1, -1)
    texts = torch.arange(symbols**beside.length).unsqueeze(-1) // digits % symbols
    log_q = hidden_markov.log_prob(beside.source, texts)
    q = log_q.exp()
    kl = torch.where(q > 0.0, q * (log_q - law.log()), 0.0).sum() / beside.length
    return {"total_variation": [float((law - q).abs().sum() / 2), 0.0], "kl": [float(kl), 0.0]}


def _pairs(tokens: Tensor, distance: int, beside: Beside) -> list[float]:
    """Total variation of the law of two tokens so far apart, its error bootstrapped over texts."""
    symbols, n = beside.source.num_symbols, len(tokens)
    wanted = hidden_markov.pair_law(beside.source, beside.length, distance).flatten()
    numbers = tokens[:, :-distance] * symbols + tokens[:, distance:]

    def far(weights: Tensor) -> Tensor:
        each = weights.repeat_interleave(numbers.shape[1])
        law = torch.bincount(numbers.flatten(), each, minlength=symbols**2)
        return (law / law.sum() - wanted).abs().sum() / 2

    found = quality.bootstrap(far, [n], beside.seed, beside.replicates)
    return [found.mean, found.standard_error]


def of_costs(costs: Mapping[str, Any]) -> Figures:
    """Average passes over texts; ESS and log-weights over those that an energy corrected; seconds stay as they are."""
    figures: Figures = {"seconds": [costs["seconds"], 0.0]}
    for name in draws.PER_TEXT:
        known = [value for value in costs[name] if value is not None]
        if len(known) > 1:  # an error needs two
            found = estimate(torch.tensor(known, dtype=torch.float64))
            figures[name] = [found.mean, found.standard_error]
    return figures
