"""Train an autoregressive model by its exact likelihood: a baseline, and what an AR energy needs (Xu et al. 2025).

edlm run pretrain_ar --config tiny steps=500
edlm run pretrain_ar start_from=runs/tiny/ar output_dir=runs/tiny/ar_more    # its weights, a new run
"""

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from edlm import contracts
from edlm.data import corpora
from edlm.data.pieces import Blocks
from edlm.data.vocabulary import Vocabulary
from edlm.likelihood import estimates, nelbo
from edlm.objectives import denoising
from edlm.runs import entry, environment, processes
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.training import continuation, report, texts, vocabularies
from edlm.training import padding as _padding
from edlm.training import settings as training_settings
from edlm.training.loop import Metrics, TrainingRun

SETTINGS: Schema = {
    "recipe": schemas.choice("pretrain_ar"),
    "output_dir": schemas.text,
    "seed": schemas.seed,
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    "corpus": schemas.component(),
    "vocabulary": vocabularies.check,
    "length": schemas.integer(1),
    "padding": _padding.check,
    "network": schemas.component("vocab_size", "max_length", "causal", "pad_id"),
    continuation.KEY: continuation.check,
    **training_settings.WITHOUT_TIMES,
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
        corpus = schemas.build(settings["corpus"], "corpus")
        self.vocabulary: Vocabulary = vocabularies.build(settings, corpus)
        self.blocks: Blocks = corpora.load_blocks(corpus, self.vocabulary, settings["length"])
        for name in ("valid", "test"):
            if len(getattr(self.blocks, name)) < 2:
                raise ValueError(f"length = {settings['length']}: {name} has one block so long, and an error needs two")
        self.bos_id = start_id(self.vocabulary)
        torch.manual_seed(settings["seed"])
        sizes = {"vocab_size": self.vocabulary.size, "max_length": settings["length"]}
        network = schemas.build({"conditioning_size": 0, **settings["network"]}, "network", **sizes, causal=True)
        continuation.take_up(network, settings.get(continuation.KEY), self.vocabulary)
        network.to(self.device)
        self.run = TrainingRun(
            folder=self.folder,
            network=network,
            stages=self._stages(network),
            blocks=self.blocks.train,
            vocabulary=self.vocabulary,
            settings={key: settings[key] for key in training_settings.WITHOUT_TIMES},
            seed=settings["seed"],
            identity={
                "objective": "next_token",
                "corpus": corpus.fingerprint,
                "bos_id": self.bos_id,
                "network": settings["network"],
                "length": settings["length"],
                **_padding.notes(settings["padding"], self.blocks, self.vocabulary.filler_id),
                **continuation.notes(settings.get(continuation.KEY)),
            },
            validate=self.validate,
            per_token=True,
            sample=lambda network: texts.ar_texts(network, self.vocabulary, self.bos_id, settings["seed"]),
        )

    def load_checkpoint(self) -> None:
        """Continue an earlier run in the same folder."""
        self.run.load_checkpoint()

    def train(self) -> None:
        """Train to the last step."""
        self.run.train()

    def validate(self, network: nn.Module) -> Metrics:
        """Give the negative log-likelihood of the EMA network on held-out blocks."""
        nll = self.held_out_nll(network, self.blocks.valid[: self.settings["valid_rows"]])
        return {"nll": nll.mean, "nll_error": nll.standard_error}

    @torch.no_grad()
    def held_out_nll(self, network: nn.Module, blocks: Tensor) -> estimates.Estimate:
        """Estimate the exact negative log-likelihood in nats per token over blocks (n, l), all but padding counted."""
        stages = self._stages(network).eval()

        def score(part: Tensor) -> Tensor:
            return stages(TensorDict({contracts.X_0: part.to(self.device)}))[contracts.LOSS].cpu()

        losses = torch.cat(processes.spread(score, blocks.split(self.settings["batch_size"])))
        counts = nelbo.not_padding(blocks, self.vocabulary.pad_id).sum(1)
        return estimates.estimate(losses / counts, counts)

    def save_checkpoint(self) -> None:
        """Write the last state; the training loop has written the earlier ones."""
        self.run.save_checkpoint()

    def cleanup(self) -> None:
        """Say what was learned and where it is."""
        scored = 4 * self.settings["valid_rows"]
        nll = self.held_out_nll(self.run.average, self.blocks.test[:scored])
        text = report.held_out(self.blocks, self.vocabulary, scored)
        rows = report.lines("exact NLL", nll, "blocks", "perplexity", self.run, text)
        report.conclude(self.run, rows, nll, text)

    def _stages(self, network: nn.Module) -> Any:
        return denoising.next_token(network, self.vocabulary.mask_id, self.bos_id, self.vocabulary.pad_id)


def start_id(vocabulary: Vocabulary) -> int:
    """Return the id in front of every block: the vocabulary's bos, or the mask, which no text holds, if it has none."""
    return vocabulary.mask_id if vocabulary.bos_id is None else vocabulary.bos_id


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
