"""The benchmark's picture: how many times faster on each case, and how the cost grows."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edlm.runs import plot_labels, plots
from edlm.runs.plot_labels import End

_BAR, _PANEL = 0.2, 1.8  # inches of a bar and of a panel
_ROOM = 0.85  # inches on the right of the bars, for what stands at the end of the longest
_NAME_WIDTH = 26  # letters of a case's name, before it goes on in the next line
_NOTE = "Bars: medians, with the range over the rounds. Dotted: the target. Exponents are those of a fitted power."

Records = Sequence[Mapping[str, Any]]


def draw(path: Path, cases: Records, growth: Records) -> None:
    """Write ratios of the cases and curves of the sweeps as one png, whole or not at all."""
    bars = sum(1 + len(case["ratios"]) for case in cases)
    rows = [(0.4 + _BAR * bars, 1), *[(_PANEL, 1)] * len(growth)]
    named = [_power(*each) for sweep in growth for each in sweep["exponents"].items()]
    figure, [first, *others] = plots.canvas(title(cases), _NOTE, rows, named)
    _beside(first, [case["name"] for case in cases])
    _ratios(first, cases)
    for axes, sweep in zip(others, growth, strict=True):
        _curves(axes, sweep)
    plots.save(figure, path)


def title(cases: Records) -> str:
    """Say between which factors each mode is faster than code as it is usually written."""
    found: dict[str, list[float]] = {}
    for mode, ratio in itertools.chain.from_iterable(case["ratios"].items() for case in cases):
        found.setdefault(mode, []).append(ratio["median"])
    said = [f"{mode} {_span(values)}" for mode, values in found.items()]
    return f"times as fast as the textbook: {', '.join(said)}" if said else "no case was measured"


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _beside(axes: Any, names: Sequence[str]) -> None:
    """Give the names of the cases their place on the left."""
    letters = max((min(len(name), _NAME_WIDTH) for name in names), default=0)
    box = axes.get_position()
    left = (0.3 + 0.066 * letters) / plots.WIDTH
    axes.set_position((left, box.y0, 1.0 - left - _ROOM / plots.WIDTH, box.height))


def _ratios(axes: Any, cases: Records) -> None:
    """A bar per case and mode with its range over the rounds, the target as a dotted line."""
    top, ticks = 0.0, []
    for case in cases:
        ticks.append(top + (len(case["ratios"]) - 1) / 2)
        for row, (mode, ratio) in enumerate(case["ratios"].items()):
            middle = ratio["median"]
            error = [[max(0.0, middle - ratio["low"])], [max(0.0, ratio["high"] - middle)]]
            axes.barh(top + row, middle - 1, 0.9, left=1, xerr=error, color=plots.COLOURS[mode], ecolor="#444444")
            end = (max(1.0, middle, ratio["high"]), top + row)
            axes.annotate(
                f"{mode} {middle:.3g}", end, (4, 0), textcoords="offset points", va="center", fontsize="x-small"
            )
        if case["targets"]["target"] is not None:
            axes.plot([case["targets"]["target"]] * 2, [top - 0.6, top + len(case["ratios"]) - 0.4], "k:")
        top += len(case["ratios"]) + 1
    axes.set_yticks(ticks, [plots.wrapped(case["name"], _NAME_WIDTH) for case in cases], fontsize="small")
    axes.invert_yaxis()
    axes.set_xscale("log")
    plots.plain_numbers(axes.xaxis)
    axes.axvline(1.0, color="black", linewidth=0.8)
    plots.titles(axes, "times as fast as the textbook sampler", "")


def _curves(axes: Any, sweep: Mapping[str, Any]) -> None:
    """Seconds over the swept size, both logarithmic, with the fitted exponents at the ends."""
    ends = []
    for mode, fit in sweep["exponents"].items():
        colour, seconds = plots.COLOURS[mode], sweep["medians"][mode]
        axes.loglog(sweep["values"], seconds, "o-", color=colour, markersize=4, label=mode)
        ends.append(End(seconds[-1], _power(mode, fit), colour))
    axes.set_xticks(sweep["values"], [str(value) for value in sweep["values"]])
    axes.minorticks_off()
    plots.plain_numbers(axes.yaxis)
    plots.titles(axes, sweep["axis"], "seconds", sweep["name"])
    plot_labels.name_ends(axes, ends)


def _power(mode: str, fit: Mapping[str, Any]) -> str:
    return f"{mode}: power {fit['exponent']:.2f}"
