"""Measure what ways of writing take beside an AR model with its cache: calls, rounds and CPU seconds, on one thread.

Run it by `python tests/measure_ways.py DENOISER AR [--counts 4 8 16] [--texts 4] [--batch 1] [--length 64]`. DENOISER
and AR are run folders, or folders of large models. Each number of tokens a pass is written plain and in order, at
random positions and from left to right. All ways of a seed are measured one after the other, so what else the machine
does meets them alike.
"""

import argparse
from statistics import mean
from typing import Any

import timing
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


def line(way: str, runs: list[tuple[float, float, float, float]]) -> str:
    """One row of the table: means over the seeds, and over the texts of a batch."""
    ratios = [took / alone for took, alone, *_ in runs]
    calls, rounds = (mean(run[index] for run in runs) for index in (2, 3))
    cells = [way, f"{calls - rounds:.1f}", f"{rounds:.1f}", f"{calls:.1f}"]
    return f"| {' | '.join([*cells, f'{mean(run[0] for run in runs):.3f}', timing.shown(ratios)])} |"


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
    runs: dict[str, list[tuple[float, float, float, float]]] = {way: [] for way in built}
    for seed in range(-1, given.texts):  # the first call of anything is slower
        alone, _ = timing.seconds(autoregressive.sample, ar.network, given.batch, given.length, *ids, seed=max(seed, 0))
        for way, pipeline in built.items():
            took, out = timing.seconds(edlm.sample, pipeline, given.batch, seed=max(seed, 0))
            counts = (out["info", key].sum(1).double().mean().item() for key in ("calls", "rounds"))
            runs[way] += [(took, alone, *counts)] if seed >= 0 else []  # type: ignore[list-item]
    alone = mean(run[1] for run in runs[next(iter(runs))])
    print(f"AR with its cache: {alone:.3f} CPU seconds a batch of {given.batch}, {given.texts} seeds")
    print(f"| way | passes | rounds | calls | CPU seconds | of AR |\n{'|---' * 6}|")
    for way, measured in runs.items():
        print(line(way, measured), flush=True)


if __name__ == "__main__":
    main()
