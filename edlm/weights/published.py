"""Weights of the published MDLM and EDLM networks: their parameter names and ours, in both directions.

A published state dict is a plain dict of tensors under the names of one network (`vocab_embed.embedding`,
`blocks.0.attn_qkv.weight`, ...); a prefix such as `backbone.` has to be taken off first. Every size but the number of
heads and the longest sequence is read off the shapes.
"""

import re
from collections.abc import Mapping
from functools import reduce
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from edlm.nn.networks import EnergyNetwork, Transformer
from edlm.process import finite

N = TypeVar("N", Transformer, EnergyNetwork)
Kind = Literal["denoiser", "autoregressive", "energy"]

_EMBEDDING = "vocab_embed.embedding"  # a bare parameter there, a module here
_CONDITIONING = "sigma_map.mlp.0.weight"
_SCALAR = "energy_head.0.weight"
_FREQUENCIES = "rotary_emb.inv_freq"  # a buffer there, computed from the head's size here

# Module names of ours to theirs, inside block i and elsewhere, in the order in which theirs list their parameters.
_IN_BLOCK = {
    "norm_1": "norm1",
    "attention.qkv": "attn_qkv",
    "attention.out": "attn_out",
    "norm_2": "norm2",
    "up": "mlp.0",
    "down": "mlp.2",
    "modulation.linear": "adaLN_modulation",
}
_ELSEWHERE = {
    "trunk.noise_embedding.expand": "sigma_map.mlp.0",
    "trunk.noise_embedding.project": "sigma_map.mlp.2",
    "trunk.norm": "output_layer.norm_final",
    "head": "output_layer.linear",  # h -> v
    "project": "output_layer.linear",  # h -> h, in the energy only
    "trunk.modulation.linear": "output_layer.adaLN_modulation",
    "combine": "vocab_proj",
    "hidden": "energy_head.0",
    "scalar": "energy_head.2",
}


def kind_of(state: Mapping[str, Tensor]) -> Kind:
    """What a published state dict is, told by a name that only this kind has."""
    if _SCALAR in state:
        return "energy"
    return "denoiser" if _CONDITIONING in state else "autoregressive"


def load(
    state: Mapping[str, Tensor], num_heads: int, max_length: int = 1024, dropout: float = 0.0
) -> Transformer | EnergyNetwork:
    """Build the network of a published state dict of any kind; see `load_denoiser`."""
    kind = kind_of(state)
    if kind == "energy":
        return load_energy(state, num_heads, max_length, dropout)
    return (load_denoiser if kind == "denoiser" else load_autoregressive)(state, num_heads, max_length, dropout)


def load_denoiser(
    state: Mapping[str, Tensor], num_heads: int, max_length: int = 1024, dropout: float = 0.0
) -> Transformer:
    """Build the bidirectional, noise-conditioned network of a published denoiser, in eval mode.

    It has the widest of the types of its weights, in which each weight is exact. Raises ValueError naming each
    parameter that is missing, unknown, of another shape or not of finite floats, and for rotary frequencies that are
    not those of the heads.
    """
    sizes = _sizes(state, num_heads, max_length, dropout)
    return _filled(Transformer(**sizes, conditioning_size=_size(state, _CONDITIONING, 0)), state)


def load_autoregressive(
    state: Mapping[str, Tensor], num_heads: int, max_length: int = 1024, dropout: float = 0.0
) -> Transformer:
    """Build the causal network of a published autoregressive model, which knows no noise level; see `load_denoiser`."""
    sizes = _sizes(state, num_heads, max_length, dropout)
    return _filled(Transformer(**sizes, conditioning_size=0, causal=True), state)


def load_energy(
    state: Mapping[str, Tensor], num_heads: int, max_length: int = 1024, dropout: float = 0.0
) -> EnergyNetwork:
    """Build the scalar network of a published bidirectional energy, low = likely as here; see `load_denoiser`."""
    sizes = _sizes(state, num_heads, max_length, dropout)
    return _filled(EnergyNetwork(**sizes, conditioning_size=_size(state, _CONDITIONING, 0)), state)


def export(network: Transformer | EnergyNetwork) -> dict[str, Tensor]:
    """Copy a network's weights under their published names, rotary frequencies included: the way back of `load_*`."""
    state = {_published_name(name): value.detach().clone() for name, value in network.state_dict().items()}
    return {**state, _FREQUENCIES: _frequencies(network.trunk.head_size)}


