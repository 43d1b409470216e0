"""The kinds of denoiser that `pretrain_denoiser` trains: what each is, what it is trained by, what it is held to."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from tensordict.nn import TensorDictSequential
from torch import Tensor

from edlm.likelihood import baselines as baseline_bounds
from edlm.likelihood import nelbo
from edlm.models import denoisers
from edlm.nn import folding
from edlm.nn.networks import Transformer
from edlm.objectives import baselines as baseline_objectives
from edlm.objectives import chain_rule as chain_rule_objectives
from edlm.objectives import denoising
from edlm.process.schedules import Schedule
from edlm.runs import settings as schemas
from edlm.samplers import baselines
from edlm.samplers.baselines import Reverse
from edlm.weights import checkpoints, permitted

KEY = "parameterisation"  # in a checkpoint's description; one without it holds SUBS


class Parameterisation(NamedTuple):
    """One way to read a network as a model of diffusion.

    objective: what a checkpoint says that it was trained by. build: a network, the mask's id and the schedule that it
    is told, or None. stages: that denoiser, its schedule, the recipe's settings and the padding's id to a training
    pipeline. bound: the denoiser, its schedule and the settings to a score of a batch, `(x_0, seed, row, scored)` to an
    upper bound in nats per token (b,). claim: what this bound is called.
    """

    objective: str
    build: Callable[..., Any]
    stages: Callable[[Any, Schedule, Mapping[str, Any], int | None], TensorDictSequential]
    bound: Callable[[Any, Schedule, Mapping[str, Any]], Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]]
    claim: str


PARAMETERISATIONS = {
    "mdlm": Parameterisation(
        "nelbo",
        denoisers.subs,
        lambda denoiser, schedule, settings, pad_id: denoising.denoising(
            denoiser, schedule, settings["time_low"], pad_id
        ),
        lambda denoiser, schedule, settings: (
            lambda x_0, seed, row, scored: nelbo.nelbo(denoiser, schedule, x_0, seed, row, scored)
        ),
        "denoiser NELBO",
    ),
    "chain_rule": Parameterisation(
        "nelbo, in order",
        denoisers.subs,
        lambda denoiser, schedule, settings, pad_id: chain_rule_objectives.denoising(
            denoiser, schedule, tuple(settings["loss_steps"]), pad_id
        ),
        lambda denoiser, schedule, settings: (
            lambda x_0, seed, row, scored: nelbo.nelbo(denoiser, schedule, x_0, seed, row, scored)
        ),
        "denoiser NELBO",
    ),
    "d3pm": Parameterisation(
        "t_step",
        denoisers.d3pm,
        lambda denoiser, schedule, settings, pad_id: baseline_objectives.d3pm(
            denoiser, schedule, settings["loss_steps"], pad_id
        ),
        lambda denoiser, schedule, settings: (
            lambda x_0, seed, row, scored: baseline_bounds.t_step_nelbo(
                baselines.d3pm(denoiser, schedule), x_0, seed, row, settings["loss_steps"], scored
            )
        ),
        "D3PM T-step bound",
    ),
    "sedd": Parameterisation(
        "score_entropy",
        denoisers.sedd,
        lambda denoiser, schedule, settings, pad_id: baseline_objectives.score_entropy(
            denoiser, schedule, settings["time_low"], pad_id
        ),
        lambda denoiser, schedule, settings: (
            lambda x_0, seed, row, scored: baseline_bounds.score_entropy(denoiser, schedule, x_0, seed, row, scored)
        ),
        "SEDD score-entropy bound",
    ),
}
KERNELS: dict[str, Callable[..., Reverse]] = {"d3pm": baselines.d3pm, "sedd": baselines.analytic}
_READINGS: dict[str, Callable[..., Any]] = {"d3pm": denoisers.d3pm, "sedd": denoisers.sedd}


def loss_steps(key: str, value: Any) -> None:
    """A number of steps, or `[fewest, most]`."""
    (schemas.span if isinstance(value, list) else schemas.integer(1))(key, value)


def schedule(key: str, value: Any) -> None:
    """A schedule that a saved folder can name, so that what is trained by it can be loaded."""
    schemas.component()(key, value)
    permitted.schedule(value, key)


def check(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for an objective without what it needs, or with what it does not read."""
    name, steps = settings["objective"], settings["loss_steps"]
    said = "null" if steps is None else steps
    if name == "d3pm" and not isinstance(steps, int):
        raise ValueError(
            f"loss_steps is {said}: objective = 'd3pm' needs the number T of steps of its loss, 1000 for example"
        )
    if name == "chain_rule" and not isinstance(steps, list):
        raise ValueError(
            f"loss_steps is {said}: objective = 'chain_rule' needs the fewest and the most steps of the samplers that "
            "it is trained for, [8, 256] for example"
        )
    if name not in ("d3pm", "chain_rule") and steps is not None:
        raise ValueError(f"loss_steps = {steps} must be null: objective = {name!r} has no steps")
    if name == "sedd" and not settings["time_conditioning"]:
        raise ValueError("objective = 'sedd' needs time_conditioning = true: with sigma = 0 its scores are infinite")


def notes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of a denoiser that is not SUBS."""
    name, steps = settings["objective"], settings["loss_steps"]
    kind = {KEY: name} if name in KERNELS else {}
    return kind if steps is None and not kind else {**kind, "loss_steps": steps}


def held_by(path: str) -> str | None:
    """The baseline that a checkpoint holds, None for SUBS. Raises ValueError naming the folder if nothing is there."""
    name = checkpoints.read_description(checkpoints.find_network(path)).get(KEY)
    if name is not None and name not in KERNELS:
        raise ValueError(f"{path}: {KEY} = {name!r} must be one of {', '.join(KERNELS)}")
    return name


def require_subs(path: str) -> None:
    """Raise ValueError for a checkpoint that holds a baseline, where a denoiser with a reveal plan is wanted."""
    name = held_by(path)
    if name is not None:
        raise ValueError(
            f"denoiser = {path!r} holds a baseline ({name}), which is drawn and scored alone: `edlm run generate` and "
            "`edlm run evaluate` take it, with energy = null"
        )


def load(path: str, device: torch.device) -> Reverse:
    """The kernel of a baseline's checkpoint, in eval mode. Raises ValueError for a folder that holds none."""
    name = held_by(path)
    if name is None:
        raise ValueError(f"denoiser = {path!r} holds no baseline")
    description = checkpoints.read_description(checkpoints.find_network(path))
    schedule = permitted.schedule(description["schedule"], path)
    told = schedule if description["time_conditioning"] else None
    network = checkpoints.load_as(Transformer, path)
    network = (network if told is not None else folding.fold_conditioning(network)).to(device)
    mask_id = checkpoints.load_vocabulary_of(path).mask_id
    return KERNELS[name](_READINGS[name](network, mask_id, told), schedule)
