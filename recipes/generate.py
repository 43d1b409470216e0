"""Generate text from checkpoints: a denoiser alone, corrected by an energy or by an AR model, or an AR model alone.

edlm run generate denoiser=runs/tiny/denoiser energy=runs/tiny/energy num_samples=8
edlm run generate energy=chain_rule
edlm run generate prompt="the statement ____ the name" num_steps=16
edlm run generate energy=null ar=runs/tiny/ar ar_form=carry_over
edlm run generate denoiser=null energy=null ar=runs/tiny/ar
edlm run generate --config dream_qwen_energy plan=true
edlm run generate sampler.plan._component_=my_plan.Blocks
"""

import itertools
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edlm.evaluation import generation
from edlm.runs import entry, environment, files, processes, tables
from edlm.runs import records as _records
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.weights import resolve

SETTINGS: Schema = {
    "recipe": schemas.choice("generate"),
    "output": schemas.text,
    "overwrite": schemas.omissible(schemas.flag),
    "seed": schemas.seed,
    "device": schemas.choice("auto", "cpu", "cuda"),
    "threads": schemas.optional(schemas.threads),
    **generation.SETTINGS,
    "plan": schemas.flag,
    "num_samples": schemas.integer(1),
    "batch_size": schemas.integer(1),
    "length": schemas.optional(schemas.integer(1)),
    "stride": schemas.optional(schemas.integer(1)),
    "prompt": schemas.optional(schemas.text),
    "execution": schemas.choice("eager", "compile", "cudagraph"),
    "live": schemas.flag,
}


class Generate:
    """Load, build what draws, draw in batches, write each batch as it comes."""

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
        self.sources = generation.load(self.settings, self.device)

    def setup(self) -> None:
        """Build the sampler and read the prompt; say which settings do nothing."""
        self.fingerprint = generation.fingerprint(self.settings)
        draw, unused = generation.source(self.settings, self.sources)
        self.drawn = partial(generation.records, draw, self.sources.vocabulary, self.settings["seed"], self.fingerprint)
        if unused and processes.is_first():
            print("\n".join(unused), flush=True)

    def generate(self) -> None:
        """Sample batch after batch, each text written when it is there; a file that was cut off is gone on with.

        Of several processes each draws a batch, and the first one writes them.
        """
        size, total, world = self.settings["batch_size"], self.settings["num_samples"], processes.world()
        done = processes.from_first(self.texts_done)
        if done:
            print(f"{self.output} holds {done} texts of these settings already; overwrite=true draws them anew")
        firsts = range(done, total, size)  # of every batch; a list of them would be as long as the work
        started = time.monotonic()
        with processes.bar(total=total, initial=done, unit="text") as bar:
            for number in range(0, len(firsts), world):
                at_once = firsts[number : number + world]
                drawn = processes.spread(lambda first: self.drawn(min(size, total - first), first), at_once)
                records = list(itertools.chain.from_iterable(drawn))  # no file is made before the first texts are there
                files.append_jsonl(self.output, map(_records.sealed, records))
                bar.update(len(records))
        self.rate = max(0, total - done) / (time.monotonic() - started)

    def texts_done(self) -> int:
        """Count the texts that the output holds, once those that are to be replaced are gone."""
        if self.settings.get("overwrite", False):
            self.output.unlink(missing_ok=True)
        return _records.texts_done(self.output, self.fingerprint, self.settings["seed"])

    def cleanup(self) -> None:
        """Show the first texts and say where all of them are."""
        lines = processes.from_first(lambda: self.output.read_text(encoding="utf-8").splitlines())
        records = [json.loads(line) for line in lines]
        for record in records[:3]:
            print(f"\n  sample {record['row']}:\n    {record['text']}")
        rows = [("texts", str(len(records)), f"seed {self.settings['seed']}"), *generation.summary(records)]
        if self.rate:
            how = f"{self.device}, {self.settings['execution']}, {self.settings['batch_size']} at once"
            rows.append(("texts per second", f"{self.rate:.3g}", how))
        print(f"\n{tables.table(rows)}\n\n  written to {self.output}")


def main(settings: dict[str, Any]) -> None:
    """Run the recipe from its settings, or show what it would take."""
    if settings["plan"]:
        print(resolve.require_plan(settings))
        return
    with generation.named_output(settings) as named:
        recipe = Generate(named)
        recipe.load_checkpoint()
        recipe.setup()
        recipe.generate()
        recipe.cleanup()


if __name__ == "__main__":
    entry.enter(main, SETTINGS)
