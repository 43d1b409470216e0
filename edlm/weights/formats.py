"""The content of a network folder: its files as they are written, and the form in which a run keeps its network."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor, nn

from edlm.data.vocabulary import Vocabulary
from edlm.weights import permitted, tensors, whole

WEIGHTS = "network.safetensors"

Fill = Callable[[Path, nn.Module, Vocabulary, Mapping[str, Any]], None]


class Format(NamedTuple):
    """The form in which a run keeps its averaged network.

    fill: writes a network, its vocabulary and notes into a folder. read: the weights by name that such a folder holds.
    """

    fill: Fill
    read: Callable[[Path, Vocabulary], Mapping[str, Tensor]]


def fill_network(target: Path, network: nn.Module, vocabulary: Vocabulary, notes: Mapping[str, Any]) -> None:
    """Write a network of ours: `network.json`, its weights and the files of its vocabulary.

    Raises ValueError for a network of a class that no folder may name.
    """
    plain: Any = network
    while hasattr(plain, "_orig_mod"):  # what `torch.compile` puts around a network
        plain = plain._orig_mod
    if type(plain).__name__ not in permitted.NETWORKS:
        known = ", ".join(permitted.NETWORKS)
        raise ValueError(f"{target}: only a {known} is saved, and this is a {type(plain).__name__}")
    vocabulary.save(target)
    weights = tensors.unwrapped(plain.state_dict(), target)
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, target / WEIGHTS)
    saved = {"class": type(plain).__name__, "arguments": plain.arguments, "vocabulary": vocabulary.fingerprint}
    hashes = {name: tensors.sha256(target / name) for name in (WEIGHTS, *Vocabulary.FILES)}
    hashes["arguments"] = tensors.digest([saved["class"], json.loads(json.dumps(saved["arguments"]))])
    whole.write_json(target / "network.json", {**saved, **notes, tensors.HASHES: hashes})
