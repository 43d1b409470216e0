"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on a network, and decoders in torchtune's names.

The layers are torchtune's, which are imported when an adapter is asked for, but for those of GPT-2's products.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edlm.nn.decoders import EmbeddingWithMask
from edlm.process import arguments

_NAMES = {"embedding.weight": "tok_embeddings.weight", "head.weight": "output.weight"}  # torchtune's for ours
_TRANSPOSED = "transformers.pytorch_utils.Conv1D"


class TransposedLoRA(nn.Module):
    """A product x W + b whose weight W is (in, out), as GPT-2 has them, and beside it `alpha / rank B A`."""

    def __init__(self, product: Any, rank: int, alpha: float) -> None:
        super().__init__()
        self.weight, self.bias = product.weight, product.bias
        self.rank, self.alpha = rank, alpha
        wide, out = product.weight.shape
        self.lora_a = nn.Linear(wide, rank, bias=False).to(product.weight)
        self.lora_b = nn.Linear(rank, out, bias=False).to(product.weight)
        nn.init.kaiming_uniform_(self.lora_a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        update: Tensor = self.alpha / self.rank * self.lora_b(self.lora_a(x))
        return F.linear(x, self.weight.T, self.bias) + update


def add(network: Any, rank: int, alpha: float) -> None:
    """Freeze a network and put adapters on it, in place, as `attach` does. A mask's own row is trained too."""
    attach(network, rank, alpha)
    if isinstance(network.embedding, EmbeddingWithMask):
        network.embedding.mask.requires_grad_(True)


def attach(network: nn.Module, rank: int, alpha: float) -> None:
    """Freeze a network and put an adapter of `alpha / rank B A` on every product of its blocks, in place.

    B is zero at first, so the network computes what it did. A vocabulary head has none.
    Raises ValueError for a network without such products, a rank below 1, and an alpha that is not finite.
    """
    from torchtune.modules.peft import LoRALinear

    arguments.require_whole("rank", rank)
    if not math.isfinite(alpha):
        raise ValueError(f"alpha = {alpha} must be finite")
    network.requires_grad_(False)
    places = [(owner, name, child) for owner in network.modules() for name, child in owner.named_children()]
    if not any(type(child) is nn.Linear or _is_transposed(child) for _, _, child in places):
        raise ValueError("lora puts adapters on linear layers, and this model has none: give null")
    for owner, name, linear in places:
        if _is_transposed(linear):
            setattr(owner, name, TransposedLoRA(linear, rank, alpha))
        if type(linear) is nn.Linear:
            with torch.device("meta"):
                sizes = linear.in_features, linear.out_features
                adapted = LoRALinear(*sizes, rank, alpha, use_bias=linear.bias is not None)
            adapted.weight, adapted.bias = linear.weight, linear.bias
            adapted.to_empty(device=linear.weight.device)  # of the adapter alone
            adapted.initialize_parameters()
            setattr(owner, name, adapted.to(linear.weight.dtype))


def merged(network: Any) -> dict[str, Tensor]:
    """Give the weights of a network under torchtune's names: adapters added to what they adapt, the mask a row.

    Nothing of the network is changed. A head that is the embedding is not there; another one has a row for the mask,
    zeros, which no law of tokens reads.
    """
    found = {name: value.detach() for name, value in network.state_dict().items()}
    for prefix, adapted in _adapted(network).items():
        a, b = (found.pop(f"{prefix}.lora_{part}.weight") for part in "ab")
        product = (b @ a).T if isinstance(adapted, TransposedLoRA) else b @ a
        found[f"{prefix}.weight"] = found[f"{prefix}.weight"] + adapted.alpha / adapted.rank * product
    if network.head.weight is network.embedding.weight:
        del found["head.weight"]
    place = next((name for name, part in network.named_modules() if isinstance(part, EmbeddingWithMask)), None)
    if place is not None:
        mask = found.pop(f"{place}.mask")
        rows = {f"{place}.weight": mask, "head.weight": torch.zeros_like(mask)}
        found |= {name: torch.cat([found[name], row[None]]) for name, row in rows.items() if name in found}
    return {_NAMES.get(name, name): value for name, value in found.items()}


def trained(network: nn.Module, averaged: nn.Module) -> Mapping[str, Tensor]:
    """Give the weights of an average by name that are trained in the network that it is of."""
    wanted = {name for name, value in network.named_parameters() if value.requires_grad}
    return {name: value for name, value in averaged.named_parameters() if name in wanted}


def _is_transposed(module: nn.Module) -> bool:
    """Whether a module is a product of the form of GPT-2's, known by its name: `transformers` is not imported here."""
    return f"{type(module).__module__}.{type(module).__qualname__}" == _TRANSPOSED


def _adapted(network: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in network.named_modules() if hasattr(module, "lora_a")}
