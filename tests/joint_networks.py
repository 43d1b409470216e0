"""A joint network with random weights, and one that is a formula."""

import torch
from builders import at, randomise
from oracles import EnergyFn, MarginalsFn
from torch import Tensor, nn

from edlm.nn.networks import JointNetwork

SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "conditioning_size": 8}


def joint_network(seed: int = 0, vocab_size: int = 5, max_length: int = 8, **changes: object) -> JointNetwork:
    """Random weights, float64, and an energy that is felt."""
    network = randomise(JointNetwork(vocab_size, max_length, **(SIZES | changes)), seed).double()
    with torch.no_grad():
        network.scalar.weight.mul_(3.0)
    return network


class TableJoint(nn.Module):
    """A joint network that is a formula: its states are log-probabilities (b, l, v) and the text that it read.

    It insists that what it is told of x_t are the states of x_t.
    """

    def __init__(self, marginals: MarginalsFn, energy: EnergyFn, mask_id: int, max_length: int) -> None:
        super().__init__()
        self.marginals, self.energy, self.mask_id, self.max_length = marginals, energy, mask_id, max_length
        self.head = TableHead(mask_id + 1)

    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        read = tokens.unsqueeze(1).expand(-1, tokens.shape[1], -1)
        return at(torch.cat([self.marginals(tokens), read], dim=-1), positions)

    def scalars(self, states: Tensor, expected: Tensor, positions: Tensor) -> Tensor:
        x_s = states[:, 0, self.mask_id + 1 :].long()
        (there,) = torch.where(positions < x_s.numel())
        new = torch.zeros(x_s.numel(), dtype=torch.bool)
        new[positions[there]] = True
        new = new.view_as(x_s)
        x_t = torch.where(new, self.mask_id, x_s)
        assert torch.allclose(expected[there], self(x_t, None, positions[there]))
        share = self.energy(x_s.unsqueeze(1), x_t).squeeze(1) / new.sum(1).clamp(min=1)
        return states.new_zeros(len(positions)).index_copy(0, there, share[positions[there] // x_s.shape[1]])


class TableHead(nn.Module):
    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features

    def forward(self, hidden: Tensor, columns: slice | None = None) -> Tensor:
        logits = hidden[..., : self.out_features].clone()  # the denoiser writes to them
        return logits if columns is None else logits[..., columns]
