"""The likelihood of what a sampler does with T steps, k particles and an energy: upper bounds, and the paper's figure.

When a position is revealed depends on no token, so a text's bound is a mean over reveal plans, and given the plan it is
a sum of terms, one per pass, that need not wait for each other: the state before a pass is the data with masks.
"""

import math
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.contracts import Denoiser, Energy, Scope
from edlm.likelihood import nelbo
from edlm.process import absorbing, categorical, finite, noise, particles, passes, schedules
from edlm.process.absorbing import RevealPlan
from edlm.process.noise import Stream
from edlm.process.schedules import Schedule
from edlm.samplers.sampler import Sampler

RELIABLE_STD = 3.0  # nats; beyond it the leave-one-out pair misses log Z by many nats (Deng et al. 2020)
PAPER_NELBO_WARNING = (
    "paper_nelbo is no bound: a joint correction does not fit its formula (two identical fair bits score half their"
    " entropy), and under the carry-over AR energy it is the AR model's own likelihood"
)


class Bound(NamedTuple):
    """Per row, (b,) each: an upper bound of the NLL in nats per scored token, and what stands behind it.

    excess: how much of it the energy adds to the plain sampler's bound on the same passes, negative where it helps.
    ess, log_weight_std: means over corrected passes of the k weights of the formula, the data among them; NaN if none,
    or where no candidates are drawn beside the data.
    denoiser_passes, energy_passes: texts of this row that each network has read, parts of a text by their tokens.
    """

    nats: Tensor
    excess: Tensor
    ess: Tensor
    log_weight_std: Tensor
    denoiser_passes: Tensor
    energy_passes: Tensor


class PaperNelbo(NamedTuple):
    """Per row, (b,) each: the paper's figure in nats per scored token with either end of the pair around log Z.

    ess, log_weight_std: of the n drafts that log Z is estimated from.
    """

    lower: Tensor
    upper: Tensor
    ess: Tensor
    log_weight_std: Tensor


class _Term(NamedTuple):
    """One pass of one row: its row in the call, the number of the pass, and how often it counts; (n,) each."""

    row: Tensor
    number: Tensor
    weight: Tensor


def missing(sampler: Sampler) -> str:
    """Why a sampler has no bound; an empty text if it has one."""
    selection = sampler.chooses
    if sampler.proposal != (1.0, 1.0):
        return f"no bound is known of a proposal that is not the denoiser's own law: {sampler.proposal}"
    if sampler.correction is None or (sampler.candidates == 1 and not selection.in_order):
        return ""
    if not isinstance(sampler.candidates, int):
        return f"no bound is known of candidates drawn until an ESS is reached: {sampler.candidates}"
    return "" if selection.bound is not None else f"no bound is known of selection = {selection.name!r}"


def name(sampler: Sampler) -> str:
    """What the bound of a sampler is called: after what is weighed."""
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
    """One unbiased draw per row of an upper bound of `-log q(x_0)`, q the law of the sampler as it runs.

    A pass reveals S and leaves R masked. The bound is a sum over the passes of a drawn plan of
    `sum_{i in S} -log p_i(x_0^i | x_t)` and, where the pass is corrected, of what the correction adds to it.

    Of drafts, with `x = (x_0^S, x^R)`, `x^R ~ p_theta`, and k - 1 rivals `x_j ~ p_theta`, that is

        -E log( k w(x) / (w(x) + sum_j w(x_j)) ),

    the density of SIR (Cremer et al. 2017, arXiv 1704.02916) and Jensen's inequality; with m completions the share
    `w / (w + sum_j w_j)` is averaged over them inside the logarithm, which is tighter. Of transitions, with x_s of the
    text, k - 1 draws of the revealed tokens beside it, and `w = exp(-E(x_s, x_t) / temperature)`, no token has to be
    completed, and it is `E log( (w(x_s) + sum_{j=2..k} w_j) / (k w(x_s)) )`. Of the limit, under an energy with Z = 1
    in every state, it is `E(x_s, x_t)`, exact, and nothing is drawn beside the text.

    x_0 (b, l); seed: int64 (); row: int64 (b,), the key of a row's noise. num_completions: m, of drafts alone.
    num_passes: so many passes of a row, evenly spread from a random one on, stand for all, without bias; None: all of
    them. scored: bool (b, l), the positions that count, the others are given, as a prompt is; None: all. A row's terms
    do not depend on the rows beside it, except which passes stand for all.
    Raises ValueError, with the reason, for a sampler that has no bound, unless num_completions and num_passes are at
    least 1, and for a row without a scored position.
    """
    reason = missing(sampler)
    if reason:
        raise ValueError(f"{sampler}: {reason}")
    if num_completions < 1:
        raise ValueError(f"num_completions = {num_completions} must be at least 1")
    nelbo.check_scored(scored)
    wanted = torch.ones_like(x_0, dtype=torch.bool) if scored is None else scored
    uniforms = noise.grid(seed, row, 0, Stream.EVALUATION, x_0.shape[1])
    plan = sampler.plan.draw(uniforms, wanted, sampler.denoiser.schedule)
    parts, correction = sampler.parts, sampler.correction
    if parts is None or correction is None:
        return _sum(sampler.denoiser, None, "draft", plan, x_0, seed, row, (0.0, 1.0), 1, 1, 1.0, num_passes)
    k = None if sampler.chooses.bound == "limit" else sampler.most
    m = num_completions if parts.scope == "draft" else 1
    how = (sampler.window, k, m, correction.temperature, num_passes)
    return _sum(sampler.denoiser, parts.energy, parts.scope, plan, x_0, seed, row, *how)


