"""The masking process: how a text is corrupted, and when each of its positions is revealed again.

Whether and when a position is revealed depends on no token. So one uniform per position fixes the whole reveal plan
before the first network call: the passes of a row, the time of each, and the shapes of every step. On a grid the plan
is equal in law to the ancestral sampler at every number of steps. Without a grid it is the first-hitting sampler (Zheng
et al. 2024, arXiv 2409.02908). This file never sees a network.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from edlm.process import arguments
from edlm.process.schedules import Schedule


class RevealPlan(NamedTuple):
    """The pass in which every position is revealed. A row counts its own non-empty steps as its passes.

    order: int64 (b, l), the pass that reveals the position, -1 where it was given.
    t: float64 (b, p), the time at which a row's pass starts; 0 once the row is finished.
    passes: int64 (b,), how many passes a row needs: at most min(steps, masked positions).
    """

    order: Tensor
    t: Tensor
    passes: Tensor


def corrupt(x_0: Tensor, alpha: Tensor, uniforms: Tensor, mask_id: int, keep: Tensor | None = None) -> Tensor:
    """Draw `q(x_t | x_0)`: every token is kept with probability alpha(t), else the mask (Sahoo et al. 2024, section 3).

    x_0 (b, l), alpha (b,), uniforms (b, l): masked where `u < 1 - alpha`; keep: bool (b, l), positions that are never
    masked, padding for example. Returns x_t (b, l).
    """
    masked = uniforms < (1.0 - alpha).unsqueeze(-1)
    if keep is not None:
        masked = masked & ~keep
    return torch.where(masked, mask_id, x_0)


def masked_by_count(share: Tensor, uniforms: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Choose `m = ceil(share n)` of the n positions that count, those of the smallest uniforms.

    Args:
        share: of the positions, (..., 1) in (0, 1).
        uniforms: (..., l) in (0, 1).
        counted: the positions that may be masked, bool (..., l).

    Returns:
        The masks, bool (..., l), and m (..., 1), at least 1 where any position counts.

    Example:
        >>> from edlm.process import absorbing
        >>> u, counted = torch.tensor([0.9, 0.1, 0.2, 0.3]), torch.tensor([True, False, True, True])
        >>> absorbing.masked_by_count(torch.tensor([0.5]), u, counted)
        (tensor([False, False,  True,  True]), tensor([2.]))
    """
    n = counted.sum(-1, keepdim=True)
    m = (share * n).ceil().clamp(min=1.0).minimum(n)
    rank = torch.where(counted, uniforms, 2.0).argsort(dim=-1, stable=True).argsort(dim=-1)
    return rank < m, m


def starting_tokens(
    num_samples: int, length: int, mask_id: int, vocab_size: int, prompt: Tensor | None, device: torch.device
) -> Tensor:
    """Build the tokens that sampling starts from: all masks, or the prompt followed by masks: int64 (b, l).

    prompt: tokens with masks, (l,) or (b, l), or shorter. Raises ValueError for num_samples < 1, a prompt of another
    shape, longer than `length`, or with an id outside 0..vocab_size - 1.
    """
    arguments.require_whole("num_samples", num_samples)
    tokens = torch.full((num_samples, length), mask_id, device=device)
    if prompt is None:
        return tokens
    arguments.require_ids("prompt", prompt, "as vocabulary.encode_prompt(text) gives")
    if prompt.ndim == 1:
        prompt = prompt.expand(num_samples, -1)
    if prompt.ndim != 2 or prompt.shape[0] != num_samples or prompt.shape[1] > length:
        raise ValueError(
            f"prompt of shape {tuple(prompt.shape)} does not fit: "
            f"it must be (l,) or ({num_samples}, l), l at most {length}"
        )
    if prompt.numel() and not 0 <= int(prompt.min()) <= int(prompt.max()) < vocab_size:
        bad = prompt[(prompt < 0) | (prompt >= vocab_size)][0]
        raise ValueError(f"prompt holds token id {int(bad)}, outside the vocabulary 0..{vocab_size - 1}")
    return torch.cat([prompt.to(tokens), tokens[:, prompt.shape[1] :]], dim=1)


def reveal_times(uniforms: Tensor, schedule: Schedule) -> Tensor:
    """Compute the time `tau` at which each mask is revealed going from t = 1 to 0: uniforms (b, l) to float64 (b, l).

    A position masked at t = 1 is still masked at t with probability `(1 - alpha(t)) / (1 - alpha(1))`, so
    `tau = alpha^-1(1 - u (1 - alpha(1)))`, and a larger uniform is revealed earlier.
    """
    return schedule.inverse(1.0 - uniforms * (1.0 - _alpha_at_one(schedule, uniforms))).clamp(0.0, 1.0)


