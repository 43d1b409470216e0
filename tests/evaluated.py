"""The folder of small networks and texts that `evaluate` is run on, and the settings of its smallest run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import tiny_network
from running import unless_given

from edlm.data import vocabulary
from edlm.nn.networks import EnergyNetwork, JointNetwork
from edlm.weights import checkpoints

LENGTH = 8
ABC = vocabulary.characters("abc ")
TEXT = "abc cab bca acb " * 9 + "abc"
SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "conditioning_size": 8}
SCHEDULE = {"_component_": "edlm.schedules.log_linear"}
SAMPLES = ["abcabcab", "aaaaaaaa", "c ab bca"]


def write(path: Path) -> Path:
    """A denoiser, an energy, an AR model and two texts."""
    torch.manual_seed(0)
    notes = {"schedule": SCHEDULE, "time_conditioning": False, "step": 3}
    checkpoints.save_network(path / "denoiser", tiny_network(0, ABC.size, LENGTH).float(), ABC, notes)
    energy = EnergyNetwork(ABC.size, LENGTH, **SIZES)
    with torch.no_grad():
        energy.scalar.weight.normal_(std=20.0)
    checkpoints.save_network(path / "energy", energy, ABC, {})
    checkpoints.save_network(path / "transition", energy, ABC, {"scope": "transition"})
    two_heads = JointNetwork(ABC.size, LENGTH, **SIZES)
    with torch.no_grad():
        two_heads.scalar.weight.normal_(std=20.0)
        two_heads.new.weight.normal_()
    checkpoints.save_network(path / "joint", two_heads, ABC, notes)
    causal = tiny_network(2, ABC.size, LENGTH, causal=True, conditioning_size=0).float()
    checkpoints.save_network(path / "ar", causal, ABC, {"bos_id": ABC.mask_id})
    checkpoints.save_network(path / "without_bos", causal, ABC, {})
    checkpoints.save_network(path / "other", causal, vocabulary.characters("abcd"), {})
    (path / "one.txt").write_text(TEXT, encoding="utf-8")
    (path / "two.txt").write_text("cab\n\nabc abc abc\n\nb", encoding="utf-8")
    records = [{"row": i, "text": text, "tokens": ABC.encode(text).tolist()} for i, text in enumerate(SAMPLES)]
    (path / "short.jsonl").write_text('{"text": "abca"}\n{"text": "abc"}\n', encoding="utf-8")
    (path / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def words(folder: Path, output: Path, overrides: tuple[str, ...]) -> list[str]:
    """The settings of the smallest run over the folder that `write` filled."""
    base = {
        "output_dir": output,
        "denoiser": folder / "denoiser",
        "energy": folder / "energy",
        "ar": folder / "ar",
        "split": "null",
        "zero_shot": f"[{folder / 'one.txt'}]",
        "normalised": "false",
        "num_steps": 4,
        "num_particles": 3,
        "num_completions": 2,
        "log_z_particles": 3,
        "replicates": 10,
        "rows": "null",
        "threads": 1,
    }
    return unless_given(base, overrides)


def card_of(output: Path) -> dict[str, Any]:
    """The card that a run left; an empty one if it left none."""
    card = output / "metric_card.json"
    return json.loads(card.read_text("utf-8"), parse_constant=pytest.fail) if card.is_file() else {}
