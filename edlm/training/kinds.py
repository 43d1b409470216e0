"""The ways in which `pretrain_denoiser` trains denoisers: the reading, the loss and the bound of each objective."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tensordict.nn import TensorDictSequential
from torch import Tensor

from edlm.likelihood import baselines as baseline_bounds
from edlm.likelihood import nelbo
from edlm.objectives import baselines as baseline_objectives
from edlm.objectives import blocks, denoising
from edlm.objectives import chain_rule as chain_rule_objectives
from edlm.process.schedules import Schedule
from edlm.runs import settings as schemas
from edlm.samplers import baselines
from edlm.samplers.corrections import ChainRule
from edlm.weights import permitted
from edlm.weights.kinds import BASELINES, KEY, SUBS

Bound = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Objective(NamedTuple):
    """The objective that a denoiser is trained by, and what it is held to.

    reading: how its network is read, of `kinds.READINGS`. note: what a checkpoint says that it was trained by. stages:
    that denoiser, its schedule, the recipe's settings and the padding's id to a training pipeline. bound: the denoiser,
    its schedule and the settings to a score of a batch, `(x_0, seed, row, scored)` to an upper bound in nats per token
    (b,). claim: what this bound is called. steps: what `loss_steps` is, a number T, `[fewest, most]`, or None: null.
    """

    reading: str
    note: str
    stages: Callable[[Any, Schedule, Mapping[str, Any], int | None], TensorDictSequential]
    bound: Callable[[Any, Schedule, Mapping[str, Any]], Bound]
    claim: str
    steps: type[int] | type[list[int]] | None = None


def continuous_bound(denoiser: Any, schedule: Schedule, settings: Mapping[str, Any]) -> Bound:
    """Give the score of a batch by the continuous-time NELBO."""
    return lambda x_0, seed, row, scored: nelbo.nelbo(denoiser, schedule, x_0, seed, row, scored)


_PUBLISHED = {"noise_levels": "by_time", "loss_weights": "nelbo"}
_OTHER_DRAWS: dict[str, dict[str, tuple[str, ...]]] = {
    "mdlm": {"noise_levels": ("by_count", "bell"), "loss_weights": ("even",)},
    "blocks": {"noise_levels": ("by_count",), "loss_weights": ("even",)},
}


def _draws_of_noise(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments of `denoising.denoising` that say how noise levels are drawn and weighed."""
    return {**_PUBLISHED, **{key: settings[key] for key in _PUBLISHED if key in settings}}


OBJECTIVES = {
    "mdlm": Objective(
        SUBS,
        "nelbo",
        lambda denoiser, schedule, settings, pad_id: denoising.denoising(
            denoiser, schedule, settings["time_low"], pad_id, **_draws_of_noise(settings)
        ),
        continuous_bound,
        "denoiser NELBO",
    ),
    ChainRule.name: Objective(  # it makes a denoiser fit for that correction
        SUBS,
        "nelbo, in order",
        lambda denoiser, schedule, settings, pad_id: chain_rule_objectives.denoising(
            denoiser, schedule, tuple(settings["loss_steps"]), pad_id
        ),
        continuous_bound,
        "denoiser NELBO",
        list,
    ),
    "blocks": Objective(
        SUBS,
        "nelbo of blocks",
        lambda denoiser, schedule, settings, pad_id: blocks.denoising(
            denoiser, schedule, _times(settings), pad_id=pad_id, **_draws_of_noise(settings)
        ),
        continuous_bound,
        "denoiser NELBO",
    ),
    "d3pm": Objective(
        "d3pm",
        "t_step",
        lambda denoiser, schedule, settings, pad_id: baseline_objectives.d3pm(
            denoiser, schedule, settings["loss_steps"], pad_id
        ),
        lambda denoiser, schedule, settings: (
            lambda x_0, seed, row, scored: baseline_bounds.t_step_nelbo(
                baselines.d3pm(denoiser, schedule), x_0, seed, row, settings["loss_steps"], scored
            )
        ),
        "D3PM T-step bound",
        int,
    ),
    "sedd": Objective(
        "sedd",
        "score_entropy",
        lambda denoiser, schedule, settings, pad_id: baseline_objectives.score_entropy(
            denoiser, schedule, settings["time_low"], pad_id
        ),
        lambda denoiser, schedule, settings: (
            lambda x_0, seed, row, scored: baseline_bounds.score_entropy(denoiser, schedule, x_0, seed, row, scored)
        ),
        "SEDD score-entropy bound",
    ),
}


