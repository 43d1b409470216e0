"""The picture of a curve: bits per character against tokens of a pass, a colour for each way of writing."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edlm.frontier.curve import IN_ORDER, PLAIN, Line, Point
from edlm.runs import plot_labels, plots
from edlm.runs.plot_labels import End, Mark

_DASHES = {PLAIN: "--", IN_ORDER: "-"}
_WEIGHED = ":"
_MARKERS = "osD^vPX*<>"
_HEIGHT = 3.9  # inches
_SHORT = 0.7  # of the most tokens a pass: a curve that ends before that is named at its last point
_BUNDLE = 0.035  # of the panel's height: ends that are nearer share a name
_NAMES = {"nelbo": "NELBO, any order", "ar": "AR model"}
_HOW_TO_READ = "Filled: exact. Open: an upper bound. Bars: one standard error. A mark for each order of writing."


def draw(
    path: Path, points: Sequence[Point], lines: Sequence[Line], labels: Mapping[str, str], title: str, note: str
) -> None:
    """Write the png, whole or not at all: a colour for each way, a mark for each rule; open marks are bounds."""
    curves = _curves(points)
    figure, [axes] = plots.canvas(title, f"{_HOW_TO_READ} {note}", [(_HEIGHT, 1)], names=["m" * plot_labels.WIDEST])
    axes.set_xscale("log", base=2)
    axes.set_ylim(_heights(points, lines))
    markers = dict(zip(dict.fromkeys(own.rule for own in points), itertools.cycle(_MARKERS), strict=False))
    most = max((own.together for own in points), default=1.0)
    ends: dict[str, list[End]] = {}
    early: list[Mark] = []
    for (rule, way), some in curves.items():
        colour, name, last = colour_of(way), labels.get(rule, rule), some[-1]
        _curve(axes, some, colour, markers[rule] + _DASHES.get(way, _WEIGHED))
        if last.together < _SHORT * most and way == PLAIN:
            early.append(Mark(last.together, last.bits.mean, name, colour))
        else:
            ends.setdefault(way, []).append(End(last.bits.mean, name, colour))
    for line in lines:
        axes.axhline(line.bits.mean, color="black", linewidth=0.9, linestyle=":")
    plots.plain_powers(axes.xaxis, most)
    plots.titles(axes, "tokens written in a pass, as measured", "bits per character (lower is better)")
    plot_labels.name_points(axes, early)
    plot_labels.mark_outliers(axes, [Mark(own.together, own.bits.mean, "", colour_of(own.way)) for own in points])
    plot_labels.name_ends(axes, [*_named(axes, ends), *(_named_line(each) for each in lines)])
    plots.save(figure, path)


def colour_of(way: str) -> str:
    """Return the colour of a way of writing, however many candidates it weighs."""
    return plots.colour(way.partition(",")[0])


def _curves(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
    """The points of each rule and way by their tokens of a pass; in order begins where plain is the same law."""
    found: dict[tuple[str, str], list[Point]] = {}
    for own in points:
        found.setdefault((own.rule, own.way), []).append(own)
    return {
        (rule, way): sorted([*_shared(rule, way, found), *some], key=lambda own: own.together)
        for (rule, way), some in found.items()
    }


def _heights(points: Sequence[Point], lines: Sequence[Line]) -> tuple[float, float]:
    """The ends of the axis: all of plain and in order, and of the rest what would not flatten them."""
    always = [own.bits.mean for own in points if own.way in _DASHES]
    every = plots.limits([own.bits.mean for own in points] + [line.bits.mean for line in lines])
    shown = plots.limits([min(always), max(always)]) if always else every
    return min(every[0], shown[0]), max(every[1], shown[1])


def _shared(rule: str, way: str, curves: Mapping[tuple[str, str], Sequence[Point]]) -> list[Point]:
    """The plain point at one token a pass, where in order is the same law and is not computed again."""
    if way != IN_ORDER or any(own.one_by_one for own in curves[rule, way]):
        return []
    return [own for own in curves.get((rule, PLAIN), []) if own.one_by_one]


def _curve(axes: Any, some: Sequence[Point], colour: str, style: str) -> None:
    x, y = [own.together for own in some], [own.bits.mean for own in some]
    axes.plot(x, y, style[1:], color=colour, linewidth=1.3)
    for exact, face in ((True, colour), (False, "white")):
        own = [each for each in some if each.is_exact == exact]
        axes.errorbar(
            [each.together for each in own],
            [each.bits.mean for each in own],
            yerr=[each.bits.standard_error for each in own],
            fmt=style[0],
            color=colour,
            markerfacecolor=face,
            markersize=4.5,
            elinewidth=0.8,
        )


def _named(axes: Any, ends: Mapping[str, Sequence[End]]) -> list[End]:
    """The names of the curves of each way, those that end together in one."""
    low, high = axes.get_ylim()
    return [
        each._replace(name=f"{way.replace('_', ' ')}: {each.name}")
        for way, some in ends.items()
        for each in plot_labels.merged(some, _BUNDLE * (high - low))
    ]


def _named_line(line: Line) -> End:
    return End(line.bits.mean, _NAMES.get(line.name, line.name), "black")
