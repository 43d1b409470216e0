"""Small samplers to test with, of parts whose law is a formula of their input.

Unlike the tables of `oracles` the parts here cost nothing to build, so a property can be tried on many of them.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from oracles import EnergyFn, MarginalsFn
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

import edlm
from edlm import contracts, costs
from edlm.contracts import Denoiser, Energy, Positions, Scope
from edlm.likelihood import bounds, enumeration
from edlm.models import energies
from edlm.models.denoisers import SubsDenoiser
from edlm.process import particles, schedules
from edlm.process.schedules import Schedule
from edlm.samplers import corrections, pipelines, plans, selections
from edlm.samplers.corrections import Correction, Parts
from edlm.samplers.pipelines import Pipeline
from edlm.samplers.sampler import Proposal, Sampler, UntilEss
from edlm.samplers.selections import Selection

SELECTIONS = {"sir": particles.sir, "imh": particles.imh, "greedy": particles.greedy}


# ---- Formulas for laws and energies


def wave_marginals(seed: int, symbols: int, length: int, strength: float = 2.0) -> MarginalsFn:
    """`log p(x_0^i | x_t)`, a wave of the tokens of x_t: every position depends on all others."""
    generator = torch.Generator().manual_seed(seed)
    slope = torch.randn(length, length * symbols, generator=generator, dtype=torch.float64)
    offset = 3.0 * torch.randn(length * symbols, generator=generator, dtype=torch.float64)

    def marginals(x_t: Tensor) -> Tensor:
        logits = strength * torch.sin(x_t.double() @ slope + offset).unflatten(-1, (length, symbols))
        return F.pad(logits.log_softmax(-1), (0, 1), value=-torch.inf)

    return marginals


def wave_energy(seed: int, length: int, strength: float = 2.0) -> EnergyFn:
    """An energy of candidates and x_t without any symmetry, within +-strength nats."""
    generator = torch.Generator().manual_seed(seed + 1000)
    slope = 3.0 * torch.randn(2, length, generator=generator, dtype=torch.float64)
    return lambda x, x_t: strength * torch.sin(x.double() @ slope[0] + (x_t.double() @ slope[1]).unsqueeze(-1))


def at(hidden: Tensor, positions: Tensor | None) -> Tensor:
    """What a `Network` owes: the states (b, l, h), or those at flat positions (n, h)."""
    return hidden if positions is None else hidden.flatten(0, 1)[positions]


def masked_positions(x_t: Tensor, mask_id: int) -> Tensor:
    """Flat positions (n,) of the masks."""
    return (x_t == mask_id).flatten().nonzero().squeeze(-1)


# ---- Samplers, by what each is made of


def ancestral(schedule: Schedule, denoiser: Denoiser, temperature: float = 1.0, nucleus: float = 1.0) -> Sampler:
    """Plain sampling."""
    return Sampler(on(denoiser, schedule), proposal=Proposal(temperature, nucleus))


def importance(
    schedule: Schedule,
    denoiser: Denoiser,
    energy: Energy,
    num_particles: int,
    temperature: float = 1.0,
    selection: contracts.Selection = particles.sir,
    proposal_temperature: float = 1.0,
    nucleus: float = 1.0,
) -> Sampler:
    """Whole drafts weighed by an energy, whatever it says that it weighs."""
    correction = corrections.OfEnergy(scoped(energy, "draft"), "draft", temperature)
    return corrected(schedule, denoiser, correction, num_particles, selection, proposal_temperature, nucleus)


def of_transitions(schedule: Schedule, denoiser: Denoiser, energy: Energy, *arguments: Any, **options: Any) -> Sampler:
    """Importance sampling over what a step reveals; arguments of `importance`."""
    found = importance(schedule, denoiser, energy, *arguments, **options)
    temperature = found.correction.temperature
    return found.replace(correction=corrections.OfEnergy(scoped(energy, "transition"), "transition", temperature))


def in_order(
    schedule: Schedule, denoiser: Denoiser, num_particles: int, temperature: float = 1.0, *rest: Any, **options: Any
) -> Sampler:
    """What a step reveals weighed by the denoiser's own chain rule."""
    return corrected(schedule, denoiser, corrections.ChainRule(temperature), num_particles, *rest, **options)


