"""Compare samplers with the exact law of a source: the same sweeps as `frontier`, and no judge.

edlm run oracle                          # a hidden Markov model of 3 symbols, length 6: by enumeration
edlm run oracle --config markov          # 8 symbols, length 16: exact and learned energies, by sampling
edlm run oracle --config markov64        # the same at length 64; markov256 is longer still
"""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

import edlm
from edlm.data import vocabulary
from edlm.frontier import draws, exact_report, grid
from edlm.frontier import exact as exact_figures
from edlm.frontier import learning as frontier_learning
from edlm.frontier.draws import Drawing
from edlm.frontier.exact import Beside
from edlm.frontier.learning import Learning
from edlm.frontier.lines import Lines
from edlm.likelihood import hidden_markov
from edlm.likelihood.estimates import estimate
from edlm.process import schedules
from edlm.runs import entry, environment, files, processes, tables
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.weights.named import Diffusion, Models

SETTINGS: Schema = {
    "recipe": schemas.choice("oracle"),
    "output_dir": schemas.text,
    "seed": schemas.seed,
    "threads": schemas.optional(schemas.threads),
    "source": schemas.component(),
    "length": schemas.integer(2),
    "learn": schemas.optional(schemas.section(frontier_learning.SETTINGS)),
    "num_samples": schemas.integer(2),
    "batch_size": schemas.integer(1),
    "bounded_texts": schemas.integer(2),
    "entropy_texts": schemas.integer(2),
    "distances": schemas.items(schemas.integer(1), least=1),
    "replicates": schemas.integer(2),
    "sweeps": schemas.items(grid.check_sweep, least=1),
}
SOURCE = "the source itself"
_SAMPLED, _COMPARED, _BOUNDED = 1, 2, 3  # added to the seed: texts of the source for three purposes


