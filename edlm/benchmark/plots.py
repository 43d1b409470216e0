"""The benchmark's picture: how many times faster on each case, and how the cost grows."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edlm.runs.plots import plain_numbers

_COLOURS = {"textbook": "tab:gray", "eager": "tab:blue", "compile": "tab:orange", "cudagraph": "tab:green"}
_WIDTH, _PANEL, _BAR, _PER_ROW = 11.0, 3.4, 0.28, 3  # inches, and panels beside each other


def draw(path: Path, cases: Sequence[Mapping[str, Any]], growth: Sequence[Mapping[str, Any]]) -> None:
    """Write ratios of the cases and curves of the sweeps as one png, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    per_row = min(_PER_ROW, max(1, len(growth)))
    lines, bars = -(-len(growth) // per_row), sum(1 + len(case["ratios"]) for case in cases)
    heights = [1.2 + _BAR * bars, max(0.1, lines * _PANEL)]
    figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1, height_ratios=heights)
    _ratios(parts[0].subplots(), cases)
    if growth:
        panels = parts[1].subplots(lines, per_row, squeeze=False).flatten()
        for axes, sweep in zip(panels, growth, strict=False):
            _curves(axes, sweep)
        for axes in panels[len(growth) :]:
            axes.set_axis_off()
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, dpi=120, format="png")
    os.replace(temporary, path)


def _ratios(axes: Any, cases: Sequence[Mapping[str, Any]]) -> None:
    """A bar per case and mode with its range over the rounds, the target as a dotted line."""
    from matplotlib.patches import Patch

    top, ticks, modes = 0.0, [], set()
    for case in cases:
        ticks.append(top + (len(case["ratios"]) - 1) / 2)
        for row, (mode, ratio) in enumerate(case["ratios"].items()):
            modes.add(mode)
            middle = ratio["median"]
            error = [[max(0.0, middle - ratio["low"])], [max(0.0, ratio["high"] - middle)]]
            axes.barh(top + row, middle - 1, 0.9, left=1, xerr=error, color=_COLOURS[mode])
            end = (max(1.0, middle, ratio["high"]), top + row)
            axes.annotate(f"{middle:.3g}", end, (4, 0), textcoords="offset points", va="center", fontsize="small")
        if case["targets"]["target"] is not None:
            axes.plot([case["targets"]["target"]] * 2, [top - 0.6, top + len(case["ratios"]) - 0.4], "k:")
        top += len(case["ratios"]) + 1
    axes.set_yticks(ticks, [case["name"] for case in cases], fontsize="small")
    axes.invert_yaxis()
    axes.set_xscale("log")
    plain_numbers(axes.xaxis)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("times faster than the textbook sampler (dotted: the target)")
    patches = [Patch(color=_COLOURS[mode], label=mode) for mode in _COLOURS if mode in modes]
    axes.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _curves(axes: Any, sweep: Mapping[str, Any]) -> None:
    """Seconds over the swept size, both logarithmic, with the fitted exponents."""
    for mode, fit in sweep["exponents"].items():
        label = f"{mode}: {fit['exponent']:.2f}"
        axes.loglog(sweep["values"], sweep["medians"][mode], "o-", color=_COLOURS[mode], label=label)
    axes.set_title(sweep["name"], fontsize="small")
    axes.set_xticks(sweep["values"], [str(value) for value in sweep["values"]])
    axes.minorticks_off()
    plain_numbers(axes.yaxis)
    axes.set_xlabel(sweep["axis"])
    axes.set_ylabel("seconds")
    axes.legend(fontsize="small", title="exponent", title_fontsize="small")
