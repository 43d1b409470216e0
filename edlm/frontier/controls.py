"""Controls of a sampler with a correction, each a function of its value: what it must be compared with."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from torch import Tensor

from edlm.contracts import Denoiser, Scope
from edlm.declaration import stage
from edlm.models import energies
from edlm.samplers import blocks, expectation, plans
from edlm.samplers.corrections import Correction, OfEnergy, Parts
from edlm.samplers.plans import Plan
from edlm.samplers.sampler import Sampler

_MOST_STEPS = 16  # per token: with more of them nearly every pass reveals one position
_ZERO = energies.zero()
_ZERO_NAMES: dict[Scope, str] = {"draft": "zero", "transition": "zero transition"}


@dataclass(frozen=True)
class Scaled:
    """A correction with its energy times a factor, and nothing else changed."""

    of: Correction = field(repr=False)
    factor: float
    called: str
    name: ClassVar[str] = "scaled"

    @property
    def temperature(self) -> float:
        """Of the energy, above zero."""
        return self.of.temperature

    def parts(self, denoiser: Denoiser) -> Parts:
        """Return the parts of the correction, what it weighs scaled; it is then no law of new tokens."""
        parts = self.of.parts(denoiser)
        scale = stage("energy -> energy", partial(_times, self.factor))
        energy = energies.scaled(parts.energy, self.factor)  # type: ignore[type-var]
        return parts._replace(energy=energy, weigh={**parts.weigh, "scale": scale}, order=None, write=None)


def one_particle(of: Sampler, denoiser: Denoiser, length: int) -> Sampler:
    """Keep one candidate: token for token the plain sampler at the proposal's temperature."""
    return of.replace(candidates=1)


def zero(of: Sampler, denoiser: Denoiser, length: int) -> Sampler:
    """Put E = 0 in place of the energy, whose weights only make up for the proposal's temperature.

    At 1 it has the law of the plain sampler. Where a network's pass over the candidates is the next step's it is taken
    all the same. Corrections that are told apart by the energy they are given share this control.
    """
    correction, parts = of.correction, of.parts
    assert correction is not None
    assert parts is not None
    called = _ZERO_NAMES[parts.scope] if hasattr(correction, "called") else f"zero {correction.name}"
    if parts.carries:
        return of.replace(correction=Scaled(correction, 0.0, called))
    return of.replace(correction=OfEnergy(_ZERO, parts.scope, correction.temperature, called))


def flipped(of: Sampler, denoiser: Denoiser, length: int) -> Sampler:
    """Weigh by -E, which must make texts worse."""
    assert of.correction is not None
    called = getattr(of.correction, "called", of.correction.name)
    return of.replace(correction=Scaled(of.correction, -1.0, f"flipped {called}"))


def equal_passes(of: Sampler, denoiser: Denoiser, length: int) -> Sampler:
    """Build the plain sampler at the number of steps whose expected passes are all of this one's together.

    Raises ValueError where it depends on the tokens how many these are.
    """
    plain = Sampler(denoiser, of.plan, of.proposal)
    passes = expectation.expected_passes(of, length)
    if passes is None:
        raise ValueError(f"equal_passes: how many passes {str(of)!r} takes is known only once it has drawn its texts")
    return plain.replace(plan=plan_for(passes, plain, length))


CONTROLS: dict[str, Callable[[Sampler, Denoiser, int], Sampler]] = {
    each.__name__: each for each in (one_particle, zero, flipped, equal_passes)
}

OF_THE_SAME_CORRECTION = (one_particle.__name__, flipped.__name__)


def control(name: str, of: Sampler, denoiser: Denoiser, length: int) -> Sampler:
    """Build the control of a sampler, plain ones of a denoiser. Raises ValueError without anything to control."""
    if of.correction is None:
        raise ValueError(f"{name} is a control of a correction, and {str(of)!r} has none")
    return CONTROLS[name](of, denoiser, length)


def plan_for(passes: float, plain: Sampler, length: int) -> Plan:
    """Find the fewest steps of a plain sampler with that many expected passes, rounded; one by one, if none has."""

    def cost(num_steps: int) -> float:
        found = expectation.expected_passes(plain.replace(plan=blocks.like(plain.plan, plans.Grid(num_steps))), length)
        assert found is not None
        return found

    steps = range(1, _MOST_STEPS * length + 1)
    index = bisect_left(steps, passes - 0.5, key=cost)
    return blocks.like(plain.plan, plans.Grid(steps[index]) if index < len(steps) else plans.first_hitting())


def _times(factor: float, energy: Tensor) -> Tensor:
    return factor * energy.double()
