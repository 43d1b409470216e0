"""Transformers in plain torch: rotary, bidirectional or causal, with a vocabulary head or a scalar head.

The layout of parameters is the one of the published MDLM and EDLM networks (an untied embedding, LayerNorm without
bias, adaLN conditioning on the noise level, tanh GELU), so their weights load by renaming keys. Networks know tokens
and noise levels only; what a mask or a time is, is said in `denoisers` and `energies`.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edlm import cross_entropy

_NOISE_FREQUENCIES = 256
_MLP_RATIO = 4


class Past(NamedTuple):
    """Keys and values of all layers, (layers, b, heads, l, d); those of one position (layers, b, heads, d)."""

    keys: Tensor
    values: Tensor


class NoiseEmbedding(nn.Module):
    """Noise level sigma (b,) to a conditioning vector (b, c): sinusoids, then Linear - SiLU - Linear - SiLU."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.expand = nn.Linear(_NOISE_FREQUENCIES, size)
        self.project = nn.Linear(size, size)

    def forward(self, sigma: Tensor) -> Tensor:
        """Embed each noise level."""
        dtype = self.expand.weight.dtype
        half = _NOISE_FREQUENCIES // 2
        steps = torch.arange(half, dtype=torch.float32, device=sigma.device)
        frequencies = torch.exp(-math.log(10_000) * steps / half).to(_at_least_float32(dtype))
        angles = sigma.to(frequencies.dtype).unsqueeze(-1) * frequencies
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)
        return F.silu(self.project(F.silu(self.expand(sinusoids))))


