"""Samplers on a law of three bits, each of them built by the library and by enumeration."""

import math
from collections.abc import Callable
from typing import NamedTuple

import builders
import torch
from builders import SELECTIONS, of_transitions
from oracles import (
    Choose,
    EnergyFn,
    Lookup,
    OracleDenoiser,
    OracleEnergy,
    all_masked_states,
    all_sequences,
    imh,
    index_of,
    random_joint,
    random_marginals,
    residual_energy,
    reveal_law,
    sampler_law,
    sir,
)
from scipy import stats
from tensordict import TensorDict
from torch import Tensor

import edlm
from edlm.contracts import Positions
from edlm.process import schedules
from edlm.process.schedules import Schedule

SAMPLES = 150_000

SYMBOLS, LENGTH = 2, 3
JOINT = random_joint(0, SYMBOLS, LENGTH, 1.5)
MARGINALS = random_marginals(1, SYMBOLS, LENGTH)  # far from the data's, so that the energy has much to correct
ENERGY = residual_energy(JOINT, MARGINALS)


def greedy(k: int) -> Choose:
    """Law of the candidate of lowest energy among k draws: `P(all w_j <= w) - P(all w_j < w)`, shared among ties."""

    def choose(log_p: Tensor, log_w: Tensor) -> Tensor:
        p = log_p.exp()
        below, tied = log_w.unsqueeze(1) < log_w.unsqueeze(2), log_w.unsqueeze(1) == log_w.unsqueeze(2)
        less, equal = (below * p.unsqueeze(1)).sum(2), (tied * p.unsqueeze(1)).sum(2)
        return p / equal.clamp(min=1e-300) * ((less + equal) ** k - less**k)

    return choose


CHOICES: dict[str, Callable[[int], Choose]] = {"sir": sir, "imh": imh, "greedy": greedy}
SCHEDULES: dict[str, Schedule] = {
    "log_linear": schedules.log_linear(),
    "log_linear_eps": schedules.log_linear(1e-3),
    "cosine": schedules.cosine(),
    "linear": schedules.linear(),
}


class Case(NamedTuple):
    """One sampler, built by the library and by enumeration; one particle is plain sampling."""

    num_steps: int | None
    selection: str = "sir"
    k: int = 1
    temperature: float = 1.0
    window: tuple[float, float] = (0.0, 1.0)
    schedule: str = "log_linear"
    grid: Callable[[int], Tensor] = schedules.uniform_grid
    start: tuple[int, ...] = (SYMBOLS,) * LENGTH
    proposes: Positions = "masked"

    def sample(self, energy: EnergyFn = ENERGY, samples: int = SAMPLES) -> TensorDict:
        """Draw with the library."""
        denoiser, schedule = OracleDenoiser(Lookup(MARGINALS), SYMBOLS), SCHEDULES[self.schedule]
        kernel = builders.ancestral(schedule, denoiser)
        if self.k > 1:
            selection = SELECTIONS[self.selection]
            build = builders.importance if self.proposes == "masked" else of_transitions
            kernel = build(schedule, denoiser, OracleEnergy(energy), self.k, self.temperature, selection)
        pipeline = builders.sampling(kernel, LENGTH, self.num_steps, self.window, self.grid)
        return edlm.sample(pipeline, samples, seed=2024, prompt=torch.tensor(self.start))

    def law(self, energy: EnergyFn = ENERGY, choose: Choose | None = None) -> Tensor:
        """Enumerate."""
        choose = choose or CHOICES[self.selection](self.k)
        if self.num_steps is None:
            return windowed_first_hitting_law(energy, choose, self.temperature, 1.0 - self.window[0], self.proposes)
        times = self.grid(self.num_steps)
        return sampler_law(
            MARGINALS,
            self.alphas(times),
            energy,
            choose,
            self.proposes,
            temperature=self.temperature,
            window=self.window,
            times=times,
            start=torch.tensor(self.start),
        )

    def alphas(self, times: Tensor) -> Tensor:
        """Probability of being revealed before each time of the grid, 0 at the start and 1 at the end."""
        alpha = SCHEDULES[self.schedule].alpha
        at_one = alpha(torch.ones((), dtype=torch.float64))
        alphas = 1.0 - (1.0 - alpha(times)) / (1.0 - at_one)
        alphas[0], alphas[-1] = 0.0, 1.0
        return alphas


def windowed_first_hitting_law(
    energy: EnergyFn, choose: Choose, temperature: float, inside: float, proposes: Positions = "masked"
) -> Tensor:
    """First hitting where the energy is used at first, (m^l,): at n passes, n binomial(l, inside).

    With alpha = 1 - t a reveal time lies in the window [1 - inside, 1] with probability `inside`.
    """
    states = all_masked_states(SYMBOLS, LENGTH)
    masks = (states == SYMBOLS).sum(1).double()
    one_at_a_time = (masks.unsqueeze(1) - masks == 1) / masks.clamp(min=1.0).unsqueeze(1)
    corrected = reveal_law(MARGINALS, energy, choose, proposes, temperature) * one_at_a_time
    plain = reveal_law(MARGINALS, choose=sir(1)) * one_at_a_time
    final = index_of(all_sequences(SYMBOLS, LENGTH), SYMBOLS + 1)
    law = torch.zeros(SYMBOLS**LENGTH, dtype=torch.float64)
    for n in range(LENGTH + 1):
        steps = torch.linalg.matrix_power(corrected, n) @ torch.linalg.matrix_power(plain, LENGTH - n)
        law += float(stats.binom.pmf(n, LENGTH, inside)) * steps[-1, final]  # the last state is all masks
    return law


def grouped_law(size: int, choose: Choose) -> Tensor:
    """Law of a sampler that reveals `size` positions at a time, each set of that size as likely as another, (m^l,)."""
    states = all_masked_states(SYMBOLS, LENGTH)
    masks = (states == SYMBOLS).sum(1).double()
    revealed = masks.unsqueeze(1) - masks
    allowed = (revealed == masks.clamp(max=size).unsqueeze(1)) & (revealed > 0)
    sets = torch.tensor([math.comb(int(n), min(int(n), size)) for n in masks])
    step = reveal_law(MARGINALS, ENERGY, choose) * allowed / sets.unsqueeze(1)
    mass = torch.nn.functional.one_hot(torch.tensor(len(states) - 1), len(states)).double()
    for _ in range(-(-LENGTH // size)):
        mass = mass @ step
    return mass[index_of(all_sequences(SYMBOLS, LENGTH), SYMBOLS + 1)]


def counts_of(tokens: Tensor) -> Tensor:
    return torch.bincount(index_of(tokens, SYMBOLS), minlength=SYMBOLS ** tokens.shape[-1]).double()
