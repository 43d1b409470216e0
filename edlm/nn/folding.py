"""Folding of a constant conditioning into the weights: the same function with fewer operations."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer

N = TypeVar("N", Transformer, EnergyNetwork, JointNetwork)


@torch.no_grad()
def fold_conditioning(network: N) -> N:
    """Fold the adaLN of a network at sigma = 0 into its weights: the same function, fewer operations.

    For networks that get no noise level. A shift and a scale become LayerNorm's bias and weight. A gate becomes part of
    the linear layer before it. A network without conditioning is returned as it is.
    """
    trunk = network.trunk
    if trunk.noise_embedding is None or trunk.modulation is None:
        return network
    like = next(network.parameters())
    folded = type(network)(**{**network.arguments, "conditioning_size": 0, "norm_bias": True}).to(like)
    folded.load_state_dict({**_norm_biases(folded), **_unmodulated(network)})
    folded.train(network.training)
    conditioning = trunk.noise_embedding(like.new_zeros(1))
    for block, target in zip(trunk.blocks, folded.trunk.blocks, strict=True):
        _fold_block(block, target, conditioning)
    _shift_and_scale(folded.trunk.norm, *trunk.modulation(conditioning))
    return folded


def _fold_block(block: Any, target: Any, conditioning: Tensor) -> None:
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = block.modulation(conditioning)
    _shift_and_scale(target.norm_1, shift_1, scale_1)
    _shift_and_scale(target.norm_2, shift_2, scale_2)
    target.attention.out.weight.mul_(gate_1.flatten().unsqueeze(-1))
    target.down.weight.mul_(gate_2.flatten().unsqueeze(-1))
    target.down.bias.mul_(gate_2.flatten())


def _unmodulated(network: nn.Module) -> dict[str, Tensor]:
    """Collect every weight but those that make the conditioning."""
    return {k: v for k, v in network.state_dict().items() if "modulation" not in k and "noise_embedding" not in k}


def _norm_biases(network: nn.Module) -> dict[str, Tensor]:
    norms = (f"{name}.bias" for name, module in network.named_modules() if isinstance(module, nn.LayerNorm))
    return {name: torch.zeros_like(network.get_parameter(name)) for name in norms}


def _shift_and_scale(norm: nn.LayerNorm, shift: Tensor, scale: Tensor) -> None:
    norm.weight.mul_(1 + scale.flatten())
    norm.bias.mul_(1 + scale.flatten()).add_(shift.flatten())
