"""The smallest training runs that have every part, seconds long, as words for the command line."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from omegaconf import OmegaConf
from running import without_pixels

from edlm.cli import commands
from edlm.runs import plots

NETWORK = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "conditioning_size": 8}
CAUSAL = {key: value for key, value in NETWORK.items() if key != "conditioning_size"}
UPDATES = {"steps": 6, "batch_size": 8, "valid_every": 3, "valid_rows": 8, "save_every": 4, "log_every": 2}
LENGTH = 32
PUBLISHED = {"optimizer._component_": "torch.optim.AdamW", "optimizer.lr": 2e-3}  # which every `parallel` knows
TEXTS = {"length": LENGTH, "vocabulary._component_": "edlm.vocabulary.characters", **PUBLISHED, **UPDATES}
CLOSING = {"rows": 2, "num_samples": 2, "counts": [8], "num_completions": 1}


def words_of(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`prefix key=value` of each; None is null."""
    return [f"{prefix}{key}={'null' if value is None else value}" for key, value in values.items()]


def denoiser_words(folder: Path) -> list[str]:
    return [f"output_dir={folder}", *words_of(TEXTS), *words_of(NETWORK, "network."), "threads=1"]


def ar_words(folder: Path) -> list[str]:
    return [f"output_dir={folder}", *words_of(TEXTS), *words_of(CAUSAL, "network."), "threads=1"]


def energy_words(folder: Path) -> list[str]:
    """An energy in `folder/energy`, of the denoiser in `folder/denoiser`, which is trained first if it is not there."""
    return [
        f"output_dir={folder / 'energy'}",
        f"denoiser={folder / 'denoiser'}",
        *words_of(TEXTS, "pretrain."),
        *words_of(NETWORK, "pretrain.network."),
        *words_of(UPDATES),
        *words_of({"num_samples": 1, "num_steps": 4, "num_particles": 2}, "samples."),
        *words_of(CLOSING, "closing."),
        "scope=draft",
        "report_particles=4",
        "threads=1",
    ]


def settings_of(recipe: str, *words: str, config: str = "tiny") -> dict[str, Any]:
    """The settings of a config with some of them changed."""
    loaded = OmegaConf.load(commands.configs(recipe)[config])
    return OmegaConf.to_container(OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(words))))


def train(recipe: str, *words: str, config: str = "tiny", pixels: bool = False) -> None:
    """Run a recipe in this process; a mistake is an error of Python's. pixels: whether its curves are painted."""
    with mock.patch.object(plots, "save", plots.save if pixels else without_pixels):
        import_module(f"edlm.recipes.{recipe}").main(settings_of(recipe, *words, config=config))
