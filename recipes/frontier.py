"""Compare samplers at equal quality and equal cost: denoiser, energies and AR model over steps, particles and windows.

edlm run frontier ar=runs/tiny/ar judge=runs/tiny/ar
edlm run frontier --config english27 corpus.path=FOLDER
"""

import platform
from collections.abc import Mapping
from typing import Any

import torch

import edlm
from edlm import execution
from edlm.denoisers import SubsDenoiser
from edlm.recipes import (
    _entry,
    _frontier_draws,
    _frontier_grid,
    _frontier_plots,
    _frontier_points,
    _frontier_table,
    _models,
    _parameterisations,
    _processes,
    _quality,
    _report,
    _settings,
    _training,
)
from edlm.recipes._frontier_draws import Drawing, Reference
from edlm.recipes._frontier_grid import Setting
from edlm.recipes._frontier_lines import Lines
from edlm.recipes._quality import Texts
from edlm.recipes._settings import Schema

SETTINGS: Schema = {
    "recipe": _settings.choice("frontier"),
    "output_dir": _settings.text,
    "seed": _settings.seed,
    "device": _settings.choice("auto", "cpu", "cuda"),
    "threads": _settings.optional(_settings.threads),
    "execution": _settings.choice("eager", "compile", "cudagraph"),
    "denoiser": _settings.text,
    "energy": _settings.optional(_settings.text),
    "transition": _settings.optional(_settings.text),
    "joint": _settings.optional(_settings.text),
    "ar": _settings.optional(_settings.text),
    "judge": _settings.text,
    "corpus": _settings.component(),
    "split": _settings.choice("train", "valid", "test"),
    "length": _settings.optional(_settings.integer(1)),
    "num_samples": _settings.integer(2),
    "batch_size": _settings.integer(1),
    "ngrams": _settings.items(_settings.integer(1), least=1),
    "replicates": _settings.integer(2),
    "sweeps": _settings.items(_frontier_grid.check_sweep, least=1),
}
HELD_OUT = "held-out text"


class Frontier:
    """Load, expand the sweeps, draw and judge setting after setting, compare, report."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.folder = _training.writable("output_dir", settings["output_dir"])
        self.device = _training.device_of(settings)
        execution.check_mode(settings["execution"], self.device)
        _frontier_grid.require_sources(settings["sweeps"], settings)

    def load_checkpoint(self) -> None:
        """Load the networks and the judge."""
        _parameterisations.require_subs(self.settings["denoiser"])
        self.models = _models.load(self.settings, self.device)
        self.judge, self.judged_by = _quality.load_judge(self.settings["judge"], self.device)

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
        self.grid = _frontier_grid.expand(settings["sweeps"], self.schedule, length)
        if any(setting.of_chain_rule for setting in self.grid):
            assert isinstance(denoiser, SubsDenoiser)
            _models.require_ordered(settings["denoiser"], denoiser)
        counts = (settings["num_samples"], settings["batch_size"], settings["seed"])
        self.drawing = Drawing(length, *counts, self.device, settings["execution"])
        documents = list(getattr(_settings.build(settings["corpus"], "texts"), settings["split"]))
        found = _quality.held_out(documents, self.models.vocabulary, length, settings["num_samples"])
        if found is None:
            raise ValueError(f"split = {settings['split']!r} has fewer than 4 excerpts of length = {length}")
        self.real, self.other = found
        self.reference = Reference(self.judge, self.real, settings["ngrams"], settings["seed"], settings["replicates"])
        self.fingerprint = _report.fingerprint({"documents": documents})
        card = self._card()
        self.lines = _processes.from_first(lambda: Lines(self.folder, "frontier", card))

    def sweep(self) -> None:
        """Draw what is missing, the line of a setting written when it is there; time left is judged by passes."""
        missing = [setting for setting in self.grid if str(setting) not in self.lines.records]
        passes = {each: _frontier_grid.expected_passes(each, self.schedule, self.drawing.length) for each in self.grid}
        done = sum(passes[each] for each in self.grid if str(each) in self.lines.records)
        if HELD_OUT not in self.lines.records:
            self.lines.add(HELD_OUT, _frontier_draws.describe(self.other, self.reference))
        _frontier_draws.warm_up(missing, self.models, self.drawing)
        shape = "{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
        with _processes.bar(total=sum(passes.values()), initial=done, bar_format=shape) as bar:
            for number, setting in enumerate(missing, start=len(self.grid) - len(missing) + 1):
                bar.set_description(f"{number}/{len(self.grid)} {setting}")
                tokens, costs = _frontier_draws.draw(setting, self.models, self.drawing)
                texts = Texts(list(tokens), list(self.models.vocabulary.decode(tokens)))
                self.lines.add(str(setting), {**costs, **_frontier_draws.describe(texts, self.reference)})
                bar.update(passes[setting])

    def report(self) -> None:
        """Compare all settings, write the tables and the picture, and show what fits the terminal."""
        settings: list[tuple[Setting | None, str]] = [(None, ""), *self.grid.items()]
        seed, replicates = self.settings["seed"], self.settings["replicates"]
        found = []
        for setting, role in settings:
            name = HELD_OUT if setting is None else str(setting)
            found.append(_frontier_points.point(name, setting, role, self.lines.records[name], seed, replicates))
        points = _frontier_points.with_comparisons(found)
        remarks = self._remarks()
        _report.write_text(self.folder / "frontier.csv", _frontier_table.to_csv(points))
        _report.write_text(self.folder / "frontier.md", _frontier_table.to_markdown(points, remarks))
        if _processes.is_first():
            _frontier_plots.draw(self.folder / "frontier.png", points, "\n".join(remarks))
        print(f"\n{_report.columns(_frontier_table.short(points))}\n")
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
            **({"processes_used": _processes.world()} if _processes.world() > 1 else {}),
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
        return [*([_frontier_table.WARNING] if judged is not None and judged == own else []), drawn]


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings."""
    recipe = Frontier(settings)
    recipe.load_checkpoint()
    recipe.setup()
    recipe.sweep()
    recipe.report()


if __name__ == "__main__":
    _entry.enter(main, SETTINGS)
