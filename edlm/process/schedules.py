"""Noise schedules: the share of a text that is kept at time t, grids of times, and weights that follow from both.

A schedule is a triple of pure functions. `alpha(t)` is the probability that a token is kept. It decreases from 1 at
t = 0 (data) to 0 at t = 1 (all masks), up to the `eps` or `sigma` limits of the schedules that published weights use.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real

import torch
from torch import Tensor

from edlm import contracts
from edlm.process import arguments

Schedule = contracts.Schedule

_NO_TOKEN_LEFT = 1e-12  # float64 gives cos(pi / 2) = 6e-17; the published schedules end at 2e-9 or more
_HALF_PI = math.pi / 2
_TIME_ROUNDING = 1e-9  # a window that ends at a time of the grid, 0.56 of 100 steps, includes it however it is rounded


def log_linear(eps: float = 0.0) -> Schedule:
    """Build the schedule `alpha(t) = 1 - (1 - eps) t` (MDLM, Sahoo et al. 2024, arXiv 2406.07524).

    Args:
        eps: alpha(1). 0 is the exact process; published MDLM weights were trained with 1e-3.

    Returns:
        The schedule: `alpha`, its slope and its inverse.

    Raises:
        ValueError: unless 0 <= eps < 1.

    Example:
        >>> import edlm
        >>> edlm.schedules.log_linear().alpha(torch.tensor([0.0, 0.25, 1.0]))
        tensor([1.0000, 0.7500, 0.0000])
    """
    arguments.require_numbers(eps=eps)
    _require(0.0 <= eps < 1.0, f"log_linear: eps = {eps} must lie in [0, 1)")
    return _schedule(_log_linear_alpha, _log_linear_slope, _log_linear_inverse, rate=1.0 - eps)


def cosine(eps: float = 0.0) -> Schedule:
    """Build the schedule `alpha(t) = eps + (1 - eps) cos(pi t / 2)`.

    Args:
        eps: alpha(1).

    Returns:
        The schedule: `alpha`, its slope and its inverse.

    Raises:
        ValueError: unless 0 <= eps < 1.

    Example:
        >>> import edlm
        >>> edlm.schedules.cosine().alpha(torch.tensor([0.0, 0.5]))
        tensor([1.0000, 0.7071])
    """
    arguments.require_numbers(eps=eps)
    _require(0.0 <= eps < 1.0, f"cosine: eps = {eps} must lie in [0, 1)")
    return _schedule(_cosine_alpha, _cosine_slope, _cosine_inverse, eps=eps, rate=1.0 - eps)


def cosine_squared(eps: float = 0.0) -> Schedule:
    """Build the schedule `alpha(t) = eps + (1 - eps) cos(pi t / 2)^2`.

    Args:
        eps: alpha(1).

    Returns:
        The schedule: `alpha`, its slope and its inverse.

    Raises:
        ValueError: unless 0 <= eps < 1.

    Example:
        >>> import edlm
        >>> edlm.schedules.cosine_squared().alpha(torch.tensor([0.0, 0.5]))
        tensor([1.0000, 0.5000])
    """
    arguments.require_numbers(eps=eps)
    _require(0.0 <= eps < 1.0, f"cosine_squared: eps = {eps} must lie in [0, 1)")
    return _schedule(_cosine_squared_alpha, _cosine_squared_slope, _cosine_squared_inverse, eps=eps, rate=1.0 - eps)


def linear(sigma_min: float = 0.001, sigma_max: float = 7.0) -> Schedule:
    """Build the schedule `sigma(t) = sigma_min + (sigma_max - sigma_min) t`, `alpha = exp(-sigma)`.

    Args:
        sigma_min: sigma(0), so that alpha(0) = exp(-sigma_min) is a little below 1.
        sigma_max: sigma(1), so that alpha(1) = exp(-sigma_max) is a little above 0.

    Returns:
        The schedule: `alpha`, its slope and its inverse.

    Raises:
        ValueError: unless 0 <= sigma_min < sigma_max.

    Example:
        >>> import edlm
        >>> schedule = edlm.schedules.linear(sigma_min=0.0, sigma_max=7.0)
        >>> edlm.schedules.sigma(schedule, torch.tensor([0.5]))
        tensor([3.5000])
    """
    arguments.require_numbers(sigma_min=sigma_min, sigma_max=sigma_max)
    _require(
        0.0 <= sigma_min < sigma_max,
        f"linear: sigma_min = {sigma_min} must be at least 0 and below sigma_max = {sigma_max}",
    )
    rate = sigma_max - sigma_min
    return _schedule(_linear_alpha, _linear_slope, _linear_inverse, sigma_min=sigma_min, rate=rate)


def geometric(sigma_min: float = 1e-4, sigma_max: float = 20.0) -> Schedule:
    """Build the schedule `sigma(t) = sigma_min^(1 - t) sigma_max^t`, `alpha = exp(-sigma)` (SEDD, Lou et al. 2023).

    Args:
        sigma_min: sigma(0), so that alpha(0) = exp(-sigma_min) is a little below 1.
        sigma_max: sigma(1), so that alpha(1) = exp(-sigma_max) is a little above 0.

    Returns:
        The schedule: `alpha`, its slope and its inverse.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.

    Example:
        >>> import edlm
        >>> schedule = edlm.schedules.geometric(sigma_min=0.01, sigma_max=1.0)
        >>> edlm.schedules.sigma(schedule, torch.tensor([0.5]))
        tensor([0.1000])
    """
    arguments.require_numbers(sigma_min=sigma_min, sigma_max=sigma_max)
    _require(
        0.0 < sigma_min < sigma_max,
        f"geometric: sigma_min = {sigma_min} must be above 0 and below sigma_max = {sigma_max}",
    )
    log_ratio = math.log(sigma_max / sigma_min)

    return _schedule(_geometric_alpha, _geometric_slope, _geometric_inverse, sigma_min=sigma_min, log_ratio=log_ratio)


def polynomial(power: float = 2.0) -> Schedule:
    """Build the schedule `alpha(t) = 1 - t^power`.

    Args:
        power: at least 1, since the slope at 0 is infinite below it.

    Returns:
        The schedule: `alpha`, its slope and its inverse.

    Raises:
        ValueError: unless power >= 1.

    Example:
        >>> import edlm
        >>> edlm.schedules.polynomial(power=2.0).alpha(torch.tensor([0.5]))
        tensor([0.7500])
    """
    arguments.require_numbers(power=power)
    _require(power >= 1.0, f"polynomial: power = {power} must be at least 1")
    return _schedule(_polynomial_alpha, _polynomial_slope, _polynomial_inverse, power=power)


def sigma(schedule: Schedule, t: Tensor) -> Tensor:
    """Compute the noise level `sigma(t) = -log alpha(t)`, which time-conditioned networks read.

    Args:
        schedule: the noise schedule.
        t: times in [0, 1], any shape.

    Returns:
        Noise levels, shaped like t; infinite where alpha is 0.

    Example:
        >>> import edlm
        >>> edlm.schedules.sigma(edlm.schedules.log_linear(), torch.tensor([0.5, 1.0]))
        tensor([0.6931,    inf])
    """
    return -schedule.alpha(t).log()


def require_finite_sigma(schedule: Schedule, reader: str) -> None:
    """Raise ValueError if alpha(1) is zero up to rounding, so that sigma(1) is infinite.

    Args:
        schedule: the noise schedule.
        reader: what reads the noise level, "denoiser" or "energy"; the message names it.

    Raises:
        ValueError: if alpha(1) < 1e-12.

    Example:
        >>> import edlm
        >>> edlm.schedules.require_finite_sigma(edlm.schedules.log_linear(eps=1e-3), "denoiser")
    """
    at_one = float(schedule.alpha(torch.ones((), dtype=torch.float64)))
    _require(
        at_one >= _NO_TOKEN_LEFT,
        f"a time-conditioned {reader} needs a schedule with a finite sigma(1): log_linear(eps=1e-3); "
        f"here alpha(1) = {at_one:g}",
    )


def nelbo_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """Compute `-alpha'(t) / (1 - alpha(t))`, the weight of t in the continuous NELBO (Sahoo et al. 2024, section 3).

    Args:
        schedule: the noise schedule.
        t: times in (0, 1], any shape.

    Returns:
        Weights, shaped like t.

    Example:
        >>> import edlm
        >>> edlm.schedules.nelbo_weight(edlm.schedules.log_linear(), torch.tensor([0.25, 0.5]))  # 1 / t
        tensor([4., 2.])
    """
    return -schedule.alpha_slope(t) / (1.0 - schedule.alpha(t))


def uniform_grid(num_steps: int) -> Tensor:
    """Build equally spaced times `1 = t_0 > t_1 > ... > t_T = 0`.

    Args:
        num_steps: T.

    Returns:
        Times, float64 (T + 1,).

    Raises:
        ValueError: if num_steps < 1.

    Example:
        >>> import edlm
        >>> edlm.schedules.uniform_grid(4).tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    arguments.require_whole("num_steps", num_steps)
    return torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)


