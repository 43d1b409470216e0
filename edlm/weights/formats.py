"""The content of a network folder: its files as they are written, and the form in which a run keeps its network."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor, nn

from edlm.data.vocabulary import Vocabulary
from edlm.weights import own, tensors, whole

WEIGHTS = "network.safetensors"

Fill = Callable[[Path, nn.Module, Vocabulary, Mapping[str, Any]], None]


class Format(NamedTuple):
    """The form in which a run keeps its averaged network.

    fill: writes a network, its vocabulary and notes into a folder. read: the weights by name that such a folder holds.
    """

    fill: Fill
    read: Callable[[Path, Vocabulary], Mapping[str, Tensor]]


def weights_of(network: nn.Module, where: str | Path) -> dict[str, Tensor]:
    """Collect the weights of a network as they are written, whatever is wrapped around it. where: named in errors."""
    plain: Any = network
    while hasattr(plain, "_orig_mod"):  # what `torch.compile` puts around a network
        plain = plain._orig_mod
    weights = tensors.unwrapped(plain.state_dict(), where)
    return {name: value.detach().cpu().contiguous() for name, value in weights.items()}


def fill_network(target: Path, network: nn.Module, vocabulary: Vocabulary, notes: Mapping[str, Any]) -> None:
    """Write a network of ours: `network.json`, its weights and the files of its vocabulary.

    Raises ValueError for a network that no config can name.
    """
    plain: Any = network
    while hasattr(plain, "_orig_mod"):  # what `torch.compile` puts around a network
        plain = plain._orig_mod
    name = own.name_of(plain)
    vocabulary.save(target)
    save_file(weights_of(plain, target), target / WEIGHTS)
    saved = {"class": name, "arguments": plain.arguments, "vocabulary": vocabulary.fingerprint}
    hashes = {file: tensors.sha256(target / file) for file in (WEIGHTS, *Vocabulary.FILES)}
    hashes["arguments"] = tensors.digest([saved["class"], json.loads(json.dumps(saved["arguments"]))])
    whole.write_json(target / "network.json", {**saved, **notes, tensors.HASHES: hashes})
