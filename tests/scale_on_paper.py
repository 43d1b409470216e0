"""Compute what training `text8` and `owt` takes: operations, days on 1, 8 and 64 GPUs, memory. Nothing is trained.

Run it by `PYTHONPATH=tests python tests/scale_on_paper.py [--peak 989e12] [--share 0.4] [--memory 80]`. The sizes are
those of the configs. Operations are those of the passes and their gradients. The days suppose that a GPU reaches a
share of its peak, and that several lose nothing. The peak is that of bfloat16 products of an H100 without sparsity.
Activations are measured: what autograd keeps of one text, on this machine.
"""

import argparse
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

import edlm
from edlm import contracts
from edlm.cli import commands
from edlm.models import denoisers, energies
from edlm.nn.networks import EnergyNetwork, Transformer
from edlm.objectives import batches, contrastive, denoising
from edlm.runs import timing
from edlm.training import forecast, muon, speedrun

VOCABULARIES = {"text8": 28, "owt": 50258}
GPUS = 1, 8, 64


class Training(NamedTuple):
    """One training: its network, the loss of a text, its config, and the operations of an update."""

    name: str
    network: nn.Module
    stages: nn.Module
    settings: dict[str, Any]
    flops: float


def trainings(name: str) -> list[Training]:
    """Build the denoiser and the energy of a config, untrained."""
    own, over = (_settings(recipe, name) for recipe in ("pretrain_denoiser", "edlm_nce"))
    size = VOCABULARIES[name]
    sizes = {key: value for key, value in own["network"].items() if key != "_component_"}
    torch.manual_seed(0)
    network = Transformer(size, own["length"], **{**sizes, "dropout": 0.0})
    denoiser, schedule = denoisers.subs(network, size - 1), edlm.schedules.log_linear()
    found = [Training(name, network, denoising.denoising(denoiser, schedule), own, speedrun.step_flops(network, own))]
    weighs = EnergyNetwork(size, own["length"], **{**sizes, "dropout": 0.0})
    stages = contrastive.contrastive(denoiser, energies.learned(weighs), schedule)
    settings = {**over, "length": own["length"]}
    tokens = torch.zeros(settings["batch_size"], settings["length"], dtype=torch.int64, device="meta")
    passes = timing.transformer_flops(network, tokens)
    flops = speedrun.step_flops(network, settings) / 3 + 2 * 3 * passes  # the drafts, and two texts with gradients
    return [*found, Training(f"{name}, NCE energy", weighs, stages, settings, flops)]


def _settings(recipe: str, name: str) -> dict[str, Any]:
    loaded = OmegaConf.to_container(OmegaConf.load(commands.configs(recipe)[name]))
    assert isinstance(loaded, dict)
    return {str(key): value for key, value in loaded.items()}


def held(training: Training) -> forecast.Forecast:
    """Count the bytes of weights, average, gradients and optimizer, and of what autograd keeps of a text."""
    settings = {**training.settings, "accumulate": training.settings["batch_size"]}  # parts of one text
    mark = muon.marks(settings["optimizer"], training.network)
    groups = [{"params": [each], **dict(mark(name))} for name, each in training.network.named_parameters()]
    values = {key: value for key, value in settings["optimizer"].items() if key != "_component_"}
    kind = muon.Muon if settings["optimizer"]["_component_"] == muon.PATH else torch.optim.AdamW
    texts = torch.randint(0, 27, (1, settings["length"]), generator=torch.Generator().manual_seed(0))

    def loss(rows: int) -> Tensor:
        batch = batches.training_batch(texts[:rows], 0, torch.arange(rows), 0, rows)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return training.stages(batch)[contracts.LOSS].sum()

    return forecast.forecast(training.network, training.stages, kind(groups, **values), loss, settings)


def main() -> None:
    """Print a row for each training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", type=float, default=989e12, help="operations a second of one GPU")
    parser.add_argument("--share", type=float, default=0.4, help="of the peak, that is reached")
    parser.add_argument("--memory", type=float, default=80.0, help="GB of one GPU")
    given = parser.parse_args()
    torch.set_num_threads(1)
    days_on = " | ".join(f"days on {count}" for count in GPUS)
    head = (
        "training",
        "parameters",
        "steps",
        "TFLOP a step",
        days_on,
        "GB without activations",
        "MB a text",
        "texts at once",
    )
    print(f"| {' | '.join(head)} |")
    print("|---" * (8 + len(GPUS) - 1) + "|")
    for training in [each for name in VOCABULARIES for each in trainings(name)]:
        found, steps = held(training), training.settings["steps"]
        days = [steps * training.flops / (given.peak * given.share * count) / 86400 for count in GPUS]
        fixed = sum(found.held.values())
        fits = int((given.memory * 1e9 - fixed) / found.row)
        cells = [training.name, f"{found.parameters / 1e6:.0f} M", f"{steps:,}", f"{training.flops / 1e12:.1f}"]
        cells += [f"{each:.2g}" for each in days]
        print(f"| {' | '.join([*cells, f'{fixed / 1e9:.1f}', f'{found.row / 1e6:.0f}', f'{fits:,}'])} |", flush=True)


if __name__ == "__main__":
    main()
