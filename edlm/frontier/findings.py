"""Findings from a frontier, as a title and as a sentence: which setting is as good as plain at less cost, if any is."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from edlm.evaluation import verdicts
from edlm.frontier import grid
from edlm.frontier.points import Point, SpeedUp
from edlm.likelihood.estimates import Estimate
from edlm.runs import tables
from edlm.samplers.sampler import Proposal, Sampler

_RARELY = 0.025  # of the replicates: if plain is as good in no more of them, a setting is better than all of plain
_FEW_STEPS = 1.5  # a joint network is a denoiser once, and then an energy: its passes count no steps
_LESS = {"seconds": "in less time", "passes": "with fewer passes", "calls": "with fewer calls in a row"}
_JUDGED_BY_ITSELF = ("ar", "posterior", "carry over", "autoregressive")


class Verdict(NamedTuple):
    """The best setting of a method by what it saves, and what is known of it.

    saved: times as fast as plain at equal bits, or as few passes where nothing was timed. wins: by more than its error,
    at an entropy that is no lower than plain's. entropy: its own less that of the plain setting of the nearest bits.
    """

    method: str
    own: Point
    cost: str
    saved: SpeedUp
    wins: bool
    entropy: Estimate


def verdicts_of(points: Sequence[Point], judged_by_itself: bool) -> list[Verdict]:
    """Pick the best setting of every method that is not plain, winners first; controls are none.

    judged_by_itself: whether the judge is the AR model, which is no measure of what is made with it.
    """
    methods: dict[str, list[Point]] = {}
    for own in points:
        if isinstance(own.setting, Sampler) and own.setting.correction is not None and not own.role:
            methods.setdefault(grid.method(own.setting), []).append(own)
    of_fair = {name: some for name, some in methods.items() if not (judged_by_itself and name in _JUDGED_BY_ITSELF)}
    count = sum(map(len, of_fair.values()))
    found = [best for name, some in of_fair.items() if (best := _best(name, some, points, count)) is not None]
    return sorted(found, key=lambda each: (not each.wins, -each.saved.ratio))


def title(points: Sequence[Point], found: Sequence[Verdict]) -> str:
    """Say the finding in a line or two."""
    if found and found[0].wins:
        own = found[0].own
        return f"{_called(own)}: {_like_plain(found[0])}, {_times(found[0])}"
    if found:
        methods = _list([each.method for each in found])
        return f"no setting of {methods} is as good as plain {_LESS[found[0].cost]}, within the error"
    return _alone(points)


def sentence(points: Sequence[Point], found: Sequence[Verdict]) -> str:
    """Say in one sentence which method is as good as plain at less cost, and of which no setting is."""
    said = [
        f"{_called(each.own)}: {_like_plain(each)}, {_times(each)}, {_entropy(each)}" for each in found if each.wins
    ]
    if others := [each for each in found if not each.wins]:
        closest = max(others, key=lambda each: each.saved.ratio)
        duller = ", but of lower entropy" if _is_duller(closest.entropy) else ""
        methods = _list([each.method for each in others])
        said.append(
            f"no setting of {methods} is as good as plain {_LESS[closest.cost]} within the error (closest: "
            f"{_called(closest.own)}, {_times(closest)}{duller})"
        )
    few = verdicts.too_few(points[0].figures["bits_per_character"].n) if points else ""
    return "; ".join([*(said or [_alone(points)]), *([few] if few else [])])


def _best(method: str, some: Sequence[Point], points: Sequence[Point], count: int) -> Verdict | None:
    """The setting that wins most, or else the one that comes nearest; None where no plain setting is beside it."""
    plain = [own for own in points if _is_plain(own)]
    found = [_verdict(method, own, plain, count) for own in some if _saved(own)]
    return max(found, key=lambda each: (each.wins, each.saved.ratio - each.saved.error), default=None)


def _saved(own: Point) -> dict[str, SpeedUp]:
    """The savings of a setting at equal bits, by cost; empty where no plain setting is beside it."""
    found = {cost: own.speedups.get(f"equal bits, {cost}") for cost in ("seconds", "passes", "calls")}
    return {cost: saved for cost, saved in found.items() if saved is not None and not math.isnan(saved.ratio)}


def _verdict(method: str, own: Point, plain: Sequence[Point], count: int) -> Verdict:
    cost, saved = next(iter(_saved(own).items()))
    near = min(plain, key=lambda each: abs(_bits(each).mean - _bits(own).mean))
    one, other = own.figures["entropy"], near.figures["entropy"]
    entropy = Estimate(one.mean - other.mean, math.hypot(one.standard_error, other.standard_error), one.n)
    gain = Estimate(saved.ratio - 1.0, saved.error, one.n)
    faster = gain.mean > 0.0 and saved.bound != "<" and verdicts.told_apart(gain, count)
    return Verdict(method, own, cost, saved, faster and not _is_duller(entropy), entropy)


def _like_plain(each: Verdict) -> str:
    """At how many steps plain is as good, or that it is nowhere."""
    saved = _saved(each.own)
    if each.saved.bound == ">" and each.saved.inside <= _RARELY:
        return "better than plain at every number of steps tried"
    steps = saved["calls"].ratio * each.own.cost("calls")
    return f"as good as plain at {steps:.0f} steps{', the most tried' if each.saved.bound == '>' else ''}"


def _times(each: Verdict) -> str:
    said = tables.amount(each.saved.ratio, each.saved.error)
    least = {"=": "", ">": "at least ", "<": "at most "}[each.saved.bound]
    return f"{least}{said} times as {'fast' if each.cost == 'seconds' else f'few {each.cost}'}"


def _entropy(each: Verdict) -> str:
    if not verdicts.told_apart(each.entropy):
        return "entropy equal within the error"
    return f"entropy {tables.amount(each.entropy.mean, each.entropy.standard_error)} nats above plain's"


def _is_duller(entropy: Estimate) -> bool:
    return entropy.mean < 0.0 and verdicts.told_apart(entropy)


def _alone(points: Sequence[Point]) -> str:
    """The lowest plain setting, where nothing is compared with it."""
    plain = [own for own in points if _is_plain(own)]
    if not plain:
        return "no plain setting to compare with"
    best = min(plain, key=lambda own: _bits(own).mean)
    bits = tables.amount(_bits(best).mean, _bits(best).standard_error)
    return f"{best.name}: {bits} bits per character under the judge, with nothing beside it to compare"


def _called(own: Point) -> str:
    assert isinstance(own.setting, Sampler)
    steps = own.figures.get("denoiser_passes")
    known = "T=" in own.name or steps is None or steps.mean < _FEW_STEPS
    said = "" if known or steps is None else f" ({steps.mean:.0f} steps)"
    return own.name.replace(grid.family(own.setting), grid.method(own.setting), 1) + said


def _list(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _is_plain(own: Point) -> bool:
    return isinstance(own.setting, Sampler) and own.setting.correction is None and own.setting.proposal == Proposal()


def _bits(own: Point) -> Estimate:
    return own.figures["bits_per_character"]
