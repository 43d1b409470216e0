"""A network that maps a pair of texts to a scalar: an energy of drafts or of transitions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edlm.nn import sizes
from edlm.nn.attention import readable
from edlm.nn.blocks import Trunk, init_embedding


class EnergyNetwork(nn.Module):
    """A scalar per pair (x_t, x_0): a trunk over both embeddings, averaged over positions (Xu et al. 2025).

    `per_position` does not average: see `energies.learned_transition`.

    Args:
        vocab_size: ids, the mask included.
        max_length: the longest block that it reads.
        hidden_size: h, a multiple of 2 * num_heads.
        num_layers: at least 1.
        num_heads: heads of the attention.
        conditioning_size: width of the embedded noise level; 0 leaves adaLN out.
        dropout: probability in [0, 1).
        norm_bias: whether LayerNorms have a bias.
        qk_norm: as of `Transformer`.

    Raises:
        ValueError: naming the argument, for a size that no network can have, or above `limits`.

    Example:
        >>> import edlm
        >>> network = edlm.networks.EnergyNetwork(vocab_size=28, max_length=16, hidden_size=32, num_layers=1)
        >>> pair = torch.zeros(2, 16, dtype=torch.int64), torch.ones(2, 16, dtype=torch.int64)
        >>> network(*pair).tolist()  # zero before training
        [0.0, 0.0]
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        hidden_size: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        conditioning_size: int = 128,
        dropout: float = 0.0,
        norm_bias: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.arguments = sizes.own_arguments(locals())
        sizes.require_sizes(self.arguments)
        self.max_length = max_length
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.combine = nn.Linear(2 * hidden_size, hidden_size)
        self.trunk = Trunk(hidden_size, num_layers, num_heads, conditioning_size, False, dropout, norm_bias, qk_norm)
        self.project = nn.Linear(hidden_size, hidden_size)
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self.scalar = nn.Linear(hidden_size, 1, bias=False)
        init_embedding(self.embedding)
        # Both embeddings enter alike, and the energy starts at zero: an untrained energy changes no sample.
        with torch.no_grad():
            self.combine.weight.copy_(torch.cat([torch.eye(hidden_size)] * 2, dim=1) / 2)
        nn.init.zeros_(self.combine.bias)
        nn.init.zeros_(self.scalar.weight)

    def forward(self, x_t: Tensor, x_0: Tensor, sigma: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """Map token pairs (b, l) and noise levels (b,) to scalars (b,); leave out positions where `valid` is False."""
        pooled = mean_over(self._states(x_t, x_0, sigma, valid), valid)
        return self._scalar(pooled)  # the projection of a mean is the mean of projections

    def per_position(
        self, x_t: Tensor, x_s: Tensor, sigma: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """Map token pairs (b, l) and noise levels (b,) to a scalar at every position (b, l), by the same layers."""
        return self._scalar(self._states(x_t, x_s, sigma, valid))

    def _states(self, x_t: Tensor, x_0: Tensor, sigma: Tensor | None, valid: Tensor | None) -> Tensor:
        states, _ = self.trunk(self._combined(x_t, x_0), sigma=sigma, mask=readable(valid))
        return states

    def _combined(self, x_t: Tensor, x_0: Tensor) -> Tensor:
        """Embed both tokens as one vector. With fewer tokens than positions, each token is combined once."""
        if self.embedding.num_embeddings > self.max_length:
            return self.combine(torch.cat([self.embedding(x_t), self.embedding(x_0)], dim=-1))
        tokens, (of_x_t, of_x_0) = self.embedding.weight, self.combine.weight.chunk(2, dim=1)
        first, second = F.linear(tokens, of_x_t, self.combine.bias), F.linear(tokens, of_x_0)
        # Looked up in the embedding's own precision, in which its gradient is then summed over positions.
        x = F.embedding(x_t, first.to(tokens.dtype)) + F.embedding(x_0, second.to(tokens.dtype))
        return x.to(first.dtype)

    def _scalar(self, states: Tensor) -> Tensor:
        """Map states (..., h) to scalars (...)."""
        scalars: Tensor = self.scalar(F.relu(self.hidden(self.project(states)))).squeeze(-1)
        return scalars.clone()  # FSDP2 wants no view of a network


def mean_over(states: Tensor, valid: Tensor | None) -> Tensor:
    """Average states (b, l, h) over positions: (b, h); `valid` (b, l) leaves out those where it is False."""
    if valid is None:
        return states.mean(1)
    return (states * valid.unsqueeze(-1)).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)
