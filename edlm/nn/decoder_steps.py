"""Positions of a torchtune decoder one or a few at a time, beside a cache of earlier keys and values.

Nobody writes to the cache here.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edlm.nn import attention
from edlm.nn.attention import Cache

_KNOWN = "MultiHeadAttention"  # torchtune's, whose parts are called here one by one


def empty_cache(layers: Any, b: int, length: int, like: Tensor) -> Cache:
    """Allocate zeros for keys and values (layers, b, kv heads, l, d) of b rows of `length` positions.

    Raises ValueError for an attention of another kind, which would be read wrongly.
    """
    first = layers[0].attn
    if type(first).__name__ != _KNOWN:
        raise ValueError(f"a {type(first).__name__} is not read one position at a time: only a {_KNOWN} is")
    keys = like.new_zeros(len(layers), b, first.num_kv_heads, length, first.head_dim)
    return Cache(keys, torch.zeros_like(keys))


def step(layers: Any, x: Tensor, position: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
    """Run the blocks on embedded tokens (b, h) at `position`, int64 (), of which the cache holds those before.

    Returns the states (b, h) and the position's own keys and values (layers, b, kv heads, d).
    """
    length = cache.keys.shape[3]
    seen = x.new_zeros(1, length + 1)  # the last is the position itself
    seen[:, :-1].masked_fill_(torch.arange(length, device=x.device) >= position, -torch.inf)
    where, x, kept = position.expand(len(x), 1), x.unsqueeze(1), []
    for layer, before in zip(layers, map(Cache, *cache), strict=True):
        x, own = _layer(layer, x, where, before, seen)
        kept.append(own)
    keys, values = (torch.stack(each).squeeze(3) for each in zip(*kept, strict=True))
    return x.squeeze(1), Cache(keys, values)


def follow(layers: Any, x: Tensor, start: Tensor, longest: int, cache: Cache) -> tuple[Tensor, Cache]:
    """Run the blocks on embedded tokens (b, m, h) from `start` (b,) on, of which the cache holds those before.

    longest: positions that the decoder knows; a token beyond them has no state that means anything. Returns the states
    (b, m, h), and keys and values of the tokens (layers, b, kv heads, m, d).
    """
    where = start.unsqueeze(-1) + torch.arange(x.shape[1], device=x.device)
    mask, kept = attention.added(attention.following(start, x.shape[1], cache.keys.shape[3]), x), []
    for layer, before in zip(layers, map(Cache, *cache), strict=True):
        x, own = rows(layer, x, where.clamp(max=longest - 1), before, mask)
        kept.append(own)
    return x, Cache(*(torch.stack(each) for each in zip(*kept, strict=True)))


def _layer(layer: Any, x: Tensor, where: Tensor, cache: Cache, seen: Tensor) -> tuple[Tensor, Cache]:
    """Run one block on rows (b, 1, h): the rows, and their keys and values (b, kv heads, 1, d)."""
    attn, normed = layer.attn, layer.sa_norm(x)
    q, (k, v) = turned(attn, attn.q_proj(normed), where, attn.q_norm), keys_and_values(attn, normed, where)
    grouped = q.squeeze(2).unflatten(1, (attn.num_kv_heads, -1))  # queries that share a key are the rows of a head
    mixed = attention.row_after(cache, grouped, k, v, seen)
    x = layer.sa_scale(attn.output_proj(mixed.flatten(1).unsqueeze(1))) + x
    return x + layer.mlp_scale(layer.mlp(layer.mlp_norm(x))), Cache(k, v)


def rows(layer: Any, x: Tensor, where: Tensor, cache: Cache, mask: Tensor) -> tuple[Tensor, Cache]:
    """Run one block on rows (b, n, h) that read a cache and each other: the rows, and their keys and values."""
    attn, normed = layer.attn, layer.sa_norm(x)
    q = turned(attn, attn.q_proj(normed), where, attn.q_norm)
    k, v = keys_and_values(attn, normed, where)
    keys, values = torch.cat([cache.keys, k], dim=2), torch.cat([cache.values, v], dim=2)
    mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)
    x = layer.sa_scale(attn.output_proj(mixed.transpose(1, 2).flatten(2))) + x
    return x + layer.mlp_scale(layer.mlp(layer.mlp_norm(x))), Cache(k, v)


def keys_and_values(attn: Any, normed: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Compute keys and values (b, kv heads, n, d) of normed rows (b, n, h) at positions (b, n)."""
    values = attn.v_proj(normed).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
    return turned(attn, attn.k_proj(normed), where, attn.k_norm), values


def turned(attn: Any, projected: Tensor, where: Tensor, norm: Any) -> Tensor:
    """Take the heads (b, heads, n, d) of a projection, at their positions, normed where torchtune does that."""
    heads = projected.unflatten(-1, (-1, attn.head_dim))
    if attn.pos_embeddings is not None:
        heads = attn.pos_embeddings(heads, input_pos=where)
    heads = heads.transpose(1, 2)
    return heads if norm is None else norm(heads)
