"""Bits per character of samplers against the tokens of a pass: exact where that is known, or else a bound.

All settings score the same texts, so a difference of two settings has a smaller error than either value. For this
reason the excess over a rule's own value at one token a pass is paired.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edlm import samplers
from edlm.evaluation.figures import MOST_UNRELIABLE, Collected
from edlm.evaluation.scores import TUBE
from edlm.likelihood import estimates
from edlm.likelihood.estimates import Estimate
from edlm.runs import tables
from edlm.samplers import planning
from edlm.samplers.sampler import Sampler

PLAIN, IN_ORDER = "plain", "in order"
_SHORT = (2, 3, 4, 6)  # columns for a terminal: figure, tokens a pass, bits, what is lost
_ONE = 1.0 + 1e-9  # tokens of a pass


class Point(NamedTuple):
    """One setting: what is known of it on the texts, in bits per character.

    rule: the rule of its plan. way: plain, in order, or the correction that weighs. figure: the name of the figure.
    bits: the value, with its error over texts. lower: the lower end of an interval; None if there is none or it is not
    reliable. together: tokens of a pass. excess: share above the rule's own value at one token a pass, with a paired
    error.
    """

    name: str
    rule: str
    way: str
    figure: str
    bits: Estimate
    lower: Estimate | None
    together: float
    excess: Estimate | None
    seconds: float

    @property
    def is_exact(self) -> bool:
        """Whether it is the likelihood itself."""
        return self.figure == "exact_nll"

    @property
    def one_by_one(self) -> bool:
        """Whether no pass writes two tokens."""
        return self.together <= _ONE


class Line(NamedTuple):
    """A line beside the curves: a model's name, its figure and its value."""

    name: str
    figure: str
    bits: Estimate


def rule_of(sampler: Sampler) -> str:
    """Name the rule of a plan: its name, and the words beside it, not the numbers."""
    values = samplers.config(sampler)["plan"]
    words = [str(each) for each in values.values() if isinstance(each, str)]
    return " ".join(words).replace("_", " ")


def way_of(sampler: Sampler) -> str:
    """Name how a sampler writes: plain, in order, or by the correction that weighs so many candidates."""
    if sampler.correction is None:
        return PLAIN
    if sampler.chooses.in_order:
        return IN_ORDER
    called = getattr(sampler.correction, "called", sampler.correction.name)
    return f"{called}, k={sampler.candidates}"


def record(found: Sequence[Collected]) -> dict[str, Any]:
    """Give what was collected of a setting as plain values: figures by name with a number for each text."""
    nats = {name: values.tolist() for each in found for name, values in each.scores.nats.items()}
    steps = [each.scores.steps for each in found if each.scores.steps is not None]
    unreliable = [each.scores.unreliable for each in found if each.scores.unreliable is not None]
    return {
        "nats": nats,
        "tokens": found[0].tokens.tolist(),
        "steps": steps[0].double().tolist() if steps else None,
        "unreliable_rows": float(unreliable[0].double().mean()) if unreliable else None,
        "passes": {name: number for each in found for name, number in each.scores.passes.items()},
        "seconds": round(sum(each.seconds for each in found), 3),
    }


def labels(key: str, value: Any) -> None:
    """Accept a section that gives rules other names. Raises ValueError naming the key for anything else."""
    told = isinstance(value, dict) and all(isinstance(each, str) for pair in value.items() for each in pair)
    if not told:
        raise ValueError(f"{key} = {value!r} must be a section with a name for each rule, as `tokens per pass: random`")


def require_rules(names: Mapping[str, str], settings: Iterable[Sampler]) -> None:
    """Raise ValueError for a label of what is neither a rule of these samplers nor begins as a known plan's."""
    rules = {rule_of(each) for each in settings}
    known = tuple(name.replace("_", " ") for name in planning.PLANS)
    for name in names:
        if name not in rules and not name.startswith(known):
            raise ValueError(f"labels.{name}: no such rule; the sweeps have {', '.join(sorted(rules))}")


def line(name: str, own: Mapping[str, Any], characters: int) -> Line:
    """Build the line of a model from its record."""
    [(figure, values)] = own["nats"].items()
    return Line(name, figure, _bits(values, own["tokens"], characters))


