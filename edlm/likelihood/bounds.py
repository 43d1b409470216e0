"""The likelihood of what a sampler does with T steps, k particles and an energy: an upper bound of it.

When a position is revealed depends on no token, so a text's bound is a mean over reveal plans, and given the plan it is
a sum of terms, one per pass, that need not wait for each other: the state before a pass is the data with masks.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from edlm import costs
from edlm.likelihood import exact, nelbo, terms
from edlm.likelihood.weighing import flat, weigh
from edlm.process import arguments, noise, particles, schedules
from edlm.process.absorbing import RevealPlan
from edlm.process.noise import Stream
from edlm.samplers import planning
from edlm.samplers.sampler import Sampler

_SOME_MASKS = 64
_SCATTERED = (
    "no bound is known of whole texts in order by the plan {}, where masks stand left of what a pass reveals: take one "
    "step, or left_to_right"
)


class Bound(NamedTuple):
    """Per row, (b,) each: an upper bound of the NLL in nats per scored token, and what stands behind it.

    excess: how much of it the energy adds to the plain sampler's bound on the same passes, negative where it helps.
    ess, log_weight_std: means over corrected passes of the k weights of the formula, the data among them; NaN if none,
    or where no candidates are drawn beside the data.
    denoiser_passes, energy_passes: texts of this row that each network has read, parts of a text by their tokens.
    passes: the number of passes in which the sampler writes the text, in the order that was drawn.
    """

    nats: Tensor
    excess: Tensor
    ess: Tensor
    log_weight_std: Tensor
    denoiser_passes: Tensor
    energy_passes: Tensor
    passes: Tensor


def missing(sampler: Sampler) -> str:
    """Say why a sampler has no bound.

    Args:
        sampler: any sampler.

    Returns:
        The reason; an empty text if it has one.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> sampler = edlm.samplers.Sampler(hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8))
        >>> edlm.bounds.missing(sampler)
        ''
    """
    selection = sampler.chooses
    if sampler.remasking is not None:
        return f"no bound is known of a sampler that masks tokens again: {sampler.remasking}"
    if sampler.proposal != (1.0, 1.0):
        return f"no bound is known of a proposal that is not the denoiser's own law: {sampler.proposal}"
    if sampler.correction is None or (sampler.candidates == 1 and not selection.in_order):
        return ""
    if not isinstance(sampler.candidates, int):
        return f"no bound is known of candidates drawn until an ESS is reached: {sampler.candidates}"
    if selection.bound is None:
        return f"no bound is known of selection = {selection.name!r}"
    return "" if not _whole_texts(sampler) or _from_the_left(sampler) else _SCATTERED.format(sampler.plan)


def _whole_texts(sampler: Sampler) -> bool:
    """Whether a pass draws from the law of all masks in order, and keeps some."""
    return sampler.chooses.bound == "limit" and sampler.parts is not None and sampler.parts.scope == "draft"


def _from_the_left(sampler: Sampler) -> bool:
    """Whether no mask is ever left of what a pass reveals, tried with uniforms by which any other plan does so."""
    assert planning.is_drawn(sampler.plan)
    uniforms = (torch.arange(_SOME_MASKS, dtype=torch.float64) / _SOME_MASKS).unsqueeze(0)
    order = sampler.plan.draw(uniforms, torch.ones_like(uniforms, dtype=torch.bool), sampler.denoiser.schedule).order
    return bool((order.diff(dim=1) >= 0).all())


def name(sampler: Sampler) -> str:
    """Name the bound of a sampler, after what is weighed.

    Args:
        sampler: one that has a bound.

    Returns:
        The name.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> sampler = edlm.samplers.Sampler(hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8))
        >>> edlm.bounds.name(sampler)
        't_step_nelbo'
    """
    parts = sampler.parts
    return (
        "t_step_nelbo" if parts is None else {"draft": "sampler_nelbo", "transition": "transition_nelbo"}[parts.scope]
    )


def of_sampler(
    sampler: Sampler,
    x_0: Tensor,
    seed: Tensor,
    row: Tensor,
    *,
    num_completions: int = 1,
    num_passes: int | None = None,
    scored: Tensor | None = None,
) -> Bound:
    """Draw one unbiased value per row of an upper bound of `-log q(x_0)`, q the law of the sampler as it runs.

    A pass reveals S and leaves R masked. The bound is a sum over the passes of a drawn plan of
    `sum_{i in S} -log p_i(x_0^i | x_t)` and, where the pass is corrected, of what the correction adds to it.

    Of drafts, with `x = (x_0^S, x^R)`, `x^R ~ p_theta`, and k - 1 rivals `x_j ~ p_theta`, that is

        -E log( k w(x) / (w(x) + sum_j w(x_j)) ),

    the density of SIR (Cremer et al. 2017, arXiv 1704.02916) and Jensen's inequality; with m completions the share
    `w / (w + sum_j w_j)` is averaged over them inside the logarithm, which is tighter. Of transitions, with x_s of the
    text, k - 1 draws of the revealed tokens beside it, and `w = exp(-E(x_s, x_t) / temperature)`, no token has to be
    completed, and it is `E log( (w(x_s) + sum_{j=2..k} w_j) / (k w(x_s)) )`. Of the limit, under an energy with Z = 1
    in every state, it is `E(x_s, x_t)`, exact, and nothing is drawn beside the text.

    A plan that is chosen from the pass has one path for a text. The path is followed first, and its terms are the same.
    A row's terms do not depend on the rows beside it, except which passes stand for all.

    Args:
        sampler: one that has a bound, see `missing`.
        x_0: texts (b, l).
        seed: of the noise, int64 ().
        row: the key of each row's noise, int64 (b,).
        num_completions: m, of drafts alone.
        num_passes: so many passes of a row, evenly spread from a random one on, stand for all, without bias; None: all
            of them.
        scored: the positions that count, bool (b, l); the others are given, as in a prompt. None: all count.

    Returns:
        A `Bound` of each row.

    Raises:
        ValueError: with the reason, for a sampler that has no bound, unless num_completions and num_passes are at least
            1, and for what are no texts, keys or scored positions.

    Example:
        >>> import edlm, torch
        >>> from edlm.likelihood import hidden_markov
        >>> source = hidden_markov.random_markov(0, 3)
        >>> sampler = edlm.samplers.Sampler(hidden_markov.denoiser(source, 8))
        >>> row = torch.arange(2)
        >>> bound = edlm.bounds.of_sampler(sampler, hidden_markov.texts(source, 2, 8, seed=1), torch.tensor(0), row)
        >>> bound.denoiser_passes.tolist()
        [8, 8]
    """
    reason = missing(sampler)
    if reason:
        raise ValueError(f"{sampler}: {reason}")
    arguments.require_whole("num_completions", num_completions)
    nelbo.check_texts(sampler.denoiser, x_0, scored, row)
    wanted = torch.ones_like(x_0, dtype=torch.bool) if scored is None else scored
    how = x_0, seed, row, num_completions, num_passes
    if not planning.is_drawn(sampler.plan):
        plan, _ = exact.follow(sampler, x_0, wanted)
        found = _sum(sampler, plan, *how)
        return found._replace(denoiser_passes=found.denoiser_passes + plan.passes)
    uniforms = noise.grid(seed, row, 0, Stream.EVALUATION, x_0.shape[1])
    plan = sampler.plan.draw(uniforms, wanted, sampler.denoiser.schedule)
    return _sum(sampler, plan, *how)


@torch.no_grad()
def _sum(
    sampler: Sampler, plan: RevealPlan, x_0: Tensor, seed: Tensor, row: Tensor, completions: int, num_passes: int | None
) -> Bound:
    """The terms of the wanted passes of every row, as many at once as there are rows."""
    denoiser, parts, correction = sampler.denoiser, sampler.parts, sampler.correction
    limit = sampler.chooses.bound == "limit"  # of as many candidates as need be
    free = 0 if limit else sampler.most - 1  # candidates beside the text
    m = completions if parts is not None and parts.scope == "draft" and not limit else 1
    taken = terms.every(plan) if num_passes is None else terms.some(plan, num_passes, seed, row)
    corrected = schedules.inside(plan.t[taken.row, taken.number], sampler.window)
    if parts is None or (free == 0 and not limit):
        corrected = torch.zeros_like(corrected)
    reads = costs.of_energy(None if parts is None else parts.energy)
    plain, excess, ess, spread, read = torch.zeros(5, len(row), dtype=torch.float64, device=row.device)
    for part in terms.parts(taken, ~corrected, len(row)):
        x_t, t, now, _ = terms.before(denoiser, plan, x_0, part)
        positions = flat(now, int(now.sum()))
        log_p = nelbo.data_log_prob(denoiser, x_0[part.row], x_t, t, positions)
        plain.index_add_(0, part.row, -part.weight * log_p.sum(-1))
    for part in terms.parts(taken, corrected, len(row)):
        x_t, t, now, masked = terms.before(denoiser, plan, x_0, part)
        keys = (seed, row[part.row], part.number + 1)  # number 0 is the plan's
        assert parts is not None
        assert correction is not None
        drawn = now if limit or parts.scope == "transition" else masked
        log_p, weighed = weigh(
            denoiser, parts.energy, x_0[part.row], x_t, t, drawn, int(drawn.sum()), now, free, m, *keys
        )
        log_w = particles.log_weights(weighed, correction.temperature)
        gain = log_w.squeeze(-1) if limit else _gain(log_w, free + 1, m)
        plain.index_add_(0, part.row, -part.weight * torch.where(now, log_p, 0.0).sum(-1))
        excess.index_add_(0, part.row, -part.weight * gain)
        read.index_add_(0, part.row, costs.tokens(reads, free + m, drawn.sum(-1), x_0.shape[1]).double())
        ess.index_add_(0, part.row, particles.ess(log_w[:, : free + 1]))
        spread.index_add_(0, part.row, particles.log_weight_std(log_w[:, : free + 1]))
    denoised = torch.bincount(taken.row, minlength=len(row))
    weighed_passes = torch.bincount(taken.row[corrected], minlength=len(row))
    plain, excess = (nats / (plan.order >= 0).sum(-1) for nats in (plain, excess))
    ess, spread = ess / weighed_passes, spread / weighed_passes
    if limit:  # a text alone is compared with nothing
        ess = spread = torch.full_like(ess, torch.nan)
    return Bound(plain + excess, excess, ess, spread, denoised, read / x_0.shape[1], plan.passes)


def _gain(log_w: Tensor, k: int, m: int) -> Tensor:
    """`log k w / (w + sum_j w_j)` of k - 1 rivals, the share averaged over the m completions after them: (b,)."""
    return _log_share(log_w[:, k - 1 :], log_w[:, : k - 1], k).logsumexp(-1) - math.log(m) + math.log(k)


def _log_share(own: Tensor, rivals: Tensor, k: int) -> Tensor:
    """`log w / (w + sum_j w_j)` of each completion among the k - 1 rivals: (b, m), (b, k - 1) to (b, m).

    If nothing has any weight the sampler keeps its first draft, which is the completion in one of k cases.
    """
    total = torch.logaddexp(own, rivals.logsumexp(-1, keepdim=True))
    return torch.where(total == -torch.inf, -math.log(k), own - total)
