"""Measure what the cache of finished blocks saves: CPU seconds of a batch of texts, one token a pass, cached and whole.

Run it by `python tests/block_seconds.py [--rows 1 32] [--blocks 4 16 64] [--repeats 3] [--length 256]`. The network has
random weights, 4 layers of 192. Passes over whole texts cost the same wherever they are, so only the last 32 of them (4
of a batch) are timed, and multiplied. Each figure is the least of the repeats.

With `--denoiser RUN --ar RUN`, a trained denoiser of blocks writes beside an AR model with its cache: token by token,
and each block in one pass, in order from left to right. All ways of a seed are measured one after the other.
"""

import argparse
from statistics import mean
from typing import Any

import timing
import torch

import edlm
from edlm.nn import folding
from edlm.samplers import autoregressive, corrections
from edlm.samplers.pipelines import Pipeline
from edlm.weights import loading

MASK = 27


def pipelines_of(block: int, length: int) -> list[Pipeline]:
    """A sampler of blocks with its cache, and one that reads whole texts."""
    torch.manual_seed(0)
    network = edlm.networks.Transformer(MASK + 1, length, 192, 4, 6, 64, block_size=block).eval()
    denoiser = edlm.denoisers.subs(folding.fold_conditioning(network), mask_id=MASK)
    sampler = edlm.samplers.Sampler(denoiser, edlm.plans.blocks(block))
    return [edlm.pipelines.pipeline(sampler, length, cached) for cached in (True, False)]


def seconds(pipeline: Pipeline, rows: int, prompt: torch.Tensor | None = None) -> float:
    """Measure the CPU seconds of a batch."""
    return timing.seconds(edlm.sample, pipeline, rows, seed=1, prompt=prompt)[0]


def beside_ar(denoiser: str, ar: str, rows: int, length: int, texts: int) -> None:
    """Print the seconds of a trained denoiser of blocks as a share of those of an AR model: a row for each way."""
    cpu = torch.device("cpu")
    law, model = loading.denoiser(denoiser, cpu).denoiser, loading.autoregressive(ar, cpu)
    size, ids = law.block_size, (model.vocabulary.mask_id, model.description.get("bos_id"))
    assert size is not None, f"{denoiser} has no blocks"
    in_order: dict[str, Any] = {"correction": corrections.ChainRule(), "selection": "speculative"}
    written = edlm.plans.blocks(size, within=edlm.plans.LeftToRight(size))
    ways = {
        "token by token": edlm.samplers.Sampler(law, edlm.plans.blocks(size)),
        f"{size} tokens a pass, in order": edlm.samplers.Sampler(law, written, **in_order),
    }
    pipelines = {name: edlm.pipelines.pipeline(sampler, length) for name, sampler in ways.items()}
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
    for seed in range(-1, texts):  # the first call of anything is slower
        alone, _ = timing.seconds(autoregressive.sample, model.network, rows, length, *ids, seed=max(seed, 0))
        for name, pipeline in pipelines.items():
            took, out = timing.seconds(edlm.sample, pipeline, rows, seed=max(seed, 0))
            if seed >= 0:
                counts = (out["info", key].sum(1).double().mean().item() for key in ("calls", "rounds"))
                found[name].append((took / alone, took, alone, *counts))
    print("| way | texts | calls | rounds | CPU seconds | of AR |\n|---|---|---|---|---|---|")
    print(f"| AR with its cache | {texts} | {length} | | {mean(each[2] for each in found['token by token']):.3f} | 1 |")
    for name, runs in found.items():
        ratios, seconds_of, _, calls, rounds = zip(*runs, strict=True)
        cells = [name, texts, f"{mean(calls):.0f}", f"{mean(rounds):.0f}", f"{mean(seconds_of):.3f}"]
        print(f"| {' | '.join(map(str, cells))} | {timing.shown(list(ratios))} |")


def main() -> None:
    """Print a row for each batch and block."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--denoiser")
    parser.add_argument("--ar")
    parser.add_argument("--texts", type=int, default=6)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.denoiser is not None:
        for rows in given.rows:
            beside_ar(given.denoiser, given.ar, rows, given.length, given.texts)
        return
    print("| batch | block | cached | whole texts | times |\n|---|---|---|---|---|")
    for rows in given.rows:
        last = 32 if rows == 1 else 4
        prompt = torch.zeros(given.length - last, dtype=torch.int64)
        for block in given.blocks:
            cached, whole = pipelines_of(block, given.length)
            runs = [(seconds(cached, rows), seconds(whole, rows, prompt)) for _ in range(given.repeats)]
            kept, all_of = (min(column) for column in zip(*runs, strict=True))
            all_of *= given.length / last
            print(f"| {rows} | {block} | {kept:.3g} | {all_of:.3g} | {all_of / kept:.2g} |", flush=True)


if __name__ == "__main__":
    main()
