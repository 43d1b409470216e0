"""Networks of one's own: any module that keeps the laws of a network, saved under the name that a config calls it by.

A folder is data. So a name in it is executed only if the user names it too: in `components` of a config, or in the
environment.
"""

import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from edlm.nn.trunk_energy import TrunkEnergy
from edlm.runs.environment import COMPONENTS
from edlm.weights import permitted

_TRIED = 3  # tokens of a text by which a network is tried


def adopt(network: nn.Module, section: Mapping[str, Any], supplied: Mapping[str, Any]) -> nn.Module:
    """Wrap the module that a config's component has built, with the name and arguments to build it again.

    A network of the library is returned as it is. Raises ValueError, naming the component, for what is no network.
    """
    if is_ours(network):
        return network
    path = section[permitted.COMPONENT]
    try:
        _require_laws(network, supplied["vocab_size"], supplied["max_length"])
    except Exception as error:  # a module of the user's own raises what it likes
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"network: {path}: {' '.join(reason.split())}") from error
    own: Any = network
    own.component = str(path)
    own.arguments = {**{key: value for key, value in section.items() if key != permitted.COMPONENT}, **supplied}
    return network


def is_ours(network: nn.Module) -> bool:
    """Check whether a network is of a class of the library."""
    return permitted.NETWORKS.get(type(network).__name__) is type(network)


def name_of(network: nn.Module) -> str:
    """Name what builds a network again, for a folder. Raises ValueError for one that no config has named."""
    if is_ours(network):
        return type(network).__name__
    named: str | None = getattr(network, "component", None)
    if named is None:
        known = ", ".join(permitted.NETWORKS)
        raise ValueError(f"only a {known} is saved, or what a config names, and this is a {type(network).__name__}")
    return named


def builder(network: Any) -> Callable[[], nn.Module]:
    """Give what builds such a network anew, with weights of its own."""
    named: str | None = getattr(network, "component", None)
    factory: Any = type(network) if named is None else pkgutil.resolve_name(named)
    return partial(factory, **network.arguments)


def find(name: Any, where: str, components: Sequence[str] = ()) -> Callable[..., nn.Module]:
    """Find the builder that a folder names: a class of the library, or a component that the user names too.

    Raises ValueError, naming `where`, for any other, which is not imported, and for one that cannot be found.
    """
    if isinstance(name, str) and name in permitted.NETWORKS:
        return permitted.NETWORKS[name]
    if name == TrunkEnergy.__name__:
        raise ValueError(f"{where}: an energy over the network of its denoiser: name both, denoiser= and energy=")
    known = ", ".join(permitted.NETWORKS)
    if not isinstance(name, str) or name not in {*components, *os.environ.get(COMPONENTS, "").split(",")} - {""}:
        unnamed = f"and is not executed unless you name it: components=[{name}]"
        raise ValueError(f"{where}: class {name!r} is not one of {known}, {unnamed}")
    try:
        found: Any = pkgutil.resolve_name(name)
    except Exception as error:  # a module of the user's own raises what it likes
        raise ValueError(f"{where}: class {name!r} cannot be imported ({error})") from error
    if not callable(found):
        raise ValueError(f"{where}: class {name!r} cannot be called")
    return found


@torch.no_grad()
def _require_laws(module: nn.Module, vocab_size: int, length: int) -> None:
    """Raise ValueError for a module that is not read as a `contracts.Network` is."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"makes a {type(module).__name__}, which is no module")
    network: Any = module
    for name, wanted in (("head", "a `blocks.Head`"), ("max_length", "the longest text that it reads")):
        if not hasattr(network, name):
            raise ValueError(f"has no {name}: {wanted}")
    if int(network.max_length) < length:
        raise ValueError(f"max_length = {network.max_length} must be at least {length}")
    if getattr(network.head, "out_features", None) != vocab_size:
        raise ValueError(f"head.out_features must be the vocabulary's {vocab_size}")
    training = network.training
    network.eval()
    tokens = (torch.arange(2 * min(_TRIED, length)) % vocab_size).view(2, -1)
    places = torch.tensor([0, tokens.numel() - 1])
    states, sigma = network(tokens), torch.zeros(2)
    if states.ndim != 3 or states.shape[:2] != tokens.shape:
        raise ValueError(f"gives states of shape {tuple(states.shape)} for tokens of shape {tuple(tokens.shape)}")
    if not torch.allclose(network(tokens, None, places), states.flatten(0, 1)[places], atol=1e-4):
        raise ValueError("gives other states at flat positions than for whole texts")
    network(tokens, sigma, places)
    logits = network.head(states)
    if not torch.allclose(network.head(states, slice(1, 3)), logits[..., 1:3], atol=1e-4):
        raise ValueError("its head gives other logits for some columns than for all")
    network.train(training)
