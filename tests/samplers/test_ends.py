"""The ends of a run: the last step leaves no mask whatever the schedule, sizes are rounded up to what is documented."""

import math
from functools import partial

import pytest
import torch
from builders import tiny_denoiser

import edlm
from edlm.objectives import distillation
from edlm.process import schedules
from edlm.samplers import baselines, execution, plans, remasking, selections, stages

LEFT = schedules.geometric(0.5, 2.0)  # its alpha(0) is exp(-0.5), so that masks would be left
ENDS = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)


def test_the_last_step_ends_without_a_mask_under_any_schedule() -> None:
    at_one, half = math.exp(-2.0), math.exp(-1.0)
    assert baselines.alpha_after(LEFT, ENDS).tolist() == pytest.approx([at_one, half, 1.0])
    assert plans.revealed_before(LEFT, ENDS).tolist() == pytest.approx([0.0, (half - at_one) / (1.0 - at_one), 1.0])
    teach = distillation._Teach(tiny_denoiser(), LEFT, 0.5, 2)
    assert teach._revealed(ENDS[:2], ENDS[1:]).tolist() == pytest.approx([(half - at_one) / (1.0 - at_one), 1.0])


@pytest.mark.parametrize("plan", [plans.Grid(1), plans.Grid(3), plans.Times((1.0, 0.1, 0.0))])
def test_so_the_chances_of_the_last_step_are_those_of_all_masks(plan: plans.Grid | plans.Times) -> None:
    table = plan.chances(LEFT, 4)[-1]
    assert torch.equal(table, torch.eye(5, dtype=torch.float64))


def test_of_a_rule_of_remasking_the_shares_go_from_nothing_to_all() -> None:
    alpha = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    assert remasking.most(alpha[:2], alpha[1:]).tolist() == [1.0, 0.0]
    assert remasking.most(alpha[1], alpha[1]) == 1.0
    assert remasking.revealing(alpha, alpha.new_tensor([0.25, 0.5, 1.0]), alpha.new_zeros(3)).tolist() == [
        0.25,
        1 / 3,
        1,
    ]


@pytest.mark.parametrize(
    ("count", "tiled"),
    [(1, 2), (2, 2), (10, 10), (11, 20), (20, 20), (21, 40), (40, 40), (41, 80), (80, 80), (81, 160)],
)
def test_positions_are_rounded_up_to_a_power_of_two_of_tiles(count: int, tiled: int) -> None:
    assert execution._whole_tiles(count, 10) == tiled


@pytest.mark.parametrize(
    ("count", "smallest", "size"),
    [(1, 2, 2), (2, 2, 2), (3, 2, 4), (4, 2, 4), (5, 2, 8), (1, 16, 16), (17, 16, 32), (1, 3, 3)],
)
def test_other_sizes_are_rounded_up_to_a_power_of_two(count: int, smallest: int, size: int) -> None:
    assert execution._power_of_two(count, smallest) == size


def test_a_tile_holds_the_logits_of_all_candidates() -> None:
    kernel = edlm.samplers.kernel_of(edlm.samplers.Sampler(tiny_denoiser(vocab_size=5)))
    of_one = execution._one_tile(kernel, torch.device("cpu"))
    assert of_one == (1 << 23) // 5
    assert execution._one_tile(kernel._replace(num_particles=3), torch.device("cpu")) == (1 << 23) // 5 // 3
    assert execution._one_tile(kernel._replace(num_particles=1 << 23), torch.device("cpu")) == 2


def test_positions_that_nothing_was_asked_of_are_seen_as_zeros() -> None:
    law = stages.Law(tiny_denoiser(), 1.0, 1.0)
    seen = stages.seen_of(law, torch.randn(2, 16, dtype=torch.float64), torch.tensor([1, 5]), 2, 4)
    for value in seen:
        assert (value != 0.0).flatten().nonzero().flatten().tolist() == [1, 5]


@pytest.mark.parametrize("spread", [0.0, 30.0])
def test_the_law_of_the_kept_candidate_is_that_of_the_best_where_weights_are_far_apart(spread: float) -> None:
    log_q = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64).log()
    log_w = torch.tensor([[0.0, -spread, -2 * spread]], dtype=torch.float64)
    found = selections.sir_law(log_q, log_w, 5)
    best = torch.tensor([[1 - 0.75**5, 0.75**5 - 0.5**5, 0.5**5]], dtype=torch.float64)  # of five draws
    torch.testing.assert_close(found, log_q.exp() if spread == 0.0 else best, rtol=0.0, atol=1e-8)
    torch.testing.assert_close(selections.sir_law(log_q, log_w, 1), log_q.exp())


def test_of_weights_that_are_all_zero_the_first_is_kept() -> None:
    log_q = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    nothing = torch.full((1, 2), -torch.inf, dtype=torch.float64)
    close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-9)
    close(selections.sir_law(log_q, nothing, 3), log_q.exp())
    one = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64)
    close(selections.sir_law(log_q, one, 3), torch.tensor([[1 - 0.75**3, 0.75**3]], dtype=torch.float64))
