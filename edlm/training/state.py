"""The training state of a checkpoint, read as data from elsewhere: every key is checked before anything is taken up."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edlm.weights import checkpoints

FILE = "training.json"
_BEST = {"step", "loss", "waited"}
_OLDER: dict[str, Any] = {"began": 0}  # what states of earlier versions lack

Shapes = Mapping[str, torch.Size]


def load(checkpoint: Path) -> dict[str, Any]:
    """Load the state that `TrainingRun.save_checkpoint` wrote. Raises ValueError naming the file and the key."""
    state = {**_OLDER, **checkpoints.load_state(checkpoint)}
    for key, (is_right, wanted) in _SCHEMA.items():
        if key not in state:
            raise _refusal(checkpoint, key, "is missing")
        if not is_right(state[key]):
            raise _refusal(checkpoint, key, f"must be {wanted}")
    if checkpoint.name != f"step_{state['step']:08d}":
        raise _refusal(checkpoint, "step", f"= {state['step']} is not that of {checkpoint.name}")
    return state


def require_weights(checkpoint: Path, key: str, found: Mapping[str, Any], shapes: Shapes) -> None:
    """Raise ValueError unless tensors by name are those of a network. shapes: its parameters'."""
    for name in [*(name for name in shapes if name not in found), *(name for name in found if name not in shapes)]:
        raise _refusal(checkpoint, f"{key}.{name}", "is missing" if name in shapes else "is no weight of this network")
    for name, shape in shapes.items():
        if not isinstance(found[name], Tensor) or found[name].shape != shape:
            raise _refusal(checkpoint, f"{key}.{name}", f"must be a tensor of shape {tuple(shape)}")


def require_optimizer(checkpoint: Path, saved: Mapping[str, Any], fresh: torch.optim.Optimizer) -> None:
    """Raise ValueError unless a saved state is one of an optimiser like a fresh one, over the same parameters."""
    groups = fresh.state_dict()["param_groups"]
    if len(saved["param_groups"]) != len(groups):
        raise _refusal(checkpoint, "optimizer.param_groups", f"must be a list of {len(groups)}")
    for number, (before, now) in enumerate(zip(saved["param_groups"], groups, strict=True)):
        for name, value in now.items():
            where = f"optimizer.param_groups.{number}.{name}"
            if name not in before:
                raise _refusal(checkpoint, where, "is missing")
            if not _alike(before[name], value) or (name == "params" and before[name] != value):
                raise _refusal(checkpoint, where, f"must be like {value!r}")
    _require_moments(checkpoint, saved["state"], fresh)


def _require_moments(checkpoint: Path, saved: Mapping[Any, Any], fresh: torch.optim.Optimizer) -> None:
    """Raise ValueError unless what is kept of each parameter has the names and shapes that a step gives it."""
    parameters = [parameter for group in fresh.param_groups for parameter in group["params"]]
    group_of = [number for number, group in enumerate(fresh.param_groups) for _ in group["params"]]
    wanted: dict[tuple[int, int], dict[str, Any]] = {}
    for index, own in saved.items():
        where = f"optimizer.state.{index}"
        if type(index) is not int or not 0 <= index < len(parameters) or not isinstance(own, dict):
            raise _refusal(checkpoint, where, f"must be of one of {len(parameters)} parameters, by its number")
        shape, number = parameters[index].shape, group_of[index]
        known = wanted.setdefault((number, len(shape)), _after_a_step(fresh, number, len(shape)))
        if known and own.keys() != known.keys():
            raise _refusal(checkpoint, where, f"must hold {', '.join(known)}")
        for name, value in own.items() if known else ():
            like = known[name]
            is_whole = isinstance(like, Tensor) and like.shape == _probe(len(shape)).shape and len(shape) > 0
            expected = shape if is_whole else getattr(like, "shape", None)
            if isinstance(like, Tensor) != isinstance(value, Tensor) or (
                isinstance(value, Tensor) and (is_whole or expected == ()) and value.shape != expected
            ):
                raise _refusal(
                    checkpoint, f"{where}.{name}", "must be a tensor of the shape that the optimiser gives it"
                )


def _after_a_step(fresh: torch.optim.Optimizer, group: int, dimensions: int) -> dict[str, Any]:
    """Find what an optimiser of this kind keeps of a parameter of a group; nothing where that cannot be found out."""
    probe = torch.nn.Parameter(_probe(dimensions))
    probe.grad = torch.ones_like(probe)
    defaults = {name: value for name, value in fresh.param_groups[group].items() if name != "params"}
    build: Any = type(fresh)
    try:
        other = build([{"params": [probe], **defaults}])
        other.step()
    except Exception:  # an optimiser of the user's own, with arguments of its own
        return {}
    return dict(other.state[probe])


def _probe(dimensions: int) -> Tensor:
    return torch.zeros(tuple(range(2, 2 + dimensions)))


def _alike(saved: Any, now: Any) -> bool:
    """Tell whether a value can stand for another: of the same kind, and finite."""
    if isinstance(now, bool) or now is None or isinstance(now, str):
        return type(saved) is type(now)
    if isinstance(now, list | tuple):
        return isinstance(saved, list | tuple) and len(saved) == len(now) and all(map(_alike, saved, now))
    if isinstance(now, int | float):
        return _is_number(saved)
    return isinstance(saved, Tensor) == isinstance(now, Tensor)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 60


def _is_section(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_extent(value: Any) -> bool:
    return (
        _is_section(value)
        and value.keys() == {"lines", "sha256"}
        and _is_whole(value["lines"])
        and isinstance(value["sha256"], str)
    )


def _is_best(value: Any) -> bool:
    return value == {} or (
        _is_section(value)
        and value.keys() == _BEST
        and _is_whole(value["step"])
        and _is_whole(value["waited"])
        and isinstance(value["loss"], int | float)
        and not math.isnan(value["loss"])
    )


def _is_optimizer(value: Any) -> bool:
    return (
        _is_section(value)
        and value.keys() >= {"state", "param_groups"}
        and isinstance(value["state"], dict)
        and isinstance(value["param_groups"], list)
        and all(map(_is_section, value["param_groups"]))
    )


_SCHEMA: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (_is_whole, "a whole number"),
    "averaged": (_is_whole, "a whole number"),
    "began": (_is_whole, "a whole number"),
    "network": (_is_section, "tensors by name"),
    "optimizer": (_is_optimizer, "state and param_groups of an optimiser"),
    "settings": (_is_section, "settings by name"),
    "identity": (_is_section, "values by name"),
    "best": (_is_best, "nothing, or step, loss and waited"),
    "losses": (lambda value: isinstance(value, list) and all(map(_is_number, value)), "a list of numbers"),
    "log": (
        lambda value: _is_section(value) and all(map(_is_extent, value.values())),
        "lines and sha256 of each file of the log",
    ),
}


def _refusal(checkpoint: Path, key: str, said: str) -> ValueError:
    return ValueError(f"{checkpoint / FILE}: {key} {said}: it is damaged, or of another version of edlm")
