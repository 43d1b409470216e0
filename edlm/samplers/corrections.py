"""The corrections of what a denoiser proposes, and the network passes they share with it: a family of values.

A correction is a value; `parts` says what it adds to a step over a denoiser. A new one is a file of its own that ends
in `register`: samplers, bounds, laws, costs and configs then know it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, get_args

from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from edlm import costs
from edlm.contracts import Causal, Denoiser, Energy, Reads, Scope
from edlm.declaration import Stages
from edlm.models import chain_rule, energies, joint
from edlm.models.denoisers import SubsDenoiser
from edlm.nn import folding
from edlm.nn.networks import Transformer
from edlm.process import arguments, finite, particles
from edlm.samplers import ahead, kernel, registries
from edlm.samplers.drafters import Manner, OfDenoiser
from edlm.samplers.kernel import Looped


class Parts(NamedTuple):
    """The parts that a correction adds to a step.

    energy: the correction as an energy by itself, for bounds and laws. scope: what it weighs.
    before: the stages that end in the hidden states of the positions; weigh: those from candidates to energies; after:
    what is kept for the next step. reads: of `weigh`.
    init: tokens to the first state. carries: the states of the next step come with this one.
    order: the stage that gives the states of new tokens in order, for corrections that are a law of them, so Z = 1.
    write: temperature and nucleus to a step of its own that draws from such a law.
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
    write: Callable[[float, float], Looped] | None = None


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
        arguments.require_energy("energy", self.energy)
        finite.require_temperature("temperature", self.temperature, particles.COLDEST)
        scopes = energies.scopes_of(self.energy)
        if not scopes:
            raise ValueError(
                "a product of energies of drafts and of transitions weighs neither: take those of one scope"
            )
        if self.scope not in (None, *get_args(Scope)):
            raise ValueError(f"scope = {self.scope!r} must be one of {', '.join(get_args(Scope))}")
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


@dataclass(frozen=True)
class Autoregressive:
    """A causal network's own law, `prod_i p_AR(x_i | x_<i)`: what the carry-over form of its residual energy tends to.

    With `selection="speculative"` the sampler draws from this law exactly, with the denoiser's draws as drafts: see
    `samplers.ahead`. The network reads tokens to the left only. It does not see tokens given to the right of a mask. In
    one step, or from left to right, a text has the network's own law. In another order the masks before S are drawn and
    masked again. This is exact but expensive, and has no bound.

    Args:
        network: a causal network over the denoiser's vocabulary, read with a cache.
        bos_id: what stands in front of a text; None: the first token is given.
        temperature: candidates are weighed by `exp(-E / temperature)`; must be 1 if no candidate is weighed.
        ahead: tokens that the denoiser drafts at once.
        context: tokens that the denoiser reads to draft, the drafts included; None: the whole text.
        anew: True drafts again after a refused draft; False keeps the later drafts and verifies them once more.

    Raises:
        ValueError: unless temperature > 0, and ahead and context are at least 1.

    Example:
        >>> import edlm
        >>> from edlm.samplers import corrections
        >>> sizes = dict(max_length=8, hidden_size=16, num_layers=1, num_heads=2)
        >>> denoiser = edlm.denoisers.subs(edlm.networks.Transformer(5, **sizes).eval(), mask_id=4)
        >>> ar = edlm.networks.Transformer(5, **sizes, conditioning_size=0, causal=True).eval()
        >>> law = corrections.Autoregressive(ar, bos_id=4)
        >>> sampler = edlm.samplers.Sampler(denoiser, edlm.plans.Grid(1), correction=law, selection="speculative")
        >>> edlm.sample(edlm.pipelines.pipeline(sampler, length=8), 2)["tokens"].shape
        torch.Size([2, 8])
    """

    network: Causal = field(repr=False)
    bos_id: int | None = None
    temperature: float = 1.0
    ahead: int = Manner().ahead
    context: int | None = Manner().context
    anew: bool = Manner().anew
    name: ClassVar[str] = "autoregressive"

    def __post_init__(self) -> None:
        finite.require_temperature("temperature", self.temperature, particles.COLDEST)
        for key, value in (("ahead", self.ahead), ("context", self.context)):
            if value is not None and value < 1:
                raise ValueError(f"{key} = {value} must be at least 1")

    def parts(self, denoiser: Denoiser) -> Parts:
        """Make the network's pass over every candidate, or passes over drafts alone with what is final in a cache."""
        network = self._network()
        known = int(network.get_submodule("head").out_features)  # type: ignore[arg-type]
        if known != denoiser.vocab_size:
            raise ValueError(f"{self.name}: the network knows {known} ids, and the denoiser {denoiser.vocab_size}")
        energy = energies.ordered_ar(network, denoiser.mask_id, self.bos_id)
        write = partial(self._write, denoiser, network)
        before, weigh = {"denoise": denoiser}, {"weigh": energy}
        return Parts(energy, "draft", before, weigh, Reads(), write=write)  # type: ignore[arg-type]

    def _write(self, denoiser: Denoiser, network: Any, temperature: float, nucleus: float) -> Looped:
        manner = Manner(self.ahead, self.context, self.anew)
        drafter = OfDenoiser(denoiser, manner, temperature, nucleus)
        return ahead.step(drafter, network, denoiser.mask_id, self.bos_id, self.anew, temperature, nucleus)

    def _network(self) -> Any:
        if not isinstance(self.network, Causal):
            kind = type(self.network).__name__
            raise ValueError(f"{self.name} needs a network that is read with a cache, as a Transformer, not {kind}")
        return folding.fold_conditioning(self.network) if isinstance(self.network, Transformer) else self.network


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


def _autoregressive(known: Mapping[str, Energy], called: str | None = None, **options: Any) -> Correction:
    wanted = known.values() if called is None else [known[called]] if called in known else []
    for model in filter(None, map(energies.autoregressive_model, wanted)):
        return Autoregressive(model[0], model[2], **options)  # type: ignore[arg-type]
    asked = "" if called is None else f" called {called!r}"
    raise ValueError(f"{Autoregressive.name} needs an AR model{asked}: name its folder by ar")


register(OfEnergy.name, _of_energy)
register(ChainRule.name, lambda _, **options: ChainRule(**options))
register(Autoregressive.name, _autoregressive)
register(Joint.name, lambda _, **options: Joint(**options))
