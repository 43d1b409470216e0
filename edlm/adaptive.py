"""A kernel that draws as many particles as a step needs: more of them while few carry the weight.

Its rounds depend on what was drawn, so the host looks at the effective sample size once a round; every other kernel
knows its shapes beforehand. Particle j of a row is the same draft however many are drawn.
"""

from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn

from edlm import contracts, particles, samplers
from edlm.contracts import Selection
from edlm.samplers import Kernel, Looped

_CHECKED = (contracts.ENERGY, contracts.LOG_RATIO)  # of all that was drawn, for `finite`; zero elsewhere


def in_rounds(kernel: Kernel, target_ess: float, num_particles: int = 2) -> Kernel:
    """A kernel of k particles that doubles a row's particles from `num_particles` until `ESS >= target_ess`.

    At most the k of the kernel are drawn, which is that of `samplers.importance`, over drafts or transitions, or of
    `joint.importance`. A row stops by itself, whatever its batch. Given the number it stopped at, one of them is chosen
    as by the kernel, of which this is the limit on either side: `target_ess <= 1` never draws a second time,
    `target_ess > k` always draws all.
    Raises ValueError unless 1 <= num_particles <= k and target_ess > 0, and for any other kernel.
    """
    stages = _stages(kernel)
    if not 1 <= num_particles <= kernel.num_particles:
        raise ValueError(f"num_particles = {num_particles} must lie in 1..{kernel.num_particles}, those of the kernel")
    if not target_ess > 0.0:
        raise ValueError(f"target_ess = {target_ess} must be positive")
    names = list(stages)
    first, last = names.index("propose"), names.index("select")
    expect, weigh, finish = (
        TensorDictSequential({name: stages[name] for name in part}, inplace=False)
        for part in (names[:first], names[first:last], names[last + 1 :])
    )
    select = stages["select"].module
    step = Rounds(
        expect=expect,
        weigh=weigh,
        finish=finish,
        log_weights=partial(particles.log_weights, temperature=select.temperature),
        selection=select.selection,
        sizes=_doubling(num_particles, kernel.num_particles),
        target_ess=target_ess,
    )
    return kernel._replace(step=step)


