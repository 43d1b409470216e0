"""Train one network for both jobs: a denoiser, and the energy that corrects what its steps reveal.

edlm run edlm_joint                       # trains the denoiser first if there is none
edlm run edlm_joint --config tiny num_negatives=3 energy_weight=0.5
edlm run generate denoiser=runs/tiny/joint energy=runs/tiny/joint output=runs/tiny/joint.jsonl
"""

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from edlm import contracts
from edlm.data import corpora
from edlm.data.corpora import Rows
from edlm.evaluation import contrast as contrasts
from edlm.evaluation import correction
from edlm.likelihood import nelbo
from edlm.likelihood.estimates import Estimate, estimate
from edlm.likelihood.nelbo import not_padding
from edlm.models import denoisers
from edlm.models.denoisers import SubsDenoiser
from edlm.nn import networks
from edlm.objectives import batches, losses
from edlm.objectives import joint as joint_objectives
from edlm.process import particles
from edlm.recipes import pretrain_denoiser
from edlm.runs import entry, environment, files, processes, tables
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.samplers import corrections
from edlm.training import settings as training_settings
from edlm.training import start as starts
from edlm.training.loop import Metrics, TrainingRun

TRAINING: Schema = {
    **{key: check for key, check in training_settings.SETTINGS.items() if key != "time_low"},
    "valid_rows": schemas.integer(8),  # some of them reveal nothing, and an error needs two that do
}
SETTINGS: Schema = {
    "recipe": schemas.choice("edlm_joint"),
    "output_dir": schemas.text,
    "seed": schemas.seed,
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    "corpus": schemas.component(),
    "denoiser": schemas.text,
    "pretrain": schemas.optional(schemas.section(pretrain_denoiser.MODEL)),
    "dropout": schemas.number(0, 0.9),
    "num_energy_layers": schemas.integer(1),
    "denoiser_rate": schemas.number(0),
    "transition_steps": schemas.span,
    "nelbo_weight": schemas.number(0),
    "energy_weight": schemas.number(0),
    "objective": schemas.choice("nce", "info_nce"),
    "num_negatives": schemas.integer(1),
    "report_particles": schemas.integer(2),
    "samples": schemas.section(correction.SAMPLES),
    **TRAINING,
}
FIGURES = ("contrast", "accuracy", "gap", "ess", "log_weight_std")


