"""The frontier's picture: quality against entropy, seconds, passes and calls in a row, with the Pareto fronts."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edlm.frontier import grid
from edlm.frontier.points import COSTS, Point
from edlm.runs import plots as plots_of_runs

_LABELS = {
    "entropy": "unigram entropy, nats",
    "seconds": "seconds per text",
    "passes": "network passes per text",
    "calls": "network calls in a row per text",
}
_MARKERS = "osD^vPX*<"  # one less than there are colours: no two families share both


def draw(path: Path, points: Sequence[Point], subtitle: str) -> None:
    """Write the four panels as one png, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.0, 9.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2).flatten()
    families: dict[str, list[Point]] = {}
    for own in points:
        if own.setting is not None:
            families.setdefault(grid.family(own.setting), []).append(own)
    for axes, name in zip(panels, ("entropy", *COSTS), strict=True):
        for number, (family, some) in enumerate(families.items()):
            _scatter(axes, family, some, name, number)
        _held_out(axes, points, name)
        _front(axes, points, name)
        axes.set_xlabel(_LABELS[name])
        axes.set_ylabel("bits per character under the judge")
        if name in COSTS:
            axes.set_xscale("log")
            plots_of_runs.plain_numbers(axes.xaxis)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    figure.suptitle(plots_of_runs.wrapped(subtitle, 140), fontsize="small")
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, dpi=120, format="png")
    os.replace(temporary, path)


def _scatter(axes: Any, family: str, points: Sequence[Point], name: str, number: int) -> None:
    """One family: hollow where the setting is there as a control."""
    colour = f"C{number % 10}"
    for role, face in (("", colour), ("control", "none")):
        some = [own for own in points if bool(own.role) == bool(role)]
        bits = [own.figures["bits_per_character"] for own in some]
        axes.errorbar(
            [_place(own, name) for own in some],
            [value.mean for value in bits],
            yerr=[value.standard_error for value in bits],
            xerr=[own.figures["entropy"].standard_error for own in some] if name == "entropy" else None,
            fmt=_MARKERS[number % len(_MARKERS)],
            color=colour,
            markerfacecolor=face,
            elinewidth=0.6,
            label=family if some and (not role or len(some) == len(points)) else None,
        )


def _held_out(axes: Any, points: Sequence[Point], name: str) -> None:
    """Real text: a star where it has a place, a line where it costs nothing."""
    for own in (each for each in points if each.setting is None):
        bits = own.figures["bits_per_character"].mean
        if name == "entropy":
            axes.plot([own.figures["entropy"].mean], [bits], "k*", markersize=12, label=own.name)
        else:
            axes.axhline(bits, color="black", linewidth=0.8, linestyle=":")


def _front(axes: Any, points: Sequence[Point], name: str) -> None:
    """The settings that no other beats in both, joined and ringed."""
    best = sorted((_place(own, name), own.figures["bits_per_character"].mean) for own in points if name in own.fronts)
    x, y = [place for place, _ in best], [bits for _, bits in best]
    axes.plot(x, y, "--", color="black", linewidth=1.0, label="Pareto front")
    axes.scatter(x, y, s=120, facecolors="none", edgecolors="black", linewidths=1.0)


def _place(own: Point, name: str) -> float:
    return own.figures["entropy"].mean if name == "entropy" else own.cost(name)