class Rounds(Looped):
    """The step of an adaptive kernel: what is expected once, then propose and weigh in rounds, for the rows that go on.

    Its parts `expect` and `weigh` are what an execution mode can compile; `pad` rounds numbers of positions up for it.
    """

    def __init__(
        self,
        expect: TensorDictModuleBase,
        weigh: TensorDictModuleBase,
        finish: TensorDictModuleBase,
        log_weights: Callable[[Tensor], Tensor],
        selection: Selection,
        sizes: list[int],
        target_ess: float,
        pad: Callable[[int], int] = lambda count: count,
    ) -> None:
        super().__init__()
        self.expect, self.weigh, self.finish = expect, weigh, finish
        self.log_weights, self.selection = log_weights, selection
        self.sizes, self.target_ess, self.pad = sizes, target_ess, pad
        self.in_keys = list(
            dict.fromkeys(
                [
                    *(contracts.X_T, contracts.T, contracts.POSITIONS, contracts.REVEAL, contracts.CORRECTED),
                    *(contracts.PROPOSAL_NOISE, contracts.SELECTION_NOISE, *expect.in_keys),
                    *(key for key in weigh.in_keys if key not in expect.out_keys),
                ]
            )
        )
        self.out_keys = [
            *(*finish.out_keys, contracts.CHOSEN, contracts.PARTICLES),
            *(contracts.ESS, contracts.LOG_WEIGHT_STD, *_CHECKED),
        ]

    def with_parts(
        self, wrap: Callable[[TensorDictModuleBase], TensorDictModuleBase], pad: Callable[[int], int]
    ) -> "Rounds":
        """The same step with its parts wrapped."""
        parts = wrap(self.expect), wrap(self.weigh), self.finish
        return Rounds(*parts, self.log_weights, self.selection, self.sizes, self.target_ess, pad)

    def forward(self, tensordict: TensorDict) -> TensorDict:
        """Take the step; the state and the noise are those of the kernel with all its particles."""
        x_t, corrected = tensordict[contracts.X_T], tensordict[contracts.CORRECTED]
        b, k = len(x_t), self.sizes[-1]
        expected = TensorDict({**tensordict, **self.expect(tensordict)})
        drawn: dict[str, Tensor] = {}  # of every particle, what the last part reads: its tokens, and states if carried
        log_weights = torch.full((b, k), -torch.inf, dtype=torch.float64, device=x_t.device)
        count = torch.zeros(b, dtype=torch.int64, device=x_t.device)
        going_on = torch.arange(b, device=x_t.device)
        for first, last in zip([0, *self.sizes], self.sizes, strict=False):
            found = self._round(expected, going_on, first, last)
            for key in {*self.finish.in_keys, *_CHECKED} & set(self.weigh.out_keys):
                whole = drawn.setdefault(key, found[key].new_zeros(b, k, *found[key].shape[2:]))
                whole[going_on, first:last] = found[key]
            weights = self.log_weights(found[contracts.ENERGY]) + found[contracts.LOG_RATIO]
            log_weights[going_on, first:last] = weights
            count[going_on] = last
            few = particles.ess(log_weights[going_on]) < self.target_ess
            going_on = going_on[few & corrected[going_on]]  # the host waits here for their number
            if not len(going_on):
                break
        chosen = torch.where(corrected, self.selection(log_weights, tensordict[contracts.SELECTION_NOISE]), 0)
        given = {contracts.X_T: x_t, contracts.CHOSEN: chosen, contracts.REVEAL: tensordict[contracts.REVEAL]}
        out = self.finish(TensorDict({**drawn, **given}))
        return TensorDict(
            {
                **{key: out[key] for key in self.finish.out_keys},
                **{key: drawn[key] for key in _CHECKED},
                contracts.CHOSEN: chosen,
                contracts.PARTICLES: count,
                contracts.ESS: particles.ess(log_weights),
                contracts.LOG_WEIGHT_STD: particles.log_weight_std(log_weights, count),
            }
        )

    def _round(self, expected: TensorDict, rows: Tensor, first: int, last: int) -> TensorDict:
        """Particles first..last-1 of some rows: their drafts (rows, last - first, l) and what they weigh.

        Of what is expected they read what belongs to these rows, and to their positions.
        """
        x_t, positions = expected[contracts.X_T], expected[contracts.POSITIONS]
        taken, own = samplers.of_rows(positions, rows, *x_t.shape)
        taken = samplers.padded(taken, self.pad, 0)
        of_positions = {
            contracts.POSITIONS: samplers.padded(own, self.pad, len(rows) * x_t.shape[1]),
            contracts.HIDDEN: expected[contracts.HIDDEN][taken],
            contracts.PROPOSAL_NOISE: expected[contracts.PROPOSAL_NOISE][taken, first:last],
        }
        of_rows = {key: expected[key][rows] for key in self.weigh.in_keys if key not in of_positions}
        return self.weigh(TensorDict({**of_positions, **of_rows}))


def _stages(kernel: Kernel) -> dict[str, TensorDictModuleBase]:
    """The stages of a step by name. Raises ValueError for a kernel that weighs nothing or shows no stages."""
    stages = getattr(kernel.step, "module", None)
    if not isinstance(stages, nn.ModuleDict) or not {"propose", "select"} <= set(stages):
        raise ValueError(
            "in_rounds needs a kernel whose step proposes and selects, as samplers.importance and joint.importance "
            "build it: not a plain one, not one in rounds already, and before edlm.accelerate"
        )
    return dict(stages.items())


def _doubling(first: int, last: int) -> list[int]:
    """`first`, twice that, four times, ... and `last`."""
    sizes = [first]
    while sizes[-1] < last:
        sizes.append(min(2 * sizes[-1], last))
    return sizes
