"""Compare samplers with the exact law of a source: the same sweeps as `frontier`, and no judge.

edlm run oracle                          # a hidden Markov model of 3 symbols, length 6: by enumeration
edlm run oracle --config markov          # 8 symbols, length 16: exact and learned energies, by sampling
edlm run oracle --config markov64        # the same at length 64; markov256 is longer still
"""

from collections.abc import Mapping
from typing import Any

from edlm import limits
from edlm.frontier import card, draws, exact_plot, exact_report, grid, sweeps
from edlm.frontier import exact as exact_figures
from edlm.frontier import learning as frontier_learning
from edlm.frontier.draws import Drawing
from edlm.frontier.exact import Beside
from edlm.frontier.grid import Entry
from edlm.frontier.learning import Learning
from edlm.frontier.lines import Lines
from edlm.likelihood import hidden_markov
from edlm.likelihood.estimates import estimate
from edlm.runs import entry, environment, files, processes, tables
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.samplers.sampler import Sampler
from edlm.weights.named import Models

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
    "sweeps": schemas.items(sweeps.check_sweep, least=1),
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
        frontier_learning.require_sources(settings["sweeps"], settings["learn"])
        for key in ("num_samples", "bounded_texts", "entropy_texts"):
            limits.require_texts(key, settings[key], settings["length"])
        if max(settings["distances"]) >= settings["length"]:
            raise ValueError(f"distances = {settings['distances']} must be below length = {settings['length']}")

    def setup(self) -> None:
        """Build the source, its exact denoiser and energies, and what samplers are compared with."""
        settings, length = self.settings, self.settings["length"]
        self.source = schemas.build(settings["source"], "source")
        self.drawing = Drawing(length, settings["num_samples"], settings["batch_size"], settings["seed"], self.device)
        self.models, self.exact = frontier_learning.exact_models(self.source, length)
        drawn = [
            hidden_markov.texts(self.source, settings[count], length, settings["seed"] + purpose)
            for count, purpose in (("entropy_texts", _COMPARED), ("bounded_texts", _BOUNDED))
        ]
        entropy = estimate(-hidden_markov.log_prob(self.source, drawn[0]) / length)
        self.beside = Beside(
            self.source, length, entropy, drawn[1], settings["distances"], settings["seed"], settings["replicates"]
        )

    def learn(self) -> None:
        """Build every sampler, and train what they are made of and no earlier run has finished."""
        settings = self.settings
        if settings["learn"] is None:
            self.grid = self._expanded(self.models)
            return
        learning = Learning(self.source, self.models, self.exact, settings["learn"], self.folder, settings["seed"])
        untrained = frontier_learning.untrained(learning)
        wanted = frontier_learning.wanted_by(self._expanded(untrained), untrained)
        self.models = frontier_learning.learn(wanted, learning)
        self.grid = self._expanded(self.models)

    def sweep(self) -> None:
        """Draw and enumerate what is missing, the line of a setting written when it is there."""
        configs = {name: grid.config(entry) for name, entry in self.grid.items()}
        self.lines = Lines(self.folder, "oracle", card.card(self.settings, self.device), configs)
        settings = self.settings
        if SOURCE not in self.lines.records:
            own = hidden_markov.texts(
                self.source, settings["num_samples"], settings["length"], settings["seed"] + _SAMPLED
            )
            figures = exact_figures.of_texts(own, self.beside)
            exact = {"total_variation": [0.0, 0.0], "kl": [0.0, 0.0]} if self.beside.is_small else {}
            self.lines.add(SOURCE, {"figures": {**exact, **figures}})
        missing = [each.setting for name, each in self.grid.items() if name not in self.lines.records]
        draws.warm_up(missing, self.drawing)
        known: exact_figures.Known = []
        for setting in (bar := processes.bar(missing, unit="setting")):
            assert isinstance(setting, Sampler)
            bar.set_description(str(setting))
            tokens, costs = draws.draw(setting, self.drawing)
            figures = {
                **exact_figures.of_sampler(setting, self.beside, known),
                **exact_figures.of_texts(tokens, self.beside),
                **exact_figures.of_costs(costs),
            }
            self.lines.add(str(setting), {"figures": figures})

    def report(self) -> None:
        """Write the tables and the picture, and say what they show."""
        rows = exact_report.rows_of(self.grid, self.lines.records, SOURCE)
        remarks = card.beside(self.settings["source"], self.beside, self.drawing, self.grid, self.exact.denoiser)
        said = exact_report.title(rows)
        files.write_text(self.folder / "oracle.csv", exact_report.to_csv(rows))
        files.write_text(self.folder / "oracle.md", exact_report.to_markdown(rows, [said, *remarks]))
        exact_plot.draw(self.folder / "oracle.png", rows, self.beside.length, said, " ".join(remarks))
        print(f"\n{tables.columns(exact_report.short(rows))}\n")
        print("\n".join(f"  {remark}" for remark in remarks))
        print(f"\n{tables.sentence(said)}")
        print(f"\n  all {len(rows)} rows: {self.folder / 'oracle.md'}, oracle.csv and oracle.png")

    def _expanded(self, models: Models) -> dict[str, Entry]:
        """The settings of all sweeps with these models. Raises ValueError naming the sweep that cannot be drawn."""
        try:
            return grid.expand(self.settings["sweeps"], grid.sources(models), self.settings["length"])
        except ValueError as error:
            hint = "" if self.settings["learn"] is not None else "; learn is null: say how to train a network"
            raise ValueError(f"{error}{hint}") from error


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings."""
    recipe = Oracle(settings)
    recipe.setup()
    recipe.learn()
    recipe.sweep()
    recipe.report()


if __name__ == "__main__":
    entry.enter(main, SETTINGS)
