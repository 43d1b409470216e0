"""Measure distillation beside a source of a known law: exact KL, total variation and entropy, plain and in order.

Run it by `PYTHONPATH=tests python tests/distilled_oracle.py`. 3 symbols, texts of 6; nothing is sampled.
"""

import copy
from typing import Any

import torch
from oracles import all_sequences
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn

import edlm
from edlm import contracts
from edlm.contracts import Denoiser
from edlm.likelihood import enumeration, hidden_markov
from edlm.models import denoisers
from edlm.models.denoisers import SubsDenoiser
from edlm.objectives import batches, chain_rule, distillation
from edlm.process import schedules
from edlm.samplers import corrections, plans
from edlm.samplers.sampler import Sampler

SYMBOLS, LENGTH = 3, 6
SOURCE = hidden_markov.random_hidden_markov(1, 4, SYMBOLS, 3.0)
SCHEDULE = schedules.log_linear()
NETWORK: dict[str, Any] = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "conditioning_size": 16}
START_STEPS, ROUND_STEPS, BATCH, NUM_TEXTS, NUM_STEPS, ROUNDS = 1500, 400, 64, 64 * 300, 32, 3


def trained(network: nn.Module, stages: TensorDictSequential, steps: int, rate: float, seed: int) -> nn.Module:
    """Train a network by a pipeline on texts of the source, the rate falling to zero."""
    texts = hidden_markov.texts(SOURCE, NUM_TEXTS, LENGTH, seed)
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    stages.train()
    for step in range(steps):
        now = texts[torch.arange(step * BATCH, (step + 1) * BATCH) % NUM_TEXTS]
        loss = stages(batches.training_batch(now, seed, torch.arange(BATCH), step, BATCH))[contracts.LOSS].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return network.eval()


def read(network: nn.Module) -> SubsDenoiser:
    """Read a network as a denoiser of the source's symbols."""
    return denoisers.subs(network, SYMBOLS, schedule=SCHEDULE)


def figures(law: Tensor) -> tuple[float, float, float]:
    """Compute KL from the source in nats per token, total variation, and entropy in nats per token."""
    log_q = hidden_markov.log_prob(SOURCE, all_sequences(SYMBOLS, LENGTH))
    p, q = law.flatten(), log_q.exp()
    return (
        float((q * (log_q - p.log())).sum()) / LENGTH,
        float((p - q).abs().sum()) / 2,
        float(torch.special.entr(p).sum()) / LENGTH,
    )


def report(name: str, denoiser: Denoiser) -> None:
    """Print a line for each number of steps, of plain sampling and, of a network, of writing in order."""
    samplers = {"plain": Sampler(denoiser)}
    if isinstance(denoiser, SubsDenoiser):
        samplers["in order"] = Sampler(denoiser, correction=corrections.ChainRule(), selection="speculative")
    for how, sampler in samplers.items():
        with torch.no_grad():
            steps = enumeration.transitions_of(sampler, LENGTH)
        for count in (2, 4, 8, 16):
            law = enumeration.law_of(steps, sampler.replace(plan=plans.Grid(count)), LENGTH)
            kl, far, entropy = figures(law)
            print(f"| {name} | {how} | {count} | {kl:.4f} | {far:.4f} | {entropy:.4f} |", flush=True)


def main() -> None:
    """Train a denoiser, distil it by each divergence, and report all of them."""
    torch.manual_seed(0)
    start = edlm.networks.Transformer(SYMBOLS + 1, LENGTH, **NETWORK)
    trained(start, chain_rule.denoising(read(start), SCHEDULE, (1, LENGTH)), START_STEPS, 2e-3, seed=1)
    print("| denoiser | sampler | T | KL | TV | entropy |\n|---|---|---|---|---|---|")
    texts = all_sequences(SYMBOLS, LENGTH)
    print(f"| source | | | 0 | 0 | {figures(hidden_markov.log_prob(SOURCE, texts).exp())[2]:.4f} |")
    report("exact", hidden_markov.denoiser(SOURCE, LENGTH))
    report("start", read(start))
    for divergence in distillation.DIVERGENCES:
        teacher: nn.Module = start
        for number in range(ROUNDS):
            student = copy.deepcopy(teacher).requires_grad_(True)
            how = NUM_STEPS / 2**number, 2, divergence
            stages = distillation.distillation(read(student), read(teacher.requires_grad_(False)), SCHEDULE, *how)
            teacher = trained(student, stages, ROUND_STEPS, 5e-4, seed=2 + number)
        report(f"distilled, {divergence}", read(teacher))


if __name__ == "__main__":
    main()
