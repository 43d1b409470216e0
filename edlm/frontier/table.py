"""A frontier as csv and as a Markdown table: a row per setting, errors beside what was sampled, how to read it."""

import math
from collections.abc import Sequence

from edlm.frontier import grid
from edlm.frontier.points import COSTS, Point, SpeedUp
from edlm.likelihood.estimates import Estimate
from edlm.runs import tables

SCREEN = 24  # rows that fit a terminal
WARNING = (
    "WARNING: the judge's weights are those of `ar`. Whatever draws from that model or is corrected by it is judged by "
    "its own target, and its bits per character are no measure of quality."
)
_MATCHED = ("equal bits", "equal bits and entropy")
_SHOWN = {
    "bits_per_character": "bits per character",
    "perplexity": "perplexity",
    "entropy": "entropy, nats",
    "denoiser_passes": "denoiser passes",
    "energy_passes": "energy passes",
    "calls": "calls in a row",
    "ess": "ESS",
    "log_weight_std": "s.d. of log w",
}


def to_csv(points: Sequence[Point]) -> str:
    """Write every figure in a column of its own, its error behind it; empty where there is none."""
    figures = [*_SHOWN, *_divergences(points)]
    figures.insert(figures.index("calls"), "passes")
    header = ["name", *grid.COLUMNS, "control", "n", "seconds"]
    header += [column for name in figures for column in (name, f"{name}_error")]
    header += [f"front_{name}" for name in ("entropy", *COSTS)]
    for key in _speedup_keys():
        column = "faster_at_" + key.replace(", ", "_").replace(" ", "_")
        header += [column, f"{column}_error", f"{column}_bound", f"{column}_inside"]
    return tables.to_csv([header, *(_cells(own, figures) for own in points)])


def to_markdown(points: Sequence[Point], remarks: Sequence[str]) -> str:
    """Write the table for people, with the remarks in front of it and how it is to be read behind."""
    figures = [*_SHOWN, *_divergences(points)]
    titles = [_SHOWN.get(name, f"{name.removeprefix('divergence_')}-gram divergence") for name in figures]
    speedups = [f"x {cost} at {matched}" for matched in _MATCHED for cost in ("faster", "fewer passes", "fewer calls")]
    lines = [["setting", *titles[:3], "seconds", *titles[3:], *speedups, "front", "control"]]
    for own in points:
        cells = [_shown(own.figures.get(name)) for name in figures]
        seconds = "" if own.seconds is None else f"{own.seconds:.3g}"
        faster = [_shown_speedup(own.speedups.get(key)) for key in _speedup_keys()]
        fronts = ", ".join(name for name in ("entropy", *COSTS) if name in own.fronts)
        lines.append([own.name, *cells[:3], seconds, *cells[3:], *faster, fronts, own.role])
    return "\n\n".join([*remarks, tables.markdown(lines), *_HOW_TO_READ]) + "\n"


def short(points: Sequence[Point], most: int = SCREEN) -> list[tuple[str, ...]]:
    """Pick the columns and the rows that fit a terminal, `most` rows or a few more."""
    names = ("bits_per_character", "entropy", "ess")
    lines: list[tuple[str, ...]] = [("", *(_SHOWN[name] for name in names), *COSTS, "front")]
    for own in _first_rows(points, most):
        costs = ["-" if math.isnan(own.cost(name)) else f"{own.cost(name):.3g}" for name in COSTS if own.setting]
        fronts = ", ".join(name for name in ("entropy", *COSTS) if name in own.fronts)
        cells = [_shown(own.figures.get(name)) or "-" for name in names]
        lines.append((own.name, *cells, *(costs or ["-"] * len(COSTS)), fronts or "-"))
    return lines


def _first_rows(points: Sequence[Point], most: int) -> list[Point]:
    """All of a few; of many the held-out text, what is on a front, and the best setting of every family."""
    if len(points) <= most:
        return list(points)
    best: dict[str, Point] = {}
    for own in sorted(points, key=lambda each: each.figures["bits_per_character"].mean):
        best.setdefault("" if own.setting is None else grid.family(own.setting), own)
    names = {own.name for own in best.values()} | {own.name for own in points if own.fronts}
    return [own for own in points if own.name in names]


_HOW_TO_READ = (
    "Errors (±) are bootstrapped over texts. A pass reads one text, and passes over part of a text count by their "
    "tokens; an AR model with its cache reads one, in as many calls as a text has tokens. Low bits per character alone "
    "are no quality, since dull text has them too: compare at equal entropy, and with the held-out text. `front`: no "
    "other setting is better both in bits per character and in entropy, seconds, passes or calls in a row.",
    "`x faster at equal bits`: seconds of the plain sampler at temperature 1 over those of the setting, at the fewest "
    "steps with which its interpolated curve is as good; `and entropy`: the same along its settings of every "
    "temperature, interpolated to the setting's entropy first. `>` and `<`: no plain setting is as good, or the "
    "cheapest is better already, and the figure is that bound. A share in brackets is that of the replicates which "
    "stay within the curve, where not all do. Seconds carry no error: time on a clock is no statistic of samples.",
)


def _speedup_keys() -> list[str]:
    return [f"{matched}, {cost}" for matched in _MATCHED for cost in COSTS]


def _divergences(points: Sequence[Point]) -> list[str]:
    return [name for name in points[0].figures if name.startswith("divergence_")]


def _cells(own: Point, figures: Sequence[str]) -> list[object]:
    setting = own.setting
    cells: list[object] = [own.name, *grid.cells(setting), own.role, own.figures["entropy"].n, own.seconds]
    for name in figures:
        value = own.figures.get(name)
        cells += [None, None] if value is None else [value.mean, value.standard_error]
    cells += [None if setting is None else int(name in own.fronts) for name in ("entropy", *COSTS)]
    for key in _speedup_keys():
        found = own.speedups.get(key)
        cells += [None] * 4 if found is None else list(found)
    return cells


def _shown(value: Estimate | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:.4g}" + (f" ± {value.standard_error:.2g}" if value.standard_error > 0.0 else "")


def _shown_speedup(found: SpeedUp | None) -> str:
    if found is None:
        return ""
    if found.bound != "=":
        return f"{found.bound} {found.ratio:.3g}"
    share = "" if found.inside == 1.0 else f" ({found.inside:.0%})"
    return f"{found.ratio:.3g} ± {found.error:.2g}{share}"
