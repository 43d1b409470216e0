"""The picture beside a source: distance against the passes of a plan, and against all network passes."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edlm.frontier import exact_report, grid
from edlm.frontier.exact_report import NOTHING, Row
from edlm.runs import plot_labels, plots
from edlm.runs.plot_labels import End, Mark
from edlm.samplers import expectation
from edlm.samplers.sampler import Proposal, Sampler

_MARKERS = "osD^vPX*"
_HEIGHT = 3.0  # inches
_STEPS, _PASSES = "passes of the plan, one after the other", "network passes per text"
_HOW_TO_READ = "Nearer is lower. Marks: candidates. Hollow: a control. Dotted: another temperature. Grey: the front."
_BUNDLE = 0.04  # of the panel's height: ends of one method that are nearer share a name
_LOW = 0.7  # of the smallest distance, where the axis begins


def draw(path: Path, rows: Sequence[Row], length: int, title: str, note: str) -> None:
    """Write both panels as one png, whole or not at all; length: of the texts."""
    name = exact_report.distance(rows)
    curves = _curves(rows, name, length)
    candidates = sorted({curve.candidates for curve in curves}, key=lambda each: (len(each), each))
    markers = dict(zip(candidates, itertools.cycle(_MARKERS), strict=False))
    how = f"{_HOW_TO_READ} {_marks(markers)}{note}"
    names = [*(str(curve) for curve in curves), *(row.name for row in rows if row.setting is None)]
    figure, panels = plots.canvas(title, how, ((_HEIGHT, 1), (_HEIGHT, 1)), names)
    shown = [row.figures[name][0] for row in rows if row.figures[name][0] > NOTHING]
    for at, (axes, label) in enumerate(zip(panels, (_STEPS, _PASSES), strict=True)):
        axes.set(xscale="log", yscale="log")
        for curve, points in curves.items():
            _draw(axes, curve, [(point[at], point[2]) for point in points], markers[curve.candidates])
        axes.set_ylim(_LOW * min(shown, default=NOTHING), max(shown, default=1.0) / _LOW)
        plots.plain_numbers(axes.xaxis)
        plots.plain_numbers(axes.yaxis)
        plots.titles(axes, label, f"total variation to the source{_of(name)}")
        ends = [End(points[-1][2], str(curve), _colour(curve)) for curve, points in curves.items()]
        plot_labels.name_ends(axes, [*_named(axes, ends), *_source(axes, rows, name)])
    _exact(panels[1], rows, name)
    _front(panels[1], rows, name)
    plots.save(figure, path)


class _Curve(NamedTuple):
    """The values that the points of one curve share."""

    method: str
    selection: str
    candidates: str
    proposal: Proposal
    is_control: bool

    @classmethod
    def of(cls, sampler: Sampler, role: str) -> "_Curve":
        """The curve that a sampler is on: all of it but plan and window."""
        found = sampler.candidates
        candidates = str(found) if not isinstance(found, int) else "" if found == 1 else f"k={found}"
        usual = sampler.correction is None or sampler.selection == Sampler.selection
        selection = "" if usual else sampler.chooses.name
        return cls(grid.method(sampler), selection, candidates, sampler.proposal, bool(role))

    def __str__(self) -> str:
        changed = (found for found in self.proposal._asdict().items() if found not in Proposal()._asdict().items())
        heat = [f"{name} {value:g}" for name, value in changed]
        selection = "" if self.method == "in order" else self.selection
        said = ", ".join(filter(None, [self.method, selection, self.candidates, *heat]))
        return f"{said} (control)" if self.is_control else said


def _curves(rows: Sequence[Row], name: str, length: int) -> dict[_Curve, list[tuple[float, float, float]]]:
    """Of every curve the passes of the plan, all passes, and the distance; what has none is no point of it."""
    found: dict[_Curve, list[tuple[float, float, float]]] = {}
    for row in rows:
        far = row.figures[name][0]
        if row.setting is not None and far > NOTHING:
            expected = expectation.expected(row.setting, length)
            steps = row.figures["denoiser_passes"][0] if expected is None else expected.passes
            found.setdefault(_Curve.of(row.setting, row.role), []).append((steps, row.figures["passes"][0], far))
    return {curve: sorted(points) for curve, points in found.items()}


def _draw(axes: Any, curve: _Curve, points: Sequence[tuple[float, float]], marker: str) -> None:
    colour = _colour(curve)
    axes.plot(
        *zip(*points, strict=True),
        color=colour,
        marker=marker,
        markersize=4.5,
        markerfacecolor="white" if curve.is_control else colour,
        linestyle="none" if curve.is_control else "-" if curve.proposal == Proposal() else ":",
        linewidth=1.1,
        label=str(curve),
    )


def _named(axes: Any, ends: Sequence[End]) -> list[End]:
    """The names of the curves, those of one method that end together in one."""
    low, high = axes.get_ylim()
    factor = (high / low) ** _BUNDLE
    found: list[End] = []
    for colour in dict.fromkeys(end.colour for end in ends):
        some = sorted((end for end in ends if end.colour == colour), key=lambda end: end.value)
        groups = [[some[0]]]
        for end in some[1:]:
            groups[-1:] = [[*groups[-1], end]] if end.value < factor * groups[-1][-1].value else [groups[-1], [end]]
        found += [End(group[0].value, _joined([end.name for end in group]), colour) for group in groups]
    return found


def _joined(names: Sequence[str]) -> str:
    """Names without what they have in common with the first: its method."""
    method = names[0].partition(",")[0]
    return ", ".join([names[0], *(name.removeprefix(f"{method}, ") for name in names[1:])])


def _source(axes: Any, rows: Sequence[Row], name: str) -> list[End]:
    """The source's own texts, as many: what is sampled cannot be nearer than that line."""
    found = []
    for row in rows:
        if row.setting is None and row.figures[name][0] > 0.0:
            axes.axhline(row.figures[name][0], color="black", linewidth=0.9, linestyle=":", label=row.name)
            found.append(End(row.figures[name][0], row.name, "black"))
    return found


