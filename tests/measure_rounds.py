"""Measure rounds of one block beside rounds of the whole depth, and prefix speculation beside both: CPU seconds, bits.

Run it by `PYTHONPATH=tests python tests/measure_rounds.py DENOISER AR CORPUS BLOCK [--seconds 60] [--steps 4 8]`.
DENOISER and AR are run folders, CORPUS is a folder with train.txt and test.txt. The denoiser is frozen; one block that
reads in order is trained over it for so many CPU seconds, on one thread, so another machine takes another number of
updates. It is kept in the folder BLOCK, and read from there if it is there already.

All ways of a seed are measured one after the other, the AR model with its cache among them, so what else the machine
does meets them alike. Bits are bounds on `--rows` blocks of the test text, spread evenly over it.
"""

import argparse
import math
import time
from pathlib import Path
from statistics import mean
from typing import Any

import timing
import torch
from forgetting import forgetting
from tensordict import TensorDict
from torch import Tensor, nn

import edlm
from edlm import contracts
from edlm.likelihood import bounds
from edlm.models import denoisers
from edlm.models.denoisers import SubsDenoiser
from edlm.nn import shallow
from edlm.objectives import batches, chain_rule
from edlm.samplers import autoregressive, corrections, pipelines, plans
from edlm.samplers.pipelines import Pipeline
from edlm.samplers.sampler import Sampler
from edlm.weights import checkpoints, loading

CPU = torch.device("cpu")
LENGTH, BATCH, RATE, MOST_STEPS, CHARACTERS = 128, 16, 3e-3, 256, 6_000_000  # of the training of the block


def with_block(folder: str, text: str, seconds: float, kept: Path) -> SubsDenoiser:
    """Train one block over a frozen denoiser, unless it is there, and load it."""
    if not kept.exists():
        found = loading.frozen(folder, CPU)
        torch.manual_seed(0)
        sizes = {name: value for name, value in found.network.arguments.items() if name not in ("causal", "block_size")}
        network = shallow.ShallowNetwork(**sizes)
        shallow.start_from(network, found.network)
        updates = train(network, found, found.vocabulary.encode(text[:CHARACTERS]), seconds)
        notes = {name: loading.record_of(folder)["description"][name] for name in ("schedule", "time_conditioning")}
        checkpoints.save_network(kept, network, found.vocabulary, notes)
        print(f"{updates} updates of the block")
    return loading.denoiser(str(kept), CPU).denoiser  # loaded, its conditioning is folded like the denoiser's


def train(network: nn.Module, found: loading.Found, tokens: Tensor, seconds: float) -> int:
    """Train what is not frozen by the likelihood of new tokens in order, the rate falling with the seconds spent."""
    denoiser = denoisers.subs(network, found.vocabulary.mask_id, schedule=found.schedule)
    stages = chain_rule.denoising(denoiser, found.schedule, (1, MOST_STEPS))
    weights = [each for each in network.parameters() if each.requires_grad]
    optimizer, places = torch.optim.AdamW(weights, RATE), torch.Generator().manual_seed(0)
    start, step = time.process_time(), 0
    while (spent := time.process_time() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 20) * max(0.02, 1 - spent / seconds)
        at = torch.randint(0, len(tokens) - LENGTH, (BATCH,), generator=places).tolist()
        texts = torch.stack([tokens[place : place + LENGTH] for place in at])
        batch = batches.training_batch(texts, 0, torch.arange(BATCH), step, BATCH)
        loss = stages(batch)[contracts.LOSS].mean() / LENGTH
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
    return step


def bits_of(sampler: Sampler, blocks: Tensor) -> str:
    """Bound a sampler on held-out blocks: bits a character, and in brackets what the order adds to plain steps."""
    bound = bounds.of_sampler(sampler, blocks, torch.tensor(0), torch.arange(len(blocks)))
    bits, excess = (each.double() / math.log(2) for each in (bound.nats, bound.excess))
    return f"{bits.mean():.3f} ± {bits.std() / len(bits) ** 0.5:.3f} ({excess.mean():+.3f})"


def ways_of(own: SubsDenoiser, block: SubsDenoiser, steps: int, length: int) -> dict[tuple[str, str], Pipeline]:
    """Build what is measured at a number of steps, by who reads in order and what becomes of the guesses."""
    in_order: dict[str, Any] = {"correction": corrections.ChainRule(), "selection": "speculative"}
    found = {("plain", ""): pipelines.pipeline(Sampler(own, plans.Grid(steps)), length)}
    for name, denoiser in (("whole depth", own), ("one block", block)):
        found[name, "kept"] = pipelines.pipeline(Sampler(denoiser, plans.Grid(steps), **in_order), length)
        found[name, "prefix"] = forgetting(found[name, "kept"])
    return found


def line(way: tuple[int, str, str], runs: list[tuple[float, float, TensorDict]], bits: str) -> str:
    """One row of the table: means over the seeds, and over the texts of a batch."""
    ratios = [took / alone for took, alone, _ in runs]
    counts = [
        f"{mean(info[key].sum(1).double().mean().item() for *_, info in runs):.1f}" for key in ("rounds", "calls")
    ]
    cells = [*way, *counts, f"{mean(took for took, *_ in runs):.3f}", timing.shown(ratios), bits]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Train the block and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("denoiser")
    parser.add_argument("ar")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("block", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--texts", type=int, default=6)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rows", type=int, default=32, help="test blocks for the bits; 0: no bits")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16])
    given = parser.parse_args()
    torch.set_num_threads(1)
    own = loading.denoiser(given.denoiser, CPU).denoiser
    length = own.max_length
    ar = loading.autoregressive(given.ar, CPU)
    block = with_block(given.denoiser, (given.corpus / "train.txt").read_text("utf-8"), given.seconds, given.block)
    text = ar.vocabulary.encode((given.corpus / "test.txt").read_text("utf-8"))
    blocks = text[: len(text) // length * length].view(-1, length)
    blocks = blocks[:: max(1, len(blocks) // max(1, given.rows))][: given.rows]
    ids = ar.vocabulary.mask_id, ar.description.get("bos_id")
    built = {(steps, *way): each for steps in given.steps for way, each in ways_of(own, block, steps, length).items()}
    runs: dict[tuple[int, str, str], list[tuple[float, float, TensorDict]]] = {way: [] for way in built}
    for seed in range(-1, given.texts):  # the first call of anything is slower
        alone, _ = timing.seconds(autoregressive.sample, ar.network, given.batch, length, *ids, seed=max(seed, 0))
        for way, pipeline in built.items():
            took, out = timing.seconds(edlm.sample, pipeline, given.batch, seed=max(seed, 0))
            runs[way] += [(took, alone, out["info"])] if seed >= 0 else []
    alone = mean(each for _, each, _ in runs[next(iter(runs))])
    print(f"AR with its cache: {alone:.3f} CPU seconds a batch of {given.batch}")
    print(f"| steps | rounds | guesses | rounds | calls | CPU seconds | of AR | bits (order) |\n{'|---' * 8}|")
    for way, measured in runs.items():
        bits = "" if way[2] == "prefix" or not given.rows else bits_of(built[way].sampler, blocks)
        print(line(way, measured, bits), flush=True)


if __name__ == "__main__":
    main()
