"""Measure speed and memory beside a textbook sampler with the same weights, and how the cost grows.

edlm run benchmark                     # small sizes, to see that all of it runs
edlm run benchmark --config cpu        # the figures of docs/performance.md, for an idle machine
"""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from edlm import __version__
from edlm.benchmark import comparison, plots, training_cases
from edlm.benchmark import methods as benchmark_methods
from edlm.benchmark.comparison import TEXTBOOK, Verdict
from edlm.benchmark.methods import Case, Method, Networks
from edlm.runs import entry, files, processes, tables, timing
from edlm.runs import environment as environment_of_runs
from edlm.runs import settings as schemas
from edlm.runs.settings import Check, Schema
from edlm.samplers.pipelines import Pipeline

MODES = ("eager", "compile", "cudagraph")
AXES = ("num_steps", "length", "num_particles", "rows", "vocab_size")


def _number_or_several(check_value: Check) -> Check:
    several = schemas.items(check_value, least=2)
    return lambda key, value: (several if isinstance(value, list) else check_value)(key, value)


SIZES: Schema = {
    "vocab_size": schemas.integer(3),
    "length": schemas.integer(1),
    "rows": schemas.integer(1),
    "num_steps": schemas.integer(1),
    "num_particles": schemas.integer(1),
}
RUNS: Schema = {
    "method": schemas.choice("plain", "posterior", "carry_over"),
    "repeats": schemas.integer(1),
    "textbook_steps": schemas.optional(schemas.integer(1)),
}
TARGETS: Schema = {
    "target": schemas.optional(schemas.number(0, above=True)),
    "memory_target": schemas.optional(schemas.number(0, above=True)),
    "machinery_target": schemas.optional(schemas.number(0, 1)),
}
NETWORK: Schema = {
    "hidden_size": schemas.integer(2),
    "num_layers": schemas.integer(1),
    "num_heads": schemas.integer(1),
    "conditioning_size": schemas.integer(0),
}
SWEEP: Schema = {
    **{name: _number_or_several(check_value) for name, check_value in SIZES.items()},
    **RUNS,
    "last_over_previous": schemas.optional(schemas.number(0, above=True)),
}
SETTINGS: Schema = {
    "recipe": schemas.choice("benchmark"),
    "output_dir": schemas.text,
    "seed": schemas.seed,
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    "dtype": schemas.choice("float32", "bfloat16"),
    "network": schemas.section(NETWORK),
    "modes": schemas.items(schemas.choice(*MODES), least=1),
    "only": schemas.optional(schemas.items(schemas.integer(0), least=1)),
    "cases": schemas.items(schemas.section({**SIZES, **RUNS, **TARGETS})),
    "growth": schemas.items(schemas.section(SWEEP)),
    "training": schemas.items(schemas.section(training_cases.SCHEMA)),
    "only_training": schemas.optional(schemas.items(schemas.integer(0), least=1)),
    "peak_flops": schemas.optional(schemas.number(0, above=True)),
}


