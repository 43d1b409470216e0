"""The weights that a training goes on from: those of an earlier network, of the same vocabulary and sizes."""

from typing import Any

from torch import nn

from edlm.data.vocabulary import Vocabulary
from edlm.runs import settings as schemas
from edlm.weights import checkpoints, loading

KEY = "start_from"
check = schemas.omissible(schemas.optional(schemas.text))
_OF_NO_WEIGHT = {
    "max_length",
    "causal",
    "dropout",
    "pad_id",
    "block_size",
}  # arguments that may differ: they shape no weight
_IDS = ("size", "mask_id", "bos_id", "eos_id", "pad_id", "end_id")


def take_up(network: nn.Module, path: str | None, words: Vocabulary) -> None:
    """Copy the averaged weights of an earlier network into a new one; None leaves it as it is.

    Raises ValueError, naming the folder and what does not fit, for another vocabulary, other sizes, another way to end
    texts, a large model's folder, and one without a network.
    """
    if path is None:
        return
    try:
        if loading.is_large(path):
            raise ValueError(f"{path!r} holds a large model: `edlm run adapt` starts from one")
        _require_words(path, words)
        earlier = checkpoints.load_network(path)
        _require_sizes(path, network, earlier)
        network.load_state_dict(earlier.state_dict())
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{KEY} = {' '.join(str(error).split())}") from error


def notes(path: str | None) -> dict[str, str]:
    """Say which weights a run began with; nothing of a run that began with none."""
    return {} if path is None else {KEY: loading.weights_of(path)}


def _require_words(path: str, words: Vocabulary) -> None:
    """Raise ValueError unless the earlier network gives every text the same ids, and ends it alike."""
    earlier = checkpoints.load_vocabulary_of(path)
    if earlier.fingerprint == words.fingerprint:
        return
    if (earlier.end_id is None) != (words.end_id is None):
        learned, other = ("'learned'", "another") if words.end_id is None else ("another", "'learned'")
        raise ValueError(f"{path!r} was trained with padding = {learned}, and this run has {other}")
    pairs = [(name, getattr(earlier, name), getattr(words, name)) for name in _IDS]
    found = ", ".join(f"{name} was {then}, is {now}" for name, then, now in pairs if then != now)
    raise ValueError(f"{path!r} was trained on another vocabulary: {found or 'its tokenizer differs'}")


def _require_sizes(path: str, network: Any, earlier: Any) -> None:
    """Raise ValueError unless two networks are of one class and of sizes by which their weights are alike."""
    if type(network) is not type(earlier):
        raise ValueError(f"{path!r} holds a {type(earlier).__name__}, and this run trains a {type(network).__name__}")
    names = [name for name in network.arguments if name not in _OF_NO_WEIGHT]
    pairs = [(name, earlier.arguments[name], network.arguments[name]) for name in names]
    found = ", ".join(f"{name} was {then}, is {now}" for name, then, now in pairs if then != now)
    if found:
        raise ValueError(f"{path!r} holds a network of other sizes: {found}")
