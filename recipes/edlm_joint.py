"""Train one network for both jobs: a denoiser, and the energy that corrects what its steps reveal.

edlm run edlm_joint                       # trains the denoiser first if there is none
edlm run edlm_joint --config tiny num_negatives=3 energy_weight=0.5
edlm run generate denoiser=runs/tiny/joint energy=runs/tiny/joint output=runs/tiny/joint.jsonl
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from edlm.data import corpora
from edlm.evaluation import contrast, correction, draws
from edlm.recipes import pretrain_denoiser
from edlm.runs import entry, environment, tables
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.samplers import corrections
from edlm.training import energy, report
from edlm.training import settings as training_settings
from edlm.training import start as starts
from edlm.training.energy import JointPlan
from edlm.training.loop import Metrics, TrainingRun

TRAINING: Schema = {
    **training_settings.WITHOUT_TIMES,
    "valid_rows": schemas.integer(8),  # some of them reveal nothing, and an error needs two that do
}
SETTINGS: Schema = {
    "recipe": schemas.choice("edlm_joint"),
    "output_dir": schemas.text,
    "seed": schemas.seed,
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    "corpus": schemas.component(),
    "num_energy_layers": schemas.integer(1),
    "denoiser_rate": schemas.number(0),
    "nelbo_weight": schemas.number(0),
    "energy_weight": schemas.number(0),
    **energy.SETTINGS,
    **TRAINING,
}


class JointTraining:
    """The five verbs of the recipe, in the order in which they are called."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.folder = environment.writable("output_dir", settings["output_dir"])
        self.device = environment.device_of(settings)
        energy.require_trained(settings)
        energy.require_joinable(settings["denoiser"])

    def load_denoiser(self) -> None:
        """Load the denoiser to start from; train it first where there is none and the config says how."""
        start = starts.load(self.settings, self.device, pretrain_denoiser.main)
        energy.require_untold(start)
        self.start, self.vocabulary, self.plan = start.denoiser, start.vocabulary, JointPlan(start, self.settings)

    def setup(self) -> None:
        """Read the corpus, build the network from the denoiser, and the training pipeline."""
        settings = self.settings
        energy.require_room(settings, self.start.max_length)
        corpus = schemas.build(settings["corpus"], "corpus")
        self.blocks = corpora.load_blocks(corpus, self.vocabulary, self.start.max_length)
        torch.manual_seed(settings["seed"])
        network = self.plan.network()
        stages = self.plan.stages(network, settings["num_negatives"])
        for split in ("valid", "test"):
            drawn = draws.held_out(self.blocks, split, settings, self.device)
            contrast.require_new(stages.module["corrupt"], split, drawn, settings)
        self.run = TrainingRun(
            folder=self.folder,
            network=network,
            stages=stages,
            blocks=self.blocks.train,
            vocabulary=self.vocabulary,
            settings={key: settings[key] for key in TRAINING},
            seed=settings["seed"],
            identity=self.plan.notes(corpus),
            validate=self.validate,
            sample=lambda _: self.texts(),
            rate_of=lambda name: settings["denoiser_rate"] if name.startswith("denoiser.") else 1.0,
        )

    def load_checkpoint(self) -> None:
        """Continue an earlier run in the same folder."""
        self.run.load_checkpoint()

    def train(self) -> None:
        """Train to the last step."""
        self.run.train()

    def validate(self, network: nn.Module) -> Metrics:
        """Give the loss, what it is made of, and weight diagnostics of the EMA network on held-out blocks."""
        settings = self.settings
        drawn = draws.held_out(self.blocks, "valid", settings, self.device)
        per_row = energy.held_out(self.plan, network, drawn)
        contrast.warn(per_row, self.run.step)
        found = {**contrast.figures(per_row), **self.plan.nelbos(network, drawn)}
        figures = {name: value.mean for name, value in found.items()}
        contrasted = figures.pop("loss")
        loss = settings["nelbo_weight"] * figures["nelbo"] + settings["energy_weight"] * contrasted
        return {"loss": loss, "contrast": contrasted, **figures}

    def save_checkpoint(self) -> None:
        """Write the last state; the training loop has written the earlier ones."""
        self.run.save_checkpoint()

    def cleanup(self) -> None:
        """Print the figures on held-out text and samples with the energy off and on, and say where all is."""
        settings, average = self.settings, self.run.average.eval()
        drawn = draws.held_out(self.blocks, "test", settings, self.device)
        per_row = energy.held_out(self.plan, average, drawn)
        figures, texts = contrast.figures(per_row), self.texts()
        known = self.plan.denoiser(average), corrections.Joint(), self.blocks.test, settings, self.vocabulary.pad_id
        bounds = {**self.plan.nelbos(average, drawn), **correction.transition_bounds(*known)}
        told = {"contrast" if name == "loss" else name: x._asdict() for name, x in {**bounds, **figures}.items()}
        remarks = {**energy.COMPARED, **correction.remarks(settings["samples"])}
        lines = correction.bits_lines(bounds, self.vocabulary.unit, remarks)
        single = report.held_out(self.blocks, self.vocabulary, drawn.num_rows)
        lines.append(report.unigram_line(single, self.vocabulary.unit))
        wanted = settings["report_particles"], settings["objective"], settings["num_negatives"]
        shown = tables.table([*lines, *contrast.figure_lines(figures, None, *wanted)])
        told["warning"] = contrast.warning(per_row)
        energy.conclude(self.folder, settings, told, [shown], ("network", "started from"), texts)

    def texts(self) -> list[dict[str, Any]]:
        """Draw a few samples of the joint network at equal seeds with the energy off and on."""
        denoiser = self.plan.denoiser(self.run.average.eval())
        return correction.texts(denoiser, corrections.Joint(), self.settings["samples"], self.vocabulary)


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings."""
    recipe = JointTraining(settings)
    recipe.load_denoiser()
    recipe.setup()
    recipe.load_checkpoint()
    recipe.train()
    recipe.save_checkpoint()
    recipe.cleanup()


if __name__ == "__main__":
    entry.enter(main, SETTINGS)
