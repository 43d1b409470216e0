"""Make a denoiser of an autoregressive model: attention both ways, a mask, and a short training by the NELBO.

A model that is a denoiser already is trained further.

edlm run adapt --config tiny                            # from the model of `edlm run pretrain_ar`
edlm run adapt --config smollm2                         # from a folder of the hub, 135 million parameters, on a CPU
edlm run adapt --config smollm2 lora.rank=8 lora.alpha=16
edlm run adapt --config smollm2 start_from=FOLDER       # LLaDA, Dream, BERT, SDAR, ...: trained further
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from edlm.data import corpora
from edlm.data.pieces import Rows
from edlm.evaluation import draws
from edlm.likelihood.estimates import Estimate
from edlm.process import schedules
from edlm.runs import entry, environment
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.training import adaptation, report
from edlm.training import settings as training_settings
from edlm.training.loop import Metrics, TrainingRun

SETTINGS: Schema = {
    "recipe": schemas.choice("adapt"),
    "output_dir": schemas.text,
    "seed": schemas.seed,
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    "corpus": schemas.component(),
    **adaptation.SETTINGS,
}


class Adapt:
    """The five verbs of the recipe, in the order in which they are called."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.folder = environment.writable("output_dir", settings["output_dir"])
        self.device = environment.device_of(settings)

    def setup(self) -> None:
        """Read the model and the corpus, and build the training pipeline."""
        settings = self.settings
        torch.manual_seed(settings["seed"])
        self.plan = adaptation.plan(settings)
        corpus = schemas.build(settings["corpus"], "corpus")
        self.blocks = corpora.load_blocks(corpus, self.plan.vocabulary, settings["length"])
        self.plan.require_possible(self.blocks)
        network = self.plan.network.to(self.device)
        self.run = TrainingRun(
            folder=self.folder,
            network=network,
            stages=self.plan.stages(network),
            blocks=self.blocks.train,
            vocabulary=replace(self.plan.vocabulary, pad_id=self.plan.pad_id),  # whose tokens are all that count
            settings={key: settings[key] for key in training_settings.WITHOUT_TIMES},
            seed=settings["seed"],
            identity=self.plan.notes(corpus),
            validate=self.validate,
            per_token=True,
            sample=self.plan.texts,
            form=self.plan.form,
        )

    def load_checkpoint(self) -> None:
        """Continue an earlier run in the same folder."""
        self.run.load_checkpoint()

    def train(self) -> None:
        """Train to the last step. First evaluate the model before training."""
        if self.run.step == 0:
            before = self.held_out_bound(self.run.average, self.blocks.valid, self.settings["valid_rows"])
            print(f"before training: {before.bits:.4f} ± {before.bits_error:.4f} bits/token", flush=True)
        self.run.train()

    def validate(self, network: nn.Module) -> Metrics:
        """Give the bound of the EMA network on held-out blocks."""
        bound = self.held_out_bound(network, self.blocks.valid, self.settings["valid_rows"])
        return {"nelbo": bound.mean, "nelbo_error": bound.standard_error}

    def held_out_bound(self, network: nn.Module, blocks: Rows, rows: int) -> Estimate:
        """Estimate the bound in nats per token over `rows` draws, the blocks gone through as often as needed."""
        drawn = draws.of_settings(blocks, rows, self.settings, self.device)
        return draws.estimated(self.plan.bound(network), drawn, self.plan.pad_id)

    def save_checkpoint(self) -> None:
        """Write the last state; the training loop has written the earlier ones."""
        self.run.save_checkpoint()

    def cleanup(self) -> None:
        """Say what was learned and where it is."""
        rows = 4 * self.settings["valid_rows"]
        bound = self.held_out_bound(self.run.average, self.blocks.test, rows)
        size = self.plan.bytes_per_token(self.blocks.test, rows)
        levels = {f"{t:g}": self.masked_nll(t) for t in report.NOISE_LEVELS}
        text = report.held_out(self.blocks, self.run.vocabulary, rows)
        lines = report.lines("denoiser NELBO", bound, "draws", "perplexity bound", self.run, text)
        lines.append(("the same per byte", f"{bound.bits / size:.4f}", f"{size:.2f} bytes a token"))
        lines += report.level_lines(levels, self.plan.vocabulary.unit)
        told = {t: None if value is None else value._asdict() for t, value in levels.items()}
        report.conclude(self.run, lines, bound, text, masked_nll=told, bytes_per_token=size)

    def masked_nll(self, t: float) -> Estimate | None:
        """Estimate the nats per mask that the EMA network needs on the test split."""
        drawn = draws.of_settings(self.blocks.test, self.settings["valid_rows"], self.settings, self.device)
        law = self.plan.denoiser(self.run.average)
        return draws.masked_nll(law, schedules.log_linear(), t, drawn, self.plan.pad_id)


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings."""
    recipe = Adapt(settings)
    recipe.setup()
    recipe.load_checkpoint()
    recipe.train()
    recipe.save_checkpoint()
    recipe.cleanup()


if __name__ == "__main__":
    entry.enter(main, SETTINGS)
