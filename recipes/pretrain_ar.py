"""Train an autoregressive model by its exact likelihood: a baseline, and what an AR energy needs (Xu et al. 2025).

edlm run pretrain_ar --config tiny steps=500
"""

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from edlm import contracts, corpora, likelihoods, training
from edlm.corpora import Blocks
from edlm.recipes import _entry, _following, _padding, _processes, _report, _settings, _training
from edlm.recipes._settings import Schema
from edlm.recipes._training import Metrics, TrainingRun
from edlm.vocabulary import Vocabulary

# Those of every training but the one about times: there is none here.
TRAINING: Schema = {key: check for key, check in _training.SETTINGS.items() if key != "time_low"}
SETTINGS: Schema = {
    "recipe": _settings.choice("pretrain_ar"),
    "output_dir": _settings.text,
    "seed": _settings.seed,
    "device": _settings.choice("auto", "cpu", "cuda"),
    "threads": _settings.optional(_settings.threads),
    "corpus": _settings.component(),
    "vocabulary": _settings.component(),
    "length": _settings.integer(1),
    "padding": _padding.check,
    "network": _settings.component("vocab_size", "max_length", "causal", "conditioning_size", "pad_id"),
    **TRAINING,
}


class PretrainAr:
    """The five verbs of the recipe, in the order in which they are called."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.folder = _training.writable("output_dir", settings["output_dir"])
        self.device = _training.device_of(settings)

    def setup(self) -> None:
        """Read the corpus, build the network and the training pipeline."""
        settings = self.settings
        corpus = _settings.build(settings["corpus"], "corpus")
        padding, vocabulary = settings["padding"], _settings.build(settings["vocabulary"], "vocabulary")
        self.vocabulary: Vocabulary = _padding.vocabulary(padding, vocabulary)
        self.blocks: Blocks = corpora.load_blocks(corpus, self.vocabulary, settings["length"])
        for name in ("valid", "test"):
            if len(getattr(self.blocks, name)) < 2:
                raise ValueError(f"length = {settings['length']}: {name} has one block so long, and an error needs two")
        self.bos_id = start_id(self.vocabulary)
        torch.manual_seed(settings["seed"])
        network = _settings.build(
            settings["network"],
            "network",
            vocab_size=self.vocabulary.size,
            max_length=settings["length"],
            causal=True,
            conditioning_size=0,
        ).to(self.device)
        self.run = TrainingRun(
            folder=self.folder,
            network=network,
            stages=self._stages(network),
            blocks=self.blocks.train,
            vocabulary=self.vocabulary,
            settings={key: settings[key] for key in TRAINING},
            seed=settings["seed"],
            identity={
                "objective": "next_token",
                "corpus": corpus.fingerprint,
                "bos_id": self.bos_id,
                "network": settings["network"],
                "length": settings["length"],
                **_padding.notes(padding, self.blocks, self.vocabulary.filler_id),
            },
            validate=self.validate,
            per_token=True,
            sample=lambda network: _following.ar_texts(network, self.vocabulary, self.bos_id, settings["seed"]),
        )

    def load_checkpoint(self) -> None:
        """Continue an earlier run in the same folder."""
        self.run.load_checkpoint()

    def train(self) -> None:
        """Train to the last step."""
        self.run.train()

    def validate(self, network: nn.Module) -> Metrics:
        """The negative log-likelihood of the EMA network on held-out blocks."""
        nll = self.held_out_nll(network, self.blocks.valid[: self.settings["valid_rows"]])
        return {"nll": nll.mean, "nll_error": nll.standard_error}

    @torch.no_grad()
    def held_out_nll(self, network: nn.Module, blocks: Tensor) -> likelihoods.Estimate:
        """The exact negative log-likelihood in nats per token over blocks (n, l), all but padding counted."""
        stages = self._stages(network).eval()

        def score(part: Tensor) -> Tensor:
            return stages(TensorDict({contracts.X_0: part.to(self.device)}))[contracts.LOSS].cpu()

        losses = torch.cat(_processes.spread(score, blocks.split(self.settings["batch_size"])))
        counts = likelihoods.not_padding(blocks, self.vocabulary.pad_id).sum(1)
        return likelihoods.estimate(losses / counts, counts)

    def save_checkpoint(self) -> None:
        """Write the last state; the training loop has written the earlier ones."""
        self.run.save_checkpoint()

    def cleanup(self) -> None:
        """Say what was learned and where it is."""
        nll = self.held_out_nll(self.run.average, self.blocks.test[: 4 * self.settings["valid_rows"]])
        parameters = sum(p.numel() for p in self.run.average.parameters())
        rows = [
            (
                "exact NLL (test)",
                f"{nll.bits:.4f} ± {nll.bits_error:.4f} bits/{self.vocabulary.unit}",
                f"n = {nll.n} blocks",
            ),
            ("perplexity", f"{nll.perplexity:.3f}", ""),
            ("steps, parameters", f"{self.run.step:,}, {parameters:,}", f"seed {self.settings['seed']}, EMA weights"),
        ]
        print(f"\n{_report.table(rows)}\n\n  written to {self.folder}")
        figures = {**nll._asdict(), "bits": nll.bits, "bits_error": nll.bits_error, "step": self.run.step}
        _report.write_json(self.folder / "report.json", figures)

    def _stages(self, network: nn.Module) -> Any:
        return training.next_token(network, self.vocabulary.mask_id, self.bos_id, self.vocabulary.pad_id)


def start_id(vocabulary: Vocabulary) -> int:
    """The id in front of every block: the vocabulary's bos, or the mask, which no text holds, if it has none."""
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
    _entry.enter(main, SETTINGS)
