"""Held-out draws: every block as often as it is needed, the same figures whatever the batches, padding left out."""

import pytest
import torch
from builders import tiny_denoiser
from torch import Tensor

from edlm.data.pieces import Blocks
from edlm.evaluation import draws
from edlm.evaluation.draws import Draws
from edlm.likelihood import estimates
from edlm.process import schedules

CPU, PAD = torch.device("cpu"), 3
TEXTS = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1], [2, 0, 0, 1, 0, PAD, PAD, PAD], [1, 0, PAD, PAD, PAD, PAD, PAD, PAD]])
LINEAR = schedules.log_linear()


def of(batch_size: int, rows: int = 7) -> Draws:
    return Draws(TEXTS, rows, batch_size, seed=5, device=CPU)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 9])
def test_blocks_are_gone_through_in_their_order_as_often_as_rows_need(batch_size: int) -> None:
    batches = [*of(batch_size).batches()]
    assert torch.cat([row for row, _ in batches]).tolist() == list(range(7))
    assert torch.equal(torch.cat([x_0 for _, x_0 in batches]), TEXTS[[0, 1, 2, 0, 1, 2, 0]])
    assert max(len(row) for row, _ in batches) <= batch_size
    assert of(batch_size).spread(lambda row, x_0: (len(row), len(x_0))) == [(len(row),) * 2 for row, _ in batches]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_score_sees_its_rows_the_seed_and_what_counts(batch_size: int) -> None:
    def score(x_0: Tensor, seed: Tensor, row: Tensor, counted: Tensor) -> Tensor:
        return 100.0 * seed + 10.0 * row + (x_0 * counted).sum(1)

    values, counts = draws.scored(score, of(batch_size, 4), pad_id=PAD)
    assert values.tolist() == [507.0, 513.0, 521.0, 537.0]
    assert counts.tolist() == [8, 5, 2, 8]
    assert draws.estimated(score, of(batch_size, 4), PAD) == estimates.estimate(values, counts)


def test_a_split_has_as_many_draws_as_the_settings_say_and_the_test_split_four_times_as_many() -> None:
    blocks, settings = Blocks(TEXTS, TEXTS[:1], TEXTS[1:]), {"valid_rows": 3, "batch_size": 2, "seed": 9}
    for split, rows in (("valid", 3), ("test", 12)):
        found = draws.held_out(blocks, split, settings, CPU)
        assert (found.num_rows, found.batch_size, found.seed) == (rows, 2, 9)
        assert torch.equal(found.blocks, getattr(blocks, split))


def test_what_an_energy_cost_is_the_difference_on_the_same_texts_and_noise() -> None:
    one, other = tiny_denoiser(1), tiny_denoiser(2)
    found = draws.compared(one, other, LINEAR, of(3), PAD)
    assert found["nelbo"] == draws.estimated(draws.continuous(one, LINEAR), of(3), PAD)
    assert found["cost"].mean == pytest.approx(found["nelbo"].mean - found["start_nelbo"].mean)
    assert draws.compared(one, one, LINEAR, of(3), PAD)["cost"].mean == 0.0
    assert found["cost"].standard_error < found["nelbo"].standard_error + found["start_nelbo"].standard_error


def test_what_is_left_of_a_mask_needs_two_draws_with_one() -> None:
    assert draws.masked_nll(tiny_denoiser(), LINEAR, 0.9, of(3), PAD) is not None
    assert draws.masked_nll(tiny_denoiser(), LINEAR, 0.9, of(3, rows=1), PAD) is None
