"""Samplers beside a source as csv, as a Markdown table and as a picture: distance against steps and against passes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edlm.frontier import grid
from edlm.frontier.exact import Figures
from edlm.frontier.grid import Entry
from edlm.frontier.points import pareto
from edlm.runs import plots as plots_of_runs
from edlm.runs import tables
from edlm.samplers import expectation
from edlm.samplers.sampler import Proposal, Sampler

TITLES = {
    "total_variation": "total variation",
    "kl": "KL",
    "kl_bound": "KL at most",
    "excess": "excess -log q",
    "pairs_": "pairs, distance ",
    "seconds": "seconds",
    "denoiser_passes": "denoiser passes",
    "energy_passes": "energy passes",
    "passes": "passes",
    "calls": "calls in a row",
    "ess": "ESS",
    "log_weight_std": "s.d. of log w",
}
HOW_TO_READ = (
    "KL is `E_q log(q / p)` from the source's law q to the sampler's p, in nats per token, and total variation is of "
    "whole texts: both by enumeration, without error. `KL at most`: a bound of it, the mean over texts of the source "
    "of the sampler's T-step bound plus log q. `excess -log q`: mean of -log q over the sampler's texts less that over "
    "the source's, in nats per token; no KL, and negative for a sampler that is too sharp. `pairs`: total variation of "
    "the law of two tokens so far apart. The row of the source itself, as many texts, is the floor of what is sampled. "
    "A pass reads one text. `front`: no other setting has both a smaller distance and fewer passes.",
)
_NOTHING = 1e-9  # one position at a time, an exact denoiser has no distance but rounding: no place on a log axis
_MARKERS = "osD^vPX*"


class Row(NamedTuple):
    """A sampler, or the source itself where there is no setting, and what of it is a control."""

    name: str
    setting: Sampler | None
    role: str
    figures: Figures


def distance(rows: Sequence[Row]) -> str:
    """Name the figure that settings are compared by: of whole texts where all have it, else of two tokens."""
    if all("total_variation" in row.figures for row in rows):
        return "total_variation"
    return next(name for name in rows[0].figures if name.startswith("pairs_"))


def fronts(rows: Sequence[Row]) -> set[str]:
    """Name the settings that no other beats in distance and passes together."""
    name, samplers = distance(rows), [row for row in rows if row.setting is not None]
    best = pareto([(row.figures[name][0], row.figures["passes"][0]) for row in samplers])
    return {row.name for row, on in zip(samplers, best, strict=True) if on}


def to_csv(rows: Sequence[Row]) -> str:
    """Write every figure in a column of its own, its error behind it; empty where there is none."""
    names, best = _names(rows), fronts(rows)
    columns = [column for name in names for column in (name, f"{name}_error")]
    lines: list[list[object]] = [["name", *grid.COLUMNS, "control", "front", *columns]]
    for row in rows:
        figures = [cell for name in names for cell in row.figures.get(name, [None, None])]
        lines.append([row.name, *grid.cells(row.setting), row.role, int(row.name in best), *figures])
    return tables.to_csv(lines)


def to_markdown(rows: Sequence[Row], remarks: Sequence[str]) -> str:
    """Write the table for people, with the remarks in front of it and how it is to be read behind."""
    names, best = _names(rows), fronts(rows)
    lines = [["setting", *map(_title, names), "front", "control"]]
    for row in rows:
        cells = [shown(row.figures.get(name)) for name in names]
        lines.append([row.name, *cells, "passes" if row.name in best else "", row.role])
    return "\n\n".join([*remarks, tables.markdown(lines), *HOW_TO_READ]) + "\n"


def short(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Pick the columns that fit a terminal."""
    wanted = ("total_variation", "kl", "kl_bound", "excess", distance(rows), "ess")
    names = [name for name in _names(rows) if name in wanted]
    lines: list[tuple[str, ...]] = [("", *map(_title, names), "passes")]
    for row in rows:
        lines.append((row.name, *(shown(row.figures.get(name)) or "-" for name in [*names, "passes"])))
    return lines


def shown(value: Sequence[float] | None) -> str:
    """Show a figure with its error, if it has one."""
    if value is None:
        return ""
    return f"{value[0]:.4g}" + (f" ± {value[1]:.2g}" if value[1] > 0.0 else "")


