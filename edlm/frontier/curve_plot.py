"""The picture of a curve: bits per character against tokens of a pass, each line named where it ends."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edlm.frontier.curve import IN_ORDER, PLAIN, Line, Point
from edlm.runs import plots

_DASHES = {PLAIN: "--", IN_ORDER: "-"}
_WEIGHED = ":"
_LEGEND = "filled: exact, open: a bound; solid: in order, dashed: plain, dotted: candidates weighed"
_APART = 0.028  # of the picture's height, between two names
_MARGIN = 0.06  # of what is shown, above and below it


def draw(path: Path, points: Sequence[Point], lines: Sequence[Line], labels: Mapping[str, str], subtitle: str) -> None:
    """Write the png, whole or not at all: a colour for each rule, and one for each energy; open markers are bounds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    curves: dict[tuple[str, str], list[Point]] = {}
    for own in points:
        curves.setdefault((own.rule, own.way), []).append(own)
    colours: dict[str, str] = {}
    ends: list[tuple[float, str, str]] = []
    for (rule, way), some in curves.items():
        shown = labels.get(rule, rule)
        of_colour = shown if way in _DASHES else way
        colour = colours.setdefault(of_colour, f"C{len(colours) % 10}")
        ordered = sorted([*_shared(rule, way, curves), *some], key=lambda own: own.together)
        _curve(axes, ordered, colour, _DASHES.get(way, _WEIGHED))
        ends.append((ordered[-1].bits.mean, f"{shown}, {way}", colour))
    for line in lines:
        axes.axhline(line.bits.mean, color="black", linewidth=0.9, linestyle="-.")
        ends.append((line.bits.mean, line.name, "black"))
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens of a pass, as measured")
    axes.set_ylabel("bits per character")
    axes.set_title(_LEGEND, fontsize="small", loc="left")
    _plain_powers(axes, points)
    _look_at(axes, [own.bits.mean for own in points if own.way in _DASHES] + [line.bits.mean for line in lines])
    _name_ends(axes, ends)
    figure.suptitle(plots.wrapped(subtitle, 130), fontsize="small")
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, dpi=120, format="png")
    os.replace(temporary, path)


def spaced(places: Sequence[float], least: float) -> list[float]:
    """Move places up as little as it takes for neighbours to be `least` apart; their order stays."""
    order = sorted(range(len(places)), key=lambda number: places[number])
    found = list(places)
    for before, own in itertools.pairwise(order):
        found[own] = max(found[own], found[before] + least)
    return found


def _shared(rule: str, way: str, curves: Mapping[tuple[str, str], Sequence[Point]]) -> list[Point]:
    """The plain point at one token a pass, where in order is the same law and is not computed again."""
    if way != IN_ORDER or any(own.one_by_one for own in curves[rule, way]):
        return []
    return [own for own in curves.get((rule, PLAIN), []) if own.one_by_one]


def _curve(axes: Any, some: Sequence[Point], colour: str, dashes: str) -> None:
    x, y = [own.together for own in some], [own.bits.mean for own in some]
    axes.plot(x, y, dashes, color=colour, linewidth=1.4)
    for exact, face in ((True, colour), (False, "white")):
        own = [each for each in some if each.is_exact == exact]
        axes.errorbar(
            [each.together for each in own],
            [each.bits.mean for each in own],
            yerr=[each.bits.standard_error for each in own],
            fmt="o",
            color=colour,
            markerfacecolor=face,
            markersize=5,
            elinewidth=0.6,
        )


def _plain_powers(axes: Any, points: Sequence[Point]) -> None:
    """Write 1, 2, 4, ... below the axis."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    most = max((own.together for own in points), default=1.0)
    powers = [2.0**power for power in range(12) if 2.0**power <= 1.5 * most]
    axes.xaxis.set_major_locator(FixedLocator(powers))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _look_at(axes: Any, shown: Sequence[float]) -> None:
    """Show these heights; a curve of weighed candidates that is far above them leaves the picture."""
    if shown:
        room = _MARGIN * (max(shown) - min(shown) or 1.0)
        axes.set_ylim(min(shown) - room, max(shown) + room)


def _name_ends(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each name on the right, at the height at which its line ends, or a little above; none above the picture."""
    low, high = axes.get_ylim()
    shares = [min((bits - low) / (high - low), 1.0) for bits, _, _ in ends]
    for share, place, (_, name, colour) in zip(shares, spaced(shares, _APART), ends, strict=True):
        axes.annotate(
            name,
            xy=(1.0, share),
            xytext=(1.02, place),
            xycoords="axes fraction",
            color=colour,
            fontsize="small",
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "relpos": (0.0, 0.5)},
        )
