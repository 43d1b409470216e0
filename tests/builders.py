"""Small samplers to test with: parts whose law is a formula of their input, and one slow sampler to compare with.

Unlike the tables of `oracles` the parts here cost nothing to build, so a property can be tried on many of them.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from oracles import EnergyFn, MarginalsFn, OracleDenoiser, OracleEnergy
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

import edlm
from edlm import contracts, costs, samplers
from edlm.contracts import Denoiser, Energy, Positions, Scope
from edlm.likelihood import bounds, enumeration
from edlm.models import energies
from edlm.models.denoisers import SubsDenoiser
from edlm.process import noise, particles, schedules
from edlm.process.noise import Stream
from edlm.process.schedules import Schedule
from edlm.samplers import corrections, pipelines, plans, selections
from edlm.samplers.corrections import Correction, Parts
from edlm.samplers.kernel import Kernel
from edlm.samplers.pipelines import Pipeline
from edlm.samplers.sampler import Proposal, Sampler, UntilEss
from edlm.samplers.selections import Selection
from edlm.samplers.speculative import Speculation

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


def energy_module(energy: EnergyFn) -> TensorDictModule:
    """Wrap a function of candidates and x_t."""
    return TensorDictModule(energy, in_keys=[contracts.CANDIDATES, contracts.X_T], out_keys=[contracts.ENERGY])


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


class _Forgetting(Speculation):
    """Prefix speculation: what follows the first token that changed is guessed anew, as it was at first."""

    def _round(self, state: Any, rows: Tensor, written: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        taken, found, wrong = super()._round(state, rows, written)
        flat = state[contracts.POSITIONS][taken]
        changed = found != written.flatten()[flat]
        for row in rows.tolist():
            own = flat // written.shape[1] == row
            after = own & (torch.cumsum(changed & own, 0) - (changed & own).long() > 0)
            found = torch.where(after, state[contracts.PROPOSED][taken], found)
        return taken, found, wrong


def forgetting(pipeline: Pipeline) -> Pipeline:
    """The same pipeline with a step in order whose guesses after a refusal are thrown away."""
    step = pipeline.kernel.step
    assert isinstance(step, Speculation)
    own = _Forgetting(step.propose, step.verify, step.resample, step.reads, step.pad)
    return pipeline._replace(kernel=pipeline.kernel._replace(step=own))


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


# ---- Specifications: every choice a sampler is made of, so that it can be built with one of them changed


class Spec(NamedTuple):
    """One sampler. selection None is plain sampling; `marginals` and `energy` are the waves of the seed."""

    seed: int = 0
    symbols: int = 3
    length: int = 4
    num_steps: int | None = 3
    tokens_per_pass: int = 1  # of a sampler without steps
    num_particles: int = 3
    selection: str | None = "sir"
    proposes: Positions = "masked"
    temperature: float = 1.0
    window: tuple[float, float] = (0.0, 1.0)
    schedule: Schedule = schedules.log_linear()

    @property
    def mask_id(self) -> int:
        """The last of the vocabulary."""
        return self.symbols

    def pipeline(self, **changes: object) -> Pipeline:
        """Build it, with changes to the kernel's energy or selection."""
        group = self.tokens_per_pass if self.num_steps is None else 1
        return sampling(self.sampler(**changes), self.length, self.num_steps, self.window, tokens_per_pass=group)

    def kernel(self, **changes: Any) -> Kernel:
        """Build what takes its steps alone."""
        return samplers.kernel_of(self.sampler(**changes))

    def sampler(self, energy: EnergyFn | None = None, selection: contracts.Selection | None = None) -> Sampler:
        """Build it without its plan and window."""
        denoiser = OracleDenoiser(wave_marginals(self.seed, self.symbols, self.length), self.mask_id)
        if self.selection is None:
            return ancestral(self.schedule, denoiser, self.temperature)
        build = importance if self.proposes == "masked" else of_transitions
        return build(
            self.schedule,
            denoiser,
            OracleEnergy(energy or wave_energy(self.seed, self.length)),
            self.num_particles,
            self.temperature,
            selection or SELECTIONS[self.selection],
        )

    def plain(self) -> Pipeline:
        """The same sampler without its energy."""
        return self._replace(selection=None, temperature=1.0).pipeline()


SCHEDULES = [
    schedules.log_linear(),
    schedules.log_linear(1e-3),
    schedules.cosine(),
    schedules.polynomial(2.0),
    schedules.linear(),
]


@st.composite
def windows(draw: st.DrawFn) -> tuple[float, float]:
    """Any window, the full one as often as all others, and single times of a grid among them."""
    if draw(st.booleans()):
        return 0.0, 1.0
    ends = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0.0, 1.0)
    low, high = sorted([draw(ends), draw(ends)])
    return low, high


