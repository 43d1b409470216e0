"""Measure what the cache of finished blocks saves: CPU seconds of a batch of texts, one token a pass, cached and whole.

Run it by `python tests/block_seconds.py [--rows 1 32] [--blocks 4 16 64] [--repeats 3] [--length 256]`. The network has
random weights, 4 layers of 192. Passes over whole texts cost the same wherever they are, so only the last 32 of them (4
of a batch) are timed, and multiplied. Each figure is the least of the repeats.
"""

import argparse
import time

import torch

import edlm
from edlm.nn import folding
from edlm.samplers.pipelines import Pipeline

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
    start = time.process_time()
    edlm.sample(pipeline, rows, seed=1, prompt=prompt)
    return time.process_time() - start


def main() -> None:
    """Print a row for each batch and block."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--length", type=int, default=256)
    given = parser.parse_args()
    torch.set_num_threads(1)
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
