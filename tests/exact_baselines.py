"""D3PM and SEDD whose predictions are given by a function, over so few texts that their law can be written out."""

import math
from itertools import pairwise

import pytest
import torch
from oracles import (
    MarginalsFn,
    all_masked_states,
    all_sequences,
    index_of,
    marginal_table,
    random_joint,
    random_marginals,
)
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from edlm import contracts
from edlm.process import schedules
from edlm.process.schedules import Schedule
from edlm.samplers import baselines
from edlm.samplers.baselines import Reverse

F64 = torch.float64
SYMBOLS, LENGTH, MASK = 2, 3, 2
JOINT = random_joint(0, SYMBOLS, LENGTH, 1.5)
EXACT = marginal_table(JOINT)
WRONG = random_marginals(1, SYMBOLS, LENGTH)
SCHEDULE = schedules.log_linear(1e-3)


class Oracle(TensorDictModuleBase):
    """A baseline's denoiser: a law over tokens, a probability of the mask, and a factor that scores are wrong by."""

    def __init__(self, marginals: MarginalsFn, mask_id: int, p_mask: float = 0.0, factor: float = 1.0) -> None:
        super().__init__()
        self.in_keys = [contracts.X_T, contracts.T, contracts.POSITIONS]
        self.out_keys = [contracts.HIDDEN]
        self.marginals = marginals
        self.mask_id, self.vocab_size, self.max_length = mask_id, mask_id + 1, 1024
        self.p_mask, self.factor = p_mask, factor

    def forward(self, tensordict: TensorDict) -> TensorDict:
        law = self.marginals(tensordict[contracts.X_T]).flatten(0, 1)[tensordict[contracts.POSITIONS]]
        return tensordict.set(contracts.HIDDEN, law)

    def log_prob(self, hidden: Tensor) -> Tensor:
        law = hidden.exp() * (1.0 - self.p_mask)
        law[:, self.mask_id] = self.p_mask
        return law.log()

    def log_score(self, hidden: Tensor, alpha: Tensor) -> Tensor:
        scores = hidden + math.log(self.factor) + alpha.logit().unsqueeze(-1)
        return scores.index_fill(-1, torch.tensor([self.mask_id]), 0.0)


def kernel_of(
    name: str, marginals: MarginalsFn, mask_id: int, schedule: Schedule = SCHEDULE, **wrong: float
) -> Reverse:
    build = {"d3pm": baselines.d3pm, "sedd": baselines.analytic}[name]
    return build(Oracle(marginals, mask_id, **wrong), schedule)


both = pytest.mark.parametrize("name", ["d3pm", "sedd"])


def text_law(kernel: Reverse, table: Tensor, times: Tensor) -> Tensor:
    """Law of the text after all steps, (m^l,), by going from state to state: positions move by themselves."""
    symbols, length = table.shape[-1] - 1, table.shape[-2]
    states = all_masked_states(symbols, length)
    mass = torch.zeros(len(states), dtype=F64)
    mass[-1] = 1.0  # the last state is all masks
    for t, s in pairwise(times):
        ends = [kernel.schedule.alpha(t), torch.tensor(1.0, dtype=F64) if s == 0 else kernel.schedule.alpha(s)]
        rows = []
        for state in states:
            predicted = table[tuple(state)]
            moves = kernel.log_law(predicted, *(end.expand(length) for end in ends)).exp()
            keeps = torch.eye(symbols + 1, dtype=F64)[state]
            law = torch.where((state == symbols).unsqueeze(-1), moves, keeps)
            rows.append(law.gather(-1, states.T).prod(0))
        mass = mass @ torch.stack(rows)
    return mass[index_of(all_sequences(symbols, length), symbols + 1)]
