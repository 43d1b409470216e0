"""A folder with all that a frontier compares: its networks are random and tiny."""

from pathlib import Path

import torch
from builders import tiny_network

from edlm.data import vocabulary
from edlm.nn.networks import EnergyNetwork, JointNetwork
from edlm.weights import checkpoints

LENGTH = 8
ABC = vocabulary.characters("abc ")
TEXT = "abc cab bca acb " * 5 + "abc\n\n" + "cab acb abc bca " * 4 + "cab"  # two documents
SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "conditioning_size": 8}


def write(path: Path) -> None:
    """A denoiser, an energy of drafts and one of transitions, a joint network, two AR models and a text."""
    torch.manual_seed(0)
    notes = {"schedule": {"_component_": "edlm.schedules.log_linear"}, "time_conditioning": False}
    checkpoints.save_network(path / "denoiser", tiny_network(0, ABC.size, LENGTH).float(), ABC, notes)
    for name, scope in (("energy", {}), ("transition", {"scope": "transition"})):
        energy = EnergyNetwork(ABC.size, LENGTH, **SIZES)
        with torch.no_grad():
            energy.scalar.weight.normal_(std=20.0)
        checkpoints.save_network(path / name, energy, ABC, scope)
    two_heads = JointNetwork(ABC.size, LENGTH, **SIZES)
    with torch.no_grad():
        two_heads.scalar.weight.normal_(std=20.0)
        two_heads.new.weight.normal_()
    checkpoints.save_network(path / "joint", two_heads, ABC, notes)
    for seed, name in ((2, "ar"), (3, "judge")):
        causal = tiny_network(seed, ABC.size, LENGTH, causal=True, conditioning_size=0).float()
        checkpoints.save_network(path / name, causal, ABC, {"bos_id": ABC.mask_id})
    (path / "text").mkdir()
    for split in ("train", "valid", "test"):
        (path / "text" / f"{split}.txt").write_text(TEXT, encoding="utf-8")
