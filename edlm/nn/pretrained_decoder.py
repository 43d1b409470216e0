"""Decoders of `transformers` that read rows beside keys and values of earlier ones: token by token, and in order.

Nobody writes to a cache here. A body asks its cache for all keys of a layer, so it is given one that only answers.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

from edlm.nn import attention as masks
from edlm.nn import decoder_order
from edlm.nn.attention import Cache
from edlm.nn.pretrained import PretrainedNetwork


class PretrainedDecoder(PretrainedNetwork):
    """A decoder of `transformers`: causal, or made to look both ways, which can then be read in order.

    A layer with a window of w tokens sees them on either side of a row that looks both ways, by where each token
    stands in the text.
    """

    def forward(
        self,
        tokens: Tensor,
        sigma: Tensor | None = None,
        positions: Tensor | None = None,
        clean: Tensor | None = None,
        attention: Tensor | None = None,
        keep: bool = False,
    ) -> Any:
        """Run the body, see `PretrainedNetwork.forward`.

        keep: return keys and values (b, layers, 2, kv heads, l, d) of what is read too, the context of `in_order`.
        """
        if not keep:
            return super().forward(tokens, sigma, positions, clean, attention)
        if tokens.shape[1] > self.max_length:
            raise ValueError(f"length = {tokens.shape[1]} must be at most {self.max_length}")
        read = self._opened(tokens)
        place = torch.arange(read.shape[1], device=read.device).expand_as(read)
        seen = torch.ones(*read.shape, read.shape[1], dtype=torch.bool, device=read.device)
        hidden, own = self._beside(read, place, seen, self.empty_cache(len(read), 0))
        states = self._predicting(hidden, tokens.shape[1])
        states = states if positions is None else states.flatten(0, 1)[positions]
        return states, torch.stack(own, dim=2).movedim(0, 1)

    def in_order(
        self,
        tokens: Tensor,
        where: Tensor,
        mask_id: int,
        context: Tensor,
        sigma: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Tensor:
        """Compute the states (b, k, m - 1, h) that predict new tokens one after the other; see `Transformer.in_order`.

        text: x_t or any candidate, (b, l), from which a shifted decoder reads what stands before a new token. The
        candidates are read one after the other.
        """
        at = decoder_order.places(where, 0 if self.bos_id is None else 1, self.shifted)
        shown, found, n = text if self.shifted else None, [], where.shape[1] - 1
        if n == 0:
            return self.embedding.weight.new_zeros(*tokens.shape[:2], 0, self.embedding.weight.shape[1])
        before = Cache(*context.movedim(1, 0).unbind(2))
        length = context.shape[4]
        place, seen = torch.cat(at, dim=1), decoder_order.seen(*at, length)
        for candidate in tokens.unbind(1):
            rows = decoder_order.read(candidate, where, mask_id, shown)
            found.append(self._beside(rows, place.clamp(max=length - 1), seen, before)[0][:, n:])
        return torch.stack(found, dim=1)

    def empty_cache(self, b: int, length: int) -> Cache:
        """Allocate zeros for keys and values (layers, b, kv heads, l, d) of b rows of `length` positions."""
        config: Any = self.body.config
        heads, like = config.num_attention_heads, self.embedding.weight
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        keys = like.new_zeros(config.num_hidden_layers, b, kv_heads, length, size)
        return Cache(keys, torch.zeros_like(keys))

    def step(self, tokens: Tensor, position: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Compute one position of a causal decoder, as `Transformer.step` does; cache: (layers, b, kv heads, l, d)."""
        hidden, own = self.follow(tokens.unsqueeze(1), position.expand(len(tokens)), cache)
        return hidden.squeeze(1), Cache(*(kept.squeeze(3) for kept in own))

    def follow(self, tokens: Tensor, start: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Compute the next positions of a causal decoder, as `Transformer.follow` does."""
        config: Any = self.body.config
        count, longest = tokens.shape[1], config.max_position_embeddings
        place = (start.unsqueeze(-1) + torch.arange(count, device=tokens.device)).clamp(max=longest - 1)
        return self._beside(tokens, place, masks.following(start, count, cache.keys.shape[3]), cache)

    def _beside(self, tokens: Tensor, place: Tensor, seen: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Run the body on tokens (b, n) at places (b, n): states (b, n, h), and keys and values of all layers.

        seen: what each row reads of the cache, whose places are its own, and of the tokens, bool (b, n, l + n).
        """
        of_cache = torch.arange(cache.keys.shape[3], device=place.device).expand(len(place), -1)
        apart = place.unsqueeze(-1) - torch.cat([of_cache, place], dim=1).unsqueeze(1)
        answering = _Answering(cache)
        how = {"position_ids": place, "attention_mask": self._masks(seen, apart), _cache_name(self.body): answering}
        hidden: Tensor = self.body(**self._read(tokens), use_cache=True, **how).last_hidden_state
        return hidden, Cache(*(torch.stack(each) for each in zip(*answering.own, strict=True)))


class _Answering:
    """Keys and values of what was read before, to which a body adds its own, layer by layer, as to its own cache.

    own: what it adds.
    """

    def __init__(self, before: Cache) -> None:
        self.before = before
        self.own: list[Cache] = []

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return all keys and values (b, kv heads, l + n, d) of a layer."""
        self.own.append(Cache(keys, values))
        old = self.before
        return torch.cat([old.keys[layer], keys], dim=2), torch.cat([old.values[layer], values], dim=2)

    def get_seq_length(self, *_: Any) -> int:
        """Count what was read before."""
        return self.before.keys.shape[3]


def _cache_name(body: Any) -> str:
    """Find what the body calls its cache: it was renamed during version 5 of `transformers`."""
    return "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"
