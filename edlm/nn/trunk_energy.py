"""An energy over the trunk of a language model: its states of a candidate, and a small head that is trained."""

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edlm.nn import adapters, sizes
from edlm.nn.energy_network import mean_over


class TrunkEnergy(nn.Module):
    """A scalar per pair (x_t, x_0): the trunk reads x_0, and the head which of its tokens x_t does not have.

    The trunk is any network from tokens to states. It stays in eval mode, so `dropout` is the head's alone.
    `per_position` does not average: see `energies.learned_transition`.

    Args:
        trunk: the network, which is taken over. Its vocabulary head is not used.
        dropout: probability in [0, 1).

    Example:
        >>> import edlm
        >>> from edlm.nn import trunk_energy
        >>> trunk = edlm.networks.Transformer(vocab_size=28, max_length=16, hidden_size=32, num_layers=1)
        >>> energy = trunk_energy.TrunkEnergy(trunk)
        >>> energy(torch.zeros(2, 16, dtype=torch.int64), torch.ones(2, 16, dtype=torch.int64)).tolist()
        [0.0, 0.0]
    """

    arguments: dict[str, Any]  # those of `over`, from which a checkpoint builds it again
    trained: frozenset[str]  # names of parameters

    def __init__(self, trunk: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        network: Any = trunk
        width = int(network.head.in_features)
        self.trunk, self.max_length = network, int(network.max_length)
        self.norm, self.project, self.new = nn.LayerNorm(width), nn.Linear(width, width), nn.Embedding(2, width)
        self.hidden, self.scalar = nn.Linear(width, width), nn.Linear(width, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.new.weight, std=0.02)
        nn.init.zeros_(self.scalar.weight)  # the energy starts at zero: an untrained energy changes no sample

    def train(self, mode: bool = True) -> Self:
        """Put the head in a mode; the trunk stays in eval mode."""
        super().train(mode)
        self.trunk.eval()
        return self

    @property
    def layers(self) -> Iterable[nn.Module]:
        """The layers of the trunk."""
        return next((each for each in self.trunk.modules() if isinstance(each, nn.ModuleList)), ())

    def forward(self, x_t: Tensor, x_0: Tensor, sigma: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """Map token pairs (b, l) and noise levels (b,) to scalars (b,); leave out positions where `valid` is False."""
        return self._scalar(mean_over(self._states(x_t, x_0, sigma), valid))

    def per_position(
        self, x_t: Tensor, x_s: Tensor, sigma: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """Map token pairs (b, l) and noise levels (b,) to a scalar at every position (b, l), by the same layers."""
        return self._scalar(self._states(x_t, x_s, sigma))

    def _states(self, x_t: Tensor, x_0: Tensor, sigma: Tensor | None) -> Tensor:
        """Read the candidate: states (b, l, h), float32 or better whatever the trunk computes in."""
        states = self.trunk(x_0, sigma)
        states = self.norm(states.to(torch.promote_types(states.dtype, torch.float32)))
        return F.gelu(self.project(states) + self.new((x_t != x_0).long()))

    def _scalar(self, states: Tensor) -> Tensor:
        return self.scalar(self.dropout(F.relu(self.hidden(states)))).squeeze(-1)  # type: ignore[no-any-return]


def over(
    network: Any, trunk: str = "frozen", adapter: Sequence[Any] | None = None, dropout: float = 0.0
) -> TrunkEnergy:
    """Build the energy of a denoiser's network. What is not trained of it is the network's own tensors, held once.

    Args:
        network: the denoiser's, which stays as it is.
        trunk: "frozen" trains the head alone; "trained" also the trunk, from a copy of the network's weights.
        adapter: rank and alpha of low-rank adapters, which are trained in the place of the trunk's weights.
        dropout: of the head.

    Returns:
        The energy, zero before training.

    Raises:
        ValueError: naming the argument that cannot be.

    Example:
        >>> import edlm
        >>> from edlm.nn import trunk_energy
        >>> network = edlm.networks.Transformer(vocab_size=28, max_length=16, hidden_size=32, num_layers=1)
        >>> energy = trunk_energy.over(network)
        >>> energy.trunk.embedding.weight.data_ptr() == network.embedding.weight.data_ptr()
        True
    """
    sizes.require_dropout(dropout)
    shared, width = _sharing(network), network.head.in_features
    if adapter is not None:
        adapters.attach(shared, *_rank_and_alpha(adapter, width))
    elif trunk == "trained":
        _unshare(shared)
    elif trunk != "frozen":
        raise ValueError(f"trunk = {trunk!r} must be trained or frozen")
    energy = TrunkEnergy(shared, dropout).to(next(network.parameters()).device)
    energy.arguments = {"trunk": trunk, "adapter": adapter, "dropout": dropout}
    energy.trained = frozenset(name for name, value in energy.named_parameters() if value.requires_grad)
    return energy


def _rank_and_alpha(adapter: Any, width: int) -> tuple[int, float]:
    """Check the sizes of adapters, which may come from a file. Raises ValueError for what they cannot be."""
    if not isinstance(adapter, Sequence) or len(adapter) != 2:
        raise ValueError(f"adapter = {adapter!r} must be a rank and an alpha")
    rank, alpha = adapter
    if type(rank) is not int or not 1 <= rank <= width:
        raise ValueError(f"rank = {rank!r} must be a whole number of at least 1 and at most {width}")
    if type(alpha) not in (int, float) or not 0.0 < alpha < math.inf:
        raise ValueError(f"alpha = {alpha!r} must be a finite number above 0")
    return rank, float(alpha)


def _sharing(network: nn.Module) -> Any:
    """Copy the modules of a network over the same memory: each has parameters of its own, none is trained."""
    memo: dict[int, Any] = {id(each): nn.Parameter(each.detach(), False) for each in network.parameters()}
    return copy.deepcopy(network, memo | {id(each): each for each in network.buffers()})


def _unshare(trunk: Any) -> None:
    """Give all of a trunk but its vocabulary head weights of its own, float32, to be trained."""
    head, own = set(trunk.head.modules()), dict[int, nn.Parameter]()
    for module in trunk.modules():
        for name, value in [] if module in head else list(module.named_parameters(recurse=False)):
            copied = own.setdefault(id(value), nn.Parameter(value.detach().float().clone()))
            setattr(module, name, copied)
