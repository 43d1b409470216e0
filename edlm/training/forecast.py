"""The forecast of a run before its first step: memory and time, and what to lower when memory does not suffice."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from edlm.runs import processes, tables
from edlm.training import muon

_ROWS, _MORE_ROWS = 2, 16  # of the small step that is measured, and of another where that one is over at once
_TRIES = 3  # of each, the shortest counts: another program may take a core for a moment
_PATIENCE = 5.0  # seconds of tries, after which there is no other
_AT_ONCE = 0.25  # seconds: much of so short a step does not grow with the rows
_MEMORY = Path("/proc/meminfo")
_REFUSED = ("can't allocate memory", "not enough memory")  # how a CPU's allocator says it


class Forecast(NamedTuple):
    """Bytes by what holds them, the rows of a part, seconds of a row's pass and gradients, bytes that are free."""

    parameters: int
    held: dict[str, int]
    row: int  # bytes that gradients of one row's loss keep
    rows: int
    seconds: float
    free: int | None

    @property
    def activations(self) -> int:
        """Bytes of one part."""
        return self.row * self.rows

    @property
    def missing(self) -> int:
        """Bytes that the first step takes beyond what is held now: gradients, optimizer state, activations."""
        return self.held["gradients"] + self.held["optimizer"] + self.activations


def forecast(
    network: nn.Module,
    stages: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int], Tensor],
    settings: Mapping[str, Any],
) -> Forecast:
    """Count what is held, and measure a small step or two, whose gradients are thrown away.

    loss: of so many rows. Activations are what autograd keeps of them, in proportion to the rows; temporary tensors
    are not counted. A device that a small step leaves idle takes less time per row than is found here.
    """
    own = list(network.parameters())
    size, trained = _bytes(own), _bytes([p for p in own if p.requires_grad])
    others = {_storage(p).data_ptr(): p for p in stages.parameters()}  # frozen tensors may be in both, in one memory
    for parameter in own:
        others.pop(_storage(parameter).data_ptr(), None)
    held = {"parameters": size, "EMA": trained, "frozen networks": _bytes(list(others.values()))}
    held |= {"gradients": trained, "optimizer": _optimizer_bytes(optimizer)}
    rows = math.ceil(_share(settings) / settings["accumulate"])
    some = min(_ROWS, rows)
    kept: dict[int, int] = {}
    weights = {_storage(p).data_ptr() for p in stages.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    loss(some).backward()  # what is done once, such as compilation, is not counted
    first = _seconds(loss, some, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
    seconds = _shortest(loss, some, first)
    row, free, more = sum(kept.values()) // some, free_memory(own[0].device), min(_MORE_ROWS, rows)
    if seconds < _AT_ONCE and more > some and (free is None or 2 * more * row < free):
        some, seconds = more, _shortest(loss, more, _seconds(loss, more))
    network.zero_grad(set_to_none=True)
    return Forecast(sum(p.numel() for p in own), held, row, rows, seconds / some, free)


def _shortest(loss: Callable[[int], Tensor], rows: int, first: float) -> float:
    """Measure a step again, unless a first try says that this would take long."""
    found = [first]
    while len(found) < _TRIES and sum(found) < _PATIENCE:
        found.append(_seconds(loss, rows))
    return min(found)


def _seconds(loss: Callable[[int], Tensor], rows: int, seen: AbstractContextManager[Any] | None = None) -> float:
    start = time.perf_counter()
    with seen or nullcontext():
        value = loss(rows)
    value.backward()
    float(value.detach())  # waits for the device
    return time.perf_counter() - start


def table(found: Forecast, settings: Mapping[str, Any], length: int, step: int = 0) -> str:
    """Lay out the forecast for the terminal, with advice if memory will not suffice."""
    left, batch = settings["steps"] - step, _share(settings)
    whole = found.seconds * batch * left
    lines = [("parameters", f"{found.parameters:,}", "")]
    lines += [(name, _amount(size), "") for name, size in found.held.items() if size]
    lines.append(("activations", _amount(found.activations), f"{found.rows} rows of {length}, from a smaller step"))
    total = sum(found.held.values()) + found.activations
    free = "" if found.free is None else f"{_amount(found.free)} free now"
    lines.append(("together", _amount(total), free))
    lines.append(
        ("time", f"{_duration(whole)}", f"{left:,} steps of {_duration(found.seconds * batch)}, without validation")
    )
    if found.free is not None and found.missing > found.free:
        fits = (found.free - found.held["gradients"] - found.held["optimizer"]) // max(1, found.row)
        lines.append(("warning", "memory", f"will not suffice: {remedy(settings, length, fits)}"))
    return tables.table(lines)


@contextmanager
def advice(settings: Mapping[str, Any], length: int) -> Iterator[None]:
    """Turn an error of having no memory left into a ValueError of one line that says what to lower, and to what."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise ValueError(f"out of memory: {remedy(settings, length)}") from error


def ran_out(error: Exception) -> bool:
    """Check whether an error says that there was no memory left, on a device or for a CPU's tensor."""
    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return named or any(words in str(error) for words in _REFUSED)


def remedy(settings: Mapping[str, Any], length: int, fits: int | None = None) -> str:
    """Say what to lower and to what: parts of half as many rows, or of as many as fit; with one row, the length."""
    batch = _share(settings)
    rows = math.ceil(batch / settings["accumulate"])
    shorter = f"texts of {max(1, length // 2)} instead of {length}"
    if rows == 1:
        return f"a part is one row already; take {shorter}, or a smaller network"
    wanted = max(1, rows // 2 if fits is None else min(fits, rows - 1))
    parts = math.ceil(batch / wanted)
    same = f"set accumulate={parts} (parts of {math.ceil(batch / parts)} rows instead of {rows}; the same updates)"
    smaller = wanted * settings["accumulate"] * processes.world()
    return f"{same}, or batch_size={smaller}, or {shorter}"


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can be taken on a device now; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = _MEMORY.read_text("utf-8").splitlines() if _MEMORY.is_file() else []
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found) * 1024


def _share(settings: Mapping[str, Any]) -> int:
    """Rows of a batch that fall to this process, or one fewer."""
    return math.ceil(settings["batch_size"] / processes.world())


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    """Give what holds a tensor, or this process' part of it."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()


def _optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Its state if there is one, else what its kind will hold of each group: Adam's two moments, or a momentum."""
    state = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
    if state:
        return _bytes(state)
    return sum(_moments(group) * _bytes(group["params"]) for group in optimizer.param_groups)


def _moments(group: Mapping[str, Any]) -> int:
    """Count the tensors that the optimizer keeps of each weight of a group."""
    if group.get(muon.HIDDEN):
        return 1
    return 2 if "betas" in group else 1 if group.get("momentum") else 0


def _bytes(tensors: list[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _amount(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