def _exact(axes: Any, rows: Sequence[Row], name: str) -> None:
    """A vertical line at the cost of what makes no error, which has no place on a logarithmic axis."""
    for row in rows:
        if row.setting is not None and row.figures[name][0] <= NOTHING:
            cost, colour = row.figures["passes"][0], plots.colour(grid.method(row.setting))
            axes.axvline(cost, color=colour, linestyle="-.", linewidth=1.0, label=f"{row.name}: no distance")
            low, high = axes.get_ylim()
            place = low * (high / low) ** 0.97
            plot_labels.name_points(axes, [Mark(cost, place, f"{row.name}: no distance", colour)])


def _front(axes: Any, rows: Sequence[Row], name: str) -> None:
    """The settings that no other beats in both, joined."""
    best = exact_report.fronts(rows)
    places = sorted((row.figures["passes"][0], row.figures[name][0]) for row in rows if row.name in best)
    places = [(cost, far) for cost, far in places if far > NOTHING]
    axes.plot(*zip(*places, strict=True), color="#CCCCCC", linewidth=4.0, label="Pareto front", zorder=0)


def _marks(markers: Mapping[str, str]) -> str:
    """Say which mark is how many candidates, where there are several."""
    called = {"o": "circle", "s": "square", "D": "diamond", "^": "triangle"}
    said = [f"{called[shape]} {name}" for name, shape in markers.items() if name and shape in called]
    return f"{', '.join(said).capitalize()}. " if len(said) > 1 else ""


def _colour(curve: _Curve) -> str:
    return plots.colour(curve.method)


def _of(name: str) -> str:
    return "" if name == "total_variation" else f", pairs {name.removeprefix('pairs_')} apart"
