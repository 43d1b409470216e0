"""Compare samplers at equal quality and equal cost: denoiser, energies and AR model over steps, particles and windows.

edlm run frontier ar=runs/tiny/ar judge=runs/tiny/ar
edlm run frontier --config english27 corpus.path=FOLDER
"""

import platform
from collections.abc import Mapping
from typing import Any

import torch

import edlm
from edlm.evaluation import samples
from edlm.evaluation.samples import Texts
from edlm.frontier import draws, grid, plots, table
from edlm.frontier import points as frontier_points
from edlm.frontier.draws import Drawing, Reference
from edlm.frontier.grid import Setting
from edlm.frontier.lines import Lines
from edlm.models.denoisers import SubsDenoiser
from edlm.runs import entry, environment, files, processes, tables
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.samplers import execution
from edlm.weights import kinds, named

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
    "ar": schemas.optional(schemas.text),
    "judge": schemas.text,
    "corpus": schemas.component(),
    "split": schemas.choice("train", "valid", "test"),
    "length": schemas.optional(schemas.integer(1)),
    "num_samples": schemas.integer(2),
    "batch_size": schemas.integer(1),
    "ngrams": schemas.items(schemas.integer(1), least=1),
    "replicates": schemas.integer(2),
    "sweeps": schemas.items(grid.check_sweep, least=1),
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
        length = settings["length"] or self.models.max_length
        if length > self.models.max_length:
            raise ValueError(f"length = {length} must lie in 1..{self.models.max_length}, what the networks take")
        if max(settings["ngrams"]) > length:
            raise ValueError(f"ngrams = {settings['ngrams']} must be at most length = {length}")
        assert self.models.diffusion is not None
        self.schedule, denoiser = self.models.diffusion.schedule, self.models.diffusion.denoiser
        self.grid = grid.expand(settings["sweeps"], self.schedule, length)
        if any(setting.of_chain_rule for setting in self.grid):
            assert isinstance(denoiser, SubsDenoiser)
            named.require_ordered(settings["denoiser"], denoiser)
        counts = (settings["num_samples"], settings["batch_size"], settings["seed"])
        self.drawing = Drawing(length, *counts, self.device, settings["execution"])
        documents = list(getattr(schemas.build(settings["corpus"], "texts"), settings["split"]))
        found = samples.held_out(documents, self.models.vocabulary, length, settings["num_samples"])
        if found is None:
            raise ValueError(f"split = {settings['split']!r} has fewer than 4 excerpts of length = {length}")
        self.real, self.other = found
        self.reference = Reference(self.judge, self.real, settings["ngrams"], settings["seed"], settings["replicates"])
        self.fingerprint = files.fingerprint({"documents": documents})
        card = self._card()
        self.lines = processes.from_first(lambda: Lines(self.folder, "frontier", card))

    def sweep(self) -> None:
        """Draw what is missing, the line of a setting written when it is there; time left is judged by passes."""
        missing = [setting for setting in self.grid if str(setting) not in self.lines.records]
        passes = {each: grid.expected_passes(each, self.schedule, self.drawing.length) for each in self.grid}
        done = sum(passes[each] for each in self.grid if str(each) in self.lines.records)
        if HELD_OUT not in self.lines.records:
            self.lines.add(HELD_OUT, draws.describe(self.other, self.reference))
        draws.warm_up(missing, self.models, self.drawing)
        shape = "{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
        with processes.bar(total=sum(passes.values()), initial=done, bar_format=shape) as bar:
            for number, setting in enumerate(missing, start=len(self.grid) - len(missing) + 1):
                bar.set_description(f"{number}/{len(self.grid)} {setting}")
                tokens, costs = draws.draw(setting, self.models, self.drawing)
                texts = Texts(list(tokens), list(self.models.vocabulary.decode(tokens)))
                self.lines.add(str(setting), {**costs, **draws.describe(texts, self.reference)})
                bar.update(passes[setting])

    def report(self) -> None:
        """Compare all settings, write the tables and the picture, and show what fits the terminal."""
        settings: list[tuple[Setting | None, str]] = [(None, ""), *self.grid.items()]
        seed, replicates = self.settings["seed"], self.settings["replicates"]
        found = []
        for setting, role in settings:
            name = HELD_OUT if setting is None else str(setting)
            found.append(frontier_points.point(name, setting, role, self.lines.records[name], seed, replicates))
        points = frontier_points.with_comparisons(found)
        remarks = self._remarks()
        files.write_text(self.folder / "frontier.csv", table.to_csv(points))
        files.write_text(self.folder / "frontier.md", table.to_markdown(points, remarks))
        if processes.is_first():
            plots.draw(self.folder / "frontier.png", points, "\n".join(remarks))
        print(f"\n{tables.columns(table.short(points))}\n")
        print("\n".join(f"  {remark}" for remark in remarks))
        print(f"\n  written to {self.folder / 'frontier.md'}, frontier.csv and frontier.png")

    def _card(self) -> dict[str, Any]:
        """Everything that a line depends on, and what else is needed to repeat it."""
        return {
            "settings": dict(self.settings),
            "networks": {name: record["weights_sha256"] for name, record in self.models.records.items()},
            "judged_by": self.judged_by,
            "text": self.fingerprint,
            "length_used": self.drawing.length,
            "versions": {"edlm": edlm.__version__, "torch": torch.__version__, "python": platform.python_version()},
            "device_used": torch.cuda.get_device_name() if self.device.type == "cuda" else platform.machine(),
            "threads_used": torch.get_num_threads(),
            **({"processes_used": processes.world()} if processes.world() > 1 else {}),
        }

    def _remarks(self) -> list[str]:
        """What stands above the table: whether the judge judges itself, and what was drawn."""
        judged = self.judged_by.get("weights_sha256")
        own = self.models.records.get("ar", {}).get("weights_sha256")
        drawing = self.drawing
        drawn = (
            f"{drawing.num_samples} texts of {drawing.length} tokens per setting, {drawing.batch_size} at once, seed "
            f"{drawing.seed}, {self.device}, {drawing.execution}, {torch.get_num_threads()} threads; judge "
            f"{self.settings['judge']}"
        )
        return [*([table.WARNING] if judged is not None and judged == own else []), drawn]


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings."""
    recipe = Frontier(settings)
    recipe.load_checkpoint()
    recipe.setup()
    recipe.sweep()
    recipe.report()


if __name__ == "__main__":
    entry.enter(main, SETTINGS)
