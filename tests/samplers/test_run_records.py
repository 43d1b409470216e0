"""The record of a run, put together from what its passes wrote."""

import torch
from torch import Tensor

from edlm import contracts
from edlm.process.absorbing import RevealPlan
from edlm.samplers import records

NAN = float("nan")


def of(*rows: tuple[float, ...], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(rows, dtype=dtype)


PLAN = RevealPlan(
    t=of((1.0, 0.5, 0.25), (1.0, 0.5, 0.0), dtype=torch.float64),
    order=of((0, 0, 1, 2), (-1, 1, 0, -1)),
    passes=torch.tensor([3, 2]),
)
CORRECTED = torch.tensor([[True, False, True], [False, True, False]])


def passed(number: int, rows: int, weighed: bool) -> dict[str, Tensor]:
    """What a pass writes of its first rows: numbers that tell which pass it was."""
    read = {contracts.DENOISER_TOKENS: 10, contracts.ENERGY_TOKENS: 20, contracts.CALLS: 30}
    weights = {contracts.PARTICLES: 40, contracts.ROUNDS: 50} if weighed else {}
    found = {key: torch.full((rows,), value + number) for key, value in {**read, **weights}.items()}
    if weighed:
        found |= {contracts.ESS: torch.full((rows,), 1.5 + number, dtype=torch.float64)}
        found |= {contracts.LOG_WEIGHT_STD: torch.full((rows,), 0.5 + number, dtype=torch.float64)}
    return found


def test_rows_run_and_reveal_what_their_plan_says() -> None:
    assert records.running(PLAN).tolist() == [[True, True, True], [True, True, False]]
    assert records.revealed(PLAN).tolist() == [[2, 1, 1], [1, 1, 0]], "what is given is revealed by no pass"


def test_what_passes_say_stands_where_a_row_ran_and_what_weights_say_where_it_was_corrected() -> None:
    out = [passed(0, 2, True), passed(1, 2, True), passed(2, 1, True)]
    info = records.of_run(PLAN, records.revealed(PLAN), CORRECTED, out, length=4)
    assert info.batch_size == torch.Size([2])
    for key, first in ((contracts.DENOISER_TOKENS, 10), (contracts.ENERGY_TOKENS, 20), (contracts.CALLS, 30)):
        assert info[key].tolist() == [[first, first + 1, first + 2], [first, first + 1, 0]]
        assert info[key].dtype == torch.int64
    for key, first in ((contracts.PARTICLES, 40), (contracts.ROUNDS, 50)):
        assert info[key].tolist() == [[first, 0, first + 2], [0, first + 1, 0]]
    for key, first in ((contracts.ESS, 1.5), (contracts.LOG_WEIGHT_STD, 0.5)):
        expected = of((first, NAN, first + 2), (NAN, first + 1, NAN), dtype=torch.float64)
        torch.testing.assert_close(info[key], expected, equal_nan=True)
    assert info["denoiser_passes"].tolist() == [33 / 4, 21 / 4]
    assert info["energy_passes"].tolist() == [63 / 4, 41 / 4]
    assert (info["t"] == PLAN.t).all()
    assert (info["corrected"] == CORRECTED).all()


def test_what_no_pass_says_is_nothing() -> None:
    found = records.measured([passed(0, 2, False)] * 3, CORRECTED, records.running(PLAN))
    assert found.keys() == set(records.KEYS)
    assert not found[contracts.PARTICLES].any()
    assert not found[contracts.ROUNDS].any()
    assert found[contracts.ESS].isnan().all()
    assert found[contracts.LOG_WEIGHT_STD].isnan().all()
    some = records.measured([passed(0, 2, False), passed(1, 2, True)], CORRECTED[:, :2], torch.ones(2, 2).bool())
    assert some[contracts.PARTICLES].tolist() == [[0, 0], [0, 41]]


def test_runs_in_a_row_have_their_passes_one_after_the_other_and_their_numbers_added() -> None:
    out = [passed(0, 2, True), passed(1, 2, True), passed(2, 1, True)]
    info = records.of_run(PLAN, records.revealed(PLAN), CORRECTED, out, length=4)
    joined = records.in_a_row([info, info, info])
    assert joined["t"].tolist() == [[*row, *row, *row] for row in PLAN.t.tolist()]
    assert joined["denoiser_passes"].tolist() == [3 * 33 / 4, 3 * 21 / 4]
    assert joined.batch_size == torch.Size([2])
