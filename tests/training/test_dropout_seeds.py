"""The seed of dropout: of its own in every run, step and process, and the same when a run goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny_run

from edlm.runs import processes


class Seeded(Exception):
    """The generator is given this seed."""


def seed_of(run: Any, step: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> int:
    def seeded(value: int) -> None:
        raise Seeded(value)

    run.step = step
    with monkeypatch.context() as patched:
        patched.setattr(torch, "manual_seed", seeded)
        patched.setattr(processes, "rank", lambda: rank)
        with pytest.raises(Seeded) as found:
            run._update()
    value: int = found.value.args[0]
    return value


@pytest.mark.parametrize(
    ("seed", "step", "rank", "expected"),
    [
        (0, 0, 0, 0),
        (0, 5, 0, 5),
        (3, 5, 0, 3_000_014),
        (3, 5, 1, 3_000_014 + 2**48),
        (3, 5, 2, 3_000_014 + 2**49),
        (2**62, 0, 0, 2**62 * 1_000_003 % 2**64),
    ],
)
def test_no_two_runs_steps_or_processes_share_their_dropout(
    seed: int, step: int, rank: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(tmp_path)
    run.seed = seed
    assert seed_of(run, step, rank, monkeypatch) == expected
