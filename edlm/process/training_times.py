"""Times at which a batch is trained: in strata, or in proportion to the weight that the NELBO gives them."""

import math

import torch
from torch import Tensor

from edlm.process.schedules import Schedule

_BEND, _BISECTIONS = 0.8, 50


def stratified_times(
    uniforms: Tensor, row: Tensor, num_rows: Tensor | int, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """Draw training times with one per stratum: `t = low + (high - low) ((u + row) / num_rows mod 1)`.

    Args:
        uniforms: float64 (b,).
        row: (b,), the index of each row in the whole batch, so that parts of a batch get the times of the whole.
        num_rows: rows of the whole batch.
        low: the smallest time.
        high: the largest one.

    Returns:
        Times, float64 (b,), in (low, high).

    Raises:
        ValueError: unless 0 <= low < high <= 1.

    Example:
        >>> from edlm.process import training_times
        >>> training_times.stratified_times(torch.full((4,), 0.5), torch.arange(4), 4).tolist()
        [0.125, 0.375, 0.625, 0.875]
    """
    _require(0.0 <= low < 1.0, f"low = {low} must lie in [0, 1)")
    _require(low < high <= 1.0, f"high = {high} must lie in ({low}, 1]")
    return low + (high - low) * (((uniforms + row) / num_rows) % 1.0)


def of_blocks(uniforms: Tensor, row: Tensor, num_rows: Tensor | int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Draw a training time for every block of a text, each block stratified over the rows of a batch.

    Block j of a row has the stratum of row + j: a text has its noise levels spread, and its first block those of
    `stratified_times`.

    Args:
        uniforms: float64 (b, blocks).
        row: see `stratified_times`, as the other arguments.
        num_rows: rows of the whole batch.
        low: the smallest time.
        high: the largest one.

    Returns:
        Times, float64 (b, blocks), in (low, high).

    Raises:
        ValueError: unless 0 <= low < high <= 1.

    Example:
        >>> from edlm.process import training_times
        >>> training_times.of_blocks(torch.full((2, 2), 0.5), torch.arange(2), 2).tolist()
        [[0.25, 0.75], [0.75, 0.25]]
    """
    shifted = row.unsqueeze(-1) + torch.arange(uniforms.shape[1], device=row.device)
    return stratified_times(uniforms, shifted, num_rows, low, high)


def importance_times(uniforms: Tensor, schedule: Schedule, low: float = 1e-3) -> Tensor:
    """Draw training times in proportion to the NELBO's weight.

    They solve `1 - alpha(t) = (1 - alpha(low))^(1-u) (1 - alpha(1))^u`. The weight is `d/dt log(1 - alpha(t))`. So
    `log(1 - alpha)` is uniform between its values at low and 1, and every time has the same `importance_weight`.

    Args:
        uniforms: float64 (b,), stratified or not.
        schedule: the noise schedule.
        low: the smallest time; the weight is infinite at 0.

    Returns:
        Times, float64 (b,).

    Raises:
        ValueError: unless 0 < low < 1.

    Example:
        >>> import edlm
        >>> from edlm.process import training_times
        >>> half = torch.tensor([0.5], dtype=torch.float64)
        >>> training_times.importance_times(half, edlm.schedules.log_linear(), low=0.01)  # sqrt(0.01)
        tensor([0.1000], dtype=torch.float64)
    """
    _require(0.0 < low < 1.0, f"low = {low} must lie in (0, 1)")
    low_end, high_end = _log_masked(schedule, low, uniforms), _log_masked(schedule, 1.0, uniforms)
    return schedule.inverse(-torch.expm1(low_end + uniforms * (high_end - low_end)))


def importance_weight(schedule: Schedule, t: Tensor, low: float = 1e-3) -> Tensor:
    """Compute the NELBO's weight at `importance_times`: `log( (1 - alpha(1)) / (1 - alpha(low)) )`, equal at all times.

    Args:
        schedule: the noise schedule.
        t: times, any shape.
        low: the smallest time.

    Returns:
        The weight, shaped like t.

    Raises:
        ValueError: unless 0 < low < 1.

    Example:
        >>> import edlm
        >>> from edlm.process import training_times
        >>> t = torch.tensor([0.3, 0.9], dtype=torch.float64)
        >>> training_times.importance_weight(edlm.schedules.log_linear(), t, low=0.01)  # log 100
        tensor([4.6052, 4.6052], dtype=torch.float64)
    """
    _require(0.0 < low < 1.0, f"low = {low} must lie in (0, 1)")
    return (_log_masked(schedule, 1.0, t) - _log_masked(schedule, low, t)).expand(t.shape)


def bell(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw shares of masks of which most lie in the middle, by the density `1 - 0.8 cos(2 pi share)`.

    It is nowhere below 0.2, so weights that divide by it stay small.

    Args:
        uniforms: float64 (b,) in (0, 1), stratified or not.

    Returns:
        Shares (b,) in (0, 1) and the density of each (b,).

    Example:
        >>> from edlm.process import training_times
        >>> share, density = training_times.bell(torch.tensor([0.5], dtype=torch.float64))
        >>> round(float(share), 9), round(float(density), 9)
        (0.5, 1.8)
    """
    low, high = torch.zeros_like(uniforms), torch.ones_like(uniforms)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        below = middle - _BEND * (2.0 * math.pi * middle).sin() / (2.0 * math.pi) < uniforms
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    share = 0.5 * (low + high)
    return share, 1.0 - _BEND * (2.0 * math.pi * share).cos()


def _log_masked(schedule: Schedule, t: float, like: Tensor) -> Tensor:
    """Compute `log(1 - alpha(t))`, a float64 scalar on the device of `like`."""
    return torch.log1p(-schedule.alpha(torch.full((), t, dtype=torch.float64, device=like.device)))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
