"""One remasking rule of each kind, and the small pipeline that rewrites by it."""

from typing import Any

import pytest
import torch
from builders import tiny_denoiser

import edlm
from edlm.process import schedules
from edlm.samplers import plans
from edlm.samplers.pipelines import Pipeline
from edlm.samplers.remasking import Cap, Confidence, ForwardBackward, Loop, Remasking, Rescale
from edlm.samplers.sampler import Sampler

MASK, LENGTH = 4, 6
RULES = [Cap(0.2), Rescale(0.3), Confidence(), Loop(0.6, 0.2, 0.5, 0.3), ForwardBackward()]
every_rule = pytest.mark.parametrize("rule", RULES, ids=str)


def pipeline(rule: Remasking | None, steps: int = 8, length: int = LENGTH, **axes: Any) -> Pipeline:
    schedule = axes.pop("schedule", schedules.log_linear(1e-3))
    denoiser = tiny_denoiser(schedule=schedule)
    with torch.no_grad():
        denoiser.network.head.weight.mul_(3.0)
    return edlm.pipelines.pipeline(Sampler(denoiser, plans.Grid(steps), remasking=rule, **axes), length)
