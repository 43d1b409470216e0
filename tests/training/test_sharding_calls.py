"""How weights are cut among processes, by what FSDP2 is asked; no process is started for it."""

from typing import Any

import pytest
import torch
from builders import tiny_network
from torch import nn

from edlm.nn import networks
from edlm.training import sharding
from edlm.training.sharding import PURE, Weights


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("parallel", ["data", "sharded"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", PURE])
def test_only_several_processes_cut_and_only_where_it_is_asked(
    world: int, parallel: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[Any] = []
    monkeypatch.setattr(sharding.processes, "world", lambda: world)
    monkeypatch.setattr(sharding, "_shard", lambda *given: cut.append(given))
    network = nn.Linear(3, 2)
    network.arguments = {}  # type: ignore[assignment]
    weights = Weights(network, parallel, precision)
    sharded = world == 2 and parallel == "sharded"
    assert (weights.is_sharded, cut) == (sharded, [(network, precision == PURE)] if sharded else [])
    rounded = precision == PURE and not sharded
    assert network.weight.dtype == (torch.bfloat16 if rounded else torch.float32)
    assert (weights.masters[0] is network.weight) is not rounded
    assert all(each.dtype == torch.float32 for each in weights.masters)


class Cut:
    """What FSDP2 makes of a module, which keeps what it is told."""

    def __init__(self, told: list[Any]) -> None:
        self.told = told

    def set_gradient_divide_factor(self, factor: float) -> None:
        self.told.append(factor)

    def set_force_sum_reduction_for_comms(self, enable: bool) -> None:
        self.told.append(enable)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("read", [True, False])
def test_blocks_are_put_together_when_they_run_and_the_others_for_a_step(
    rounded: bool, read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    told: list[Any] = []
    named: list[Any] = []

    def cut(module: nn.Module, mesh: Any, mp_policy: Any, reshard_after_forward: bool) -> Cut:
        asked.append((module, mesh, reshard_after_forward))
        types = (torch.bfloat16, torch.float32) if rounded else (None, None)
        assert (mp_policy.param_dtype, mp_policy.reduce_dtype, mp_policy.cast_forward_inputs) == (*types, False)
        return Cut(told)

    monkeypatch.setattr(sharding.processes, "world", lambda: 2)
    monkeypatch.setattr(sharding, "init_device_mesh", lambda *given: given)
    monkeypatch.setattr(sharding, "fully_shard", cut)
    monkeypatch.setattr(sharding, "register_fsdp_forward_method", lambda *given: named.append(given))
    network = tiny_network()
    if read:  # of a network that is trained by this name too
        network.per_position = network.forward
    sharding._shard(network, rounded)
    mesh = ("cpu", (2,))
    assert asked == [*((block, mesh, True) for block in networks.blocks(network)), (network, mesh, False)]
    assert told == [1.0, True] * len(asked)
    assert named == ([(network, "per_position")] if read else [])


def test_what_no_process_holds_a_part_of_is_left_as_it_is() -> None:
    value, like = torch.arange(3.0), torch.zeros(3)
    assert sharding._whole(value) is value
    assert sharding._whole(2.5) == 2.5
    assert sharding._saved(value) is value
    assert sharding._part_of(value, like) is value
    (local,) = sharding._local([nn.Parameter(value)])
    assert (local.requires_grad, local.data_ptr()) == (False, value.data_ptr())
    nested = sharding._nested(lambda each: (each,), {"a": [1, (2, {"b": 3})], "c": 4})
    assert nested == {"a": [(1,), [(2,), {"b": (3,)}]], "c": (4,)}
