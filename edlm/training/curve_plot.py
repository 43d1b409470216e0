"""The picture of a training run: its loss large, every other figure small, where it stands as the title."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edlm.runs import plot_labels, plots, tables
from edlm.runs.plot_labels import End, Mark

_LARGE, _SMALL, _PER_ROW = 3.0, 1.6, 3  # inches, and small panels beside each other
_NAMES = {
    "loss": "training",
    "lr": "learning rate",
    "tokens_per_s": "tokens per second",
    "nll": "NLL",
    "nelbo": "NELBO",
    "ess": "ESS",
}
_NOTE = "Bars: one standard error over the held-out texts."
_ROOM = 0.45  # of a small panel's width, for the names of its curves
_EVEN = 2.0  # standard errors: a last figure that is no further above the lowest is as low

Records = Sequence[Mapping[str, Any]]


def draw(path: Path, records: Records, panels: Mapping[str, Sequence[str]]) -> None:
    """Write the png, whole or not at all. Raises OSError if it cannot be written.

    Args:
        path: The file.
        records: The figures of each logged step.
        panels: The figures that share a panel, by its title; the first is the large one.
    """
    small = len(panels) - 1
    rows = [(_LARGE, 1), *((_SMALL, _PER_ROW) for _ in range(-(-small // _PER_ROW)))]
    first = next(iter(panels.values()))
    names = [f"{named(name)} 0.000" for name in first]
    figure, every = plots.canvas(title(records, first), _NOTE if _has_errors(records) else "", rows, names)
    for axes, (heading, shown) in zip(every, panels.items(), strict=False):
        colours = _colours(shown)
        for name in shown:
            _curve(axes, records, name, colours[name])
        _fit(axes, records, colours)
        if axes is every[0]:
            plots.titles(axes, "step", heading if heading != shown[0] else named(heading))
            plot_labels.name_ends(axes, [_end(records, name, colours[name]) for name in shown])
        else:
            plots.titles(axes, "step", "", named(heading))
            _name_levels(axes, records, colours)
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    plots.save(figure, path)


def title(records: Records, names: Sequence[str]) -> str:
    """Say where a run stands: the last held-out figure with its error, and whether it has been lower."""
    held_out = [name for name in names if name.startswith("valid")]
    name = held_out[-1] if held_out else names[0]
    known = [record for record in records if record.get(name) is not None]
    step, value, error = known[-1]["step"], known[-1][name], known[-1].get(f"{name}_error", 0.0)
    said = f"{named(name)} {tables.amount(value, error)} at step {step}"
    if not held_out or len(known) == 1:
        return said
    best = min(known, key=lambda record: record[name])
    if best is known[-1]:
        return f"{said}, the lowest so far"
    if value - best[name] <= _EVEN * error:
        return f"{said}, within its error of the lowest, {best[name]:.4g} at step {best['step']}"
    return f"{said}, above the lowest, {best[name]:.4g} at step {best['step']}"


def named(name: str) -> str:
    """Write a figure's name for people."""
    if name.startswith("valid_"):
        return f"held-out {named(name.removeprefix('valid_')).replace('training', 'loss')}"
    return _NAMES.get(name, name.replace("_", " "))


def _curve(axes: Any, records: Records, name: str, colour: str) -> None:
    some = [record for record in records if _known(record, name)]
    steps, values = [record["step"] for record in some], [record[name] for record in some]
    errors = [record.get(f"{name}_error", 0.0) for record in some] if name.startswith("valid") else None
    shape, wide = ("o-", 1.5) if errors else ("-", 1.1)
    axes.errorbar(steps, values, yerr=errors, fmt=shape, markersize=3.5, linewidth=wide, color=colour, label=name)


def _fit(axes: Any, records: Records, colours: Mapping[str, str]) -> None:
    """Show what no outlier flattens; the highest and the lowest of those are marked with their values."""
    values = {(record["step"], record[name]): name for record in records for name in colours if _known(record, name)}
    axes.set_ylim(plots.limits([value for _, value in values]))
    ends = {end(values, key=lambda each: each[1]) for end in (min, max)} if values else set()
    plot_labels.mark_outliers(axes, [Mark(*place, "", colours[values[place]]) for place in sorted(ends)])


def _name_levels(axes: Any, records: Records, colours: Mapping[str, str]) -> None:
    """Name the curves that share a small panel, each at its last point."""
    if len(colours) == 1:
        return
    left, right = axes.get_xlim()
    axes.set_xlim(left, right + _ROOM * (right - left))
    last = {name: [record for record in records if _known(record, name)][-1] for name in colours}
    names = [(name, f"t 0.{found[2]}" if (found := name.rpartition("_t0."))[1] else "all") for name in colours]
    plot_labels.name_points(
        axes, [Mark(last[name]["step"], last[name][name], word, colours[name]) for name, word in names]
    )


def _end(records: Records, name: str, colour: str) -> End:
    value = [record[name] for record in records if _known(record, name)][-1]
    return End(value, f"{named(name)} {value:.4g}", colour)


def _known(record: Mapping[str, Any], name: str) -> bool:
    return record.get(name) is not None


def _has_errors(records: Records) -> bool:
    return any(name.endswith("_error") for record in records for name in record)


def _colours(names: Sequence[str]) -> dict[str, str]:
    """Grey for training and its machine, one colour for what is held out, others for its levels of noise."""
    levels = [name for name in names if "_t0." in name]
    shades = dict(zip(levels, plots.shades(len(levels)), strict=True))
    kinds = {name: "held out" if name.startswith("valid") else "training" for name in names}
    return {name: shades.get(name, plots.COLOURS[kinds[name]]) for name in names}
