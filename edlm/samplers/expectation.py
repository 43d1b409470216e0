"""The work that a sampler is expected to take, from its plan and from what its correction reads."""

from edlm import costs
from edlm.samplers import remasking
from edlm.samplers.planning import Expected
from edlm.samplers.sampler import Sampler

_VERIFICATIONS = 2  # rounds that a step in order takes, about


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
    schedule = sampler.denoiser.schedule
    if sampler.remasking is not None:
        return remasking.expected(sampler.remasking, sampler.plan, schedule, length)
    return sampler.plan.expected(schedule, length, sampler.window)


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
