"""Train a masked-diffusion denoiser by its continuous-time NELBO (MDLM, Sahoo et al. 2024), or a baseline of it.

edlm run pretrain_denoiser --config tiny steps=500
edlm run pretrain_denoiser --config tiny objective=chain_rule loss_steps=[4,64]    # for its own energy of transitions
edlm run pretrain_denoiser --config tiny_sedd           # or tiny_d3pm: the same network, data and batches
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edlm.data import corpora
from edlm.data.corpora import Blocks, Rows
from edlm.data.vocabulary import Vocabulary
from edlm.likelihood import estimates, nelbo
from edlm.models import denoisers
from edlm.runs import entry, environment, files, processes, tables
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.training import kinds, log, texts
from edlm.training import padding as _padding
from edlm.training import settings as training_settings
from edlm.training.kinds import KERNELS, PARAMETERISATIONS
from edlm.training.loop import Metrics, TrainingRun

# What the denoiser itself is; `edlm_nce` takes the same keys in its `pretrain` section.
MODEL: Schema = {
    "vocabulary": schemas.component(),
    "length": schemas.integer(1),
    "padding": _padding.check,
    "network": schemas.component("vocab_size", "max_length", "pad_id"),
    "schedule": kinds.schedule,
    "time_conditioning": schemas.flag,
    "objective": schemas.choice(*PARAMETERISATIONS),
    "loss_steps": schemas.optional(kinds.loss_steps),
    **training_settings.SETTINGS,
}
SETTINGS: Schema = {
    "recipe": schemas.choice("pretrain_denoiser"),
    "output_dir": schemas.text,
    "seed": schemas.seed,
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    "corpus": schemas.component(),
    **MODEL,
}
NOISE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


class PretrainDenoiser:
    """The five verbs of the recipe, in the order in which they are called."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        kinds.check(settings)
        self.kind = PARAMETERISATIONS[settings["objective"]]
        self.folder = environment.writable("output_dir", settings["output_dir"])
        self.device = environment.device_of(settings)

    def setup(self) -> None:
        """Read the corpus, build the network and the training pipeline."""
        settings = self.settings
        corpus = schemas.build(settings["corpus"], "corpus")
        padding, vocabulary = settings["padding"], schemas.build(settings["vocabulary"], "vocabulary")
        self.vocabulary: Vocabulary = _padding.vocabulary(padding, vocabulary)
        self.blocks: Blocks = corpora.load_blocks(corpus, self.vocabulary, settings["length"])
        self.schedule = schemas.build(settings["schedule"], "schedule")
        torch.manual_seed(settings["seed"])
        supplied = {"vocab_size": self.vocabulary.size, "max_length": settings["length"]}
        supplied |= _padding.of_network(padding, self.blocks, self.vocabulary.pad_id)
        network = schemas.build(settings["network"], "network", **supplied).to(self.device)
        self.run = TrainingRun(
            folder=self.folder,
            network=network,
            stages=self.kind.stages(self._denoiser(network), self.schedule, settings, self.vocabulary.pad_id),
            blocks=self.blocks.train,
            vocabulary=self.vocabulary,
            settings={key: settings[key] for key in training_settings.SETTINGS},
            seed=settings["seed"],
            identity={
                "objective": self.kind.objective,
                "corpus": corpus.fingerprint,
                "schedule": settings["schedule"],
                "time_conditioning": settings["time_conditioning"],
                "network": settings["network"],
                "length": settings["length"],
                **kinds.notes(settings),
                **_padding.notes(padding, self.blocks, self.vocabulary.filler_id),
            },
            validate=self.validate,
            per_token=True,
            sample=self.texts,
        )

    def load_checkpoint(self) -> None:
        """Continue an earlier run in the same folder."""
        self.run.load_checkpoint()

    def train(self) -> None:
        """Train to the last step."""
        self.run.train()

    def validate(self, network: nn.Module) -> Metrics:
        """The bound of the EMA network on held-out blocks."""
        bound = self.held_out_bound(network, self.blocks.valid, self.settings["valid_rows"])
        return {"nelbo": bound.mean, "nelbo_error": bound.standard_error}

    def texts(self, network: nn.Module) -> log.Texts:
        """A few texts of the EMA network, for those who follow the run."""
        denoiser, seed = self._denoiser(network), self.settings["seed"]
        baseline = KERNELS.get(self.settings["objective"])
        if baseline is not None:
            return texts.baseline_texts(baseline(denoiser, self.schedule), self.vocabulary, seed)
        return texts.denoiser_texts(denoiser, self.vocabulary, seed)

    def held_out_bound(self, network: nn.Module, blocks: Rows, rows: int) -> estimates.Estimate:
        """The bound of this kind in nats per token over `rows` draws, the blocks gone through as often as needed."""
        score = self.kind.bound(self._denoiser(network), self.schedule, self.settings)
        return over_draws(score, blocks, rows, self.settings, self.device, self.vocabulary.pad_id)

    def save_checkpoint(self) -> None:
        """Write the last state; the training loop has written the earlier ones."""
        self.run.save_checkpoint()

    def cleanup(self) -> None:
        """Say what was learned and where it is."""
        bound = self.held_out_bound(self.run.average, self.blocks.test, 4 * self.settings["valid_rows"])
        unit = self.vocabulary.unit
        parameters = sum(p.numel() for p in self.run.average.parameters())
        rows = [
            (
                f"{self.kind.claim} (test)",
                f"{bound.bits:.4f} ± {bound.bits_error:.4f} bits/{unit}",
                f"n = {bound.n} draws",
            ),
            ("perplexity bound", f"{bound.perplexity:.3f}", ""),
            ("steps, parameters", f"{self.run.step:,}, {parameters:,}", f"seed {self.settings['seed']}, EMA weights"),
        ]
        levels = {f"{t:g}": self.masked_nll(t) for t in NOISE_LEVELS}
        rows += [
            (f"bits left at t = {t}", f"{value.bits:.4f}", f"per masked {unit}")
            if value is not None
            else (f"bits left at t = {t}", "left out", "fewer than two draws got a mask")
            for t, value in levels.items()
        ]
        print(f"\n{tables.table(rows)}\n\n  written to {self.folder}")
        figures = {**bound._asdict(), "bits": bound.bits, "bits_error": bound.bits_error, "step": self.run.step}
        told = {t: None if value is None else value._asdict() for t, value in levels.items()}
        files.write_json(self.folder / files.REPORT, {**figures, "masked_nll": told})

    def masked_nll(self, t: float) -> estimates.Estimate | None:
        """What the EMA network, as a law of tokens, leaves unexplained of a mask of the test split at one time.

        None where fewer than two draws got a mask, as happens to short blocks.
        """
        row = torch.arange(self.settings["valid_rows"], device=self.device)
        x_0 = self.blocks.test[(row % len(self.blocks.test)).cpu()].to(self.device)
        denoiser = denoisers.subs(self.run.average, self.vocabulary.mask_id, self._told())
        seed = torch.tensor(self.settings["seed"], device=self.device)
        scored = nelbo.not_padding(x_0, self.vocabulary.pad_id)

        def score(part: Tensor) -> Tensor:
            times = torch.full(part.shape, t).to(x_0.device)
            return nelbo.masked_nll(denoiser, self.schedule, x_0[part], times, seed, part, scored[part]).cpu()

        found = torch.cat(processes.spread(score, row.split(self.settings["batch_size"])))
        found = found[~found.isnan()]
        return estimates.estimate(found) if len(found) > 1 else None

    def _denoiser(self, network: nn.Module) -> Any:
        return self.kind.build(network, self.vocabulary.mask_id, self._told())

    def _told(self) -> Any:
        return self.schedule if self.settings["time_conditioning"] else None


