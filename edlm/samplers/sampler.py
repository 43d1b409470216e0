"""A sampler as one value: axes that know nothing of each other, and all that follows from them.

| axis | says | values |
|---|---|---|
| plan | which positions a pass reveals | `edlm.plans`, drawn first or chosen from the pass |
| proposal | the law of each token | `Proposal`: temperature, nucleus |
| correction | how what is proposed is put right | None, or of `edlm.samplers.corrections` |
| candidates | how many are weighed | a number, or `rounds.UntilEss` |
| selection | which is kept | `edlm.samplers.selections`, or the name of one |
| remasking | whether a revealed token may be masked again | None, or of `edlm.samplers.remasking` |
| window | at which times the correction acts | [low, high] |

Its texts are `pipelines.sample`, its bound `bounds.of_sampler`, its law on a small space `enumeration.law`; `kernel_of`
builds its step from stages, which print as the algorithm, `expected` says what it costs, `str` what it is called.
"""

import difflib
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, NamedTuple

from tensordict.nn import TensorDictModuleBase, TensorDictSequential

from edlm import contracts, declaration
from edlm.contracts import Denoiser, Positions
from edlm.declaration import Stages
from edlm.models.denoisers import SubsDenoiser
from edlm.process import arguments, finite, particles, schedules
from edlm.samplers import blocks, caching, passes, planning, plans, remasking, selections, speculative, stages
from edlm.samplers import kernel as kernels
from edlm.samplers.corrections import Correction, Parts
from edlm.samplers.kernel import Kernel, Looped
from edlm.samplers.planning import Plan
from edlm.samplers.remasking import Remasking
from edlm.samplers.rounds import Rounds, UntilEss
from edlm.samplers.selections import Selection

_OF_A_PASS = {contracts.HIDDEN, contracts.CONTEXT}  # what a denoiser's pass by itself gives


class Proposal(NamedTuple):
    """The law of each token: `p_theta^(1 / temperature)`, cut to the fewest tokens that hold the nucleus."""

    temperature: float = 1.0
    nucleus: float = 1.0


_FIRST_HITTING, _FAITHFUL = plans.TokensPerPass(1), Proposal()