def parameter_order(network: Transformer | EnergyNetwork) -> list[str]:
    """Published names of a network's parameters in the order of the published module's `parameters()`.

    It is the order of the list in which the published training code keeps its averaged weights.
    """
    return sorted(map(_published_name, network.state_dict()), key=_rank)


def num_heads_of(state: Mapping[str, Tensor]) -> int | None:
    """The number of heads as the rotary frequencies tell it, None where the state dict lacks them."""
    if _FREQUENCIES not in state or not state[_FREQUENCIES].numel():
        return None
    return _size(state, _EMBEDDING, 1) // (2 * state[_FREQUENCIES].numel())


def _sizes(state: Mapping[str, Tensor], num_heads: int, max_length: int, dropout: float) -> dict[str, Any]:
    """Arguments that the three networks share."""
    hidden_size = _size(state, _EMBEDDING, 1)
    if num_heads < 1 or hidden_size % (2 * num_heads):
        raise ValueError(f"num_heads = {num_heads} does not fit: twice it must divide the hidden size {hidden_size}")
    return {
        "vocab_size": _size(state, _EMBEDDING, 0),
        "max_length": max_length,
        "hidden_size": hidden_size,
        "num_layers": len({match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}),
        "num_heads": num_heads,
        "dropout": dropout,
    }


def _size(state: Mapping[str, Tensor], name: str, axis: int) -> int:
    if name not in state:
        raise ValueError(f"published weights: {name} is missing")
    if state[name].ndim != 2:
        raise ValueError(f"published weights: {name} has shape {tuple(state[name].shape)}, not two dimensions")
    return state[name].shape[axis]


def _filled(network: N, state: Mapping[str, Tensor]) -> N:
    """Load the weights, after a check of every name and shape."""
    ours = {_published_name(name): name for name in network.state_dict()}
    shapes = {_published_name(name): value.shape for name, value in network.state_dict().items()}
    given = {name: value for name, value in state.items() if name != _FREQUENCIES}
    problems = [f"{name} is missing" for name in shapes.keys() - given.keys()]
    problems += [f"{name} is not known" for name in given.keys() - shapes.keys()]
    problems += [
        f"{name} has shape {tuple(given[name].shape)}, not {tuple(shapes[name])}"
        for name in shapes.keys() & given.keys()
        if given[name].shape != shapes[name]
    ]
    if problems:
        raise ValueError(f"published weights: {'; '.join(sorted(problems)[:20])}")
    finite.require_weights(state, "published weights")
    if _FREQUENCIES in state:
        _check_frequencies(state[_FREQUENCIES], network.trunk.head_size)
    widest = reduce(torch.promote_types, (value.dtype for value in given.values()))  # in which each is exact
    network.to(widest).load_state_dict({ours[name]: value for name, value in given.items()})
    return network.eval()


def _published_name(name: str) -> str:
    """`trunk.blocks.3.up.weight` to `blocks.3.mlp.0.weight`, and so on for every parameter."""
    if name == "embedding.weight":
        return _EMBEDDING
    module, kind = name.rsplit(".", 1)
    if match := re.fullmatch(r"trunk\.blocks\.(\d+)\.(.+)", module):
        return f"blocks.{match[1]}.{_IN_BLOCK[match[2]]}.{kind}"
    return f"{_ELSEWHERE[module]}.{kind}"


def _rank(name: str) -> tuple[int, int, int, bool]:
    """Where a published parameter stands: embedding, noise level, blocks one after the other, the rest."""
    if name == _EMBEDDING:
        return (0, 0, 0, False)
    module, kind = name.rsplit(".", 1)
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", module):
        return (2, int(match[1]), list(_IN_BLOCK.values()).index(match[2]), kind == "bias")
    return (1 if module.startswith("sigma_map") else 3, 0, list(_ELSEWHERE.values()).index(module), kind == "bias")


def _frequencies(head_size: int) -> Tensor:
    """Rotary frequencies `10000^(-2i / d)`: float32 (d / 2,)."""
    return 1.0 / 10_000 ** (torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)


def _check_frequencies(given: Tensor, head_size: int) -> None:
    expected = _frequencies(head_size)
    fits = given.shape == expected.shape
    # bf16 checkpoints round the buffer too, hence the loose bound; another base or head size misses it by far.
    if not fits or not torch.allclose(given.float().cpu(), expected, rtol=1e-2, atol=0.0):
        raise ValueError(
            f"published weights: {_FREQUENCIES} of shape {tuple(given.shape)} is not that of heads of size {head_size}"
        )
