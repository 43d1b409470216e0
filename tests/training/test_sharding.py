"""What the optimiser steps: float32 masters and their average; blocks that compute again, and compiled ones."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_resume import CHARACTERS, train
from together import together
from torch import Tensor, nn

from edlm.models import denoisers, energies
from edlm.nn import networks
from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer
from edlm.objectives import batches, contrastive, denoising
from edlm.objectives import joint as joint_objectives
from edlm.process import schedules
from edlm.samplers import execution
from edlm.training.sharding import PURE, Weights
from edlm.weights import checkpoints

SIZES = {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "conditioning_size": 4}


def small(dropout: float = 0.0) -> Transformer:
    torch.manual_seed(0)
    network = Transformer(3, 6, **SIZES, dropout=dropout)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def gradients(network: nn.Module, rows: int = 3) -> list[Tensor]:
    network.train()
    torch.manual_seed(1)
    tokens = torch.arange(rows * 6).view(rows, 6) % 3
    network.head(network(tokens)).square().mean().backward()
    return [parameter.grad for parameter in network.parameters()]


def small_joint(dropout: float = 0.0) -> JointNetwork:
    torch.manual_seed(0)
    network = JointNetwork(3, 6, **SIZES, dropout=dropout)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def joint_gradients(network: JointNetwork, rows: int = 3) -> list[Tensor]:
    """Of the loss that a joint network is trained by, its own draws included."""
    stages = joint_objectives.contrastive(denoisers.subs(network, CHARACTERS.mask_id), schedules.log_linear(), (2, 4))
    x_0 = torch.arange(rows * 6).view(rows, 6) % 2
    torch.manual_seed(1)
    network.zero_grad()
    stages.train()(batches.training_batch(x_0, 0, torch.arange(rows), 0, rows))["loss"].sum().backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def test_recomputed_gradients_of_a_joint_network_are_the_same_in_both_trunks() -> None:
    """With dropout, which is off in the draws and on again before anything is computed twice."""
    once, again = small_joint(dropout=0.5), small_joint(dropout=0.5)
    runs: list[str] = []
    for name in ("trunk", "energy_trunk"):
        down = getattr(again, name).blocks[0].down
        down.register_forward_hook(lambda *_, name=name: runs.append(name) if torch.is_grad_enabled() else None)
    networks.recompute(again)
    wanted, found = joint_gradients(once), joint_gradients(again)
    assert sorted(runs) == ["energy_trunk", "energy_trunk", "trunk", "trunk"]
    assert len(wanted) == len(found)
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))


def test_recomputed_gradients_are_the_same_bit_for_bit() -> None:
    """With dropout: the second run of a block draws what the first one drew."""
    once, again = small(dropout=0.5), small(dropout=0.5)
    runs: list[int] = []
    again.trunk.blocks[0].down.register_forward_hook(lambda *_: runs.append(1))
    networks.recompute(again)
    wanted, found = gradients(once), gradients(again)
    assert len(runs) == 2, "the block has run twice"
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))
    assert list(again.state_dict()) == list(once.state_dict())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own read
def test_compiled_blocks_have_the_same_gradients_for_any_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, and run by torch's own operations; recomputed as well, as a large network would be.

    With `fullgraph` torch raises where nothing at all is compiled.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    plain, compiled = small(), small()
    execution.compile_blocks(compiled)
    networks.recompute(compiled)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for rows in (3, 2):
        for one, other in zip(gradients(plain, rows), gradients(compiled, rows), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own read
def test_a_compiled_joint_network_has_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both trunks, with and without gradients: with `fullgraph` more graphs than torch keeps are an error."""
    compiled: list[object] = []

    def traced(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        compiled.append(function)
        return compile_(function, backend="eager", fullgraph=True)

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    plain, other = small_joint(), small_joint()
    execution.compile_blocks(other)
    networks.recompute(other)
    assert {method.__self__ for method in compiled} == {*other.trunk.blocks, *other.energy_trunk.blocks}
    for rows in (5, 4, 3):
        for one, found in zip(joint_gradients(plain, rows), joint_gradients(other, rows), strict=True):
            torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-6)