def t_step_nelbo(
    denoiser: Denoiser,
    schedule: Schedule,
    grid: Tensor | None,
    x_0: Tensor,
    seed: Tensor,
    row: Tensor,
    *,
    num_passes: int | None = None,
    scored: Tensor | None = None,
) -> Bound:
    """One unbiased draw per row of the T-step NELBO, a bound for the plain sampler on this grid.

    `sum over the passes of a drawn plan of sum_{i in S} -log p_i(x_0^i | x_t)`, in nats per scored token, with S what a
    pass reveals. Arguments as of `sampler_nelbo`, to which it is equal at one particle, term by term.
    """
    plan = _plan(schedule, grid, x_0, seed, row, scored)
    return _sum(denoiser, None, "transition", plan, x_0, seed, row, (0.0, 1.0), 1, 1, 1.0, num_passes)


def sampler_nelbo(
    denoiser: Denoiser,
    energy: Energy,
    schedule: Schedule,
    grid: Tensor | None,
    x_0: Tensor,
    seed: Tensor,
    row: Tensor,
    *,
    num_particles: int,
    num_completions: int = 1,
    window: tuple[float, float] = (0.0, 1.0),
    temperature: float = 1.0,
    num_passes: int | None = None,
    scored: Tensor | None = None,
) -> Bound:
    """One unbiased draw per row of an upper bound of `-log q(x_0)`, q the law of the SIR sampler as it runs.

    A pass reveals S and leaves R masked. With `x = (x_0^S, x^R)`, `x^R ~ p_theta`, and k - 1 rivals `x_j ~ p_theta`,

        -log q(x_0^S | x_t) <= sum_{i in S} -log p_i(x_0^i | x_t) - E log( k w(x) / (w(x) + sum_j w(x_j)) ),

    the density of SIR (Cremer et al. 2017, arXiv 1704.02916) and Jensen's inequality; with m completions the share
    `w / (w + sum_j w_j)` is averaged over them inside the logarithm, which is tighter. Summed over the passes of a
    drawn plan; passes that start outside the window, and all at k = 1, have the first part alone.

    grid: times (T + 1,), None for one position at a time. x_0 (b, l); seed: int64 (); row: int64 (b,), the key of a
    row's noise. num_passes: so many passes of a row, evenly spread from a random one on, stand for all, without bias;
    None: all of them. scored: bool (b, l), the positions that count, the others are given, as a prompt is; None: all.
    A row's terms do not depend on the rows beside it, except which passes stand for all.
    Raises ValueError unless num_particles, num_completions and num_passes are at least 1, and for a wrong window or a
    row without a scored position.
    """
    for name, value in (("num_particles", num_particles), ("num_completions", num_completions)):
        if value < 1:
            raise ValueError(f"{name} = {value} must be at least 1")
    plan = _plan(schedule, grid, x_0, seed, row, scored)
    how = (window, num_particles, num_completions, temperature, num_passes)
    return _sum(denoiser, energy, "draft", plan, x_0, seed, row, *how)


