"""The style of every picture: one colour for each method, a canvas that can be read at 700 pixels, robust limits."""

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

# Colours that differ for colour-blind readers too (Okabe and Ito, and two of Tol's; an exact energy has the dark one of
# what is learned in its place). The same method has the same colour in all pictures.
COLOURS: Mapping[str, str] = {
    "plain": "#D55E00",
    "in order": "#0072B2",
    "chain rule": "#56B4E9",
    "learned": "#009E73",
    "transition": "#CC79A7",
    "joint": "#E69F00",
    "posterior": "#882255",
    "carry over": "#999933",
    "exact": "#00694D",
    "exact transition": "#8A3F6B",
    "exact carry over": "#6E6E25",
    "ar": "#000000",
    "held-out text": "#555555",
    "textbook": "#888888",
    "eager": "#56B4E9",
    "compile": "#0072B2",
    "cudagraph": "#009E73",
    "training": "#999999",
    "held out": "#0072B2",
}
_OTHERS = ("#332288", "#117733", "#AA4499", "#661100")  # of methods that this table does not know, by their names
WIDTH = 7.0  # inches: at 100 pixels an inch, what a page shows
_DPI = 150
_LEFT, _BOTTOM, _GAP, _BETWEEN = 0.72, 0.56, 0.5, 0.8  # inches beside panels, under them, between columns and rows
_LINE, _NOTE = 0.2, 0.14  # inches of a line of the title, and of a note
_TITLE, _TEXT, _SMALL = 11, 9, 7  # points
_TITLE_WIDTH, _NOTE_WIDTH = 74, 122  # characters that fit one line
_LETTER = 0.074  # inches of a letter of a name, in the mean
_WIDEST = 2.0  # inches for names beside a panel
_FENCE, _GAP_OF_ALL = 1.5, 0.75  # of the middle half (Tukey), and of all within the fences


def colour(method: str) -> str:
    """Return the colour of a method: that of the table, or of its last words in it, or one that its name picks."""
    name = method.replace("_", " ")
    known = [each for each in COLOURS if name == each or name.endswith(f" {each}")]
    if known:
        return COLOURS[max(known, key=len)]
    return _OTHERS[sum(map(ord, name)) % len(_OTHERS)]


def shades(count: int) -> list[str]:
    """Return so many colours from dark to light, for what has an order: viridis, without its lightest end."""
    from matplotlib import colormaps, colors

    return [colors.to_hex(colormaps["viridis"](0.85 * number / max(1, count - 1))) for number in range(count)]


def canvas(
    title: str, note: str = "", rows: Sequence[tuple[float, int]] = ((3.4, 1),), names: Iterable[str] = ()
) -> tuple[Any, list[Any]]:
    """Build a figure with rows of panels, the finding above and a note below.

    Args:
        title: What the picture shows, as a sentence.
        note: What was measured and how, in small letters.
        rows: Inches of each row's height, and how many panels it has.
        names: What will stand to the right of the lines of a row with one panel, so that it has its place.

    Returns:
        The figure, which nothing has drawn yet, and its panels, row after row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    said, noted = wrapped(title[:1].upper() + title[1:], _TITLE_WIDTH), wrapped(note, _NOTE_WIDTH)
    top, bottom = 0.24 + _LINE * len(said.splitlines()), _BOTTOM + _NOTE * len(noted.splitlines())
    height = top + sum(tall for tall, _ in rows) + _BETWEEN * (len(rows) - 1) + bottom
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    wide = min(_WIDEST, _LETTER * max(map(len, names), default=0) + 0.12)
    panels, above = [], height - top
    for tall, columns in rows:
        for left, right in _places(columns, wide if columns == 1 else 0.0):
            box = (left / WIDTH, (above - tall) / height, (right - left) / WIDTH, tall / height)
            panels.append(figure.add_axes(box))
            _plain_frame(panels[-1])
        above -= tall + _BETWEEN
    figure.text(0.012, 1 - 0.1 / height, said, fontsize=_TITLE, fontweight="bold", va="top")
    figure.text(0.012, 0.06 / height, noted, fontsize=_SMALL, color="#444444", va="bottom")
    return figure, panels


def titles(axes: Any, x: str, y: str, title: str = "") -> None:
    """Name the axes of a panel, with their units."""
    axes.set_xlabel(x, fontsize=_TEXT)
    axes.set_ylabel(y, fontsize=_TEXT)
    if title:
        axes.set_title(title, fontsize=_TEXT, loc="left", y=1.0)  # where it would be after a search for room


def save(figure: Any, path: Path) -> None:
    """Write the png, whole or not at all. Raises OSError if it cannot be written."""
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, dpi=_DPI, format="png", pil_kwargs={"compress_level": 4})  # 9: a third slower, 5 % less
    os.replace(temporary, path)


def wrapped(text: str, width: int) -> str:
    """Split a title into lines, none longer than so many characters."""
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


def plain_numbers(axis: Any, steps: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """Write 0.1, 0.2, 0.5, 1 on a logarithmic axis, or other steps of a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def plain_powers(axis: Any, most: float) -> None:
    """Write 1, 2, 4, ... on a logarithmic axis of base 2, up to the power above the largest value."""
    from matplotlib.ticker import FixedLocator, StrMethodFormatter

    axis.set_major_locator(FixedLocator([2.0**power for power in range(24) if 2.0**power <= 1.5 * most]))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def limits(values: Iterable[float], margin: float = 0.06) -> tuple[float, float]:
    """Return the ends of an axis on which no outlier flattens the rest.

    An outlier lies past Tukey's fences, and past a gap that is wide beside all that lies within them: the end of a
    curve that rises is none. On a logarithmic axis, give logarithms.
    """
    shown = sorted(values)
    if not shown:
        return 0.0, 1.0
    if len(shown) > 3:
        first, _, third = quantiles(shown, n=4, method="inclusive")
        low, high = first - _FENCE * (third - first), third + _FENCE * (third - first)
        within = [value for value in shown if low <= value <= high]
        gap = _GAP_OF_ALL * (within[-1] - within[0])
        shown = _without_tail(shown, high, gap)
        shown = [-value for value in reversed(_without_tail([-value for value in reversed(shown)], -low, gap))]
    room = margin * ((shown[-1] - shown[0]) or abs(shown[0]) or 1.0)
    return shown[0] - room, shown[-1] + room


def _places(columns: int, names: float) -> list[tuple[float, float]]:
    """The left and right ends of panels beside each other, in inches, with room for names behind the last."""
    wide = (WIDTH - _LEFT - _GAP * (columns - 1) - names - 0.15) / columns
    lefts = [_LEFT + column * (wide + _GAP) for column in range(columns)]
    return [(left, left + wide) for left in lefts]


def _without_tail(ascending: Sequence[float], fence: float, gap: float) -> list[float]:
    """Leave out what lies past the fence, from the first wide gap on. If these are all one value, nothing does."""
    for number in range(1, len(ascending)):
        apart = ascending[number] - ascending[number - 1]
        if gap > 0.0 and ascending[number] > fence and apart > gap:
            return list(ascending[:number])
    return list(ascending)


def _plain_frame(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=_TEXT - 0.5)
