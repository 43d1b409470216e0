"""Generate text from checkpoints: a denoiser alone, corrected by an energy or by an AR model, or an AR model alone.

edlm run generate denoiser=runs/tiny/denoiser energy=runs/tiny/energy num_samples=8
edlm run generate energy=chain_rule
edlm run generate prompt="the statement ____ the name" num_steps=16
edlm run generate energy=null ar=runs/tiny/ar ar_form=carry_over
edlm run generate denoiser=null energy=null ar=runs/tiny/ar
edlm run generate --config dream_qwen_energy plan=true
"""

import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from tqdm import tqdm

from edlm import contracts
from edlm.data.vocabulary import MASK_SYMBOL, Vocabulary
from edlm.models.denoisers import SubsDenoiser
from edlm.nn.networks import Transformer
from edlm.process import particles
from edlm.runs import entry, environment, files, processes, tables
from edlm.runs import records as _records
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.samplers import autoregressive, baselines, execution, pipelines, plans, selections
from edlm.samplers.baselines import Reverse
from edlm.samplers.pipelines import Pipeline
from edlm.samplers.sampler import Proposal, Sampler, UntilEss
from edlm.weights import resolve

SETTINGS: Schema = {
    "recipe": schemas.choice("generate"),
    "output": schemas.text,
    "seed": schemas.seed,
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    **resolve.SETTINGS,
    "plan": schemas.flag,
    "num_samples": schemas.integer(1),
    "batch_size": schemas.integer(1),
    "length": schemas.optional(schemas.integer(1)),
    "stride": schemas.optional(schemas.integer(1)),
    "num_steps": schemas.optional(schemas.integer(1)),
    "tokens_per_pass": schemas.integer(1),
    "num_particles": schemas.integer(1),
    "window": schemas.window,
    "target_ess": schemas.optional(schemas.number(0, above=True)),
    "selection": schemas.choice(*selections.SELECTIONS),
    "energy_temperature": schemas.temperature(particles.COLDEST),
    "temperature": schemas.temperature(),
    "nucleus": schemas.number(0, 1, above=True),
    "prompt": schemas.optional(schemas.text),
    "execution": schemas.choice("eager", "compile", "cudagraph"),
    "live": schemas.flag,
}
CHANGES_NO_TEXT = {
    "output",
    "num_samples",
    "batch_size",
    "device",
    "threads",
    "execution",
    "live",
    "energy_rows",
    "plan",
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
        environment.writable("output", str(self.output.parent))
        self.device = environment.device_of(settings)

    def load_checkpoint(self) -> None:
        """Load the networks that the config names, and what they were trained with."""
        plan = resolve.memory_plan(self.settings)
        if plan is not None:
            print(f"\n{plan}\n", flush=True)
        found = resolve.load(self.settings, self.device)
        self.vocabulary, self.schedule, self.opening = found.vocabulary, found.schedule, found.opening
        self.denoiser, self.correction = found.denoiser, found.correction
        self.ar, self.bos_id, self.baseline = found.ar, found.bos_id, found.baseline

    def setup(self) -> None:
        """Compose the pipeline and read the prompt."""
        settings, prompt = self.settings, self.settings["prompt"]
        self.fingerprint = files.fingerprint(
            {
                **{key: value for key, value in settings.items() if key not in CHANGES_NO_TEXT},
                "weights": resolve.weights_of(settings),
            }
        )
        self.prompt = None if prompt is None else encode_prompt(prompt, self.vocabulary)
        if self.opening:
            given = () if self.prompt is None else self.prompt
            self.prompt = torch.tensor([*self.opening, *given])
        if self.denoiser is None:
            return
        window = self.denoiser.max_length
        self.length = settings["length"] or window
        if self.length > window and settings["stride"] is None:
            raise ValueError(
                f"length = {self.length} is more than the denoiser's {window}: give a stride below {window}, by which "
                "its window moves on"
            )
        pipeline = pipelines.pipeline(self._sampler(self.denoiser), min(self.length, window))
        self.pipeline: Pipeline = execution.accelerate(pipeline, settings["execution"])

    def generate(self) -> None:
        """Sample batch after batch, each text written when it is there; a file that was cut off is gone on with.

        Of several processes each draws a batch, and the first one writes them.
        """
        size, total, world = self.settings["batch_size"], self.settings["num_samples"], processes.world()
        done = processes.from_first(lambda: _records.texts_done(self.output, self.fingerprint, self.settings["seed"]))
        batches = [(min(size, total - first), first) for first in range(done, total, size)]
        started = time.monotonic()
        with processes.bar(total=total, initial=done, unit="text") as bar:
            for first in range(0, len(batches), world):
                drawn = processes.spread(lambda batch: self._drawn(*batch), batches[first : first + world])
                records = list(itertools.chain.from_iterable(drawn))  # no file is made before the first texts are there
                files.append_jsonl(self.output, map(_records.sealed, records))
                bar.update(len(records))
        self.rate = max(0, total - done) / (time.monotonic() - started)

    def cleanup(self) -> None:
        """Show the first texts and say where all of them are."""
        lines = processes.from_first(lambda: self.output.read_text(encoding="utf-8").splitlines())
        records = [json.loads(line) for line in lines]
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
        print(f"\n{tables.table(rows)}\n\n  written to {self.output}")

    def _sampler(self, denoiser: SubsDenoiser) -> Sampler:
        """The denoiser alone, or corrected with a fixed number of candidates or with as many as it takes."""
        settings = self.settings
        steps = settings["num_steps"]
        plan = plans.TokensPerPass(settings["tokens_per_pass"]) if steps is None else plans.Grid(steps)
        plain = Sampler(denoiser, plan, Proposal(settings["temperature"], settings["nucleus"]))
        if self.correction is None:
            return plain
        most, target_ess = settings["num_particles"], settings["target_ess"]
        candidates = most if target_ess is None else UntilEss(target_ess, most, min(2, most))
        in_order = selections.of(settings["selection"]).in_order
        return plain.replace(
            correction=self.correction,
            candidates=1 if in_order else candidates,
            selection=settings["selection"],
            window=tuple(settings["window"]),
        )

    def _live(self) -> Callable[[TensorDict, TensorDict], None] | None:
        """What shows texts as they form, where that is wanted; of several processes in the first."""
        return self._show if self.settings["live"] and processes.is_first() else None

    def _show(self, state: TensorDict, info: TensorDict) -> None:
        """The first texts as they form, drawn over the ones before."""
        texts = self.vocabulary.decode(state[contracts.X_T][:_SHOWN_LIVE].cpu())
        tqdm.write(_CLEAR_SCREEN + "\n\n".join(texts), file=sys.stderr)

    def _drawn(self, count: int, first: int) -> list[dict[str, Any]]:
        """One record per text: what it says, what it is made of, and how it came about."""
        seed = self.settings["seed"]
        if self.baseline is not None:
            tokens, figures = self._from_baseline(self.baseline, count, first)
        elif self.ar is not None:
            tokens, figures = self._from_ar(self.ar, count, first)
        else:
            tokens, figures = self._from_pipeline(count, first)
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
        sample = partial(pipelines.sample, self.pipeline)
        if self.length > self.pipeline.length:
            sample = partial(pipelines.extend, self.pipeline, self.length, self.settings["stride"])
        out = sample(count, seed=self.settings["seed"], prompt=self.prompt, first_row=first, callback=self._live())
        info = out["info"].cpu()
        return out["tokens"], {
            "denoiser_passes": info["denoiser_passes"].tolist(),
            "energy_passes": info["energy_passes"].tolist(),
            "ess": [None if math.isnan(value) else value for value in info["ess"].nanmean(-1).tolist()],
        }

    def _from_baseline(self, kernel: Reverse, count: int, first: int) -> tuple[Tensor, dict[str, list[Any]]]:
        settings = self.settings
        length = settings["length"] or kernel.denoiser.max_length
        how = {"seed": settings["seed"], "prompt": self.prompt, "first_row": first, "callback": self._live()}
        out = baselines.sample(kernel, length, settings["num_steps"], count, **how)
        return out["tokens"], {"denoiser_passes": out["info"]["denoiser_passes"].tolist()}

    def _from_ar(self, ar: Transformer, count: int, first: int) -> tuple[Tensor, dict[str, list[Any]]]:
        settings = self.settings
        out = autoregressive.sample(
            ar,
            count,
            settings["length"] or ar.max_length,
            self.vocabulary.mask_id,
            self.bos_id,
            seed=settings["seed"],
            prompt=self.prompt,
            first_row=first,
            temperature=settings["temperature"],
        )
        return out.tokens, {"log_prob": out.log_prob.sum(-1).tolist()}


def encode_prompt(text: str, vocabulary: Vocabulary) -> Tensor:
    """Tokens (l,) of a text in which every `_` is one mask. Raises ValueError for a character it cannot hold."""
    first, *others = text.split(MASK_SYMBOL)
    pieces = [vocabulary.encode(first)]
    for piece in others:
        pieces += [torch.tensor([vocabulary.mask_id]), vocabulary.encode(piece, continued=True)]
    return torch.cat(pieces)


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings, or show what it would take."""
    if settings["plan"]:
        print(resolve.require_plan(settings))
        return
    recipe = Generate(settings)
    recipe.load_checkpoint()
    recipe.setup()
    recipe.generate()
    recipe.cleanup()


if __name__ == "__main__":
    entry.enter(main, SETTINGS)
