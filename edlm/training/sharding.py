"""The weights of a run: what the optimiser steps, what the network computes with, and their exponential average.

They are one list of tensors, held whole by every process or, sharded, in parts (FSDP2). What is saved is always whole
and float32, so a checkpoint says nothing of the processes that wrote it.
"""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from edlm.nn import networks
from edlm.runs import processes
from edlm.weights import own

# By which training runs a network, beside forward; what reads the results of a pass needs a network kept whole.
_PASS = "per_position"

PURE = "pure_bfloat16"
K = TypeVar("K")


class Weights:
    """The weights of one network that are trained; what is frozen is neither averaged nor saved.

    masters: float32, what the optimiser steps; the network's own parameters, but for pure bfloat16, where the network
    holds a rounded copy of them (sharded: FSDP2 makes that copy).
    """

    def __init__(self, network: nn.Module, parallel: str, precision: str) -> None:
        self.network, self.count = network, 0
        self._rounded = precision == PURE
        self.is_sharded = parallel == "sharded" and processes.world() > 1
        if self.is_sharded:
            self._build = own.builder(network)
            _shard(network, self._rounded)
            self._average: nn.Module | None = None
            self.masters = self._trained()
            self._averages: list[Tensor] = [each.detach().clone() for each in self.masters]
            return
        # What is not trained is its own average, and needs no second copy; rounded in place, it would not stay itself.
        frozen = {} if self._rounded else {id(each): each for each in network.parameters() if not each.requires_grad}
        self._average = copy.deepcopy(network, frozen).requires_grad_(False).eval()
        means = dict(self._average.named_parameters())
        self._averages = [means[name] for name in self._names()]
        self.masters = self._trained()
        if self._rounded:
            self.masters = [nn.Parameter(each.detach().clone()) for each in self.masters]
            network.to(torch.bfloat16)

    @property
    def average(self) -> nn.Module:
        """The network with its averaged weights, whole on every process; all processes have to ask for it at once."""
        if self._average is None:
            with torch.device("meta"):
                self._average = self._build()
            self._average.load_state_dict(self.average_state(), assign=True)
            self._average = self._average.requires_grad_(False).eval()
        return self._average

    def grouped(self, kind_of: Callable[[str], K]) -> list[tuple[K, list[Tensor]]]:
        """List the masters in order, neighbours of one kind together: an optimiser's groups keep their numbers."""
        kinds = map(kind_of, self._names())
        found = itertools.groupby(zip(kinds, self.masters, strict=True), key=lambda pair: pair[0])
        return [(kind, [master for _, master in pairs]) for kind, pairs in found]

    def collect_gradients(self) -> None:
        """Sum the gradients over the processes, in float32, for the optimiser to find."""
        if self._rounded and not self.is_sharded:
            for master, rounded in zip(self.masters, self._trained(), strict=True):
                master.grad = None if rounded.grad is None else rounded.grad.float()
                rounded.grad = None
        if not self.is_sharded:  # else the backward pass has done so
            processes.sum_gradients(self.masters)

    def clip(self, most: float) -> float:
        """Scale all gradients so that their common norm is at most `most`; returns what it was."""
        return float(_whole(nn.utils.clip_grad_norm_(self.masters, most)))

    @torch.no_grad()
    def stepped(self, decay: float) -> None:
        """Take over what the optimiser did: into the network, and into the average.

        The average's decay grows as (1 + n) / (10 + n) up to `decay`, so that a short run forgets its start.
        """
        if self._rounded and not self.is_sharded:
            torch._foreach_copy_(self._trained(), _local(self.masters))
        if self.is_sharded:
            self._average = None  # what was gathered is of the step before
        kept = min(decay, (1 + self.count) / (10 + self.count)) if self.count else 0.0
        torch._foreach_lerp_(_local(self._averages), _local(self.masters), 1.0 - kept)
        self.count += 1

    def finite(self) -> bool:
        """Check whether every weight that this process holds, and its average, is a finite number."""
        return all(bool(each.isfinite().all()) for each in (*_local(self.masters), *_local(self._averages)))

    def state(self) -> dict[str, Tensor | None]:
        """Give the masters by name, whole, for the first process to save; the others get None for each."""
        return {name: _saved(value) for name, value in zip(self._names(), self.masters, strict=True)}

    def average_state(self) -> dict[str, Tensor]:
        """Give the average by name, whole; what is frozen is its own average."""
        frozen = {name: each.detach() for name, each in self.network.named_parameters() if not each.requires_grad}
        own = zip(self._names(), self._averages, strict=True)
        return {name: _whole(value) for name, value in (*frozen.items(), *own)}

    def shapes(self) -> dict[str, torch.Size]:
        """Give the shapes of the weights by name."""
        return {name: master.shape for name, master in zip(self._names(), self.masters, strict=True)}

    @torch.no_grad()
    def load(self, masters: Mapping[str, Tensor], average: Mapping[str, Tensor], count: int) -> None:
        """Take up what was saved, by however many processes."""
        for name, master, mean in zip(self._names(), self.masters, self._averages, strict=True):
            master.copy_(_part_of(masters[name], master))
            mean.copy_(_part_of(average[name], mean))
        if self._rounded and not self.is_sharded:
            torch._foreach_copy_(self._trained(), _local(self.masters))
        self.count = count

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Give the state of an optimiser of the masters, as `state` is."""
        return _nested(_saved, optimizer.state_dict())

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Give an optimiser of the masters the state of one, each process its part."""
        parts = {
            index: {
                name: _part_of(value, self.masters[index])
                if isinstance(value, Tensor) and value.shape == self.masters[index].shape
                else value
                for name, value in own.items()
            }
            for index, own in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": parts})

    def frozen(self) -> set[str]:
        """Name the weights that are not trained."""
        return {name for name, each in self.network.named_parameters() if not each.requires_grad}

    def _names(self) -> list[str]:
        return [name for name, each in self.network.named_parameters() if each.requires_grad]

    def _trained(self) -> list[Tensor]:
        return [each for each in self.network.parameters() if each.requires_grad]


def _shard(network: nn.Module, rounded: bool) -> None:
    """Leave every process its part of each tensor; a block's are put together when it runs, the others for a step."""
    device = next(network.parameters()).device
    mesh = init_device_mesh(device.type, (processes.world(),))
    dtypes = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if rounded else {}
    # Noise levels stay float32: their sinusoids need it.
    policy = MixedPrecisionPolicy(**dtypes, cast_forward_inputs=False)
    for module in (*networks.blocks(network), network):
        # What reads a pass comes after it: the vocabulary head, the scalars of a joint network, new tokens in order.
        kept = module is network
        sharded: Any = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=not kept)
        sharded.set_gradient_divide_factor(1.0)  # the loss is divided by all rows already
        sharded.set_force_sum_reduction_for_comms(True)  # gloo can only sum
    if hasattr(network, _PASS):
        register_fsdp_forward_method(network, _PASS)


def _whole(value: Any) -> Any:
    """Put together a tensor of which every process holds a part; leave anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _saved(value: Any) -> Any:
    """Do the same for the first process alone, and out of the device's way."""
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()  # every process takes part
    return whole.cpu() if processes.is_first() else None


def _part_of(value: Tensor, like: Tensor) -> Tensor:
    """Cut out the part of a whole tensor that this process holds of another of its shape."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _local(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [each.to_local() if isinstance(each, DTensor) else each.detach() for each in tensors]


def _nested(function: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _nested(function, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nested(function, item) for item in value]
    return function(value)