def two_heads(
    schedule: Schedule, denoiser: Denoiser, num_particles: int, temperature: float = 1.0, *rest: Any, **options: Any
) -> Sampler:
    """What a step reveals weighed by a joint network."""
    return corrected(schedule, denoiser, corrections.Joint(temperature), num_particles, *rest, **options)


def speculative(schedule: Schedule, denoiser: Denoiser, temperature: float = 1.0, nucleus: float = 1.0) -> Sampler:
    """What a step reveals drawn in order."""
    plain = ancestral(schedule, denoiser, temperature, nucleus)
    return plain.replace(correction=corrections.ChainRule(), selection="speculative")


def corrected(
    schedule: Schedule,
    denoiser: Denoiser,
    correction: Correction,
    num_particles: int,
    selection: contracts.Selection = particles.sir,
    proposal_temperature: float = 1.0,
    nucleus: float = 1.0,
) -> Sampler:
    """So many candidates of any correction; a selection may be a function."""
    named = {each.choose: each for each in selections.SELECTIONS.values()}
    return ancestral(schedule, denoiser, proposal_temperature, nucleus).replace(
        correction=correction,
        candidates=num_particles,
        selection=named.get(selection) or Selection("own", selection),
    )


def in_rounds(sampler: Sampler, target_ess: float, num_particles: int = 2) -> Sampler:
    """At most as many candidates as the sampler has, drawn until their ESS suffices."""
    return sampler.replace(candidates=UntilEss(target_ess, sampler.most, num_particles))


def with_rounds(pipeline: Pipeline, target_ess: float, num_particles: int = 2) -> Pipeline:
    """The same pipeline, with candidates until their ESS suffices."""
    return pipelines.pipeline(in_rounds(pipeline.sampler, target_ess, num_particles), pipeline.length)


def sampling(
    sampler: Sampler,
    length: int,
    num_steps: int | None = None,
    window: tuple[float, float] = (0.0, 1.0),
    grid: Callable[[int], Tensor] = schedules.uniform_grid,
    tokens_per_pass: int = 1,
) -> Pipeline:
    """A sampler in so many steps, or so many tokens a pass; plain sampling has no window."""
    spacing = next(name for name, times in plans.SPACINGS.items() if times is grid)
    plan = plans.TokensPerPass(tokens_per_pass) if num_steps is None else plans.Grid(num_steps, spacing)
    where = {"window": window} if sampler.correction is not None else {}
    return pipelines.pipeline(sampler.replace(plan=plan, **where), length)


def at_times(sampler: Sampler, grid: Tensor | None) -> Sampler:
    """The same sampler in the steps of a grid (T + 1,), or with None one position at a time."""
    return sampler.replace(plan=plans.TokensPerPass(1) if grid is None else plans.Times(tuple(grid.tolist())))


@dataclass(frozen=True)
class Normalised:
    """An energy with Z = 1 in every state as the law it is: its samplers have a bound and a law, and no texts."""

    energy: Energy = field(repr=False)
    temperature: float = 1.0
    name: ClassVar[str] = "normalised"

    def parts(self, denoiser: Denoiser) -> Parts:
        """Those of the energy, and a stage in order that no one runs."""
        return corrections.OfEnergy(self.energy, "transition").parts(denoiser)._replace(order=self.energy)


def limit(schedule: Schedule, denoiser: Denoiser, energy: Energy, temperature: float = 1.0) -> Sampler:
    """What transitions tend to with more and more candidates, under an energy with Z = 1 in every state."""
    correction = Normalised(scoped(energy, "transition"), temperature)
    return ancestral(schedule, denoiser).replace(correction=correction, selection="speculative")


def plain_bound(
    denoiser: Denoiser, schedule: Schedule, grid: Tensor | None, x_0: Tensor, seed: Tensor, row: Tensor, **how: Any
) -> bounds.Bound:
    """The bound of plain sampling; options of `bounds.of_sampler`."""
    return bounds.of_sampler(at_times(ancestral(schedule, denoiser), grid), x_0, seed, row, **how)


def draft_bound(
    denoiser: Denoiser,
    energy: Energy,
    schedule: Schedule,
    grid: Tensor | None,
    x_0: Tensor,
    seed: Tensor,
    row: Tensor,
    *,
    num_particles: int,
    window: tuple[float, float] = (0.0, 1.0),
    temperature: float = 1.0,
    **how: Any,
) -> bounds.Bound:
    """The bound of SIR on whole drafts."""
    sampler = importance(schedule, denoiser, energy, num_particles, temperature).replace(window=window)
    return bounds.of_sampler(at_times(sampler, grid), x_0, seed, row, **how)