class JointTraining:
    """The five verbs of the recipe, in the order in which they are called."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.folder = environment.writable("output_dir", settings["output_dir"])
        self.device = environment.device_of(settings)
        if settings["energy_weight"] == 0 == settings["nelbo_weight"] * settings["denoiser_rate"]:
            raise ValueError(
                "energy_weight = 0 and nelbo_weight or denoiser_rate = 0: nothing would be trained; give energy_weight"
            )

    def load_denoiser(self) -> None:
        """Load the denoiser to start from; train it first where there is none and the config says how."""
        start = starts.load(self.settings, self.device, pretrain_denoiser.main)
        self.start, self.schedule, self.vocabulary, self.description, self.start_weights = start
        if self.description["time_conditioning"]:
            path = self.settings["denoiser"]
            raise ValueError(f"denoiser = {path!r} must be one that is told no time: time_conditioning: false")

    def setup(self) -> None:
        """Read the corpus, build the network from the denoiser, and the training pipeline."""
        settings = self.settings
        corpus = schemas.build(settings["corpus"], "corpus")
        self.blocks = corpora.load_blocks(corpus, self.vocabulary, self.start.max_length)
        torch.manual_seed(settings["seed"])
        sizes = {key: value for key, value in self.start.arguments.items() if key != "causal"}
        own = {"dropout": settings["dropout"], "num_energy_layers": settings["num_energy_layers"]}
        network = networks.JointNetwork(**{**sizes, **own}).to(self.device)
        networks.start_joint_from(network, self.start)
        network.denoiser.requires_grad_(settings["denoiser_rate"] > 0.0)  # what is not trained takes no backward pass
        for split, rows in (("valid", settings["valid_rows"]), ("test", 4 * settings["valid_rows"])):
            batches = self._batches(getattr(self.blocks, split), rows)
            contrasts.require_new(self._stages(network).module["corrupt"], split, batches, settings)
        told = ("num_energy_layers", "denoiser_rate", "transition_steps", "objective", "num_negatives")
        self.run = TrainingRun(
            folder=self.folder,
            network=network,
            stages=self._stages(network),
            blocks=self.blocks.train,
            vocabulary=self.vocabulary,
            settings={key: settings[key] for key in TRAINING},
            seed=settings["seed"],
            identity={
                **{key: settings[key] for key in (*told, "nelbo_weight", "energy_weight", "dropout")},
                "corpus": corpus.fingerprint,
                "schedule": self.description["schedule"],
                "time_conditioning": False,
                "denoiser_step": self.description.get("step"),
                "denoiser_weights": self.start_weights,
                "scope": "transition",
            },
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
        """The loss, what it is made of, and weight diagnostics of the EMA network on held-out blocks."""
        settings, rows = self.settings, self.settings["valid_rows"]
        per_row = self.held_out(network, self.blocks.valid, rows)
        warning = contrasts.warning(per_row)
        if warning is not None and processes.is_first():
            tqdm.write(f"step {self.run.step}: {warning}", file=sys.stderr)
        found = {name: estimate(per_row[name]) for name in FIGURES}
        found |= self.nelbos(network, self.blocks.valid, rows)
        figures = {name: value.mean for name, value in found.items()}
        parts = (settings["nelbo_weight"] * figures["nelbo"], settings["energy_weight"] * figures["contrast"])
        return {"loss": sum(parts), **figures}

    @torch.no_grad()
    def held_out(self, network: nn.Module, blocks: Rows, rows: int) -> dict[str, Tensor]:
        """Per row with anything new (n,): contrast, accuracy, ESS of `report_particles` draws; energies (n, 1 + k)."""
        settings, k = self.settings, self.settings["report_particles"]
        stages = self._stages(network, num_negatives=max(k, settings["num_negatives"])).eval()

        def score(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
            row, x_0 = batch
            out = stages(batches.training_batch(x_0, settings["seed"], row, batches.HELD_OUT_STEP, rows))
            energies = out[contracts.ENERGY][(out[contracts.X_T] != out[contracts.X_S]).any(1)]
            positive, negative = energies[:, 0], energies[:, 1:]
            log_weights = particles.log_weights(negative[:, :k])
            contrast = self._objective(positive, negative[:, : settings["num_negatives"]])
            accuracy, gap = losses.nce_accuracy(positive, negative), negative.mean(-1) - positive
            weights = particles.ess(log_weights), particles.log_weight_std(log_weights)
            return tuple(values.cpu() for values in (contrast, accuracy, gap, *weights, energies))

        found = zip(*processes.spread(score, self._batches(blocks, rows), "held-out text"), strict=True)
        names = (*FIGURES, contrasts.ENERGIES)
        return {name: torch.cat(values) for name, values in zip(names, found, strict=True)}

    def nelbos(self, network: nn.Module, blocks: Rows, rows: int) -> dict[str, Estimate]:
        """Nats per token of the joint network and of the denoiser it started from, on the same draws, and what it cost.

        cost: the difference row by row, positive where the joint network is the worse denoiser. Padding is neither
        scored nor masked, and a row counts by its tokens.
        """
        seed, batches = torch.tensor(self.settings["seed"], device=self.device), self._batches(blocks, rows)

        def score(batch: tuple[Tensor, Tensor], each: nn.Module) -> Tensor:
            row, x_0 = batch
            scored = not_padding(x_0, self.vocabulary.pad_id)
            return nelbo.nelbo(self._denoiser(each), self.schedule, x_0, seed, row, scored).cpu()

        values = {
            name: torch.cat(processes.spread(partial(score, each=each), batches, name.replace("_", " ")))
            for name, each in (("nelbo", network.eval()), ("start_nelbo", self.start))
        }
        values["cost"] = values["nelbo"] - values["start_nelbo"]
        counts = torch.cat([not_padding(x_0, self.vocabulary.pad_id).sum(1) for _, x_0 in batches]).cpu()
        return {name: estimate(each, counts) for name, each in values.items()}

    def save_checkpoint(self) -> None:
        """Write the last state; the training loop has written the earlier ones."""
        self.run.save_checkpoint()

    def cleanup(self) -> None:
        """Print the figures on held-out text and samples with the energy off and on, and say where all is."""
        settings, blocks, rows = self.settings, self.blocks.test, 4 * self.settings["valid_rows"]
        per_row = self.held_out(self.run.average, blocks, rows)
        figures, warning = {name: estimate(per_row[name]) for name in FIGURES}, contrasts.warning(per_row)
        nelbos = {**self.nelbos(self.run.average, blocks, rows), **self.transition_bounds(blocks)}
        texts = self.texts()
        report: dict[str, Any] = {name: value._asdict() for name, value in {**nelbos, **figures}.items()}
        report["warning"] = warning
        files.write_json(self.folder / "report.json", {"settings": dict(settings), **report})
        files.write_jsonl(self.folder / "samples.jsonl", texts)
        print(f"\nheld-out text (test split, seed {settings['seed']}):\n{self._summary(nelbos, figures)}")
        if warning is not None:
            print(f"  {warning}")
        for text in texts:
            print(f"\n  sample {text['row']}, energy {text['energy']}:\n    {text['text']}")
        print(f"\n  network, figures, samples and log: {self.folder}\n  started from: {settings['denoiser']}")

    def texts(self) -> list[dict[str, Any]]:
        """A few samples of the joint network at equal seeds with the energy off and on."""
        wanted, denoiser = self.settings["samples"], self._denoiser(self.run.average.eval())
        return correction.texts(denoiser, corrections.Joint(), wanted, self.vocabulary)

    def transition_bounds(self, blocks: Rows) -> dict[str, Estimate]:
        """The bound of the sampler of `texts`."""
        denoiser = self._denoiser(self.run.average.eval())
        known = corrections.Joint(), blocks, self.settings, self.vocabulary.pad_id
        return correction.transition_bounds(denoiser, *known)

    def _batches(self, blocks: Rows, rows: int) -> list[tuple[Tensor, Tensor]]:
        """Numbers of rows (b,) and their texts (b, l), the blocks gone through as often as needed."""
        parts = torch.arange(rows, device=self.device).split(self.settings["batch_size"])
        return [(row, blocks[(row % len(blocks)).cpu()].to(self.device)) for row in parts]

    def _summary(self, nelbos: Mapping[str, Estimate], figures: Mapping[str, Estimate]) -> str:
        settings, wanted, unit = self.settings, self.settings["samples"], self.vocabulary.unit
        sampler = f"{wanted['num_steps']} steps, {wanted['num_particles']} particles"
        remarks = {
            "nelbo": "the joint network as a denoiser",
            "start_nelbo": "the denoiser it started from, same texts and noise",
            "cost": "their difference, text by text",
            "plain_bound": f"{wanted['num_steps']} steps, no energy",
            "bound": sampler,
            "gain": "their difference, text by text",
        }
        lines = [
            (name.replace("_", " "), f"{value.bits:.4f} ± {value.bits_error:.4f}", f"bits/{unit}, {remarks[name]}")
            for name, value in nelbos.items()
        ]
        nothing = torch.zeros(1)
        naive = float(self._objective(nothing, nothing.expand(1, settings["num_negatives"])))
        told = {
            "contrast": f"nats of {settings['objective']}, n = {figures['contrast'].n}; knows nothing: {naive:.3f}",
            "accuracy": "data below draw; chance: 0.5",
            "gap": "nats, draws above data",
            "ess": f"of {settings['report_particles']} draws",
            "log_weight_std": "nats",
        }
        lines += [
            (name.replace("_", " "), f"{value.mean:.4f} ± {value.standard_error:.4f}", told[name])
            for name, value in figures.items()
        ]
        return tables.table(lines)

    def _objective(self, positive: Tensor, negative: Tensor) -> Tensor:
        return getattr(losses, self.settings["objective"])(positive, negative)

    def _denoiser(self, network: nn.Module) -> SubsDenoiser:
        return denoisers.subs(network, self.vocabulary.mask_id, schedule=self.schedule)

    def _stages(self, network: nn.Module, num_negatives: int | None = None) -> Any:
        settings = self.settings
        return joint_objectives.contrastive(
            self._denoiser(network),
            self.schedule,
            tuple(settings["transition_steps"]),
            num_negatives or settings["num_negatives"],
            settings["nelbo_weight"],
            settings["energy_weight"],
            self._objective,
            self.vocabulary.pad_id,
        )


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