def reveal_plan(
    uniforms: Tensor, masked: Tensor, schedule: Schedule, grid: Tensor | None = None, tokens_per_pass: int = 1
) -> RevealPlan:
    """Fix the steps at which the masked positions are revealed.

    uniforms: float64 (b, l) in (0, 1); masked: bool (b, l); grid: times (T + 1,) falling from 1 to 0. A step from t to
    s reveals exactly `{masked, s < tau <= t}`. The last ends at alpha = 1, so no mask is left whatever the schedule.
    The law is that of ancestral sampling on the same grid. Without a grid, positions are taken in the order of their
    reveal times, `tokens_per_pass` at a time. One a pass is the first-hitting sampler; large diffusion models take
    more. Raises ValueError for a grid that does not fall from 1 to 0.
    """
    if grid is None:
        step = _own_step(uniforms, masked) // tokens_per_pass
        start, num_steps = reveal_times(uniforms, schedule), uniforms.shape[-1]
    else:
        grid = grid.to(uniforms)
        check_grid(grid)
        step = _grid_step(uniforms, schedule, grid)
        start, num_steps = grid[step], grid.shape[0] - 1
    return _compact(step, start, masked, num_steps)


def ordered_plan(masked: Tensor, schedule: Schedule, tokens_per_pass: int = 1) -> RevealPlan:
    """Fix the passes that reveal the masked positions from left to right: bool (b, l); no uniform is asked.

    A pass starts when the schedule expects as many masks as there are, see `time_of_share`.
    """
    number = (masked.long().cumsum(-1) - 1).clamp(min=0)
    share = (masked.sum(-1, keepdim=True) - number).double() / masked.shape[1]
    return _compact(number // tokens_per_pass, time_of_share(share, schedule), masked, masked.shape[1])


def time_of_share(share: Tensor, schedule: Schedule) -> Tensor:
    """Return the time at which a schedule expects this share of all positions to be masked, float64, 1 for all."""
    return reveal_times(share, schedule)


def reveal(x_t: Tensor, draft: Tensor, positions: Tensor) -> Tensor:
    """Take the draft's tokens at the chosen positions and leave the others: (b, l) each, positions bool."""
    return torch.where(positions, draft, x_t)


def places(chosen: Tensor, most: int) -> Tensor:
    """List each row's chosen positions in ascending order: bool (b, l) to int64 (b, most), l where a row has fewer."""
    length = chosen.shape[1]
    where = torch.where(chosen, torch.arange(length, device=chosen.device), length)
    return where.sort(dim=1).values[:, :most].contiguous()


def numbered(positions: Tensor, l: int) -> tuple[Tensor, Tensor]:
    """Number ascending flat positions (n,) in their rows: the row of each, and how many stand before it, int64 (n,)."""
    row = positions // l
    return row, torch.arange(len(positions), device=positions.device) - torch.searchsorted(positions, row * l)


def _alpha_at_one(schedule: Schedule, reference: Tensor) -> Tensor:
    return schedule.alpha(torch.ones((), dtype=torch.float64, device=reference.device))


def check_grid(grid: Tensor) -> None:
    """Raise ValueError for times (T + 1,) that do not fall from 1 to 0."""
    ends = grid.ndim == 1 and len(grid) >= 2 and float(grid[0]) == 1.0 and float(grid[-1]) == 0.0
    if not (ends and bool((grid.diff() < 0.0).all())):
        raise ValueError(f"grid = {grid.tolist()} must fall from 1 to 0")


def _grid_step(uniforms: Tensor, schedule: Schedule, grid: Tensor) -> Tensor:
    """Find the index n of the grid's step `t_n -> t_{n+1}` in which each position is revealed: (b, l)."""
    still_masked = (1.0 - schedule.alpha(grid)) / (1.0 - _alpha_at_one(schedule, grid))
    inner = still_masked[1:-1].flip(0).contiguous()  # ascending; the ends are 1 and 0 by definition
    return grid.shape[0] - 2 - torch.searchsorted(inner, uniforms.contiguous(), right=True)


def _own_step(uniforms: Tensor, masked: Tensor) -> Tensor:
    """Rank the masked positions by falling uniforms, that is by falling reveal time: (b, l)."""
    return torch.where(masked, uniforms, -1.0).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def _compact(step: Tensor, start: Tensor, masked: Tensor, num_steps: int) -> RevealPlan:
    """Number each row's non-empty steps 0, 1, 2, ... and drop the empty ones."""
    used = torch.zeros(step.shape[0], num_steps + 1, dtype=torch.bool, device=step.device)
    used = used.scatter(1, torch.where(masked, step, num_steps), True)[:, :num_steps]
    order = torch.where(masked, (used.long().cumsum(-1) - 1).gather(1, step), -1)
    passes = used.sum(-1)
    num_passes = int(passes.max()) if passes.numel() else 0  # read on the host once, before sampling starts
    t = torch.zeros(step.shape[0], num_passes + 1, dtype=torch.float64, device=step.device)
    # A pass starts at the latest reveal time of its positions, which on a grid is the same for all of them.
    t = t.scatter_reduce(1, torch.where(masked, order, num_passes), start, reduce="amax")
    return RevealPlan(order, t[:, :num_passes], passes)
