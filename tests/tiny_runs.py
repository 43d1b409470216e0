"""A run of a few steps over a few rows, without its picture."""

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import tiny_denoiser
from torch import nn

from edlm.data import vocabulary
from edlm.objectives import denoising
from edlm.process import schedules
from edlm.training import log as following
from edlm.training import texts as training_texts
from edlm.training.loop import TrainingRun

ROWS, LENGTH = 6, 7
SETTINGS = {
    "steps": 4,
    "batch_size": 4,
    "accumulate": 1,
    "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-3},
    "warmup_steps": 0,
    "decay": "constant",
    "clip_norm": 1.0,
    "ema_decay": 0.9,
    "precision": "float32",
    "parallel": "data",
    "recompute": False,
    "compile": False,
    "time_low": 1e-3,
    "log_every": 1,
    "valid_every": 2,
    "valid_rows": 4,
    "save_every": 4,
    "keep_last": 1,
    "keep_best": False,
    "patience": None,
    "resume": True,
    "log_to": [],
    "sample_every": None,
}


def tiny_run(folder: Path, **changes: Any) -> TrainingRun:
    torch.manual_seed(0)
    abcd = vocabulary.characters("abcd")
    denoiser, settings = tiny_denoiser(), {**SETTINGS, **changes}
    network = denoiser.network.float()
    blocks = torch.randint(4, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    stages = denoising.denoising(denoiser, schedules.log_linear())

    def sample(average: nn.Module) -> following.Texts:
        own = tiny_denoiser()
        own.network = average
        return training_texts.denoiser_texts(own, abcd, seed=1)

    def validate(average: nn.Module) -> dict[str, float]:
        return {"nelbo": 1.5, "nelbo_error": 0.1, "accuracy": 0.5}

    return TrainingRun(folder, network, stages, blocks, abcd, settings, 0, {}, validate, True, sample)


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture takes seconds: one test draws it."""
    monkeypatch.setattr(following, "draw_curves", lambda _: None)
