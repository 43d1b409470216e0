"""Say how good models are: likelihood bounds on held-out and on foreign text, and the quality of samples, with errors.

Beside the energies that a config names, a denoiser is bounded with the one that it has in itself, `chain_rule`.

edlm run evaluate denoiser=runs/tiny/denoiser energy=runs/tiny/energy rows=64
edlm run evaluate zero_shot=[ptb,wikitext2,books.txt] split=null energy=null
edlm run evaluate sampler.correction._component_=my_correction.Sharpen
edlm run evaluate samples=runs/tiny/samples.jsonl judge=runs/tiny/ar
"""

from collections.abc import Mapping
from typing import Any

from edlm.evaluation import card as cards
from edlm.evaluation import figures, samples, scores, verdicts
from edlm.evaluation.figures import Figure
from edlm.process import particles
from edlm.runs import entry, environment, files, tables
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.samplers import configs
from edlm.weights import named, sources

SETTINGS: Schema = {
    "recipe": schemas.choice("evaluate"),
    "output_dir": schemas.text,
    "seed": schemas.seed,
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    "denoiser": schemas.optional(schemas.text),
    "energy": schemas.optional(schemas.either(schemas.text, configs.COMPONENT)),
    "transition": schemas.optional(schemas.text),
    "joint": schemas.optional(schemas.text),
    "ar": sources.AR,
    "corpus": schemas.component(),
    "split": schemas.optional(schemas.choice("train", "valid", "test")),
    "zero_shot": schemas.items(schemas.either(schemas.text, schemas.component())),
    "zero_shot_files": schemas.optional(schemas.text),
    "normalised": schemas.flag,
    "documents": schemas.choice("joined", "separate"),
    "wrapped": schemas.flag,
    "length": schemas.optional(schemas.integer(1)),
    "context": schemas.integer(0),
    "rows": schemas.optional(schemas.integer(2)),
    "batch_size": schemas.integer(1),
    "num_steps": schemas.optional(schemas.integer(1)),
    "sampler": schemas.omissible(configs.section),
    "num_passes": schemas.optional(schemas.integer(1)),
    "num_orders": schemas.omissible(schemas.integer(1)),
    "num_particles": schemas.integer(1),
    "num_completions": schemas.integer(1),
    "window": schemas.window,
    "energy_temperature": schemas.temperature(particles.COLDEST),
    "log_z_particles": schemas.integer(2),
    "samples": schemas.optional(schemas.text),
    "judge": schemas.optional(schemas.text),
    "mauve": schemas.optional(schemas.text),
    "ngrams": schemas.items(schemas.integer(1), least=1),
    "replicates": schemas.integer(2),
}
CARD, TABLE, FIGURES = "metric_card.json", "perplexities.md", "figures.md"


class Evaluate:
    """Load, cut the texts, score them, judge the samples, write the card."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.folder = environment.writable("output_dir", settings["output_dir"])
        self.device = environment.device_of(settings)

    def load_checkpoint(self) -> None:
        """Load the networks that the config names, and what judges samples."""
        self.models = cards.load(self.settings, self.device)
        self.judge, self.judged_by, self.likeness, self.alike_by = None, None, None, None
        if self.settings["judge"] is not None:
            if self.settings["samples"] is None:
                raise ValueError(f"judge = {self.settings['judge']!r} has nothing to judge: name samples")
            self.judge, self.judged_by = samples.load_judge(self.settings["judge"], self.device)
        if self.settings["mauve"] is not None:
            if self.settings["samples"] is None:
                raise ValueError(f"mauve = {self.settings['mauve']!r} has nothing to compare: name samples")
            self.likeness, self.alike_by = samples.load_likeness(self.settings["mauve"], self.device)

    def setup(self) -> None:
        """Read the texts and the samples, and cut the texts into excerpts."""
        settings = self.settings
        scores.require_room(settings, named.length_of(settings, self.models))
        self.documents = cards.documents(settings)
        self.texts = [cards.text_set(*each, settings, self.models) for each in self.documents.items()]
        self.singles = cards.single_tokens(settings, self.models.vocabulary)
        drawn = settings["samples"]
        self.samples = None if drawn is None else samples.read_samples(drawn, self.models.vocabulary)
        if not self.texts and self.samples is None:
            raise ValueError("split is null, zero_shot is empty and samples is null: there is nothing to evaluate")

    def evaluate(self) -> None:
        """Judge the samples, whose texts may be refused, then score every set of texts; show each table when ready."""
        settings, vocabulary = self.settings, self.models.vocabulary
        self.quality: list[samples.Row] = []
        if self.samples is not None:
            real = cards.real_text(self.samples, self.documents, vocabulary)
            how = (settings["seed"], settings["replicates"])
            self.quality = samples.rows(self.samples, real, settings["ngrams"], self.judge, *how, self.likeness)
            print(f"\n{settings['samples']}, {len(self.samples.tokens)} texts:\n{samples.table(self.quality)}")
        self.figures: list[Figure] = []
        self.tables: list[str] = []
        self.said = [verdicts.of_samples(str(settings["samples"]), self.quality)]
        for texts in self.texts:
            own: list[Figure] = []
            for model, score in scores.scorers(self.models, settings):
                own += figures.measure(model, score, texts, settings["batch_size"], settings["seed"], self.device)
            heading = cards.heading(texts, settings, self.models, self.singles)
            print(f"\n{heading}\n{figures.table(own)}", flush=True)
            self.tables.append(figures.every_column(own, vocabulary.unit, heading))
            self.figures += own
            self.said.append(verdicts.of_figures(own, vocabulary.unit))
        if len(self.texts) > 1:
            print(f"\nall sets of texts:\n{figures.comparison(self.figures)}", flush=True)

    def save_card(self) -> None:
        """Write the figures with everything that is needed to repeat them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        card = cards.card(self.settings, self.device, self.models, self.texts, self.documents, self.figures)
        judged = {"judge": self.judged_by, "mauve": self.alike_by, "quality": samples.record(self.quality)}
        said = [each for each in self.said if each]
        files.write_json(self.folder / CARD, {**card, **judged, "findings": said})
        if self.tables:
            files.write_text(self.folder / FIGURES, "\n".join(self.tables))
        if len(self.texts) > 1:
            table = figures.markdown(self.figures, cards.sampler(self.settings, self.models))
            files.write_text(self.folder / TABLE, table)
        print("".join(f"\n{tables.sentence(each)}" for each in said))
        whole = f"  all columns: {self.folder / FIGURES}\n" if self.tables else ""
        print(f"\n{whole}  everything needed to repeat this: {self.folder / CARD}")


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings."""
    recipe = Evaluate(settings)
    recipe.load_checkpoint()
    recipe.setup()
    recipe.evaluate()
    recipe.save_card()


if __name__ == "__main__":
    entry.enter(main, SETTINGS)
