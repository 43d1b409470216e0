"""Parts of the networks: adaLN, blocks, a trunk that reads and gives key-value caches, the vocabulary head."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edlm.nn import head, rope
from edlm.nn.attention import Attention, Cache, Mask, rows_at

_NOISE_FREQUENCIES = 256
_MLP_RATIO = 4


class NoiseEmbedding(nn.Module):
    """Embedding of a noise level: sigma (b,) to (b, c), by sinusoids, then Linear - SiLU - Linear - SiLU."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.expand = nn.Linear(_NOISE_FREQUENCIES, size)
        self.project = nn.Linear(size, size)

    def forward(self, sigma: Tensor) -> Tensor:
        """Embed each noise level."""
        dtype = self.expand.weight.dtype
        half = _NOISE_FREQUENCIES // 2
        steps = torch.arange(half, dtype=torch.float32, device=sigma.device)
        # float32, as published, but for the exponential itself, which differs from one processor to another there.
        frequencies = torch.exp((-math.log(10_000) * steps / half).double()).float()
        frequencies = frequencies.to(torch.promote_types(dtype, torch.float32))
        angles = sigma.to(frequencies.dtype).unsqueeze(-1) * frequencies
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)
        return F.silu(self.project(F.silu(self.expand(sinusoids))))


class Modulation(nn.Module):
    """Map from conditioning (b, c) to `chunks` vectors (b, 1, h) that shift, scale and gate; zero before training."""

    def __init__(self, conditioning_size: int, hidden_size: int, chunks: int) -> None:
        super().__init__()
        self.linear = nn.Linear(conditioning_size, chunks * hidden_size)
        self.chunks = chunks
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, conditioning: Tensor) -> tuple[Tensor, ...]:
        """Give the vectors in the order shift, scale[, gate, shift, scale, gate]."""
        return self.linear(conditioning).unsqueeze(1).chunk(self.chunks, dim=-1)


