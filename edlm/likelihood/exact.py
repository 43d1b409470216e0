"""The exact likelihood of a sampler whose plan is a rule: of a text, the one path by which the sampler writes it.

A rule chooses positions by the state alone. So a text is written along one path, for any noise. The sampler runs with
the data in place of its draws (DUEL, arXiv 2603.01367), and the log-probabilities along the path add up to that of the
text. Nothing is random here, and there is no seed.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from edlm import contracts
from edlm.likelihood import nelbo, steps
from edlm.likelihood.steps import Written
from edlm.process import absorbing
from edlm.process.absorbing import RevealPlan
from edlm.samplers import planning, stages
from edlm.samplers.sampler import Sampler


class Exact(NamedTuple):
    """Per row, (b,) each: the NLL in nats per scored token, and what stands behind it.

    passes: the number of passes in which the sampler writes the text. denoiser_passes, energy_passes: texts of this row
    that each network has read, parts of a text by their tokens.
    """

    nats: Tensor
    passes: Tensor
    denoiser_passes: Tensor
    energy_passes: Tensor


def missing(sampler: Sampler) -> str:
    """Say why a sampler has no exact likelihood.

    Args:
        sampler: any sampler.

    Returns:
        The reason; an empty text if it has one.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> sampler = edlm.samplers.Sampler(hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8))
        >>> edlm.exact.missing(sampler)
        'its plan, one by one, is drawn: a text is written in many orders, and bounds are what is known of their sum'
    """
    reason = steps.missing(sampler)
    if reason or planning.is_rule(sampler.plan):
        return reason
    return (
        f"its plan, {sampler.plan}, is drawn: a text is written in many orders, and bounds are what is known of their "
        "sum"
    )


def of_sampler(sampler: Sampler, x_0: Tensor, scored: Tensor | None = None) -> Exact:
    """Compute `-log q(x_0)`, q the law of the sampler as it runs, for plans that are rules.

    A pass reveals S, a function of the state z, and adds `sum_{i in S} -log p_i(x_0^i | z)`. A pass in order that
    starts inside the window adds `sum_{i in S} -log q(x_0^i | z, x_0^{S<i})`. Temperature and nucleus are a part of the
    law: a token outside the nucleus has probability zero, and its text an infinite NLL.

    Args:
        sampler: one that has an exact likelihood, see `missing`.
        x_0: texts (b, l).
        scored: the positions that count, bool (b, l); the others are given, as in a prompt. None: all count.

    Returns:
        An `Exact` of each row.

    Raises:
        ValueError: with the reason, for a sampler that has none, and for what are no texts or no scored positions.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> source = hidden_markov.random_markov(0, 3)
        >>> texts = hidden_markov.texts(source, 2, 8, seed=1)
        >>> sampler = edlm.samplers.Sampler(hidden_markov.denoiser(source, 8), edlm.plans.LeftToRight())
        >>> found = edlm.exact.of_sampler(sampler, texts)
        >>> (-8 * found.nats - hidden_markov.log_prob(source, texts)).abs().max().item() < 1e-6  # the data's own law
        True
    """
    reason = missing(sampler)
    if reason:
        raise ValueError(f"{sampler}: {reason}")
    nelbo.check_texts(sampler.denoiser, x_0, scored)
    wanted = torch.ones_like(x_0, dtype=torch.bool) if scored is None else scored
    if not planning.is_drawn(sampler.plan):
        plan, written = follow(sampler, x_0, wanted)
    else:
        plan = of_rule(sampler, wanted)
        written = steps.of_plan(sampler, plan, x_0, len(x_0))
    read = (tokens / x_0.shape[1] for tokens in written[1:])
    return Exact(-written.log_prob / wanted.sum(-1), plan.passes, *read)


def of_rule(sampler: Sampler, wanted: Tensor) -> RevealPlan:
    """Fix the passes of rows by a rule that reads the masks alone, bool (b, l), and no noise.

    Args:
        sampler: whose plan it is.
        wanted: the positions that are masked at first.

    Returns:
        The passes.

    Example:
        >>> import edlm, torch
        >>> from edlm.likelihood import hidden_markov
        >>> denoiser = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 4)
        >>> sampler = edlm.samplers.Sampler(denoiser, edlm.plans.LeftToRight(2))
        >>> edlm.exact.of_rule(sampler, torch.ones(1, 4, dtype=torch.bool)).order.tolist()
        [[0, 0, 1, 1]]
    """
    assert planning.is_drawn(sampler.plan)
    return sampler.plan.draw(wanted.double(), wanted, sampler.denoiser.schedule)


@torch.no_grad()
def follow(sampler: Sampler, x_0: Tensor, wanted: Tensor) -> tuple[RevealPlan, Written]:
    """Run a sampler whose plan is chosen from the pass with the data in place of its draws.

    Args:
        sampler: the sampler with the plan. If it weighs candidates, the log-probabilities are those of its proposal.
        x_0: texts (b, l).
        wanted: the positions that are masked at first, bool (b, l).

    Returns:
        The passes that it takes, and what they write.

    Raises:
        ValueError: if the plan reveals no mask of a text that has masks.

    Example:
        >>> import edlm, torch
        >>> from edlm.likelihood import hidden_markov
        >>> source = hidden_markov.random_markov(0, 3)
        >>> sampler = edlm.samplers.Sampler(hidden_markov.denoiser(source, 4), edlm.plans.Ranked(2))
        >>> texts = hidden_markov.texts(source, 3, 4, seed=1)
        >>> plan, written = edlm.exact.follow(sampler, texts, torch.ones_like(texts, dtype=torch.bool))
        >>> plan.passes.tolist()
        [2, 2, 2]
    """
    (b, l), denoiser, rule = x_0.shape, sampler.denoiser, sampler.plan
    assert planning.is_rule(rule)
    law = stages.Law(denoiser, *sampler.proposal)
    masked, order = wanted, torch.full_like(x_0, -1)
    log_prob = torch.zeros(b, dtype=torch.float64, device=x_0.device)
    read_more = torch.zeros_like(x_0[:, 0])
    times: list[Tensor] = []
    (rows,) = torch.where(masked.any(-1))
    while len(rows):
        hidden = masked[rows]
        x_t = torch.where(hidden, denoiser.mask_id, x_0[rows])
        t = absorbing.time_of_share(hidden.sum(-1).double() / l, denoiser.schedule)
        state = steps.read(sampler, x_t, t, hidden.flatten().nonzero().squeeze(-1))
        seen = stages.seen_of(law, state[contracts.HIDDEN], state[contracts.POSITIONS], len(rows), l)
        now = rule.choose(seen, hidden) & hidden
        if not now.any(-1).all():
            raise ValueError(f"{rule} must reveal a mask of every text that has masks, and reveals none of one text")
        found, looked_up = steps.log_prob(sampler, state, x_0[rows], now)
        log_prob, read_more = log_prob.index_add(0, rows, found), read_more.index_add(0, rows, looked_up)
        order = order.index_copy(0, rows, torch.where(now, len(times), order[rows]))
        masked = masked.index_copy(0, rows, hidden & ~now)
        times.append(torch.zeros(b, dtype=torch.float64, device=x_0.device).index_copy(0, rows, t))
        (rows,) = torch.where(masked.any(-1))
    passes = order.amax(-1) + 1
    return RevealPlan(order, torch.stack(times, dim=1), passes), Written(log_prob, passes * l, read_more)
