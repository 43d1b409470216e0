"""The conclusions from the records of a frontier: figures with errors, Pareto fronts, and speed-up at equal quality.

Text i of a seed has the same noise in every setting, so a bootstrap replicate draws the numbers of texts and takes
those texts of all settings: what settings have in common does not count twice.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edlm.evaluation import quality
from edlm.frontier.grid import Setting
from edlm.likelihood.estimates import Estimate
from edlm.samplers.sampler import Proposal, Sampler

COSTS = ("seconds", "passes", "calls")


class Resampled(NamedTuple):
    """Bits per character and unigram entropy as measured, then of every replicate: 1 + r numbers each."""

    bits: list[float]
    entropy: list[float]


class SpeedUp(NamedTuple):
    """Cost of the plain sampler over a setting's own, where both are equally good.

    bound: `=`, or `>` and `<` where the plain settings do not reach so good and so bad; then ratio is that bound.
    error: standard deviation over replicates, an end of the curve taken where one leaves it; inside: the share of them
    that do not. It covers what was sampled, and not the clock.
    """

    ratio: float
    error: float
    bound: str
    inside: float


class Point(NamedTuple):
    """One row: figures with errors, costs, the fronts it is on, and its speed-ups by `matched, cost`."""

    name: str
    setting: Setting | None
    role: str
    figures: dict[str, Estimate]
    seconds: float | None
    fronts: frozenset[str] = frozenset()
    speedups: Mapping[str, SpeedUp | None] = {}

    def cost(self, name: str) -> float:
        """Return the cost of a text: seconds, network passes, or calls in a row."""
        found = self.seconds if name == "seconds" else self.figures[name].mean
        return math.nan if found is None else found


def point(
    name: str, setting: Setting | None, role: str, record: Mapping[str, Any], seed: int, replicates: int
) -> tuple[Point, Resampled]:
    """Compute the figures of a record, with errors bootstrapped over its texts.

    Those of ESS and log-weights are over the texts that an energy corrected.
    """
    n = len(record["nll"])
    weights = torch.cat([torch.ones(1, n, dtype=torch.float64), quality.replicate_weights(n, seed, replicates)])

    def mean(values: Sequence[float | None], per: Sequence[float] | None = None) -> Tensor:
        known = torch.tensor(_known(values), dtype=torch.float64)
        of = known if per is None else torch.tensor(per, dtype=torch.float64)
        filled = torch.tensor([0.0 if value is None else value for value in values], dtype=torch.float64)
        return (weights @ filled) / (weights @ of)

    bits, entropy = mean(record["nll"], record["characters"]) / math.log(2), mean(record["entropy"])
    figures = {
        "bits_per_character": bits,
        "perplexity": mean(record["nll"], record["judged_tokens"]).exp(),
        "entropy": entropy,
        **{key: mean(record[key]) for key in ("denoiser_passes", "energy_passes", "passes", "calls") if key in record},
        **{key: mean(record[key]) for key in ("ess", "log_weight_std") if any(_known(record.get(key, [])))},
    }
    found = {key: Estimate(float(values[0]), float(values[1:].std()), n) for key, values in figures.items()}
    divergences = {
        f"divergence_{size}": Estimate(value[0], value[1], n) for size, value in record["divergences"].items()
    }
    return Point(name, setting, role, {**found, **divergences}, record.get("seconds")), Resampled(
        bits.tolist(), entropy.tolist()
    )


def with_comparisons(points: Sequence[tuple[Point, Resampled]]) -> list[Point]:
    """Return the points with their fronts, among all samplers, and the speed-ups of those that are not plain."""
    found = [own for own, _ in points]
    samplers = [index for index, own in enumerate(found) if own.setting is not None]
    fronts: dict[int, set[str]] = {index: set() for index in samplers}
    for name in ("entropy", *COSTS):
        against = [
            (found[i].figures["bits_per_character"].mean, _against(found[i], name)) for i in samplers
        ]  # both the less the better
        for index, best in zip(samplers, pareto(against), strict=True):
            fronts[index] |= {name} if best else set()
    plain = [(own, drawn) for own, drawn in points if _is_plain(own.setting)]
    return [
        own._replace(
            fronts=frozenset(fronts.get(index, set())),
            speedups={} if own.setting is None or _is_plain(own.setting) else _speedups(own, drawn, plain),
        )
        for index, (own, drawn) in enumerate(points)
    ]


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Mark the points on the front: no other is as low in both coordinates and lower in one; never with a NaN."""
    return [
        not any(math.isnan(value) for value in own)
        and not any(other != own and other[0] <= own[0] and other[1] <= own[1] for other in points)
        for own in points
    ]