class Oracle:
    """Build the source, learn energies where asked, expand the sweeps, draw and compare, report."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        processes.require_one("oracle")
        self.settings = settings
        self.folder = environment.writable("output_dir", settings["output_dir"])
        self.device = environment.device_of({**settings, "device": "cpu"})
        require_sources(settings["sweeps"], settings["learn"])
        if max(settings["distances"]) >= settings["length"]:
            raise ValueError(f"distances = {settings['distances']} must be below length = {settings['length']}")

    def setup(self) -> None:
        """Build the source, its exact denoiser and energies, and what samplers are compared with."""
        settings, length = self.settings, self.settings["length"]
        self.source = schemas.build(settings["source"], "source")
        self.schedule = schedules.log_linear()
        self.grid = grid.expand(settings["sweeps"], self.schedule, length)
        self.drawing = Drawing(length, settings["num_samples"], settings["batch_size"], settings["seed"], self.device)
        alphabet = "".join(chr(ord("a") + symbol) for symbol in range(self.source.num_symbols))
        exact = {
            "exact": hidden_markov.energy(self.source),
            "exact, carry_over": hidden_markov.carry_over_energy(self.source),
        }
        diffusion = Diffusion(hidden_markov.denoiser(self.source, length), self.schedule, exact)
        self.models = Models(vocabulary.characters(alphabet), length, diffusion, None, {})
        drawn = [
            hidden_markov.texts(self.source, settings[count], length, settings["seed"] + purpose)
            for count, purpose in (("entropy_texts", _COMPARED), ("bounded_texts", _BOUNDED))
        ]
        entropy = estimate(-hidden_markov.log_prob(self.source, drawn[0]) / length)
        self.beside = Beside(
            self.source, length, entropy, drawn[1], settings["distances"], settings["seed"], settings["replicates"]
        )

    def learn(self) -> None:
        """Train what a sweep names and no earlier run has finished."""
        settings, exact = self.settings, self.models.diffusion
        assert exact is not None
        wanted = [name for sweep in settings["sweeps"] for name in grid.energies_of(sweep)]
        if set(wanted).isdisjoint(frontier_learning.NAMES):
            return
        learning = Learning(self.source, self.models, exact, settings["learn"], self.folder, settings["seed"])
        self.models = frontier_learning.learn(wanted, learning)

    def sweep(self) -> None:
        """Draw and enumerate what is missing, the line of a setting written when it is there."""
        self.lines = Lines(self.folder, "oracle", self._card())
        settings = self.settings
        if SOURCE not in self.lines.records:
            own = hidden_markov.texts(
                self.source, settings["num_samples"], settings["length"], settings["seed"] + _SAMPLED
            )
            figures = exact_figures.of_texts(own, self.beside)
            exact = {"total_variation": [0.0, 0.0], "kl": [0.0, 0.0]} if self.beside.is_small else {}
            self.lines.add(SOURCE, {"figures": {**exact, **figures}})
        missing = [each for each in self.grid if str(each) not in self.lines.records]
        draws.warm_up(missing, self.models, self.drawing)
        for setting in (bar := tqdm(missing, unit="setting")):
            bar.set_description(str(setting))
            tokens, costs = draws.draw(setting, self.models, self.drawing)
            figures = {
                **exact_figures.of_setting(setting, self.models, self.beside),
                **exact_figures.of_texts(tokens, self.beside),
                **exact_figures.of_costs(costs),
            }
            self.lines.add(str(setting), {"figures": figures})

    def report(self) -> None:
        """Write the tables and the picture, and show what fits the terminal."""
        rows = exact_report.settings_of(self.grid, self.lines.records, SOURCE)
        remarks = self._remarks()
        files.write_text(self.folder / "oracle.csv", exact_report.to_csv(rows))
        files.write_text(self.folder / "oracle.md", exact_report.to_markdown(rows, remarks))
        exact_report.draw(self.folder / "oracle.png", rows, "\n".join(remarks))
        print(f"\n{tables.columns(exact_report.short(rows))}\n")
        print("\n".join(f"  {remark}" for remark in remarks))
        print(f"\n  written to {self.folder / 'oracle.md'}, oracle.csv and oracle.png")

    def _card(self) -> dict[str, Any]:
        """Everything that a line depends on."""
        return {
            "settings": dict(self.settings),
            "versions": {"edlm": edlm.__version__, "torch": torch.__version__, "python": platform.python_version()},
            "device_used": platform.machine(),
            "threads_used": torch.get_num_threads(),
        }

    def _remarks(self) -> list[str]:
        beside, drawing = self.beside, self.drawing
        described = " ".join(
            str(value).rpartition(".")[2] if key == "_component_" else f"{key}={value}"
            for key, value in self.settings["source"].items()
        )
        return [
            f"{described}, {beside.length} tokens, entropy {beside.entropy.mean:.4f} ± "
            f"{beside.entropy.standard_error:.1g} nats per token; exact denoiser{self._others()}",
            f"{drawing.num_samples} texts per setting, {drawing.batch_size} at once, seed {drawing.seed}, "
            f"{torch.get_num_threads()} threads; bounds on {len(beside.bounded)} texts of the source",
        ]

    def _others(self) -> str:
        """Which settings have another denoiser than the source's."""
        own = {"joint": "of_joint", "chain_rule": "of_chain_rule"}
        named = [name for name, kind in own.items() if any(getattr(each, kind) for each in self.grid)]
        return f", but for {' and '.join(named)}, whose denoiser is learned" if named else ""


def require_sources(sweeps: Sequence[Mapping[str, Any]], learn: Mapping[str, Any] | None) -> None:
    """Raise ValueError if a sweep uses an energy that is not there."""
    for index, sweep in enumerate(sweeps):
        names = [sweep["method"]] if sweep["method"] == "ar" else grid.energies_of(sweep)
        for name in names:
            if name in ("ar", "posterior", "carry_over"):
                raise ValueError(
                    f"sweeps[{index}] draws with {name!r}: there is no AR model here but the source itself"
                )
            if name in frontier_learning.NAMES and learn is None:
                raise ValueError(f"learn is null, and sweeps[{index}] draws with {name!r}: say how to train it")


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings."""
    recipe = Oracle(settings)
    recipe.setup()
    recipe.learn()
    recipe.sweep()
    recipe.report()


if __name__ == "__main__":
    entry.enter(main, SETTINGS)
