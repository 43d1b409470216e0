"""From a network to `log p(x_0 | x_t)`: which positions are worked on, and what may never be predicted.

A denoiser is a TensorDict module that reads `x_t`, `t` and the flat `positions` that are wanted, and writes their
hidden states. The vocabulary head is a second call, `logits`, so that a sampler can run it in tiles and only where a
token is drawn.
"""

import math
from typing import Any

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from edlm import contracts
from edlm.declaration import stage
from edlm.nn.blocks import Head
from edlm.process import arguments, categorical, schedules
from edlm.process.schedules import Schedule


class _OfNetwork(TensorDictModule):
    """Hidden states of a network at the positions that are wanted, whatever they are read as."""

    def __init__(
        self, network: nn.Module, mask_id: int, told: Schedule | None, schedule: Schedule | None = None
    ) -> None:
        super().__init__(
            _HiddenAt(network, told),
            in_keys=[contracts.X_T, contracts.T, contracts.POSITIONS],
            out_keys=[contracts.HIDDEN],
        )
        self.mask_id = mask_id
        self.vocab_size = _vocab_size(network)
        self.max_length = int(network.max_length)  # type: ignore[arg-type]
        self.schedule = schedule or told or schedules.log_linear()

    @property
    def network(self) -> Any:
        """The network whose states are read: a `contracts.Network`, and a module."""
        return self.module.network

    @property
    def told(self) -> Schedule | None:
        """The schedule whose noise level the network is given, None for one that is given no time."""
        found: Schedule | None = self.module.schedule
        return found


class SubsDenoiser(_OfNetwork):
    """The substitution parameterisation over a network; see `subs`."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (n, h) to unnormalised log-probabilities (n, v); the mask has probability zero."""
        head, width = self.network.head, categorical.columns_at_once(self.vocab_size, hidden.device)
        if width < self.vocab_size and not hidden.requires_grad:
            columns = categorical.slices(self.vocab_size, width)
            logits = torch.cat([head(hidden, each) for each in columns], dim=-1)
        else:
            logits = head(hidden)
        logits.select(-1, self.mask_id).fill_(-torch.inf)  # in place: a copy would cost as much as a draw
        return logits

    @property
    def block_size(self) -> int | None:
        """Positions of a block, for a network that reads its own block and those before it; None: one block is all."""
        size: int | None = getattr(self.network, "block_size", None)
        return None if size is None or size >= self.max_length else size

    def token_log_prob(self, hidden: Tensor, tokens: Tensor, expected: Tensor | None = None) -> Tensor:
        """Compute `log p(token)` at hidden states (n, h): nats (n,), without all logits at once where the head can do
        that.

        expected (n,): the gradient of the result up to one factor, if it is known; see `head.log_prob`.
        """
        head = self.network.head
        if isinstance(head, Head):
            return head.log_prob(hidden, tokens, self.mask_id, expected)
        return categorical.token_log_prob(self.logits(hidden), tokens.unsqueeze(-1)).squeeze(-1)


def subs(
    network: nn.Module, mask_id: int, told: Schedule | None = None, schedule: Schedule | None = None
) -> SubsDenoiser:
    """Build `p_theta(x_0 | x_t) = prod_i p_i`, mask excluded, revealed tokens kept (SUBS, Sahoo et al. 2024, sec. 3).

    A revealed position is never asked for, so it keeps its own token by construction.

    Args:
        network: tokens to hidden states, with a vocabulary head: a `contracts.Network`.
        mask_id: the id of the mask.
        told: the schedule whose noise level `sigma(t) = -log alpha(t)` the network is given; None gives it sigma = 0
            at every time, as the published models without time conditioning take it.
        schedule: that of the masking process, which a sampler takes from here; None is `told`, or the log-linear one.

    Returns:
        A `contracts.Denoiser`.

    Raises:
        ValueError: if mask_id is outside the vocabulary, or if the sigma(1) that the network is given is infinite.

    Example:
        >>> import edlm
        >>> network = edlm.networks.Transformer(5, max_length=8, hidden_size=16, num_layers=1, num_heads=2).eval()
        >>> denoiser = edlm.denoisers.subs(network, mask_id=4)
        >>> denoiser.vocab_size, denoiser.max_length
        (5, 8)
    """
    _check(network, mask_id, told)
    return SubsDenoiser(network, mask_id, told, schedule)


def beside_clean(denoiser: SubsDenoiser) -> TensorDictModule:
    """Build the pass that reads all blocks at once, each as if those before it were finished.

    A network without blocks has no finished blocks: then the pass is the denoiser itself.

    Args:
        denoiser: over a network with a `block_size`, or any other.

    Returns:
        The stage `x_t, x_0, positions -> hidden`.

    Raises:
        ValueError: for a denoiser of blocks that is told the time: finished blocks have none.

    Example:
        >>> import edlm
        >>> sizes = {"max_length": 8, "hidden_size": 16, "num_layers": 1, "num_heads": 2}
        >>> network = edlm.networks.Transformer(5, **sizes, block_size=4).eval()
        >>> edlm.denoisers.beside_clean(edlm.denoisers.subs(network, mask_id=4)).in_keys
        ['x_t', 'x_0', 'positions']
    """
    if denoiser.block_size is None:
        return denoiser
    if denoiser.told is not None:
        raise ValueError("a denoiser of blocks is told no time: finished blocks have none")
    return stage("x_t, x_0, positions -> hidden", _HiddenBeside(denoiser.network))


