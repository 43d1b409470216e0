"""A sampler as one value: axes that know nothing of each other, and all that follows from them.

| axis | says | values |
|---|---|---|
| plan | which positions a pass reveals | `edlm.plans` |
| proposal | the law of each token | `Proposal`: temperature, nucleus |
| correction | how what is proposed is put right | None, or of `edlm.samplers.corrections` |
| candidates | how many are weighed | a number, or `rounds.UntilEss` |
| selection | which is kept | `edlm.samplers.selections`, or the name of one |
| remasking | whether a revealed token may be masked again | None |
| window | at which times the correction acts | [low, high] |

Its texts are `pipelines.sample`, its bound `bounds.of_sampler`, its law on a small space `enumeration.law`; `kernel_of`
builds its step from stages, which print as the algorithm, `expected` says what it costs, `str` what it is called.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from tensordict.nn import TensorDictSequential

from edlm import costs, declaration
from edlm.contracts import Denoiser, Positions
from edlm.process import finite, particles, schedules
from edlm.samplers import kernel as kernels
from edlm.samplers import passes, plans, selections, speculative, stages
from edlm.samplers.corrections import Correction, Parts
from edlm.samplers.kernel import Kernel, Looped
from edlm.samplers.plans import Expected, Plan
from edlm.samplers.rounds import Rounds, UntilEss
from edlm.samplers.selections import Selection

_VERIFICATIONS = 2  # rounds that a step in order takes, about


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
        remasking: None, the only rule there is.
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
    remasking: None = None
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        _check(self)

    def __str__(self) -> str:
        return name(self)

    def replace(self, **changes: Any) -> "Sampler":
        """Return the same sampler with other values on some axes."""
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
    if not _always(sampler):
        found.append(f"t in [{low:g}, {high:g}]")
    if temperature != 1.0:
        found.append(f"temperature {temperature:g}")
    if nucleus != 1.0:
        found.append(f"nucleus {nucleus:g}")
    if correction is not None and correction.temperature != 1.0:
        found.append(f"energy temperature {correction.temperature:g}")
    return ", ".join(found)


def kernel_of(sampler: Sampler) -> Kernel:
    """Build what takes a sampler's steps: the one place where stages are put together.

    Args:
        sampler: any sampler.

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
    proposed = {"propose": stages.propose(denoiser, *sampler.proposal)}
    plain = declaration.sequence(
        {"denoise": denoiser, **proposed, "reveal": stages.reveal_first(), "count": passes.plain()}  # type: ignore[dict-item]
    )
    outside = Kernel(denoiser, kernels.init, partial(kernels.draw, 1), plain, "revealed", 1)
    if parts is None or sampler.correction is None:
        return outside
    choose = sampler.chooses.choose
    if choose is None:
        draw = partial(kernels.draw, speculative.NUMBERS)
        return Kernel(denoiser, parts.init, draw, _in_order(sampler, parts), _proposes(parts), 1, outside)
    temperature = sampler.correction.temperature
    weigh = {**proposed, **parts.weigh}
    finish = {
        "reveal": stages.reveal_chosen(),
        **parts.after,
        "count": passes.weighed(parts.reads, parts.scope, denoiser.mask_id, parts.carries),
    }
    if isinstance(sampler.candidates, UntilEss):
        log_weights = partial(particles.log_weights, temperature=temperature)
        expect, weigh_, finish_ = (declaration.sequence(each) for each in (parts.before, weigh, finish))
        step: Looped | TensorDictSequential = Rounds(expect, weigh_, finish_, log_weights, choose, sampler.candidates)
    else:
        step = declaration.sequence({**parts.before, **weigh, "select": stages.select(choose, temperature), **finish})
    draw = partial(kernels.draw, sampler.most)
    return Kernel(denoiser, parts.init, draw, step, _proposes(parts), sampler.most, outside)


def _proposes(parts: Parts) -> Positions:
    return "masked" if parts.scope == "draft" else "revealed"


def _in_order(sampler: Sampler, parts: Parts) -> Looped:
    """Build the step that draws from the law of a correction, with no candidate."""
    if parts.write is not None:
        return parts.write(*sampler.proposal)
    assert parts.order is not None
    return speculative.step(sampler.denoiser, parts.before, parts.order, parts.reads, *sampler.proposal)


def describe(sampler: Sampler) -> str:
    """Print the algorithm of a corrected pass, one line a stage; the parts of a loop apart, with what repeats them.

    Args:
        sampler: any sampler.

    Returns:
        The lines.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> denoiser = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8)
        >>> print(edlm.samplers.describe(edlm.samplers.Sampler(denoiser)).splitlines()[0])
        denoise  x_t, positions -> hidden
    """
    step = kernel_of(sampler).step
    if not isinstance(step, Looped):
        return declaration.algorithm(step)  # type: ignore[arg-type]
    lines = [declaration.algorithm(part) for part in step.parts]  # type: ignore[arg-type]
    for index in step.repeated:
        lines[index] = "\n".join(f"| {line}" for line in lines[index].splitlines())
    first = min(step.repeated)
    return "\n".join([*lines[:first], f"in rounds, {_rounds(sampler)}:", *lines[first:]])


