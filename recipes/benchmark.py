"""Measure speed and memory beside a textbook sampler with the same weights, and how the cost grows.

edlm run benchmark                     # small sizes, to see that all of it runs
edlm run benchmark --config cpu        # the figures of docs/lab/performance.md, for an idle machine
"""

from collections.abc import Mapping
from typing import Any

import torch

from edlm.benchmark import cases, comparison, training_cases
from edlm.benchmark import methods as benchmark_methods
from edlm.benchmark import report as reports
from edlm.benchmark.comparison import TEXTBOOK
from edlm.benchmark.methods import Bench, Case
from edlm.runs import entry, environment, processes, timing
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.weights import sources

MODES = ("eager", "compile", "cudagraph")
NETWORK: Schema = {
    "hidden_size": schemas.integer(2),
    "num_layers": schemas.integer(1),
    "num_heads": schemas.integer(1),
    "conditioning_size": schemas.integer(0),
}
SETTINGS: Schema = {
    "recipe": schemas.choice("benchmark"),
    "output_dir": schemas.text,
    "seed": schemas.seed,
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    "dtype": schemas.choice("float32", "bfloat16"),
    "network": schemas.section(NETWORK),
    "denoiser": schemas.omissible(schemas.optional(schemas.text)),
    "ar": schemas.omissible(sources.AR),
    "modes": schemas.items(schemas.choice(*MODES), least=1),
    "only": schemas.optional(schemas.items(schemas.integer(0), least=1)),
    "cases": schemas.items(schemas.section(cases.CASE)),
    "growth": schemas.items(schemas.section(cases.SWEEP)),
    "training": schemas.items(schemas.section(training_cases.SCHEMA)),
    "only_training": schemas.optional(schemas.items(schemas.integer(0), least=1)),
    "peak_flops": schemas.optional(schemas.number(0, above=True)),
}


class Benchmark:
    """Set up, measure the cases, training and growth, report."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        processes.require_one("benchmark")
        self.settings = settings
        self.folder = environment.writable("output_dir", settings["output_dir"])
        self.device = environment.device_of(settings)
        self.dtype: torch.dtype = getattr(torch, settings["dtype"])
        self.cases = cases.chosen(settings)
        self.sweeps = [cases.sweep(f"growth[{index}]", each) for index, each in enumerate(settings["growth"])]
        self.training = training_cases.cases_of(settings)
        if not (self.cases or self.sweeps or self.training):
            raise ValueError("cases, growth and training are all empty: nothing to measure")

    def setup(self) -> None:
        """Say what is measured on what, and which modes this machine cannot run; measure its largest rate."""
        settings = self.settings
        needed = {mode: benchmark_methods.missing_for(mode, self.device) for mode in settings["modes"]}
        for mode, missing in needed.items():
            if missing is not None:
                print(f"{mode} is left out: it needs {missing}")
        self.modes = [mode for mode, missing in needed.items() if missing is None]
        if not self.modes:
            raise ValueError(f"modes = {settings['modes']} has none that this machine can run; add eager")
        every = [case for case, _ in self.cases] + [case for _, swept in self.sweeps for case in swept]
        longest = max((case.length for case in every), default=1)
        folders = settings.get("denoiser"), settings.get("ar")
        self.bench = Bench(settings["network"], longest, settings["seed"], self.device, self.dtype, folders)
        self.rate = timing.matmul_rate(self.device, self.dtype)
        self.report = reports.Report(self.folder, reports.environment(self.device, self.rate), settings)

    def measure_cases(self) -> None:
        """Measure every case: the textbook and all modes in turns, with what each holds and does."""
        for case, targets in self.cases:
            record = self._measure(case, detailed=True)
            self.report.add("cases", {**record, "targets": targets}, comparison.judge(record, targets))
            self.bench.forget()

    def measure_training(self) -> None:
        """Measure every training case: the textbook's step and ours in turns."""
        settings = self.settings
        peak = settings["peak_flops"] or self.rate
        shared = training_cases.Setting(settings["network"], self.device, self.dtype, settings["seed"], peak)
        for case, targets in self.training:
            record = training_cases.measure(case, shared, self.modes, self.rate)
            print(f"\n{training_cases.table(record)}\n", flush=True)
            self.report.add("training", {**record, "targets": targets}, training_cases.judge(record, targets))

    def measure_growth(self) -> None:
        """Measure every sweep: the same along one axis, and the exponent of each method's cost."""
        for (axis, swept), given in zip(self.sweeps, self.settings["growth"], strict=True):
            records = [self._measure(case, detailed=False) for case in swept]
            sweep = reports.summarise(axis, swept, records)
            print(f"seconds over {axis}\n{reports.growth_table(sweep)}\n")
            verdicts = reports.flatness(sweep, given["last_over_previous"])
            self.report.add("growth", {**sweep, "records": records}, verdicts)
            self.bench.forget()

    def conclude(self) -> None:
        """Draw the picture, list every target as met or missed, and say where all of it is."""
        self.report.conclude()

    def _measure(self, case: Case, detailed: bool) -> dict[str, Any]:
        methods = self.bench.methods(case, self.modes, TEXTBOOK)
        record = comparison.measure(case, methods, self.device, self.rate, detailed)
        print(f"\n{comparison.table(record)}\n", flush=True)
        return record


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
