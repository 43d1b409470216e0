"""Torchtune's decoders as networks: bidirectional ones for diffusion models, causal ones for an AR energy.

A `Blueprint` says how a model is built and filled before any of it takes memory. The caller that builds a decoder
imports torchtune; this module does not.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edlm.nn import decoder_order, decoder_steps
from edlm.nn.attention import Cache
from edlm.nn.blocks import Head
from edlm.process import finite


class DecoderNetwork(nn.Module):
    """A torchtune decoder as a `Network`: tokens (b, l) to hidden states (b, l, h), logits by `head` on request.

    `shifted`: position i reads the state of position i - 1, as models made from autoregressive ones predict token i
    there. Nothing predicts position 0, which keeps its own state. With a `bos_id` the bos is read in front of every
    text, and its state predicts position 0. `rows_at_once`: how many rows run at a time, which bounds memory.
    `vocab_size`: ids from the decoder's own number up to it have probability zero, and are read as a row of zeros,
    never as another token. Noise levels are not read: these models know none. The decoder's modules are taken over, its
    norms in float32.
    """

    def __init__(
        self,
        decoder: Any,
        max_length: int | None = None,
        shifted: bool = False,
        rows_at_once: int | None = None,
        vocab_size: int | None = None,
        bos_id: int | None = None,
    ) -> None:
        super().__init__()
        if bos_id is not None and not shifted:
            raise ValueError(f"bos_id = {bos_id}: only a shifted network reads a bos in front of a text")
        self.embedding, self.layers, self.norm = decoder.tok_embeddings, decoder.layers, decoder.norm
        for module in decoder.modules():
            if isinstance(getattr(module, "scale", None), nn.Parameter):
                module.float()  # norms compute in float32, and weights of another type would cost them their fast path
        self.head = _head(decoder, vocab_size)
        longest = decoder.max_seq_len - (0 if bos_id is None else 1)
        self.max_length = min(max_length or longest, longest)
        self.shifted, self.bos_id = shifted, bos_id
        self.rows_at_once = rows_at_once

    def forward(
        self,
        tokens: Tensor,
        sigma: Tensor | None = None,
        positions: Tensor | None = None,
        keep: bool = False,
        attention: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Run the blocks and the final norm. Raises ValueError for sequences longer than `max_length`.

        keep: return keys and values (b, layers, 2, kv heads, l, d) of what is read too, the context of `in_order`.
        attention: which positions a row reads, bool (l, l), the bos in front among them; None: all.
        """
        if tokens.shape[1] > self.max_length:
            raise ValueError(f"length = {tokens.shape[1]} must be at most {self.max_length}")
        read = tokens if self.bos_id is None else F.pad(tokens, (1, 0), value=self.bos_id)
        parts = [read] if self.rows_at_once is None else read.split(self.rows_at_once)
        if keep:
            found = [decoder_order.remembered(self.layers, self._embedded(part)) for part in parts]
            states, context = (torch.cat(each) for each in zip(*found, strict=True))
            return self._at(self.norm(states), positions), context
        return self._at(torch.cat([self._run(part, attention) for part in parts]), positions)

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
        shown, found = text if self.shifted else None, []
        for candidate in tokens.unbind(1):
            rows = self._embedded(decoder_order.read(candidate, where, mask_id, shown))
            found.append(decoder_order.predicting(self.layers, rows, at, context) if where.shape[1] > 1 else rows)
        return self.norm(torch.stack(found, dim=1))

    def _at(self, hidden: Tensor, positions: Tensor | None) -> Tensor:
        """Take the states that predict each position, or some of them."""
        if self.bos_id is not None:
            hidden = hidden[:, :-1]
        elif self.shifted:
            hidden = torch.cat([hidden[:, :1], hidden[:, :-1]], dim=1)
        return hidden if positions is None else hidden.flatten(0, 1)[positions]

    def step(self, tokens: Tensor, position: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Compute one position of a causal decoder, as `Transformer.step` does; cache: (layers, b, kv heads, l, d)."""
        hidden, own = decoder_steps.step(self.layers, self._embedded(tokens), position, cache)
        return self.norm(hidden), own

    def follow(self, tokens: Tensor, start: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Compute the next positions of a causal decoder, as `Transformer.follow` does."""
        longest = self.max_length + (0 if self.bos_id is None else 1)
        hidden, own = decoder_steps.follow(self.layers, self._embedded(tokens), start, longest, cache)
        return self.norm(hidden), own

    def empty_cache(self, b: int, length: int) -> Cache:
        """Allocate zeros for the keys and values of b rows. Raises ValueError where `step` cannot read the blocks."""
        return decoder_steps.empty_cache(self.layers, b, length, self.embedding.weight)

    @property
    def widths(self) -> tuple[int, int]:
        """Widths of a block's feed-forward layer and of all heads of its attention."""
        layer: Any = self.layers[0]
        return layer.mlp.w1.out_features, layer.attn.num_heads * layer.attn.head_dim

    def _run(self, tokens: Tensor, attention: Tensor | None) -> Tensor:
        x = self._embedded(tokens)
        mask = None if attention is None else attention.expand(len(x), -1, -1)
        for layer in self.layers:
            x = layer(x, mask=mask)
        return self.norm(x)

    def _embedded(self, tokens: Tensor) -> Tensor:
        known = self.embedding.num_embeddings
        return self.embedding(tokens.clamp(max=known - 1)).masked_fill((tokens >= known).unsqueeze(-1), 0.0)


class Readable(Protocol):
    """A model before it takes any memory; `where` is the place that an error names."""

    @property
    def where(self) -> str:
        """Name its folder, or the key of a config."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Name the type of its weights in the folder."""
        ...

    def load(self, dtype: torch.dtype | None = None) -> Any:
        """Build the network and fill it."""
        ...

    def outline(self, dtype: torch.dtype | None = None) -> Any:
        """Build the network without its weights, on the meta device."""
        ...


class Blueprint(NamedTuple):
    """A torchtune model before it takes any memory: how its decoder is built, what fills it, the network made of it.

    weights: reads them, under torchtune's names. where: the place that an error names. dtype: the type of the weights
    in the folder, for an outline. export: from torchtune's names back to those of the folder; None for what is never
    written.
    """

    build: Callable[[], Any]
    weights: Callable[[], Mapping[str, Tensor]]
    network: Callable[[Any], DecoderNetwork]
    where: str
    dtype: torch.dtype = torch.float32
    export: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None

    def load(self, dtype: torch.dtype | None = None) -> DecoderNetwork:
        """Build the network and fill it; see `load`."""
        unlike = f"{self.where}: the weights are not those of its config.json"
        try:
            weights = self.weights()
        except RuntimeError as error:  # torchtune's own, of sizes that fit no decoder
            raise ValueError(f"{unlike} ({_one_line(error)})") from error
        finite.require_weights(weights, self.where)
        wanted = _widest(weights) if dtype is None else dtype
        weights = {name: value.to(wanted) for name, value in weights.items()}
        try:
            decoder = with_weights(self.build, weights)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{unlike} ({_one_line(error)})") from error
        return self.network(decoder)

    def outline(self, dtype: torch.dtype | None = None) -> DecoderNetwork:
        """Build the network without its weights; see `outline`."""
        with torch.device("meta"):
            return self.network(self.build().to(dtype or self.dtype))


def load(model: Readable, dtype: torch.dtype | None = None) -> Any:
    """Build the network and fill it, in another precision or in one that holds every weight of its files as it is.

    Norms of a torchtune decoder are float32. Raises ValueError naming what is missing, unknown or unlike the model.
    """
    return model.load(dtype)


def outline(model: Readable, dtype: torch.dtype | None = None) -> Any:
    """Build the network without its weights, on the meta device: it takes no memory and serves `memory.memory_plan`."""
    return model.outline(dtype)


def autoregressive(
    decoder: Any, max_length: int | None = None, rows_at_once: int | None = None, vocab_size: int | None = None
) -> DecoderNetwork:
    """Wrap a causal torchtune decoder (Llama 3, Qwen 2, Gemma, Mistral, Phi 3) for `energies.residual_ar`, eval mode.

    vocab_size: that of the denoiser, where it is larger; ids that the decoder does not know are impossible.
    Raises ValueError if a layer looks ahead.
    """
    if not all(layer.attn.is_causal for layer in decoder.layers):
        raise ValueError("an autoregressive energy needs a decoder with causal attention in every layer")
    return DecoderNetwork(decoder, max_length, rows_at_once=rows_at_once, vocab_size=vocab_size).eval()


def with_weights(build: Callable[[], Any], weights: Mapping[str, Tensor]) -> Any:
    """Build a torchtune decoder that holds the given tensors themselves, in their precision, under torchtune's names.

    `build` makes it on no device, since a copy would take gigabytes. Rotary tables are float32 whatever the weights
    are. Raises ValueError for names and shapes that are not the decoder's.
    """
    with torch.device("meta"):
        decoder = build()
    try:
        decoder.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(_one_line(error)) from error
    for module in decoder.modules():
        if hasattr(module, "rope_init"):
            module.rope_init()  # tables that no file holds
    return decoder


class EmbeddingWithMask(nn.Embedding):
    """A model's own embedding, and a row beside it for a mask whose id comes after all others.

    The row is a parameter of its own: it can be trained where the embedding stays, and a tied head does not have it.
    It begins as the mean of all rows.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        known, width = embedding.weight.shape
        super().__init__(known + 1, width, device="meta")
        self.weight = embedding.weight
        self.mask = nn.Parameter(embedding.weight.detach().mean(0))
        self.scale: Tensor | None = getattr(embedding, "embed_scale", None)  # Gemma's, of what is read

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed tokens (b, l): (b, l, h)."""
        known = len(self.weight)
        rows = F.embedding(tokens.clamp(max=known - 1), self.weight)
        rows = torch.where((tokens == known).unsqueeze(-1), self.mask.to(rows.dtype), rows)
        return rows if self.scale is None else rows * self.scale.to(rows.dtype)


def with_mask(decoder: Any) -> Any:
    """Give a decoder that nobody else holds yet a row for a mask, whose id is its number of ids."""
    decoder.tok_embeddings = EmbeddingWithMask(decoder.tok_embeddings)
    return decoder


def bidirectional(decoder: Any) -> Any:
    """Let every position of a decoder that nobody else holds yet see all others."""
    for layer in decoder.layers:
        layer.attn.is_causal = False
    return decoder


class _PaddedHead(Head):
    """A head of `out_features` columns whose weight has fewer rows: columns beyond them are -inf."""

    def forward(self, hidden: Tensor, columns: slice | None = None) -> Tensor:
        columns = columns or slice(0, self.out_features)
        logits = F.linear(hidden, self.weight[columns])
        return F.pad(logits, (0, columns.stop - columns.start - logits.shape[-1]), value=-torch.inf)

    def log_prob(
        self, hidden: Tensor, tokens: Tensor, excluded: int | None = None, expected: Tensor | None = None
    ) -> Tensor:
        known = len(self.weight)
        excluded = None if excluded is None or excluded >= known else excluded
        found = super().log_prob(hidden, tokens.clamp(max=known - 1), excluded, expected)
        return torch.where(tokens < known, found, -torch.inf)


def _head(decoder: Any, vocab_size: int | None) -> Head:
    """Build the vocabulary head over the decoder's own weight, even if that is its embedding, as wide as is asked."""
    weight = (decoder.output if isinstance(decoder.output, nn.Linear) else decoder.tok_embeddings).weight
    known, width = weight.shape
    wanted = max(known, vocab_size or 0)
    head = (Head if wanted == known else _PaddedHead)(width, wanted, bias=False, device="meta")
    head.weight = weight
    return head


def _widest(weights: Mapping[str, Tensor]) -> torch.dtype:
    """Find the type that holds every weight as it is."""
    return functools.reduce(torch.promote_types, (value.dtype for value in weights.values()))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