def cosine_grid(num_steps: int) -> Tensor:
    """Build times `t_n = cos(pi n / 2 T)`: few tokens are revealed at first, and many at the end.

    Args:
        num_steps: T.

    Returns:
        Times, float64 (T + 1,), from 1 down to exactly 0.

    Raises:
        ValueError: if num_steps < 1.

    Example:
        >>> import edlm
        >>> edlm.schedules.cosine_grid(2).tolist()
        [1.0, 0.7071067811865476, 0.0]
    """
    arguments.require_whole("num_steps", num_steps)
    times = torch.cos(torch.linspace(0.0, math.pi / 2, num_steps + 1, dtype=torch.float64))
    return torch.cat([times[:-1], times.new_zeros(1)])


def check_window(window: tuple[float, float]) -> None:
    """Raise ValueError unless a window of times lies in [0, 1] and its ends are in order.

    Args:
        window: (low, high).

    Raises:
        ValueError: unless 0 <= low <= high <= 1.

    Example:
        >>> import edlm
        >>> edlm.schedules.check_window((0.4, 1.0))
    """
    pair = isinstance(window, Sequence) and not isinstance(window, str) and len(window) == 2
    if not pair or not all(isinstance(time, Real) for time in window):
        raise ValueError(f"window = {arguments.shown(window)} must be two times (low, high) with 0 <= low <= high <= 1")
    low, high = window
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(f"window = ({low}, {high}) must satisfy 0 <= low <= high <= 1")