def continuous_nelbo(
    denoiser: denoisers.SubsDenoiser,
    schedule: Any,
    blocks: Rows,
    rows: int,
    settings: Mapping[str, Any],
    pad_id: int | None = None,
) -> estimates.Estimate:
    """Estimate the NELBO over `rows` draws; see `over_draws`."""
    score = PARAMETERISATIONS["mdlm"].bound(denoiser, schedule, settings)
    return over_draws(score, blocks, rows, settings, next(denoiser.parameters()).device, pad_id)


def over_draws(
    score: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    blocks: Rows,
    rows: int,
    settings: Mapping[str, Any],
    device: torch.device,
    pad_id: int | None = None,
) -> estimates.Estimate:
    """Estimate a bound over `rows` draws in batches of the training batch size, with noise of its own stream.

    Padding is neither scored nor masked, and a row counts by its tokens.
    """
    seed = torch.tensor(settings["seed"], device=device)

    def draw(row: Tensor) -> tuple[Tensor, Tensor]:
        x_0 = blocks[(row % len(blocks)).cpu()].to(device)
        scored = nelbo.not_padding(x_0, pad_id)
        return score(x_0, seed, row, scored).cpu(), scored.sum(1).cpu()

    found = processes.spread(draw, torch.arange(rows, device=device).split(settings["batch_size"]))
    values, counts = (torch.cat(parts) for parts in zip(*found, strict=True))
    return estimates.estimate(values, counts)


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
