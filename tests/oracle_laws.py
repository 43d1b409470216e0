"""Laws that the oracles are judged by, small enough to enumerate."""

from functools import partial

import pytest
import torch
from oracles import all_masked_states, all_sequences, random_joint, random_markov
from torch import Tensor

close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-12)

LAWS = [random_joint(0, 3, 3), random_joint(1, 2, 4, 3.0), random_markov(2, 3, 3), random_joint(3, 4, 2)]
laws = pytest.mark.parametrize("joint", LAWS, ids=["general", "bits", "markov", "pairs"])


def grid(num_steps: int) -> Tensor:
    return torch.linspace(0.0, 1.0, num_steps + 1, dtype=torch.float64)


def states_of(joint: Tensor) -> Tensor:
    return all_masked_states(joint.shape[0], joint.ndim)


def sequences_of(joint: Tensor) -> Tensor:
    return all_sequences(joint.shape[0], joint.ndim)


def product_of_marginals(joint: Tensor) -> Tensor:
    law = torch.ones(1, dtype=torch.float64)
    for axis in range(joint.ndim):
        others = [i for i in range(joint.ndim) if i != axis]
        law = (law.unsqueeze(-1) * joint.sum(others)).flatten()
    return law
