"""What is measured by a clock that the test moves: seconds of parts, the best of some tries, and what /proc says."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from edlm.nn.blocks import Head
from edlm.runs import timing
from edlm.runs.timing import Clock, Part, Spread

CPU = torch.device("cpu")


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_seconds_are_those_of_one_call(passing: list[float]) -> None:
    def run() -> None:
        passing[0] += 2.5

    assert timing.seconds(run, CPU) == 2.5
    assert timing.spread([3.0, 1.0, 7.0, 5.0]) == Spread(4.0, 1.0, 7.0)


def test_the_rate_of_a_product_is_the_best_of_ten_after_a_first_one(
    passing: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is over in half a second and does not count, nor would an eleventh, of a quarter."""

    def takes() -> Iterator[float]:
        yield from (0.5, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 9.0, 2.0)
        while True:
            yield 0.25

    class Matrix:
        def __matmul__(self, other: object) -> None:
            passing[0] += next(left)

    left, drawn = takes(), list[tuple[object, ...]]()
    monkeypatch.setattr(timing, "_MATMUL_SIZES", {"cpu": 4})
    monkeypatch.setattr(torch, "randn", lambda *size, **how: drawn.append((*size, how["dtype"])) or Matrix())
    assert timing.matmul_rate(CPU, torch.bfloat16) == 2 * 4 * 4 * 4 / 2.0
    assert drawn == [(4, 4, torch.bfloat16)] * 2


def test_a_part_inside_of_another_counts_in_both(passing: list[float]) -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            passing[0] += 1.0
            return x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor, times: int) -> Tensor:
            passing[0] += 0.5
            for _ in range(times):
                x = self.inner(x)
            return x

    outer, clock = Outer(), Clock(CPU)
    assert clock.parts["nothing"] == Part(0, 0, 0.0, 0.0)
    with clock.watching({"outer": outer, "inner": outer.inner}, lambda module, x, *_: 10.0 * x.numel()):
        outer(torch.zeros(3, 2), 2)
        outer(torch.zeros(4, 2), 1)
    outer(torch.zeros(4, 2), 1)  # nobody watches any more
    assert clock.parts["outer"] == Part(2, 7, 4.0, 140.0)
    assert clock.parts["inner"] == Part(3, 10, 3.0, 200.0)
    assert clock.timed(outer, "called")(torch.zeros(5, 2), 3) is not None
    assert clock.parts["called"] == Part(1, 0, 3.5, 0.0)
    with clock.watching({"inner": outer.inner}):
        outer.inner(SimpleNamespace())
    assert clock.parts["inner"] == Part(4, 10, 4.0, 200.0), "what is no tensor has no rows, and no operations are told"


def test_operations_are_those_of_the_head_or_of_the_network() -> None:
    head, hidden = Head(4, 7), torch.zeros(3, 4)
    assert timing.operations(head, hidden) == 2 * 3 * 4 * 7
    assert timing.operations(head, hidden, slice(1, 3)) == 2 * 3 * 4 * 2
    assert timing.operations(head, hidden, slice(5, 99)) == 2 * 3 * 4 * 2
    network = nn.Module()
    network.arguments = {"hidden_size": 4, "num_layers": 3}  # type: ignore[assignment]
    assert timing.operations(network, torch.zeros(2, 5)) == 10 * 3 * (24 * 16 + 4 * 5 * 4)
    assert timing.operations(network, torch.zeros(2, 5), None, torch.zeros(4)) == (
        10 * 3 * (24 * 16 + 4 * 5 * 4) - 6 * 18 * 16
    )


def test_memory_is_what_the_system_says_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, clear = tmp_path / "status", tmp_path / "clear"
    monkeypatch.setattr(timing, "_STATUS", status)
    monkeypatch.setattr(timing, "_CLEAR", clear)
    assert not timing.can_measure_memory(CPU)
    status.write_text("Name: x\nVmHWM:\t    9 kB\nVmRSS:\t    4 kB\n")
    assert not timing.can_measure_memory(CPU)
    clear.write_text("")
    assert timing.can_measure_memory(CPU)
    assert timing.can_measure_memory(torch.device("cuda"))
    assert timing.memory_in_use(CPU) == 4096
    ran: list[str] = []
    assert timing.peak_memory(lambda: ran.append(clear.read_text()), CPU, 4096) == 5 * 1024
    assert ran == ["5"], "the mark is set back before the call"
    assert timing.peak_memory(lambda: None, CPU, 10_000) == 0
    status.write_text("Name: x\n")
    assert timing.memory_in_use(CPU) == 0
