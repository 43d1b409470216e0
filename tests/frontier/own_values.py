"""A plan, a correction and a selection of one's own, each in a few lines, as a user would write them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor

from edlm import contracts
from edlm.contracts import Denoiser
from edlm.models import energies
from edlm.process.absorbing import RevealPlan
from edlm.process.schedules import Schedule
from edlm.samplers import corrections, passes, plans, selections
from edlm.samplers.corrections import Parts
from edlm.samplers.plans import Expected, TokensPerPass
from edlm.samplers.selections import Selection


@dataclass(frozen=True)
class Shares:
    """A pass reveals this share of a text."""

    share: float
    name: ClassVar[str] = "shares"

    def __str__(self) -> str:
        return f"{self.share:g} a pass"

    def _of(self, length: int) -> TokensPerPass:
        return TokensPerPass(max(1, round(self.share * length)))

    def draw(self, uniforms: Tensor, masked: Tensor, schedule: Schedule) -> RevealPlan:
        """Fix the passes of rows."""
        return self._of(masked.shape[1]).draw(uniforms, masked, schedule)

    def expected(self, schedule: Schedule, length: int, window: tuple[float, float]) -> Expected:
        """What a text takes."""
        return self._of(length).expected(schedule, length, window)

    def chances(self, schedule: Schedule, length: int) -> list[Tensor]:
        """The chance of each set."""
        return self._of(length).chances(schedule, length)


@dataclass(frozen=True)
class Rarely:
    """A token costs so many nats wherever it stands in what is new."""

    token: int
    nats: float
    temperature: float = 1.0
    name: ClassVar[str] = "rarely"

    def parts(self, denoiser: Denoiser) -> Parts:
        """No network beside the denoiser."""

        def count(candidates: Tensor) -> Tensor:
            return self.nats * (candidates == self.token).sum(-1).double()

        energy = TensorDictModule(count, in_keys=[contracts.CANDIDATES], out_keys=[contracts.ENERGY])
        energy = energies.declare(energy, ("transition",), passes.NOTHING)
        return Parts(energy, "transition", {"denoise": denoiser}, {"weigh": energy}, passes.NOTHING)  # type: ignore[dict-item]


def _last(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    return torch.full_like(log_weights[:, 0], log_weights.shape[1] - 1, dtype=torch.int64)


LAST = Selection("last", _last)


@contextmanager
def registered() -> Iterator[None]:
    """All three have their names, for as long as this lasts."""
    plans.register(Shares)
    corrections.register(Rarely.name, lambda _, **options: Rarely(**options))
    selections.register(LAST)
    try:
        yield
    finally:
        del plans.PLANS[Shares.name], corrections.CORRECTIONS[Rarely.name], selections.SELECTIONS[LAST.name]
