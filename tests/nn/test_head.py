"""Log-probabilities and gradients in tiles are those of the plain computation, whatever is asked and announced."""

import pytest
import torch
from builders import tiny_denoiser, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor, nn

from edlm import contracts
from edlm.models import autoregressive
from edlm.nn import head as cross_entropy
from edlm.nn.blocks import Head
from edlm.objectives import denoising
from edlm.process import schedules

PARTS = ("hidden", "weight", "bias")
Given = tuple[Tensor, Tensor, Tensor | None, Tensor]


def some(n: int, v: int, h: int = 5, bias: bool = True, seed: int = 0) -> Given:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, h), (v, h), (v,))
    hidden, weight, offset = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    tokens = torch.randint(v - 1, (n,), generator=generator)
    leaves = [leaf.requires_grad_() for leaf in (hidden, weight, offset)]
    return leaves[0], leaves[1], leaves[2] if bias else None, tokens


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, excluded: int | None) -> Tensor:
    logits = nn.functional.linear(hidden, weight, bias)
    if excluded is not None:
        logits = logits.index_fill(-1, torch.tensor([excluded]), -torch.inf)
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def gradients(value: Tensor, factors: Tensor, given: Given) -> list[Tensor]:
    return list(torch.autograd.grad((value * factors).sum(), [leaf for leaf in given[:3] if leaf is not None]))


