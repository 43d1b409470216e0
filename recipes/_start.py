"""The denoiser that an energy's training starts from: loaded, and trained first where there is none."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from edlm import checkpoints
from edlm.networks import Transformer
from edlm.recipes import _parameterisations, _processes, _settings, pretrain_denoiser
from edlm.schedules import Schedule
from edlm.vocabulary import Vocabulary


class Start(NamedTuple):
    """A frozen denoiser's network, the schedule it was trained on, and what its checkpoint says."""

    network: Transformer
    schedule: Schedule
    vocabulary: Vocabulary
    description: dict[str, Any]


def load(settings: Mapping[str, Any], device: torch.device) -> Start:
    """Load `denoiser` of a config, after training it by `pretrain` where it is missing or unfinished.

    Raises ValueError for a plan that trains no denoiser of drafts or keeps another network than its last, and for a
    checkpoint that is missing or holds something else.
    """
    path, plan = settings["denoiser"], settings["pretrain"]
    if plan is not None and plan["objective"] != "mdlm":
        raise ValueError(f"pretrain.objective = {plan['objective']!r} must be 'mdlm': an energy corrects its drafts")
    if plan is not None and plan["patience"] is not None:
        raise ValueError(f"pretrain.patience = {plan['patience']} must be null: `edlm run pretrain_denoiser` has one")
    newest = _processes.from_first(lambda: checkpoints.last_checkpoint(path))
    if plan is not None and (newest is None or checkpoints.load_state(newest)["step"] < plan["steps"]):
        print(f"no finished denoiser at {path}: training it first, {plan['steps']} steps", flush=True)
        shared = {key: settings[key] for key in ("seed", "device", "threads", "corpus")}
        pretrain_denoiser.main({"recipe": "pretrain_denoiser", "output_dir": path, **shared, **plan})
    else:
        print(f"denoiser: {checkpoints.find_network(path)}", flush=True)
    _parameterisations.require_subs(path)
    folder = checkpoints.find_network(path)
    description = checkpoints.read_description(folder)
    if "schedule" not in description:
        raise ValueError(f"denoiser = {path!r} holds a network that was not trained as a denoiser")
    network = checkpoints.load_as(Transformer, folder).to(device).requires_grad_(False)
    schedule = _settings.build(description["schedule"])
    return Start(network, schedule, checkpoints.load_vocabulary_of(folder), description)
