"""Transformers in plain torch: rotary, bidirectional or causal, with a vocabulary head or a scalar head.

The layout of parameters is the one of the published MDLM and EDLM networks (an untied embedding, LayerNorm without
bias, adaLN conditioning on the noise level, tanh GELU), so their weights load by renaming keys. Networks know tokens
and noise levels only; what a mask or a time is, is said in `denoisers` and `energies`.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edlm import limits
from edlm.nn import rope
from edlm.nn.attention import Cache, readable, two_streams
from edlm.nn.blocks import Block, Head, Trunk

_SIZES = ("vocab_size", "max_length", "hidden_size", "num_layers", "num_heads", "num_energy_layers")


class Transformer(nn.Module):
    """A network over tokens with a vocabulary head that can be run on chosen positions alone.

    Bidirectional with adaLN it is a denoiser's network; `causal=True, conditioning_size=0` makes an autoregressive one
    (`conditioning_size = 0` leaves adaLN out). pad_id: what fills a block after its text and is never read, so that the
    states of a text do not depend on how much of it there is; None: every token is read. A causal network, which reads
    nothing that stands after a token, needs no telling. Raises ValueError unless hidden_size is a multiple of
    2 * num_heads, num_layers at least 1, and pad_id in the vocabulary.
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        hidden_size: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        conditioning_size: int = 128,
        causal: bool = False,
        dropout: float = 0.0,
        norm_bias: bool = False,
        pad_id: int | None = None,
    ) -> None:
        super().__init__()
        self.arguments = _own_arguments(locals())
        _require_sizes(self.arguments)
        self.max_length = max_length
        self.pad_id = _checked(pad_id, vocab_size)
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.trunk = Trunk(hidden_size, num_layers, num_heads, conditioning_size, causal, dropout, norm_bias)
        self.head = Head(hidden_size, vocab_size)
        _init_embedding(self.embedding)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None, keep: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens (b, l) and noise levels (b,) to hidden states (b, l, h), or (n, h) at flat positions (n,).

        keep: return keys and values (b, layers, 2, heads, l, d) too, the context that `in_order` reads of x_t.
        """
        mask = readable(self._valid(tokens))
        states, context = self.trunk(self.embedding(tokens), sigma=sigma, mask=mask, positions=positions, keep=keep)
        return (states, context) if keep else states

    def in_order(
        self,
        tokens: Tensor,
        where: Tensor,
        mask_id: int,
        context: Tensor,
        sigma: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Tensor:
        """States (b, k, m - 1, h) by which new tokens are predicted one after the other, in one pass over them alone.

        tokens: int64 (b, k, m), new in k candidates for x_s; where: int64 (b, m), their places in x_t, ascending, l
        where a row has fewer; context: what a pass over x_t keeps. The first new token is predicted from x_t alone.
        text: x_t or any candidate, int64 (b, l), to which a network with a `pad_id` looks for what is never read.
        See `attention.two_streams` for who sees whom. The states of x_t are those of the pass over x_t; of the last
        block, the rows that ask are all that is needed.
        """
        b, k, m = tokens.shape
        written = self.embedding(tokens)
        if m == 1:
            return written[:, :, 1:]
        asked = self.embedding.weight[mask_id].expand(b, k, m - 1, written.shape[-1])
        x = torch.cat([written[:, :, :-1], asked], dim=2).flatten(1, 2)
        valid = None if text is None else self._valid(text)
        rotary, mask = two_streams(where, context.shape[4], k, self.trunk.head_size, x, valid)
        cache = [Cache(*of_layer.unbind(1)) for of_layer in context.unbind(1)]
        asking = torch.arange(b * x.shape[1], device=x.device).view(b, k, 2, m - 1)[:, :, 1].flatten()
        states, _ = self.trunk(x, rotary, sigma, mask, cache, asking)
        return states.view(b, k, m - 1, -1)

    def step(self, tokens: Tensor, position: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """One position of a causal network without conditioning: what `forward` gives there, at the cost of one token.

        tokens (b,) at `position`, int64 (); cache: (layers, b, heads, l, d), of which the first `position` are read.
        Returns the hidden states (b, h) and the position's own keys and values (layers, b, heads, d); the cache is not
        written to. No shape depends on the position.
        """
        x, length = self.embedding(tokens.unsqueeze(1)), cache.keys.shape[3]
        rotary = rope.at(position.unsqueeze(0), self.trunk.head_size, x)
        seen = x.new_zeros(1, length + 1)  # the last is the position itself
        seen[:, :-1].masked_fill_(torch.arange(length, device=x.device) >= position, -torch.inf)
        hidden, own = self.trunk(x, rotary, mask=(seen,), cache=[*map(Cache, *cache)], keep=True)
        return hidden.squeeze(1), Cache(*own.squeeze(4).transpose(0, 1).unbind(2))

    def _valid(self, tokens: Tensor) -> Tensor | None:
        """What is read of the tokens, bool (b, l); None: all of them, or all before a token."""
        return None if self.pad_id is None or self.arguments["causal"] else tokens != self.pad_id

    def empty_cache(self, b: int, length: int) -> Cache:
        """Room for the keys and values of b rows of `length` positions, all zero."""
        heads = self.arguments["num_heads"]
        like = self.embedding.weight
        keys = like.new_zeros(self.arguments["num_layers"], b, heads, length, like.shape[1] // heads)
        return Cache(keys, torch.zeros_like(keys))


class EnergyNetwork(nn.Module):
    """A scalar per pair (x_t, x_0): a trunk over both embeddings, averaged over positions (Xu et al. 2025).

    Called as `per_position` it does not average: see `energies.learned_transition`.

    Raises ValueError unless hidden_size is a multiple of 2 * num_heads and num_layers at least 1.
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
    ) -> None:
        super().__init__()
        self.arguments = _own_arguments(locals())
        _require_sizes(self.arguments)
        self.max_length = max_length
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.combine = nn.Linear(2 * hidden_size, hidden_size)
        self.trunk = Trunk(hidden_size, num_layers, num_heads, conditioning_size, False, dropout, norm_bias)
        self.project = nn.Linear(hidden_size, hidden_size)
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self.scalar = nn.Linear(hidden_size, 1, bias=False)
        _init_embedding(self.embedding)
        # Both embeddings enter alike, and the energy starts at zero: an untrained energy changes no sample.
        with torch.no_grad():
            self.combine.weight.copy_(torch.cat([torch.eye(hidden_size)] * 2, dim=1) / 2)
        nn.init.zeros_(self.combine.bias)
        nn.init.zeros_(self.scalar.weight)

    def forward(self, x_t: Tensor, x_0: Tensor, sigma: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """Token pairs (b, l) and noise levels (b,) to scalars (b,); positions where `valid` is False do not count."""
        x = self._states(x_t, x_0, sigma, valid)
        if valid is None:
            pooled = x.mean(1)
        else:
            pooled = (x * valid.unsqueeze(-1)).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)
        return self._scalar(pooled)  # the projection of a mean is the mean of projections

    def per_position(
        self, x_t: Tensor, x_s: Tensor, sigma: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """Token pairs (b, l) and noise levels (b,) to a scalar at every position (b, l), by the same layers."""
        return self._scalar(self._states(x_t, x_s, sigma, valid))

    def _states(self, x_t: Tensor, x_0: Tensor, sigma: Tensor | None, valid: Tensor | None) -> Tensor:
        states, _ = self.trunk(self._combined(x_t, x_0), sigma=sigma, mask=readable(valid))
        return states

    def _combined(self, x_t: Tensor, x_0: Tensor) -> Tensor:
        """Both embeddings as one vector; where tokens are fewer than positions, each is worked on once."""
        if self.embedding.num_embeddings > self.max_length:
            return self.combine(torch.cat([self.embedding(x_t), self.embedding(x_0)], dim=-1))
        tokens, (of_x_t, of_x_0) = self.embedding.weight, self.combine.weight.chunk(2, dim=1)
        first, second = F.linear(tokens, of_x_t, self.combine.bias), F.linear(tokens, of_x_0)
        # Looked up in the embedding's own precision, in which its gradient is then summed over positions.
        x = F.embedding(x_t, first.to(tokens.dtype)) + F.embedding(x_0, second.to(tokens.dtype))
        return x.to(first.dtype)

    def _scalar(self, states: Tensor) -> Tensor:
        """States (..., h) to scalars (...)."""
        scalars: Tensor = self.scalar(F.relu(self.hidden(self.project(states)))).squeeze(-1)
        return scalars.clone()  # FSDP2 wants no view of a network


class JointNetwork(nn.Module):
    """A denoiser and an energy of transitions over one trunk: the pass that weighs x_s is the next step's denoiser.

    The trunk reads tokens alone, so its states give the denoiser's law whatever is new in x_s. The energy reads these
    states through `num_energy_layers` blocks of its own; what is new is marked there, by what the denoiser expected.
    pad_id: as of `Transformer`; neither head reads it. Raises ValueError unless hidden_size is a multiple of
    2 * num_heads, both numbers of layers are at least 1, and pad_id is in the vocabulary.
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
        num_energy_layers: int = 1,
        pad_id: int | None = None,
    ) -> None:
        super().__init__()
        self.arguments = _own_arguments(locals())
        _require_sizes(self.arguments)
        self.max_length, self.pad_id = max_length, pad_id
        self.denoiser = Transformer(
            vocab_size,
            max_length,
            hidden_size,
            num_layers,
            num_heads,
            conditioning_size,
            dropout=dropout,
            norm_bias=norm_bias,
            pad_id=pad_id,
        )
        self.new = nn.Linear(hidden_size, hidden_size)
        self.energy_trunk = Trunk(hidden_size, num_energy_layers, num_heads, 0, False, dropout, norm_bias)
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self.scalar = nn.Linear(hidden_size, 1, bias=False)
        # Nothing is marked at first, and the energy starts at zero: an untrained energy changes no sample.
        for parameter in (self.new.weight, self.new.bias, self.scalar.weight):
            nn.init.zeros_(parameter)

    @property
    def trunk(self) -> Trunk:
        """The denoiser's."""
        return self.denoiser.trunk

    @property
    def head(self) -> Head:
        """The denoiser's."""
        return self.denoiser.head

    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Tokens (b, l) and noise levels (b,) to the denoiser's states (b, l, h), or (n, h) at flat positions (n,)."""
        return self.denoiser(tokens, sigma, positions)

    def scalars(self, states: Tensor, expected: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The energy's scalars (n,) of what is new in x_s: states (b, l, h) of x_s, flat positions (n,) that are new.

        expected: the states (n, h) that x_t has at these positions. A position of b * l is padding, and zero.
        tokens: x_s (b, l), which a network with a `pad_id` has to be shown.
        """
        size = states.shape[0] * states.shape[1]
        there, at = (positions < size).unsqueeze(-1), positions.clamp(max=size - 1)
        marks = torch.where(there, self.new(expected), 0.0).to(states.dtype)
        marked = states.flatten(0, 1).index_add(0, at, marks).view_as(states)
        valid = None if self.pad_id is None or tokens is None else tokens != self.pad_id
        x, _ = self.energy_trunk(marked, mask=readable(valid), positions=at)
        return torch.where(there, self.scalar(F.relu(self.hidden(x))), 0.0).squeeze(-1)


def start_energy_from(energy: EnergyNetwork, denoiser: Transformer) -> None:
    """Copy the denoiser's embedding and trunk into the energy. Raises ValueError if their shapes differ."""
    for part in ("embedding", "trunk"):
        try:
            getattr(energy, part).load_state_dict(getattr(denoiser, part).state_dict())
        except RuntimeError as error:
            raise ValueError(f"the energy's {part} cannot start from the denoiser's: {error}") from error


def start_joint_from(joint: JointNetwork, denoiser: Transformer) -> None:
    """Copy the denoiser: the joint network then has its law exactly. Raises ValueError if their shapes differ."""
    try:
        joint.denoiser.load_state_dict(denoiser.state_dict())
    except RuntimeError as error:
        raise ValueError(f"the joint network cannot start from the denoiser: {error}") from error


def share_embedding(energy: EnergyNetwork, denoiser: Transformer) -> None:
    """Have the energy read tokens by the denoiser's own embedding, in the same memory, frozen in both.

    Each has a parameter of its own: what becomes of the energy's, in parts or in half precision, leaves the denoiser's.
    Raises ValueError if their shapes differ.
    """
    ours, theirs = tuple(energy.embedding.weight.shape), tuple(denoiser.embedding.weight.shape)
    if ours != theirs:
        raise ValueError(f"the energy's embedding {ours} cannot be the denoiser's {theirs}")
    denoiser.embedding.requires_grad_(False)
    energy.embedding.weight = nn.Parameter(denoiser.embedding.weight.detach(), requires_grad=False)


def blocks(network: nn.Module) -> list[Block]:
    """The blocks of all trunks of a network."""
    return [module for module in network.modules() if isinstance(module, Block)]


def recompute(network: nn.Module) -> None:
    """Have every block, in place, keep its input alone for the backward pass and run again there: less memory.

    Gradients stay as they are: the dropout of the second run is that of the first. To be called after
    `execution.compile_blocks`, which sees nothing of what is inside.
    """
    for block in blocks(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]


def _require_sizes(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the argument, for sizes that make no network, or a larger one than `limits` allows."""
    least = {"conditioning_size": 0} | dict.fromkeys(_SIZES, 1)
    for name, low in least.items():
        value = arguments.get(name, low)
        if type(value) is not int:
            raise ValueError(f"{name} = {value!r} must be a whole number")
        if value < low:
            raise ValueError(f"{name} = {value} must be at least {low}")
    for name in ("causal", "norm_bias"):
        if type(arguments.get(name, False)) is not bool:
            raise ValueError(f"{name} = {arguments[name]!r} must be true or false")
    dropout = arguments["dropout"]
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout!r} must be a number of at least 0 and below 1")
    layers, width = arguments["num_layers"] + arguments.get("num_energy_layers", 0), arguments["hidden_size"]
    noise, in_blocks = arguments["conditioning_size"], 12 * layers * width * width
    parameters = in_blocks + noise * (6 * layers * width + noise) + 2 * arguments["vocab_size"] * width
    limits.require("network", "layers", layers, limits.LAYERS)
    limits.require("network", "max_length", arguments["max_length"], limits.LENGTH)
    limits.require("network", "parameters", parameters, limits.PARAMETERS)


def _checked(pad_id: int | None, vocab_size: int) -> int | None:
    if pad_id is not None and not 0 <= pad_id < vocab_size:
        raise ValueError(f"pad_id = {pad_id} is outside the network's vocabulary of {vocab_size}")
    return pad_id


def _own_arguments(local: dict[str, Any]) -> dict[str, Any]:
    """The constructor's own arguments, from which a checkpoint rebuilds the network."""
    return {name: value for name, value in local.items() if name not in ("self", "__class__")}


def _init_embedding(embedding: nn.Embedding) -> None:
    nn.init.kaiming_uniform_(embedding.weight, a=math.sqrt(5))
