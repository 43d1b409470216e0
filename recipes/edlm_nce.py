"""Train an energy by noise contrastive estimation against a frozen denoiser (EDLM, Xu et al. 2025).

Of whole texts (scope: draft), or of what a step of the sampler reveals (scope: transition).

edlm run edlm_nce                       # trains the denoiser first if there is none
edlm run edlm_nce --config tiny num_negatives=4 objective=info_nce
edlm run edlm_nce scope=transition output_dir=runs/tiny/transition
"""

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edlm import (
    checkpoints,
    contracts,
    corpora,
    denoisers,
    energies,
    networks,
    objectives,
    particles,
    pipelines,
    schedules,
    training,
    transition,
)
from edlm import samplers as kernels
from edlm.likelihoods import Estimate, estimate
from edlm.networks import Transformer
from edlm.recipes import _entry, _processes, _report, _settings, _training, pretrain_denoiser
from edlm.recipes._settings import Schema
from edlm.recipes._training import Metrics, TrainingRun

SAMPLES: Schema = {
    "num_samples": _settings.integer(1),
    "num_steps": _settings.integer(1),
    "num_particles": _settings.integer(1),
    "window": _settings.window,
    "seed": _settings.integer(0),
}
SETTINGS: Schema = {
    "recipe": _settings.choice("edlm_nce"),
    "output_dir": _settings.text,
    "seed": _settings.integer(0),
    "device": _settings.choice("auto", "cpu", "cuda"),
    "threads": _settings.optional(_settings.integer(1)),
    "corpus": _settings.component(),
    "denoiser": _settings.text,
    "pretrain": _settings.optional(_settings.section(pretrain_denoiser.MODEL)),
    "start_from": _settings.choice("denoiser", "scratch"),
    "dropout": _settings.number(0, 0.9),
    "scope": _settings.choice("draft", "transition"),
    "transition_steps": _settings.span,
    "objective": _settings.choice("nce", "info_nce"),
    "num_negatives": _settings.integer(1),
    "report_particles": _settings.integer(2),
    "samples": _settings.section(SAMPLES),
    **_training.SETTINGS,
}
FIGURES = ("loss", "accuracy", "gap", "ess", "log_weight_std")
NUM_LEVELS = 5
CHANCE_MARGIN = 0.01  # an accuracy this close to one half means that the energy orders nothing


