"""Compare samplers at equal quality and equal cost: any values of their axes, and an AR model alone.

edlm run frontier ar=runs/tiny/ar judge=runs/tiny/ar
edlm run frontier --config english27 corpus.path=FOLDER
"""

from collections.abc import Mapping
from typing import Any

from edlm.evaluation import samples
from edlm.evaluation.samples import Texts
from edlm.frontier import card, draws, findings, grid, plots, sweeps, table
from edlm.frontier import points as frontier_points
from edlm.frontier.draws import Drawing, Reference
from edlm.frontier.grid import Entry
from edlm.frontier.lines import Lines
from edlm.runs import entry, environment, files, processes, tables
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.samplers import execution
from edlm.weights import kinds, named, sources

SETTINGS: Schema = {
    "recipe": schemas.choice("frontier"),
    "output_dir": schemas.text,
    "seed": schemas.seed,
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    "execution": schemas.choice("eager", "compile", "cudagraph"),
    "denoiser": schemas.text,
    "energy": schemas.optional(schemas.text),
    "transition": schemas.optional(schemas.text),
    "joint": schemas.optional(schemas.text),
    "ar": sources.AR,
    "judge": schemas.text,
    "corpus": schemas.component(),
    "split": schemas.choice("train", "valid", "test"),
    "length": schemas.optional(schemas.integer(1)),
    "num_samples": schemas.integer(2),
    "batch_size": schemas.integer(1),
    "ngrams": schemas.items(schemas.integer(1), least=1),
    "replicates": schemas.integer(2),
    "sweeps": schemas.items(sweeps.check_sweep, least=1),
}
HELD_OUT = "held-out text"


class Frontier:
    """Load, expand the sweeps, draw and judge setting after setting, compare, report."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.folder = environment.writable("output_dir", settings["output_dir"])
        self.device = environment.device_of(settings)
        execution.check_mode(settings["execution"], self.device)
        grid.require_sources(settings["sweeps"], settings)

    def load_checkpoint(self) -> None:
        """Load the networks and the judge."""
        kinds.require_subs(self.settings["denoiser"])
        self.models = named.load(self.settings, self.device)
        self.judge, self.judged_by = samples.load_judge(self.settings["judge"], self.device)

    def setup(self) -> None:
        """Expand the sweeps, choose real text to compare with, and find what an earlier run has finished."""
        settings = self.settings
        length = named.length_of(settings, self.models)
        if max(settings["ngrams"]) > length:
            raise ValueError(f"ngrams = {settings['ngrams']} must be at most length = {length}")
        self.grid = grid.expand(settings["sweeps"], grid.sources(self.models), length)
        counts = (settings["num_samples"], settings["batch_size"], settings["seed"])
        self.drawing = Drawing(length, *counts, self.device, settings["execution"])
        documents = list(getattr(schemas.build(settings["corpus"], "texts"), settings["split"]))
        found = samples.held_out(documents, self.models.vocabulary, length, settings["num_samples"])
        if found is None:
            raise ValueError(f"split = {settings['split']!r} has fewer than 4 excerpts of length = {length}")
        self.real, self.other = found
        self.reference = Reference(self.judge, self.real, settings["ngrams"], settings["seed"], settings["replicates"])
        own = card.card(
            settings,
            self.device,
            networks={name: record["weights_sha256"] for name, record in self.models.records.items()},
            judged_by=self.judged_by,
            text=files.fingerprint({"documents": documents}),
            length_used=length,
        )
        configs = {name: grid.config(entry) for name, entry in self.grid.items()}
        self.lines = processes.from_first(lambda: Lines(self.folder, "frontier", own, configs))

    def sweep(self) -> None:
        """Draw what is missing, the line of a setting written when it is there; time left is judged by passes."""
        missing = {name: entry.setting for name, entry in self.grid.items() if name not in self.lines.records}
        passes = {name: grid.expected_passes(entry.setting, self.drawing.length) for name, entry in self.grid.items()}
        if HELD_OUT not in self.lines.records:
            self.lines.add(HELD_OUT, draws.describe(self.other, self.reference))
        draws.warm_up(list(missing.values()), self.drawing)
        shape = "{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
        total = sum(passes.values())
        done = total - sum(passes[name] for name in missing)
        with processes.bar(total=total, initial=done, bar_format=shape) as bar:
            for number, (name, setting) in enumerate(missing.items(), start=len(self.grid) - len(missing) + 1):
                bar.set_description(f"{number}/{len(self.grid)} {name}")
                tokens, costs = draws.draw(setting, self.drawing)
                texts = Texts(list(tokens), list(self.models.vocabulary.decode(tokens)))
                self.lines.add(name, {**costs, **draws.describe(texts, self.reference)})
                bar.update(passes[name])

    def report(self) -> None:
        """Compare all settings, write the tables and the picture, and say what they show."""
        entries: dict[str, Entry | None] = {HELD_OUT: None, **self.grid}
        how = (self.settings["seed"], self.settings["replicates"])
        found = []
        for name, own in entries.items():
            setting, role = (None, "") if own is None else own[:2]
            found.append(frontier_points.point(name, setting, role, self.lines.records[name], *how))
        points = frontier_points.with_comparisons(found)
        remarks = card.judged(self.drawing, self.models, self.settings["judge"], self.judged_by)
        verdicts = findings.verdicts_of(points, judged_by_itself=table.WARNING in remarks)
        said = findings.sentence(points, verdicts)
        files.write_text(self.folder / "frontier.csv", table.to_csv(points))
        files.write_text(self.folder / "frontier.md", table.to_markdown(points, [said, *remarks]))
        if processes.is_first():
            plots.draw(self.folder / "frontier.png", points, findings.title(points, verdicts), " ".join(remarks))
        print(f"\n{tables.columns(table.short(points))}\n")
        print("\n".join(f"  {remark}" for remark in remarks))
        print(f"\n{tables.sentence(said)}")
        print(f"\n  all {len(points)} settings: {self.folder / 'frontier.md'}, frontier.csv and frontier.png")


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings."""
    recipe = Frontier(settings)
    recipe.load_checkpoint()
    recipe.setup()
    recipe.sweep()
    recipe.report()


if __name__ == "__main__":
    entry.enter(main, SETTINGS)
