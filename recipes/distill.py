"""Distil a denoiser into one for fewer steps (SDTT, Deschenaux and Gulcehre, arXiv 2410.21035).

edlm run distill denoiser=runs/tiny/denoiser
edlm run distill --config tiny divergence=kl-fwd rounds=2 output_dir=runs/tiny/distilled_forward
edlm run generate denoiser=runs/tiny/distilled energy=null num_steps=16
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from edlm.data import corpora
from edlm.evaluation import draws
from edlm.runs import entry, environment, files, processes, tables
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.training import distillation, report, texts
from edlm.training import settings as training_settings
from edlm.training.distillation import DistillationPlan
from edlm.training.loop import Metrics, TrainingRun
from edlm.weights import loading

SETTINGS: Schema = {
    "recipe": schemas.choice("distill"),
    "output_dir": schemas.text,
    "seed": schemas.seed,
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    "corpus": schemas.component(),
    **distillation.SETTINGS,
    **training_settings.SETTINGS,
}


class Distillation:
    """Load, then run the rounds: the student learns to do steps of its teacher at once, and is the next teacher."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        distillation.check(settings)
        self.folder = environment.writable("output_dir", settings["output_dir"])
        self.device = environment.device_of(settings)

    def load_checkpoint(self) -> None:
        """Load the denoiser that is the first teacher."""
        start = loading.frozen(self.settings["denoiser"], self.device)
        self.plan, self.vocabulary, self.teacher = (
            DistillationPlan(start, self.settings),
            start.vocabulary,
            start.network,
        )

    def setup(self) -> None:
        """Read the corpus."""
        self.corpus = schemas.build(self.settings["corpus"], "corpus")
        self.blocks = corpora.load_blocks(self.corpus, self.vocabulary, self.plan.start.denoiser.max_length)

    def train(self) -> None:
        """Run every round to its last step, in a folder of its own. A finished round is taken as it is."""
        for number in range(self.settings["rounds"]):
            self.run = self.round(number)
            self.run.load_checkpoint()
            self.run.train()
            self.teacher = self.run.average.eval().requires_grad_(False)

    def round(self, number: int) -> TrainingRun:
        """Build a round, its student a copy of the teacher."""
        settings, network = self.settings, self.plan.student(self.teacher)
        return TrainingRun(
            folder=self.folder_of(number),
            network=network,
            stages=self.plan.stages(network, self.teacher, number),
            blocks=self.blocks.train,
            vocabulary=self.vocabulary,
            settings={key: settings[key] for key in training_settings.SETTINGS},
            seed=settings["seed"],
            identity=self.plan.notes(self.corpus, number),
            validate=partial(self.validate, number, self.teacher),
            per_token=True,
            sample=lambda average: texts.denoiser_texts(self.plan.denoiser(average), self.vocabulary, settings["seed"]),
        )

    def folder_of(self, number: int) -> Path:
        """Return the folder of a round: that of the last one is the output itself."""
        return self.folder if number == self.settings["rounds"] - 1 else self.folder / f"round{number}"

    def validate(self, number: int, teacher: nn.Module, network: nn.Module) -> Metrics:
        """Give the loss of the EMA network on held-out blocks."""
        drawn = draws.held_out(self.blocks, "valid", self.settings, self.device)
        return {"loss": self.plan.held_out(network, teacher, number, drawn)}

    def save_checkpoint(self) -> None:
        """Write the last state; the training loop has written the earlier ones."""
        self.run.save_checkpoint()

    def cleanup(self) -> None:
        """Print the student's NELBO beside that of the denoiser that it started from, and say where the files are."""
        drawn = draws.held_out(self.blocks, "test", self.settings, self.device)
        found = self.plan.nelbos(self.run.average, drawn)
        unit, steps = self.vocabulary.unit, self.plan.num_steps(self.settings["rounds"])
        rows = [
            (
                f"{name.replace('_', ' ')} (test)",
                f"{each.bits:.4f} ± {each.bits_error:.4f} bits/{unit}",
                f"n = {each.n}",
            )
            for name, each in found.items()
        ]
        rows.append(report.unigram_line(report.held_out(self.blocks, self.vocabulary, drawn.num_rows), unit))
        print(f"\n{tables.table([*rows, ('for samplers of', f'{steps:g} steps', '')])}\n\n  written to {self.folder}")
        told = {name: each._asdict() for name, each in found.items()}
        if processes.is_first():
            files.write_json(self.folder / files.REPORT, {**told, "step": self.run.step, "num_steps": steps})


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings."""
    recipe = Distillation(settings)
    recipe.load_checkpoint()
    recipe.setup()
    recipe.train()
    recipe.save_checkpoint()
    recipe.cleanup()


if __name__ == "__main__":
    entry.enter(main, SETTINGS)
