"""Say how good models are: likelihood bounds on held-out and on foreign text, and the quality of samples, with errors.

Beside the energies that a config names, a denoiser is bounded with the one that it has in itself, `chain_rule`.

edlm run evaluate denoiser=runs/tiny/denoiser energy=runs/tiny/energy rows=64
edlm run evaluate zero_shot=[ptb,wikitext2,books.txt] split=null energy=null
edlm run evaluate samples=runs/tiny/samples.jsonl judge=runs/tiny/ar
"""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import edlm
from edlm.data import corpora
from edlm.data.corpora import Excerpt
from edlm.evaluation import figures, samples, scores
from edlm.evaluation import texts as text_sets
from edlm.evaluation.figures import Figure, TextSet
from edlm.process import particles
from edlm.runs import entry, environment, files, processes
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.weights import named, tensors

SETTINGS: Schema = {
    "recipe": schemas.choice("evaluate"),
    "output_dir": schemas.text,
    "seed": schemas.seed,
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    "denoiser": schemas.optional(schemas.text),
    "energy": schemas.optional(schemas.text),
    "transition": schemas.optional(schemas.text),
    "joint": schemas.optional(schemas.text),
    "ar": schemas.optional(schemas.text),
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
    "num_passes": schemas.optional(schemas.integer(1)),
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
CARD, TABLE = "metric_card.json", "perplexities.md"
_PRECISION = "networks float32, sums float64"


class Evaluate:
    """Load, cut the texts, score them, judge the samples, write the card."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.folder = environment.writable("output_dir", settings["output_dir"])
        self.device = environment.device_of(settings)

    def load_checkpoint(self) -> None:
        """Load the networks that the config names."""
        self.models = named.load(self.settings, self.device)
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
        settings, vocabulary = self.settings, self.models.vocabulary
        length = settings["length"] or self.models.max_length
        if length > self.models.max_length:
            raise ValueError(f"length = {length} must lie in 1..{self.models.max_length}, what the networks take")
        self.documents = self._documents()
        least_given = 1 if self.models.ar is not None and self.models.ar.bos_id is None else 0
        self.texts: list[TextSet] = []
        for name, documents in self.documents.items():
            try:
                found = self._excerpts(documents, length)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            self.texts.append(figures.choose(name, found, settings["rows"], vocabulary, least_given))
        self.samples = None if settings["samples"] is None else samples.read_samples(settings["samples"], vocabulary)
        if not self.texts and self.samples is None:
            raise ValueError("split is null, zero_shot is empty and samples is null: there is nothing to evaluate")

    def evaluate(self) -> None:
        """Judge the samples, whose texts may be refused, then score every set of texts; show each table when ready."""
        settings = self.settings
        self.quality: list[samples.Row] = []
        if self.samples is not None:
            self.quality = samples.rows(
                self.samples,
                self._real_text(),
                settings["ngrams"],
                self.judge,
                settings["seed"],
                settings["replicates"],
                self.likeness,
            )
            print(f"\n{settings['samples']}, {len(self.samples.tokens)} texts:\n{samples.table(self.quality)}")
        self.figures: list[Figure] = []
        for texts in self.texts:
            own: list[Figure] = []
            for model, score in scores.scorers(self.models, settings):
                own += figures.measure(model, score, texts, settings["batch_size"], settings["seed"], self.device)
            print(f"\n{self._heading(texts)}\n{figures.table(own, self.models.vocabulary.unit)}", flush=True)
            self.figures += own
        if len(self.texts) > 1:
            print(f"\nall sets of texts:\n{figures.comparison(self.figures)}", flush=True)

    def save_card(self) -> None:
        """Write the figures with everything that is needed to repeat them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_json(self.folder / CARD, self.card())
        if len(self.texts) > 1:
            files.write_text(self.folder / TABLE, figures.markdown(self.figures, self._sampler()))
        print(f"\n  everything needed to repeat this: {self.folder / CARD}")

    def card(self) -> dict[str, Any]:
        """Settings, versions, device, networks by the hash of their weights, texts by the hash of their content."""
        settings = self.settings
        return {
            "settings": dict(settings),
            "versions": {"edlm": edlm.__version__, "torch": torch.__version__, "python": platform.python_version()},
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else f"cpu, {platform.machine()}",
            "threads": torch.get_num_threads(),
            "processes": processes.world(),
            "precision": _PRECISION,
            "vocabulary": self.models.vocabulary.fingerprint,
            "networks": self.models.records,
            "texts": [
                {
                    "name": texts.name,
                    "fingerprint": files.fingerprint({"documents": self.documents[texts.name]}),
                    "documents": len(self.documents[texts.name]),
                    "excerpts": len(texts.excerpts),
                    "of": texts.num_all,
                    "tokens": texts.tokens,
                    "characters": texts.characters,
                }
                for texts in self.texts
            ],
            "figures": [figure.record() for figure in self.figures],
            "samples": None if settings["samples"] is None else tensors.sha256(Path(settings["samples"])),
            "judge": self.judged_by,
            "mauve": self.alike_by,
            "quality": samples.record(self.quality),
        }

    def _documents(self) -> dict[str, list[str]]:
        """Documents of every set of texts, by name."""
        settings, found = self.settings, {}
        if settings["split"] is not None:
            found[settings["split"]] = list(getattr(schemas.build(settings["corpus"], "texts"), settings["split"]))
        for asked in settings["zero_shot"]:
            name, documents = text_sets.zero_shot(asked, settings["zero_shot_files"], settings["normalised"])
            if name in found:
                raise ValueError(f"zero_shot names {name!r} twice")
            found[name] = documents
        return found

    def _excerpts(self, documents: list[str], length: int) -> list[Excerpt]:
        """Documents cut as the config says, between bos and eos if it says so."""
        settings, vocabulary = self.settings, self.models.vocabulary
        room = length - 2 if settings["wrapped"] else length
        found = corpora.excerpts(documents, vocabulary, room, settings["documents"] == "joined", settings["context"])
        return [corpora.wrap(excerpt, vocabulary) for excerpt in found] if settings["wrapped"] else found

    def _real_text(self) -> tuple[samples.Texts, samples.Texts] | None:
        """Two sets of excerpts of the first set of texts, as long as a sample."""
        if self.samples is None or not self.documents:
            return None
        length = max(len(row) for row in self.samples.tokens)
        documents = next(iter(self.documents.values()))
        return samples.held_out(documents, self.models.vocabulary, length, len(self.samples.tokens))

    def _heading(self, texts: TextSet) -> str:
        shown = f"{len(texts.excerpts)} of {texts.num_all} excerpts, {texts.tokens:,} tokens"
        scored = f"{texts.name}: {shown}, {texts.characters:,} characters, seed {self.settings['seed']}, {_PRECISION}"
        return "\n".join([scored, *self._sampler()])

    def _sampler(self) -> list[str]:
        """Of which sampler the bounds are, where one of the models has steps."""
        settings, (low, high) = self.settings, self.settings["window"]
        steps = "one position at a time" if settings["num_steps"] is None else f"T={settings['num_steps']}"
        how = f"{steps}, k={settings['num_particles']}, m={settings['num_completions']}, t in [{low:g}, {high:g}]"
        drafts = f"log Z of {settings['log_z_particles']} drafts"
        return [f"  bounds of the sampler with {how}; {drafts}"] if set(self.models.records) - {"ar"} else []


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings."""
    recipe = Evaluate(settings)
    recipe.load_checkpoint()
    recipe.setup()
    recipe.evaluate()
    recipe.save_card()


if __name__ == "__main__":
    entry.enter(main, SETTINGS)