def transition_nelbo(
    denoiser: Denoiser,
    energy: Energy,
    schedule: Schedule,
    grid: Tensor | None,
    x_0: Tensor,
    seed: Tensor,
    row: Tensor,
    *,
    num_particles: int | None,
    window: tuple[float, float] = (0.0, 1.0),
    temperature: float = 1.0,
    num_passes: int | None = None,
    scored: Tensor | None = None,
) -> Bound:
    """One unbiased draw per row of an upper bound of `-log q(x_0)`, q the law of SIR on transitions as it runs.

    With x_s of the text, k - 1 draws of the revealed tokens beside it, and `w = exp(-E(x_s, x_t) / temperature)`,

        -log q(x_0^S | x_t) <= -log p_theta(x_0^S | x_t) + E log( (w(x_s) + sum_{j=2..k} w_j) / (k w(x_s)) ).

    No token has to be completed, as for drafts, and under the exact energy the bound falls as k grows. Arguments,
    noise and errors as of `sampler_nelbo`, to which it is equal at one particle, term by term. num_particles None: of
    the limit, under an energy with Z = 1 in every state, as `chain_rule.energy` is: `-log p_theta(x_0^S | x_t) +
    E(x_s, x_t)` is then what a step's law says, and nothing is drawn beside the text.
    Raises ValueError for None with a temperature, which Z = 1 does not survive.
    """
    if num_particles is not None and num_particles < 1:
        raise ValueError(f"num_particles = {num_particles} must be at least 1")
    if num_particles is None and temperature != 1.0:
        raise ValueError(f"temperature = {temperature} must be 1 where num_particles is None: Z = 1 of E alone")
    plan = _plan(schedule, grid, x_0, seed, row, scored)
    how = (window, num_particles, 1, temperature, num_passes)
    return _sum(denoiser, energy, "transition", plan, x_0, seed, row, *how)


@torch.no_grad()
def paper_nelbo(
    denoiser: Denoiser,
    energy: Energy,
    schedule: Schedule,
    x_0: Tensor,
    seed: Tensor,
    row: Tensor,
    *,
    num_particles: int,
    scored: Tensor | None = None,
) -> PaperNelbo:
    """One draw per row of the figure that Xu et al. 2025 report, which bounds nothing; see `PAPER_NELBO_WARNING`.

    `int w(t) E[ -log p_theta(x_0 | x_t) + E(x_0, x_t, t) + log Z(x_t) ] dt`, at a random pass as `nelbo.nelbo`,
    with log Z from n drafts: the pair of `particles.log_z_bounds`. Not to be relied on where the log-weights' standard
    deviation passes `RELIABLE_STD`. Arguments as of `sampler_nelbo`.
    Raises ValueError for fewer than two particles or a row without a scored position.
    """
    if num_particles < 2:
        raise ValueError(f"num_particles = {num_particles} must be at least 2")
    x_t, t, masked = nelbo.before_random_pass(schedule, x_0, denoiser.mask_id, seed, row, scored)
    count = int(masked.sum())
    log_p, weighed = _weigh(denoiser, energy, x_0, x_t, t, masked, count, masked, num_particles, 1, seed, row, 1)
    drafts, data = particles.log_weights(weighed[:, :-1]), weighed[:, -1].double()
    lower, upper = particles.log_z_bounds(drafts)
    without = data - log_p.sum(-1)
    per_token = 1.0 / masked.sum(-1).double()
    return PaperNelbo(
        per_token * (without + lower),
        per_token * (without + upper),
        particles.ess(drafts),
        particles.log_weight_std(drafts),
    )


def _plan(
    schedule: Schedule, grid: Tensor | None, x_0: Tensor, seed: Tensor, row: Tensor, scored: Tensor | None
) -> RevealPlan:
    nelbo.check_scored(scored)
    wanted = torch.ones_like(x_0, dtype=torch.bool) if scored is None else scored
    uniforms = noise.grid(seed, row, 0, Stream.EVALUATION, x_0.shape[1])
    return absorbing.reveal_plan(uniforms, wanted, schedule, grid)


