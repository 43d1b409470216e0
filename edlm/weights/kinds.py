"""Kinds of network that a folder may hold: how a denoiser is read, and what an energy weighs."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from edlm.models import denoisers, energies, joint
from edlm.nn.networks import EnergyNetwork, JointNetwork
from edlm.samplers import baselines
from edlm.samplers.baselines import Reverse
from edlm.weights import checkpoints, large

KEY = "parameterisation"  # in a checkpoint's description; one without it holds SUBS
SUBS = "subs"


class Reading(NamedTuple):
    """One way to read a network as a model of diffusion.

    build: a network, the mask's id and the schedule that it is told, or None. kernel: such a model and its schedule to
    the sampler of a baseline; None for denoisers with a reveal plan, which other samplers draw from.
    """

    build: Callable[..., Any]
    kernel: Callable[..., Reverse] | None = None


class EnergyKind(NamedTuple):
    """The scope of an energy: the class of its network; that network, the schedule it is given and the pad id to it."""

    network: type[nn.Module]
    build: Callable[..., Any]


READINGS = {
    SUBS: Reading(denoisers.subs),
    "d3pm": Reading(denoisers.d3pm, baselines.d3pm),
    "sedd": Reading(denoisers.sedd, baselines.analytic),
}
BASELINES = tuple(name for name, reading in READINGS.items() if reading.kernel is not None)
ENERGIES = {
    "draft": EnergyKind(EnergyNetwork, energies.learned),
    "transition": EnergyKind(EnergyNetwork, energies.learned_transition),
    "joint": EnergyKind(JointNetwork, lambda network, told, pad_id: joint.energy(network)),
}


def require_network(key: str, path: str, recipe: str) -> None:
    """Raise ValueError, naming the key and the recipe that trains one, for a folder without a network of ours."""
    try:
        checkpoints.find_network(path)
    except ValueError as error:
        raise ValueError(f"{key} = {error}; `edlm run {recipe}` trains one") from error


def held_by(path: str) -> str | None:
    """Name the baseline that a checkpoint holds, None for SUBS. Raises ValueError naming a folder without any."""
    if large.hub_folder(path) is not None:
        return None
    name: str | None = checkpoints.read_description(checkpoints.find_network(path)).get(KEY)
    if name is not None and name not in BASELINES:
        raise ValueError(f"{path}: {KEY} = {name!r} must be one of {', '.join(BASELINES)}")
    return name


def require_subs(path: str) -> None:
    """Raise ValueError for a folder without a denoiser, or with a baseline where one with a reveal plan is wanted."""
    if large.hub_folder(path) is None:
        require_network("denoiser", path, "pretrain_denoiser")
    try:
        name = held_by(path)
    except ValueError as error:
        raise ValueError(f"denoiser = {error}") from error
    if name is not None:
        raise ValueError(
            f"denoiser = {path!r} holds a baseline ({name}), which is drawn and scored alone: `edlm run generate` and "
            "`edlm run evaluate` take it, with energy = null"
        )
