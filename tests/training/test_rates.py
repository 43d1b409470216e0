"""The learning rate of every step: warm-up, decay, what each parameter has of it, and that the weights follow it."""

import doctest
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny_run
from torch import Tensor

from edlm.training import log
from edlm.training import rates as factors

STEPS, RATE = 8, 0.5


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "draw_curves", lambda _: None)


def rates(folder: Path, **changes: Any) -> list[float]:
    """The rate of each step as the optimiser has it when it is asked to step; the log must say the same."""
    optimizer = {"_component_": "torch.optim.SGD", "lr": RATE}
    run = tiny_run(folder, steps=STEPS, optimizer=optimizer, save_every=STEPS, valid_every=STEPS, **changes)
    found: list[float] = []
    run.optimizer.register_step_pre_hook(lambda own, *_: found.append(own.param_groups[0]["lr"]))
    run.train()
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    logged = [record["lr"] for record in map(json.loads, lines) if "lr" in record]
    assert logged == pytest.approx(found)
    return found


@pytest.mark.parametrize("warmup", [0, 1, 3, STEPS - 1, STEPS, STEPS + 4])
@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_it_rises_in_equal_steps_and_then_stays_or_falls_as_half_a_cosine(
    decay: str, warmup: int, tmp_path: Path
) -> None:
    def expected(step: int) -> float:
        if step < warmup:
            return RATE * (step + 1) / warmup
        part = (step - warmup) / max(STEPS - warmup, 1)
        return RATE if decay == "constant" else RATE * (math.cos(math.pi * part) / 2 + 0.5)

    assert rates(tmp_path, decay=decay, warmup_steps=warmup) == pytest.approx([expected(step) for step in range(STEPS)])


def test_a_cosine_begins_at_the_full_rate_passes_the_half_in_the_middle_and_ends_near_zero(tmp_path: Path) -> None:
    """The formula's own values, written as numbers."""
    found = rates(tmp_path, decay="cosine", warmup_steps=0)
    assert found[0] == RATE
    assert found[STEPS // 2] == pytest.approx(RATE / 2)
    assert found[-1] == pytest.approx(RATE * 0.0380602337, abs=1e-9)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (5, 4), (2, 0), (8, 4)])
def test_behind_the_last_step_nothing_is_left_of_a_cosine(steps: int, warmup: int) -> None:
    assert factors.factor(steps, steps, warmup, "cosine") == pytest.approx(0.0, abs=1e-12)
    assert factors.factor(warmup, steps, warmup, "cosine") == 1.0
    assert factors.factor(steps, steps, warmup, "constant") == 1.0


@pytest.mark.parametrize(("decay", "warmup"), [("cosine", 0), ("cosine", 2), ("constant", 2)])
def test_the_weights_move_by_the_rate_of_the_step(decay: str, warmup: int, tmp_path: Path) -> None:
    """Of plain gradient descent: what was, less the rate times the gradient."""
    run = tiny_run(
        tmp_path,
        steps=STEPS,
        decay=decay,
        warmup_steps=warmup,
        optimizer={"_component_": "torch.optim.SGD", "lr": RATE},
    )
    masters = run.weights.masters
    kept: list[tuple[list[Tensor], list[Tensor], float]] = []

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        values, gradients = (
            [tensor.detach().clone() for tensor in each] for each in (masters, (m.grad for m in masters))
        )
        kept.append((values, gradients, optimizer.param_groups[0]["lr"]))

    def after(*_: Any) -> None:
        values, gradients, rate = kept[-1]
        for value, gradient, master in zip(values, gradients, masters, strict=True):
            torch.testing.assert_close(master.detach(), value - rate * gradient)

    run.optimizer.register_step_pre_hook(before)
    run.optimizer.register_step_post_hook(after)
    run.train()
    assert len({rate for *_, rate in kept}) > 1


def test_the_example_of_the_factor_is_true() -> None:
    found = doctest.testmod(factors)
    assert found.attempted
    assert not found.failed
