"""The measuring of cost: interleaved runs, peak memory, the time of each part, and growth.

A CUDA device is waited for before a clock is read; elsewhere work is done when a call returns.
"""

import ctypes
import math
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edlm.nn.blocks import Head

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_HIGH_WATER = "5"
_MATMUL_SIZES = {"cpu": 1024, "cuda": 8192}


class Spread(NamedTuple):
    """The middle and the ends of some measurements."""

    median: float
    low: float
    high: float


class Part(NamedTuple):
    """The cost of one part of a run: calls, rows they had in all, seconds, floating-point operations."""

    calls: int = 0
    rows: int = 0
    seconds: float = 0.0
    flops: float = 0.0


class Fit(NamedTuple):
    """`time ~ size^exponent`, with the standard error of the exponent, None for two points."""

    exponent: float
    error: float | None


def spread(values: Sequence[float]) -> Spread:
    """Find the median, the smallest and the largest."""
    return Spread(statistics.median(values), min(values), max(values))


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Measure the wall time of one call."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def interleaved(runs: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Time A B C A B C ..., so that a machine that becomes slower does so for all: seconds of each, round by round."""
    rounds = [{name: seconds(run, device) for name, run in runs.items()} for _ in range(repeats)]
    return {name: [each[name] for each in rounds] for name in runs}


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """Compute how many times faster: the ratio of the medians, and the ends of the ratios within a round."""
    pairs = [a / b for a, b in zip(slow, fast, strict=True)]
    return Spread(statistics.median(slow) / statistics.median(fast), min(pairs), max(pairs))


def memory_in_use(device: torch.device) -> int:
    """Measure the bytes held now, unused ones given back before: by torch on CUDA, by the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # else what earlier runs have freed would be used again, and not seen
    return _status("VmRSS")


def peak_memory(run: Callable[[], object], device: torch.device, above: int) -> int:
    """Measure the bytes that a call holds at most, above a level; for devices of which `can_measure_memory` is true."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - above
    _CLEAR.write_text(_RESET_HIGH_WATER)
    run()
    return max(0, _status("VmHWM") - above)


def can_measure_memory(device: torch.device) -> bool:
    """Check whether `memory_in_use` and `peak_memory` have something to read: CUDA, or Linux."""
    return device.type == "cuda" or (_STATUS.is_file() and _CLEAR.is_file())


class Clock:
    """Seconds, calls and operations by part, gathered by hooks; a part inside of another counts in both."""

    def __init__(self, device: torch.device) -> None:
        self.parts: defaultdict[str, Part] = defaultdict(Part)
        self._device = device
        self._started: list[float] = []

    @contextmanager
    def watching(
        self, modules: Mapping[str, nn.Module], flops: Callable[..., float] = lambda *_: 0.0
    ) -> Iterator[None]:
        """Time every call of the modules while the context is open; flops: of a module and its inputs."""
        handles: list[Any] = []
        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(lambda *_: self._start()))
            handles.append(module.register_forward_hook(self._hook(name, flops)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Wrap a function, so that its calls are counted as a part."""

        def run(*arguments: Any) -> Any:
            self._start()
            out = function(*arguments)
            self._stop(name, 0, 0.0)
            return out

        return run

    def _hook(self, name: str, flops: Callable[..., float]) -> Callable[..., None]:
        def stop(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
            first = inputs[0]
            self._stop(name, len(first) if isinstance(first, Tensor) else 0, flops(module, *inputs))

        return stop

    def _start(self) -> None:
        _wait(self._device)
        self._started.append(time.perf_counter())

    def _stop(self, name: str, rows: int, flops: float) -> None:
        _wait(self._device)
        part, taken = self.parts[name], time.perf_counter() - self._started.pop()
        self.parts[name] = Part(part.calls + 1, part.rows + rows, part.seconds + taken, part.flops + flops)


def operations(module: nn.Module, *inputs: Any) -> float:
    """Count the operations of a call of a transformer, or of its vocabulary head."""
    return head_flops(module, *inputs) if isinstance(module, Head) else transformer_flops(module, *inputs)


def head_flops(head: Head, hidden: Tensor, columns: slice | None = None) -> float:
    """Count `2 h v` operations per hidden state, or `2 h` per column where only some are asked for."""
    return 2.0 * hidden.numel() * len(range(head.out_features)[columns or slice(None)])


def transformer_flops(
    network: nn.Module, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None
) -> float:
    """Count `24 h^2` operations per token (b, l) and block, and `4 l h` for its attention, causal or not.

    With positions (n,), `18 h^2` of the last block are at those alone. A large model has two for each weight of a
    matrix, and computes all positions.
    """
    arguments: Any = getattr(network, "arguments", None)
    if arguments is None:
        blocks: Any = network.layers
        weights = sum(each.numel() for each in blocks.parameters() if each.ndim == 2)
        return float(tokens.numel() * (2 * weights + 4 * tokens.shape[1] * network.widths[1] * len(blocks)))  # type: ignore[index]
    h, num_layers = arguments["hidden_size"], arguments["num_layers"]
    spared = 0 if positions is None else tokens.numel() - positions.numel()
    return float(tokens.numel() * num_layers * (24 * h * h + 4 * tokens.shape[1] * h) - spared * 18 * h * h)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations per second of a large square product, the best of ten: the most a network reaches."""
    size = _MATMUL_SIZES[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))  # a card slows down on real numbers
    seconds(lambda: a @ b, device)
    return 2.0 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(10))


def growth(sizes: Sequence[float], times: Sequence[float]) -> Fit:
    """Fit a power law by least squares on logarithms. Needs two different sizes."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in times]
    slope, offset = statistics.linear_regression(x, y)
    if len(x) < 3:
        return Fit(slope, None)
    residual = sum((b - offset - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return Fit(slope, math.sqrt(residual / (len(x) - 2) / (statistics.variance(x) * (len(x) - 1))))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status(name: str) -> int:
    """A line of the process's own status, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text("utf-8"))
    return int(found[1]) * 1024 if found else 0