def inside(t: Tensor, window: tuple[float, float]) -> Tensor:
    """Say which times lie in a closed window, up to rounding.

    Args:
        t: times, any shape.
        window: (low, high).

    Returns:
        Bool, shaped like t.

    Example:
        >>> import edlm
        >>> edlm.schedules.inside(torch.tensor([0.2, 0.4, 0.9]), (0.4, 1.0)).tolist()
        [False, True, True]
    """
    low, high = window
    return (t >= low - _TIME_ROUNDING) & (t <= high + _TIME_ROUNDING)


def _schedule(
    alpha: Callable[..., Tensor], slope: Callable[..., Tensor], inverse: Callable[..., Tensor], **numbers: float
) -> Schedule:
    return Schedule(*(partial(function, **numbers) for function in (alpha, slope, inverse)))


def _log_linear_alpha(t: Tensor, rate: float) -> Tensor:
    return 1.0 - rate * t


def _log_linear_slope(t: Tensor, rate: float) -> Tensor:
    return torch.full_like(t, -rate)


def _log_linear_inverse(alpha: Tensor, rate: float) -> Tensor:
    return (1.0 - alpha) / rate


def _cosine_alpha(t: Tensor, eps: float, rate: float) -> Tensor:
    return (eps + rate * torch.cos(_HALF_PI * t)).clamp(min=0.0)  # float32 gives cos(pi / 2) < 0


def _cosine_slope(t: Tensor, eps: float, rate: float) -> Tensor:
    return -rate * _HALF_PI * torch.sin(_HALF_PI * t)


def _cosine_inverse(alpha: Tensor, eps: float, rate: float) -> Tensor:
    return torch.acos(((alpha - eps) / rate).clamp(0.0, 1.0)) / _HALF_PI


def _cosine_squared_alpha(t: Tensor, eps: float, rate: float) -> Tensor:
    return eps + rate * torch.cos(_HALF_PI * t) ** 2


def _cosine_squared_slope(t: Tensor, eps: float, rate: float) -> Tensor:
    return -rate * _HALF_PI * torch.sin(math.pi * t)


def _cosine_squared_inverse(alpha: Tensor, eps: float, rate: float) -> Tensor:
    return torch.acos(((alpha - eps) / rate).clamp(0.0, 1.0).sqrt()) / _HALF_PI


def _linear_alpha(t: Tensor, sigma_min: float, rate: float) -> Tensor:
    return torch.exp(-(sigma_min + rate * t))


def _linear_slope(t: Tensor, sigma_min: float, rate: float) -> Tensor:
    return -rate * torch.exp(-(sigma_min + rate * t))


def _linear_inverse(alpha: Tensor, sigma_min: float, rate: float) -> Tensor:
    return (-alpha.log() - sigma_min) / rate


def _geometric_sigma(t: Tensor, sigma_min: float, log_ratio: float) -> Tensor:
    return sigma_min * torch.exp(log_ratio * t)


def _geometric_alpha(t: Tensor, sigma_min: float, log_ratio: float) -> Tensor:
    return torch.exp(-_geometric_sigma(t, sigma_min, log_ratio))


def _geometric_slope(t: Tensor, sigma_min: float, log_ratio: float) -> Tensor:
    level = _geometric_sigma(t, sigma_min, log_ratio)
    return -log_ratio * level * torch.exp(-level)


def _geometric_inverse(alpha: Tensor, sigma_min: float, log_ratio: float) -> Tensor:
    return torch.log(-alpha.log() / sigma_min) / log_ratio


def _polynomial_alpha(t: Tensor, power: float) -> Tensor:
    return 1.0 - t**power


def _polynomial_slope(t: Tensor, power: float) -> Tensor:
    return -power * t ** (power - 1.0)


def _polynomial_inverse(alpha: Tensor, power: float) -> Tensor:
    return (1.0 - alpha) ** (1.0 / power)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