@given(st.lists(st.floats(-2.0, 2.0, width=32), min_size=1, max_size=12), st.floats(0.0, 0.999))
def test_the_average_is_the_written_out_one(values: list[float], decay: float) -> None:
    weights = Weights(small(), "data", "float32")
    wanted = values[0]
    for n, value in enumerate(values):
        for master in weights.masters:
            master.data.fill_(value)
        weights.stepped(decay)
        kept = min(decay, (1 + n) / (10 + n)) if n else 0.0
        wanted = kept * wanted + (1 - kept) * value
    for mean in weights.average.parameters():
        torch.testing.assert_close(mean, torch.full_like(mean, wanted), rtol=1e-5, atol=1e-5)


def test_pure_bfloat16_keeps_steps_that_bfloat16_cannot_see() -> None:
    """A thousand steps of 1e-4 from 1, where neighbours in bfloat16 are 4e-3 apart or more."""
    network = small()
    with torch.no_grad():
        network.head.bias.fill_(1.0)
    weights = Weights(network, "data", PURE)
    optimizer = torch.optim.SGD(iter(weights.masters), lr=1e-4)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    for _ in range(100):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        weights.collect_gradients()
        assert weights.masters[0].grad is not None
        assert weights.masters[0].grad.dtype == torch.float32
        optimizer.step()
        weights.stepped(0.9)
    torch.testing.assert_close(weights.state()["head.bias"], torch.full((3,), 0.99), rtol=0.0, atol=1e-5)
    torch.testing.assert_close(network.head.bias.float(), torch.full((3,), 0.99), rtol=0.0, atol=4e-3)
    assert {value.dtype for value in weights.average_state().values()} == {torch.float32}


def losses(precision: str) -> list[float]:
    """Of a denoiser and of an energy, on one batch."""
    network, schedule = small(), schedules.log_linear()
    energy_network = EnergyNetwork(3, 6, **SIZES)
    torch.manual_seed(2)
    nn.init.normal_(energy_network.scalar.weight)
    denoiser = denoisers.subs(network, CHARACTERS.mask_id)
    pipelines = (
        denoising.denoising(denoiser, schedule),
        contrastive.contrastive(denoiser, energies.learned(energy_network), schedule),
    )
    for each in (network, energy_network):
        Weights(each, "data", precision)
    x_0 = torch.tensor([[0, 1, 0, 1, 1, 0]] * 4)
    found = []
    for stages in pipelines:
        loss = stages(batches.training_batch(x_0, 0, torch.arange(4), 0, 4))["loss"]
        assert loss.dtype in (torch.float32, torch.float64), "what is summed over rows is not rounded"
        loss.sum().backward()
        found.append(float(loss.detach().mean()))
    return found


def test_losses_in_pure_bfloat16_are_those_of_float32_but_for_rounding() -> None:
    torch.testing.assert_close(losses(PURE), losses("float32"), rtol=0.03, atol=0.0)


@pytest.mark.slow
def test_a_checkpoint_of_pure_bfloat16_is_float32_and_interchanges(tmp_path: Path) -> None:
    """Sharded, FSDP2 makes the rounded copy; the rounding of its sums differs."""
    train(tmp_path / "single", precision=PURE, steps=3)
    together(lambda: train(tmp_path / "both", precision=PURE, parallel="sharded", steps=2), 2, tmp_path)
    train(tmp_path / "both", precision=PURE, steps=3)
    one, other = (checkpoints.load_state(checkpoints.find_network(tmp_path / name)) for name in ("single", "both"))
    for name, value in one["network"].items():
        assert value.dtype == torch.float32
        assert other["network"][name].shape == value.shape
    assert one["step"] == other["step"] == 3