def transition_bound(
    denoiser: Denoiser,
    energy: Energy,
    schedule: Schedule,
    grid: Tensor | None,
    x_0: Tensor,
    seed: Tensor,
    row: Tensor,
    *,
    num_particles: int | None,
    window: tuple[float, float] = (0.0, 1.0),
    temperature: float = 1.0,
    **how: Any,
) -> bounds.Bound:
    """The bound of SIR on what a step reveals; num_particles None: of the limit."""
    parts = schedule, denoiser, energy
    k = num_particles
    sampler = limit(*parts, temperature) if k is None else of_transitions(*parts, k, temperature)
    return bounds.of_sampler(at_times(sampler.replace(window=window), grid), x_0, seed, row, **how)


def law_of(
    denoiser: Denoiser,
    schedule: Schedule,
    grid: Tensor | None,
    length: int,
    energy: Energy | None = None,
    num_particles: int = 1,
    selection: str = "sir",
    proposes: Positions = "masked",
    temperature: float = 1.0,
) -> Tensor:
    """The enumerated law of a sampler, by what it is made of; temperature: of what proposes."""
    if energy is None:
        found = ancestral(schedule, denoiser, temperature)
    elif selection == "speculative":
        found = limit(schedule, denoiser, energy)
    else:
        build = importance if proposes == "masked" else of_transitions
        found = build(schedule, denoiser, energy, num_particles, 1.0, SELECTIONS[selection], temperature)
    return enumeration.law(at_times(found, grid), length)


def on(denoiser: Denoiser, schedule: Schedule) -> Denoiser:
    """The same denoiser of another masking process."""
    found = copy.copy(denoiser)
    found.schedule = schedule
    return found


def scoped(energy: Energy, scope: Scope) -> Energy:
    """The same energy, taken at its word that it weighs this."""
    if scope in energies.scopes_of(energy):
        return energy
    return energies.declare(copy.copy(energy), (scope,), costs.of_energy(energy))


# ---- Networks


def randomise(network: nn.Module, seed: int) -> nn.Module:
    """Give every parameter a random value, those that start at zero too, and turn dropout off.

    Scaled so that a layer's output is about as large as its input, and the laws of a denoiser are neither flat nor
    certain.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 1.0 / math.sqrt(parameter.shape[-1]) if parameter.ndim == 2 else 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def tiny_network(seed: int = 0, vocab_size: int = 5, max_length: int = 8, **changes: object) -> nn.Module:
    """A transformer with random weights; float64, so that no test hangs on the order of a sum."""
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "conditioning_size": 8} | changes
    return randomise(edlm.networks.Transformer(vocab_size, max_length, **sizes), seed).double()


def tiny_denoiser(seed: int = 0, mask_id: int = 4, schedule: Schedule | None = None, **changes: object) -> SubsDenoiser:
    """A denoiser over `tiny_network`."""
    return edlm.denoisers.subs(tiny_network(seed, **changes), mask_id, schedule)


def tiny_energy(seed: int = 1, vocab_size: int = 5, max_length: int = 8, **changes: object) -> TensorDictModule:
    """A learned energy with random weights, float64."""
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "conditioning_size": 8} | changes
    network = randomise(edlm.networks.EnergyNetwork(vocab_size, max_length, **sizes), seed).double()
    with torch.no_grad():
        network.scalar.weight.mul_(50.0)  # averages over positions are small, and an energy of 0.03 nats does nothing
    return edlm.energies.learned(network)


# ---- Compiled


def assert_whole_graphs(slow: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerated it gives the same tokens by graphs without a break, compiled for no number of rows but one anew.

    Traced and not translated, which is what takes the time.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    fast = edlm.accelerate(slow, "compile")
    for b, again in ((4, False), (5, False), (1, False), (2, True), (3, True), (16, True), (1, True)):
        with torch._dynamo.config.patch(error_on_recompile=again):
            assert torch.equal(edlm.sample(fast, b, seed=b)["tokens"], edlm.sample(slow, b, seed=b)["tokens"])
