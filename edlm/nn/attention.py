"""Rotary attention: over a whole text, or for new rows that also read a cache of earlier keys and values."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edlm.nn import rope

_TOGETHER = 4  # candidates in one attention: more share the keys of x_t, and leave more of each other out
Mask = Tensor | tuple[Tensor, ...]


class Cache(NamedTuple):
    """Keys and values of a layer, (b, heads, l, d); of all layers (layers, b, heads, l, d)."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions, (b, l, h) to (b, l, h).

    qk_norm: whether queries and keys are brought to one length, `x / rms(x)`, before their positions turn them.
    """

    def __init__(self, hidden_size: int, num_heads: int, causal: bool, qk_norm: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.num_heads = num_heads
        self.causal, self.qk_norm = causal, qk_norm

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Mask | None = None,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, Cache | None]:
        """Mix rows (b, l, h) to (b, l, h), or to (n, h) at flat positions (n,).

        rotary: cosines and sines, (l, d) or (b, l, d). mask: as `F.scaled_dot_product_attention` takes it. cache: keys
        and values of earlier rows, which is not written to. The rows then come in groups. The mask is a tuple with one
        mask a group, (..., g, cached + g), zero or -inf: what its g rows read of the cache and of each other.
        keep: return the keys and values of the rows too, and no None in their place.
        """
        q, k, v = self._heads(x, rotary)
        if cache is None:
            causal = self.causal and mask is None  # a mask says all that is read
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)  # type: ignore[arg-type]
        else:
            mixed = _in_groups(cache, q, k, v, mask)  # type: ignore[arg-type]
        return self.out(rows_at(mixed.transpose(1, 2).flatten(-2), positions)), Cache(k, v) if keep else None

    def remembered(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Cache:
        """Compute the keys and values of rows (b, l, h) alone."""
        _, k, v = self._heads(x, rotary)
        return Cache(k, v)

    def _heads(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values (b, heads, l, d); positions (l, d) or (b, l, d) turn the first two."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        if self.qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        cos, sin = (table.unsqueeze(-2) for table in rotary)
        return rope.rotate(q, cos, sin).transpose(1, 2), rope.rotate(k, cos, sin).transpose(1, 2), v.transpose(1, 2)


def readable(valid: Tensor | None) -> Tensor | None:
    """Build the mask of a pass that reads only where `valid`, bool (b, l), is True; None: it reads everything."""
    return None if valid is None else valid[:, None, None]


def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Read what two masks let through; None lets everything through."""
    return second if first is None else first if second is None else first & second


def in_blocks(length: int, size: int | None, like: Tensor) -> Tensor | None:
    """Build the mask of block-causal attention, bool (l, l): a row reads its own block and those before it.

    None: there is one block, so everything is read.
    """
    if size is None or length <= size:
        return None
    block = torch.arange(length, device=like.device) // size
    return block.unsqueeze(-1) >= block


def opening(noise: Tensor, share: Tensor) -> Tensor:
    """Build the mask between causal and full attention, bool (l, l): a row reads what is before it, and a share of the
    later positions.

    noise: uniforms (l, l), one for each pair; a later position is read where its own is below the share ().
    """
    return torch.ones_like(noise, dtype=torch.bool).tril() | (noise < share)


def beside_clean(length: int, size: int, like: Tensor) -> Tensor:
    """Build the mask of a pass over [x_t ; x_0], bool (2 l, 2 l): blocks with masks, each after the clean ones.

    A row of x_t reads its own block of x_t and the blocks of x_0 before it; x_0 is read block by block, by itself
    (Arriola et al. 2025, arXiv 2503.09573).
    """
    block = torch.arange(length, device=like.device) // size
    own, earlier = block.unsqueeze(-1) == block, block.unsqueeze(-1) > block
    noisy, clean = torch.cat([own, earlier], dim=1), torch.cat([torch.zeros_like(own), own | earlier], dim=1)
    return torch.cat([noisy, clean])


