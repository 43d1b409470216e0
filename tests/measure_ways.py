"""Measure what ways of writing take beside an AR model with its cache: calls, rounds and CPU seconds, on one thread.

Run it by `python tests/measure_ways.py DENOISER AR [--counts 4 8 16] [--texts 4] [--batch 1] [--length 64]`. DENOISER
and AR are run folders, or folders of large models. Each number of tokens a pass is written plain and in order, at
random positions and from left to right. All ways of a seed are measured one after the other, so what else the machine
does meets them alike.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import mean, stdev
from typing import Any

import torch

import edlm
from edlm.models.denoisers import SubsDenoiser
from edlm.samplers import autoregressive, corrections, pipelines, plans
from edlm.samplers.pipelines import Pipeline
from edlm.samplers.sampler import Sampler
from edlm.weights import loading, sources

CPU = torch.device("cpu")


def ways_of(denoiser: SubsDenoiser, counts: list[int], length: int) -> dict[str, Pipeline]:
    """Build every way, by its name."""
    in_order: dict[str, Any] = {"correction": corrections.ChainRule(), "selection": "speculative"}
    found = {}
    for count in counts:
        for where, plan in (("random", plans.TokensPerPass(count)), ("left to right", plans.LeftToRight(count))):
            for how, axes in (("plain", {}), ("in order", in_order)):
                sampler = Sampler(denoiser, plan, **axes)
                found[f"{how}, {where}, {count} a pass"] = pipelines.pipeline(sampler, length)
    return found


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Measure CPU seconds, and give what came of them."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def line(way: str, runs: list[tuple[float, float, int, int]]) -> str:
    """One row of the table: means over the seeds."""
    ratios = [took / alone for took, alone, *_ in runs]
    error = f" ± {stdev(ratios) / len(ratios) ** 0.5:.2f}" if len(ratios) > 1 else ""
    calls, rounds = mean(run[2] for run in runs), mean(run[3] for run in runs)
    cells = [way, f"{calls - rounds:.1f}", f"{rounds:.1f}", f"{calls:.1f}"]
    return f"| {' | '.join([*cells, f'{mean(run[0] for run in runs):.3f}', f'{mean(ratios):.2f}{error}'])} |"


def main() -> None:
    """Measure every way and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("denoiser")
    parser.add_argument("ar")
    parser.add_argument("--counts", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    denoiser = loading.denoiser(given.denoiser, CPU, given.length).denoiser
    ar = loading.autoregressive(given.ar, CPU, sources.How(given.length))
    ids = ar.vocabulary.mask_id, ar.description.get("bos_id")
    built = ways_of(denoiser, given.counts, given.length)
    runs: dict[str, list[tuple[float, float, int, int]]] = {way: [] for way in built}
    for seed in range(-1, given.texts):  # the first call of anything is slower
        draw = partial(autoregressive.sample, ar.network, given.batch, given.length, *ids, seed=max(seed, 0))
        alone, _ = seconds(draw)
        for way, pipeline in built.items():
            took, out = seconds(partial(edlm.sample, pipeline, given.batch, seed=max(seed, 0)))
            counts = (int(out["info", key].sum(1).amax()) for key in ("calls", "rounds"))
            runs[way] += [(took, alone, *counts)] if seed >= 0 else []  # type: ignore[list-item]
    alone = mean(run[1] for run in runs[next(iter(runs))])
    print(f"AR with its cache: {alone:.3f} CPU seconds a batch of {given.batch}, {given.texts} seeds")
    print(f"| way | passes | rounds | calls | CPU seconds | of AR |\n{'|---' * 6}|")
    for way, measured in runs.items():
        print(line(way, measured), flush=True)


if __name__ == "__main__":
    main()
