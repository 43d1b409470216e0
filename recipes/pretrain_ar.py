"""Train an autoregressive model by its exact likelihood: a baseline, and what an AR energy needs (Xu et al. 2025).

edlm run pretrain_ar --config tiny steps=500
edlm run pretrain_ar start_from=runs/tiny/ar output_dir=runs/tiny/ar_more    # its weights, a new run
edlm run pretrain_ar --config smollm2               # further training of a folder of the hub
edlm run pretrain_ar drafts='{ahead: 4, every: 4}' output_dir=runs/tiny/drafting   # it drafts its own next tokens
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from edlm import contracts
from edlm.likelihood import estimates, nelbo
from edlm.runs import entry, environment, processes
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.training import autoregression, report
from edlm.training import settings as training_settings
from edlm.training.loop import Metrics, TrainingRun

SETTINGS: Schema = {
    "recipe": schemas.choice("pretrain_ar"),
    "output_dir": schemas.text,
    "seed": schemas.seed,
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    "corpus": schemas.component(),
    **autoregression.SETTINGS,
}


class PretrainAr:
    """The five verbs of the recipe, in the order in which they are called."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.folder = environment.writable("output_dir", settings["output_dir"])
        self.device = environment.device_of(settings)

    def setup(self) -> None:
        """Read the corpus, build the network and the training pipeline."""
        settings = self.settings
        self.plan = autoregression.plan(settings, schemas.build(settings["corpus"], "corpus"))
        network = self.plan.network.to(self.device)
        self.run = TrainingRun(
            folder=self.folder,
            network=network,
            stages=self.plan.stages(network),
            blocks=self.plan.blocks.train,
            vocabulary=replace(self.plan.vocabulary, pad_id=self.plan.pad_id),  # whose tokens are all that count
            settings={key: settings[key] for key in training_settings.WITHOUT_TIMES},
            seed=settings["seed"],
            identity=self.plan.identity,
            validate=self.validate,
            per_token=True,
            sample=self.plan.texts,
            form=self.plan.form,
        )

    def load_checkpoint(self) -> None:
        """Continue an earlier run in the same folder."""
        self.run.load_checkpoint()

    def train(self) -> None:
        """Train to the last step."""
        self.run.train()

    def validate(self, network: nn.Module) -> Metrics:
        """Give the negative log-likelihood of the EMA network on held-out blocks."""
        nll = self.held_out_nll(network, self.plan.blocks.valid[: self.settings["valid_rows"]])
        return {"nll": nll.mean, "nll_error": nll.standard_error}

    @torch.no_grad()
    def held_out_nll(self, network: nn.Module, blocks: Tensor) -> estimates.Estimate:
        """Estimate the exact negative log-likelihood in nats per token over blocks (n, l), all but padding counted."""
        stages = self.plan.exact(network).eval()

        def score(part: Tensor) -> Tensor:
            return stages(TensorDict({contracts.X_0: part.to(self.device)}))[contracts.LOSS].cpu()

        losses = torch.cat(processes.spread(score, blocks.split(self.settings["batch_size"])))
        counts = nelbo.not_padding(blocks, self.plan.pad_id).sum(1)
        return estimates.estimate(losses / counts, counts)

    def save_checkpoint(self) -> None:
        """Write the last state; the training loop has written the earlier ones."""
        self.run.save_checkpoint()

    def cleanup(self) -> None:
        """Say what was learned and where it is."""
        scored = 4 * self.settings["valid_rows"]
        nll = self.held_out_nll(self.run.average, self.plan.blocks.test[:scored])
        text = report.held_out(self.plan.blocks, self.run.vocabulary, scored)
        rows = report.lines("exact NLL", nll, "blocks", "perplexity", self.run, text)
        report.conclude(self.run, rows, nll, text)


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings."""
    recipe = PretrainAr(settings)
    recipe.setup()
    recipe.load_checkpoint()
    recipe.train()
    recipe.save_checkpoint()
    recipe.cleanup()


if __name__ == "__main__":
    entry.enter(main, SETTINGS)
