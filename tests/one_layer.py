"""The smallest training run there is, through `TrainingRun` itself."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edlm.data import vocabulary
from edlm.models import denoisers
from edlm.nn.networks import Transformer
from edlm.objectives import denoising
from edlm.process import schedules
from edlm.runs.entry import Interrupted
from edlm.training.loop import TrainingRun

CHARACTERS = vocabulary.characters("ab")
SETTINGS: dict[str, Any] = {
    "batch_size": 2,
    "accumulate": 1,
    "optimizer": {"_component_": "torch.optim.AdamW", "lr": 0.01},
    "warmup_steps": 2,
    "decay": "constant",
    "clip_norm": 1.0,
    "ema_decay": 0.9,
    "precision": "float32",
    "parallel": "data",
    "recompute": False,
    "compile": False,
    "time_low": 0.001,
    "log_every": 2,  # its mean is over steps on both sides of a checkpoint
    "valid_every": 1,
    "valid_rows": 2,
    "save_every": 1,
    "keep_last": 1,
    "keep_best": True,
    "patience": None,
    "resume": True,
    "log_to": [],
    "sample_every": None,
}


def train(folder: Path, steps: int = 3, seed: int = 3, **changed: Any) -> None:
    """The smallest run there is: one layer, two rows, dropout, a checkpoint after every step."""
    torch.manual_seed(0)
    network = Transformer(3, 4, hidden_size=4, num_layers=1, num_heads=1, conditioning_size=2, dropout=0.2)
    nn.init.normal_(network.head.weight)
    schedule = schedules.log_linear()
    run = TrainingRun(
        folder=folder,
        network=network,
        stages=denoising.denoising(denoisers.subs(network, CHARACTERS.mask_id), schedule),
        blocks=torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1]]),
        vocabulary=CHARACTERS,
        settings={**SETTINGS, "steps": steps, **changed},
        seed=seed,
        identity={"objective": "nelbo"},
        validate=lambda average: {"loss": float(average.head.weight.detach().square().mean())},
    )
    run.load_checkpoint()
    try:
        run.train()
    except Interrupted as stop:
        sys.exit(stop.status)
    run.save_checkpoint()