def points(settings: Mapping[str, Sampler], records: Mapping[str, Mapping[str, Any]], characters: int) -> list[Point]:
    """Build the points of all settings that are finished, each compared with its rule's own at one token a pass."""
    found = []
    for name, sampler in settings.items():
        own = records[name]
        figure, values = _best(own)
        base = _one_by_one(sampler, settings, records)
        excess = None
        if base is not None:
            tokens = torch.tensor(own["tokens"], dtype=torch.float64)
            excess = estimates.excess(_tensor(values), _tensor(_best(base)[1]), tokens)
        ends = [each for called, each in own["nats"].items() if called.startswith(TUBE)]
        told = bool(ends) and own["unreliable_rows"] <= MOST_UNRELIABLE
        lower = _bits(ends[0], own["tokens"], characters) if told else None
        bits = _bits(values, own["tokens"], characters)
        rule, way = rule_of(sampler), way_of(sampler)
        found.append(Point(name, rule, way, figure, bits, lower, _together(own), excess, own["seconds"]))
    return found


def difference(own: Mapping[str, Any], other: Mapping[str, Any], characters: int) -> Estimate:
    """Compute by how many bits per character a record is above another of the same texts, with a paired error."""
    pairs = zip(_best(own)[1], _best(other)[1], strict=True)
    return _bits([one - two for one, two in pairs], own["tokens"], characters)


def rows(found: Sequence[Point], lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Lay out the table, its head first."""
    head = ("", "way", "figure", "tokens a pass", "bits/character", "at least", "over one token, %", "n", "seconds")
    body = [
        (
            own.name,
            own.way,
            own.figure if own.is_exact else f"<= {own.figure}",
            f"{own.together:.2f}",
            _with_error(own.bits),
            "-" if own.lower is None else _with_error(own.lower),
            "-" if own.excess is None else f"{100 * own.excess.mean:+.2f} ± {100 * own.excess.standard_error:.2f}",
            str(own.bits.n),
            f"{own.seconds:.0f}",
        )
        for own in found
    ]
    beside = [(own.name, "-", own.figure, "-", _with_error(own.bits), "-", "-", str(own.bits.n), "-") for own in lines]
    return [head, *beside, *body]


def short(found: Sequence[Point], lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Pick what fits a terminal: of every rule and way the most tokens of a pass, and what tells most of it."""
    most: dict[tuple[str, str], Point] = {}
    for own in found:
        known = most.setdefault((own.rule, own.way), own)
        most[own.rule, own.way] = max(known, own, key=lambda each: each.together)
    kept = {each.name for each in most.values()} | {each.name for each in lines}
    head, *body = rows(found, lines)
    return [(row[0], *(row[at] for at in _SHORT)) for row in (head, *body) if row[0] in kept or row is head]


def markdown(found: Sequence[Point], lines: Sequence[Line], remarks: Sequence[str]) -> str:
    """Write the table as Markdown, remarks behind it."""
    return "\n\n".join([tables.markdown(rows(found, lines)), *remarks]) + "\n"


def _best(own: Mapping[str, Any]) -> tuple[str, list[float]]:
    """The figure that tells most: what is exact, or the bound of most orders."""
    above = {name: values for name, values in own["nats"].items() if not name.startswith(TUBE)}
    return list(above.items())[-1]


def _one_by_one(
    sampler: Sampler, settings: Mapping[str, Sampler], records: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """The record of the same rule at one token a pass: of the same way, or plain, where in order is the same law."""
    for way in (way_of(sampler), PLAIN):
        for name, other in settings.items():
            same = rule_of(other) == rule_of(sampler) and way_of(other) == way
            if same and other.proposal == sampler.proposal and _together(records[name]) <= _ONE:
                return records[name]
    return None


def _together(own: Mapping[str, Any]) -> float:
    """Tokens of a pass, over all texts."""
    return float(sum(own["tokens"]) / sum(own["steps"]))


def _bits(nats: Sequence[float], tokens: Sequence[int], characters: int) -> Estimate:
    found = estimates.estimate(_tensor(nats), torch.tensor(tokens))
    share = sum(tokens) / max(characters, 1) / math.log(2)
    return Estimate(found.mean * share, found.standard_error * share, found.n)


def _tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _with_error(found: Estimate) -> str:
    return f"{found.mean:.4f} ± {found.standard_error:.4f}"
