"""What autoregressive energies are tried with: both forms, small causal networks, drafts, and a call."""

from typing import Any

import pytest
import torch
from builders import masked_positions, randomise
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.nn import networks

SYMBOLS, LENGTH = 3, 3
MASK, BOS = SYMBOLS, SYMBOLS + 1
forms = pytest.mark.parametrize("carry_over", [False, True])


def run(energy: Any, candidates: Tensor, x_t: Tensor, log_p: Tensor) -> Tensor:
    state = {
        contracts.CANDIDATES: candidates,
        contracts.X_T: x_t,
        contracts.POSITIONS: masked_positions(x_t, MASK),
        contracts.LOG_P_CANDIDATES: log_p,
    }
    return energy(TensorDict(state))[contracts.ENERGY]


def small_network(vocab_size: int = 6, seed: int = 0, **changes: Any) -> networks.Transformer:
    sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "conditioning_size": 0, "causal": True} | changes
    network = randomise(networks.Transformer(vocab_size, 16, **sizes), seed)
    assert isinstance(network, networks.Transformer)
    return network


def random_input(b: int, k: int, l: int, vocab_size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Drafts of half-masked rows, laid out as the proposal lays them out: particles are not contiguous."""
    generator = torch.Generator().manual_seed(seed)
    x_0 = torch.randint(MASK + 1, vocab_size, (b, l, k), generator=generator).transpose(1, 2)
    x_t = torch.where(torch.rand(b, l, generator=generator) < 0.5, MASK, x_0[:, 0])
    drafts = torch.where((x_t == MASK).unsqueeze(1), x_0, x_t.unsqueeze(1))
    log_p = torch.where((x_t == MASK).unsqueeze(1), -torch.rand(b, k, l, generator=generator), 0.0)
    return drafts, x_t, log_p