class D3pmDenoiser(_OfNetwork):
    """The unrestricted parameterisation over a network, of a baseline; see `d3pm`."""

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Map hidden states (n, h) to log-probabilities (n, v), the mask among the tokens; float32 or better."""
        logits = self.network.head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def d3pm(network: nn.Module, mask_id: int, schedule: Schedule | None = None) -> D3pmDenoiser:
    """Build `p_theta(x_0 | x_t)` that may predict the mask and copies visible tokens (Austin et al. 2021): a baseline.

    No `Denoiser` of the samplers: whether a mask is revealed depends on what the network says, which no reveal plan
    knows; `baselines.d3pm` is its kernel. Raises ValueError as `subs` does.

    Args:
        network: see `subs`.
        mask_id: the id of the mask.
        schedule: that whose noise level the network is given; None gives it sigma = 0.

    Returns:
        A module whose `log_prob` has the mask among the tokens.

    Example:
        >>> import edlm
        >>> network = edlm.networks.Transformer(5, max_length=8, hidden_size=16, num_layers=1, num_heads=2).eval()
        >>> edlm.denoisers.d3pm(network, mask_id=4).vocab_size
        5
    """
    _check(network, mask_id, schedule)
    return D3pmDenoiser(network, mask_id, schedule)


class SeddDenoiser(_OfNetwork):
    """The score parameterisation over a network, of a baseline; see `sedd`."""

    def log_score(self, hidden: Tensor, alpha: Tensor) -> Tensor:
        """Map hidden states (n, h) of masked positions and alpha(t) (n,) in (0, 1) to log-scores (n, v), zero at the
        mask.

        `log s_y = logit_y - log expm1(sigma) - log(v - 1)`: logits of zero are the exact score of uniform data.
        """
        logits = self.network.head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        columns = torch.arange(logits.shape[-1], device=logits.device)
        offset = alpha.logit().to(logits.dtype) - math.log(logits.shape[-1] - 1)  # -log expm1(sigma) is logit(alpha)
        return (logits + offset.unsqueeze(-1)).masked_fill(columns == self.mask_id, 0.0)


def sedd(network: nn.Module, mask_id: int, schedule: Schedule) -> SeddDenoiser:
    """Build ratios of the law of x_t at a masked position (SEDD, Lou et al. 2023): a baseline, no `Denoiser` either.

    `baselines.analytic` is its kernel.

    Args:
        network: see `subs`.
        mask_id: the id of the mask.
        schedule: that whose noise level the network is given.

    Returns:
        A module with a `log_score`.

    Raises:
        ValueError: as `subs` does, and without a schedule: a score at sigma = 0 is infinite.

    Example:
        >>> import edlm
        >>> network = edlm.networks.Transformer(5, max_length=8, hidden_size=16, num_layers=1, num_heads=2).eval()
        >>> edlm.denoisers.sedd(network, mask_id=4, schedule=edlm.schedules.log_linear(1e-3)).vocab_size
        5
    """
    if schedule is None:
        raise ValueError("sedd needs a schedule: with sigma = 0 its scores `1 / expm1(sigma)` are infinite")
    _check(network, mask_id, schedule)
    return SeddDenoiser(network, mask_id, schedule)


def _check(network: Any, mask_id: Any, schedule: Any) -> None:
    reads = isinstance(network, nn.Module) and all(hasattr(network, name) for name in ("head", "max_length"))
    arguments.require_kind("network", network, reads, "one with a vocabulary head, as networks.Transformer is")
    arguments.require_integers(mask_id=mask_id)
    told = schedule is None or all(hasattr(schedule, name) for name in Schedule._fields)
    arguments.require_kind("schedule", schedule, told, "one, as schedules.log_linear() is")
    vocab_size = _vocab_size(network)
    if not 0 <= mask_id < vocab_size:
        raise ValueError(f"mask_id = {mask_id} is outside the network's vocabulary of {vocab_size}")
    known = getattr(network, "mask_id", mask_id)
    if mask_id != known:
        raise ValueError(f"mask_id = {mask_id} must be {known}, as in the vocabulary that the network was trained with")
    embedding = getattr(network, "embedding", None)
    if isinstance(embedding, nn.Embedding) and mask_id >= embedding.num_embeddings:
        raise ValueError(f"mask_id = {mask_id} is no id that the network reads: it embeds {embedding.num_embeddings}")
    if schedule is not None:
        schedules.require_finite_sigma(schedule, "denoiser")


def _vocab_size(network: nn.Module) -> int:
    return int(network.get_submodule("head").out_features)  # type: ignore[arg-type]


class _HiddenAt(nn.Module):
    """Hidden states of the wanted positions: x_t (b, l), t (b,), positions (n,) to (n, h)."""

    def __init__(self, network: nn.Module, schedule: Schedule | None) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule

    def forward(self, x_t: Tensor, t: Tensor, positions: Tensor) -> Tensor:
        noise_level = None if self.schedule is None else schedules.sigma(self.schedule, t)
        return self.network(x_t, noise_level, positions.clamp(max=x_t.numel() - 1))  # padding may read any position


class _HiddenBeside(nn.Module):
    """The same of every block after clean ones: x_t (b, l), x_0 (b, l), positions (n,) to (n, h)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, x_0: Tensor, positions: Tensor) -> Tensor:
        return self.network(x_t, None, positions, clean=x_0)
