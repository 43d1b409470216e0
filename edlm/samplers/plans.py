"""The positions that a pass reveals: a family of values, of which a sampler has one.

A plan of this file is drawn before the first pass and depends on no token; `draw` fixes it for every row. What follows
from it alone follows here: how many passes are expected, and the chances by which a law is enumerated. Those that are
chosen from the pass, in `samplers.choices`, are shown here too.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edlm.process import absorbing, arguments, schedules
from edlm.process.absorbing import RevealPlan
from edlm.process.schedules import Schedule
from edlm.samplers import planning
from edlm.samplers.blocks import ChosenBlocks, DrawnBlocks, of_size
from edlm.samplers.choices import Confidence, EntropyBound, Ranked
from edlm.samplers.planning import PLANS, Drawn, Expected, Plan, Random, Rule, register

__all__ = [
    "PLANS",
    "SPACINGS",
    "ChosenBlocks",
    "Confidence",
    "Drawn",
    "DrawnBlocks",
    "EntropyBound",
    "Expected",
    "Grid",
    "LeftToRight",
    "Plan",
    "Random",
    "Ranked",
    "Rule",
    "Times",
    "TokensPerPass",
    "blocks",
    "first_hitting",
    "register",
    "revealed_before",
]


SPACINGS: dict[str, Callable[[int], Tensor]] = {"uniform": schedules.uniform_grid, "cosine": schedules.cosine_grid}


@dataclass(frozen=True)
class Times:
    """Steps between given times that fall from 1 to 0, each of which reveals what falls into it.

    Args:
        at: the times, T + 1 of them.

    Raises:
        ValueError: unless they fall from 1 to 0.

    Example:
        >>> import edlm
        >>> print(edlm.plans.Times((1.0, 0.2, 0.0)))
        T=2 at times
    """

    at: tuple[float, ...]
    name: ClassVar[str] = "times"

    def __post_init__(self) -> None:
        absorbing.check_grid(self.times)

    def __str__(self) -> str:
        return f"T={len(self.at) - 1} at times"

    @property
    def times(self) -> Tensor:
        """The times (T + 1,), float64."""
        return torch.tensor(self.at, dtype=torch.float64)

    def draw(self, uniforms: Tensor, masked: Tensor, schedule: Schedule) -> RevealPlan:
        """Fix the passes of rows: those of the steps that reveal something; ancestral sampling on this grid."""
        return absorbing.reveal_plan(uniforms, masked, schedule, self.times)

    def expected(self, schedule: Schedule, length: int, window: tuple[float, float]) -> Expected:
        """Step j reveals something with probability `1 - (1 - p_j)^l`, `p_j` the share of positions it reveals."""
        shares, inside = revealed_before(schedule, self.times).diff(), schedules.inside(self.times[:-1], window)
        busy, share = 1.0 - (1.0 - shares) ** length, float(shares[inside].sum())
        return Expected(float(busy.sum()), float(busy[inside].sum()), share, 1.0 - (1.0 - share) ** length)

    def chances(self, schedule: Schedule, length: int) -> list[Tensor]:
        """Compute the chances where each mask is revealed independently of the others."""
        n, r = _numbers(length)
        still = 1.0 - schedule.alpha(self.times)
        still[-1] = 0.0  # whatever the schedule, the last step leaves no mask
        tables = []
        for before, after in itertools.pairwise(still.tolist()):
            p = 1.0 - after / before
            tables.append(torch.where(r <= n, p**r * (1.0 - p) ** (n - r).clamp(min=0.0), 0.0))
        return tables


@dataclass(frozen=True)
class Grid:
    """So many steps, placed by the name of a spacing.

    Args:
        num_steps: how many, T.
        spacing: `"uniform"` or `"cosine"`.

    Raises:
        ValueError: for a spacing that there is not, and for less than one step.

    Example:
        >>> import edlm
        >>> edlm.plans.Grid(4, "cosine").placed.at[0], str(edlm.plans.Grid(4))
        (1.0, 'T=4')
    """

    num_steps: int
    spacing: str = "uniform"
    name: ClassVar[str] = "grid"

    def __post_init__(self) -> None:
        if self.spacing not in list(SPACINGS):
            raise ValueError(f"spacing = {self.spacing!r} must be one of {', '.join(SPACINGS)}")
        SPACINGS[self.spacing](self.num_steps)  # it says what is wrong with a number

    def __str__(self) -> str:
        return f"T={self.num_steps}" + ("" if self.spacing == "uniform" else f" {self.spacing}")

    @property
    def placed(self) -> Times:
        """The times of its steps."""
        return Times(tuple(SPACINGS[self.spacing](self.num_steps).tolist()))

    @property
    def times(self) -> Tensor:
        """The times (T + 1,), float64."""
        return self.placed.times

    def draw(self, uniforms: Tensor, masked: Tensor, schedule: Schedule) -> RevealPlan:
        """Fix the passes of rows; see `Times`."""
        return self.placed.draw(uniforms, masked, schedule)

    def expected(self, schedule: Schedule, length: int, window: tuple[float, float]) -> Expected:
        """See `Times`."""
        return self.placed.expected(schedule, length, window)

    def chances(self, schedule: Schedule, length: int) -> list[Tensor]:
        """See `Times`."""
        return self.placed.chances(schedule, length)


@dataclass(frozen=True)
class TokensPerPass:
    """So many positions in every pass, in random order: one is the first-hitting sampler.

    Args:
        count: positions of a pass.

    Raises:
        ValueError: for less than one.

    Example:
        >>> import edlm
        >>> plan = edlm.plans.TokensPerPass(4)
        >>> plan.expected(edlm.schedules.log_linear(), length=10, window=(0.0, 1.0)).passes
        3.0
    """

    count: int = 1
    name: ClassVar[str] = "tokens_per_pass"

    def __post_init__(self) -> None:
        arguments.require_whole("tokens_per_pass", self.count)

    def __str__(self) -> str:
        return "one by one" if self.count == 1 else f"{self.count} a pass"

    def draw(self, uniforms: Tensor, masked: Tensor, schedule: Schedule) -> RevealPlan:
        """Fix the passes of rows: masks in the order of their reveal times, so many at a time."""
        return absorbing.reveal_plan(uniforms, masked, schedule, None, self.count)

    def expected(self, schedule: Schedule, length: int, window: tuple[float, float]) -> Expected:
        """Pass j starts inside the window if at most `j count` positions are revealed above it, and more in it."""
        low, high = window
        ends = revealed_before(schedule, torch.tensor([high, low], dtype=torch.float64))
        first = torch.arange(0, length, self.count)
        at_most = [_binomial(length, float(share)).cumsum(0)[first] for share in ends]
        inside = (at_most[0] - at_most[1]).clamp(min=0.0)
        size = (length - first).clamp(max=self.count)
        share = float(ends[1] - ends[0]) if self.count == 1 else float((size * inside).sum()) / length
        return Expected(float(len(first)), float(inside.sum()), share, self._entered(length, *ends.tolist()))

    def _entered(self, length: int, before: float, until: float) -> float:
        """Compute the chance that a pass starts inside a window; before, until: shares revealed at its two ends.

        With h positions revealed before it, the next pass to start is number `ceil(h / count)`. It starts inside if
        more than `count ceil(h / count)` positions are revealed by the end.
        """
        if before >= 1.0:
            return 0.0
        chance = (until - before) / (1.0 - before)  # that a position which is left is revealed inside
        earlier = _binomial(length, before)
        needed = [-(-h // self.count) * self.count - h for h in range(length + 1)]  # in vain, before the pass starts
        return float(sum(earlier[h] * _binomial(length - h, chance)[needed[h] + 1 :].sum() for h in range(length + 1)))

    def chances(self, schedule: Schedule, length: int) -> list[Tensor]:
        """Compute the chances where every set of as many masks as a pass reveals is as likely."""
        n, r = _numbers(length)
        ways = torch.tensor([[float(math.comb(i, j)) for j in range(length + 1)] for i in range(length + 1)])
        table = torch.where(r == n.clamp(max=self.count), 1.0 / ways.double().clamp(min=1.0), 0.0)
        return [table] * math.ceil(length / self.count)


@dataclass(frozen=True)
class LeftToRight:
    """A fixed number of positions in every pass, the first masks of a row first: no random number is drawn.

    Args:
        count: positions of a pass.

    Raises:
        ValueError: for less than one.

    Example:
        >>> import edlm, torch
        >>> plan, uniforms = edlm.plans.LeftToRight(2), torch.zeros(1, 4)
        >>> masked = torch.tensor([[True, False, True, True]])
        >>> plan.draw(uniforms, masked, edlm.schedules.log_linear()).order.tolist()
        [[0, -1, 0, 1]]
    """

    count: int = 1
    name: ClassVar[str] = "left_to_right"

    def __post_init__(self) -> None:
        planning.check_count(self.count)

    def __str__(self) -> str:
        return "left to right" if self.count == 1 else f"left to right, {self.count} a pass"

    def draw(self, uniforms: Tensor, masked: Tensor, schedule: Schedule) -> RevealPlan:
        """Fix the passes of rows; a pass starts when the schedule expects as many masks as there are."""
        return absorbing.ordered_plan(masked, schedule, self.count)

    def expected(self, schedule: Schedule, length: int, window: tuple[float, float]) -> Expected:
        """Count the passes, and those inside the window: nothing is left to chance."""
        return planning.by_count(schedule, length, window, self.count)

    def choose(self, seen: object, masked: Tensor) -> Tensor:
        """Say what a pass reveals, bool (b, l), as `Rule` does; only the masks are looked at."""
        return masked & (masked.cumsum(-1) <= self.count)


_ONE_BY_ONE = TokensPerPass(1)
register(Grid)
register(Times)
register(TokensPerPass)
register(LeftToRight)


def blocks(size: int, within: Plan = _ONE_BY_ONE) -> DrawnBlocks | ChosenBlocks:
    """Reveal block after block, from left to right, with a plan inside each block: block diffusion.

    Args:
        size: tokens of a block, the last one may be shorter.
        within: the plan inside a block, drawn or chosen from the pass; by default one by one, in random order.

    Returns:
        The plan.

    Raises:
        ValueError: for a size below one, and for blocks inside of blocks.

    Example:
        >>> import edlm
        >>> print(edlm.plans.blocks(16, within=edlm.plans.Grid(4)))
        blocks of 16, T=4
    """
    return of_size(size, within)


def first_hitting() -> TokensPerPass:
    """Reveal one position in every pass, in random order (Zheng et al. 2024, arXiv 2409.02908).

    Returns:
        `TokensPerPass(1)`.

    Example:
        >>> import edlm
        >>> print(edlm.plans.first_hitting())
        one by one
    """
    return TokensPerPass(1)


def revealed_before(schedule: Schedule, t: Tensor) -> Tensor:
    """Return the expected share of the positions that are revealed before a time is reached.

    Args:
        schedule: of the masking process.
        t: times, float64.

    Returns:
        The share of each, 0 at 1 and 1 at 0.

    Example:
        >>> import edlm, torch
        >>> edlm.plans.revealed_before(edlm.schedules.log_linear(), torch.tensor([1.0, 0.0])).tolist()
        [0.0, 1.0]
    """
    at_one = schedule.alpha(torch.ones((), dtype=torch.float64))
    return torch.where(t > 0.0, (schedule.alpha(t) - at_one) / (1.0 - at_one), 1.0)


def _numbers(length: int) -> tuple[Tensor, Tensor]:
    numbers = torch.arange(length + 1, dtype=torch.float64)
    return numbers.unsqueeze(-1), numbers


def _binomial(n: int, p: float) -> Tensor:
    """The law of how many of n happen, each with probability p: float64 (n + 1,)."""
    numbers = torch.arange(n + 1, dtype=torch.float64)
    if p in (0.0, 1.0):
        return (numbers == n * p).double()
    ways = math.lgamma(n + 1) - torch.lgamma(numbers + 1) - torch.lgamma(n - numbers + 1)
    return (ways + numbers * math.log(p) + (n - numbers) * math.log1p(-p)).exp()
