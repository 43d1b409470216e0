"""A kernel that draws as many particles as a step needs: more of them while few carry the weight.

Its rounds depend on what was drawn, so the host looks at the effective sample size once a round; every other kernel
knows its shapes beforehand. Particle j of a row is the same draft however many are drawn.
"""

from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import Tensor

from edlm import contracts, particles, samplers
from edlm.contracts import Denoiser, Energy, Selection
from edlm.samplers import Kernel
from edlm.schedules import Schedule


def importance(
    schedule: Schedule,
    denoiser: Denoiser,
    energy: Energy,
    target_ess: float,
    max_particles: int,
    num_particles: int = 2,
    temperature: float = 1.0,
    selection: Selection = particles.sir,
    proposal_temperature: float = 1.0,
    nucleus: float = 1.0,
) -> Kernel:
    """Importance sampling that doubles a row's particles from `num_particles` until `ESS >= target_ess`.

    At most `max_particles` are drawn. A row stops by itself, whatever its batch. Given the number it stopped at, one of
    them is chosen as in `samplers.importance`, of which this is the limit on either side: `target_ess <= 1` never draws
    a second time, `target_ess > max_particles` always draws all.
    Raises ValueError unless 1 <= num_particles <= max_particles and target_ess > 0, and as `samplers.importance` does.
    """
    if not 1 <= num_particles <= max_particles:
        raise ValueError(f"num_particles = {num_particles} must lie in 1..max_particles = {max_particles}")
    if not target_ess > 0.0:
        raise ValueError(f"target_ess = {target_ess} must be positive")
    fixed = samplers.importance(
        schedule, denoiser, energy, max_particles, temperature, selection, proposal_temperature, nucleus
    )
    stages = fixed.step.module
    step = Rounds(
        denoise=stages["denoise"],
        weigh=TensorDictSequential({name: stages[name] for name in ("propose", "weigh")}, inplace=False),
        log_weights=partial(particles.log_weights, temperature=temperature),
        selection=selection,
        sizes=_doubling(num_particles, max_particles),
        target_ess=target_ess,
    )
    return fixed._replace(step=step)


class Rounds(TensorDictModuleBase):
    """The step of an adaptive kernel: denoise once, then propose and weigh in rounds, for the rows that go on.

    Its parts `denoise` and `weigh` are what an execution mode can compile; `pad` rounds numbers of positions up for it.
    """

    def __init__(
        self,
        denoise: TensorDictModuleBase,
        weigh: TensorDictModuleBase,
        log_weights: Callable[[Tensor], Tensor],
        selection: Selection,
        sizes: list[int],
        target_ess: float,
        pad: Callable[[int], int] = lambda count: count,
    ) -> None:
        super().__init__()
        self.denoise, self.weigh = denoise, weigh
        self.log_weights, self.selection = log_weights, selection
        self.sizes, self.target_ess, self.pad = sizes, target_ess, pad
        self.reveal = samplers.reveal_chosen()
        self.in_keys = [
            *(contracts.X_T, contracts.T, contracts.POSITIONS, contracts.REVEAL, contracts.CORRECTED),
            *(contracts.PROPOSAL_NOISE, contracts.SELECTION_NOISE),
        ]
        self.out_keys = [
            *(contracts.X_S, contracts.CHOSEN, contracts.PARTICLES),
            *(contracts.ESS, contracts.LOG_WEIGHT_STD),
        ]

    def with_parts(
        self, wrap: Callable[[TensorDictModuleBase], TensorDictModuleBase], pad: Callable[[int], int]
    ) -> "Rounds":
        """The same step with its parts wrapped."""
        return Rounds(
            wrap(self.denoise), wrap(self.weigh), self.log_weights, self.selection, self.sizes, self.target_ess, pad
        )

    def forward(self, tensordict: TensorDict) -> TensorDict:
        """Take the step; the state and the noise are those of `samplers.importance` with `max_particles`."""
        x_t, corrected = tensordict[contracts.X_T], tensordict[contracts.CORRECTED]
        b = len(x_t)
        hidden = self.denoise(tensordict)[contracts.HIDDEN]
        drafts = x_t.unsqueeze(1).repeat(1, self.sizes[-1], 1)
        log_weights = torch.full(drafts.shape[:2], -torch.inf, dtype=torch.float64, device=x_t.device)
        count = torch.zeros(b, dtype=torch.int64, device=x_t.device)
        going_on = torch.arange(b, device=x_t.device)
        for first, last in zip([0, *self.sizes], self.sizes, strict=False):
            found = self._round(tensordict, hidden, going_on, first, last)
            drafts[going_on, first:last] = found[contracts.CANDIDATES]
            weights = self.log_weights(found[contracts.ENERGY]) + found[contracts.LOG_RATIO]
            log_weights[going_on, first:last] = weights
            count[going_on] = last
            few = particles.ess(log_weights[going_on]) < self.target_ess
            going_on = going_on[few & corrected[going_on]]  # the host waits here for their number
            if not len(going_on):
                break
        chosen = torch.where(corrected, self.selection(log_weights, tensordict[contracts.SELECTION_NOISE]), 0)
        state = {contracts.X_T: x_t, contracts.CANDIDATES: drafts, contracts.CHOSEN: chosen}
        out = self.reveal(TensorDict({**state, contracts.REVEAL: tensordict[contracts.REVEAL]}))
        return TensorDict(
            {
                contracts.X_S: out[contracts.X_S],
                contracts.CHOSEN: chosen,
                contracts.PARTICLES: count,
                contracts.ESS: particles.ess(log_weights),
                contracts.LOG_WEIGHT_STD: particles.log_weight_std(log_weights, count),
            }
        )

    def _round(self, tensordict: TensorDict, hidden: Tensor, rows: Tensor, first: int, last: int) -> TensorDict:
        """Particles first..last-1 of some rows: their drafts (rows, last - first, l) and what they weigh."""
        x_t, positions = tensordict[contracts.X_T], tensordict[contracts.POSITIONS]
        b, l = x_t.shape
        place = torch.full((b + 1,), -1, device=x_t.device)  # where a row stands among those that go on
        place[rows] = torch.arange(len(rows), device=x_t.device)
        owner = place[positions // l]
        (taken,) = torch.where(owner >= 0)
        padding = self.pad(len(taken)) - len(taken)
        own = owner[taken] * l + positions[taken] % l
        taken = torch.cat([taken, taken.new_zeros(padding)])
        return self.weigh(
            TensorDict(
                {
                    contracts.HIDDEN: hidden[taken],
                    contracts.X_T: x_t[rows],
                    contracts.T: tensordict[contracts.T][rows],
                    contracts.POSITIONS: torch.cat([own, own.new_full((padding,), len(rows) * l)]),
                    contracts.PROPOSAL_NOISE: tensordict[contracts.PROPOSAL_NOISE][taken, first:last],
                }
            )
        )


def _doubling(first: int, last: int) -> list[int]:
    """`first`, twice that, four times, ... and `last`."""
    sizes = [first]
    while sizes[-1] < last:
        sizes.append(min(2 * sizes[-1], last))
    return sizes