def loss_steps(key: str, value: Any) -> None:
    """Accept a number of steps, or `[fewest, most]`."""
    (schemas.span if isinstance(value, list) else schemas.integer(1))(key, value)


def schedule(key: str, value: Any) -> None:
    """Accept a schedule that a saved folder can name, so that what is trained by it can be loaded."""
    schemas.component()(key, value)
    permitted.schedule(value, key)


def check(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for an objective without what it needs, or with what it does not read."""
    name, steps = settings["objective"], settings["loss_steps"]
    said, needed = "null" if steps is None else steps, OBJECTIVES[name].steps
    if needed is int and not isinstance(steps, int):
        raise ValueError(
            f"loss_steps is {said}: objective = {name!r} needs the number T of steps of its loss, 1000 for example"
        )
    if needed is list and not isinstance(steps, list):
        raise ValueError(
            f"loss_steps is {said}: objective = {name!r} needs the fewest and the most steps of the samplers that "
            "it is trained for, [8, 256] for example"
        )
    if needed is None and steps is not None:
        raise ValueError(f"loss_steps = {steps} must be null: objective = {name!r} has no steps")
    allowed = {key: (published, *_OTHER_DRAWS.get(name, {}).get(key, ())) for key, published in _PUBLISHED.items()}
    unknown = [key for key, values in allowed.items() if settings.get(key, values[0]) not in values]
    if unknown:
        found = " and ".join(f"{key} = {settings[key]!r}" for key in unknown)
        instead = " ".join(f"{key}={_PUBLISHED[key]}" for key in unknown)
        raise ValueError(f"objective = {name!r} does not know {found}: it needs {instead}")
    if name == "sedd" and not settings["time_conditioning"]:
        raise ValueError("objective = 'sedd' needs time_conditioning = true: with sigma = 0 its scores are infinite")
    _check_blocks(settings)


def _check_blocks(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for blocks without a size, and for what they alone read."""
    size, (low, high) = settings.get("block"), _times(settings)
    if settings["network"].get("block_size") is not None:
        raise ValueError("network.block_size must be left out: give the size as block, with objective = 'blocks'")
    if settings["objective"] != "blocks":
        for key, plain in (("block", None), ("time_high", 1.0)):
            if settings.get(key, plain) != plain:
                raise ValueError(f"{key} = {settings[key]} needs objective = 'blocks', not {settings['objective']!r}")
        return
    if size is None:
        raise ValueError("block is null: objective = 'blocks' needs a number of tokens, for example 16")
    if size > settings["length"]:
        raise ValueError(f"block = {size} must be at most length = {settings['length']}")
    if settings["time_conditioning"]:
        raise ValueError("objective = 'blocks' needs time_conditioning = false: finished blocks have no time")
    if not low < high:
        raise ValueError(f"time_high = {high} must be above time_low = {low}")


def _times(settings: Mapping[str, Any]) -> tuple[float, float]:
    return settings["time_low"], settings.get("time_high", 1.0)


def objective_note(settings: Mapping[str, Any]) -> str:
    """Say what a checkpoint was trained by: the objective, and draws of noise that are not the published ones."""
    others = [settings[key] for key, published in _PUBLISHED.items() if settings.get(key, published) != published]
    return ", ".join([OBJECTIVES[settings["objective"]].note, *others])


def notes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Say what a checkpoint holds of a denoiser that is not SUBS over a whole text."""
    name, steps = settings["objective"], settings["loss_steps"]
    if settings.get("block") is not None:
        return {"block": settings["block"]}
    kind = {KEY: name} if name in BASELINES else {}
    return kind if steps is None and not kind else {**kind, "loss_steps": steps}