class Benchmark:
    """Set up, measure the cases, training and growth, report."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        processes.require_one("benchmark")
        self.settings = settings
        self.folder = environment_of_runs.writable("output_dir", settings["output_dir"])
        self.device = environment_of_runs.device_of(settings)
        self.dtype: torch.dtype = getattr(torch, settings["dtype"])
        self.cases = _chosen(settings)
        self.sweeps = [_sweep(f"growth[{index}]", each) for index, each in enumerate(settings["growth"])]
        self.training = training_cases.cases_of(settings)
        if not (self.cases or self.sweeps or self.training):
            raise ValueError("cases, growth and training are all empty: nothing to measure")
        self._built: dict[int, Networks] = {}
        self.verdicts: list[tuple[str, Verdict]] = []

    def setup(self) -> None:
        """Say what is measured on what, and which modes this machine cannot run; measure its largest rate."""
        self.modes: list[str] = []
        for mode in self.settings["modes"]:
            needed = benchmark_methods.missing_for(mode, self.device)
            if needed is None:
                self.modes.append(mode)
            else:
                print(f"{mode} is left out: it needs {needed}")
        if not self.modes:
            raise ValueError(f"modes = {self.settings['modes']} has none that this machine can run; add eager")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rate = timing.matmul_rate(self.device, self.dtype)
        self.report: dict[str, Any] = {"environment": environment(self.device, self.rate), "settings": self.settings}
        self.report |= {"cases": [], "training": [], "growth": [], "verdicts": []}
        shown = [(name, _shown(value), "") for name, value in self.report["environment"].items() if value is not None]
        print(tables.table(shown), flush=True)

    def measure_cases(self) -> None:
        """Every case: the textbook and all modes in turns, with what each holds and does."""
        for case, targets in self.cases:
            record = self._measure(case, {}, detailed=True)
            self._judge(record["name"], comparison.judge(record, targets))
            self.report["cases"].append({**record, "targets": targets})
            self._save()

    def measure_training(self) -> None:
        """Every training case: the textbook's step and ours in turns."""
        settings = self.settings
        peak = settings["peak_flops"] or self.rate
        shared = training_cases.Setting(settings["network"], self.device, self.dtype, settings["seed"], peak)
        for case, targets in self.training:
            record = training_cases.measure(case, shared, self.modes, self.rate)
            print(f"\n{training_cases.table(record)}\n", flush=True)
            self._judge(record["name"], training_cases.judge(record, targets))
            self.report["training"].append({**record, "targets": targets})
            self._save()

    def measure_growth(self) -> None:
        """Every sweep: the same along one axis, and the exponent of each method's cost."""
        for (axis, cases), given in zip(self.sweeps, self.settings["growth"], strict=True):
            pipelines: dict[Any, Pipeline] = {}
            records = [self._measure(case, pipelines, detailed=False) for case in cases]
            sweep = summarise(axis, cases, records)
            print(f"seconds over {axis}\n{_growth_table(sweep)}\n")
            self._judge(sweep["name"], _flatness(sweep, given["last_over_previous"]))
            self.report["growth"].append({**sweep, "records": records})
            self._save()

    def conclude(self) -> None:
        """Draw the picture, list every target as met or missed, and say where all of it is."""
        cases = [*self.report["cases"], *self.report["training"]]
        plots.draw(self.folder / "benchmark.png", cases, self.report["growth"])
        if self.verdicts:
            print("targets")
            print("\n".join(f"{comparison.say(verdict)}  ({name})" for name, verdict in self.verdicts))
        print(f"\n  written to {self.folder / 'benchmark.json'} and {self.folder / 'benchmark.png'}")

    def _measure(self, case: Case, pipelines: dict[Any, Pipeline], detailed: bool) -> dict[str, Any]:
        networks = self._networks(case.vocab_size)
        methods = {TEXTBOOK: benchmark_methods.textbook(case, networks, self.settings["seed"], self.device)}
        for mode in self.modes:
            methods[mode] = self._ours(case, networks, mode, pipelines)
        record = comparison.measure(case, methods, self.device, self.rate, detailed)
        print(f"\n{comparison.table(record)}\n", flush=True)
        return record

    def _ours(self, case: Case, networks: Networks, mode: Any, pipelines: dict[Any, Pipeline]) -> Method:
        """The library in a mode; what was compiled for one number of steps serves the others of a sweep."""
        key = (case._replace(num_steps=0), mode)
        if key not in pipelines:
            pipelines[key] = benchmark_methods.build_pipeline(case, networks, mode)
        method = benchmark_methods.ours(case, networks, pipelines[key], self.settings["seed"])
        return method if mode == "eager" else method._replace(observe=None)

    def _networks(self, vocab_size: int) -> Networks:
        """Networks of a vocabulary, built once, long enough for every case."""
        if vocab_size not in self._built:
            cases = [case for case, _ in self.cases] + [case for _, swept in self.sweeps for case in swept]
            longest, sizes, seed = max(case.length for case in cases), self.settings["network"], self.settings["seed"]
            self._built[vocab_size] = benchmark_methods.build_networks(
                sizes, vocab_size, longest, seed, self.device, self.dtype
            )
        return self._built[vocab_size]

    def _judge(self, name: str, verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            print(comparison.say(verdict), flush=True)
            self.verdicts.append((name, verdict))
            self.report["verdicts"].append({"name": name, **verdict._asdict()})

    def _save(self) -> None:
        files.write_json(self.folder / "benchmark.json", self.report)


def summarise(axis: str, cases: list[Case], records: list[dict[str, Any]]) -> dict[str, Any]:
    """A sweep's medians by method, and the exponents of those that ran at every size."""
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
    """What a figure depends on: versions, processors, threads, and what else the machine was doing."""
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


def _chosen(settings: Mapping[str, Any]) -> list[tuple[Case, dict[str, float | None]]]:
    """The cases to run and their targets. Raises ValueError for a number that no case has."""
    every = settings["cases"]
    for index in settings["only"] or []:
        if index >= len(every):
            raise ValueError(f"only = {settings['only']} names case {index}, and they are numbered 0..{len(every) - 1}")
    numbers = range(len(every)) if settings["only"] is None else settings["only"]
    return [(_case(f"cases[{i}]", every[i]), {name: every[i][name] for name in TARGETS}) for i in numbers]


def _case(key: str, given: Mapping[str, Any]) -> Case:
    """A case of the config. Raises ValueError for particles without an energy, or more textbook steps than steps."""
    case = Case(**{name: given[name] for name in Case._fields})
    if case.method == "plain" and case.num_particles != 1:
        raise ValueError(f"{key}.num_particles = {case.num_particles} must be 1 for the plain method")
    if case.textbook_steps is not None and case.textbook_steps > case.num_steps:
        raise ValueError(f"{key}.textbook_steps = {case.textbook_steps} must be at most num_steps = {case.num_steps}")
    return case


def _sweep(key: str, given: Mapping[str, Any]) -> tuple[str, list[Case]]:
    """The axis of a sweep, which is the one size that is a list, and the case at each of its values."""
    axes = [name for name in AXES if isinstance(given[name], list)]
    if len(axes) != 1:
        raise ValueError(f"{key} has {len(axes)} lists ({', '.join(axes)}), and needs one, of {', '.join(AXES)}")
    values = given[axes[0]]
    if sorted(set(values)) != values:
        raise ValueError(f"{key}.{axes[0]} = {values} must rise")
    return axes[0], [_case(key, {**given, axes[0]: value}) for value in values]


def _flatness(sweep: Mapping[str, Any], limit: float | None) -> list[Verdict]:
    """Whether the last value of a sweep costs about as much as the one before it, in every mode of ours."""
    if limit is None:
        return []
    last = {name: times[-1] / times[-2] for name, times in sweep["medians"].items() if name != TEXTBOOK}
    return [Verdict("last over previous", name, figure, limit, figure <= limit) for name, figure in last.items()]


def _growth_table(sweep: Mapping[str, Any]) -> str:
    """A sweep's medians, a line per method, the exponent with its standard error in the last column."""
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


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings."""
    recipe = Benchmark(settings)
    recipe.setup()
    recipe.measure_cases()
    recipe.measure_training()
    recipe.measure_growth()
    recipe.conclude()


if __name__ == "__main__":
    entry.enter(main, SETTINGS)
