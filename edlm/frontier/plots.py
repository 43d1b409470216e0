"""The frontier's picture: quality against network passes, and smaller against entropy, seconds and calls in a row."""

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edlm.frontier import grid
from edlm.frontier.points import Point, pareto
from edlm.runs import plot_labels, plots
from edlm.runs.plot_labels import End, Mark
from edlm.samplers.sampler import Proposal, Sampler

_LABELS = {
    "passes": "network passes per text",
    "entropy": "entropy of a text, nats",
    "seconds": "seconds per text",
    "calls": "calls in a row per text",
}
_BITS = {"passes": "bits per character under the judge", "entropy": "bits per character"}
_MARKERS = "osD^vPX*<>"
_LARGE, _SMALL = 3.5, 2.0  # inches of a panel's height
_HOW_TO_READ = (
    "Lower is better. A number alone: tokens a pass; T: steps. Bars: one standard error. Hollow: a control. Grey: no "
    "other sampler is better in both."
)
_NAMES = {"ar": "AR model"}


def draw(path: Path, points: Sequence[Point], title: str, note: str) -> None:
    """Write the panels as one png, whole or not at all: a colour for each method, a mark for each selection.

    There is one for each cost that is known, and one for entropy.
    """
    shapes = dict(zip(dict.fromkeys(_selection(own) for own in points), itertools.cycle(_MARKERS), strict=False))
    how = f"{_HOW_TO_READ} {_shapes(shapes)}{note}"
    names = [_name(own) for own in points if not own.role]
    shown = [name for name in _LABELS if any(not math.isnan(_place(own, name)) for own in points)]
    rows = ((_LARGE, 1), (_SMALL, len(shown) - 1))
    figure, panels = plots.canvas(title, how, rows, names=[*names, "held-out text 0.00 ↓"])
    inside = plots.limits([_bits(own) for own in points])
    for axes, name in zip(panels, shown, strict=True):
        axes.set_ylim(inside)
        _scale(axes, points, name)
        for own in points:
            if own.setting is not None:
                _mark(axes, own, name, shapes[_selection(own)])
        _held_out(axes, points, name)
        _front(axes, points, name)
        plots.titles(axes, _LABELS[name], _BITS.get(name, ""))
        _outside(axes, points, name, with_values=axes is panels[0])
    _name_all(panels[0], points)
    plots.save(figure, path)


def _scale(axes: Any, points: Sequence[Point], name: str) -> None:
    """Show all costs of samplers, on a logarithmic axis; of entropies those that no outlier flattens."""
    of_samplers = [_place(own, name) for own in points if isinstance(own.setting, Sampler)]
    places = [each for each in of_samplers or [_place(own, name) for own in points] if not math.isnan(each)]
    if name == "entropy":
        axes.set_xlim(plots.limits(places))
    elif places:
        axes.set_xscale("log")
        axes.set_xlim(0.8 * min(places), 1.25 * max(places))
        plots.plain_numbers(axes.xaxis, (1.0, 2.0, 5.0) if name == "passes" else (1.0, 3.0))


def _mark(axes: Any, own: Point, name: str, shape: str) -> None:
    """One setting, hollow where it is there as a control."""
    colour, bits = _colour(own), own.figures["bits_per_character"]
    axes.errorbar(
        [_place(own, name)],
        [bits.mean],
        yerr=[bits.standard_error],
        xerr=[own.figures["entropy"].standard_error] if name == "entropy" else None,
        fmt=shape,
        color=colour,
        markerfacecolor="white" if own.role else colour,
        markersize=5 if name == "passes" else 3.5,
        elinewidth=0.7,
        alpha=0.9,
    )


def _held_out(axes: Any, points: Sequence[Point], name: str) -> None:
    """Real text: a star where it has a place, a line where it costs nothing."""
    for own in (each for each in points if each.setting is None):
        colour = plots.COLOURS["held-out text"]
        if name == "entropy":
            axes.plot([own.figures["entropy"].mean], [_bits(own)], "*", color=colour, markersize=9)
        else:
            axes.axhline(_bits(own), color=colour, linewidth=0.9, linestyle=":")


