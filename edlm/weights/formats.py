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
    named = own.name_of(plain), plain.arguments
    vocabulary.save(target)
    fill(target, named, weights_of(plain, target), vocabulary, notes)


def fill(
    target: Path,
    named: tuple[str, Any],
    weights: Mapping[str, Tensor],
    vocabulary: Vocabulary,
    notes: Mapping[str, Any],
) -> None:
    """Write weights and the `network.json` that describes them. named: the network's class and its arguments."""
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, target / WEIGHTS)
    saved = {"class": named[0], "arguments": named[1], "vocabulary": vocabulary.fingerprint}
    files = (file for file in (WEIGHTS, *Vocabulary.FILES) if (target / file).is_file())
    hashes = {file: tensors.sha256(target / file) for file in files}
    hashes["arguments"] = tensors.digest([named[0], json.loads(json.dumps(named[1]))])
    whole.write_json(target / "network.json", {**saved, **notes, tensors.HASHES: hashes})


def verify(folder: Path, description: Mapping[str, Any]) -> None:
    """Raise ValueError unless weights, arguments and the vocabulary's files, if any, are those of their hashes."""
    words = (name for name in Vocabulary.FILES if (folder / name).is_file())
    tensors.verify(folder, description, WEIGHTS, *words)
    arguments = tensors.digest([description["class"], description["arguments"]])
    tensors.require_hash(arguments, tensors.hashes(folder, description).get("arguments"), folder / "network.json")
