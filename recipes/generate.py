"""Generate text from checkpoints: a denoiser alone, corrected by an energy or by an AR model, or an AR model alone.

edlm run generate denoiser=runs/tiny/denoiser energy=runs/tiny/energy num_samples=8
edlm run generate prompt="the statement ____ the name" num_steps=16
edlm run generate energy=null ar=runs/tiny/ar ar_form=carry_over
edlm run generate denoiser=null energy=null ar=runs/tiny/ar
"""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from tqdm import tqdm

from edlm import (
    autoregressive,
    checkpoints,
    contracts,
    denoisers,
    energies,
    execution,
    networks,
    particles,
    pipelines,
    transition,
)
from edlm import samplers as kernels
from edlm.checkpoints import N
from edlm.networks import EnergyNetwork, Transformer
from edlm.pipelines import Pipeline
from edlm.recipes import _entry, _report, _settings, _training
from edlm.recipes._settings import Schema
from edlm.vocabulary import MASK_SYMBOL, Vocabulary

SETTINGS: Schema = {
    "recipe": _settings.choice("generate"),
    "output": _settings.text,
    "seed": _settings.integer(0),
    "device": _settings.choice("auto", "cpu", "cuda"),
    "threads": _settings.optional(_settings.integer(1)),
    "denoiser": _settings.optional(_settings.text),
    "energy": _settings.optional(_settings.text),
    "ar": _settings.optional(_settings.text),
    "ar_form": _settings.choice("posterior", "carry_over"),
    "num_samples": _settings.integer(1),
    "batch_size": _settings.integer(1),
    "length": _settings.optional(_settings.integer(1)),
    "num_steps": _settings.optional(_settings.integer(1)),
    "tokens_per_pass": _settings.integer(1),
    "num_particles": _settings.integer(1),
    "window": _settings.window,
    "selection": _settings.choice("sir", "imh", "greedy"),
    "energy_temperature": _settings.number(0, above=True),
    "temperature": _settings.number(0, above=True),
    "prompt": _settings.optional(_settings.text),
    "execution": _settings.choice("eager", "compile", "cudagraph"),
    "live": _settings.flag,
}
FIGURES = {
    "denoiser_passes": "per text",
    "energy_passes": "per text",
    "ess": "effective particles, mean over corrected passes",
    "log_prob": "nats per text, under the law it was drawn from",
}
_SHOWN_LIVE = 4
_CLEAR_SCREEN = "\x1b[H\x1b[2J"


