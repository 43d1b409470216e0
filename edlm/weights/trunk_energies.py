"""Energies over the network of a denoiser in folders: what was trained, and the hash of the weights that it is over."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edlm.data.vocabulary import Vocabulary
from edlm.nn import adapters, trunk_energy
from edlm.nn.trunk_energy import TrunkEnergy
from edlm.process import finite
from edlm.weights import checkpoints, formats, tensors
from edlm.weights.formats import Format

CLASS = TrunkEnergy.__name__
OVER = "denoiser_weights"  # the note that holds the hash of the denoiser's weights


def save(target: Path, network: Any, vocabulary: Vocabulary, notes: Mapping[str, Any]) -> None:
    """Write what is trained of an energy's average. The denoiser's vocabulary is in the denoiser's folder."""
    weights = {name: value for name, value in network.named_parameters() if name in network.trained}
    formats.fill(target, (CLASS, network.arguments), weights, vocabulary, notes)


def load(path: str, over: nn.Module, weights: str, ids: Vocabulary, device: torch.device) -> TrunkEnergy:
    """Load an energy over the network of its denoiser, whose tensors it shares where they are not trained.

    weights: the hash of the denoiser's. Raises ValueError, naming the folder, for another denoiser, and as
    `checkpoints.load_network` does.
    """
    folder = checkpoints.find_network(path)
    description = checkpoints.read_description(folder)
    if description["vocabulary"] != ids.fingerprint or description.get(OVER) != weights:
        found = str(description.get(OVER))[:12]
        raise ValueError(
            f"energy = {path!r} was trained over the denoiser whose weights have sha256 {found}, and not over this one "
            f"({weights[:12]}): name the denoiser that it was trained over"
        )
    try:
        energy = trunk_energy.over(over, **description["arguments"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}/network.json: its arguments make no {CLASS} ({error})") from error
    file, own_weights = folder / formats.WEIGHTS, adapters.trained(energy, energy)
    tensors.require_named({name: tuple(value.shape) for name, value in own_weights.items()}, file)
    held = tensors.read_safetensors(file)
    formats.verify(folder, description)
    finite.require_weights(held, file)
    with torch.no_grad():
        for name, value in own_weights.items():
            value.copy_(held[name])
    return energy.to(device).requires_grad_(False).eval()


def is_one(path: str) -> bool:
    """Check whether a folder holds such an energy."""
    return bool(checkpoints.read_description(checkpoints.find_network(path))["class"] == CLASS)


def _trained(folder: Path, vocabulary: Vocabulary) -> dict[str, Tensor]:
    """Read what a run has kept of its average."""
    formats.verify(folder, checkpoints.read_description(folder))
    return tensors.read_safetensors(folder / formats.WEIGHTS)


FORM = Format(save, _trained)
