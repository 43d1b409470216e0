"""Plans that go through a text block by block, from left to right, each block by a plan of its own.

With a denoiser of blocks this is block diffusion (Arriola et al. 2025, arXiv 2503.09573): later blocks are masked, and
nothing reads them. The time of a pass is that of its block, which runs from 1 to 0 in each.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from edlm.process import arguments
from edlm.process.absorbing import RevealPlan
from edlm.process.schedules import Schedule
from edlm.samplers import planning
from edlm.samplers.planning import Drawn, Expected, Plan, Rule, Seen


@dataclass(frozen=True)
class _Blocks:
    """Blocks of `size` tokens, the last one may be shorter, and the plan inside of each."""

    size: int
    within: Any
    name: ClassVar[str] = "in_blocks"

    def __post_init__(self) -> None:
        arguments.require_whole("size", self.size)

    def __str__(self) -> str:
        return f"blocks of {self.size}, {self.within}"

    def parts(self, length: int) -> list[range]:
        """List the positions of each block of a text."""
        return [range(start, min(start + self.size, length)) for start in range(0, length, self.size)]


@dataclass(frozen=True)
class DrawnBlocks(_Blocks):
    """Blocks with a plan that is drawn before the first pass; see `plans.blocks`."""

    within: Drawn

    def __post_init__(self) -> None:
        super().__post_init__()
        if not planning.is_drawn(self.within):
            raise ValueError(f"within = {self.within!r} must be a plan that is drawn, with `draw`")

    def draw(self, uniforms: Tensor, masked: Tensor, schedule: Schedule) -> RevealPlan:
        """Fix the passes of rows: those of the first block, then those of the next; a block without masks has none."""
        b, l = masked.shape
        whole = l - l % self.size
        ends = [(start, end) for start, end in ((0, whole), (whole, l)) if start < end]
        parts = [self._in_equal_blocks(uniforms[:, i:j], masked[:, i:j], schedule) for i, j in ends]
        order, t, passes = (_side_by_side([part[field] for part in parts]) for field in range(3))
        before = passes.cumsum(1) - passes  # of the blocks to the left
        number = torch.where(order < 0, -1, order + before.unsqueeze(-1)).flatten(1)
        most = int(passes.sum(1).amax()) if b else 0  # read on the host once, as the plan of a block is
        at = torch.arange(t.shape[2], device=t.device)
        place = torch.where(at < passes.unsqueeze(-1), at + before.unsqueeze(-1), most)
        times = torch.zeros(b, most + 1, dtype=t.dtype, device=t.device).scatter(1, place.flatten(1), t.flatten(1))
        return RevealPlan(number[:, :l].contiguous(), times[:, :most], passes.sum(1))

    def _in_equal_blocks(self, uniforms: Tensor, masked: Tensor, schedule: Schedule) -> tuple[Tensor, ...]:
        """The plans of blocks of one size, (b, blocks, size), (b, blocks, p) and (b, blocks)."""
        size = min(self.size, masked.shape[1])
        drawn = self.within.draw(uniforms.reshape(-1, size), masked.reshape(-1, size), schedule)
        return tuple(each.unflatten(0, (len(masked), -1)) for each in drawn)

    def expected(self, schedule: Schedule, length: int, window: tuple[float, float]) -> Expected:
        """Add up the blocks; `entered` is then how often passes go inside the window, which each block may do."""
        each = [self.within.expected(schedule, len(part), window) for part in self.parts(length)]
        return _together(each, [len(part) for part in self.parts(length)], length, window)


@dataclass(frozen=True)
class RuledBlocks(DrawnBlocks):
    """Blocks with a plan that is drawn and reads no noise, so that it is a rule too."""

    def choose(self, seen: Seen, masked: Tensor) -> Tensor:
        """Choose among the masks of the leftmost block that has any."""
        return cast(Rule, self.within).choose(seen, masked & leftmost(masked, self.size))


@dataclass(frozen=True)
class ChosenBlocks(_Blocks):
    """Blocks with a plan that reads the pass; see `plans.blocks`."""

    within: Rule

    def __post_init__(self) -> None:
        super().__post_init__()
        if not planning.is_rule(self.within):
            raise ValueError(f"within = {self.within!r} must be a plan, drawn with `draw` or one with `choose`")

    def choose(self, seen: Seen, masked: Tensor) -> Tensor:
        """Choose among the masks of the leftmost block that has any."""
        return self.within.choose(seen, masked & leftmost(masked, self.size))

    def expected(self, schedule: Schedule, length: int, window: tuple[float, float]) -> Expected | None:
        """Add up the blocks where the plan knows what they take, and else return None."""
        each = [self.within.expected(schedule, len(part), window) for part in self.parts(length)]
        known = [found for found in each if found is not None]
        if len(known) < len(each):
            return None
        return _together(known, [len(part) for part in self.parts(length)], length, window)


def of_size(size: int, within: Plan) -> DrawnBlocks | ChosenBlocks:
    """Build what `plans.blocks` does, drawn or chosen as the plan inside is."""
    if isinstance(within, _Blocks):
        raise ValueError(f"within = {str(within)!r}: a block has no blocks of its own")
    if planning.is_drawn(within):
        return (RuledBlocks if planning.is_rule(within) else DrawnBlocks)(size, within)
    return ChosenBlocks(size, cast(Rule, within))  # which refuses any other


def of_denoiser(plan: Plan, denoiser: Any) -> Plan:
    """Have a plan reveal the blocks of a denoiser one after the other; one without blocks takes it as it is."""
    size = getattr(denoiser, "block_size", None)
    return plan if size is None or isinstance(plan, _Blocks) else of_size(size, plan)


def like(of: Plan, plan: Plan) -> Plan:
    """Put a plan inside of the blocks that another one has; as it is, where that has none."""
    return of_size(of.size, plan) if isinstance(of, _Blocks) else plan


def check(plan: Plan, denoiser: Any) -> None:
    """Raise ValueError for a plan that asks a denoiser of blocks for one before those to its left are finished."""
    size = getattr(denoiser, "block_size", None)
    if size is None or (isinstance(plan, _Blocks) and size % plan.size == 0):
        return
    within = plan.within if isinstance(plan, _Blocks) else plan
    raise ValueError(
        f"plan = {str(plan)!r}: the denoiser reads blocks of {size}, each after finished ones, so it needs "
        f"plans.blocks({size}, within=...), here with {str(within)!r} inside"
    )


def leftmost(masked: Tensor, size: int) -> Tensor:
    """Mark the positions of each row's first block that has a mask, bool (b, l)."""
    in_blocks = _cut(masked, size).any(-1)
    first = in_blocks & (in_blocks.cumsum(1) == 1)
    return first.repeat_interleave(size, dim=1)[:, : masked.shape[1]]


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """Join (b, blocks, size) along the blocks, those that are shorter filled up with zeros; (b, blocks) as they are."""
    if parts[0].ndim == 2:
        return torch.cat(parts, dim=1)
    most = max(part.shape[2] for part in parts)
    return torch.cat([F.pad(part, (0, most - part.shape[2])) for part in parts], dim=1)


def _cut(values: Tensor, size: int) -> Tensor:
    """Cut (b, l) into blocks (b, blocks, size), the last one filled up with zeros."""
    return F.pad(values, (0, -values.shape[1] % size)).unflatten(1, (-1, size))


def _together(each: list[Expected], sizes: list[int], length: int, window: tuple[float, float]) -> Expected:
    passes, corrected, entered = (sum(found[i] for found in each) for i in (0, 1, 3))
    revealed = sum(size * found.revealed for size, found in zip(sizes, each, strict=True)) / length
    return Expected(passes, corrected, revealed, min(entered, 1.0) if window == (0.0, 1.0) else entered)


planning.register(of_size, _Blocks.name)
