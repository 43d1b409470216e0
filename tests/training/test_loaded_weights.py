"""Weights that were saved are taken up by all who hold a copy: the optimiser, the network and the average."""

import pytest
import torch
from torch import Tensor, nn

from edlm.training.sharding import PURE, Weights


def network() -> nn.Sequential:
    """One layer that is trained, and one that is not."""
    torch.manual_seed(0)
    found = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    found[1].requires_grad_(False)
    return found


def drawn(shapes: dict[str, torch.Size], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16", PURE])
def test_what_was_saved_is_in_the_masters_the_average_and_the_network(precision: str) -> None:
    own = network()
    weights = Weights(own, "data", precision)
    shapes = weights.shapes()
    assert shapes == {"0.weight": torch.Size([3, 2]), "0.bias": torch.Size([3])}
    assert weights.frozen() == {"1.weight", "1.bias"}
    masters, means = drawn(shapes, 1), drawn(shapes, 2)
    weights.load(masters, means, 7)
    assert weights.count == 7
    dtype = torch.bfloat16 if precision == PURE else torch.float32
    computed = {name: value for name, value in own.named_parameters() if value.requires_grad}
    for name, value in masters.items():
        assert torch.equal(weights.state()[name], value), name  # type: ignore[arg-type]
        assert torch.equal(computed[name], value.to(dtype)), name
        assert torch.equal(weights.average_state()[name], means[name]), name
    assert weights.average_state().keys() == dict(own.named_parameters()).keys()
    average = dict(weights.average.named_parameters())
    assert all(torch.equal(average[name], means[name]) for name in means)
    assert not any(each.requires_grad for each in average.values())
    assert weights.average.training is False


@pytest.mark.parametrize("precision", ["float32", PURE])
def test_a_step_reaches_the_network_and_the_average(precision: str) -> None:
    own = network()
    weights = Weights(own, "data", precision)
    masters, means = drawn(weights.shapes(), 1), drawn(weights.shapes(), 2)
    weights.load(masters, means, 2)
    with torch.no_grad():
        for master in weights.masters:
            master.add_(1.0)
    weights.stepped(0.9)
    dtype = torch.bfloat16 if precision == PURE else torch.float32
    kept = (1 + 2) / (10 + 2)
    for name, value in masters.items():
        assert torch.equal(dict(own.named_parameters())[name], (value + 1.0).to(dtype))
        torch.testing.assert_close(weights.average_state()[name], kept * means[name] + (1 - kept) * (value + 1.0))
    assert weights.count == 3


def test_weights_and_averages_that_are_not_finite_are_seen() -> None:
    for place in (0, 1):
        weights = Weights(network(), "data", "float32")
        assert weights.finite()
        weights.masters[place].data.view(-1)[-1] = torch.inf
        assert not weights.finite()
        average = Weights(network(), "data", "float32")
        average._averages[place].view(-1)[0] = torch.nan
        assert not average.finite()


def test_groups_are_neighbours_of_one_kind_in_the_order_of_the_weights() -> None:
    weights = Weights(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), "data", "float32")
    a, b, c, d = weights.masters
    found = weights.grouped(lambda name: name.endswith("bias"))
    expected = [(False, [a]), (True, [b]), (False, [c]), (True, [d])]
    assert [(kind, list(map(id, some))) for kind, some in found] == [(kind, list(map(id, s))) for kind, s in expected]
    assert [(kind, len(some)) for kind, some in weights.grouped(lambda name: name[0])] == [("0", 2), ("1", 2)]
