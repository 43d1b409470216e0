"""Show the cost of writing several tokens in a pass: likelihoods of samplers, exact or bounded, on the same texts.

edlm run likelihoods ar=runs/tiny/ar
edlm run likelihoods --config english27 corpus.path=FOLDER
"""

from collections.abc import Mapping
from typing import Any

from edlm.data import pieces
from edlm.evaluation import figures, scores
from edlm.frontier import card, curve, curve_findings, curve_plot, grid, sweeps
from edlm.frontier.lines import Lines
from edlm.runs import entry, environment, files, processes, tables
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.samplers.sampler import Sampler
from edlm.weights import kinds, named, sources

SETTINGS: Schema = {
    "recipe": schemas.choice("likelihoods"),
    "output_dir": schemas.text,
    "seed": schemas.seed,
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    "denoiser": schemas.text,
    "energy": schemas.optional(schemas.text),
    "transition": schemas.optional(schemas.text),
    "joint": schemas.optional(schemas.text),
    "ar": sources.AR,
    "corpus": schemas.component(),
    "split": schemas.choice("train", "valid", "test"),
    "length": schemas.optional(schemas.integer(1)),
    "rows": schemas.optional(schemas.integer(2)),
    "batch_size": schemas.integer(1),
    "num_passes": schemas.optional(schemas.integer(1)),
    "num_orders": schemas.integer(1),
    "num_completions": schemas.integer(1),
    "nelbo_draws": schemas.integer(1),
    "sweeps": schemas.items(sweeps.check_sweep, least=1),
    "labels": curve.labels,
}


class Likelihoods:
    """Load, cut the texts, expand the sweeps, score setting after setting, report."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.folder = environment.writable("output_dir", settings["output_dir"])
        self.device = environment.device_of(settings)
        grid.require_sources(settings["sweeps"], settings)

    def load_checkpoint(self) -> None:
        """Load the networks."""
        kinds.require_subs(self.settings["denoiser"])
        self.models = named.load(self.settings, self.device, wrapped=False)

    def setup(self) -> None:
        """Choose the texts, expand the sweeps, and find what an earlier run has finished."""
        settings, models = self.settings, self.models
        length = named.length_of(settings, models)
        scores.require_room(settings, length)
        documents = list(getattr(schemas.build(settings["corpus"], "texts"), settings["split"]))
        excerpts = pieces.excerpts(documents, models.vocabulary, length, True, 0)
        least_given = 1 if models.ar is not None and models.ar.bos_id is None else 0
        self.texts = figures.choose(settings["split"], excerpts, settings["rows"], models.vocabulary, least_given)
        found = grid.expand(settings["sweeps"], grid.sources(models), length)
        self.samplers = {name: own.setting for name, own in found.items() if isinstance(own.setting, Sampler)}
        if len(self.samplers) < len(found):
            raise ValueError(
                "sweeps: the AR model is no sampler of a denoiser: leave it out, and give its folder as ar for its line"
            )
        for name, each in self.samplers.items():
            if reason := scores.missing(each):
                raise ValueError(f"sweeps: {name!r} has no likelihood to show: {reason}")
        curve.require_rules(settings["labels"], self.samplers.values())
        own = card.card(
            {key: value for key, value in settings.items() if key != "labels"},
            self.device,
            networks={name: record["weights_sha256"] for name, record in models.records.items()},
            text=files.fingerprint({"documents": documents}),
            length_used=length,
        )
        configs = {name: grid.config(found[name]) for name in self.samplers}
        self.lines = processes.from_first(lambda: Lines(self.folder, "likelihoods", own, configs))

    def score(self) -> None:
        """Score the missing settings, and write the line of each as soon as it is scored."""
        settings, diffusion = self.settings, self.models.diffusion
        assert diffusion is not None
        wanted = {"nelbo": [scores.averaged(scores.continuous(diffusion), settings["nelbo_draws"])]}
        if self.models.ar is not None:
            wanted["ar"] = [scores.autoregressive_nll(self.models.ar, self.models.vocabulary.mask_id)]
        wanted |= {name: list(scores.of_sampler(each, settings)) for name, each in self.samplers.items()}
        self.beside = [name for name in wanted if name not in self.samplers]
        how = self.texts, settings["batch_size"], settings["seed"], self.device
        for number, (name, each) in enumerate(wanted.items(), start=1):
            if name not in self.lines.records:
                shown = f"{number}/{len(wanted)} {name}"
                self.lines.add(name, curve.record([figures.collect(shown, score, *how) for score in each]))

    def report(self) -> None:
        """Write the table and the picture, and say what they show."""
        settings, characters, records = self.settings, self.texts.characters, self.lines.records
        lines = [curve.line(name, records[name], characters) for name in self.beside]
        points = curve.points(self.samplers, records, characters)
        found = curve_findings.comparisons(points, records, characters)
        title, said = (
            tell(points, found, settings["labels"]) for tell in (curve_findings.title, curve_findings.sentence)
        )
        note = (
            f"{len(self.texts.excerpts)} texts of {settings['split']}, {self.texts.tokens:,} tokens, {characters:,} "
            f"characters, seed {settings['seed']}."
        )
        remark = (
            f"{note} Denoiser {settings['denoiser']}. Errors are those of other texts, of an excess paired over the "
            "texts; <= is a bound."
        )
        files.write_text(self.folder / "likelihoods.md", curve.markdown(points, lines, [said, remark]))
        if processes.is_first():
            curve_plot.draw(self.folder / "likelihoods.png", points, lines, settings["labels"], title, note)
        print(f"\n{tables.columns(curve.short(points, lines))}\n\n  {remark}")
        print(f"\n{tables.sentence(said)}")
        print(f"\n  all of it: {self.folder / 'likelihoods.md'}, likelihoods.jsonl and likelihoods.png")


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings."""
    recipe = Likelihoods(settings)
    recipe.load_checkpoint()
    recipe.setup()
    recipe.score()
    recipe.report()


if __name__ == "__main__":
    entry.enter(main, SETTINGS)