class EnergyByNCE:
    """The five verbs of the recipe, in the order in which they are called."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.folder = _training.writable("output_dir", settings["output_dir"])
        self.device = _training.device_of(settings)

    def load_denoiser(self) -> None:
        """Load the frozen denoiser; train it first where there is none and the config says how."""
        settings, path = self.settings, self.settings["denoiser"]
        newest = _processes.from_first(lambda: checkpoints.last_checkpoint(path))
        plan = settings["pretrain"]
        if plan is not None and (newest is None or checkpoints.load_state(newest)["step"] < plan["steps"]):
            print(f"no finished denoiser at {path}: training it first, {plan['steps']} steps", flush=True)
            shared = {key: settings[key] for key in ("seed", "device", "threads", "corpus")}
            pretrain_denoiser.main({"recipe": "pretrain_denoiser", "output_dir": path, **shared, **plan})
        else:
            print(f"denoiser: {checkpoints.find_network(path)}", flush=True)
        folder = checkpoints.find_network(path)
        self.description = checkpoints.read_description(folder)
        self.vocabulary = checkpoints.load_vocabulary_of(folder)
        network = checkpoints.load_as(Transformer, folder).to(self.device).requires_grad_(False)
        self.schedule = _settings.build(self.description["schedule"])
        self.told = self.schedule if self.description["time_conditioning"] else None
        self.denoiser = denoisers.subs(network, self.vocabulary.mask_id, self.told)
        self.denoiser_network = network

    def setup(self) -> None:
        """Read the corpus, build the energy network and the contrastive pipeline."""
        settings = self.settings
        corpus = _settings.build(settings["corpus"])
        self.blocks = corpora.load_blocks(corpus, self.vocabulary, self.denoiser.max_length)
        torch.manual_seed(settings["seed"])
        sizes = {key: value for key, value in self.denoiser_network.arguments.items() if key != "causal"}
        network = networks.EnergyNetwork(**{**sizes, "dropout": settings["dropout"]}).to(self.device)
        if settings["start_from"] == "denoiser":
            networks.start_energy_from(network, self.denoiser_network)
        self.run = TrainingRun(
            folder=self.folder,
            network=network,
            stages=self._stages(network),
            blocks=self.blocks.train,
            vocabulary=self.vocabulary,
            settings={key: settings[key] for key in _training.SETTINGS},
            seed=settings["seed"],
            identity={
                "objective": settings["objective"],
                "num_negatives": settings["num_negatives"],
                "start_from": settings["start_from"],
                "corpus": corpus.fingerprint,
                "schedule": self.description["schedule"],
                "time_conditioning": self.description["time_conditioning"],
                "denoiser_step": self.description["step"],
                "dropout": settings["dropout"],
                **self._scope(),
            },
            validate=self.validate,
        )

    def load_checkpoint(self) -> None:
        """Continue an earlier run in the same folder."""
        self.run.load_checkpoint()

    def train(self) -> None:
        """Train to the last step."""
        self.run.train()

    def validate(self, network: nn.Module) -> Metrics:
        """Loss, accuracy and weight diagnostics of the EMA network on held-out blocks."""
        figures = self.held_out(network, self.blocks.valid, self.settings["valid_rows"])
        return {name: estimate(values).mean for name, values in figures.items() if name != "t"}

    @torch.no_grad()
    def held_out(self, network: nn.Module, blocks: Tensor, rows: int) -> dict[str, Tensor]:
        """Per row (n,): its time, NCE loss and accuracy, and the ESS of `report_particles` drafts."""
        settings = self.settings
        k, n = settings["report_particles"], settings["num_negatives"]
        stages = self._stages(network, num_negatives=max(k, n)).eval()

        def score(row: Tensor) -> tuple[Tensor, ...]:
            x_0 = blocks[(row % len(blocks)).cpu()].to(self.device)
            out = stages(_training.keyed(x_0, row, settings["seed"], step=_training.HELD_OUT_STEP, num_rows=rows))
            positive, negative = out[contracts.ENERGY][:, 0], out[contracts.ENERGY][:, 1:]
            log_weights = particles.log_weights(negative[:, :k])
            loss, gap = self._objective(positive, negative[:, :n]), negative.mean(-1) - positive
            weights = particles.ess(log_weights), particles.log_weight_std(log_weights)
            found = (out[contracts.T], loss, objectives.nce_accuracy(positive, negative), gap, *weights)
            return tuple(values.cpu() for values in found)

        parts = torch.arange(rows, device=self.device).split(settings["batch_size"])
        columns = zip(*_processes.spread(score, parts, "held-out text"), strict=True)
        return {name: torch.cat(values) for name, values in zip(("t", *FIGURES), columns, strict=True)}

    def save_checkpoint(self) -> None:
        """Write the last state; the training loop has written the earlier ones."""
        self.run.save_checkpoint()

    def cleanup(self) -> None:
        """Print the figures on held-out text and samples with the energy off and on, and say where all is."""
        settings, blocks = self.settings, self.blocks.test
        rows = 4 * settings["valid_rows"]
        bound = pretrain_denoiser.continuous_nelbo(self.denoiser, self.schedule, blocks, rows, settings)
        per_row = self.held_out(self.run.average, blocks, rows)
        figures = {name: estimate(per_row[name]) for name in FIGURES}
        levels, texts, bounds = by_noise_level(per_row), self.texts(), self.transition_bounds(blocks)
        report = {name: value._asdict() for name, value in {"nelbo": bound, **figures, **bounds}.items()}
        _report.write_json(self.folder / "report.json", {"settings": dict(settings), **report, "by_time": levels})
        _report.write_jsonl(self.folder / "samples.jsonl", texts)
        print(f"\nheld-out text (test split, seed {settings['seed']}):\n{self._summary(bound, figures, bounds)}")
        print(f"\n{_levels_table(levels, settings['report_particles'])}")
        if abs(figures["accuracy"].mean - 0.5) < CHANCE_MARGIN or figures["gap"].mean <= 0:
            print(f"  warning: the energy does not tell data from drafts (mean gap {figures['gap'].mean:.4f} nats)")
        for text in texts:
            print(f"\n  sample {text['row']}, energy {text['energy']}:\n    {text['text']}")
        print(f"\n  energy, figures, samples and log: {self.folder}\n  denoiser: {settings['denoiser']}")

    def texts(self) -> list[dict[str, Any]]:
        """A few samples at equal seeds with the energy off and on."""
        wanted = self.settings["samples"]
        energy = self._energy(self.run.average.eval())
        off = kernels.ancestral(self.schedule, self.denoiser)
        on = kernels.importance(self.schedule, self.denoiser, energy, wanted["num_particles"])
        if self.settings["scope"] == "transition":
            on = transition.of_transitions(on)
        drawn = {}
        for name, kernel in (("off", off), ("on", on)):
            pipeline = pipelines.sampling(
                kernel, self.denoiser.max_length, wanted["num_steps"], tuple(wanted["window"])
            )
            tokens = pipelines.sample(pipeline, wanted["num_samples"], seed=wanted["seed"])["tokens"]
            drawn[name] = self.vocabulary.decode(tokens.cpu())
        return [
            {"row": row, "seed": wanted["seed"], "energy": name, "text": drawn[name][row]}
            for row in range(wanted["num_samples"])
            for name in ("off", "on")
        ]

    def transition_bounds(self, blocks: Tensor) -> dict[str, Estimate]:
        """Nats per token of the sampler of `texts` without a window: plain, corrected, and the gain row by row."""
        settings, wanted = self.settings, self.settings["samples"]
        if settings["scope"] == "draft":
            return {}
        grid, seed = schedules.uniform_grid(wanted["num_steps"]), torch.tensor(settings["seed"], device=self.device)
        parts = (self.denoiser, self._energy(self.run.average.eval()), self.schedule, grid)
        rows = torch.arange(settings["valid_rows"], device=self.device).split(settings["batch_size"])

        def score(row: Tensor, k: int) -> Tensor:
            text = blocks[(row % len(blocks)).cpu()].to(self.device)
            return transition.nelbo(*parts, k, text, seed, row).cpu()

        plain, tilted = (torch.cat(_processes.spread(partial(score, k=k), rows)) for k in (1, wanted["num_particles"]))
        values = {"plain_bound": plain, "bound": tilted, "gain": plain - tilted}
        return {name: estimate(value) for name, value in values.items()}

    def _summary(self, bound: Estimate, figures: Mapping[str, Estimate], bounds: Mapping[str, Estimate]) -> str:
        k, name, unit = self.settings["report_particles"], self.settings["objective"], self.vocabulary.unit
        lines = [
            ("denoiser NELBO", f"{bound.bits:.4f} ± {bound.bits_error:.4f}", f"bits/{unit}, n = {bound.n} draws"),
            (f"{name} loss", _plus_minus(figures["loss"]), f"nats, n = {bound.n}; knows nothing: {self._naive():.3f}"),
            ("accuracy", _plus_minus(figures["accuracy"]), "data below draft, all times in (0, 1); chance: 0.5"),
            (f"ESS of {k} drafts", _plus_minus(figures["ess"]), f"of {k}"),
            ("s.d. of log-weights", _plus_minus(figures["log_weight_std"]), "nats"),
        ]
        wanted = self.settings["samples"]
        how = f"bits/{unit}, {wanted['num_steps']} steps, {wanted['num_particles']} particles"
        for key, value in bounds.items():
            lines.append((key.replace("_", " "), f"{value.bits:.4f} ± {value.bits_error:.4f}", how))
        return _report.table(lines)

    def _objective(self, positive: Tensor, negative: Tensor) -> Tensor:
        return getattr(objectives, self.settings["objective"])(positive, negative)

    def _naive(self) -> float:
        """The loss of an energy that is constant."""
        nothing = torch.zeros(1)
        return float(self._objective(nothing, nothing.expand(1, self.settings["num_negatives"])))

    def _energy(self, network: nn.Module) -> Any:
        build: Any = energies.learned_transition if self.settings["scope"] == "transition" else energies.learned
        return build(network, self.told, self.vocabulary.pad_id)

    def _stages(self, network: nn.Module, num_negatives: int | None = None) -> Any:
        settings, parts = self.settings, (self.denoiser, self._energy(network), self.schedule)
        how = (num_negatives or settings["num_negatives"], self._objective, self.vocabulary.pad_id)
        if settings["scope"] == "transition":
            return transition.contrastive(*parts, tuple(settings["transition_steps"]), *how)
        return training.contrastive(*parts, how[0], settings["time_low"], *how[1:])

    def _scope(self) -> dict[str, Any]:
        """What a checkpoint says of an energy that is not of drafts."""
        return {key: self.settings[key] for key in ("scope", "transition_steps") if self.settings["scope"] != "draft"}


def by_noise_level(per_row: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Means of the figures over fifths of the time, from data to masks."""
    edges = [step / NUM_LEVELS for step in range(NUM_LEVELS + 1)]
    levels = []
    for low, high in itertools.pairwise(edges):
        inside = (per_row["t"] >= low) & (per_row["t"] < high)
        means = {name: float(per_row[name][inside].double().mean()) for name in FIGURES}
        levels.append({"t": f"[{low:.1f}, {high:.1f})", "n": int(inside.sum()), **means})
    return levels


def _levels_table(levels: list[dict[str, Any]], k: int) -> str:
    rows = [
        (f"t in {level['t']}", f"{level['accuracy']:.3f}", f"{level['ess']:.2f} of {k}, {level['log_weight_std']:.2f}")
        for level in levels
    ]
    return _report.table([("by noise level", "accuracy", "ESS, s.d. of log-weights"), *rows])


def _plus_minus(value: Estimate) -> str:
    return f"{value.mean:.4f} ± {value.standard_error:.4f}"


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
    _entry.enter(main, SETTINGS)
