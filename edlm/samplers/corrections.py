"""The corrections of what a denoiser proposes, and the network passes they share with it: a family of values.

A correction is a value; `parts` says what it adds to a step over a denoiser. A new one is a file of its own that ends
in `register`: samplers, bounds, laws, costs and configs then know it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from edlm import costs
from edlm.contracts import Denoiser, Energy, Reads, Scope
from edlm.declaration import Stages
from edlm.models import chain_rule, energies, joint
from edlm.models.denoisers import SubsDenoiser
from edlm.process import finite, particles
from edlm.samplers import kernel, registries


class Parts(NamedTuple):
    """The parts that a correction adds to a step.

    energy: the correction as an energy by itself, for bounds and laws. scope: what it weighs.
    before: the stages that end in the hidden states of the positions; weigh: those from candidates to energies; after:
    what is kept for the next step. reads: of `weigh`.
    init: tokens to the first state. carries: the states of the next step come with this one.
    order: the stage that gives the states of new tokens in order, for corrections that are a law of them, so Z = 1.
    """

    energy: Energy
    scope: Scope
    before: Stages
    weigh: Stages
    reads: Reads
    after: Stages = MappingProxyType({})
    init: Callable[[Tensor], TensorDict] = kernel.init
    carries: bool = False
    order: TensorDictModuleBase | None = None


class Correction(Protocol):
    """A value of the family. Candidates are weighed by `exp(-E / temperature)`."""

    name: ClassVar[str]

    @property
    def temperature(self) -> float:
        """Of the energy, above zero."""
        ...

    def parts(self, denoiser: Denoiser) -> Parts:
        """Return what it adds to a step over a denoiser. Raises ValueError if the two do not fit."""
        ...


@dataclass(frozen=True)
class OfEnergy:
    """An energy by itself, a pass of another network or none.

    Args:
        energy: what weighs the candidates.
        scope: `"draft"` or `"transition"`, what is weighed; None is what the energy says of itself.
        temperature: candidates are weighed by `exp(-E / temperature)`.
        called: which energy it is, in tables and configs.

    Raises:
        ValueError: for a scope that the energy has not, and unless temperature > 0.

    Example:
        >>> import edlm
        >>> from edlm.samplers import corrections
        >>> corrections.OfEnergy(edlm.energies.zero(), "transition", temperature=0.5)
        OfEnergy(scope='transition', temperature=0.5, called='own')
    """

    energy: Energy = field(repr=False)
    scope: Scope | None = None
    temperature: float = 1.0
    called: str = "own"
    name: ClassVar[str] = "energy"

    def __post_init__(self) -> None:
        finite.require_temperature("temperature", self.temperature, particles.COLDEST)
        scopes = energies.scopes_of(self.energy)
        if not scopes:
            raise ValueError(
                "a product of energies of drafts and of transitions weighs neither: take those of one scope"
            )
        if self.scope is not None and self.scope not in scopes:
            raise ValueError(
                f"scope = {self.scope!r}: this energy weighs {scopes[0]}s. "
                + ("What x_s masks is improbable to it, and not unknown" if self.scope == "transition" else "")
            )

    def parts(self, denoiser: Denoiser) -> Parts:
        """Make the denoiser's pass, and the energy's over every candidate."""
        scope = self.scope or energies.scopes_of(self.energy)[0]
        reads = costs.of_energy(self.energy)
        return Parts(self.energy, scope, {"denoise": denoiser}, {"weigh": self.energy}, reads)  # type: ignore[dict-item]


@dataclass(frozen=True)
class ChainRule:
    """The energy that a denoiser has in itself, read in order over the new tokens alone.

    Args:
        temperature: candidates are weighed by `exp(-E / temperature)`.
        factor: what the energy is multiplied with, -1 the control.

    Raises:
        ValueError: unless temperature > 0.

    Example:
        >>> import edlm
        >>> from edlm.samplers import corrections
        >>> network = edlm.networks.Transformer(5, max_length=8, hidden_size=16, num_layers=1, num_heads=2).eval()
        >>> denoiser = edlm.denoisers.subs(network, mask_id=4)
        >>> print(edlm.samplers.Sampler(denoiser, correction=corrections.ChainRule(), candidates=8))
        sir, chain_rule, one by one, k=8
    """

    temperature: float = 1.0
    factor: float = 1.0
    name: ClassVar[str] = "chain_rule"

    def __post_init__(self) -> None:
        finite.require_temperature("temperature", self.temperature, particles.COLDEST)

    def parts(self, denoiser: Denoiser) -> Parts:
        """Make one pass over x_t, and two tokens for each new token of a candidate but the first."""
        own = _subs(self.name, denoiser)
        return Parts(
            _times(self.factor, chain_rule.energy(own)),
            "transition",
            {"denoise": chain_rule.read(own)},
            {"weigh": _times(self.factor, chain_rule.weigh(own))},
            chain_rule.READS,
            order=chain_rule.order(own) if self.factor == 1.0 else None,
        )


@dataclass(frozen=True)
class Joint:
    """The second head of a joint network, whose pass over the candidates is the next step's.

    Args:
        temperature: candidates are weighed by `exp(-E / temperature)`.
        factor: what the energy is multiplied with, -1 the control.

    Raises:
        ValueError: unless temperature > 0.

    Example:
        >>> import edlm
        >>> from edlm.samplers import corrections
        >>> network = edlm.networks.JointNetwork(5, max_length=8, hidden_size=16, num_layers=1, num_heads=2).eval()
        >>> denoiser = edlm.denoisers.subs(network, mask_id=4)
        >>> print(edlm.samplers.Sampler(denoiser, correction=corrections.Joint(), candidates=8))
        sir, joint, one by one, k=8
    """

    temperature: float = 1.0
    factor: float = 1.0
    name: ClassVar[str] = "joint"

    def __post_init__(self) -> None:
        finite.require_temperature("temperature", self.temperature, particles.COLDEST)

    def parts(self, denoiser: Denoiser) -> Parts:
        """Make one pass over x_t before the first corrected step, and the candidates' in each."""
        network = joint.network_of(_subs(self.name, denoiser))
        return Parts(
            _times(self.factor, joint.energy(network)),
            "transition",
            {"recall": joint.recall()},
            {"read": joint.read(network), "weigh": _times(self.factor, joint.weigh(network))},
            Reads(candidates=1),
            {"carry": joint.carry()},
            partial(joint.first, network),
            carries=True,
        )


Builder = Callable[..., Correction]  # the energies that are loaded, by name, and the correction's own options
CORRECTIONS: dict[str, Builder] = {}


def register(name: str, build: Builder) -> None:
    """Give a correction its name in configs. Raises ValueError for a name that another one has."""
    registries.put(CORRECTIONS, "correction", name, build)


def _times(factor: float, energy: TensorDictModuleBase) -> TensorDictModuleBase:
    return energy if factor == 1.0 else energies.scaled(energy, factor)


def _subs(name: str, denoiser: Denoiser) -> SubsDenoiser:
    if not isinstance(denoiser, SubsDenoiser):
        raise ValueError(
            f"{name} needs a denoiser with a network, as denoisers.subs builds, not {type(denoiser).__name__}"
        )
    return denoiser


def _of_energy(known: Mapping[str, Energy], called: str, **options: Any) -> Correction:
    if called not in known:
        raise ValueError(f"correction.called = {called!r} must be one of the energies {', '.join(known) or '(none)'}")
    return OfEnergy(known[called], called=called, **options)


register(OfEnergy.name, _of_energy)
register(ChainRule.name, lambda _, **options: ChainRule(**options))
register(Joint.name, lambda _, **options: Joint(**options))
