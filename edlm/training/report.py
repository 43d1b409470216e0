"""The end of a network's training: lines of a table and the figures of a report."""

from collections.abc import Mapping
from typing import Any

from edlm.likelihood.estimates import Estimate
from edlm.runs import files, tables
from edlm.training.loop import TrainingRun

Line = tuple[str, str, str]


def lines(claim: str, found: Estimate, counted: str, perplexity: str, run: TrainingRun) -> list[Line]:
    """Lay out a figure of held-out text in bits, under the name of what it claims, and the size of the run.

    counted: what n counts. perplexity: what the exponential of the figure is called.
    """
    parameters = sum(p.numel() for p in run.average.parameters())
    value = f"{found.bits:.4f} ± {found.bits_error:.4f} bits/{run.vocabulary.unit}"
    return [
        (f"{claim} (test)", value, f"n = {found.n} {counted}"),
        (perplexity, f"{found.perplexity:.3f}", ""),
        ("steps, parameters", f"{run.step:,}, {parameters:,}", f"seed {run.seed}, EMA weights"),
    ]


def level_lines(levels: Mapping[str, Estimate | None], unit: str) -> list[Line]:
    """Lay out what is left of a mask at each time, or that too few draws got one."""
    return [
        (f"bits left at t = {t}", f"{value.bits:.4f}", f"per masked {unit}")
        if value is not None
        else (f"bits left at t = {t}", "left out", "fewer than two draws got a mask")
        for t, value in levels.items()
    ]


def conclude(run: TrainingRun, rows: list[Line], found: Estimate, **others: Any) -> None:
    """Print the table, and write the figures to the report of the run's folder."""
    print(f"\n{tables.table(rows)}\n\n  written to {run.folder}")
    figures = {**found._asdict(), "bits": found.bits, "bits_error": found.bits_error, "step": run.step}
    files.write_json(run.folder / files.REPORT, {**figures, **others})
