"""The report of a benchmark: the machine that it was run on, its sweeps, and which targets were met."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from edlm import __version__
from edlm.benchmark import comparison, plots
from edlm.benchmark.comparison import TEXTBOOK, Verdict
from edlm.benchmark.methods import Case
from edlm.process import arguments
from edlm.runs import files, tables, timing


class Report:
    """Everything measured so far, written to `benchmark.json` whenever a part of it is there."""

    def __init__(self, folder: Path, environment: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        self.folder = folder
        arguments.require_folder(folder)
        empty: dict[str, Any] = {"cases": [], "training": [], "growth": [], "verdicts": []}
        self.content: dict[str, Any] = {"environment": environment, "settings": settings, **empty}
        rows = [(name, _shown(value), "") for name, value in environment.items() if value is not None]
        print(tables.table(rows), flush=True)

    def add(self, part: str, record: Mapping[str, Any], verdicts: list[Verdict]) -> None:
        """Add the record of a case, a training case or a sweep, and say how it stands to its targets."""
        for verdict in verdicts:
            print(comparison.say(verdict), flush=True)
            self.content["verdicts"].append({"name": record["name"], **verdict._asdict()})
        self.content[part].append(record)
        files.write_json(self.folder / "benchmark.json", self.content)

    def conclude(self) -> None:
        """Draw the picture, list every target as met or missed, and say where all of it is."""
        cases = [*self.content["cases"], *self.content["training"]]
        plots.draw(self.folder / "benchmark.png", cases, self.content["growth"])
        found = [(each["name"], Verdict(**{key: each[key] for key in Verdict._fields})) for each in self._verdicts]
        if found:
            print("targets")
            print("\n".join(f"{comparison.say(verdict)}  ({name})" for name, verdict in found))
        print(f"\n  written to {self.folder / 'benchmark.json'} and {self.folder / 'benchmark.png'}")

    @property
    def _verdicts(self) -> list[Mapping[str, Any]]:
        return list(self.content["verdicts"])


def summarise(axis: str, cases: list[Case], records: list[dict[str, Any]]) -> dict[str, Any]:
    """Take a sweep's medians by method, and the exponents of those that ran at every size."""
    values = [getattr(case, axis) for case in cases]
    names = [name for name in records[0]["methods"] if all("median" in each["methods"][name] for each in records)]
    medians = {name: [each["methods"][name]["median"] for each in records] for name in names}
    return {
        "name": f"{cases[0]} .. {axis} = {values[-1]}",
        "axis": axis,
        "values": values,
        "medians": medians,
        "exponents": {name: timing.growth(values, medians[name])._asdict() for name in names},
    }


def environment(device: torch.device, rate: float) -> dict[str, Any]:
    """Record all that a figure depends on: versions, processors, threads, and what else the machine was doing."""
    return {
        "edlm": __version__,
        "torch": torch.__version__,
        "tensordict": version("tensordict"),
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "matmul_flops_per_second": rate,
    }


def flatness(sweep: Mapping[str, Any], limit: float | None) -> list[Verdict]:
    """Judge whether the last value of a sweep costs about as much as the one before it, in every mode of ours."""
    if limit is None:
        return []
    last = {name: times[-1] / times[-2] for name, times in sweep["medians"].items() if name != TEXTBOOK}
    return [Verdict("last over previous", name, figure, limit, figure <= limit) for name, figure in last.items()]


def growth_table(sweep: Mapping[str, Any]) -> str:
    """Lay out a sweep's medians, a line per method, the exponent with its standard error in the last column."""
    rows = [["", *map(str, sweep["values"]), "exponent"]]
    for name, fit in sweep["exponents"].items():
        error = "" if fit["error"] is None else f" ± {fit['error']:.2f}"
        rows.append([name, *(f"{value:.4g}" for value in sweep["medians"][name]), f"{fit['exponent']:.2f}{error}"])
    return tables.columns(rows)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cpu_name() -> str:
    """The processor's name as Linux tells it, or what the platform says."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text("utf-8").splitlines() if listed.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