class Modulation(nn.Module):
    """Conditioning (b, c) to `chunks` vectors (b, 1, h) that shift, scale and gate; zero at the start of training."""

    def __init__(self, conditioning_size: int, hidden_size: int, chunks: int) -> None:
        super().__init__()
        self.linear = nn.Linear(conditioning_size, chunks * hidden_size)
        self.chunks = chunks
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, conditioning: Tensor) -> tuple[Tensor, ...]:
        """Give the vectors in the order shift, scale[, gate, shift, scale, gate]."""
        return self.linear(conditioning).unsqueeze(1).chunk(self.chunks, dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions, (b, l, h) to (b, l, h)."""

    def __init__(self, hidden_size: int, num_heads: int, causal: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.num_heads = num_heads
        self.causal = causal

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        valid: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Mix the positions of each row; nothing is read from where `valid`, bool (b, l), is False."""
        q, k, v = self._heads(x, rotary)
        readable = None if valid is None else valid[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=readable, is_causal=self.causal)
        return self.out(_at(mixed.transpose(1, 2).flatten(-2), positions))

    def step(self, x: Tensor, rotary: tuple[Tensor, Tensor], past: Past, read: Tensor) -> tuple[Tensor, Past]:
        """Mix one position with those before it: x (b, 1, h), the layer's past, of which `read`, bool (l,), is there.

        Returns (b, 1, h) and the position's own key and value (b, heads, 1, d); the past is not written to.
        """
        q, k, v = self._heads(x, rotary)
        before = (q @ past.keys.mT).masked_fill(~read, -torch.inf)  # (b, heads, 1, l)
        scores = torch.cat([before, (q * k).sum(-1, keepdim=True)], dim=-1) / math.sqrt(q.shape[-1])
        weights = scores.softmax(-1, dtype=_at_least_float32(scores.dtype)).to(v.dtype)
        mixed = weights[..., :-1] @ past.values + weights[..., -1:] * v
        return self.out(mixed.transpose(1, 2).flatten(-2)), Past(k, v)

    def _heads(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (b, heads, l, d), the first two turned by their positions."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).transpose(1, 3).unbind(2)
        return _rotate(q, *rotary), _rotate(k, *rotary), v


class Block(nn.Module):
    """Attention and a feed-forward layer, each normalised before and added after; modulated when conditioned."""

    def __init__(
        self, hidden_size: int, num_heads: int, conditioning_size: int, causal: bool, dropout: float, norm_bias: bool
    ) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(hidden_size, bias=norm_bias)
        self.attention = Attention(hidden_size, num_heads, causal)
        self.norm_2 = nn.LayerNorm(hidden_size, bias=norm_bias)
        self.up = nn.Linear(hidden_size, _MLP_RATIO * hidden_size)
        self.down = nn.Linear(_MLP_RATIO * hidden_size, hidden_size)
        self.modulation = Modulation(conditioning_size, hidden_size, 6) if conditioning_size else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        conditioning: Tensor | None,
        valid: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Apply the block: (b, l, h) to (b, l, h), or to (n, h) at flat positions (n,)."""
        if self.modulation is None:
            x = _at(x, positions) + self.dropout(self.attention(self.norm_1(x), rotary, valid, positions))
            return x + self.dropout(self._feed_forward(self.norm_2(x)))
        shift_1, scale_1, *later = self.modulation(conditioning)
        gate_1, shift_2, scale_2, gate_2 = (_per_position(vector, positions, x.shape[1]) for vector in later)
        mixed = self.attention(self.norm_1(x) * (1 + scale_1) + shift_1, rotary, valid, positions)
        x = _at(x, positions) + gate_1 * self.dropout(mixed)
        return x + gate_2 * self.dropout(self._feed_forward(self.norm_2(x) * (1 + scale_2) + shift_2))

    def step(self, x: Tensor, rotary: tuple[Tensor, Tensor], past: Past, read: Tensor) -> tuple[Tensor, Past]:
        """Apply an unconditioned block to one position, without dropout; see `Attention.step`."""
        mixed, own = self.attention.step(self.norm_1(x), rotary, past, read)
        x = x + mixed
        return x + self._feed_forward(self.norm_2(x)), own

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Trunk(nn.Module):
    """Blocks and a final normalisation over embedded tokens, (b, l, h) to (b, l, h)."""

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        conditioning_size: int,
        causal: bool,
        dropout: float,
        norm_bias: bool,
    ) -> None:
        super().__init__()
        if hidden_size % (2 * num_heads):
            raise ValueError(f"hidden_size = {hidden_size} must be a multiple of 2 * num_heads = {2 * num_heads}")
        if num_layers < 1:
            raise ValueError(f"num_layers = {num_layers} must be at least 1")
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, conditioning_size, causal, dropout, norm_bias) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size, bias=norm_bias)
        self.noise_embedding = NoiseEmbedding(conditioning_size) if conditioning_size else None
        self.modulation = Modulation(conditioning_size, hidden_size, 2) if conditioning_size else None
        self.head_size = hidden_size // num_heads

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | None = None,
        valid: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Run the blocks at noise level sigma (b,), zero where none is given; see `Attention` for `valid`.

        With flat positions (n,) the last block's feed-forward layer runs on those alone, and the result is (n, h).
        """
        length = x.shape[1]
        rotary = _rotary_table(length, self.head_size, x)
        conditioning = None
        if self.noise_embedding is not None:
            conditioning = self.noise_embedding(x.new_zeros(1) if sigma is None else sigma)
        *earlier, last = self.blocks
        for block in earlier:
            x = block(x, rotary, conditioning, valid)
        x = self.norm(last(x, rotary, conditioning, valid, positions))
        if self.modulation is not None:
            shift, scale = (_per_position(vector, positions, length) for vector in self.modulation(conditioning))
            x = x * (1 + scale) + shift
        return x

    def step(self, x: Tensor, position: Tensor, past: Past) -> tuple[Tensor, Past]:
        """Run unconditioned blocks on position number `position` (), (b, 1, h); see `Transformer.step`."""
        rotary = _rotary_at(position.unsqueeze(0), self.head_size, x)
        read = torch.arange(past.keys.shape[3], device=x.device) < position
        own: list[Past] = []
        for layer, block in enumerate(self.blocks):
            x, here = block.step(x, rotary, Past(past.keys[layer], past.values[layer]), read)  # type: ignore[operator]
            own.append(here)
        keys, values = (torch.stack(parts).squeeze(3) for parts in zip(*own, strict=True))
        return self.norm(x), Past(keys, values)


class Head(nn.Linear):
    """Hidden states (..., h) to logits (..., v), or to some columns of them without the cost of the others."""

    def forward(self, hidden: Tensor, columns: slice | None = None) -> Tensor:
        """Apply the rows of the weight that make these columns; None: all."""
        if columns is None:
            return super().forward(hidden)
        return F.linear(hidden, self.weight[columns], None if self.bias is None else self.bias[columns])

    def log_prob(
        self, hidden: Tensor, tokens: Tensor, excluded: int | None = None, expected: Tensor | None = None
    ) -> Tensor:
        """`log softmax(logits)[token]` of hidden states (n, h), nats (n,), in tiles: see `cross_entropy.log_prob`."""
        return cross_entropy.log_prob(hidden, self.weight, self.bias, tokens, excluded, expected)


class Transformer(nn.Module):
    """A network over tokens with a vocabulary head that can be run on chosen positions alone.

    Bidirectional with adaLN it is a denoiser's network; `causal=True, conditioning_size=0` makes an autoregressive one
    (`conditioning_size = 0` leaves adaLN out). Raises ValueError unless hidden_size is a multiple of 2 * num_heads and
    num_layers at least 1.
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
    ) -> None:
        super().__init__()
        self.arguments = _own_arguments(locals())
        self.max_length = max_length
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.trunk = Trunk(hidden_size, num_layers, num_heads, conditioning_size, causal, dropout, norm_bias)
        self.head = Head(hidden_size, vocab_size)
        _init_embedding(self.embedding)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, sigma: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Tokens (b, l) and noise levels (b,) to hidden states (b, l, h), or (n, h) at flat positions (n,)."""
        return self.trunk(self.embedding(tokens), sigma, positions=positions)

    def step(self, tokens: Tensor, position: Tensor, past: Past) -> tuple[Tensor, Past]:
        """One position of a causal network without conditioning: what `forward` gives there, at the cost of one token.

        tokens (b,) at `position`, int64 (); past: (layers, b, heads, l, d), of which the first `position` are read.
        Returns the hidden states (b, h), without dropout, and the position's own keys and values (layers, b, heads, d).
        No shape depends on the position.
        """
        hidden, own = self.trunk.step(self.embedding(tokens.unsqueeze(1)), position, past)
        return hidden.squeeze(1), own

    def empty_past(self, b: int, length: int) -> Past:
        """Room for the keys and values of b rows of `length` positions, all zero."""
        heads = self.arguments["num_heads"]
        like = self.embedding.weight
        keys = like.new_zeros(self.arguments["num_layers"], b, heads, length, like.shape[1] // heads)
        return Past(keys, torch.zeros_like(keys))


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
        return self.scalar(F.relu(self.hidden(pooled))).squeeze(-1).clone()  # FSDP2 wants no view of a network

    def per_position(
        self, x_t: Tensor, x_s: Tensor, sigma: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """Token pairs (b, l) and noise levels (b,) to a scalar at every position (b, l), by the same layers."""
        return self.scalar(F.relu(self.hidden(self._states(x_t, x_s, sigma, valid)))).squeeze(-1).clone()

    def _states(self, x_t: Tensor, x_0: Tensor, sigma: Tensor | None, valid: Tensor | None) -> Tensor:
        x = self.combine(torch.cat([self.embedding(x_t), self.embedding(x_0)], dim=-1))
        return self.project(self.trunk(x, sigma, valid))


class JointNetwork(nn.Module):
    """A denoiser and an energy of transitions over one trunk: the pass that weighs x_s is the next step's denoiser.

    The trunk reads tokens alone, so its states give the denoiser's law whatever is new in x_s. The energy reads these
    states through `num_energy_layers` blocks of its own; what is new is marked there, by what the denoiser expected.
    Raises ValueError unless hidden_size is a multiple of 2 * num_heads, and both numbers of layers are at least 1.
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
    ) -> None:
        super().__init__()
        self.arguments = _own_arguments(locals())
        self.max_length = max_length
        if num_energy_layers < 1:
            raise ValueError(f"num_energy_layers = {num_energy_layers} must be at least 1")
        self.denoiser = Transformer(
            vocab_size,
            max_length,
            hidden_size,
            num_layers,
            num_heads,
            conditioning_size,
            dropout=dropout,
            norm_bias=norm_bias,
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

    def scalars(self, states: Tensor, expected: Tensor, positions: Tensor) -> Tensor:
        """The energy's scalars (n,) of what is new in x_s: states (b, l, h) of x_s, flat positions (n,) that are new.

        expected: the states (n, h) that x_t has at these positions. A position of b * l is padding, and zero.
        """
        size = states.shape[0] * states.shape[1]
        there, at = (positions < size).unsqueeze(-1), positions.clamp(max=size - 1)
        marks = torch.where(there, self.new(expected), 0.0).to(states.dtype)
        marked = states.flatten(0, 1).index_add(0, at, marks).view_as(states)
        x = self.energy_trunk(marked, positions=at)
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
    """Have the energy read tokens by the denoiser's own embedding, one module in both, which is frozen.

    Raises ValueError if their shapes differ.
    """
    ours, theirs = tuple(energy.embedding.weight.shape), tuple(denoiser.embedding.weight.shape)
    if ours != theirs:
        raise ValueError(f"the energy's embedding {ours} cannot be the denoiser's {theirs}")
    energy.embedding = denoiser.embedding.requires_grad_(False)


def recompute(network: nn.Module) -> None:
    """Have every block, in place, keep its input alone for the backward pass and run again there: less memory.

    Gradients stay as they are: the dropout of the second run is that of the first. To be called after
    `execution.compile_blocks`, which sees nothing of what is inside.
    """
    for block in network.trunk.blocks:  # type: ignore[union-attr]
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _own_arguments(local: dict[str, Any]) -> dict[str, Any]:
    """The constructor's own arguments, from which a checkpoint rebuilds the network."""
    return {name: value for name, value in local.items() if name not in ("self", "__class__")}


def _init_embedding(embedding: nn.Embedding) -> None:
    nn.init.kaiming_uniform_(embedding.weight, a=math.sqrt(5))


def _rotary_table(length: int, head_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (l, d) of the first `length` positions; see `_rotary_at`."""
    return _rotary_at(torch.arange(length, device=like.device), head_size, like)


def _rotary_at(positions: Tensor, head_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (l, d) of positions (l,), the two halves of a head rotated against each other."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=like.device) / head_size
    frequencies = (1.0 / 10_000**exponents).to(_at_least_float32(like.dtype))
    angles = torch.outer(positions.to(frequencies.dtype), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _at(x: Tensor, positions: Tensor | None) -> Tensor:
    """Rows (n, h) of (b, l, h) at flat positions (n,), or all of it."""
    return x if positions is None else x.flatten(0, 1).index_select(0, positions)


def _per_position(vector: Tensor, positions: Tensor | None, length: int) -> Tensor:
    """A conditioning vector (b, 1, h), or (1, 1, h) for all rows, as it applies at the flat positions: (n, h)."""
    if positions is None:
        return vector
    return vector[0] if len(vector) == 1 else vector.squeeze(1).index_select(0, positions // length)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