class Block(nn.Module):
    """Attention and a feed-forward layer with pre-normalisation and residual sums, modulated if conditioned."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        conditioning_size: int,
        causal: bool,
        dropout: float,
        norm_bias: bool,
        qk_norm: bool,
    ) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(hidden_size, bias=norm_bias)
        self.attention = Attention(hidden_size, num_heads, causal, qk_norm)
        self.norm_2 = nn.LayerNorm(hidden_size, bias=norm_bias)
        self.up = nn.Linear(hidden_size, _MLP_RATIO * hidden_size)
        self.down = nn.Linear(_MLP_RATIO * hidden_size, hidden_size)
        self.modulation = Modulation(conditioning_size, hidden_size, 6) if conditioning_size else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        conditioning: Tensor | None = None,
        mask: Mask | None = None,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Apply the block: (b, l, h) to (b, l, h), or to (n, h) at flat positions (n,); see `Attention.forward`.

        keep: return keys and values of the rows too, (b, 2, heads, l, d), and no None in their place.
        """
        if self.modulation is None:
            mixed, own = self.attention(self.norm_1(x), rotary, mask, cache, positions, keep)
            x = rows_at(x, positions) + self._dropped(mixed)
            x = x + self._dropped(self._feed_forward(self.norm_2(x)))
        else:
            shift_1, scale_1, *later = self.modulation(conditioning)
            gate_1, shift_2, scale_2, gate_2 = (_per_position(vector, positions, x.shape[1]) for vector in later)
            normed = _modulated(self.norm_1, x, shift_1, scale_1)
            mixed, own = self.attention(normed, rotary, mask, cache, positions, keep)
            x = torch.addcmul(rows_at(x, positions), gate_1, self._dropped(mixed))
            fed = self._feed_forward(_modulated(self.norm_2, x, shift_2, scale_2))
            x = torch.addcmul(x, gate_2, self._dropped(fed))
        return x, torch.stack(own, dim=1) if keep else None  # FSDP2 wants no view of a block

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))

    def _dropped(self, x: Tensor) -> Tensor:
        """Dropout where it is on: a cached step feels the call of a module that does nothing."""
        return self.dropout(x) if self.dropout.training else x


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
        qk_norm: bool,
    ) -> None:
        super().__init__()
        if hidden_size % (2 * num_heads):
            raise ValueError(f"hidden_size = {hidden_size} must be a multiple of 2 * num_heads = {2 * num_heads}")
        if num_layers < 1:
            raise ValueError(f"num_layers = {num_layers} must be at least 1")
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, conditioning_size, causal, dropout, norm_bias, qk_norm)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size, bias=norm_bias)
        self.noise_embedding = NoiseEmbedding(conditioning_size) if conditioning_size else None
        self.modulation = Modulation(conditioning_size, hidden_size, 2) if conditioning_size else None
        self.head_size = hidden_size // num_heads

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None = None,
        sigma: Tensor | None = None,
        mask: Mask | None = None,
        cache: Sequence[Cache] | None = None,
        positions: Tensor | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the blocks at noise level sigma (b,), zero where none is given; see `Attention.forward` for the mask.

        rotary: None for the rows of a whole text; cache: of each layer. With flat positions (n,) the last block's
        feed-forward layer runs on those alone, and the states are (n, h). keep: return keys and values of the rows in
        every layer too, (b, layers, 2, heads, l, d), and no None in their place.
        """
        length, conditioning = x.shape[1], self._conditioning(x, sigma)
        rotary = rope.table(length, self.head_size, x) if rotary is None else rotary
        caches: Sequence[Cache | None] = cache or [None] * len(self.blocks)
        kept = []
        for index, (block, before) in enumerate(zip(self.blocks, caches, strict=True), start=1):
            wanted = positions if index == len(self.blocks) else None
            x, own = block(x, rotary, conditioning, mask, before, wanted, keep)
            kept.append(own)
        return self._normed(x, conditioning, positions, length), torch.stack(kept, dim=1) if keep else None

    def _conditioning(self, x: Tensor, sigma: Tensor | None) -> Tensor | None:
        """Compute the conditioning that every block reads: (b, c), or (1, c) where no noise level is given."""
        if self.noise_embedding is None:
            return None
        found: Tensor = self.noise_embedding(x.new_zeros(1) if sigma is None else sigma)
        return found

    def _normed(
        self, x: Tensor, conditioning: Tensor | None, positions: Tensor | None = None, length: int = 1
    ) -> Tensor:
        if self.modulation is None:
            normed: Tensor = self.norm(x)
            return normed
        shift, scale = (_per_position(vector, positions, length) for vector in self.modulation(conditioning))
        return _modulated(self.norm, x, shift, scale)


class Head(nn.Linear):
    """Vocabulary head: hidden states (..., h) to logits (..., v), or to chosen columns at the cost of those alone."""

    def forward(self, hidden: Tensor, columns: slice | None = None) -> Tensor:
        """Apply the rows of the weight that make these columns; None: all."""
        if columns is None:
            return super().forward(hidden)
        return F.linear(hidden, self.weight[columns], None if self.bias is None else self.bias[columns])

    def log_prob(
        self, hidden: Tensor, tokens: Tensor, excluded: int | None = None, expected: Tensor | None = None
    ) -> Tensor:
        """Compute `log softmax(logits)[token]` of hidden states (n, h), nats (n,), in tiles: see `head.log_prob`."""
        return head.log_prob(hidden, self.weight, self.bias, tokens, excluded, expected)


def _modulated(norm: nn.LayerNorm, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Compute `norm(x) * (1 + scale) + shift`, in one pass where one shift and scale serve all positions."""
    if len(shift) != 1:
        return torch.addcmul(shift, norm(x), 1 + scale)
    shift, scale = (vector.flatten().to(norm.weight.dtype) for vector in (shift, scale))  # autocast makes them bfloat16
    weight = norm.weight * (1 + scale)
    bias = shift if norm.bias is None else norm.bias * (1 + scale) + shift
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def _per_position(vector: Tensor, positions: Tensor | None, length: int) -> Tensor:
    """Select the conditioning vector (b, 1, h), or (1, 1, h) for all rows, of each flat position: (n, h)."""
    if positions is None:
        return vector
    return vector[0] if len(vector) == 1 else vector.squeeze(1).index_select(0, positions // length)


def init_embedding(embedding: nn.Embedding) -> None:
    """Draw an embedding as published networks do."""
    nn.init.kaiming_uniform_(embedding.weight, a=math.sqrt(5))
