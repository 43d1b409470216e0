"""No training step makes a tensor over all positions and the vocabulary, at the size of GPT-2's: seen op by op."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictSequential
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edlm.benchmark import textbook_training
from edlm.contracts import LOSS
from edlm.models import denoisers, energies
from edlm.nn import head
from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer
from edlm.objectives import batches, contrastive, transition
from edlm.objectives import denoising as denoising_objectives
from edlm.objectives import joint as joint_objectives
from edlm.process import schedules

B, L, V = 6, 128, 50_258
SIZES = {"hidden_size": 4, "num_layers": 1, "num_heads": 1}
TILE = head._LOGITS_AT_ONCE["cpu"]
assert B * L * V // 2 > 2 * TILE, "half of all positions are more rows than a tile has: without tiles it would be seen"


class Largest(TorchDispatchMode):
    """The most elements of any floating tensor that an operation gives, and which operation that was."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.operation = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel() > self.elements:
                self.elements, self.operation = tensor.numel(), str(func)
        return out


def network(**changed: Any) -> Transformer:
    return Transformer(V, L, **{**SIZES, "conditioning_size": 2, **changed})


def denoising() -> TensorDictSequential:
    return denoising_objectives.denoising(denoisers.subs(network(), V - 1), schedules.log_linear())


def drafts() -> TensorDictSequential:
    energy = energies.learned(EnergyNetwork(V, L, **SIZES, conditioning_size=2))
    return contrastive.contrastive(denoisers.subs(network(), V - 1), energy, schedules.log_linear(), num_negatives=2)


def transitions() -> TensorDictSequential:
    energy = energies.learned_transition(EnergyNetwork(V, L, **SIZES, conditioning_size=2))
    return transition.contrastive(denoisers.subs(network(), V - 1), energy, schedules.log_linear(), (1, 2), 2)


def both() -> TensorDictSequential:
    denoiser = denoisers.subs(JointNetwork(V, L, **SIZES, conditioning_size=2), V - 1)
    return joint_objectives.contrastive(denoiser, schedules.log_linear(), (2, 4), 2)


def next_token() -> TensorDictSequential:
    return denoising_objectives.next_token(network(causal=True, conditioning_size=0), V - 1, bos_id=0)


def largest_of_step(loss: Callable[[], Tensor]) -> Largest:
    with Largest() as seen:
        loss().backward()
    return seen


@pytest.mark.parametrize(
    ("stages", "autocast"),
    [(denoising, False), (denoising, True), (drafts, False), (transitions, False), (both, False), (next_token, False)],
)
def test_no_tensor_of_a_training_step_is_larger_than_a_tile_of_logits(
    stages: Callable[[], TensorDictSequential], autocast: bool
) -> None:
    """Forward and backward: neither `(b, l, v)`, nor all masked rows of it, nor one per candidate."""
    torch.manual_seed(0)
    pipeline, x_0 = stages().train(), torch.randint(V - 1, (B, L))

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return pipeline(batches.training_batch(x_0, 0, torch.arange(B), 0, B))[LOSS].sum()

    seen = largest_of_step(loss)
    assert seen.elements <= TILE, seen.operation


def test_a_step_that_makes_all_logits_is_seen() -> None:
    """The textbook's, of a third of the rows, with the same eyes."""
    own, x_0, t = network(), torch.zeros(B // 3, L, dtype=torch.int64), torch.full((B // 3,), 0.5)
    x_t = x_0.index_fill(1, torch.arange(0, L, 2), V - 1)
    seen = largest_of_step(lambda: textbook_training.denoising(own, x_0, x_t, t, V - 1).sum())
    assert seen.elements == x_0.numel() * V > TILE
