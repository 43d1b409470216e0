"""A step that draws as many candidates as it needs: more of them while few carry the weight.

Its rounds depend on what was drawn, so the host looks at the effective sample size once a round; every other kernel
knows its shapes beforehand. Particle j of a row is the same draft however many are drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from edlm import contracts
from edlm.contracts import Selection
from edlm.process import arguments, finite, particles
from edlm.samplers import kernel
from edlm.samplers.kernel import Looped

_WEIGHED = (contracts.CHOSEN, contracts.PARTICLES, contracts.ROUNDS, contracts.ESS, contracts.LOG_WEIGHT_STD)
_CHECKED = (contracts.ENERGY, contracts.LOG_RATIO)  # of all that was drawn, for `finite`; zero elsewhere


@dataclass(frozen=True)
class UntilEss:
    """As many candidates as it takes: those of a row double from `first` until `ESS >= ess`, at most `at_most`.

    A row stops by itself, whatever its batch. Given the number it stopped at, one of them is chosen as of a fixed
    number, which is the limit on either side: `ess <= 1` never draws a second time, `ess > at_most` always draws all.
    Raises ValueError unless 1 <= first <= at_most and ess > 0.
    """

    ess: float
    at_most: int
    first: int = 2

    def __post_init__(self) -> None:
        arguments.require_integers(first=self.first, at_most=self.at_most)
        arguments.require_numbers(target_ess=self.ess)
        if not 1 <= self.first <= self.at_most:
            raise ValueError(f"first = {self.first} must lie in 1..{self.at_most}, the most candidates")
        if not self.ess > 0.0:
            raise ValueError(f"target_ess = {self.ess} must be positive")

    def __str__(self) -> str:
        return f"k<={self.at_most} until ESS {self.ess:g}"

    @property
    def sizes(self) -> list[int]:
        """List how many candidates there are after each round."""
        sizes = [self.first]
        while sizes[-1] < self.at_most:
            sizes.append(min(2 * sizes[-1], self.at_most))
        return sizes


class Rounds(Looped):
    """The step: what is expected once, then propose and weigh in rounds, for the rows that go on, and the end.

    Its parts `expect` and `weigh` are what an execution mode can compile; `pad` rounds numbers of positions up for it.
    """

    repeated = (1,)

    def __init__(
        self,
        expect: TensorDictModuleBase,
        weigh: TensorDictModuleBase,
        finish: TensorDictModuleBase,
        log_weights: Callable[[Tensor], Tensor],
        selection: Selection,
        until: UntilEss,
        pad: Callable[[int], int] = lambda count: count,
    ) -> None:
        super().__init__()
        self.expect, self.weigh, self.finish = expect, weigh, finish
        self.parts = (expect, weigh, finish)
        self.log_weights, self.selection = log_weights, selection
        self.until, self.pad = until, pad
        written = {*expect.out_keys, *weigh.out_keys, *_WEIGHED}
        read = [*expect.in_keys, *(key for part in (weigh, finish) for key in part.in_keys if key not in written)]
        self.in_keys = list(dict.fromkeys([*read, contracts.CORRECTED, contracts.SELECTION_NOISE]))
        self.out_keys = [*finish.out_keys, *_WEIGHED, *_CHECKED]

    def with_parts(
        self, wrap: Callable[[TensorDictModuleBase], TensorDictModuleBase], pad: Callable[[int], int]
    ) -> "Rounds":
        """Wrap the parts of the step."""
        expect = wrap(self.expect) if self.expect.in_keys else self.expect  # it may be done before the step
        parts = expect, wrap(self.weigh), self.finish
        return Rounds(*parts, self.log_weights, self.selection, self.until, pad)

    def forward(self, tensordict: TensorDict) -> TensorDict:
        """Take the step; the state and the noise are those of a step with all its particles."""
        x_t, corrected = tensordict[contracts.X_T], tensordict[contracts.CORRECTED]
        sizes = self.until.sizes
        b, k = len(x_t), sizes[-1]
        expected = TensorDict({**tensordict, **self.expect(tensordict)})
        drawn: dict[str, Tensor] = {}  # of every particle, what the last part reads: its tokens, and states if carried
        log_weights = torch.full((b, k), -torch.inf, dtype=torch.float64, device=x_t.device)
        count, rounds = torch.zeros(2, b, dtype=torch.int64, device=x_t.device)
        going_on = torch.arange(b, device=x_t.device)
        for first, last in zip([0, *sizes], sizes, strict=False):
            found = self._round(expected, going_on, slice(first, last))
            finite.require_one_each(found[contracts.ENERGY], found[contracts.LOG_RATIO])
            for key in {*self.finish.in_keys, *_CHECKED} & set(self.weigh.out_keys):
                whole = drawn.setdefault(key, found[key].new_zeros(b, k, *found[key].shape[2:]))
                whole[going_on, first:last] = found[key]
            weights = self.log_weights(found[contracts.ENERGY]) + found[contracts.LOG_RATIO]
            log_weights[going_on, first:last] = weights
            count[going_on] = last
            rounds[going_on] += 1
            few = particles.ess(log_weights[going_on]) < self.until.ess
            going_on = going_on[few & corrected[going_on]]  # the host waits here for their number
            if not len(going_on):
                break
        weighed = {
            contracts.CHOSEN: torch.where(
                corrected, self.selection(log_weights, tensordict[contracts.SELECTION_NOISE]), 0
            ),
            contracts.PARTICLES: count,
            contracts.ROUNDS: rounds,
            contracts.ESS: particles.ess(log_weights),
            contracts.LOG_WEIGHT_STD: particles.log_weight_std(log_weights, count),
        }
        out = self.finish(TensorDict({**tensordict, **drawn, **weighed}))
        checked = {key: drawn[key] for key in _CHECKED} | kernel.kept(expected)
        return TensorDict({**{key: out[key] for key in self.finish.out_keys}, **weighed, **checked})

    def _round(self, expected: TensorDict, rows: Tensor, of: slice) -> TensorDict:
        """Some particles of some rows: their drafts (rows, k', l) and what they weigh.

        Of what is expected they read what belongs to these rows, and to their positions.
        """
        x_t, positions = expected[contracts.X_T], expected[contracts.POSITIONS]
        taken, own = kernel.of_rows(positions, rows, *x_t.shape)
        taken = kernel.padded(taken, self.pad, 0)
        found = kernel.part_of(expected, self.weigh.in_keys, rows, taken, of)
        found[contracts.POSITIONS] = kernel.padded(own, self.pad, len(rows) * x_t.shape[1])
        return self.weigh(TensorDict(found))