def _front(axes: Any, points: Sequence[Point], name: str) -> None:
    """The samplers of the denoiser that no other beats in both, joined; nothing there to beat an AR model."""
    samplers = [own for own in points if isinstance(own.setting, Sampler)]
    places = [(_bits(own), _place(own, name) * (-1.0 if name == "entropy" else 1.0)) for own in samplers]
    best = sorted((_place(own, name), _bits(own)) for own, on in zip(samplers, pareto(places), strict=True) if on)
    axes.plot([place for place, _ in best], [bits for _, bits in best], "-", color="#CCCCCC", linewidth=4.0, zorder=0)


def _outside(axes: Any, points: Iterable[Point], name: str, with_values: bool) -> None:
    """Points above or below the panel, in the large one with its value, and its cost where that lies beside it."""
    (low, high), (left, right) = axes.get_ylim(), axes.get_xlim()
    far: dict[tuple[float, bool], Mark] = {}  # of those at one place of the edge, the farthest
    for own in (each for each in points if each.setting is not None and not low <= _bits(each) <= high):
        place, bits = _place(own, name), _bits(own)
        shown = min(max(place, left), right)
        word = "" if shown == place or not with_values else f"at {place:.3g}:"
        known = far.setdefault((shown, bits > high), Mark(shown, bits, word, _colour(own)))
        if abs(bits - high) > abs(known.y - high):
            far[shown, bits > high] = Mark(shown, bits, word, _colour(own))
    plot_labels.mark_outliers(axes, far.values(), with_values)


def _name_all(axes: Any, points: Sequence[Point]) -> None:
    """Each method on the right, at the height of its best setting; at the points their steps and candidates."""
    lowest: dict[str, Point] = {}
    for own in sorted(points, key=_bits):
        if not own.role:
            lowest.setdefault(_name(own), own)
    samplers = [own for own in points if isinstance(own.setting, Sampler)]
    first = sorted(samplers, key=lambda own: (bool(own.role), _bits(own)))
    words = [Mark(_place(own, "passes"), _bits(own), _word(own), _colour(own)) for own in first]
    plot_labels.name_points(axes, words)
    plot_labels.name_ends(axes, [End(_bits(own), name, _colour(own)) for name, own in lowest.items()])


def _word(own: Point) -> str:
    """The word at a point: which control, or which setting of its method."""
    assert isinstance(own.setting, Sampler)
    return own.role.partition(" of ")[0].replace("_", " ") if own.role else word(own.setting)


def word(setting: Sampler) -> str:
    """Say what tells a point from others of its method: steps or tokens a pass, candidates, and a law of its own."""
    found, proposal = setting.candidates, setting.proposal
    parts = [str(setting.plan).replace(" a pass by ", ", ").replace(" a pass", "")]
    parts += [f"k={found}" if isinstance(found, int) else str(found)] if found != 1 else []
    parts += [f"temp {proposal.temperature:g}"] if proposal.temperature != Proposal().temperature else []
    parts += [f"nucleus {proposal.nucleus:g}"] if proposal.nucleus != Proposal().nucleus else []
    return ", ".join(parts)


def _name(own: Point) -> str:
    if own.setting is None:
        return own.name
    method = grid.method(own.setting)
    return _NAMES.get(method, method)


def _colour(own: Point) -> str:
    return plots.colour(own.name if own.setting is None else grid.method(own.setting))


def _selection(own: Point) -> str:
    return own.setting.chooses.name if isinstance(own.setting, Sampler) and own.setting.correction else ""


def _shapes(shapes: dict[str, str]) -> str:
    """Say which mark is which selection, where there are several."""
    called = {"o": "circles", "s": "squares", "D": "diamonds", "^": "triangles"}
    said = [f"{called.get(shape, shape)}: {name}" for name, shape in shapes.items() if name]
    return f"{', '.join(said).capitalize()}. " if len(said) > 1 else ""


def _bits(own: Point) -> float:
    return own.figures["bits_per_character"].mean


def _place(own: Point, name: str) -> float:
    if name == "entropy":
        return own.figures["entropy"].mean
    return math.nan if own.setting is None else own.cost(name)
