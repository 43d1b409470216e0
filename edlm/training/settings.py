"""The settings of every training, checked before anything is built."""

from collections.abc import Mapping
from typing import Any

import torch

from edlm import limits
from edlm.runs import processes
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.training import log, log_check, muon
from edlm.training.sharding import PURE


def _optimizer(key: str, value: Any) -> None:
    """Accept a component; what a class of torch.optim refuses of its values is said before anything is trained.

    No other is called before the run: a config is checked without running what it names.
    """
    schemas.component("params")(key, value)
    home, _, name = value["_component_"].rpartition(".")
    known = home == "torch.optim" and isinstance(getattr(torch.optim, name), type)
    if not known and value["_component_"] != muon.PATH:
        return
    try:
        weight = torch.zeros(1, requires_grad=True)
        optimizer = schemas.build(value, "optimizer", params=iter([weight]))
        weight.sum().backward()
        optimizer.step()
    except (ValueError, TypeError, RuntimeError) as error:  # some want a closure, or gradients of another kind
        raise ValueError(f"{key}: {error}") from error


ADAPTER: Schema = {"rank": schemas.integer(1), "alpha": schemas.number(0, above=True)}
SETTINGS: Schema = {
    "steps": schemas.integer(1),
    "batch_size": schemas.integer(1),
    "accumulate": schemas.integer(1),
    "optimizer": _optimizer,
    "warmup_steps": schemas.integer(0),
    "decay": schemas.choice("constant", "cosine"),
    "clip_norm": schemas.number(0, above=True),
    "ema_decay": schemas.number(0, 1),
    "precision": schemas.choice("float32", "bfloat16", PURE),
    "parallel": schemas.choice("data", "sharded"),
    "recompute": schemas.flag,
    "compile": schemas.flag,
    "time_low": schemas.number(0, 0.5),
    "log_every": schemas.integer(1),
    "valid_every": schemas.integer(1),
    "valid_rows": schemas.integer(2),
    "save_every": schemas.integer(1),
    "keep_last": schemas.integer(1),
    "keep_best": schemas.flag,
    "patience": schemas.optional(schemas.integer(1)),
    "resume": log_check.resume,
    **log.SETTINGS,
}
# Of what draws no times.
WITHOUT_TIMES: Schema = {key: check for key, check in SETTINGS.items() if key != "time_low"}


def check(settings: Mapping[str, Any], length: int) -> None:
    """Raise ValueError for settings of a training on texts of this length that do not go together.

    These are a batch that some process or part would have no row of, more texts than may be in memory at once, cut
    matrices under Muon, and a validation left out.
    """
    require_rows(settings)
    for key in ("batch_size", "valid_rows"):
        limits.require_texts(key, settings[key], length)
    _require_whole_matrices(settings)
    _require_validation_at_the_end(settings)


def _require_validation_at_the_end(settings: Mapping[str, Any]) -> None:
    """Raise ValueError unless, with patience, the last validation counts like any other."""
    if settings["patience"] is not None and settings["steps"] % settings["valid_every"]:
        raise ValueError(
            f"steps = {settings['steps']} must be a multiple of valid_every = {settings['valid_every']} where "
            "patience is given: the last validation counts like any other"
        )


def _require_whole_matrices(settings: Mapping[str, Any]) -> None:
    """Raise ValueError where Muon would have parts of matrices."""
    if settings["optimizer"]["_component_"] == muon.PATH and settings["parallel"] == "sharded":
        raise ValueError(f"parallel = 'sharded' cuts matrices, and {muon.PATH} needs them whole: parallel=data")


def require_rows(settings: Mapping[str, Any]) -> None:
    """Raise ValueError unless every part of every process' share of a batch has a row."""
    world, parts = processes.world(), settings["accumulate"]
    if settings["batch_size"] < world * parts:
        among = f"{world} processes x " if world > 1 else ""
        raise ValueError(f"batch_size = {settings['batch_size']} must be at least {among}accumulate = {parts}")