def expected(sampler: Sampler, length: int) -> Expected | None:
    """Work out what the plan of a text of so many masks is expected to take; see `plans.Expected`.

    Args:
        sampler: any sampler.
        length: how many masks.

    Returns:
        What is expected; None where it depends on the tokens, so that only samples tell.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> denoiser = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8)
        >>> edlm.samplers.expected(edlm.samplers.Sampler(denoiser), 8).passes
        8.0
    """
    return sampler.plan.expected(sampler.denoiser.schedule, length, sampler.window)


def expected_passes(sampler: Sampler, length: int) -> float | None:
    """Return the expected number of texts that networks read for one text, parts of a text by their tokens.

    Until an ESS is reached at most as many; in order about as many as `_VERIFICATIONS` rounds take.

    Args:
        sampler: any sampler.
        length: tokens of a text.

    Returns:
        The number; None where it depends on the tokens, so that only samples tell.

    Example:
        >>> import edlm
        >>> from edlm.likelihood import hidden_markov
        >>> denoiser = hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 8)
        >>> edlm.samplers.expected_passes(edlm.samplers.Sampler(denoiser), 8)
        8.0
    """
    plan, parts = expected(sampler, length), sampler.parts
    if plan is None or parts is None:
        return None if plan is None else plan.passes
    k = _VERIFICATIONS if sampler.chooses.in_order else sampler.most
    masked = length * plan.revealed if parts.scope == "transition" else plan.corrected * (length + 1) / 2
    read = costs.tokens(parts.reads, k, 1.0, length) * plan.corrected
    read += costs.tokens(parts.reads._replace(texts=0, candidates=0), k, masked - plan.corrected + 1.0, length)
    denoised = plan.passes - plan.corrected + plan.entered if parts.carries else plan.passes
    return denoised + read / length


def _always(sampler: Sampler) -> bool:
    return tuple(sampler.window) == (0.0, 1.0)


def _rounds(sampler: Sampler) -> str:
    if isinstance(sampler.candidates, UntilEss):
        return f"at most {len(sampler.candidates.sizes)}, for the rows whose ESS is below {sampler.candidates.ess:g}"
    if sampler.parts is not None and sampler.parts.write is not None:
        return "each with a pass of the correction's network over what is drafted, for the rows that are not finished"
    return "at most one less than there are new tokens, for the rows where something changed"


def _check(sampler: Sampler) -> None:
    """Raise ValueError for values of axes that do not fit together."""
    selection, correction, candidates = sampler.chooses, sampler.correction, sampler.candidates
    finite.require_temperature("proposal.temperature", sampler.proposal.temperature)
    if not 0.0 < sampler.proposal.nucleus <= 1.0:
        raise ValueError(f"proposal.nucleus = {sampler.proposal.nucleus} must lie in (0, 1]")
    schedules.check_window(sampler.window)
    if sampler.remasking is not None:
        raise ValueError(f"remasking = {sampler.remasking!r}: there is no rule but None")
    if isinstance(candidates, int) and candidates < 1:
        raise ValueError(f"candidates = {candidates} must be at least 1")
    if correction is None:
        unused = {
            "candidates": (candidates, 1),
            "selection": (selection, selections.SIR),
            "window": (sampler.window, (0.0, 1.0)),
        }
        for axis, (value, plain) in unused.items():
            if value != plain:
                raise ValueError(
                    f"{axis} = {getattr(sampler, axis)!r} needs a correction: without one nothing is weighed"
                )
        return
    parts = correction.parts(sampler.denoiser)
    if selection.in_order:
        if parts.order is None and parts.write is None:
            raise ValueError(
                f"selection = {selection.name!r} needs a correction with a law of its own for new tokens in order, as "
                f"chain_rule has: {correction.name!r} has none"
            )
        if candidates != 1:
            raise ValueError(f"candidates = {candidates}: selection = {selection.name!r} weighs none, so give 1")
        if correction.temperature != 1.0:
            raise ValueError(
                f"temperature = {correction.temperature} of the correction must be 1: at another one its weights tend "
                f"to no law that {selection.name!r} could draw from"
            )
        if parts.scope == "draft" and not _always(sampler):
            raise ValueError(
                f"window = {list(sampler.window)} must be [0, 1]: {correction.name} draws whole texts in order"
            )