@torch.no_grad()
def _sum(
    denoiser: Denoiser,
    energy: Energy | None,
    scope: Scope,
    plan: RevealPlan,
    x_0: Tensor,
    seed: Tensor,
    row: Tensor,
    window: tuple[float, float],
    k: int | None,
    m: int,
    temperature: float,
    num_passes: int | None,
) -> Bound:
    """The terms of the wanted passes of every row, as many at once as there are rows; k None: of so many as need be."""
    free = 0 if k is None else k - 1  # candidates beside the text
    schedules.check_window(window)
    terms = _terms(plan, num_passes, seed, row)
    corrected = schedules.inside(plan.t[terms.row, terms.number], window)
    if energy is None or k == 1:
        corrected = torch.zeros_like(corrected)
    plain, excess, ess, spread, read = torch.zeros(5, len(row), dtype=torch.float64, device=row.device)
    reads = passes.of_energy(energy)
    for part in _parts(terms, ~corrected, len(row)):
        x_t, t, now, _ = _before(denoiser, plan, x_0, part)
        positions = _flat(now, int(now.sum()))
        log_p = nelbo.data_log_prob(denoiser, x_0[part.row], x_t, t, positions)
        plain.index_add_(0, part.row, -part.weight * log_p.sum(-1))
    for part in _parts(terms, corrected, len(row)):
        x_t, t, now, masked = _before(denoiser, plan, x_0, part)
        keys = (seed, row[part.row], part.number + 1)  # number 0 is the plan's
        assert energy is not None
        drawn = now if scope == "transition" else masked
        log_p, weighed = _weigh(denoiser, energy, x_0[part.row], x_t, t, drawn, int(drawn.sum()), now, free, m, *keys)
        log_w = particles.log_weights(weighed, temperature)
        gain = log_w.squeeze(-1) if k is None else _gain(log_w, k, m)
        plain.index_add_(0, part.row, -part.weight * torch.where(now, log_p, 0.0).sum(-1))
        excess.index_add_(0, part.row, -part.weight * gain)
        read.index_add_(0, part.row, passes.tokens(reads, free + m, drawn.sum(-1), x_0.shape[1]).double())
        ess.index_add_(0, part.row, particles.ess(log_w[:, : free + 1]))
        spread.index_add_(0, part.row, particles.log_weight_std(log_w[:, : free + 1]))
    denoised = torch.bincount(terms.row, minlength=len(row))
    weighed_passes = torch.bincount(terms.row[corrected], minlength=len(row))
    plain, excess = (nats / (plan.order >= 0).sum(-1) for nats in (plain, excess))
    ess, spread = ess / weighed_passes, spread / weighed_passes
    if k is None:  # a text alone is compared with nothing
        ess = spread = torch.full_like(ess, torch.nan)
    return Bound(plain + excess, excess, ess, spread, denoised, read / x_0.shape[1])


def _terms(plan: RevealPlan, num_passes: int | None, seed: Tensor, row: Tensor) -> _Term:
    """All passes of all rows, or `num_passes` of each: one in each of so many equal stretches of a row's passes."""
    if num_passes is None:
        index, number = (torch.arange(plan.t.shape[1], device=row.device) < plan.passes.unsqueeze(-1)).nonzero().T
        return _Term(index, number, torch.ones_like(index, dtype=torch.float64))
    if num_passes < 1:
        raise ValueError(f"num_passes = {num_passes} must be at least 1")
    index = torch.arange(len(row), device=row.device).repeat_interleave(num_passes)
    stretch = torch.arange(num_passes, device=row.device).repeat(len(row))
    passes = plan.passes[index]
    place = (nelbo.strata(seed, row)[index] + stretch) / num_passes
    return _Term(index, (place * passes).long().minimum(passes - 1), passes.double() / num_passes)


def _parts(terms: _Term, wanted: Tensor, size: int) -> list[_Term]:
    """The wanted terms, `size` at a time."""
    kept = wanted.nonzero().squeeze(-1)
    return [_Term(*(field[part] for field in terms)) for part in kept.split(size) if len(part)]


