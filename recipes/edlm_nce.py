"""Train an energy by noise contrastive estimation against a frozen denoiser (EDLM, Xu et al. 2025).

Of whole texts (scope: draft), or of what a step of the sampler reveals (scope: transition).

edlm run edlm_nce                       # trains the denoiser first if there is none
edlm run edlm_nce --config tiny num_negatives=4 objective=info_nce
edlm run edlm_nce scope=transition output_dir=runs/tiny/transition
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from edlm import contracts
from edlm.data import corpora
from edlm.evaluation import contrast
from edlm.evaluation import correction as _correction
from edlm.evaluation.calibration import CalibrationError
from edlm.likelihood.estimates import Estimate, estimate
from edlm.models import denoisers, energies
from edlm.nn import networks
from edlm.objectives import batches, contrastive, losses, transition
from edlm.recipes import pretrain_denoiser
from edlm.runs import entry, environment, files, processes, tables
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.samplers import corrections
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
    "denoiser": schemas.text,
    "pretrain": schemas.optional(schemas.section(pretrain_denoiser.MODEL)),
    "start_from": schemas.choice("denoiser", "scratch"),
    "embedding": schemas.choice("own", "shared"),
    "dropout": schemas.number(0, 0.9),
    "scope": schemas.choice("draft", "transition"),
    "transition_steps": schemas.span,
    "objective": schemas.choice("nce", "info_nce"),
    "num_negatives": schemas.integer(1),
    "report_particles": schemas.integer(2),
    "samples": schemas.section(_correction.SAMPLES),
    **training_settings.SETTINGS,
}


class EnergyByNCE:
    """The five verbs of the recipe, in the order in which they are called."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.folder = environment.writable("output_dir", settings["output_dir"])
        self.device = environment.device_of(settings)

    def load_denoiser(self) -> None:
        """Load the frozen denoiser; train it first where there is none and the config says how."""
        start = starts.load(self.settings, self.device, pretrain_denoiser.main)
        self.denoiser_network, self.schedule, self.vocabulary, self.description, self.start_weights = start
        self.told = self.schedule if self.description["time_conditioning"] else None
        self.denoiser = denoisers.subs(self.denoiser_network, self.vocabulary.mask_id, self.told, self.schedule)

    def setup(self) -> None:
        """Read the corpus, build the energy network and the contrastive pipeline."""
        settings = self.settings
        corpus = schemas.build(settings["corpus"], "corpus")
        self.blocks = corpora.load_blocks(corpus, self.vocabulary, self.denoiser.max_length)
        torch.manual_seed(settings["seed"])
        sizes = {
            key: value for key, value in self.denoiser_network.arguments.items() if key not in ("causal", "pad_id")
        }
        network = networks.EnergyNetwork(**{**sizes, "dropout": settings["dropout"]}).to(self.device)
        if settings["start_from"] == "denoiser":
            networks.start_energy_from(network, self.denoiser_network)
        if settings["embedding"] == "shared":
            networks.share_embedding(network, self.denoiser_network)
        self.run = TrainingRun(
            folder=self.folder,
            network=network,
            stages=self._stages(network, settings["num_negatives"]),
            blocks=self.blocks.train,
            vocabulary=self.vocabulary,
            settings={key: settings[key] for key in training_settings.SETTINGS},
            seed=settings["seed"],
            identity={
                "objective": settings["objective"],
                "num_negatives": settings["num_negatives"],
                "start_from": settings["start_from"],
                "corpus": corpus.fingerprint,
                "schedule": self.description["schedule"],
                "time_conditioning": self.description["time_conditioning"],
                "denoiser_step": self.description.get("step"),
                "denoiser_weights": self.start_weights,
                "dropout": settings["dropout"],
                **self._unusual(),
            },
            validate=self.validate,
            sample=lambda _: self.texts(),
        )

    def load_checkpoint(self) -> None:
        """Continue an earlier run in the same folder."""
        self.run.load_checkpoint()

    def train(self) -> None:
        """Train to the last step."""
        self.run.train()

    def validate(self, network: nn.Module) -> Metrics:
        """Loss, accuracy, calibration and weights of the EMA network on held-out blocks, by noise level too."""
        per_row = self.held_out(network, self.blocks.valid, self.settings["valid_rows"])
        warning = contrast.warning(per_row)
        if warning is not None and processes.is_first():
            tqdm.write(f"step {self.run.step}: {warning}", file=sys.stderr)
        return contrast.metrics(per_row, *self._classifier())

    @torch.no_grad()
    def held_out(self, network: nn.Module, blocks: corpora.Rows, rows: int) -> dict[str, Tensor]:
        """Per row (n,): its time, loss, accuracy, gap, the ESS of `report_particles` drafts; energies (n, 1 + k)."""
        settings = self.settings
        k = settings["report_particles"]
        stages = self._stages(network, max(k, settings["num_negatives"])).eval()

        def score(row: Tensor) -> dict[str, Tensor]:
            x_0 = blocks[(row % len(blocks)).cpu()].to(self.device)
            out = stages(batches.training_batch(x_0, settings["seed"], row, batches.HELD_OUT_STEP, rows))
            found = contrast.of_batch(out[contracts.ENERGY], out[contracts.T], k, *self._classifier())
            return {name: values.cpu() for name, values in found.items()}

        parts = torch.arange(rows, device=self.device).split(settings["batch_size"])
        return contrast.joined(processes.spread(score, parts, "held-out text"))

    def save_checkpoint(self) -> None:
        """Write the last state; the training loop has written the earlier ones."""
        self.run.save_checkpoint()

    def cleanup(self) -> None:
        """Print the figures on held-out text and samples with the energy off and on, and say where all is."""
        settings, blocks, rows = self.settings, self.blocks.test, 4 * self.settings["valid_rows"]
        scored = self.denoiser, self.schedule, blocks, rows, settings, self.vocabulary.pad_id
        bound = pretrain_denoiser.continuous_nelbo(*scored)
        per_row = self.held_out(self.run.average, blocks, rows)
        figures = {name: estimate(per_row[name]) for name in contrast.FIGURES}
        levels, warning = contrast.by_noise_level(per_row, *self._classifier()), contrast.warning(per_row)
        calibration = contrast.calibration_error(per_row, *self._classifier())
        texts, gains = self.texts(), self.transition_bounds(blocks)
        report: dict[str, Any] = {name: value._asdict() for name, value in {**figures, **gains}.items()}
        report |= {"nelbo": bound._asdict(), "calibration": calibration._asdict(), "warning": warning}
        files.write_json(self.folder / "report.json", {"settings": dict(settings), **report, "by_time": levels})
        files.write_jsonl(self.folder / "samples.jsonl", texts)
        print(f"\nheld-out text (test split, seed {settings['seed']}):")
        print(self._summary(bound, figures, calibration, gains))
        print(f"\n{contrast.levels_table(levels, settings['report_particles'])}")
        if warning is not None:
            print(f"  {warning}")
        for text in texts:
            print(f"\n  sample {text['row']}, energy {text['energy']}:\n    {text['text']}")
        print(f"\n  energy, figures, samples and log: {self.folder}\n  denoiser: {settings['denoiser']}")

    def texts(self) -> list[dict[str, Any]]:
        """A few samples at equal seeds with the energy off and on."""
        wanted, energy = self.settings["samples"], self._energy(self.run.average.eval())
        return _correction.texts(self.denoiser, corrections.OfEnergy(energy), wanted, self.vocabulary)

    def transition_bounds(self, blocks: corpora.Rows) -> dict[str, Estimate]:
        """The bound of the sampler of `texts` where its energy has one."""
        if self.settings["scope"] == "draft":
            return {}
        correction = corrections.OfEnergy(self._energy(self.run.average.eval()))
        known = correction, blocks, self.settings, self.vocabulary.pad_id
        return _correction.transition_bounds(self.denoiser, *known)

    def _summary(
        self,
        bound: Estimate,
        figures: Mapping[str, Estimate],
        calibration: CalibrationError,
        gains: Mapping[str, Estimate],
    ) -> str:
        wanted, unit = self.settings["samples"], self.vocabulary.unit
        lines = [
            ("denoiser NELBO", f"{bound.bits:.4f} ± {bound.bits_error:.4f}", f"bits/{unit}, n = {bound.n} draws"),
            *contrast.figure_lines(figures, calibration, self.settings["report_particles"], *self._classifier()),
        ]
        how = f"bits/{unit}, {wanted['num_steps']} steps, {wanted['num_particles']} particles"
        lines += [(name.replace("_", " "), f"{x.bits:.4f} ± {x.bits_error:.4f}", how) for name, x in gains.items()]
        return tables.table(lines)

    def _energy(self, network: nn.Module) -> Any:
        build: Any = energies.learned_transition if self.settings["scope"] == "transition" else energies.learned
        return build(network, self.told, self.vocabulary.pad_id)

    def _stages(self, network: nn.Module, num_negatives: int) -> Any:
        settings, parts = self.settings, (self.denoiser, self._energy(network), self.schedule)
        how = num_negatives, getattr(losses, settings["objective"]), self.vocabulary.pad_id
        if settings["scope"] == "transition":
            return transition.contrastive(*parts, tuple(settings["transition_steps"]), *how)
        return contrastive.contrastive(*parts, how[0], settings["time_low"], *how[1:])

    def _classifier(self) -> tuple[str, int]:
        return self.settings["objective"], self.settings["num_negatives"]

    def _unusual(self) -> dict[str, Any]:
        """What a checkpoint says of an energy that is not of drafts, or has no embedding of its own."""
        said = {key: self.settings[key] for key in ("scope", "transition_steps") if self.settings["scope"] != "draft"}
        return said if self.settings["embedding"] == "own" else {**said, "embedding": "shared"}


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
