"""What is benchmarked at its smallest: networks of two layers, and the `tiny` config with less to do."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from edlm.benchmark import methods
from edlm.cli import commands
from edlm.recipes import benchmark
from edlm.runs import settings as schemas

CPU = torch.device("cpu")
SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "conditioning_size": 8}
VOCAB, BLOCK = 11, 6


def small_networks() -> methods.Networks:
    return methods.build_networks(SIZES, VOCAB, BLOCK, 0, CPU, torch.float64)


def small_training() -> list[dict[str, Any]]:
    loaded: Any = OmegaConf.to_container(OmegaConf.load(commands.configs("benchmark")["tiny"]))
    return [{**each, "vocab_size": 30, "length": 8} for each in loaded["training"]]


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The tiny config, smaller."""
    loaded: Any = OmegaConf.to_container(OmegaConf.load(commands.configs("benchmark")["tiny"]))
    plain = {**loaded["cases"][0], "rows": 2, "num_steps": 8, "length": 8}
    energy = {**loaded["cases"][1], "vocab_size": 30, "length": 8}
    sweep = {**loaded["growth"][0], "num_steps": [2, 4, 8], "length": 8}
    small = {"network": SIZES, "cases": [plain, energy], "growth": [sweep], "modes": ["eager"], "threads": 1}
    small["training"] = []
    found = {**loaded, **small, "output_dir": str(folder), **changes}
    schemas.check(benchmark.SETTINGS, found)
    return found
