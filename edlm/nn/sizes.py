"""Arguments of networks: which sizes make one, and what a checkpoint keeps of them to build it again."""

from collections.abc import Mapping
from typing import Any

from edlm import limits

_SHOWN = 80  # characters of a value in a message
_SIZES = ("vocab_size", "max_length", "hidden_size", "num_layers", "num_heads", "num_energy_layers")


def require_sizes(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the argument, for sizes that make no network, or a larger one than `limits` allows."""
    least = {"conditioning_size": 0} | dict.fromkeys(_SIZES, 1)
    for name, low in least.items():
        value = arguments.get(name, low)
        if type(value) is not int:
            shown = repr(value)
            raise ValueError(f"{name} = {shown if len(shown) <= _SHOWN else type(value)} must be a whole number")
        if value < low:
            raise ValueError(f"{name} = {value} must be at least {low}")
    for name in ("causal", "norm_bias", "qk_norm"):
        if type(arguments.get(name, False)) is not bool:
            raise ValueError(f"{name} = {arguments[name]!r} must be true or false")
    _require_block_size(arguments)
    require_dropout(arguments["dropout"])
    layers, width = arguments["num_layers"] + arguments.get("num_energy_layers", 0), arguments["hidden_size"]
    noise, in_blocks = arguments["conditioning_size"], 12 * layers * width * width
    parameters = in_blocks + noise * (6 * layers * width + noise) + 2 * arguments["vocab_size"] * width
    limits.require("network", "layers", layers, limits.LAYERS)
    limits.require("network", "max_length", arguments["max_length"], limits.LENGTH)
    limits.require("network", "parameters", parameters, limits.PARAMETERS)


def require_dropout(dropout: Any) -> None:
    """Raise ValueError for what is no probability below 1."""
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout!r} must be a number of at least 0 and below 1")


def _require_block_size(arguments: Mapping[str, Any]) -> None:
    size = arguments.get("block_size")
    if size is not None and (type(size) is not int or size < 1):
        raise ValueError(f"block_size = {size!r} must be a whole number of at least 1, or null")
    if size is not None and arguments.get("causal"):
        raise ValueError(f"block_size = {size} needs causal = false: a block is read in both directions")


def checked_id(pad_id: int | None, vocab_size: int) -> int | None:
    """Return a pad's id, or None as it is. Raises ValueError for an id outside of the vocabulary."""
    if pad_id is not None and not 0 <= pad_id < vocab_size:
        raise ValueError(f"pad_id = {pad_id} is outside the network's vocabulary of {vocab_size}")
    return pad_id


def own_arguments(local: dict[str, Any]) -> dict[str, Any]:
    """Select the constructor's own arguments, from which a checkpoint rebuilds the network."""
    return {name: value for name, value in local.items() if name not in ("self", "__class__")}
