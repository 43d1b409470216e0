"""Findings from the likelihoods of samplers, as a title and as a sentence: each way of writing against plain."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edlm.evaluation import verdicts
from edlm.frontier import curve
from edlm.frontier.curve import PLAIN, Point
from edlm.likelihood.estimates import Estimate
from edlm.runs import tables

_AS_MANY = 0.95  # of the tokens of a pass: a rule with a threshold does not meet a number exactly


class Comparison(NamedTuple):
    """A way of writing at the most tokens a pass at which plain can be compared with it, and the best plain there.

    same: plain in the same order, if it was scored. less: what plain has more, in bits per character, paired over the
    texts; picked from so many `comparisons`.
    """

    own: Point
    plain: Point
    same: Point | None
    less: Estimate
    comparisons: int

    @property
    def outcome(self) -> int:
        """Return 1 if it is better than plain by more than the error, -1 if worse, 0 if that is open."""
        return (1 if self.less.mean > 0.0 else -1) if verdicts.told_apart(self.less, self.comparisons) else 0


def comparisons(points: Sequence[Point], records: Mapping[str, Mapping[str, Any]], characters: int) -> list[Comparison]:
    """Compare each way with plain, at the most tokens a pass that both have; the best first."""
    plain = [own for own in points if own.way == PLAIN]
    found = []
    for way in dict.fromkeys(own.way for own in points if own.way != PLAIN):
        shared = [own for own in points if own.way == way and any(_as_many(each, own) for each in plain)]
        if shared:
            most = max(shared, key=lambda own: own.together)
            some = [own for own in shared if _as_many(own, most)]
            others = [each for each in plain if _as_many(each, most)]
            own, other = _best(some), min(others, key=lambda each: each.bits.mean)
            same = next((each for each in others if each.rule == own.rule), None)
            less = curve.difference(records[other.name], records[own.name], characters)
            found.append(Comparison(own, other, same, less, len(some) * len(others)))
    return sorted(found, key=lambda each: (-each.outcome, each.own.bits.mean))


def title(points: Sequence[Point], found: Sequence[Comparison], labels: Mapping[str, str]) -> str:
    """Say the finding in a line or two: bits of the best way and of plain at the same tokens a pass."""
    if not found:
        return _alone(points, labels)
    own, plain, same, *_ = found[0]
    begun = f"{_way(own)} {_at(own)}: {_bits(own, 2)} bits per character"
    if found[0].outcome <= 0:
        return f"{begun}, plain {_bits(plain, 2)}: {'no better' if found[0].outcome else 'within the error'}"
    if same is None or same is plain:
        return f"{begun}, plain {_bits(plain, 2)}"
    order = labels.get(plain.rule, plain.rule)
    return f"{begun}, plain {_bits(same, 2)} in the same order and {_bits(plain, 2)} in its best, {order}"


def sentence(points: Sequence[Point], found: Sequence[Comparison], labels: Mapping[str, str]) -> str:
    """Say in one sentence which way is better than plain, and which is not, by more than the error."""
    few = verdicts.too_few(points[0].bits.n) if points else ""
    said = [_first(found[0], labels), *(_further(each) for each in found[1:])] if found else [_alone(points, labels)]
    compared = {PLAIN, *(each.own.way for each in found)}
    missing = dict.fromkeys(_way(own) for own in points if own.way not in compared)
    said += [f"no plain setting with as many tokens a pass stands beside {', '.join(missing)}"] if missing else []
    return "; ".join([*said, *([few] if few else [])])


def _first(each: Comparison, labels: Mapping[str, str]) -> str:
    own, plain, way = each.own, each.plain, _way(each.own)
    less = tables.amount(abs(each.less.mean), each.less.standard_error)
    best = f"{'' if plain.is_exact else 'the bound of '}plain ({labels.get(plain.rule, plain.rule)}, {_bits(plain, 3)})"
    value = f"{_bits(own, 3)} bits per character ({labels.get(own.rule, own.rule)})"
    if each.outcome > 0:
        return f"{way} {_at(own)}: {value}, {less} less than {best}"
    if each.outcome < 0:
        shown = "" if own.is_exact else "shown to be "
        return f"no setting of {way} is {shown}as good as plain {_at(own)}: {value}, {less} more than {best}"
    return f"no setting of {way} is told apart from plain {_at(own)} within the error: {value}, {best}"


def _further(each: Comparison) -> str:
    less = tables.amount(abs(each.less.mean), each.less.standard_error)
    said = {1: f"{less} less", -1: f"{less} more", 0: "not told apart"}[each.outcome]
    return f"{_way(each.own)} {_at(each.own)}: {_bits(each.own, 3)}, {said}"


def _alone(points: Sequence[Point], labels: Mapping[str, str]) -> str:
    """Plain at its fewest and its most tokens a pass, where nothing stands beside it."""
    if not points:
        return "no sampler was scored"
    ends = [_best([own for own in points if _as_many(own, end) and _as_many(end, own)]) for end in _ends(points)]
    said = [f"{_bits(own, 2)} bits per character {_at(own)} ({labels.get(own.rule, own.rule)})" for own in ends]
    return f"{_way(ends[0])}: {' and '.join(dict.fromkeys(said))}"


def _ends(points: Sequence[Point]) -> list[Point]:
    plain = [own for own in points if own.way == PLAIN] or list(points)
    return [end(plain, key=lambda own: own.together) for end in (min, max)]


def _best(some: Sequence[Point]) -> Point:
    """The lowest of those that are exact, or else of the bounds."""
    return min(some, key=lambda own: (not own.is_exact, own.bits.mean))


def _as_many(own: Point, other: Point) -> bool:
    """Whether a setting writes as many tokens of a pass as another, or more."""
    return own.together >= _AS_MANY * other.together


def _at(own: Point) -> str:
    return "at one token a pass" if own.one_by_one else f"at {own.together:.3g} tokens a pass"


def _way(own: Point) -> str:
    return own.way.replace("_", " ")


def _bits(own: Point, digits: int) -> str:
    return f"{'' if own.is_exact else 'at most '}{own.bits.mean:.{digits}f}"
