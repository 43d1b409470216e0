"""Train an energy by noise contrastive estimation against a frozen denoiser (EDLM, Xu et al. 2025).

Of whole texts (scope: draft), or of what a step of the sampler reveals (scope: transition).

edlm run edlm_nce                       # trains the denoiser first if there is none
edlm run edlm_nce --config tiny num_negatives=4 objective=info_nce
edlm run edlm_nce scope=draft output_dir=runs/tiny/draft
edlm run edlm_nce scope=draft ar=runs/tiny/ar output_dir=runs/tiny/ar_energy    # the residual energy of an AR model
edlm run edlm_nce --config smollm2                                              # over the network of a large denoiser
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from edlm.data import corpora
from edlm.evaluation import contrast, correction, draws
from edlm.frontier import closing, closing_report
from edlm.recipes import pretrain_denoiser
from edlm.runs import entry, environment, tables
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.samplers import corrections
from edlm.training import energy
from edlm.training import settings as training_settings
from edlm.training import start as starts
from edlm.training.loop import Metrics, TrainingRun

SETTINGS: Schema = {
    "recipe": schemas.choice("edlm_nce"),
    "output_dir": schemas.text,
    "seed": schemas.seed,
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    "corpus": schemas.component(),
    "start_from": schemas.choice("denoiser", "scratch"),
    "embedding": schemas.choice("own", "shared"),
    "scope": schemas.choice("draft", "transition"),
    **energy.OF_AR,
    **energy.OVER,
    **energy.SETTINGS,
    "closing": schemas.section(closing.SETTINGS),
    **training_settings.SETTINGS,
}


class EnergyByNCE:
    """The five verbs of the recipe, in the order in which they are called."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.folder = environment.writable("output_dir", settings["output_dir"])
        self.device = environment.device_of(settings)
        self.classifier = settings["objective"], settings["num_negatives"]

    def load_denoiser(self) -> None:
        """Load the frozen denoiser; train it first where there is none and the config says how."""
        start = starts.load(self.settings, self.device, pretrain_denoiser.main)
        self.denoiser, self.vocabulary = start.denoiser, start.vocabulary
        self.plan = energy.plan(self.settings, start)

    def setup(self) -> None:
        """Read the corpus, build the energy network and the contrastive pipeline."""
        settings = self.settings
        energy.require_room(settings, self.denoiser.max_length)
        corpus = schemas.build(settings["corpus"], "corpus")
        self.blocks = corpora.load_blocks(corpus, self.vocabulary, self.denoiser.max_length)
        torch.manual_seed(settings["seed"])
        network = self.plan.network()
        self.run = TrainingRun(
            folder=self.folder,
            network=network,
            stages=self.plan.stages(network, settings["num_negatives"]),
            blocks=self.blocks.train,
            vocabulary=self.vocabulary,
            settings={key: settings[key] for key in training_settings.SETTINGS},
            seed=settings["seed"],
            identity=self.plan.notes(corpus),
            validate=self.validate,
            sample=lambda _: self.texts(),
            form=self.plan.form,
        )

    def load_checkpoint(self) -> None:
        """Continue an earlier run in the same folder."""
        self.run.load_checkpoint()

    def train(self) -> None:
        """Train to the last step."""
        self.run.train()

    def validate(self, network: nn.Module) -> Metrics:
        """Give loss, accuracy, calibration and weights of the EMA network on held-out blocks, by noise level too."""
        drawn = draws.held_out(self.blocks, "valid", self.settings, self.device)
        per_row = energy.held_out(self.plan, network, drawn)
        contrast.warn(per_row, self.run.step)
        return contrast.metrics(per_row, *self.classifier)

    def save_checkpoint(self) -> None:
        """Write the last state; the training loop has written the earlier ones."""
        self.run.save_checkpoint()

    def cleanup(self) -> None:
        """Print the figures of the energy, the ways of writing in one table, and what to do next."""
        settings, k = self.settings, self.settings["report_particles"]
        drawn = draws.held_out(self.blocks, "test", settings, self.device)
        law = draws.continuous(self.denoiser, self.denoiser.schedule)
        bound = draws.estimated(law, drawn, self.plan.start.pad_id)
        per_row = energy.held_out(self.plan, self.run.average, drawn)
        figures, levels = contrast.figures(per_row), contrast.by_noise_level(per_row, *self.classifier)
        calibration = contrast.calibration_error(per_row, *self.classifier)
        ways = closing.of_run(settings, self.denoiser, self._correction(), self.blocks, self.vocabulary)
        report: dict[str, Any] = {name: value._asdict() for name, value in figures.items()}
        report |= {"nelbo": bound._asdict(), "calibration": calibration._asdict(), "ways": closing_report.report(ways)}
        report |= {"warning": contrast.warning(per_row), "by_time": levels}
        remarks = {"denoiser NELBO": f"n = {bound.n} draws"}
        lines = [
            *correction.bits_lines({"denoiser NELBO": bound}, self.vocabulary.unit, remarks),
            *contrast.figure_lines(figures, calibration, k, *self.classifier),
        ]
        shown = tables.table(lines), contrast.levels_table(levels, k)
        energy.conclude(self.folder, settings, report, shown, what=("energy", "denoiser"))
        closing_report.conclude(self.folder, ways, settings)

    def texts(self) -> list[dict[str, Any]]:
        """Draw a few samples at equal seeds with the energy off and on."""
        return correction.texts(self.denoiser, self._correction(), self.settings["samples"], self.vocabulary)

    def _correction(self) -> corrections.OfEnergy:
        return corrections.OfEnergy(self.plan.energy(self.run.average.eval()), called=self.plan.called)


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings."""
    recipe = EnergyByNCE(settings)
    recipe.load_denoiser()
    recipe.setup()
    recipe.load_checkpoint()
    recipe.train()
    recipe.save_checkpoint()
    recipe.cleanup()


if __name__ == "__main__":
    entry.enter(main, SETTINGS)
