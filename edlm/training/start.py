"""The denoiser that an energy's training starts from: loaded, and trained first where there is none."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from edlm.runs import files, locks, processes
from edlm.training import energy, log, state
from edlm.training import settings as training_settings
from edlm.training.resume import SettingsChanged
from edlm.weights import checkpoints, kinds, large, loading, whole
from edlm.weights.loading import Found

Pretrain = Callable[[dict[str, Any]], None]


def load(settings: Mapping[str, Any], device: torch.device, pretrain: Pretrain) -> Found:
    """Load `denoiser` of a config, frozen, after training it where its run is missing or unfinished.

    pretrain: the recipe that trains it. A network folder is finished, and so is a large model's. Raises ValueError for
    a plan that trains no denoiser of drafts or keeps another network than its last, a run that was begun by another
    plan, and a checkpoint that is missing or holds something else.
    """
    path, plan = settings["denoiser"], settings["pretrain"]
    if loading.is_large(path):
        energy.check(settings, path, ours=False)
        print(f"denoiser: {large.hub_folder(path)}", flush=True)
        frozen = settings["trunk"] == "frozen" and settings["lora"] is None
        # What takes gradients is float32, and what shares memory with it.
        how = settings["length"], settings["tokenizer"], None if frozen else "float32"
        return loading.large_start(path, *how, device)
    if plan is not None and plan["objective"] in kinds.BASELINES:
        raise ValueError(
            f"pretrain.objective = {plan['objective']!r} must be mdlm or chain_rule: an energy corrects their drafts"
        )
    if plan is not None and plan["patience"] is not None:
        raise ValueError(f"pretrain.patience = {plan['patience']} must be null: `edlm run pretrain_denoiser` has one")
    if plan is not None and not processes.from_first(lambda: _finished(path, plan["steps"])):
        training_settings.check(settings, plan["length"])  # else the energy's would be told after hours
        energy.require_room(settings, plan["length"])
        with locks.alone("denoiser", path):
            _train(path, plan, {key: settings[key] for key in ("seed", "device", "threads", "corpus")}, pretrain)
    else:
        kinds.require_subs(path)
        print(f"denoiser: {checkpoints.find_network(path)}", flush=True)
    return loading.frozen(path, device)


def _train(path: str, plan: Mapping[str, Any], shared: Mapping[str, Any], pretrain: Pretrain) -> None:
    """Train the denoiser, or write the report of one that was stopped between its last step and its report."""
    is_trained = processes.from_first(lambda: _has_steps(path, plan["steps"]))
    if is_trained:
        print(f"the denoiser at {path} has no report: writing it", flush=True)
    else:
        print(f"no finished denoiser at {path}: training it first, {plan['steps']} steps", flush=True)
    try:
        pretrain({"recipe": "pretrain_denoiser", "output_dir": path, **shared, **plan})
    except SettingsChanged as error:
        if is_trained:  # by another plan, whose report this one cannot write
            print(f"denoiser: {checkpoints.find_network(path)}, without a report: {error.what}", flush=True)
            return
        raise ValueError(f"{error.what}; name another denoiser=, or take this one with pretrain=null") from error


def _finished(path: str, steps: int) -> bool:
    """Tell whether there is a network folder, or a run that has all its steps and the report of the last one.

    Its own steps count, or else the `steps` that are asked for.
    """
    if (Path(path) / "network.json").is_file():
        return True
    if (Path(path) / "network.safetensors").is_file():
        raise ValueError(f"denoiser = {path!r} holds the weights of a network and no network.json: choose another path")
    ended = _has_steps(path, steps) or _has_own_steps(path)
    return ended and (_has_report(path) or not os.access(path, os.W_OK))


def _has_steps(path: str, steps: int) -> bool:
    newest = checkpoints.last_checkpoint(path)
    return newest is not None and bool(state.load(newest)["step"] >= steps)


def _has_own_steps(path: str) -> bool:
    """Tell whether a run has come to the end that it was given itself."""
    newest = checkpoints.last_checkpoint(path)
    found = None if newest is None else state.load(newest)
    last = None if found is None else found["settings"].get("steps")
    return found is not None and type(last) is int and bool(found["step"] >= last)


def _has_report(path: str) -> bool:
    """Tell whether the report and the picture of a run's newest checkpoint are there."""
    newest, folder = checkpoints.last_checkpoint(path), Path(path)
    if newest is None or not (folder / log.CURVES).is_file():
        return False
    try:
        return whole.read_json(folder / files.REPORT).get("step") == state.load(newest)["step"]
    except ValueError:  # missing or damaged
        return False
