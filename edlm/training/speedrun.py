"""Trainings of denoisers that differ in one thing each: what they reach, and what it costs to reach a bound."""

import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from torch import nn

from edlm.runs import settings as schemas
from edlm.runs import tables, timing
from edlm.training import denoiser, kinds

Change = Mapping[str, Any]
_LN_2 = math.log(2)
_SHARES = "seconds to its bound, a share", "operations to its bound, a share"
_NAME = re.compile(r"\w[\w .-]*")


class Training(NamedTuple):
    """The cost and the bounds of one training, in nats per token.

    curve: (step, held-out bound). seconds: of its updates alone, those of the processor where a CPU trains; None if it
    was stopped on the way. flops: of one update. test: the bound of the test text.
    """

    curve: tuple[tuple[int, float], ...]
    seconds: float | None
    flops: float
    test: float

    @property
    def steps(self) -> int:
        """Count its updates."""
        return self.curve[-1][0]


def changed(base: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """Change settings: sections are merged, but one that names a component replaces what was there.

    Args:
        base: settings of a training.
        change: keys of it with other values.

    Returns:
        New settings.

    Example:
        >>> from edlm.training import speedrun
        >>> speedrun.changed({"optimizer": {"lr": 1.0, "eps": 0.1}, "steps": 3}, {"optimizer": {"lr": 2.0}})
        {'optimizer': {'lr': 2.0, 'eps': 0.1}, 'steps': 3}
    """
    found = dict(base)
    for key, value in change.items():
        merged = isinstance(value, Mapping) and isinstance(found.get(key), Mapping) and "_component_" not in value
        found[key] = changed(found[key], value) if merged else value
    return found


def variants(key: str, value: Any) -> None:
    """Accept a section of sections by names that folders can have. Raises ValueError naming the key otherwise."""
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{key} = {value!r} must be a section with a name for each variant, as `published: {{}}`")
    others: list[str] = []
    for name, change in value.items():
        if not _NAME.fullmatch(str(name)):
            raise ValueError(f"{key}: {name!r} must be letters, digits, spaces and - _ . alone: its runs have a folder")
        if folder(name) in map(folder, others):
            raise ValueError(f"{key}: {name!r} and another name have one folder, {folder(name)!r}")
        others.append(name)
        if not isinstance(change, Mapping):
            raise ValueError(f"{key}.{name} = {change!r} must be a section with the keys that it changes, or {{}}")


def folder(name: str) -> str:
    """Give the name of the folder of a variant."""
    return str(name).replace(" ", "_")


def chosen(settings: Mapping[str, Any]) -> dict[str, Change]:
    """Collect the variants to train, by name: all, or those that `only` names. Raises ValueError for an unknown one."""
    known = {str(name): change for name, change in settings["variants"].items()}
    asked = list(known) if settings["only"] is None else settings["only"]
    for name in asked:
        if name not in known:
            raise ValueError(f"only = {name!r} must be one of the variants: {', '.join(known)}")
    return {name: change for name, change in known.items() if name in asked}


def check(settings: Mapping[str, Any]) -> None:
    """Check what every variant of a config makes of its base. Raises ValueError naming the variant and its key."""
    for name, change in settings["variants"].items():
        where, own = f"variants.{name}", changed(settings["base"], change)
        schemas.check(denoiser.MODEL, own, f"{where}.")
        try:
            kinds.check(own)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def step_flops(network: nn.Module, settings: Mapping[str, Any]) -> float:
    """Count the operations of an update's passes, gradients twice those of the pass, the head at half of the tokens.

    Blocks read two copies of a text. What the optimiser computes does not count.
    """
    copies = 1 if settings.get("block") is None or settings["block"] >= settings["length"] else 2
    tokens = torch.zeros(settings["batch_size"], copies * settings["length"], dtype=torch.int64, device="meta")
    head: Any = network.head
    rows = settings["batch_size"] * settings["length"] / 2
    return 3.0 * (timing.transformer_flops(network, tokens) + 2.0 * head.weight.numel() * rows)


def reached(training: Training, bound: float) -> float | None:
    """Find the step at which a held-out bound was reached, by a straight line between two validations.

    Args:
        training: one with its curve.
        bound: nats per token.

    Returns:
        The first such step; None if there is none.

    Example:
        >>> from edlm.training import speedrun
        >>> speedrun.reached(speedrun.Training(((100, 3.0), (200, 2.0)), None, 1.0, 2.0), 2.5)
        150.0
    """
    before: tuple[int, float] | None = None
    for step, value in training.curve:
        if value <= bound:
            if before is None or value == bound:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - bound) / (before[1] - value)
        before = (step, value)
    return None


def share(training: Training, first: Training, seconds: bool) -> float | None:
    """Compute the cost of reaching the held-out bound that another training ended with, as a share of that one's cost.

    Args:
        training: the one that reaches it.
        first: the one that ended with it.
        seconds: whether the cost is seconds, else operations.

    Returns:
        The share; None if the bound is not reached, or seconds are not known.
    """
    step = reached(training, first.curve[-1][1])
    cost, whole = (each.seconds if seconds else each.steps * each.flops for each in (training, first))
    return None if step is None or cost is None or whole is None else step / training.steps * cost / whole


def table(runs: Mapping[str, Sequence[Training]], targets: Sequence[float]) -> list[list[str]]:
    """Lay out what the trainings of each variant, one a seed, cost and reached. The first is what others are held to.

    Differences and shares are those of one seed, and then averaged; `±` is the standard error over seeds.
    """
    first = next(iter(runs.values()))
    rows = [["variant", "seeds", "GFLOP a step", "seconds a step", "bits (test)", "minus the first", *_SHARES]]
    rows[0] += [f"seconds to {target:g} bits" for target in targets]
    for name, own in runs.items():
        pairs = list(zip(own, first, strict=False))
        steps = [each.seconds / each.steps for each in own if each.seconds is not None]
        cells = [name, str(len(own)), f"{own[0].flops / 1e9:.0f}", over_seeds(steps)]
        cells.append(over_seeds([each.test / _LN_2 for each in own]))
        cells.append("" if own is first else over_seeds([(each.test - other.test) / _LN_2 for each, other in pairs]))
        cells += ["1" if own is first else _all([share(*pair, kind) for pair in pairs]) for kind in (True, False)]
        rows.append([*cells, *(_all([_seconds_to(each, target * _LN_2) for each in own]) for target in targets)])
    return rows


def over_seeds(values: Sequence[float]) -> str:
    """Write the mean of some values and its standard error, or nothing of none."""
    if not values:
        return "-"
    return tables.amount(fmean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan)


def _all(values: Sequence[float | None]) -> str:
    """Write the mean of what every seed reached, or `not reached` by how many."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "not reached" if not known else f"reached by {len(known)} of {len(values)}"
    return over_seeds(known)


def _seconds_to(training: Training, bound: float) -> float | None:
    step = reached(training, bound)
    return None if step is None or training.seconds is None else step / training.steps * training.seconds
