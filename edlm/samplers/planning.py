"""The contract of a plan, which says what positions a pass reveals, and the names of those that there are."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor

from edlm.process import absorbing, arguments, schedules
from edlm.process.absorbing import RevealPlan
from edlm.process.categorical import Certainty
from edlm.process.schedules import Schedule
from edlm.samplers import registries

Seen = Certainty  # of the law at each position, (b, l) each: what a plan sees of a pass


class Expected(NamedTuple):
    """The expected work of a text of a plan: passes, those inside a window, and what they reveal, and whether any.

    revealed: share of the positions that passes inside the window reveal; entered: chance that there is such a pass.
    """

    passes: float
    corrected: float
    revealed: float
    entered: float


class Drawn(Protocol):
    """The positions that a pass reveals, drawn before the first pass. `str` is what it is called in tables.

    Laws: a row's passes depend on its own uniforms and masks; every mask is revealed once; times fall.
    """

    name: ClassVar[str]

    def draw(self, uniforms: Tensor, masked: Tensor, schedule: Schedule) -> RevealPlan:
        """Fix the passes of rows: uniforms float64 (b, l), masked bool (b, l)."""
        ...

    def expected(self, schedule: Schedule, length: int, window: tuple[float, float]) -> Expected:
        """Return what a text of so many masks is expected to take."""
        ...


class Random(Drawn, Protocol):
    """One whose law is enumerated by how likely each set is, which depends on its size alone."""

    def chances(self, schedule: Schedule, length: int) -> list[Tensor]:
        """Compute, for each step, the chance to reveal one set of r of n masks: tables (l + 1, l + 1) by n and r."""
        ...


class Rule(Protocol):
    """The positions that a pass reveals, a function of the state. `str` is what it is called in tables.

    Laws: the choice is a function of the arguments, row by row. It holds masks only, and at least one of every row that
    has masks.
    """

    name: ClassVar[str]

    def choose(self, seen: Seen, masked: Tensor) -> Tensor:
        """Choose among the masks, bool (b, l) to bool (b, l); seen: (b, l) each, anything where nothing is masked."""
        ...

    def expected(self, schedule: Schedule, length: int, window: tuple[float, float]) -> Expected | None:
        """Return what a text of so many masks takes; None where that depends on the tokens."""
        ...


Plan = Drawn | Rule
PLANS: dict[str, Callable[..., Plan]] = {}


def register(plan: Any, name: str | None = None) -> None:
    """Give a class of plans its own `name` in configs; the same class again takes its place.

    Args:
        plan: the class, or a function that builds plans.
        name: of a function; a class has its own.

    Raises:
        ValueError: for a name that another one has.

    Example:
        >>> import edlm
        >>> edlm.plans.register(edlm.plans.Grid)
        >>> "grid" in edlm.plans.PLANS
        True
    """
    registries.put(PLANS, "plan", name or plan.name, plan)


def is_drawn(plan: Plan) -> TypeGuard[Drawn]:
    """Check whether a plan is fixed before the first pass. Any other plan reads the pass.

    Args:
        plan: any plan.

    Returns:
        Whether it has `draw`.

    Example:
        >>> import edlm
        >>> from edlm.samplers import planning
        >>> planning.is_drawn(edlm.plans.LeftToRight()), planning.is_drawn(edlm.plans.EntropyBound())
        (True, False)
    """
    return hasattr(plan, "draw") and not isinstance(plan, type)


def is_rule(plan: Plan) -> TypeGuard[Rule]:
    """Check whether a plan chooses positions by the state alone, with no random number.

    Args:
        plan: any plan.

    Returns:
        Whether it has `choose`.

    Example:
        >>> import edlm
        >>> from edlm.samplers import planning
        >>> planning.is_rule(edlm.plans.LeftToRight()), planning.is_rule(edlm.plans.Grid(4))
        (True, False)
    """
    return hasattr(plan, "choose") and not isinstance(plan, type)


def is_random(plan: Plan) -> TypeGuard[Random]:
    """Check whether a plan says how likely it is to reveal a set of masks.

    Args:
        plan: any plan.

    Returns:
        Whether it has `chances`.

    Example:
        >>> import edlm
        >>> from edlm.samplers import planning
        >>> planning.is_random(edlm.plans.LeftToRight()), planning.is_random(edlm.plans.Grid(4))
        (False, True)
    """
    return hasattr(plan, "chances")


def by_count(schedule: Schedule, length: int, window: tuple[float, float], count: int) -> Expected:
    """Return what a text of so many masks takes where every pass reveals `count`, at the times of its share of masks.

    Args:
        schedule: of the masking process.
        length: how many masks.
        window: the times at which passes are corrected.
        count: tokens of a pass.

    Returns:
        What is expected, exactly.

    Example:
        >>> import edlm
        >>> from edlm.samplers import planning
        >>> planning.by_count(edlm.schedules.log_linear(), 10, (0.5, 1.0), 4).corrected
        2.0
    """
    left = torch.arange(length, 0, -count)
    inside = schedules.inside(absorbing.time_of_share(left.double() / length, schedule), window)
    size = left.clamp(max=count)
    corrected = int(inside.sum())
    return Expected(float(len(left)), float(corrected), int(size[inside].sum()) / length, float(corrected > 0))


def check_count(count: int) -> None:
    """Raise ValueError for a number of tokens that is not whole, or below one.

    Args:
        count: tokens of a pass.

    Raises:
        ValueError: unless it is whole and at least 1.

    Example:
        >>> import edlm
        >>> from edlm.samplers import planning
        >>> planning.check_count(4)
    """
    arguments.require_whole("count", count)
