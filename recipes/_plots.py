"""The benchmark's picture: how many times faster on each case, and how the cost grows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_COLOURS = {"textbook": "tab:gray", "eager": "tab:blue", "compile": "tab:orange", "cudagraph": "tab:green"}
_PANEL = 3.6  # inches


def draw(path: Path, cases: Sequence[Mapping[str, Any]], growth: Sequence[Mapping[str, Any]]) -> None:
    """Write ratios of the cases and curves of the sweeps as one png, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = max(_PANEL, 0.6 * len(cases) + 1.2)
    figure = Figure(figsize=(max(1, len(growth)) * _PANEL, height + _PANEL), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1, height_ratios=[height, _PANEL])
    _ratios(parts[0].subplots(), cases)
    for axes, sweep in zip(parts[1].subplots(1, max(1, len(growth)), squeeze=False)[0], growth, strict=False):
        _curves(axes, sweep)
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, dpi=150, format="png")
    temporary.replace(path)


def _ratios(axes: Any, cases: Sequence[Mapping[str, Any]]) -> None:
    """One bar per case and mode, its range over the rounds, and the target as a line."""
    modes = [mode for mode in _COLOURS if any(mode in case["ratios"] for case in cases)]
    thickness = 0.8 / max(1, len(modes))
    for row, case in enumerate(cases):
        for index, mode in enumerate(modes):
            if mode in case["ratios"]:
                ratio = case["ratios"][mode]
                low, high = ratio["median"] - ratio["low"], ratio["high"] - ratio["median"]
                error = [[max(0.0, low)], [max(0.0, high)]]
                axes.barh(row + index * thickness, ratio["median"], thickness, xerr=error, color=_COLOURS[mode])
        if case["targets"].get("target"):
            axes.plot([case["targets"]["target"]] * 2, [row - thickness / 2, row + 0.8 - thickness / 2], "k:")
    axes.set_yticks([row + 0.4 - thickness / 2 for row in range(len(cases))], [case["name"] for case in cases])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("times faster than the textbook sampler (dotted: target)")
    axes.legend([_patch(mode) for mode in modes], modes, loc="best")


def _curves(axes: Any, sweep: Mapping[str, Any]) -> None:
    """Seconds over the swept size, both logarithmic, with the fitted exponents."""
    for mode, fit in sweep["exponents"].items():
        label = f"{mode}: {fit['exponent']:.2f}"
        axes.loglog(sweep["values"], sweep["medians"][mode], "o-", color=_COLOURS[mode], label=label)
    axes.set_title(sweep["name"], fontsize="small")
    axes.set_xlabel(sweep["axis"])
    axes.set_ylabel("seconds")
    axes.legend(fontsize="small", title="exponent", title_fontsize="small")


def _patch(mode: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=_COLOURS[mode])
