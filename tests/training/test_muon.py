"""Muon: orthogonal steps of hidden matrices, AdamW for the rest, and a run that resumes bit for bit."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from edlm.nn.networks import Transformer
from edlm.training import muon
from edlm.training.muon import Muon

SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "conditioning_size": 8}


def grouped(network: nn.Module) -> list[dict]:
    hidden = muon.hidden_matrices(network)
    named = dict(network.named_parameters())
    kinds = [(True, [named[n] for n in named if n in hidden]), (False, [named[n] for n in named if n not in hidden])]
    return [{"params": own, muon.HIDDEN: kind} for kind, own in kinds]


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
def test_singular_values_become_about_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = muon.orthogonalised(matrix).double()
    inner = u.T @ found @ v.T
    assert ((inner.diag() > 0.65) & (inner.diag() < 1.25)).all()
    assert (inner - torch.diag(inner.diag())).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(8, 9), (8, 16), (8, 32), (32, 8)])
@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-4, 1e-7, 0.0])
def test_the_iterations_by_the_square_are_those_of_the_matrix(shape: tuple[int, int], smallest: float) -> None:
    """Singular values down to nothing: what float32 loses of the square is at most a hundredth of a direction."""
    u, _, v = torch.linalg.svd(
        torch.randn(shape, generator=torch.Generator().manual_seed(2)).double(), full_matrices=False
    )
    matrix = u * torch.logspace(0, -1, 8, dtype=torch.float64).mul(torch.linspace(1.0, smallest, 8)) @ v
    wanted = matrix / matrix.norm()
    a, b, c = muon._COEFFICIENTS
    for _ in range(5):
        square = wanted @ wanted.T
        wanted = a * wanted + (b * square + c * square @ square) @ wanted
    torch.testing.assert_close(
        muon.orthogonalised(matrix).double(), wanted, rtol=0.0, atol=1e-2 if smallest < 1e-2 else 1e-4
    )


def test_hidden_are_the_matrices_of_blocks_that_read_a_text() -> None:
    network = Transformer(5, 8, **SIZES)
    hidden = muon.hidden_matrices(network)
    assert hidden == {
        f"trunk.blocks.{i}.{name}.weight" for i in range(2) for name in ("attention.qkv", "attention.out", "up", "down")
    }


def test_the_others_step_as_by_adamw() -> None:
    network, twin = Transformer(5, 8, **SIZES), Transformer(5, 8, **SIZES)
    twin.load_state_dict(network.state_dict())
    optimizer = Muon(grouped(network), lr=0.1, adamw_lr=0.01, weight_decay=0.1)
    adamw = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1)
    hidden = muon.hidden_matrices(network)
    for step in range(3):
        for one, two in zip(network.parameters(), twin.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(step))
            two.grad = one.grad.clone()
        optimizer.step()
        adamw.step()
    for (name, one), two in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-7) == (name not in hidden), name


def test_a_step_is_the_rate_times_the_orthogonal_momentum() -> None:
    weight = nn.Parameter(torch.zeros(4, 16))
    optimizer = Muon([weight], lr=0.5, momentum=0.9, weight_decay=0.0)
    first, second = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    for gradient in (first, second):
        weight.grad = gradient
        before = weight.detach().clone()
        optimizer.step()
    momentum = 0.9 * first + second
    expected = muon.orthogonalised(second + 0.9 * momentum) * 0.2 * 16**0.5
    assert torch.allclose(before - weight, 0.5 * expected, atol=1e-6)


def test_hidden_matrices_decay_in_proportion_to_their_rate() -> None:
    first = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    decayed, plain = nn.Parameter(first.clone()), nn.Parameter(first.clone())
    for weight, decay in ((decayed, 0.1), (plain, 0.0)):
        weight.grad = torch.ones(4, 16)
        Muon([weight], lr=0.5, weight_decay=decay).step()
    torch.testing.assert_close(decayed.data, plain.data - 0.5 * 0.1 * first)


def test_weights_without_a_mark_are_told_apart_by_their_axes() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    for given in ([matrix, vector], [{"params": [vector, matrix]}]):
        groups = Muon(given, lr=0.5, adamw_lr=0.25).param_groups
        found = {group[muon.HIDDEN]: (group["lr"], [weight.ndim for weight in group["params"]]) for group in groups}
        assert found == {True: (0.5, [2]), False: (0.25, [1])}


def test_a_loaded_state_goes_on_as_if_it_had_not_stopped() -> None:
    def steps(network: nn.Module, optimizer: Muon, numbers: range) -> None:
        for number in numbers:
            for weight in network.parameters():
                weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
            optimizer.step()

    whole = Transformer(5, 8, **SIZES)
    parts = Transformer(5, 8, **SIZES)
    parts.load_state_dict(whole.state_dict())
    one, two = Muon(grouped(whole)), Muon(grouped(parts))
    steps(whole, one, range(6))
    steps(parts, two, range(3))
    again = Muon(grouped(parts))
    again.load_state_dict(two.state_dict())
    steps(parts, again, range(3, 6))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (nn.Parameter(torch.zeros(2, 2)), "params must be weights or groups of them, not one Parameter"),
        (3, "params must be weights or groups of them, not one int"),
        ([3], "params must be weights or groups of them, and one is 3"),
        ([{"params": ["a"]}], "params must be weights or groups of them, and one is 'a'"),
        (
            [{"params": [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(3))], "hidden": True}],
            "params: a hidden weight must be a matrix, and one has the shape (3,)",
        ),
    ],
    ids=str,
)
def test_what_is_no_weight_is_refused(params: Any, said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        Muon(params)
    assert str(error.value) == said


@pytest.mark.parametrize("betas", [(0.0, 0.0), [0.5, 0.999]])
def test_betas_are_two_numbers_below_one(betas: Any) -> None:
    weight = nn.Parameter(torch.zeros(2))
    assert Muon([weight], betas=betas).param_groups[0]["betas"] == tuple(betas)
    for wrong in ((1.0, 0.5), (0.5, 1.0), (-0.1, 0.5), (0.5,), (0.5, 0.5, 0.5), 0.5, "ab"):
        with pytest.raises(ValueError, match=rf"^betas = {re.escape(repr(wrong))} must be two numbers in \[0, 1\)$"):
            Muon([weight], betas=wrong)


def test_numbers_on_their_edges_are_taken_and_a_closure_has_gradients() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([weight], lr=0.0, adamw_lr=0.0, momentum=0.0, weight_decay=0.0)

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return float(loss.detach())

    with torch.no_grad():
        assert optimizer.step(closure) == 4.0
    assert torch.equal(weight.grad, torch.full((2, 2), 2.0))  # type: ignore[arg-type]
    assert torch.equal(weight.data, torch.ones(2, 2)), "at a rate of zero nothing moves"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lr": -1.0}, "lr = -1.0 must be at least 0"),
        ({"adamw_lr": float("nan")}, "adamw_lr = nan"),
        ({"momentum": 1.0}, r"momentum = 1.0 must lie in \[0, 1\)"),
        ({"weight_decay": -0.1}, "weight_decay = -0.1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(values: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Muon([nn.Parameter(torch.zeros(2, 2))], **values)
