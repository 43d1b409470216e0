"""Compare trainings of a denoiser that differ in one thing each, at several seeds: a speed run.

edlm run speedrun
edlm run speedrun --config english27 corpus.path=FOLDER threads=1 seeds=[0]
edlm run speedrun variants='{"larger rate": {optimizer: {lr: 4.0e-3}}}' only='[published, larger rate]'
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edlm.frontier import card
from edlm.frontier.lines import Lines
from edlm.recipes.pretrain_denoiser import PretrainDenoiser
from edlm.runs import entry, environment, files, processes, tables
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.training import denoiser, log, speedrun
from edlm.training.speedrun import Training
from edlm.weights import whole

SETTINGS: Schema = {
    "recipe": schemas.choice("speedrun"),
    "output_dir": schemas.text,
    "seeds": schemas.items(schemas.seed, least=1),
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    "corpus": schemas.component(),
    "base": schemas.section(denoiser.MODEL),
    "variants": speedrun.variants,
    "only": schemas.optional(schemas.items(schemas.text, least=1)),
    "targets": schemas.items(schemas.number(0, above=True)),
}


class Speedrun:
    """Train every variant with every seed, one seed after the other, and write the table after each training."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        speedrun.check(settings)
        self.folder = environment.writable("output_dir", settings["output_dir"])
        self.device = environment.device_of(settings)
        self.clock = time.process_time if self.device.type == "cpu" else time.perf_counter

    def setup(self) -> None:
        """Name the trainings, and find what an earlier run has finished."""
        settings = self.settings
        corpus = schemas.build(settings["corpus"], "corpus")
        self.changes = speedrun.chosen(settings)
        pairs = [(variant, seed) for seed in settings["seeds"] for variant in self.changes]
        self.trainings = {f"{variant}, seed {seed}": (variant, seed) for variant, seed in pairs}
        base = {f"base.{key}": value for key, value in settings["base"].items()}
        shared = {key: settings[key] for key in SETTINGS if key not in ("base", "only", "seeds", "variants", "targets")}
        own = card.card({**shared, **base}, self.device, text=corpus.fingerprint)
        changes = {name: self.changes[variant] for name, (variant, _) in self.trainings.items()}
        self.lines = processes.from_first(lambda: Lines(self.folder, "speedrun", own, changes))

    def require_variants(self) -> None:
        """Build every variant that is missing: what cannot be built is refused before the first one is trained."""
        missing = [own for name, own in self.trainings.items() if name not in self.lines.records]
        for variant, seed in dict(missing).items():
            PretrainDenoiser(self._settings(variant, seed)).setup()

    def train(self) -> None:
        """Run the missing trainings, each to its end, in folders of their own."""
        for number, (name, (variant, seed)) in enumerate(self.trainings.items(), start=1):
            if name not in self.lines.records:
                print(f"\n{number}/{len(self.trainings)} {name}", flush=True)
                self.lines.add(name, self.measured(self._settings(variant, seed)))
                self.report()

    def measured(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Train once: the held-out bounds, the seconds of the updates, and the bound of the test text."""
        recipe = PretrainDenoiser(settings)
        recipe.setup()
        recipe.load_checkpoint()
        uninterrupted, begin = recipe.run.step == 0, self.clock()
        recipe.train()
        spent, begin = self.clock() - begin, self.clock()
        recipe.validate(recipe.run.average)
        validation = self.clock() - begin
        recipe.cleanup()
        curve, told = processes.from_first(lambda: _written(recipe.folder))  # which the first process has written
        return {
            "curve": curve,
            "seconds": spent - len(curve) * validation if uninterrupted else None,
            "flops": speedrun.step_flops(recipe.run.network, settings),
            "test": told["mean"],
            "error": told["standard_error"],
            "n": told["n"],
        }

    def report(self) -> None:
        """Write the table of what is there."""
        found: dict[str, list[Training]] = {}
        for name, (variant, _) in self.trainings.items():
            if record := self.lines.records.get(name):
                curve = tuple((step, value) for step, value in record["curve"])
                own = Training(curve, record["seconds"], record["flops"], record["test"])
                found.setdefault(variant, []).append(own)
        self.rows = speedrun.table(found, self.settings["targets"])
        if processes.is_first():
            files.write_text(self.folder / "speedrun.md", f"{tables.markdown(self.rows)}\n")

    def cleanup(self) -> None:
        """Print the table and say where everything is."""
        self.report()
        print(f"\n{tables.columns(self.rows)}\n\n  all of it: {self.folder / 'speedrun.md'} and speedrun.jsonl")

    def _settings(self, variant: str, seed: int) -> dict[str, Any]:
        """Give the settings of one training as `pretrain_denoiser` reads them."""
        shared = {key: self.settings[key] for key in ("device", "threads", "corpus")}
        output = str(self.folder / speedrun.folder(variant) / f"seed{seed}")
        own = speedrun.changed(self.settings["base"], self.changes[variant])
        return {"recipe": "pretrain_denoiser", "output_dir": output, "seed": seed, **shared, **own}


def _written(folder: Path) -> tuple[list[list[float]], dict[str, Any]]:
    """Read the held-out bounds of a run, by step, and its report."""
    logged = [each for each in log.read(folder) if "valid_nelbo" in each]
    return [[each["step"], each["valid_nelbo"]] for each in logged], whole.read_json(folder / files.REPORT)


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings."""
    recipe = Speedrun(settings)
    recipe.setup()
    recipe.require_variants()
    recipe.train()
    recipe.cleanup()


if __name__ == "__main__":
    entry.enter(main, SETTINGS)