@dataclass(frozen=True)
class Sampler:
    """The axes by which texts are drawn from a denoiser, of whose masking process the schedule is.

    Plain sampling draws the revealed positions from `p_theta(x_0 | x_t)`, each from its own law. With a correction k
    candidates are weighed by `exp(-E / temperature)` at the times of the window, and one is kept (Xu et al. 2025,
    alg. 1); with one candidate, or outside the window, the tokens are those of plain sampling one for one. Candidates
    may be proposed by a law `q` other than `p_theta`: the weight is then `p_theta / q exp(-E / temperature)`, and the
    target stays what it was, on the nucleus.

    Args:
        denoiser: what proposes; the schedule is its own.
        plan: which positions a pass reveals, of `edlm.plans`; one by one if not given.
        proposal: the law of each token, `Proposal(temperature, nucleus)`.
        correction: how what is proposed is put right, of `edlm.samplers.corrections`; None is plain sampling.
        candidates: how many are weighed, or `rounds.UntilEss`.
        selection: which is kept: `"sir"`, `"imh"`, `"greedy"`, `"speculative"`, or one of your own.
        remasking: the rule by which tokens are masked again, of `edlm.samplers.remasking`; None: no token is.
        window: the times [low, high] at which the correction acts.

    Raises:
        ValueError: with the reason, for a combination that makes no sense.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> from edlm.samplers import corrections
        >>> source = hidden_markov.random_markov(0, 3)
        >>> plain = edlm.samplers.Sampler(hidden_markov.denoiser(source, 8), edlm.plans.Grid(4))
        >>> energy = corrections.OfEnergy(hidden_markov.energy(source), "transition")
        >>> print(plain.replace(correction=energy, candidates=8, window=(0.5, 1.0)))
        sir, own, T=4, k=8, t in [0.5, 1]
    """

    denoiser: Denoiser = field(repr=False)
    plan: Plan = _FIRST_HITTING
    proposal: Proposal = _FAITHFUL
    correction: Correction | None = None
    candidates: int | UntilEss = 1
    selection: str | Selection = selections.SIR.name
    remasking: Remasking | None = None
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        _check(self)

    def __str__(self) -> str:
        return name(self)

    def replace(self, **changes: Any) -> "Sampler":
        """Return the same sampler with other values on some axes. Raises ValueError for one that there is not."""
        known = [each.name for each in fields(self)]
        for axis in changes.keys() - set(known):
            near = difflib.get_close_matches(axis, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{axis}: no axis of a sampler; did you mean {near!r}?")
        return replace(self, **changes)

    @property
    def chooses(self) -> Selection:
        """The selection, by name or not."""
        return selections.of(self.selection)

    @property
    def parts(self) -> Parts | None:
        """Return what the correction adds to a step, None without one."""
        return None if self.correction is None else self.correction.parts(self.denoiser)

    @property
    def most(self) -> int:
        """The most candidates of a row."""
        return self.candidates if isinstance(self.candidates, int) else self.candidates.at_most


def name(sampler: Sampler) -> str:
    """Name a sampler for tables: the values of its axes, those that change nothing left out.

    Args:
        sampler: any sampler.

    Returns:
        The name.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> denoiser = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8)
        >>> edlm.samplers.name(edlm.samplers.Sampler(denoiser, edlm.plans.Grid(4)))
        'plain, T=4'
    """
    correction, (low, high) = sampler.correction, sampler.window
    temperature, nucleus = sampler.proposal
    found = ["plain"]
    if correction is not None:
        found = [sampler.chooses.name, getattr(correction, "called", correction.name)]
    found.append(str(sampler.plan))
    if correction is not None and not sampler.chooses.in_order:
        found.append(f"k={sampler.candidates}" if isinstance(sampler.candidates, int) else str(sampler.candidates))
    if sampler.remasking is not None:
        found.append(str(sampler.remasking))
    if not _always(sampler):
        found.append(f"t in [{low:g}, {high:g}]")
    if temperature != 1.0:
        found.append(f"temperature {temperature:g}")
    if nucleus != 1.0:
        found.append(f"nucleus {nucleus:g}")
    if correction is not None and correction.temperature != 1.0:
        found.append(f"energy temperature {correction.temperature:g}")
    return ", ".join(found)


def can_cache(sampler: Sampler) -> bool:
    """Check whether a sampler can keep keys and values of finished blocks: see `caching`.

    Args:
        sampler: any sampler.

    Returns:
        Whether its denoiser has blocks and makes its passes by itself.

    Example:
        >>> import edlm
        >>> sizes = {"max_length": 8, "hidden_size": 16, "num_layers": 1, "num_heads": 2}
        >>> network = edlm.networks.Transformer(5, **sizes, block_size=4).eval()
        >>> denoiser = edlm.denoisers.subs(network, mask_id=4)
        >>> edlm.samplers.can_cache(edlm.samplers.Sampler(denoiser, edlm.plans.blocks(4)))
        True
    """
    parts = sampler.parts
    alone = parts is None or {key for each in parts.before.values() for key in each.out_keys} <= _OF_A_PASS
    return alone and caching.can(sampler.denoiser)


def kernel_of(sampler: Sampler, cached: bool = False) -> Kernel:
    """Build what takes a sampler's steps: the one place where stages are put together.

    Args:
        sampler: any sampler.
        cached: keep keys and values of finished blocks, of a sampler that `can_cache`.

    Returns:
        The kernel.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> denoiser = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8)
        >>> edlm.samplers.kernel_of(edlm.samplers.Sampler(denoiser)).proposes
        'revealed'
    """
    parts, denoiser = sampler.parts, sampler.denoiser
    network = denoiser.network if cached else None  # type: ignore[attr-defined]
    init = kernels.init if network is None else partial(caching.first, network)
    proposed = {"propose": stages.propose(denoiser, *sampler.proposal)}
    look, before = _ahead(sampler, _read(denoiser, {"denoise": denoiser}, cached))  # type: ignore[dict-item]
    written: Stages = {**before, **proposed, "reveal": stages.reveal_first()}
    draw_one = partial(kernels.draw, 1)
    if sampler.remasking is not None:
        again = declaration.sequence({**written, "remember": remasking.remember(), "count": passes.plain()})
        around = remasking.moves(sampler.remasking, denoiser.mask_id)
        return Kernel(denoiser, remasking.init, draw_one, again, "revealed", 1, moves=around)
    plain = declaration.sequence({**written, "count": passes.plain(cached)})
    outside = Kernel(denoiser, init, draw_one, plain, "revealed", 1, look=look, cache=network)
    if parts is None or sampler.correction is None:
        return outside
    init = init if cached else parts.init  # type: ignore[assignment]
    look, before = _ahead(sampler, _read(denoiser, parts.before, cached))
    choose = sampler.chooses.choose
    if choose is None:
        if parts.write is not None:
            step: Looped | TensorDictSequential = parts.write(*sampler.proposal)
        else:
            assert parts.order is not None
            step = speculative.step(denoiser, before, parts.order, parts.reads, *sampler.proposal)
        draw = partial(kernels.draw, speculative.NUMBERS)
        return Kernel(denoiser, init, draw, step, _proposes(parts), 1, outside, look=look, cache=network)
    temperature = sampler.correction.temperature
    weigh = {**proposed, **parts.weigh}
    finish = {
        "reveal": stages.reveal_chosen(),
        **parts.after,
        "count": passes.weighed(parts.reads, parts.scope, denoiser.mask_id, parts.carries, cached),
    }
    if isinstance(sampler.candidates, UntilEss):
        log_weights = partial(particles.log_weights, temperature=temperature)
        expect, weigh_, finish_ = (declaration.sequence(each) for each in (before, weigh, finish))
        step = Rounds(expect, weigh_, finish_, log_weights, choose, sampler.candidates)
    else:
        step = declaration.sequence({**before, **weigh, "select": stages.select(choose, temperature), **finish})
    draw = partial(kernels.draw, sampler.most)
    return Kernel(denoiser, init, draw, step, _proposes(parts), sampler.most, outside, look=look, cache=network)


def _proposes(parts: Parts) -> Positions:
    return "masked" if parts.scope == "draft" else "revealed"


def _read(denoiser: Denoiser, before: Stages, cached: bool) -> Stages:
    """The stages that end in the denoiser's states; cached, one that reads a block."""
    if not cached:
        return before
    assert isinstance(denoiser, SubsDenoiser)
    return {"denoise": caching.read(denoiser, any(contracts.CONTEXT in each.out_keys for each in before.values()))}


def _ahead(sampler: Sampler, before: Stages) -> tuple[TensorDictModuleBase | None, Stages]:
    """Split off the stages that end in what a plan chooses, if it reads the pass; what is left begins the step."""
    if planning.is_drawn(sampler.plan):
        return None, before
    assert planning.is_rule(sampler.plan)
    law = stages.Law(sampler.denoiser, *sampler.proposal)
    return declaration.sequence({**before, "choose": stages.choose(law, sampler.plan, sampler.denoiser.mask_id)}), {}


def describe(sampler: Sampler, cached: bool = False) -> str:
    """Print the algorithm of a corrected pass, one line a stage; the parts of a loop apart, with what repeats them.

    Args:
        sampler: any sampler.
        cached: as of `kernel_of`.

    Returns:
        The lines.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> denoiser = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8)
        >>> print(edlm.samplers.describe(edlm.samplers.Sampler(denoiser)).splitlines()[0])
        denoise  x_t, positions -> hidden
    """
    built = kernel_of(sampler, cached)
    look, step = built.look, built.step
    ahead = {} if look is None else dict(look.module.items())
    if built.moves is not None:
        decide, finish = built.moves
        return declaration.algorithm(declaration.sequence({"decide": decide, **step.module, "remask": finish}))
    if not isinstance(step, Looped):
        return declaration.algorithm(declaration.sequence({**ahead, **dict(step.module.items())}))
    lines = [declaration.algorithm(part) for part in step.parts]  # type: ignore[arg-type]
    for index in step.repeated:
        lines[index] = "\n".join(f"| {line}" for line in lines[index].splitlines())
    first = [declaration.algorithm(declaration.sequence(ahead))] if ahead else []
    once = min(step.repeated)
    return "\n".join([*first, *filter(None, lines[:once]), f"in rounds, {_rounds(sampler)}:", *lines[once:]])


def _always(sampler: Sampler) -> bool:
    return tuple(sampler.window) == (0.0, 1.0)


def _rounds(sampler: Sampler) -> str:
    if isinstance(sampler.candidates, UntilEss):
        return f"at most {len(sampler.candidates.sizes)}, for the rows whose ESS is below {sampler.candidates.ess:g}"
    if sampler.parts is not None and sampler.parts.write is not None:
        return "each with a pass of the correction's network over what is drafted, for the rows that are not finished"
    return "at most one less than there are new tokens, for the rows where something changed"


def _check_remasking(sampler: Sampler, rule: Remasking) -> None:
    """Raise ValueError for what is no rule, and for values of other axes that one cannot go with."""
    if not hasattr(rule, "sigma") or isinstance(rule, type):
        raise ValueError(f"remasking = {rule!r} must be None or a rule, as remasking.Cap() is")
    reason = remasking.missing(sampler.plan)
    if sampler.correction is not None:
        reason = (
            f"it takes no correction, and {sampler.correction.name!r} is one: a text is put right by being rewritten"
        )
    if reason:
        raise ValueError(f"remasking = {str(rule)!r}: {reason}")


def _check(sampler: Sampler) -> None:
    """Raise ValueError for values of axes that do not fit together."""
    candidates = sampler.candidates
    if not hasattr(sampler.denoiser, "mask_id"):
        kind = type(sampler.denoiser).__name__
        raise ValueError(f"denoiser must be one, as denoisers.subs(network, mask_id) is, not of class {kind}")
    fits = isinstance(sampler.proposal, Proposal)
    arguments.require_kind("proposal", sampler.proposal, fits, "samplers.Proposal(temperature, nucleus)")
    arguments.require_numbers(**{"proposal.nucleus": sampler.proposal.nucleus})
    finite.require_temperature("proposal.temperature", sampler.proposal.temperature)
    if not 0.0 < sampler.proposal.nucleus <= 1.0:
        raise ValueError(f"proposal.nucleus = {sampler.proposal.nucleus} must lie in (0, 1]")
    schedules.check_window(sampler.window)
    if not (planning.is_drawn(sampler.plan) or planning.is_rule(sampler.plan)):
        known = "of edlm.plans, as plans.Grid(8) is, or of one's own"
        raise ValueError(f"plan = {sampler.plan!r} must be {known}, drawn (`draw`) or from the pass (`choose`)")
    blocks.check(sampler.plan, sampler.denoiser)
    if sampler.remasking is not None:
        _check_remasking(sampler, sampler.remasking)
    if not isinstance(candidates, UntilEss):
        arguments.require_whole("candidates", candidates)
    if sampler.correction is None:
        _check_plain(sampler)
    else:
        _check_correction(sampler, sampler.correction)


def _check_plain(sampler: Sampler) -> None:
    """Raise ValueError for what only a correction reads."""
    unused = {
        "candidates": (sampler.candidates, 1),
        "selection": (sampler.chooses, selections.SIR),
        "window": (sampler.window, (0.0, 1.0)),
    }
    for axis, (value, plain) in unused.items():
        if value != plain:
            raise ValueError(f"{axis} = {getattr(sampler, axis)!r} needs a correction: without one nothing is weighed")


def _check_correction(sampler: Sampler, correction: Correction) -> None:
    """Raise ValueError for a correction that does not fit the denoiser, or the selection."""
    if not hasattr(correction, "parts") or isinstance(correction, type):
        instead = "None or one of edlm.samplers.corrections, as corrections.OfEnergy(energy) is"
        arguments.require_kind("correction", correction, False, instead)
    parts = correction.parts(sampler.denoiser)
    if parts.scope == "draft" and getattr(sampler.denoiser, "block_size", None) is not None:
        raise ValueError(
            f"correction = {correction.name!r} weighs whole drafts, and a denoiser of blocks draws one block after the "
            "other: give it an energy of transitions, scope = 'transition'"
        )
    if sampler.chooses.in_order:
        _check_in_order(sampler, correction, parts)


def _check_in_order(sampler: Sampler, correction: Correction, parts: Parts) -> None:
    """Raise ValueError for what cannot be drawn in order, with no candidate."""
    name, candidates = sampler.chooses.name, sampler.candidates
    if parts.write is not None and not planning.is_drawn(sampler.plan):
        raise ValueError(
            f"plan = {str(sampler.plan)!r} reads the pass of a denoiser, and {correction.name!r} writes its own law "
            "from left to right: give it plans.LeftToRight, or one step"
        )
    if parts.order is None and parts.write is None:
        raise ValueError(
            f"selection = {name!r} needs a correction with a law of its own for new tokens in order, as "
            f"chain_rule has: {correction.name!r} has none"
        )
    if candidates != 1:
        raise ValueError(f"candidates = {candidates}: selection = {name!r} weighs none, so give 1")
    if correction.temperature != 1.0:
        raise ValueError(
            f"temperature = {correction.temperature} of the correction must be 1: at another one its weights tend "
            f"to no law that {name!r} could draw from"
        )
    if parts.scope == "draft" and not _always(sampler):
        raise ValueError(
            f"window = {list(sampler.window)} must be [0, 1]: {correction.name} draws whole texts in order"
        )