def least_cost(values: Sequence[float], costs: Sequence[float], wanted: float) -> tuple[float, str]:
    """Find the least cost at which a curve falls to a value, and `=`, `<` or `>` as in `SpeedUp`.

    The curve is linear in value and log cost between neighbours in cost. If its cheapest point is low enough, that is
    its cost and `<`; if no point is, that of its dearest and `>`.
    """
    curve = sorted(zip(costs, values, strict=True))
    if curve[0][1] <= wanted:
        return curve[0][0], "=" if curve[0][1] == wanted else "<"
    for (cheap, high), (dear, low) in pairwise(curve):
        if low <= wanted:
            share = (high - wanted) / (high - low)
            return math.exp((1.0 - share) * math.log(cheap) + share * math.log(dear)), "="
    return curve[-1][0], ">"


def at(places: Sequence[float], values: Sequence[float], wanted: float) -> float | None:
    """Interpolate a piecewise linear curve at a place, None outside of it."""
    curve = sorted(zip(places, values, strict=True))
    if not curve[0][0] <= wanted <= curve[-1][0]:
        return None
    for (left, low), (right, high) in pairwise(curve):
        if left <= wanted <= right:
            share = 0.0 if right == left else (wanted - left) / (right - left)
            return (1.0 - share) * low + share * high
    return curve[0][1]


def _known(values: Sequence[float | None]) -> list[bool]:
    return [value is not None for value in values]


def _against(own: Point, name: str) -> float:
    return -own.figures["entropy"].mean if name == "entropy" else own.cost(name)


def _is_plain(setting: Setting | None) -> bool:
    return isinstance(setting, Sampler) and setting.correction is None


def _speedups(own: Point, drawn: Resampled, plain: Sequence[tuple[Point, Resampled]]) -> dict[str, SpeedUp | None]:
    """At equal bits, along the plain sampler with the denoiser's own law; at equal bits and entropy, along all."""
    at_one, plans = [], dict[str, list[tuple[Point, Resampled]]]()
    for each in plain:
        assert isinstance(each[0].setting, Sampler)
        plans.setdefault(repr(each[0].setting.plan), []).append(each)
        at_one += [each] if each[0].setting.proposal == Proposal() else []
    found: dict[str, SpeedUp | None] = {}
    for cost in COSTS:
        found[f"equal bits, {cost}"] = _speedup(own, drawn, [[each] for each in at_one], cost, with_entropy=False)
        found[f"equal bits and entropy, {cost}"] = _speedup(own, drawn, list(plans.values()), cost, with_entropy=True)
    return found


def _speedup(
    own: Point,
    drawn: Resampled,
    groups: Sequence[Sequence[tuple[Point, Resampled]]],
    cost: str,
    with_entropy: bool,
) -> SpeedUp | None:
    """Along a curve with one point per group: its only one, or where its temperatures have the wanted entropy."""
    ratios: list[tuple[float, str]] = []
    for r in range(len(drawn.bits)):
        curve = []
        for group in groups:
            bits, costs = [each.bits[r] for _, each in group], [each.cost(cost) for each, _ in group]
            if with_entropy:
                entropy, wanted = [each.entropy[r] for _, each in group], drawn.entropy[r]
                curve.append((at(entropy, bits, wanted), at(entropy, costs, wanted)))
            else:
                curve.append((bits[0], costs[0]))
        usable = [(value, price) for value, price in curve if value is not None and price is not None]
        if usable:
            price, bound = least_cost([v for v, _ in usable], [c for _, c in usable], drawn.bits[r])
            ratios.append((price / own.cost(cost), bound))
        elif r == 0:
            return None
    replicates = torch.tensor([ratio for ratio, _ in ratios[1:]], dtype=torch.float64)
    inside = sum(bound == "=" for _, bound in ratios[1:]) / (len(drawn.bits) - 1)
    error = float(replicates.std()) if len(replicates) > 1 else math.nan
    return SpeedUp(ratios[0][0], error, ratios[0][1], inside)