def draw(path: Path, rows: Sequence[Row], length: int, subtitle: str) -> None:
    """Write both panels as one png, whole or not at all; length: of the texts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    steps, passes = figure.subplots(1, 2, sharey=True)
    name = distance(rows)
    for axes, label in ((steps, "passes of the plan"), (passes, "network passes per text")):
        _curves(axes, rows, name, length if axes is steps else None)
        axes.set(xscale="log", yscale="log", xlabel=label)
        axes.set_ylim(bottom=0.7 * min(_shown_distances(rows, name), default=_NOTHING))
        plots_of_runs.plain_numbers(axes.xaxis)
        plots_of_runs.plain_numbers(axes.yaxis)
    steps.set_ylabel("total variation to the source" + ("" if name == "total_variation" else f", {_title(name)}"))
    for row in rows:
        if row.setting is not None and row.figures[name][0] <= _NOTHING:
            cost = row.figures["passes"][0]
            passes.axvline(cost, color="C0", linestyle="-.", linewidth=1.0, label=f"{row.name}: no distance")
    best = fronts(rows)
    places = sorted((row.figures["passes"][0], row.figures[name][0]) for row in rows if row.name in best)
    places = [(cost, far) for cost, far in places if far > _NOTHING]
    passes.plot(
        *zip(*places, strict=True), color="black", linestyle="--", linewidth=1.0, label="Pareto front", zorder=0
    )
    handles, labels = passes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    figure.suptitle(plots_of_runs.wrapped(subtitle, 110), fontsize="small", x=0.01, horizontalalignment="left")
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, dpi=110, format="png")
    os.replace(temporary, path)


class _Curve(NamedTuple):
    """The values that the points of one curve share."""

    family: str
    candidates: str
    proposal: Proposal
    is_control: bool

    @classmethod
    def of(cls, sampler: Sampler, role: str) -> "_Curve":
        """The curve that a sampler is on: all of it but plan and window."""
        found = sampler.candidates
        candidates = str(found) if not isinstance(found, int) else "" if found == 1 else f"k={found}"
        return cls(grid.family(sampler), candidates, sampler.proposal, bool(role))

    def __str__(self) -> str:
        changed = (found for found in self.proposal._asdict().items() if found not in Proposal()._asdict().items())
        heat = [f"{name} {value:g}" for name, value in changed]
        said = ", ".join(filter(None, [self.family, self.candidates, *heat]))
        return f"{said} (control)" if self.is_control else said


def _curves(axes: Any, rows: Sequence[Row], name: str, length: int | None) -> None:
    """Curves against the passes of the plans of texts of this length, or against all passes; the source a dotted line.

    Controls are hollow points, and other laws of proposals dotted.
    """
    curves: dict[_Curve, list[tuple[float, float]]] = {}
    for row in rows:
        far = row.figures[name][0]
        if row.setting is None:
            if far > 0.0:
                axes.axhline(far, color="black", linewidth=0.8, linestyle=":", label=row.name)
        elif far > _NOTHING:
            expected = None if length is None else expectation.expected(row.setting, length)
            taken = "passes" if length is None else "denoiser_passes"
            cost = row.figures[taken][0] if expected is None else expected.passes
            curves.setdefault(_Curve.of(row.setting, row.role), []).append((cost, far))
    families = list(dict.fromkeys(curve.family for curve in curves))
    candidates = sorted({curve.candidates for curve in curves}, key=lambda each: (len(each), each))
    for curve, points in curves.items():
        colour = f"C{families.index(curve.family) % 10}"
        line = "none" if curve.is_control else "-" if curve.proposal == Proposal() else ":"
        axes.plot(
            *zip(*sorted(points), strict=True),
            color=colour,
            marker=_MARKERS[candidates.index(curve.candidates) % len(_MARKERS)],
            markersize=5,
            markerfacecolor="none" if curve.is_control else colour,
            linestyle=line,
            linewidth=1.0,
            label=str(curve),
        )


def _shown_distances(rows: Sequence[Row], name: str) -> list[float]:
    return [found for row in rows if (found := row.figures[name][0]) > _NOTHING]


def _names(rows: Sequence[Row]) -> list[str]:
    """The figures that any row has, in the order of `TITLES`."""
    found = {name for row in rows for name in row.figures}
    known = [
        title
        for name in TITLES
        for title in sorted(found)
        if title == name or (title.startswith("pairs_") and name == "pairs_")
    ]
    return known


def _title(name: str) -> str:
    return TITLES["pairs_"] + name.removeprefix("pairs_") if name.startswith("pairs_") else TITLES[name]


def rows_of(settings: Mapping[str, Entry], records: Mapping[str, Any], source: str) -> list[Row]:
    """Make the rows of a sweep, that of the source first."""
    found = [Row(source, None, "", records[source]["figures"])]
    for name, (setting, role, _) in settings.items():
        assert isinstance(setting, Sampler)
        found.append(Row(name, setting, role, records[name]["figures"]))
    return found