def _before(denoiser: Denoiser, plan: RevealPlan, x_0: Tensor, part: _Term) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The states before some passes: x_t (n, l), t (n,), what the pass reveals and what is masked, bool (n, l)."""
    order, number = plan.order[part.row], part.number.unsqueeze(-1)
    masked = order >= number
    x_t = torch.where(masked, denoiser.mask_id, x_0[part.row])
    return x_t, plan.t[part.row, part.number], order == number, masked


def _flat(chosen: Tensor, count: int) -> Tensor:
    """Flat indices of the chosen positions, of which there are `count`: bool (b, l) to (count,)."""
    return torch.nonzero_static(chosen.flatten(), size=count).squeeze(-1)


def _gain(log_w: Tensor, k: int, m: int) -> Tensor:
    """`log k w / (w + sum_j w_j)` of k - 1 rivals, the share averaged over the m completions after them: (b,)."""
    return _log_share(log_w[:, k - 1 :], log_w[:, : k - 1], k).logsumexp(-1) - math.log(m) + math.log(k)


def _log_share(own: Tensor, rivals: Tensor, k: int) -> Tensor:
    """`log w / (w + sum_j w_j)` of each completion among the k - 1 rivals: (b, m), (b, k - 1) to (b, m).

    If nothing has any weight the sampler keeps its first draft, which is the completion in one of k cases.
    """
    total = torch.logaddexp(own, rivals.logsumexp(-1, keepdim=True))
    return torch.where(total == -torch.inf, -math.log(k), own - total)


def _weigh(
    denoiser: Denoiser,
    energy: Energy,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    drawn: Tensor,
    count: int,
    held: Tensor,
    free: int,
    holding: int,
    seed: Tensor,
    row: Tensor,
    step: Tensor | int,
) -> tuple[Tensor, Tensor]:
    """Energies (b, free + holding) of candidates; those of the second kind have the data where it is `held` (b, l).

    First the log-probability of the data wherever a candidate is `drawn`, float64 (b, l); these are `count` positions.
    """
    b, l = x_0.shape
    positions = _flat(drawn, count)
    owner = positions // l
    number = step[owner] if isinstance(step, Tensor) else step
    uniforms = noise.uniforms(seed, row[owner], number, Stream.EVALUATION, positions % l, free + holding)
    state = TensorDict({contracts.X_T: x_t, contracts.T: t, contracts.POSITIONS: positions})
    hidden = denoiser(state)[contracts.HIDDEN]
    data, pinned = x_0.flatten()[positions], held.flatten()[positions]
    rows = categorical.rows_at_once(denoiser.vocab_size, x_0.device)
    tiles = [
        _draw(denoiser, *tile, free)
        for tile in zip(hidden.split(rows), uniforms.split(rows), data.split(rows), pinned.split(rows), strict=True)
    ]
    tokens, log_p, data_log_p = (torch.cat(parts) for parts in zip(*tiles, strict=True))
    kept = x_t.unsqueeze(-1).repeat(1, 1, free + holding)
    state[contracts.CANDIDATES] = _onto(kept, positions, tokens).transpose(1, 2)
    nothing = log_p.new_zeros(kept.shape)
    state[contracts.LOG_P_CANDIDATES] = _onto(nothing, positions, log_p).transpose(1, 2)
    of_data = _onto(log_p.new_zeros(b, l, 1), positions, data_log_p).squeeze(-1)
    weighed = energy(state)[contracts.ENERGY]
    finite.require_log_prob(data_log_p)
    finite.require_energy(weighed)
    return of_data.double(), weighed


def _draw(
    denoiser: Denoiser, hidden: Tensor, uniforms: Tensor, data: Tensor, pinned: Tensor, free: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (n, c) and their log-probabilities, the data where it is held, and those of the data (n, 1)."""
    logits = denoiser.logits(hidden)
    drawn = categorical.inverse_cdf(logits, uniforms)
    data_log_p = categorical.token_log_prob(logits, data.unsqueeze(-1))
    holds = pinned.unsqueeze(-1) & (torch.arange(uniforms.shape[-1], device=data.device) >= free)
    tokens = torch.where(holds, data.unsqueeze(-1), drawn.tokens)
    return tokens, torch.where(holds, data_log_p, drawn.log_prob), data_log_p


def _onto(target: Tensor, positions: Tensor, values: Tensor) -> Tensor:
    """Write values (n, c) at flat positions (n,) of a copy of (b, l, c)."""
    flat = target.flatten(0, 1).index_copy(0, positions, values.to(target))
    return flat.view(target.shape)
