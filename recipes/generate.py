"""Generate text from checkpoints: the denoiser alone, or corrected by an energy.

edlm run generate denoiser=runs/tiny/denoiser energy=runs/tiny/energy num_samples=8
edlm run generate prompt="the statement ____ the name" num_steps=16
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from tqdm import tqdm

from edlm import checkpoints, contracts, denoisers, energies, execution, networks, particles, pipelines, samplers
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
    "denoiser": _settings.text,
    "energy": _settings.optional(_settings.text),
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
        """Load the denoiser, its vocabulary and schedule, and the energy if there is one."""
        folder = checkpoints.find_network(self.settings["denoiser"])
        description = checkpoints.read_description(folder)
        self.vocabulary: Vocabulary = checkpoints.load_vocabulary_of(folder)
        self.schedule = _settings.build(description["schedule"])
        self.told = self.schedule if description["time_conditioning"] else None
        network = self._load(Transformer, folder)
        self.denoiser = denoisers.subs(network, self.vocabulary.mask_id, self.told)
        self.energy = None
        if self.settings["energy"] is not None:
            energy_network = self._load(EnergyNetwork, self.settings["energy"])
            self.energy = energies.learned(energy_network, self.told, self.vocabulary.pad_id)

    def setup(self) -> None:
        """Compose the pipeline and read the prompt."""
        settings = self.settings
        kernel = samplers.ancestral(self.schedule, self.denoiser, settings["temperature"])
        if self.energy is not None:
            if settings["temperature"] != 1.0:
                raise ValueError(f"temperature = {settings['temperature']} is for sampling without an energy")
            kernel = samplers.importance(
                self.schedule,
                self.denoiser,
                self.energy,
                settings["num_particles"],
                settings["energy_temperature"],
                getattr(particles, settings["selection"]),
            )
        length = settings["length"] or self.denoiser.max_length
        pipeline = pipelines.sampling(
            kernel,
            length,
            settings["num_steps"],
            tuple(settings["window"]),
            tokens_per_pass=settings["tokens_per_pass"],
        )
        self.pipeline: Pipeline = execution.accelerate(pipeline, settings["execution"])
        free = ("output", "num_samples", "batch_size", "device", "threads", "execution", "live")  # they change no text
        self.fingerprint = _report.fingerprint({key: value for key, value in settings.items() if key not in free})
        self.prompt = None if settings["prompt"] is None else encode_prompt(settings["prompt"], self.vocabulary)
        pipelines.starting_tokens(
            self.pipeline, 1, self.prompt
        )  # refuses a prompt that does not fit before a file is made

    def generate(self) -> None:
        """Sample batch after batch, each text written when it is there; a file that was cut off is gone on with."""
        settings, total = self.settings, self.settings["num_samples"]
        done = self._resume()
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            with self.output.open("a", encoding="utf-8") as file, tqdm(total=total, initial=done, unit="text") as bar:
                for first in range(done, total, settings["batch_size"]):
                    count = min(settings["batch_size"], total - first)
                    out = pipelines.sample(
                        self.pipeline,
                        count,
                        seed=settings["seed"],
                        prompt=self.prompt,
                        first_row=first,
                        callback=self._show if settings["live"] else None,
                    )
                    file.writelines(json.dumps(record) + "\n" for record in self._records(out, first))
                    file.flush()
                    bar.update(count)
        except OSError as error:
            raise ValueError(f"output = {str(self.output)!r} cannot be written: {error.strerror}") from error

    def cleanup(self) -> None:
        """Show the first texts and say where all of them are."""
        records = [json.loads(line) for line in self.output.read_text(encoding="utf-8").splitlines()]
        for record in records[:3]:
            print(f"\n  sample {record['row']}:\n    {record['text']}")
        passes = sum(r["denoiser_passes"] for r in records) / len(records)
        energy_passes = sum(r["energy_passes"] for r in records) / len(records)
        rows = [
            ("texts", str(len(records)), f"seed {self.settings['seed']}"),
            ("denoiser passes", f"{passes:.1f}", "per text"),
            ("energy passes", f"{energy_passes:.1f}", "per text"),
        ]
        measured = [r["ess"] for r in records if r["ess"] is not None]
        if measured:
            mean_ess = sum(measured) / len(measured)
            rows.append(("mean ESS", f"{mean_ess:.2f}", f"of {self.settings['num_particles']} particles"))
        print(f"\n{_report.table(rows)}\n\n  written to {self.output}")

    def _resume(self) -> int:
        """How many texts the output holds already, a last line that was cut off removed.

        Raises ValueError if it holds anything else than texts of the same settings.
        """
        if not self.output.is_file():
            return 0
        lines = self.output.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        try:
            same = all(json.loads(line)["settings"] == self.fingerprint for line in whole)
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise ValueError(f"output = {str(self.output)!r} holds other texts: remove it or choose another name")
        if len(whole) < len(lines):
            os.truncate(self.output, len("".join(whole).encode()))
        return len(whole)

    def _show(self, state: TensorDict, info: TensorDict) -> None:
        """The first texts as they form, drawn over the ones before."""
        texts = self.vocabulary.decode(state[contracts.X_T][:_SHOWN_LIVE].cpu())
        tqdm.write(_CLEAR_SCREEN + "\n\n".join(texts), file=sys.stderr)

    def _load(self, cls: type[N], path: str | Path) -> N:
        """A network on the device, its conditioning folded into the weights where it is always the same."""
        network = checkpoints.load_as(cls, path, self.vocabulary)
        return (network if self.told is not None else networks.fold_conditioning(network)).to(self.device)

    def _records(self, out: TensorDict, first: int) -> list[dict[str, Any]]:
        """One record per text: what it says, what it is made of, and how it came about."""
        texts, info = self.vocabulary.decode(out["tokens"].cpu()), out["info"].cpu()
        ess = info["ess"].nanmean(-1).tolist()
        return [
            {
                "row": first + index,
                "seed": self.settings["seed"],
                "settings": self.fingerprint,
                "text": text,
                "tokens": out["tokens"][index].tolist(),
                "denoiser_passes": int(info["denoiser_passes"][index]),
                "energy_passes": int(info["energy_passes"][index]),
                "ess": None if ess[index] != ess[index] else ess[index],
            }
            for index, text in enumerate(texts)
        ]


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
