"""Train a masked-diffusion denoiser by its continuous-time NELBO (MDLM, Sahoo et al. 2024), or a baseline of it.

edlm run pretrain_denoiser --config tiny steps=500
edlm run pretrain_denoiser objective=chain_rule noise_levels=by_time loss_steps=[4,64]    # good in order too
edlm run pretrain_denoiser start_from=runs/tiny/denoiser output_dir=runs/tiny/more    # its weights, a new run
edlm run pretrain_denoiser --config tiny_sedd           # or tiny_d3pm: the same network, data and batches
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from edlm.data import corpora
from edlm.data.pieces import Rows
from edlm.evaluation import draws
from edlm.likelihood.estimates import Estimate
from edlm.models import denoisers
from edlm.runs import entry, environment
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.training import denoiser, kinds, report
from edlm.training import settings as training_settings
from edlm.training.loop import Metrics, TrainingRun

SETTINGS: Schema = {
    "recipe": schemas.choice("pretrain_denoiser"),
    "output_dir": schemas.text,
    "seed": schemas.seed,
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    "corpus": schemas.component(),
    **denoiser.MODEL,
}


class PretrainDenoiser:
    """The five verbs of the recipe, in the order in which they are called."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        kinds.check(settings)
        self.folder = environment.writable("output_dir", settings["output_dir"])
        self.device = environment.device_of(settings)

    def setup(self) -> None:
        """Read the corpus, build the network and the training pipeline."""
        settings = self.settings
        corpus = schemas.build(settings["corpus"], "corpus")
        self.plan = denoiser.plan(settings, corpus)
        self.vocabulary, self.schedule = self.plan.vocabulary, self.plan.schedule
        self.blocks = corpora.load_blocks(corpus, self.vocabulary, settings["length"])
        torch.manual_seed(settings["seed"])
        network = self.plan.network(self.blocks).to(self.device)
        self.run = TrainingRun(
            folder=self.folder,
            network=network,
            stages=self.plan.stages(network),
            blocks=self.blocks.train,
            vocabulary=self.vocabulary,
            settings={key: settings[key] for key in training_settings.SETTINGS},
            seed=settings["seed"],
            identity=self.plan.notes(corpus, self.blocks),
            validate=self.validate,
            per_token=True,
            sample=self.plan.texts,
        )

    def load_checkpoint(self) -> None:
        """Continue an earlier run in the same folder."""
        self.run.load_checkpoint()

    def train(self) -> None:
        """Train to the last step."""
        self.run.train()

    def validate(self, network: nn.Module) -> Metrics:
        """Give the bound of the EMA network on held-out blocks."""
        bound = self.held_out_bound(network, self.blocks.valid, self.settings["valid_rows"])
        return {"nelbo": bound.mean, "nelbo_error": bound.standard_error}

    def held_out_bound(self, network: nn.Module, blocks: Rows, rows: int) -> Estimate:
        """Estimate the bound in nats per token over `rows` draws, the blocks gone through as often as needed."""
        drawn = draws.of_settings(blocks, rows, self.settings, self.device)
        return draws.estimated(self.plan.bound(network), drawn, self.vocabulary.pad_id)

    def save_checkpoint(self) -> None:
        """Write the last state; the training loop has written the earlier ones."""
        self.run.save_checkpoint()

    def cleanup(self) -> None:
        """Say what was learned and where it is."""
        scored = 4 * self.settings["valid_rows"]
        bound = self.held_out_bound(self.run.average, self.blocks.test, scored)
        levels = {f"{t:g}": self.masked_nll(t) for t in report.NOISE_LEVELS}
        text = report.held_out(self.blocks, self.vocabulary, scored)
        rows = report.lines(self.plan.objective.claim, bound, "draws", "perplexity bound", self.run, text)
        rows += report.level_lines(levels, self.vocabulary.unit)
        told = {t: None if value is None else value._asdict() for t, value in levels.items()}
        report.conclude(self.run, rows, bound, text, masked_nll=told)

    def masked_nll(self, t: float) -> Estimate | None:
        """Estimate what the EMA network, as a law of tokens, leaves unexplained of a mask of the test split."""
        law = denoisers.subs(self.run.average, self.vocabulary.mask_id, self.plan.told)
        drawn = draws.of_settings(self.blocks.test, self.settings["valid_rows"], self.settings, self.device)
        return draws.masked_nll(law, self.schedule, t, drawn, self.vocabulary.pad_id)


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings."""
    recipe = PretrainDenoiser(settings)
    recipe.setup()
    recipe.load_checkpoint()
    recipe.train()
    recipe.save_checkpoint()
    recipe.cleanup()


if __name__ == "__main__":
    entry.enter(main, SETTINGS)