@pytest.fixture(params=[1, 12, 1 << 20])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Logits of a tile: rows one by one, a few with a shorter tile at the end, all at once; columns in slices of 4."""
    monkeypatch.setattr(cross_entropy, "_LOGITS_AT_ONCE", {"cpu": request.param})
    monkeypatch.setattr("edlm.process.categorical._COLUMNS_AT_ONCE", {"cpu": 4})
    return request.param


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("excluded", [None, 6, 0])
@pytest.mark.parametrize("announced", ["nothing", "the truth", "something else"])
def test_values_and_gradients_are_those_of_the_plain_computation(
    tile: int, bias: bool, excluded: int | None, announced: str
) -> None:
    given = some(11, 7, bias=bias)
    tokens = given[3] if excluded != 0 else given[3].clamp(min=1)
    factors = torch.linspace(-2.0, 3.0, 11, dtype=torch.float64)
    expected = {"nothing": None, "the truth": -0.25 * factors, "something else": factors.square() + 1.0}[announced]
    found = cross_entropy.log_prob(*given[:3], tokens, excluded, expected)
    right = plain(*given[:3], tokens, excluded)
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(found, factors, given), gradients(right, factors, given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 5), v=st.integers(2, 9), seed=st.integers(0, 1000), told=st.booleans(), excluded=st.booleans())
def test_gradcheck(n: int, v: int, seed: int, told: bool, excluded: bool) -> None:
    *leaves, tokens = some(n, v, h=3, seed=seed)
    expected = torch.ones(n, dtype=torch.float64) if told else None

    def value(*leaves: Tensor) -> Tensor:
        return cross_entropy.log_prob(*leaves, tokens, v - 1 if excluded else None, expected)

    assert torch.autograd.gradcheck(value, leaves)


@pytest.mark.parametrize("expected", [None, torch.ones(0)])
def test_no_rows_give_gradients_of_zero(expected: Tensor | None) -> None:
    *leaves, tokens = some(0, 4)
    for gradient in torch.autograd.grad(cross_entropy.log_prob(*leaves, tokens, None, expected).sum(), leaves):
        assert not gradient.any()


def test_logits_are_computed_once_if_the_gradient_was_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    given, factors = some(6, 5), torch.arange(6, dtype=torch.float64)
    tiles, count = cross_entropy._tiles, []
    monkeypatch.setattr(cross_entropy, "_tiles", lambda *a: count.append(1) or tiles(*a))
    for expected, passes in ((factors / 3, 1), (factors + 1, 2), (None, 2)):
        count.clear()
        gradients(cross_entropy.log_prob(*given, None, expected), factors, given)
        assert len(count) == passes


def test_a_second_backward_gives_the_same_gradient() -> None:
    given, factors = some(6, 5), torch.arange(6, dtype=torch.float64)
    value = (cross_entropy.log_prob(*given, None, factors) * factors).sum()
    first, second = (torch.autograd.grad(value, given[:3], retain_graph=True) for _ in range(2))
    for ours, again in zip(first, second, strict=True):
        torch.testing.assert_close(ours, again)


def test_what_is_frozen_gets_no_gradient_and_costs_none() -> None:
    hidden, weight, bias, tokens = some(6, 5)
    assert bias is not None
    weight.requires_grad_(False)
    value = cross_entropy.log_prob(hidden, weight, bias, tokens, None, torch.ones(6))
    value.sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(
        hidden.grad, torch.autograd.grad(plain(hidden, weight, bias, tokens, None).sum(), hidden)[0]
    )
    with torch.no_grad():
        assert not cross_entropy.log_prob(*some(6, 5)).requires_grad


def test_a_tied_weight_collects_both_of_its_gradients() -> None:
    _, weight, _, tokens = some(6, 5)
    ids = torch.tensor([0, 1, 2, 3, 4, 0])
    for score in (cross_entropy.log_prob, lambda *a: plain(*a, None)):
        (found,) = torch.autograd.grad(score(weight[ids].tanh(), weight, None, tokens).sum(), weight)
        right = found if score is cross_entropy.log_prob else right  # noqa: F821
    torch.testing.assert_close(right, found)


def test_an_impossible_token_is_minus_infinity_and_has_no_gradient_of_its_own() -> None:
    given = some(2, 4)
    value = cross_entropy.log_prob(*given[:3], torch.tensor([3, 1]), 3)
    assert value[0] == -torch.inf
    for part in gradients(value, torch.ones(2, dtype=torch.float64), given):
        assert part.isfinite().all()


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[3e4], [-3e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
    value = cross_entropy.log_prob(hidden, weight, None, torch.tensor([0, 1]), None, torch.ones(2))
    torch.testing.assert_close(value, torch.zeros(2))
    value.sum().backward()
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()


def test_under_autocast_products_are_bfloat16_and_gradients_have_the_type_of_their_weights() -> None:
    *leaves, tokens = some(9, 7)
    hidden, weight, bias = (leaf.detach().float().requires_grad_() for leaf in leaves)
    head = Head(5, 7)
    head.weight, head.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    factors = torch.linspace(0.5, 2.0, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head.log_prob(hidden, tokens, 6, factors)
        right = head(hidden).float().index_fill(-1, torch.tensor([6]), -torch.inf).log_softmax(-1)
    right = right.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, right, rtol=0, atol=1e-5)
    wanted = (hidden, head.weight, head.bias)
    ours, theirs = (torch.autograd.grad((value * factors).sum(), wanted) for value in (found, right))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler's own, at a break
def test_a_compiled_function_around_it_gives_the_same() -> None:
    given, factors = some(6, 5), torch.arange(6, dtype=torch.float64)

    def value(hidden: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor) -> Tensor:
        return cross_entropy.log_prob(hidden.tanh(), weight, bias, tokens, 4, factors) * 2.0

    compiled = torch.compile(value, backend="aot_eager")
    for a, b in zip(gradients(compiled(*given), factors, given), gradients(value(*given), factors, given), strict=True):
        torch.testing.assert_close(a, b)


# ---- In training


def test_denoising_never_has_all_logits_and_runs_the_head_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "_LOGITS_AT_ONCE", {"cpu": 15})
    count: list[int] = []
    tiles = cross_entropy._tiles

    def counted(*arguments: object):
        for tile in tiles(*arguments):
            count.append(len(tile.weights))
            yield tile

    monkeypatch.setattr(cross_entropy, "_tiles", counted)
    x_0 = torch.randint(4, (6, 7), generator=torch.Generator().manual_seed(0))
    keys = {
        name: torch.tensor(value) for name, value in ((contracts.SEED, 0), (contracts.STEP, 0), (contracts.NUM_ROWS, 6))
    }
    batch = TensorDict({contracts.X_0: x_0, contracts.ROW: torch.arange(6), **keys})
    out = denoising.denoising(tiny_denoiser(), schedules.log_linear())(batch)
    (out[contracts.LOSS].sum() / 42).backward()
    assert max(count) == 15 // 5
    assert sum(count) == int((out[contracts.X_T] == 4).sum())


@pytest.mark.parametrize("bos_id", [3, None])
def test_next_token_runs_the_head_once(bos_id: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    count: list[int] = []
    tiles = cross_entropy._tiles
    monkeypatch.setattr(cross_entropy, "_tiles", lambda *a: count.append(1) or tiles(*a))
    network = tiny_network(conditioning_size=0, causal=True)
    x_0 = torch.tensor([[0, 2, 2, 1], [2, 0, 1, 1]])
    out = denoising.next_token(network, 4, bos_id, pad_id=1)(TensorDict({contracts.X_0: x_0}))
    with torch.no_grad():
        right = autoregressive.ar_log_prob(network, x_0, 4, bos_id)
    torch.testing.assert_close(out[contracts.LOG_PROB], torch.where(x_0 == 1, 0.0, right))
    out[contracts.LOSS].mean().backward()
    assert len(count) == 1
