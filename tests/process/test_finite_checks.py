"""Each check of numbers by itself, on the last value that passes and the first that does not."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from edlm import contracts
from edlm.process import finite

NAN, INF = math.nan, math.inf
LARGEST = torch.finfo(torch.float32).max
KINDS = "weights are dense and one of float32, float16, bfloat16, float64"


@pytest.mark.parametrize(
    "weights",
    [
        *(torch.empty(0), torch.zeros(2), torch.tensor([-LARGEST, LARGEST])),
        torch.tensor([LARGEST], dtype=torch.float64),
        *(torch.ones(2, dtype=dtype) for dtype in finite.WEIGHTS),
    ],
)
def test_finite_floats_are_weights(weights: Tensor) -> None:
    finite.require_weights({"a": weights, "b": weights.clone().requires_grad_()}, "f")


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (torch.ones(2, dtype=torch.int64), f"holds int64, and {KINDS}"),
        (torch.ones(2, dtype=torch.bool), f"holds bool, and {KINDS}"),
        (torch.ones(2, dtype=torch.complex64), f"holds complex64, and {KINDS}"),
        (torch.ones(2).to_sparse(), f"holds float32, and {KINDS}"),
        (torch.ones(2, device="meta"), f"holds float32, and {KINDS}"),
        (torch.tensor([1.0, NAN]), "holds values that are not finite, between nan and nan"),
        (torch.tensor([1.0, INF]), "holds values that are not finite, between 1.0 and inf"),
        (torch.tensor([-INF, 1.0]), "holds values that are not finite, between -inf and 1.0"),
        (torch.tensor([2 * LARGEST], dtype=torch.float64), "holds values that are not finite, between"),
    ],
)
def test_the_first_tensor_of_anything_else_is_named(weights: Tensor, said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        finite.require_weights({"none": torch.empty(0), "good": torch.ones(1), "bad": weights, "worse": weights}, "f")
    assert str(error.value).startswith(f"f: bad {said}")


@pytest.mark.parametrize(("value", "smallest"), [(1.0, 0.0), (1e-300, 0.0), (0.5, 0.5), (1e300, 1.0)])
def test_a_temperature_is_positive_and_finite_and_no_smaller(value: float, smallest: float) -> None:
    finite.require_temperature("t", value, smallest)


@pytest.mark.parametrize(
    ("value", "smallest", "said"),
    [
        *((value, 0.0, f"t = {value} must be positive and finite") for value in (0.0, -1.0, INF, NAN)),
        (0.5, 0.75, "t = 0.5 must be at least 0.75: what is divided by it would overflow"),
    ],
)
def test_anything_else_is_no_temperature(value: float, smallest: float, said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        finite.require_temperature("t", value, smallest)
    assert str(error.value).startswith(said)


def test_energies_and_log_probabilities_are_counted() -> None:
    finite.require_energy(torch.tensor([[1.0, INF]]))
    finite.require_log_prob(torch.tensor([-INF, INF, 0.0]))
    for value, fault in ((NAN, "nan"), (-INF, "-inf")):
        with pytest.raises(ValueError, match=f"^the energy is {fault} for 2 of 3 candidates$"):
            finite.require_energy(torch.tensor([value, 1.0, value]))
    for whose in ({}, {"whose": "the teacher"}):
        said = rf"^{whose.get('whose', 'the denoiser')} gives nan for 1 of 3 tokens: its logits are not finite$"
        with pytest.raises(ValueError, match=said):
            finite.require_log_prob(torch.tensor([NAN, -INF, 0.0]), **whose)


def test_the_first_token_without_a_law_is_named() -> None:
    finite.require_drawn(torch.tensor([[-1.0, 0.0]]))
    for wrong in (NAN, INF, -INF):
        log_prob = torch.tensor([[-1.0, -1.0, wrong], [-1.0, -1.0, -1.0], [-1.0, wrong, -1.0]])
        with pytest.raises(
            ValueError, match=r"^the autoregressive network's logits are not finite at token 1 of row 2"
        ):
            finite.require_drawn(log_prob)


def flagged(corrected: list[bool], **out: Any) -> list[list[bool]]:
    given = {getattr(contracts, name.upper()): torch.tensor(value) for name, value in out.items()}
    return finite.of_pass(given, torch.tensor(corrected)).tolist()


def test_a_pass_is_flagged_row_by_row() -> None:
    no = [False, False, False]
    assert flagged([True, False]) == [no, no]
    assert flagged([True, False, True], log_ratio=[[0.0, NAN], [0.0, 1.0]]) == [[True, False, False], no, no]
    energies = [[1.0, NAN], [NAN, -INF], [-INF, 1.0], [INF, 1.0]]
    assert flagged([True, False, True, True, True], energy=energies) == [
        *([False, True, False], no, [False, False, True], no, no)
    ]


def test_the_first_pass_and_its_text_are_named() -> None:
    t, row = torch.tensor([[1.0, 0.5], [1.0, 0.25]]), torch.tensor([7, 9])
    finite.require([], t, row)
    flags = [torch.zeros(2, 3, dtype=torch.bool) for _ in range(2)]
    finite.require(flags, t, row)
    flags[1][1, 2] = True
    with pytest.raises(ValueError, match=r"^the energy is -inf in pass 1 of text 9, at t = 0\.25$"):
        finite.require(flags, t, row)
    flags[1][0, 1] = True
    with pytest.raises(ValueError, match=r"^the energy is nan in pass 1 of text 7, at t = 0\.5$"):
        finite.require(flags, t, row)
    flags[0][1, 0] = True
    with pytest.raises(ValueError, match=r"^the denoiser's logits are not finite in pass 0 of text 9, at t = 1$"):
        finite.require(flags, t, row)
