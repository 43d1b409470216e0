"""The positions that a pass reveals, chosen by how sure the denoiser is of them: plans that read the pass.

A plan of this file is a rule: it chooses positions by the state alone, and draws no random number. So a text is written
along one path, and its likelihood is exact.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edlm.process import arguments
from edlm.process.schedules import Schedule
from edlm.samplers import planning
from edlm.samplers.planning import Expected, Seen

_TIES = 2.0**20  # what differs by less than about a millionth is a tie, whatever rounding made of it
_LAST = 1e300  # after every number, and before what is not masked
PROXIES = Seen._fields


@dataclass(frozen=True)
class EntropyBound:
    """The surest positions whose tokens, drawn each from its own law, can share little information.

    Take the first k positions in the order of `by`. The sum of their entropies, less the largest one, bounds their
    mutual information. A pass reveals the largest k for which this bound is at most gamma, and at least one position
    (Ben-Hamu et al. 2025, arXiv 2505.24857). At gamma = 0 a pass reveals one position, and all whose token is certain.

    Args:
        gamma: nats of a pass, at least 0.
        most: the most positions of a pass; None: no limit.
        by: the order of the positions: `"entropy"`, lowest first; `"confidence"` or `"margin"`, highest first.

    Raises:
        ValueError: for a gamma below 0, for `most` below 1, and for an unknown order.

    Example:
        >>> import edlm, torch
        >>> from edlm.samplers.choices import Seen
        >>> entropy = torch.tensor([[0.5, 0.1, 0.2, 0.3]])
        >>> seen, masked = Seen(entropy, 1.0 - entropy, 1.0 - entropy), torch.ones(1, 4, dtype=torch.bool)
        >>> edlm.plans.EntropyBound(0.1).choose(seen, masked).tolist()  # 0.1 + 0.2 less 0.2 is at most 0.1
        [[False, True, True, False]]
    """

    gamma: float = 0.1
    most: int | None = None
    by: str = "entropy"
    name: ClassVar[str] = "entropy_bound"

    def __post_init__(self) -> None:
        arguments.require_numbers(gamma=self.gamma)
        if not self.gamma >= 0.0:
            raise ValueError(f"gamma = {self.gamma} must be at least 0")
        if self.most is not None:
            arguments.require_whole("most", self.most, also=", or null")
        _check_proxy(self.by)

    def __str__(self) -> str:
        most = "" if self.most is None else f", at most {self.most}"
        return f"entropy bound {self.gamma:g}{_told(self.by, 'entropy')}{most}"

    def choose(self, seen: Seen, masked: Tensor) -> Tensor:
        """Take the largest k whose entropies, less the largest one, sum up to gamma at most."""
        order = ordered(seen, masked, self.by)
        entropy = torch.where(masked, seen.entropy, torch.inf).gather(-1, order)
        largest = entropy.cummax(-1).values.roll(1, -1)  # of those before each
        largest[..., 0] = 0.0
        place = torch.arange(masked.shape[1], device=masked.device)
        within = torch.minimum(entropy, largest).cumsum(-1) <= self.gamma  # the sum less the largest, with no rounding
        if self.most is not None:
            within = within & (place < self.most)
        return _at(order, within | (place == 0)) & masked

    def expected(self, schedule: Schedule, length: int, window: tuple[float, float]) -> None:
        """Return None: how many passes a text takes depends on its tokens."""
        return None


@dataclass(frozen=True)
class Confidence:
    """Every position whose likeliest token has more than a given probability, or else the surest one.

    This is the threshold of parallel decoding (Wu et al. 2025, arXiv 2505.22618).

    Args:
        threshold: a probability; at 1 a pass reveals one position.

    Raises:
        ValueError: for a threshold below 0 or above 1.

    Example:
        >>> import edlm
        >>> print(edlm.plans.Confidence(0.9))
        confidence above 0.9
    """

    threshold: float = 0.9
    name: ClassVar[str] = "confidence"

    def __post_init__(self) -> None:
        arguments.require_numbers(threshold=self.threshold)
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold = {self.threshold} must lie in [0, 1]")

    def __str__(self) -> str:
        return f"confidence above {self.threshold:g}"

    def choose(self, seen: Seen, masked: Tensor) -> Tensor:
        """Take those above the threshold, and the surest one."""
        return first(ordered(seen, masked, "confidence"), 1) & masked | (seen.confidence > self.threshold) & masked

    def expected(self, schedule: Schedule, length: int, window: tuple[float, float]) -> None:
        """Return None: how many passes a text takes depends on its tokens."""
        return None


@dataclass(frozen=True)
class Ranked:
    """A fixed number of positions in every pass, the surest first.

    By `"margin"` it is the top-K probability margin (Kim et al. 2025, arXiv 2502.06768), by `"confidence"` the order of
    MaskGIT without its noise (Chang et al. 2022, arXiv 2202.04200).

    Args:
        count: positions of a pass.
        by: `"confidence"`, the largest probability; `"margin"`, its lead over the second largest; `"entropy"`, lowest
            first.

    Raises:
        ValueError: for a count below one, and for an unknown order.

    Example:
        >>> import edlm
        >>> print(edlm.plans.Ranked(4, by="margin"))
        4 a pass by margin
    """

    count: int = 1
    by: str = "confidence"
    name: ClassVar[str] = "ranked"

    def __post_init__(self) -> None:
        planning.check_count(self.count)
        _check_proxy(self.by)

    def __str__(self) -> str:
        return f"{'one by one' if self.count == 1 else f'{self.count} a pass'} by {self.by}"

    def choose(self, seen: Seen, masked: Tensor) -> Tensor:
        """Take the first ones."""
        return first(ordered(seen, masked, self.by), self.count) & masked

    def expected(self, schedule: Schedule, length: int, window: tuple[float, float]) -> Expected:
        """Count the passes, and those inside the window: nothing is left to chance."""
        return planning.by_count(schedule, length, window, self.count)


def ordered(seen: Seen, masked: Tensor, by: str) -> Tensor:
    """Order the positions of each row, its masks first and the surest of them first: int64 (b, l).

    Of equals, up to about a millionth, the left one comes first; what is no number comes last.
    """
    value = seen.entropy if by == "entropy" else -getattr(seen, by)
    rounded = (value * _TIES).round().nan_to_num(nan=_LAST)
    return torch.where(masked, rounded, torch.inf).argsort(dim=-1, stable=True)


def first(order: Tensor, count: int) -> Tensor:
    """Mark the first ones of an order of the positions: int64 (b, l) to bool (b, l)."""
    return _at(order, (torch.arange(order.shape[1], device=order.device) < count).expand_as(order))


def _at(order: Tensor, taken: Tensor) -> Tensor:
    """Put what is taken of an order, bool (b, l), at the positions themselves."""
    return torch.zeros_like(taken).scatter(-1, order, taken)


def _check_proxy(by: str) -> None:
    if by not in PROXIES:
        raise ValueError(f"by = {by!r} must be one of {', '.join(PROXIES)}")


def _told(by: str, plain: str) -> str:
    return "" if by == plain else f" by {by}"


planning.register(EntropyBound)
planning.register(Confidence)
planning.register(Ranked)