class Generate:
    """Load, build the pipeline, sample in batches, write each batch as it comes."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.output = Path(settings["output"])
        _training.writable("output", str(self.output.parent))
        self.device = _training.device_of(settings)

    def load_checkpoint(self) -> None:
        """Load the networks that the config names, and what they were trained with."""
        settings = self.settings
        check_sources(settings)
        self.vocabulary: Vocabulary = checkpoints.load_vocabulary_of(settings["denoiser"] or settings["ar"])
        self.denoiser: denoisers.SubsDenoiser | None = None
        self.energy, self.told, self.scope = None, None, "draft"
        if settings["denoiser"] is not None:
            self._load_denoiser(settings["denoiser"])
        if settings["energy"] is not None:
            energy_network = self._load(EnergyNetwork, settings["energy"])
            description = checkpoints.read_description(checkpoints.find_network(settings["energy"]))
            self.scope = description.get("scope", "draft")
            learned = energies.learned_transition if self.scope == "transition" else energies.learned
            self.energy = learned(energy_network, self.told, self.vocabulary.pad_id)
        if settings["ar"] is not None:
            self._load_ar(settings["ar"])

    def setup(self) -> None:
        """Compose the pipeline and read the prompt."""
        settings, prompt = self.settings, self.settings["prompt"]
        free = ("output", "num_samples", "batch_size", "device", "threads", "execution", "live")  # they change no text
        self.fingerprint = _report.fingerprint({key: value for key, value in settings.items() if key not in free})
        self.prompt = None if prompt is None else encode_prompt(prompt, self.vocabulary)
        if self.denoiser is None:
            return
        kernel = kernels.ancestral(self.schedule, self.denoiser, settings["temperature"])
        if self.energy is not None:
            if settings["temperature"] != 1.0:
                raise ValueError(f"temperature = {settings['temperature']} is for sampling without an energy")
            importance = transition.importance if self.scope == "transition" else kernels.importance
            kernel = importance(
                self.schedule,
                self.denoiser,
                self.energy,
                settings["num_particles"],
                settings["energy_temperature"],
                getattr(particles, settings["selection"]),
            )
        pipeline = pipelines.sampling(
            kernel,
            settings["length"] or self.denoiser.max_length,
            settings["num_steps"],
            tuple(settings["window"]),
            tokens_per_pass=settings["tokens_per_pass"],
        )
        self.pipeline: Pipeline = execution.accelerate(pipeline, settings["execution"])

    def generate(self) -> None:
        """Sample batch after batch, each text written when it is there; a file that was cut off is gone on with."""
        settings, total = self.settings, self.settings["num_samples"]
        done = _report.resume_jsonl(self.output, self.fingerprint)
        started = time.monotonic()
        with tqdm(total=total, initial=done, unit="text") as bar:
            for first in range(done, total, settings["batch_size"]):
                count = min(settings["batch_size"], total - first)
                records = self._drawn(count, first)  # no file is made before the first texts are there
                _report.append_jsonl(self.output, records)
                bar.update(count)
        self.rate = (total - done) / (time.monotonic() - started)

    def cleanup(self) -> None:
        """Show the first texts and say where all of them are."""
        records = [json.loads(line) for line in self.output.read_text(encoding="utf-8").splitlines()]
        for record in records[:3]:
            print(f"\n  sample {record['row']}:\n    {record['text']}")
        rows = [("texts", str(len(records)), f"seed {self.settings['seed']}")]
        for key, remark in FIGURES.items():
            measured = [record[key] for record in records if record.get(key) is not None]
            if measured:
                rows.append((key.replace("_", " "), f"{sum(measured) / len(measured):.2f}", remark))
        if self.rate:
            how = f"{self.device}, {self.settings['execution']}, {self.settings['batch_size']} at once"
            rows.append(("texts per second", f"{self.rate:.3g}", how))
        print(f"\n{_report.table(rows)}\n\n  written to {self.output}")

    def _show(self, state: TensorDict, info: TensorDict) -> None:
        """The first texts as they form, drawn over the ones before."""
        texts = self.vocabulary.decode(state[contracts.X_T][:_SHOWN_LIVE].cpu())
        tqdm.write(_CLEAR_SCREEN + "\n\n".join(texts), file=sys.stderr)

    def _load_denoiser(self, path: str) -> None:
        description = checkpoints.read_description(checkpoints.find_network(path))
        if "schedule" not in description:
            raise ValueError(f"denoiser = {path!r} holds a network that was not trained as a denoiser")
        self.schedule = _settings.build(description["schedule"])
        self.told = self.schedule if description["time_conditioning"] else None
        self.denoiser = denoisers.subs(self._load(Transformer, path), self.vocabulary.mask_id, self.told)

    def _load_ar(self, path: str) -> None:
        """The AR model, and its energy if there is a denoiser to correct."""
        if self.denoiser is not None:
            checkpoints.require_same_vocabulary(self.settings["denoiser"], path)
        self.ar = self._load(Transformer, path)
        if not self.ar.arguments["causal"]:
            raise ValueError(f"ar = {path!r} holds a network that is not causal: `edlm run pretrain_ar` trains one")
        self.bos_id: int | None = checkpoints.read_description(checkpoints.find_network(path)).get("bos_id")
        if self.denoiser is not None:
            carry_over = self.settings["ar_form"] == "carry_over"
            ids = self.vocabulary
            self.energy = energies.residual_ar(self.ar, ids.mask_id, self.bos_id, carry_over, ids.pad_id)

    def _load(self, cls: type[N], path: str | Path) -> N:
        """A network on the device, its conditioning folded into the weights where it is always the same."""
        network = checkpoints.load_as(cls, path, self.vocabulary)
        return (network if self.told is not None else networks.fold_conditioning(network)).to(self.device)

    def _drawn(self, count: int, first: int) -> list[dict[str, Any]]:
        """One record per text: what it says, what it is made of, and how it came about."""
        seed = self.settings["seed"]
        tokens, figures = self._from_ar(count, first) if self.denoiser is None else self._from_pipeline(count, first)
        texts = self.vocabulary.decode(tokens.cpu())
        return [
            {
                "row": first + index,
                "seed": seed,
                "settings": self.fingerprint,
                "text": text,
                "tokens": tokens[index].tolist(),
                **{name: values[index] for name, values in figures.items()},
            }
            for index, text in enumerate(texts)
        ]

    def _from_pipeline(self, count: int, first: int) -> tuple[Tensor, dict[str, list[Any]]]:
        show = self._show if self.settings["live"] else None
        out = pipelines.sample(
            self.pipeline, count, seed=self.settings["seed"], prompt=self.prompt, first_row=first, callback=show
        )
        info = out["info"].cpu()
        return out["tokens"], {
            "denoiser_passes": info["denoiser_passes"].tolist(),
            "energy_passes": info["energy_passes"].tolist(),
            "ess": [None if math.isnan(value) else value for value in info["ess"].nanmean(-1).tolist()],
        }

    def _from_ar(self, count: int, first: int) -> tuple[Tensor, dict[str, list[Any]]]:
        settings = self.settings
        out = autoregressive.sample(
            self.ar,
            count,
            settings["length"] or self.ar.max_length,
            self.vocabulary.mask_id,
            self.bos_id,
            seed=settings["seed"],
            prompt=self.prompt,
            first_row=first,
            temperature=settings["temperature"],
        )
        return out.tokens, {"log_prob": out.log_prob.sum(-1).tolist()}


def check_sources(settings: Mapping[str, Any]) -> None:
    """Raise ValueError unless the config names a denoiser with at most one correction, or an AR model alone."""
    if settings["denoiser"] is None and settings["ar"] is None:
        raise ValueError("denoiser and ar are both null: name one of them, or both")
    if settings["energy"] is not None and settings["ar"] is not None:
        raise ValueError(
            f"energy = {settings['energy']!r} and ar = {settings['ar']!r} exclude each other: set one to null"
        )
    for key, plain in (("energy", None), ("execution", "eager"), ("live", False)):
        if settings["denoiser"] is None and settings[key] != plain:
            raise ValueError(f"{key} = {settings[key]!r} needs a denoiser; an AR model alone takes {plain!r}")


def encode_prompt(text: str, vocabulary: Vocabulary) -> Tensor:
    """Tokens (l,) of a text in which every `_` is one mask. Raises ValueError for a character it cannot hold."""
    mask = torch.tensor([vocabulary.mask_id])
    pieces: list[Tensor] = []
    for index, piece in enumerate(text.split(MASK_SYMBOL)):
        pieces += [mask] * (index > 0) + [vocabulary.encode(piece)] * bool(piece)
    return torch.cat(pieces)


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings."""
    recipe = Generate(settings)
    recipe.load_checkpoint()
    recipe.setup()
    recipe.generate()
    recipe.cleanup()


if __name__ == "__main__":
    _entry.enter(main, SETTINGS)