def specs(selections: tuple[str | None, ...] = ("sir", "imh", "greedy", None)) -> st.SearchStrategy[Spec]:
    """Every kind of sampler, from one symbol at one position up."""
    return st.builds(
        Spec,
        seed=st.integers(0, 2**62),
        symbols=st.sampled_from([2, 3, 4, 1]),
        length=st.integers(1, 6),
        num_steps=st.none() | st.integers(1, 8),
        tokens_per_pass=st.integers(1, 3),
        num_particles=st.sampled_from([2, 3, 4, 1]),
        selection=st.sampled_from(selections),
        proposes=st.sampled_from(["masked", "revealed"]),
        temperature=st.sampled_from([1.0, 0.5, 2.0]),
        window=windows(),
        schedule=st.sampled_from(SCHEDULES),
    )


@st.composite
def prompts(draw: st.DrawFn, spec: Spec, b: int) -> Tensor | None:
    """No prompt, or tokens and masks for every row: none at all, a part of the length, or all of it."""
    if draw(st.booleans()):
        return None
    width = draw(st.integers(0, spec.length))
    tokens = st.integers(0, spec.mask_id) | st.just(spec.mask_id)  # masks more often than any token
    if draw(st.booleans()):
        return torch.tensor(draw(st.lists(tokens, min_size=width, max_size=width)), dtype=torch.int64)
    flat = draw(st.lists(tokens, min_size=b * width, max_size=b * width))
    return torch.tensor(flat, dtype=torch.int64).view(b, width)


def filled_up(prompt: Tensor | None, spec: Spec, b: int) -> Tensor:
    """What sampling starts from: the prompt and masks on its right, (b, l)."""
    tokens = torch.full((b, spec.length), spec.mask_id)
    if prompt is not None:
        tokens[:, : prompt.shape[-1]] = prompt
    return tokens


# ---- The same tokens, one row, one pass and one position at a time


def slow_sample(spec: Spec, seed: int, row: int, start: list[int]) -> list[int]:
    """Sample one row in plain Python; it shares the uniforms and the schedule with the library, nothing else."""
    x = list(start)
    for p, (t, revealed) in enumerate(_slow_plan(spec, seed, row, start)):
        corrected = spec.selection is not None and spec.window[0] <= t <= spec.window[1]
        draft = slow_draft(spec, seed, row, p, x, corrected, revealed)
        x = [draft[i] if i in revealed else token for i, token in enumerate(x)]
    return x


def _slow_plan(spec: Spec, seed: int, row: int, start: list[int]) -> list[tuple[float, set[int]]]:
    """The start of each pass and the positions that it reveals, from the reveal time of each position."""
    masked = [i for i, token in enumerate(start) if token == spec.mask_id]
    u = noise.uniforms(seed, torch.tensor(row), 0, Stream.REVEAL, torch.arange(spec.length)).squeeze(-1)
    at_one = spec.schedule.alpha(torch.ones((), dtype=torch.float64))
    tau = spec.schedule.inverse(1 - u * (1 - at_one)).clamp(0.0, 1.0).tolist()
    if spec.num_steps is None:
        order, n = sorted(masked, key=lambda i: -float(u[i])), spec.tokens_per_pass
        return [(tau[order[i]], set(order[i : i + n])) for i in range(0, len(order), n)]
    times = [1 - n / spec.num_steps for n in range(spec.num_steps)]
    step_of = {i: max(n for n, t in enumerate(times) if tau[i] <= t) for i in masked}
    return [(times[n], {i for i in masked if step_of[i] == n}) for n in sorted(set(step_of.values()))]


def slow_draft(spec: Spec, seed: int, row: int, p: int, x: list[int], corrected: bool, revealed: set[int]) -> list[int]:
    x_t, k = torch.tensor([x]), spec.num_particles if corrected else 1
    heat = 1.0 if spec.selection is not None else spec.temperature
    laws = (wave_marginals(spec.seed, spec.symbols, spec.length)(x_t)[0] / heat).softmax(-1)
    drafts = [list(x) for _ in range(k)]
    masked = [i for i, token in enumerate(x) if token == spec.mask_id]
    for i in masked if spec.proposes == "masked" else revealed:
        u = noise.uniforms(seed, torch.tensor(row), p, Stream.PROPOSAL, i, count=k)
        for j in range(k):
            drafts[j][i] = int((laws[i, : spec.symbols].cumsum(0) < u[j]).sum().clamp(max=spec.symbols - 1))
    if k == 1:
        return drafts[0]
    energy = wave_energy(spec.seed, spec.length)(torch.tensor([drafts]), x_t)[0]
    u = noise.uniforms(seed, torch.tensor(row), p, Stream.SELECTION, count=k).tolist()
    return drafts[_SLOW_CHOICE[spec.selection]((-energy / spec.temperature).exp().tolist(), u)]


def _slow_sir(w: list[float], u: list[float]) -> int:
    return sum(u[0] * sum(w) >= sum(w[: j + 1]) for j in range(len(w) - 1))


def _slow_imh(w: list[float], u: list[float]) -> int:
    chosen = 0
    for j in range(1, len(w)):
        chosen = j if u[j] < w[j] / w[chosen] else chosen
    return chosen


_SLOW_CHOICE: dict[str, Callable[[list[float], list[float]], int]] = {
    "sir": _slow_sir,
    "imh": _slow_imh,
    "greedy": lambda w, u: max(range(len(w)), key=lambda j: w[j]),
}


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
