"""Two-sided bounds of the likelihood where the plan is drawn: K orders of a text instead of one.

A text is written in the order of its plan, and its probability is the mean of `exp ll` over plans, `ll` the
log-probability along one of them. By Jensen's inequality the mean over K of them inside the logarithm is a bound,

    -log p(x) <= L_K = -E log( 1/K sum_k exp ll_k ),

which falls in K (Burda et al. 2015, arXiv 1509.00519); K = 1 is `bounds.of_sampler`. From the other side, as `log u <=
u - 1`, for every psi > 0 that does not depend on the plan of `ll`,

    log p(x) <= log psi + E exp(ll) / psi - 1,

with equality where psi = p. Here psi is the mean over the other K - 1 plans, and each of the K is left out once.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from edlm.likelihood import nelbo, steps
from edlm.process import arguments, noise, particles
from edlm.process.absorbing import RevealPlan
from edlm.process.noise import Stream
from edlm.samplers import planning
from edlm.samplers.sampler import Sampler

RELIABLE_SHARE = 0.5  # of the way of the ESS from 1 to K: below it a few orders carry the mean, and others were not met


class Orders(NamedTuple):
    """Per row, (b,) each, in nats per scored token: one unbiased value of a bound of the NLL from either side.

    upper: of L_K. lower: of TUBE, NaN where K = 1. ess: of the K weights `exp ll`, in [1, K]. unreliable: whether it is
    less than `RELIABLE_SHARE` of the way from 1 to K. Then rare orders carry the mean of `exp ll`. Its estimate is
    still unbiased, but mostly too small, so the lower end is mostly too high.
    denoiser_passes, energy_passes: texts of this row that each network has read, parts of a text by their tokens.
    passes: the number of passes in which the sampler writes the text, a mean over the orders.
    """

    upper: Tensor
    lower: Tensor
    ess: Tensor
    unreliable: Tensor
    denoiser_passes: Tensor
    energy_passes: Tensor
    passes: Tensor


def missing(sampler: Sampler) -> str:
    """Say why a sampler has no bounds of several orders.

    Args:
        sampler: any sampler.

    Returns:
        The reason; an empty text if it has them.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov, orders
        >>> sampler = edlm.samplers.Sampler(hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8))
        >>> orders.missing(sampler)
        ''
    """
    if planning.is_rule(sampler.plan):
        return f"its plan, {sampler.plan}, is a rule: a text has one order, and its likelihood is exact"
    return steps.missing(sampler)


def bound(
    sampler: Sampler, x_0: Tensor, seed: Tensor, row: Tensor, *, num_orders: int, scored: Tensor | None = None
) -> Orders:
    """Draw one unbiased value per row of bounds of `-log q(x_0)` from either side, q the law of the sampler as it runs.

    The values are unbiased for the bounds, not for the likelihood: means over texts have L_K and TUBE as expectations.
    Temperature and nucleus are a part of the law, as in `exact.of_sampler`. The first order is that of
    `bounds.of_sampler`.

    Args:
        sampler: one that has such bounds, see `missing`.
        x_0: texts (b, l).
        seed: of the plans, int64 ().
        row: the key of each row's plans, int64 (b,).
        num_orders: K.
        scored: the positions that count, bool (b, l); the others are given, as in a prompt. None: all count.

    Returns:
        An `Orders` of each row.

    Raises:
        ValueError: with the reason, for a sampler that has none, for num_orders < 1, and for what are no texts,
            keys or scored positions.

    Example:
        >>> import edlm, torch
        >>> from edlm.likelihood import hidden_markov, orders
        >>> source = hidden_markov.random_markov(0, 3)
        >>> sampler = edlm.samplers.Sampler(hidden_markov.denoiser(source, 8))  # exact parts: every order is as good
        >>> texts = hidden_markov.texts(source, 2, 8, seed=1)
        >>> found = orders.bound(sampler, texts, torch.tensor(0), torch.arange(2), num_orders=4)
        >>> torch.allclose(found.upper, found.lower), found.ess.round().tolist()
        (True, [4.0, 4.0])
    """
    reason = missing(sampler)
    if reason:
        raise ValueError(f"{sampler}: {reason}")
    arguments.require_whole("num_orders", num_orders)
    nelbo.check_texts(sampler.denoiser, x_0, scored, row)
    wanted = torch.ones_like(x_0, dtype=torch.bool) if scored is None else scored
    plan = _plans(sampler, wanted, seed, row, num_orders)
    written = steps.of_plan(sampler, plan, x_0.repeat(num_orders, 1), len(x_0))
    log_p = written.log_prob.view(num_orders, -1).T
    denoised, read = (each.view(num_orders, -1).sum(0) / x_0.shape[1] for each in written[1:])
    tokens = wanted.sum(-1)
    unknown = -tokens * math.log(sampler.denoiser.vocab_size)  # a psi as good as any where the others say nothing
    ess = particles.ess(log_p)
    return Orders(
        -log_mean(log_p) / tokens,
        -tube(log_p, unknown) / tokens,
        ess,
        ~(ess - 1.0 >= RELIABLE_SHARE * (num_orders - 1.0)) | torch.full_like(ess, num_orders == 1, dtype=torch.bool),
        denoised,
        read,
        plan.passes.view(num_orders, -1).double().mean(0),
    )


def log_mean(log_p: Tensor) -> Tensor:
    """Compute `log( 1/K sum_k exp log_p_k )`: (b, K) to (b,).

    Args:
        log_p: log-probabilities of a text in each of K orders.

    Returns:
        One unbiased value of a lower bound of `log p`.

    Example:
        >>> from edlm.likelihood import orders
        >>> round(orders.log_mean(torch.tensor([[0.2, 0.4]]).log()).exp().item(), 4)
        0.3
    """
    return log_p.logsumexp(-1) - math.log(log_p.shape[-1])


def tube(log_p: Tensor, unknown: Tensor) -> Tensor:
    """Compute `log psi + exp(log_p_k) / psi - 1`, psi the mean of the others, averaged over k: (b, K) to (b,).

    Args:
        log_p: log-probabilities of a text in each of K orders.
        unknown: `log psi` where the others have no probability at all, (b,).

    Returns:
        One unbiased value of an upper bound of `log p`; NaN for K = 1, where there are no others.

    Example:
        >>> from edlm.likelihood import orders
        >>> even = torch.tensor([[0.25, 0.25, 0.25]]).log()
        >>> round(orders.tube(even, torch.zeros(1)).exp().item(), 4)
        0.25
    """
    k = log_p.shape[-1]
    if k == 1:
        return torch.full_like(unknown, torch.nan, dtype=torch.float64)
    own = torch.eye(k, dtype=torch.bool, device=log_p.device)
    others = torch.where(own, -torch.inf, log_p.unsqueeze(-2)).logsumexp(-1) - math.log(k - 1)
    log_psi = torch.where(others == -torch.inf, unknown.unsqueeze(-1), others)
    return (log_psi + torch.expm1(log_p - log_psi)).mean(-1)


def _plans(sampler: Sampler, wanted: Tensor, seed: Tensor, row: Tensor, num_orders: int) -> RevealPlan:
    """K plans of every row, those of one order together: the number of the order is the step of its noise."""
    assert planning.is_drawn(sampler.plan)
    uniforms = [noise.grid(seed, row, k, Stream.EVALUATION, wanted.shape[1]) for k in range(num_orders)]
    return sampler.plan.draw(torch.cat(uniforms), wanted.repeat(num_orders, 1), sampler.denoiser.schedule)
