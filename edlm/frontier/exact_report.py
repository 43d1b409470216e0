"""Samplers beside a source as csv and as a Markdown table, and what they say in a sentence."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edlm.frontier import grid
from edlm.frontier.exact import Figures
from edlm.frontier.grid import Entry
from edlm.frontier.points import pareto
from edlm.runs import tables
from edlm.samplers.sampler import Sampler

SCREEN = 24  # rows that fit a terminal
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
NOTHING = 1e-9  # one position at a time, an exact denoiser has no distance but rounding: no place on a log axis


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


def short(rows: Sequence[Row], most: int = SCREEN) -> list[tuple[str, ...]]:
    """Pick the columns and the rows that fit a terminal: of more than `most`, the front and the best of each method."""
    wanted = ("total_variation", "kl", "kl_bound", "excess", distance(rows), "ess")
    names = [name for name in _names(rows) if name in wanted]
    lines: list[tuple[str, ...]] = [("", *map(_title, names), "passes")]
    for row in _first_rows(rows, most):
        lines.append((row.name, *(shown(row.figures.get(name)) or "-" for name in [*names, "passes"])))
    return lines


def _first_rows(rows: Sequence[Row], most: int) -> list[Row]:
    name = distance(rows)
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda each: each.figures[name][0]):
        best.setdefault("" if row.setting is None else grid.family(row.setting), row)
    names = fronts(rows) | {row.name for row in best.values()}
    return [row for row in rows if len(rows) <= most or row.name in names]


def title(rows: Sequence[Row]) -> str:
    """Say which sampler comes nearest to the source, and what plain has for as many passes or steps."""
    name = distance(rows)
    samplers = [row for row in rows if row.setting is not None and (not row.role or row.figures[name][0] <= NOTHING)]
    plain = [row for row in samplers if row.setting is not None and row.setting.correction is None]
    others = [row for row in samplers if row not in plain]
    best = min(others, key=lambda row: row.figures[name][0], default=None)
    cheapest = min(plain, key=lambda row: (row.figures[name][0], row.figures["passes"][0]), default=None)
    said = [_reached(row, name) for row in (best, cheapest) if row is not None]
    return f"nearest to the source: {'; '.join(said)}" if said else "nothing beside the source"


def _reached(row: Row, name: str) -> str:
    far, passes = row.figures[name][0], row.figures["passes"][0]
    called = (
        row.name if row.setting is None else row.name.replace(grid.family(row.setting), grid.method(row.setting), 1)
    )
    return f"{called}, {'no distance' if far <= NOTHING else f'{far:.2g}'} with {passes:.3g} passes"


def shown(value: Sequence[float] | None) -> str:
    """Show a figure with its error, if it has one."""
    if value is None:
        return ""
    return f"{value[0]:.4g}" + (f" ± {value[1]:.2g}" if value[1] > 0.0 else "")


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
