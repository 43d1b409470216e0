"""Attention that opens in training: which positions are read at which step, and that nothing else is."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor

from edlm.declaration import sequence
from edlm.models import denoisers
from edlm.nn import attention
from edlm.nn.networks import Transformer
from edlm.objectives import batches, denoising, opening
from edlm.process import schedules

MASK, LENGTH, STEPS = 5, 7, 10


def network(layers: int = 2, causal: bool = False, pad_id: int | None = None) -> Transformer:
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_layers": layers, "num_heads": 2, "conditioning_size": 0}
    made = Transformer(6, LENGTH, **sizes, causal=causal, pad_id=pad_id)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made.double()


def read(made: Transformer, x_t: Tensor, step: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """The states of all positions (b, l, h) at a step, and which positions were read, bool (l, l)."""
    keys = {"seed": torch.tensor(seed), "step": torch.tensor(step), "positions": torch.arange(x_t.numel())}
    out = sequence(opening.opened(denoisers.subs(made, MASK), STEPS))(TensorDict({"x_t": x_t, **keys}))
    return out["hidden"].view(*x_t.shape, -1), out["attention"]


def texts(rows: int = 3) -> Tensor:
    return torch.randint(0, 6, (rows, LENGTH), generator=torch.Generator().manual_seed(2))


@given(length=st.integers(1, 9), share=st.floats(0.0, 1.0), seed=st.integers(0, 2**32))
def test_what_is_before_is_read_and_a_later_position_where_its_uniform_is_below_the_share(
    length: int, share: float, seed: int
) -> None:
    noise = torch.rand(length, length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = attention.opening(noise, torch.tensor(share, dtype=torch.float64))
    for i in range(length):
        for j in range(length):
            assert bool(found[i, j]) == (j <= i or float(noise[i, j]) < share)


@pytest.mark.parametrize("step", [STEPS, STEPS + 1, 10 * STEPS])
def test_from_its_last_step_on_it_is_the_denoiser(step: int) -> None:
    made, x_t = network(), texts()
    hidden, seen = read(made, x_t, step)
    assert seen.all()
    torch.testing.assert_close(hidden, made(x_t))


def test_at_step_0_it_is_the_causal_network() -> None:
    made, x_t = network(), texts()
    hidden, seen = read(made, x_t, 0)
    assert torch.equal(seen, torch.ones_like(seen).tril())
    torch.testing.assert_close(hidden, network(causal=True)(x_t))


def test_a_state_moves_with_the_positions_that_are_read_and_with_no_other() -> None:
    """Of one layer: with more, what is read reads further."""
    made, x_t = network(layers=1), texts(1)
    hidden, seen = read(made, x_t, 4)
    assert 0 < seen.triu(1).sum() < LENGTH * (LENGTH - 1) / 2, "partly open, else it tells nothing"
    for j in range(LENGTH):
        changed = x_t.clone()
        changed[0, j] = (changed[0, j] + 1) % 6
        moved = (read(made, changed, 4)[0] - hidden).abs().amax(-1)[0] > 1e-9
        assert torch.equal(moved, seen[:, j])


def test_later_positions_open_at_the_rate_of_the_steps() -> None:
    """Pairs over 200 seeds: each is read with probability s / steps, by five standard errors."""
    later, made, x_t = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1), network(1), texts(1)
    for step in (1, 5, 9):
        open_ = torch.stack([read(made, x_t, step, seed)[1][later] for seed in range(200)]).double()
        n, p = open_.numel(), step / STEPS
        assert abs(float(open_.mean()) - p) < 5 * (p * (1 - p) / n) ** 0.5


def test_another_step_and_another_seed_open_other_pairs_and_the_same_the_same() -> None:
    made, x_t = network(1), texts(1)
    _, seen = read(made, x_t, 5)
    assert torch.equal(seen, read(made, x_t, 5)[1])
    assert (seen & ~read(made, x_t, 6)[1]).any(), "of one draw, what is open would stay open"
    assert not torch.equal(seen, read(made, x_t, 5, seed=4)[1])


@pytest.mark.parametrize("pad_id", [None, 4])
def test_a_loss_does_not_depend_on_how_a_batch_is_cut(pad_id: int | None) -> None:
    made = network(pad_id=pad_id)
    stages = denoising.denoising(
        denoisers.subs(made, MASK), schedules.log_linear(), pad_id=pad_id, noise_levels="by_count", opening_steps=STEPS
    )
    x_0, row = texts(6).clamp(max=4), torch.arange(6)
    whole = stages(batches.training_batch(x_0, 7, row, 4, 6))["loss"]
    parts = [stages(batches.training_batch(x_0[part], 7, part, 4, 6))["loss"] for part in row.split(2)]
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("step", [0, 5, STEPS])
def test_padding_is_not_read_while_attention_opens(step: int) -> None:
    """A pair's uniform does not depend on the length, so the shorter text is read by the same mask."""
    made, x_t = network(1, pad_id=4), texts(1).clamp(max=3)
    x_t[0, -2:] = 4
    hidden, seen = read(made, x_t, step)
    shorter, fewer = read(made, x_t[:, :-2], step)
    assert torch.equal(seen[:-2, :-2], fewer)
    torch.testing.assert_close(hidden[:, :-2], shorter)


def test_what_stands_in_front_of_a_text_has_its_row_and_its_column() -> None:
    """A bos that the network reads, or none."""
    made = network(1)
    for bos_id, size in ((None, LENGTH), (0, LENGTH + 1)):
        made.bos_id = bos_id
        stages = opening.opened(denoisers.subs(made, MASK), STEPS)
        found = stages["open"](TensorDict({"x_t": texts(), "seed": torch.tensor(3), "step": torch.tensor(4)}))
        assert found["attention"].shape == (size, size)


@pytest.mark.parametrize("steps", [0, -1, 2.5, "2", True])
def test_steps_that_are_none_are_refused(steps: Any) -> None:
    with pytest.raises(ValueError, match=f"steps = {steps!r} must be "):
        opening.opened(denoisers.subs(network(), MASK), steps)


def test_a_denoiser_that_is_told_the_time_is_refused() -> None:
    told = denoisers.subs(network(), MASK, told=schedules.log_linear(1e-3))
    with pytest.raises(ValueError, match="attention opens in a network that is told no time"):
        opening.opened(told, STEPS)
