"""Held-out texts gone through as often as needed, and the bounds of a denoiser over such draws."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from edlm.contracts import Denoiser
from edlm.data.pieces import Blocks, Rows
from edlm.likelihood import estimates, nelbo
from edlm.likelihood.estimates import Estimate
from edlm.models.denoisers import SubsDenoiser
from edlm.process.schedules import Schedule
from edlm.runs import processes

R = TypeVar("R")
Score = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (x_0, seed, row, scored) to nats per token (b,)


class Draws(NamedTuple):
    """The blocks of a split, gone through as often as `num_rows` rows need, in batches, at the seed of a run."""

    blocks: Rows
    num_rows: int
    batch_size: int
    seed: int
    device: torch.device

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the numbers of rows (b,) and their texts (b, l) of every batch."""
        return ((row, self.texts(row)) for row in map(self._rows_from, self._firsts))

    def spread(self, work: Callable[[Tensor, Tensor], R], shown: str | None = None) -> list[R]:
        """Work on every batch, `(row, x_0)`, each in one process and known to all; see `processes.spread`."""

        def from_first(first: int) -> R:
            row = self._rows_from(first)
            return work(row, self.texts(row))

        return processes.spread(from_first, self._firsts, shown)

    def texts(self, row: Tensor) -> Tensor:
        """Give the texts (b, l) of rows (b,)."""
        return self.blocks[(row % len(self.blocks)).cpu()].to(self.device)

    @property
    def _firsts(self) -> range:
        """The first row of every batch, which takes no memory however many there are."""
        return range(0, self.num_rows, self.batch_size)

    def _rows_from(self, first: int) -> Tensor:
        return torch.arange(first, min(first + self.batch_size, self.num_rows), device=self.device)


def of_settings(blocks: Rows, rows: int, settings: Mapping[str, Any], device: torch.device) -> Draws:
    """Build draws in batches of the training batch size, at the seed of the run."""
    return Draws(blocks, rows, settings["batch_size"], settings["seed"], device)


def held_out(blocks: Blocks, split: str, settings: Mapping[str, Any], device: torch.device) -> Draws:
    """Build the draws of "valid", as many as `valid_rows` says, or of "test", four times as many."""
    rows = settings["valid_rows"] * {"valid": 1, "test": 4}[split]
    return of_settings(getattr(blocks, split), rows, settings, device)


def scored(score: Score, draws: Draws, pad_id: int | None = None, shown: str | None = None) -> tuple[Tensor, Tensor]:
    """Score draws with noise of its own stream: nats per token of each (n,), and how many tokens count (n,).

    Padding is neither scored nor masked. shown: what a progress bar says meanwhile, None for none.
    """
    seed = torch.tensor(draws.seed, device=draws.device)

    def one(row: Tensor, x_0: Tensor) -> tuple[Tensor, Tensor]:
        counted = nelbo.not_padding(x_0, pad_id)
        return score(x_0, seed, row, counted).cpu(), counted.sum(1).cpu()

    values, counts = (torch.cat(parts) for parts in zip(*draws.spread(one, shown), strict=True))
    return values, counts


def estimated(score: Score, draws: Draws, pad_id: int | None = None) -> Estimate:
    """Estimate a bound over draws, a row counted by its tokens; see `scored`."""
    return estimates.estimate(*scored(score, draws, pad_id))


def continuous(denoiser: Denoiser, schedule: Schedule) -> Score:
    """Give the score by the continuous-time NELBO of a denoiser."""
    return lambda x_0, seed, row, counted: nelbo.nelbo(denoiser, schedule, x_0, seed, row, counted)


def compared(
    denoiser: Denoiser, start: Denoiser, schedule: Schedule, draws: Draws, pad_id: int | None
) -> dict[str, Estimate]:
    """Estimate the NELBO of a denoiser and of the one that it started from on the same draws, and what it cost.

    cost: the difference row by row, positive where the first is the worse denoiser.
    """
    own, counts = scored(continuous(denoiser, schedule), draws, pad_id, "nelbo")
    before, _ = scored(continuous(start, schedule), draws, pad_id, "start nelbo")
    found = {"nelbo": own, "start_nelbo": before, "cost": own - before}
    return {name: estimates.estimate(values, counts) for name, values in found.items()}


def masked_nll(
    denoiser: SubsDenoiser, schedule: Schedule, t: float, draws: Draws, pad_id: int | None = None
) -> Estimate | None:
    """Estimate what a denoiser, as a law of tokens, leaves unexplained of a mask at one time.

    None where fewer than two draws got a mask, as happens to short blocks.
    """

    def score(x_0: Tensor, seed: Tensor, row: Tensor, counted: Tensor) -> Tensor:
        times = torch.full(row.shape, t).to(x_0.device)
        return nelbo.masked_nll(denoiser, schedule, x_0, times, seed, row, counted)

    found, _ = scored(score, draws, pad_id)
    found = found[~found.isnan()]
    return estimates.estimate(found) if len(found) > 1 else None
