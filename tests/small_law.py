"""A law of a few tokens, and the denoisers that know it or do not: for transitions and for their bound."""

import pytest
import torch
from oracles import marginal_table, random_joint, random_marginals
from torch import Tensor

SYMBOLS, LENGTH = 2, 3
JOINT = random_joint(0, SYMBOLS, LENGTH, 1.5)
TABLES = {"exact": marginal_table(JOINT), "wrong": random_marginals(1, SYMBOLS, LENGTH)}
every_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)


def alphas(num_steps: int) -> Tensor:
    """Of the uniform grid with alpha = 1 - t."""
    return torch.linspace(0.0, 1.0, num_steps + 1, dtype=torch.float64)
