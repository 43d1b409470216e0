"""Samplers by specification, every choice of which can be changed by itself, and a slow sampler to compare with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from builders import SELECTIONS, ancestral, importance, of_transitions, sampling, wave_energy, wave_marginals
from hypothesis import strategies as st
from oracles import EnergyFn, OracleDenoiser, OracleEnergy
from torch import Tensor

from edlm import contracts, samplers
from edlm.contracts import Positions
from edlm.process import noise, schedules
from edlm.process.noise import Stream
from edlm.process.schedules import Schedule
from edlm.samplers.kernel import Kernel
from edlm.samplers.pipelines import Pipeline
from edlm.samplers.sampler import Sampler


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
