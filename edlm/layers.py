"""What networks are made of: rotary attention, adaLN, blocks, a trunk with a key-value cache, the vocabulary head."""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edlm import cross_entropy, rope

P = TypeVar("P")
_NOISE_FREQUENCIES = 256
_MLP_RATIO = 4
_TOGETHER = 4  # candidates in one attention: more share the keys of x_t, and leave more of each other out


class Past(NamedTuple):
    """Keys and values of all layers, (layers, b, heads, l, d); those of one position (layers, b, heads, d)."""

    keys: Tensor
    values: Tensor


class Order(NamedTuple):
    """What rows that are read in order may see; see `Trunk.in_order`. r = 2 (m - 1) rows for m new tokens.

    rotary: positions of a candidate's rows, cosines and sines (b, r, d); seen: zero or -inf, (b, 1, g r, l + g r), what
    the rows of g candidates see of x_t and of each other.
    """

    rotary: tuple[Tensor, Tensor]
    seen: Tensor


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
        return self.read(x, rotary, valid, positions)[0]

    def read(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        valid: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Past]:
        """What `forward` gives, and the keys and values (b, heads, l, d) that it was made of."""
        q, k, v = self._heads(x, rotary)
        readable = None if valid is None else valid[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=readable, is_causal=self.causal)
        return self.out(_at(mixed.transpose(1, 2).flatten(-2), positions)), Past(k, v)

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

    def in_order(self, x: Tensor, order: Order, past: Past, positions: Tensor | None = None) -> Tensor:
        """Mix the rows of k candidates, (b, k r, h), with x_t and the new tokens before them; see `Trunk.in_order`.

        past: keys and values of x_t at this layer, (b, heads, l, d), shared by candidates; positions: as in `forward`.
        """
        r, l = order.rotary[0].shape[1], past.keys.shape[2]
        k = x.shape[1] // r
        cos, sin = (table.repeat(1, k, 1) for table in order.rotary)
        by_candidate = (part.unflatten(2, (k, r)) for part in self._heads(x, (cos, sin)))  # (b, heads, k, r, d)
        mixed = []
        for several in zip(*(part.split(_TOGETHER, dim=2) for part in by_candidate), strict=True):
            q, keys, v = (part.flatten(2, 3) for part in several)
            seen = order.seen[:, :, : q.shape[2], : l + q.shape[2]]
            keys, v = torch.cat([past.keys, keys], dim=2), torch.cat([past.values, v], dim=2)
            mixed.append(F.scaled_dot_product_attention(q, keys, v, attn_mask=seen))
        return self.out(_at(torch.cat(mixed, dim=2).transpose(1, 2).flatten(-2), positions))

    def _heads(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (b, heads, l, d), the first two turned by their positions, (l, d) or (b, l, d)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        cos, sin = (table.unsqueeze(-2) for table in rotary)
        return rope.rotate(q, cos, sin).transpose(1, 2), rope.rotate(k, cos, sin).transpose(1, 2), v.transpose(1, 2)


class Block(nn.Module):
    """Attention and a feed-forward layer, each normalised before and added after; modulated when conditioned."""

    PASSES = ("forward", "read", "in_order")  # what training may run

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
        found, _ = self._around(
            lambda normed: (self.attention(normed, rotary, valid, positions), None), x, conditioning, positions
        )
        return found

    def read(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        conditioning: Tensor | None,
        valid: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What `forward` gives, and the layer's keys and values (b, 2, heads, l, d); see `Attention.read`."""
        x, past = self._around(
            lambda normed: self.attention.read(normed, rotary, valid, positions), x, conditioning, positions
        )
        return x, torch.stack(past, dim=1)

    def step(self, x: Tensor, rotary: tuple[Tensor, Tensor], past: Past, read: Tensor) -> tuple[Tensor, Past]:
        """Apply an unconditioned block to one position, without dropout; see `Attention.step`."""
        mixed, own = self.attention.step(self.norm_1(x), rotary, past, read)
        x = x + mixed
        return x + self._feed_forward(self.norm_2(x)), own

    def in_order(
        self, x: Tensor, order: Order, past: Past, conditioning: Tensor | None, positions: Tensor | None = None
    ) -> Tensor:
        """Apply the block to rows that are read in order; see `Attention.in_order`."""
        found, _ = self._around(
            lambda normed: (self.attention.in_order(normed, order, past, positions), None), x, conditioning, positions
        )
        return found

    def _around(
        self,
        attend: Callable[[Tensor], tuple[Tensor, P]],
        x: Tensor,
        conditioning: Tensor | None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, P]:
        """All of the block around its attention, and what that has to say beside its mixture."""
        if self.modulation is None:
            mixed, beside = attend(self.norm_1(x))
            x = _at(x, positions) + self.dropout(mixed)
            return x + self.dropout(self._feed_forward(self.norm_2(x))), beside
        shift_1, scale_1, *later = self.modulation(conditioning)
        gate_1, shift_2, scale_2, gate_2 = (_per_position(vector, positions, x.shape[1]) for vector in later)
        mixed, beside = attend(_modulated(self.norm_1, x, shift_1, scale_1))
        x = torch.addcmul(_at(x, positions), gate_1, self.dropout(mixed))
        fed = self._feed_forward(_modulated(self.norm_2, x, shift_2, scale_2))
        return torch.addcmul(x, gate_2, self.dropout(fed)), beside

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
        rotary, conditioning = rope.table(x.shape[1], self.head_size, x), self._conditioning(x, sigma)
        *earlier, last = self.blocks
        for block in earlier:
            x = block(x, rotary, conditioning, valid)
        return self._normed(last(x, rotary, conditioning, valid, positions), conditioning, positions, x.shape[1])

    def read(
        self, x: Tensor, sigma: Tensor | None = None, valid: Tensor | None = None, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `forward` gives, and what `in_order` has to know of it: keys and values (b, layers, 2, heads, l, d)."""
        length = x.shape[1]
        rotary, conditioning = rope.table(length, self.head_size, x), self._conditioning(x, sigma)
        known = []
        for index, block in enumerate(self.blocks, start=1):
            where = positions if index == len(self.blocks) else None
            x, past = block.read(x, rotary, conditioning, valid, where)  # type: ignore[operator]
            known.append(past)
        return self._normed(x, conditioning, positions, length), torch.stack(known, dim=1)

    def in_order(
        self,
        written: Tensor,
        blank: Tensor,
        where: Tensor,
        context: Tensor,
        sigma: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """The states by which a text's new tokens are predicted one after the other, in one pass over them alone.

        written: embeddings (b, k, m, h) of the new tokens of k candidates for x_s; where: their places in x_t, int64
        (b, m), ascending, l where a row has fewer; blank: the embedding (h,) of a mask; context: what `read` says of
        x_t; valid: bool (b, l), False where nothing is read of x_t but what is new there. Returns states
        (b, k, m - 1, h) for all new tokens but the first, which is predicted from x_t alone.
        Two streams (Yang et al. 2019, arXiv 1906.08237): a row for each token, which sees x_t, less the masks that are
        filled by then, and the new tokens up to itself; and a row that asks for it, which sees the new tokens before it
        and a mask in its own place. The states of x_t are those of the pass over x_t. Of the last block, the rows that
        ask are all that is needed.
        """
        b, k, m, h = written.shape
        if m == 1:
            return written[:, :, 1:]
        asked = blank.expand(b, k, m - 1, h)
        x = torch.cat([written[:, :, :-1], asked], dim=2).flatten(1, 2)
        order, conditioning = _order(where, context.shape[4], k, self.head_size, x, valid), self._conditioning(x, sigma)
        length = x.shape[1]
        asking = torch.arange(b * length, device=x.device).view(b, k, 2, m - 1)[:, :, 1].flatten()
        for layer, block in enumerate(self.blocks, start=1):
            past, at = Past(*context[:, layer - 1].unbind(1)), asking if layer == len(self.blocks) else None
            x = block.in_order(x, order, past, conditioning, at)  # type: ignore[operator]
        return self._normed(x, conditioning, asking, length).view(b, k, m - 1, h)

    def step(self, x: Tensor, position: Tensor, past: Past) -> tuple[Tensor, Past]:
        """Run unconditioned blocks on position number `position` (), (b, 1, h); see `Transformer.step`."""
        rotary = rope.at(position.unsqueeze(0), self.head_size, x)
        read = torch.arange(past.keys.shape[3], device=x.device) < position
        own: list[Past] = []
        for layer, block in enumerate(self.blocks):
            x, here = block.step(x, rotary, Past(past.keys[layer], past.values[layer]), read)  # type: ignore[operator]
            own.append(here)
        keys, values = (torch.stack(parts).squeeze(3) for parts in zip(*own, strict=True))
        return self.norm(x), Past(keys, values)

    def _conditioning(self, x: Tensor, sigma: Tensor | None) -> Tensor | None:
        """What the noise level says to every block: (b, c), or (1, c) where none is given."""
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


def _modulated(norm: nn.LayerNorm, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`norm(x) * (1 + scale) + shift`; one shift and scale for all positions become the norm's own, in one pass."""
    if len(shift) != 1:
        return torch.addcmul(shift, norm(x), 1 + scale)
    shift, scale = (vector.flatten().to(norm.weight.dtype) for vector in (shift, scale))  # autocast makes them bfloat16
    weight = norm.weight * (1 + scale)
    bias = shift if norm.bias is None else norm.bias * (1 + scale) + shift
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def _order(where: Tensor, length: int, k: int, head_size: int, like: Tensor, valid: Tensor | None = None) -> Order:
    """Who sees whom where m new tokens stand at `where` (b, m), ascending, `length` for none; see `Trunk.in_order`."""
    b, m = where.shape
    number = torch.arange(m, device=where.device)
    given = where.new_full((b, length), m) if valid is None else torch.where(valid, m, 0)
    filled_by = F.pad(given, (0, 1)).scatter(1, where, number.expand(b, m))[:, :length]
    own = torch.cat([number[:-1], number[1:]])  # a token's row, and the row that asks for one
    at = torch.cat([where[:, :-1], where[:, 1:]], dim=1)
    cos, sin = (table.view(b, len(own), head_size) for table in rope.at(at.flatten(), head_size, like))
    up_to = torch.ones(m - 1, m - 1, dtype=torch.bool, device=where.device).tril()
    alone = torch.eye(m - 1, dtype=torch.bool, device=where.device)
    of_new = torch.cat([torch.cat([up_to, torch.zeros_like(alone)], dim=1), torch.cat([up_to, alone], dim=1)])
    count = min(k, _TOGETHER)
    of_text = (filled_by.unsqueeze(1) > own.unsqueeze(-1)).repeat(1, count, 1)
    same = torch.eye(count, dtype=torch.bool, device=where.device)
    among = (same[:, None, :, None] & of_new[None, :, None, :]).flatten(2, 3).flatten(0, 1)
    seen = torch.cat([of_text, among.expand(b, *among.shape)], dim=2).unsqueeze(1)
    return Order((cos, sin), like.new_zeros(seen.shape).masked_fill(~seen, -torch.inf))


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
