"""Names at lines and points instead of a legend: none lies on another, and what is outside a panel says its value."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from edlm.runs import plots

WIDEST = 26  # letters of a name beside a line, before it goes on in the next
_AWAY = 0.16  # inches from a panel to the names beside it
_POINTS = 8  # of a name beside a line
_SMALL = 7  # of a word at a point
_NEAR = 0.08  # of a panel's width, from its sides: words there stand beside their mark
_LINE = 1.25  # heights of a line of text, from one name to the next
_LETTER = 0.7  # widths of a letter, in points of its size
_STEPS = 24  # places at which a line between two points is kept free
_AROUND = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))  # where a word may stand, best first

Box = tuple[float, float, float, float]  # left, bottom, right, top


class End(NamedTuple):
    """The end of a line: the height at which it leaves the panel, its name and its colour."""

    value: float
    name: str
    colour: str


class Mark(NamedTuple):
    """A point and the word at it."""

    x: float
    y: float
    word: str
    colour: str


def name_ends(axes: Any, ends: Sequence[End]) -> None:
    """Write the names on the right, each at the height of its line or as near as others let it.

    The limits of the panel must be set. What ends outside of them stands at the edge with an arrow and its value.
    """
    low, high = axes.get_ylim()
    line = _LINE * _POINTS / 72 / _inches(axes)[1]
    names = [plots.wrapped(f"{each.name}{_outside(each.value, low, high)}", WIDEST) for each in ends]
    shares = [min(max(_share(axes, each.value), 0.0), 1.0) for each in ends]
    places = spaced(shares, [line * len(name.splitlines()) for name in names])
    for share, place, name, each in zip(shares, places, names, ends, strict=True):
        axes.annotate(
            name,
            xy=(1.0, share),
            xytext=(1.0 + _AWAY / _inches(axes)[0], place),
            xycoords="axes fraction",
            color=each.colour,
            fontsize=_POINTS,
            va="center",
            arrowprops={"arrowstyle": "-", "color": each.colour, "linewidth": 0.6, "relpos": (0.0, 0.5)},
        )


def merged(ends: Sequence[End], least: float) -> list[End]:
    """Join the names of lines that end nearer to each other than `least`, lowest first: they are read as one bundle."""
    groups: list[list[End]] = []
    for each in sorted(ends, key=lambda end: end.value):
        if groups and each.value - groups[-1][-1].value < least:
            groups[-1].append(each)
        else:
            groups.append([each])
    return [
        End(sum(end.value for end in some) / len(some), ", ".join(end.name for end in some), some[0].colour)
        for some in groups
    ]


def spaced(places: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Move the middles of labels as little as it takes for none to lie on another; their order stays.

    The sum of the squares of the moves is the least there is: an isotonic regression of what is left of each place
    when the labels below it are taken away.
    """
    order = sorted(range(len(places)), key=lambda number: places[number])
    below = list(itertools.accumulate((heights[number] for number in order), initial=0.0))
    offsets = [start + heights[number] / 2 for start, number in zip(below, order, strict=False)]
    blocks: list[tuple[float, int]] = []  # the mean of a block, and how many labels it has
    for number, offset in zip(order, offsets, strict=True):
        blocks.append((places[number] - offset, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (low, few), (high, more) = blocks[-2:]
            blocks[-2:] = [((low * few + high * more) / (few + more), few + more)]
    levels = itertools.chain.from_iterable([mean] * count for mean, count in blocks)
    found = list(places)
    for number, offset, level in zip(order, offsets, levels, strict=True):
        found[number] = level + offset
    return found


def name_points(axes: Any, marks: Iterable[Mark]) -> None:
    """Write a word at each point where there is room; a word that has none is left out.

    The limits and scales of the panel must be set, and its lines be drawn: no word lies on a point or a line.
    """
    taken = _points_taken(axes)
    boxes: list[Box] = []
    for mark in marks:
        at = axes.transData.transform((mark.x, mark.y))
        pixel = axes.figure.dpi / 72
        wide, tall = _LETTER * _SMALL * len(mark.word) * pixel, 1.15 * _SMALL * pixel
        for right, up in _AROUND:
            middle = (at[0] + right * (wide / 2 + 5 * pixel), at[1] + up * (tall / 2 + 4 * pixel))
            box = (middle[0] - wide / 2, middle[1] - tall / 2, middle[0] + wide / 2, middle[1] + tall / 2)
            if _is_free(box, axes, taken, boxes):
                boxes.append(box)
                place = axes.transAxes.inverted().transform(middle)
                axes.text(
                    *place,
                    mark.word,
                    transform=axes.transAxes,
                    color=mark.colour,
                    fontsize=_SMALL,
                    ha="center",
                    va="center",
                )
                break


def mark_outliers(axes: Any, points: Iterable[Mark], with_values: bool = True) -> None:
    """Show each point that is above or below the panel as a triangle at its edge, with its value."""
    low, high = axes.get_ylim()
    for mark in points:
        if low <= mark.y <= high:
            continue
        share, shape, down = (1.0, "^", -1) if mark.y > high else (0.0, "v", 1)
        where = axes.get_xaxis_transform()
        axes.plot([mark.x], [share], shape, transform=where, color=mark.colour, clip_on=False, markersize=6)
        if not with_values:
            continue
        beside = _share_across(axes, mark.x)
        side = -1 if beside > 1 - _NEAR else 1 if beside < _NEAR else 0
        axes.annotate(
            f"{mark.word} {_number(mark.y)}".strip(),
            xy=(mark.x, share),
            xycoords=where,
            xytext=(4 * side, 9 * down),
            textcoords="offset points",
            color=mark.colour,
            fontsize=_SMALL,
            ha=("center", "left", "right")[side],
            va="center",
        )


def _outside(value: float, low: float, high: float) -> str:
    """The value and where it lies, of what is not between these ends."""
    if low <= value <= high:
        return ""
    return f" {_number(value)} {'↓' if value < low else '↑'}"


def _number(value: float) -> str:
    """Three digits, and no power of ten where there are more before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000.0 else f"{value:.3g}"


def _inches(axes: Any) -> tuple[float, float]:
    """The width and the height of a panel."""
    box, (width, height) = axes.get_position(), axes.figure.get_size_inches()
    return box.width * width, box.height * height


def _share_across(axes: Any, value: float) -> float:
    """The place of a value across its panel, from 0 to 1 inside of it."""
    place = axes.transData.transform((value, axes.get_ylim()[0]))
    return float(axes.transAxes.inverted().transform(place)[0])


def _share(axes: Any, value: float) -> float:
    """The height of a value in its panel, from 0 to 1 inside of it."""
    place = axes.transData.transform((axes.get_xlim()[0], value))
    return float(axes.transAxes.inverted().transform(place)[1])


def _points_taken(axes: Any) -> list[tuple[float, float]]:
    """Pixels of the panel's lines and bars: their points, and places between two of them where they are joined."""
    found: list[tuple[float, float]] = []
    joined = [line.get_transform().transform(line.get_xydata()) for line in axes.lines]
    for line, places in zip(axes.lines, joined, strict=True):
        found += [(float(x), float(y)) for x, y in places]
        if line.get_linestyle() != "None":
            found += _between(places)
    for bars in axes.collections:
        for segment in bars.get_segments() if hasattr(bars, "get_segments") else []:
            found += _between(axes.transData.transform(segment))
    return found


def _between(places: Any) -> list[tuple[float, float]]:
    shares = [step / _STEPS for step in range(1, _STEPS)]
    return [
        (float(left + share * (right - left)), float(low + share * (high - low)))
        for (left, low), (right, high) in itertools.pairwise(places)
        for share in shares
    ]


def _is_free(box: Box, axes: Any, taken: Sequence[tuple[float, float]], boxes: Sequence[Box]) -> bool:
    """Whether a word fits into the panel without lying on a line, a point or another word."""
    left, bottom, right, top = box
    panel = axes.bbox
    if left < panel.x0 or right > panel.x1 or bottom < panel.y0 or top > panel.y1:
        return False
    if any(left <= x <= right and bottom <= y <= top for x, y in taken):
        return False
    return all(right < other[0] or left > other[2] or top < other[1] or bottom > other[3] for other in boxes)
