"""Measure rounds of one block beside rounds of the whole depth, and prefix speculation beside both: CPU seconds, bits.

Run it by `PYTHONPATH=tests python tests/measure_rounds.py DENOISER CORPUS [--seconds 60] [--texts 2] [--steps 4 8]`:
DENOISER is a run folder, CORPUS a folder with train.txt and test.txt. The denoiser is frozen; one block that reads in
order is trained over it for so many CPU seconds, on one thread, so another machine takes another number of updates.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path
from statistics import mean

import builders
import torch
from torch import Tensor, nn

import edlm
from edlm import contracts
from edlm.likelihood import bounds
from edlm.models import denoisers
from edlm.models.denoisers import SubsDenoiser
from edlm.nn import shallow
from edlm.objectives import batches, chain_rule
from edlm.samplers import corrections, pipelines, plans
from edlm.samplers.pipelines import Pipeline
from edlm.samplers.sampler import Sampler
from edlm.weights import checkpoints, loading

CPU = torch.device("cpu")
LENGTH, BATCH, RATE, MOST_STEPS, CHARACTERS = 128, 16, 3e-3, 256, 6_000_000  # of the training of the block


def with_block(folder: str, text: str, seconds: float) -> tuple[SubsDenoiser, int]:
    """Train one block over a frozen denoiser, and give how many updates it took."""
    found = loading.frozen(folder, CPU)
    torch.manual_seed(0)
    sizes = {name: value for name, value in found.network.arguments.items() if name not in ("causal", "block_size")}
    network = shallow.ShallowNetwork(**sizes)
    shallow.start_from(network, found.network)
    updates = train(network, found, found.vocabulary.encode(text[:CHARACTERS]), seconds)
    notes = {name: loading.record_of(folder)["description"][name] for name in ("schedule", "time_conditioning")}
    with tempfile.TemporaryDirectory() as saved:  # loaded again, its conditioning is folded like the denoiser's
        checkpoints.save_network(Path(saved) / "network", network, found.vocabulary, notes)
        return loading.denoiser(str(Path(saved) / "network"), CPU).denoiser, updates


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


def report(steps: int, name: str, how: str, pipeline: Pipeline, texts: int, bits: str) -> None:
    """Print a row: means over texts of the seeds 0, 1, ..."""
    runs = []
    for seed in range(texts):
        start = time.process_time()
        info = edlm.sample(pipeline, 1, seed=seed)["info"]
        runs.append((time.process_time() - start, int(info["rounds"].sum()), int(info["calls"].sum())))
    seconds, rounds, calls = (mean(column) for column in zip(*runs, strict=True))
    print(f"| {steps} | {name} | {how} | {rounds:g} | {calls:g} | {seconds:.3f} | {bits} |", flush=True)


def bits_of(sampler: Sampler, blocks: Tensor) -> str:
    """Bound a sampler on held-out blocks: bits a character, and in brackets what the order adds to plain steps."""
    bound = bounds.of_sampler(sampler, blocks, torch.tensor(0), torch.arange(len(blocks)))
    both = (each.double().mean().item() / math.log(2) for each in (bound.nats, bound.excess))
    return "{:.2f} ({:+.2f})".format(*both)


def main() -> None:
    """Train the block and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("denoiser")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--texts", type=int, default=2)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16])
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = loading.denoiser(given.denoiser, CPU)
    length = found.denoiser.max_length
    block, updates = with_block(given.denoiser, (given.corpus / "train.txt").read_text("utf-8"), given.seconds)
    held_out = (given.corpus / "test.txt").read_text("utf-8")[: 400 * length]
    blocks = found.vocabulary.encode(held_out).view(-1, length)[::100][:4]
    print(f"{updates} updates\n| steps | rounds | how | rounds | calls | CPU seconds | bits (order) |\n{'|---' * 7}|")
    for steps in given.steps:
        for name, denoiser in (("whole depth", found.denoiser), ("one block", block)):
            in_order = {"correction": corrections.ChainRule(), "selection": "speculative"}
            sampler = Sampler(denoiser, plans.Grid(steps), **in_order)
            pipeline = pipelines.pipeline(sampler, length)
            report(steps, name, "kept", pipeline, given.texts, bits_of(sampler, blocks))
            report(steps, name, "prefix", builders.forgetting(pipeline), given.texts, "the same")
        plain = pipelines.pipeline(Sampler(found.denoiser, plans.Grid(steps)), length)
        report(steps, "plain", "", plain, given.texts, "")


if __name__ == "__main__":
    main()
