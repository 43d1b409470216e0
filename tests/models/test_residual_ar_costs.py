"""The autoregressive energy as tensors: rows do not see each other, logits come in chunks, it is one graph."""

from typing import Any

import pytest
import torch
from ar_energies import MASK, forms, random_input, run, small_network
from builders import masked_positions
from tensordict import TensorDict
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from edlm import contracts
from edlm.models import autoregressive, energies
from edlm.process import categorical


@forms
@pytest.mark.parametrize("bos", [None, 4])
def test_particles_and_rows_do_not_see_each_other(carry_over, bos):
    energy = energies.residual_ar(small_network().double(), MASK, bos, carry_over)
    drafts, x_t, log_p = random_input(4, 3, 5, 6)
    whole = run(energy, drafts, x_t, log_p)
    assert whole.shape == (4, 3)
    for row in range(4):
        for particle in range(3):
            alone = run(energy, drafts[row, particle][None, None], x_t[row][None], log_p[row, particle][None, None])
            torch.testing.assert_close(alone[0, 0], whole[row, particle], rtol=0.0, atol=1e-12)
    rows, order = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    mixed = run(energy, drafts[rows][:, order], x_t[rows], log_p[rows][:, order])
    torch.testing.assert_close(mixed, whole[rows][:, order], rtol=0.0, atol=1e-12)


class LargestLogits(TorchDispatchMode):
    """The largest number of rows of any tensor whose last axis is the vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size, self.rows = vocab_size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        is_weight = func is torch.ops.aten.t.default
        if isinstance(out, Tensor) and out.ndim > 1 and out.shape[-1] == self.vocab_size and not is_weight:
            self.rows = max(self.rows, out.numel() // self.vocab_size)
        return out


@forms
@pytest.mark.parametrize("rows", [1, 7, 60])
def test_logits_come_in_chunks_and_the_chunks_change_nothing(carry_over, rows, monkeypatch):
    network, (drafts, x_t, log_p) = small_network(vocab_size=13).double(), random_input(4, 3, 5, 13)
    energy = energies.residual_ar(network, MASK, 4, carry_over)
    whole = run(energy, drafts, x_t, log_p)
    monkeypatch.setitem(categorical.LOGITS_AT_ONCE, "cpu", 13 * rows)
    with torch.no_grad(), LargestLogits(13) as largest:
        chunked = run(energy, drafts, x_t, log_p)
    assert largest.rows == min(rows, int((x_t == MASK).sum()) * 3 if carry_over else 60)
    torch.testing.assert_close(chunked, whole, rtol=0.0, atol=1e-12)


def test_no_more_logits_than_the_constant_says(monkeypatch):
    vocab_size, width = 3 * 2048, 2048
    monkeypatch.setitem(categorical.LOGITS_AT_ONCE, "cpu", 128 * width)
    network = small_network(vocab_size=vocab_size)
    drafts, x_t, log_p = random_input(4, 8, 16, 5)
    energy = energies.residual_ar(network, MASK, None, carry_over=False)
    with torch.no_grad(), LargestLogits(width) as tiles, LargestLogits(vocab_size) as whole:
        in_tiles = run(energy, drafts, x_t, log_p)
    assert (tiles.rows, whole.rows) == (128, 0)
    monkeypatch.setitem(categorical._COLUMNS_AT_ONCE, "cpu", vocab_size)
    torch.testing.assert_close(run(energy, drafts, x_t, log_p), in_tiles, rtol=0.0, atol=1e-4)


def test_the_carry_over_form_runs_the_head_on_masked_positions_alone():
    network = small_network(vocab_size=5)
    drafts, x_t, log_p = random_input(4, 2, 16, 5)
    masked = int((x_t == MASK).sum())
    with torch.no_grad(), LargestLogits(5) as largest:
        run(energies.residual_ar(network, MASK, 4, carry_over=True), drafts, x_t, log_p)
    assert largest.rows == 2 * masked < 4 * 2 * 16


@forms
@pytest.mark.parametrize("bos", [None, 4])
@pytest.mark.parametrize("extra", [1, 5])
def test_padded_positions_change_no_energy(carry_over, bos, extra):
    drafts, x_t, log_p = random_input(3, 2, 5, 6)
    energy = energies.residual_ar(small_network().double(), MASK, bos, carry_over)
    state = {contracts.CANDIDATES: drafts, contracts.X_T: x_t, contracts.LOG_P_CANDIDATES: log_p}
    positions = torch.cat([masked_positions(x_t, MASK), torch.full((extra,), x_t.numel())])
    padded = energy(TensorDict({**state, contracts.POSITIONS: positions}))[contracts.ENERGY]
    torch.testing.assert_close(padded, run(energy, drafts, x_t, log_p), rtol=0.0, atol=1e-12)


def test_half_precision_logits_are_summed_in_better():
    network = small_network(vocab_size=200).bfloat16()
    x = torch.randint(5, 200, (6, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network.head(network(x[:, :-1])).double()
        log_p = autoregressive.ar_log_prob(network, x, MASK, None)
    logits[..., MASK] = -torch.inf
    exact = logits.log_softmax(-1).gather(-1, x[:, 1:].unsqueeze(-1)).squeeze(-1)
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p[:, 1:].double(), exact, rtol=1e-6, atol=1e-6)


def test_gradients_reach_the_network():
    network = small_network().double()
    drafts, x_t, log_p = random_input(2, 3, 5, 6)
    run(energies.residual_ar(network, MASK, 4, carry_over=True), drafts, x_t, log_p).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@forms
def test_one_graph_without_breaks(carry_over):
    energy = energies.residual_ar(small_network(), MASK, 4, carry_over, pad_id=5)
    drafts, x_t, log_p = random_input(2, 3, 5, 6)
    module = energy.module
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    inputs = (drafts, x_t, masked_positions(x_t, MASK), log_p)
    torch.testing.assert_close(compiled(*inputs), module(*inputs))
