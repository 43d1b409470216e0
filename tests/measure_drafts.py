"""Measure drafts that an AR model verifies beside its own cached sampling: CPU seconds of a text, one thread.

Run it by `python tests/measure_drafts.py AR DENOISER:AHEAD:CONTEXT:LOOP ... [--texts 6] [--batch 1] [--length 256]`:
AR and DENOISER are run folders, or folders of large models. LOOP is anew or kept. The seeds are 0, 1, ...; all settings
of a seed are measured one after the other, so what else the machine does meets them alike.
"""

import argparse
import time
from collections.abc import Callable
from statistics import mean, stdev
from typing import Any

import torch

import edlm
from edlm.samplers import autoregressive, corrections, pipelines
from edlm.samplers.pipelines import Pipeline
from edlm.weights import loading
from edlm.weights.loading import Found

CPU = torch.device("cpu")
PARTS = ("_draft", "_reading", "_round")
COUNTS = ("rounds", "calls", "denoiser_tokens", "energy_tokens")
HEAD = (
    "| drafter, ahead, context, loop | texts | tokens a round | rounds | calls | denoiser tokens | AR tokens "
    "| CPU seconds | of AR | ms of a round: drafting | of it the network | AR model | the rest |"
)


def setting(words: str, drafter: Found, ar: Found, length: int) -> Pipeline:
    """Build the pipeline of a setting DENOISER:AHEAD:CONTEXT:LOOP."""
    _, ahead, context, loop = words.rsplit(":", 3)
    denoiser = drafter.denoiser
    denoiser.max_length = length  # drafts are read in windows of `context` tokens, so a network of short texts serves
    bos = ar.description.get("bos_id")
    correction = corrections.Autoregressive(
        ar.network, bos, ahead=int(ahead), context=int(context), anew={"anew": True, "kept": False}[loop]
    )
    sampler = edlm.samplers.Sampler(denoiser, edlm.plans.Grid(1), correction=correction, selection="speculative")
    return pipelines.pipeline(sampler, length)


def seconds(work: Callable[..., Any], *given: Any, **named: Any) -> tuple[float, Any]:
    """Measure CPU seconds, and give what came of them."""
    start = time.process_time()
    found = work(*given, **named)
    return time.process_time() - start, found


def watch(step: Any, spent: dict[str, float]) -> None:
    """Add up the seconds of the parts of a step."""

    def watched(name: str, part: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any) -> Any:
            took, found = seconds(part, *given)
            spent[name] = spent.get(name, 0.0) + took
            return found

        return called

    for name in PARTS:
        setattr(step, name, watched(name, getattr(step, name)))


def network_seconds(pipeline: Pipeline, context: int) -> float:
    """Measure a pass of the drafting network alone over the tokens that it reads, the mean of 20."""
    denoiser = pipeline.sampler.denoiser
    tokens = torch.full((1, context), denoiser.mask_id)
    with torch.no_grad():
        return seconds(lambda: [denoiser.network(tokens, None) for _ in range(20)])[0] / 20


def line(words: str, runs: list[dict[str, float]], network: float) -> str:
    """One row of the table."""
    rounds = mean(run["rounds"] for run in runs)
    ratios = [run["seconds"] / run["ar_seconds"] for run in runs]
    error = f" ± {stdev(ratios) / len(ratios) ** 0.5:.2f}" if len(ratios) > 1 else ""
    ms = {name: 1000 * mean(run[name] for run in runs) / rounds for name in PARTS}
    cells = [words.replace(":", ", "), len(runs), f"{mean(run['length'] for run in runs) / rounds:.2f}"]
    cells += [f"{mean(run[name] for run in runs):.0f}" for name in COUNTS]
    cells += [f"{mean(run['seconds'] for run in runs):.3f}", f"{mean(ratios):.2f}{error}", f"{ms['_draft']:.1f}"]
    cells += [f"{1000 * network:.1f}", f"{ms['_reading']:.1f}", f"{ms['_round'] - ms['_reading']:.1f}"]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Measure every setting and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ar")
    parser.add_argument("settings", nargs="+")
    parser.add_argument("--texts", type=int, default=6)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=256)
    given = parser.parse_args()
    torch.set_num_threads(1)
    length = given.length
    drafters = {words: loading.denoiser(words.rsplit(":", 3)[0], CPU, length) for words in given.settings}
    ar = loading.autoregressive(given.ar, CPU, drafters[given.settings[0]].vocabulary, length)
    mask, bos = ar.vocabulary.mask_id, ar.description.get("bos_id")
    built = {words: setting(words, drafter, ar, length) for words, drafter in drafters.items()}
    spent: dict[str, float] = {}
    for pipeline in built.values():
        watch(pipeline.kernel.step, spent)
        edlm.sample(pipeline, given.batch, seed=99)  # the first call of anything is slower
    runs: dict[str, list[dict[str, float]]] = {words: [] for words in built}
    for seed in range(given.texts):
        drawn = ar.network, given.batch, length, mask, bos
        alone = seconds(autoregressive.sample, *drawn, seed=seed)[0]
        for words, pipeline in built.items():
            spent.clear()
            took, out = seconds(edlm.sample, pipeline, given.batch, seed=seed)
            counts = {name: out["info", name].sum(1).double().mean().item() for name in COUNTS}
            runs[words].append(counts | spent | {"seconds": took, "ar_seconds": alone, "length": length})
    alone = mean(run["ar_seconds"] for run in runs[given.settings[0]])
    print(f"AR with its cache: {alone:.3f} CPU seconds a batch of {given.batch}\n{HEAD}\n{'|---' * 13}|")
    for words, pipeline in built.items():
        print(line(words, runs[words], network_seconds(pipeline, int(words.split(":")[-2]))))


if __name__ == "__main__":
    main()