def after_finished(
    places: Tensor, length: int, cached: int, size: int, head_size: int, like: Tensor, valid: Tensor | None = None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    """Build rotary tables and mask of a pass over some rows of a text alone, what comes before them from a cache.

    places: where the rows stand, int64 (b, n), ascending and without a gap, `length` where a text has fewer. A row
    reads the first `cached` positions of the cache, those from its text's first place on left out, and of the n rows
    those of its own block and before. valid: bool (b, l), what is read at all.
    """
    b, n = places.shape
    tables = rope.at(places.flatten(), head_size, like)
    stored = torch.arange(cached, device=places.device) < places[:, :1]
    rows = places < length
    if valid is not None:
        stored, rows = stored & valid[:, :cached], rows & valid.gather(1, places.clamp(max=length - 1))
    block = places // size
    own = (block.unsqueeze(-1) >= block.unsqueeze(1)) & rows.unsqueeze(1)
    seen = torch.cat([stored.unsqueeze(1).expand(b, n, cached), own], dim=2)
    return (tables[0].view(b, n, -1), tables[1].view(b, n, -1)), (added(seen, like),)


def rows_at(x: Tensor, positions: Tensor | None) -> Tensor:
    """Take the rows (n, h) of (b, l, h) at flat positions (n,), or all rows."""
    return x if positions is None else x.flatten(0, 1).index_select(0, positions)


def two_streams(
    where: Tensor,
    length: int,
    k: int,
    head_size: int,
    like: Tensor,
    valid: Tensor | None = None,
    block_size: int | None = None,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    """Build rotary tables and mask of a pass over k candidates: where each row stands, and which rows it reads.

    where: places of m new tokens in x_t, int64 (b, m), ascending, `length` or more where a row has fewer. valid: bool
    (b, l), False where x_t is not read unless a new token stands there. A candidate has 2 (m - 1) rows, for
    (b, k 2 (m - 1), h). There are two streams (Yang et al. 2019, arXiv 1906.08237). Every token but the last has a row
    that reads x_t, without the masks that are filled by then, and the new tokens up to itself. Every token but the
    first has a row that predicts it: this row reads the new tokens before it, and a mask in its own place.
    block_size: of block-causal attention, where no row reads what stands in a later block; None: all is read.
    """
    b, m = where.shape
    number = torch.arange(m, device=where.device)
    given = where.new_full((b, length), m) if valid is None else torch.where(valid, m, 0)
    filled_by = F.pad(given, (0, 1)).scatter(1, where.clamp(max=length), number.expand(b, m))[:, :length]
    own = torch.cat([number[:-1], number[1:]])  # a token's row, and the row that asks for one
    at = torch.cat([where[:, :-1], where[:, 1:]], dim=1)
    tables = rope.at(at.flatten(), head_size, like)
    cos, sin = (table.view(b, len(own), head_size).repeat(1, k, 1) for table in tables)
    up_to = torch.ones(m - 1, m - 1, dtype=torch.bool, device=where.device).tril()
    alone = torch.eye(m - 1, dtype=torch.bool, device=where.device)
    of_new = torch.cat([torch.cat([up_to, torch.zeros_like(alone)], dim=1), torch.cat([up_to, alone], dim=1)])
    count = min(k, _TOGETHER)
    of_text = filled_by.unsqueeze(1) > own.unsqueeze(-1)
    if block_size is not None:
        text = torch.arange(length, device=where.device)
        of_text = of_text & (text // block_size <= at.unsqueeze(-1) // block_size)
    of_text = of_text.repeat(1, count, 1)
    same = torch.eye(count, dtype=torch.bool, device=where.device)
    among = (same[:, None, :, None] & of_new[None, :, None, :]).flatten(2, 3).flatten(0, 1)
    mask = added(torch.cat([of_text, among.expand(b, *among.shape)], dim=2), like)
    rows = [len(own) * min(_TOGETHER, k - first) for first in range(0, k, _TOGETHER)]
    return (cos, sin), tuple(mask[:, :, :size, : length + size] for size in rows)


def _in_groups(cache: Cache, q: Tensor, k: Tensor, v: Tensor, masks: tuple[Tensor, ...]) -> Tensor:
    """Mix the rows of every group with the cache and with each other: (b, heads, l, d)."""
    if len(masks) == 1:
        return _after(cache, q, k, v, masks[0])
    sizes = [mask.shape[-2] for mask in masks]
    groups = zip(*(part.split(sizes, dim=2) for part in (q, k, v)), masks, strict=True)
    return torch.cat([_after(cache, *group) for group in groups], dim=2)


def _after(cache: Cache, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Mix the g rows of a group, (b, heads, g, d) each."""
    if q.shape[2] > 1:
        keys, values = torch.cat([cache.keys, k], dim=2), torch.cat([cache.values, v], dim=2)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    return row_after(cache, q, k, v, mask)


def row_after(cache: Cache, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Mix one row, keys and values (b, heads, 1, d), for queries (b, heads, g, d) of it; no cached row is copied."""
    scores = torch.cat([q @ cache.keys.mT, (q * k).sum(-1, keepdim=True)], dim=-1) / math.sqrt(q.shape[-1]) + mask
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
    return weights[..., :-1] @ cache.values + weights[..., -1:] * v


def drafting(length: int, size: int, offset: Tensor) -> Tensor:
    """Build the mask of a pass over [masks ; text] of a causal network, bool (2 l, 2 l): runs of masks after the text.

    A run of `size` masks reads itself and the text before it, and the text reads causally, by itself. The first place
    has no mask, so its row in the masks reads itself alone. offset, int64 (): how much shorter the first run is.
    """
    place = torch.arange(length, device=offset.device)
    run = torch.where(place == 0, -1, (place - 1 + offset) // size)
    own, earlier = run.unsqueeze(-1) == run, run.unsqueeze(-1) > run
    causal = place.unsqueeze(-1) >= place
    return torch.cat([torch.cat([own, earlier], dim=1), torch.cat([torch.zeros_like(own), causal], dim=1)])


def following(start: Tensor, count: int, length: int, together: int = 0) -> Tensor:
    """Mark what new rows read, bool (b, count, length + count): `start` (b,) cached ones each, and new ones.

    together: so many of the last rows read each other too.
    """
    before = torch.arange(length, device=start.device) < start.unsqueeze(-1)
    among = torch.ones(count, count, dtype=torch.bool, device=start.device).tril()
    among[count - together :, count - together :] = True
    shape = len(start), count
    return torch.cat([before.unsqueeze(1).expand(*shape, length), among.expand(*shape, count)], dim=2)


def added(seen: Tensor, like: Tensor) -> Tensor:
    """Give what flags (b, n, m) add to the logits of attention, (b, 1, n, m): zero where a row reads, else -inf."""
    return like.new_zeros(seen.shape).masked_fill(~seen, -torch.inf).unsqueeze(1)
