"""A CUDA device is waited for before every clock is read, and says itself what memory it holds; a CPU does neither."""

from typing import Any

import pytest
import torch
from torch import nn

from edlm.runs import timing

DEVICES = ("cuda", ["wait"]), ("cpu", [])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the device and of the clock, one after the other."""
    found: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: found.append("wait"))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: found.append("clock") or float(len(found)))
    return found


@pytest.mark.parametrize(("name", "wait"), DEVICES)
def test_work_is_over_when_the_clock_is_read(name: str, wait: list[str], asked: list[str]) -> None:
    def run(*_: Any) -> None:
        asked.append("run")

    device, once = torch.device(name), [*wait, "clock", "run", *wait, "clock"]
    taken = timing.seconds(run, device)
    assert (asked, taken) == (once, 2.0 + len(wait))
    asked.clear()
    found = timing.interleaved({"a": run, "b": run}, 2, device)
    assert (asked, list(found), [len(each) for each in found.values()]) == (once * 4, ["a", "b"], [2, 2])
    asked.clear()
    clock = timing.Clock(device)
    clock.timed(run, "part")()
    assert (asked, clock.parts["part"].seconds) == (once, 2.0 + len(wait))


def test_memory_of_a_device_is_what_torch_says_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    device, done = torch.device("cuda"), list[Any]()
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda own: 300 if own == device else 0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", done.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda own: done.append(own) or 500)
    assert timing.memory_in_use(device) == 300
    assert timing.peak_memory(lambda: done.append("run"), device, 300) == 200
    assert done == [device, "run", device]


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_large_model_has_two_operations_for_each_weight_of_a_matrix(blocks: int) -> None:
    """And four for each position that a token sees, in the width of its heads; biases are none."""
    network: Any = nn.Module()
    network.layers, network.widths = nn.ModuleList(nn.Linear(3, 4) for _ in range(blocks)), (9, 5)
    tokens = torch.zeros(2, 6)
    assert timing.transformer_flops(network, tokens) == 12 * blocks * (2 * 12 + 4 * 6 * 5)


def test_ratios_are_of_medians_with_the_ends_within_a_round() -> None:
    assert timing.ratios([4.0, 9.0, 6.0], [2.0, 3.0, 4.0]) == timing.Spread(2.0, 1.5, 3.0)


def test_growth_is_a_power_with_an_error_from_three_points_on() -> None:
    assert timing.growth([1.0, 4.0], [2.0, 16.0]) == timing.Fit(pytest.approx(1.5), None)
    found = timing.growth([1.0, 2.0, 4.0], [1.0, 4.0, 4.0])  # logarithms of base 2: 0, 2, 2 at 0, 1, 2
    assert found.exponent == pytest.approx(1.0)
    assert found.error == pytest.approx(((1 + 4 + 1) / 9 / 1 / 2) ** 0.5)
