"""Models of `transformers` as networks: their body gives hidden states, a head of ours runs on rows that are wanted.

The caller that loads a model imports `transformers`; this module does not.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edlm.nn import attention
from edlm.nn.blocks import Head
from edlm.process import categorical

_FULL, _WINDOW = "full_attention", "sliding_attention"  # kinds of layers, as `transformers` calls them


class PretrainedNetwork(nn.Module):
    """A model of `transformers` as a `Network`: tokens (b, l) to hidden states (b, l, h), logits by `head` on request.

    body: what gives `last_hidden_state`. transform: what a masked language model does to a state before its vocabulary.
    frame: ids that are read in front of a text and behind it, and are no part of it. shifted, rows_at_once: as of
    `decoders.DecoderNetwork`, and so is `bos_id`, which may be set. block_size: positions of a block, of which each
    sees its own and those before it; None: what the body itself does. These models know no noise levels.
    """

    bos_id: int | None = None

    def __init__(
        self,
        body: nn.Module,
        head: Head,
        max_length: int,
        transform: nn.Module | None = None,
        frame: tuple[int, int] | None = None,
        shifted: bool = False,
        rows_at_once: int | None = None,
        block_size: int | None = None,
    ) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.transform = nn.Identity() if transform is None else transform
        self.max_length, self.frame, self.shifted = max_length, frame, shifted
        self.rows_at_once, self.block_size = rows_at_once, block_size

    @property
    def embedding(self) -> nn.Embedding:
        """The embedding of tokens, which knows how many ids can be read."""
        found: nn.Embedding = self.body.get_input_embeddings()  # type: ignore[operator]
        return found

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks of the body."""
        return next(each for each in self.body.modules() if isinstance(each, nn.ModuleList))

    @property
    def widths(self) -> tuple[int, int]:
        """Widths of a block's feed-forward layer and of all heads of its attention."""
        config: Any = self.body.config
        heads, size = config.num_attention_heads, config.hidden_size
        wide = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * size
        if getattr(config, "moe_intermediate_size", None) is not None:  # each of a token's experts has a copy of it
            wide = max(wide, config.num_experts_per_tok * (config.moe_intermediate_size + size))
        return wide, heads * (getattr(config, "head_dim", None) or size // heads)

    def forward(
        self,
        tokens: Tensor,
        sigma: Tensor | None = None,
        positions: Tensor | None = None,
        clean: Tensor | None = None,
        attention: Tensor | None = None,
    ) -> Tensor:
        """Run the body, and the transform where it is wanted. Raises ValueError for more than `max_length` tokens.

        clean: the text without masks, (b, l), that every block of the tokens reads in place of the blocks before it.
        attention: which positions a row reads, bool (l, l), a bos in front among them; None: all that the body allows.
        """
        if tokens.shape[1] > self.max_length:
            raise ValueError(f"length = {tokens.shape[1]} must be at most {self.max_length}")
        one_block = tokens.shape[1] <= (self.block_size or tokens.shape[1])
        texts = [tokens] if clean is None or one_block else [tokens, clean]
        run = partial(self._run, seen=attention) if len(texts) == 1 else self._beside_clean
        rows = self.rows_at_once or max(len(tokens), 1)
        hidden = torch.cat([run(*parts) for parts in zip(*(each.split(rows) for each in texts), strict=True)])
        transformed: Tensor = self.transform(hidden if positions is None else hidden.flatten(0, 1)[positions])
        return transformed

    def _read(self, tokens: Tensor) -> dict[str, Tensor]:
        """Give the body its tokens, or, where there may be some that it does not know, rows of zeros in their place."""
        known = self.embedding.num_embeddings
        if self.head.out_features <= known:
            return {"input_ids": tokens}
        rows = self.embedding(tokens.clamp(max=known - 1))
        return {"inputs_embeds": rows.masked_fill((tokens >= known).unsqueeze(-1), 0.0)}

    def _run(self, tokens: Tensor, seen: Tensor | None = None) -> Tensor:
        """Compute the states that predict the tokens (b, l); seen: bool (l, l), what each position sees at most."""
        if self.frame is not None:
            first, last = (torch.full_like(tokens[:, :1], id_) for id_ in self.frame)
            return self._hidden(torch.cat([first, tokens, last], dim=1))[:, 1:-1]
        read = self._opened(tokens)
        hidden = self._hidden(read, attention.both(seen, attention.in_blocks(read.shape[1], self.block_size, read)))
        return self._predicting(hidden, tokens.shape[1])

    def _predicting(self, hidden: Tensor, length: int) -> Tensor:
        """Take the states of what was read that predict the tokens of a text."""
        return _later(hidden) if self.shifted and self.bos_id is None else hidden[:, :length]

    def _beside_clean(self, tokens: Tensor, clean: Tensor) -> Tensor:
        """Compute the same in one pass over [x_t ; x_0], both at the positions of the text.

        A token is predicted from the block of the state before it where states are shifted. So the first token of a
        block, which belongs to the block before, is read from x_0; or its state, where it is the last one there.
        """
        assert self.block_size is not None
        noisy, clean = self._opened(tokens), self._opened(clean)
        l = noisy.shape[1]
        place = torch.arange(l, device=tokens.device)
        starts = (place % self.block_size == 0) & (place > 0)
        if self.bos_id is not None:
            noisy = torch.where(starts, clean, noisy)
        seen = attention.beside_clean(l, self.block_size, tokens)
        states, finished = self._hidden(torch.cat([noisy, clean], dim=1), seen, place.repeat(2)).chunk(2, dim=1)
        if self.shifted and self.bos_id is None:
            return torch.where(starts.unsqueeze(-1), _later(finished), _later(states))
        return states[:, : tokens.shape[1]]

    def _opened(self, tokens: Tensor) -> Tensor:
        return tokens if self.bos_id is None else F.pad(tokens, (1, 0), value=self.bos_id)

    def _hidden(self, tokens: Tensor, seen: Tensor | None = None, place: Tensor | None = None) -> Tensor:
        """Run the body. seen: bool (l, l), what each position sees; place: their positions, (l,)."""
        how: dict[str, Any] = {} if place is None else {"position_ids": place.unsqueeze(0)}
        if seen is not None:
            stand = torch.arange(tokens.shape[1], device=tokens.device) if place is None else place
            apart = stand.unsqueeze(-1) - stand
            how["attention_mask"] = self._masks(seen.expand(len(tokens), -1, -1), apart)
        hidden: Tensor = self.body(**self._read(tokens), use_cache=False, **how).last_hidden_state
        return hidden

    def _masks(self, seen: Tensor, apart: Tensor) -> Any:
        """Give what rows see, bool (b, n, m), as the body takes it, less what is outside of the window of a layer.

        apart: how far each row stands behind what it may see, (n, m) or (b, n, m).
        """
        config: Any = self.body.config
        window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
        if window is None or (kinds is not None and _WINDOW not in kinds):
            return self._mask(seen)
        near = apart.abs() <= window if self._looks_both_ways else apart < window
        narrow = self._mask(seen & near)
        return narrow if kinds is None else {_FULL: self._mask(seen), _WINDOW: narrow}

    def _mask(self, seen: Tensor) -> Tensor:
        """Give flags, or what plain products add to their logits, (b, 1, n, m)."""
        if self.body.config._attn_implementation != "eager":  # type: ignore[union-attr]
            return seen.unsqueeze(1)
        rows = self.embedding.weight
        return torch.zeros_like(seen, dtype=rows.dtype).masked_fill(~seen, torch.finfo(rows.dtype).min).unsqueeze(1)

    @property
    def _looks_both_ways(self) -> bool:
        """Tell whether `bidirectional` was called on the body: a window of w tokens then ends with the w-th."""
        return not getattr(self.body.config, "is_causal", True)


def bidirectional(body: nn.Module) -> nn.Module:
    """Let every position of a causal body see all others, or, where it has a window of w tokens, w on either side."""
    body.config.is_causal = False  # type: ignore[union-attr]
    for module in body.modules():
        if hasattr(module, "is_causal"):
            setattr(module, "is_causal", False)  # noqa: B010  to mypy every attribute is a module
    return body


def _later(hidden: Tensor) -> Tensor:
    """Put every state (b, l, h) one place later, where it predicts; the first stays, since nothing predicts there."""
    return torch.cat([hidden[:, :1], hidden[:, :-1]], dim=1)


class VocabularyHead(Head):
    """The head of a model, whose logits may be capped, with more or fewer columns than it has ids, some never drawn.

    softcap c: logits are `c tanh(x / c)`. never: ids of probability zero. width: the number of columns, of which those
    beyond its ids are -inf too; None: its ids.
    """

    barred: Tensor
    is_plain: bool

    def __init__(
        self, linear: nn.Linear, softcap: float | None = None, never: Sequence[int] = (), width: int | None = None
    ) -> None:
        known, size = linear.weight.shape
        super().__init__(size, width or known, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.softcap = softcap
        barred = torch.arange(self.out_features) >= known
        barred[list(never)] = True
        self.is_plain = softcap is None and self.out_features == known and True not in barred.tolist()
        self.register_buffer("barred", barred.to(linear.weight.device), persistent=False)

    def forward(self, hidden: Tensor, columns: slice | None = None) -> Tensor:
        """Compute the columns of these ids; None: all."""
        columns = columns or slice(0, self.out_features)
        logits = F.linear(hidden, self.weight[columns], None if self.bias is None else self.bias[columns])
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        if self.is_plain:
            return logits
        lacking = columns.stop - columns.start - logits.shape[-1]
        return F.pad(logits, (0, lacking)).masked_fill(self.barred[columns], -torch.inf)

    def log_prob(
        self, hidden: Tensor, tokens: Tensor, excluded: int | None = None, expected: Tensor | None = None
    ) -> Tensor:
        """Compute `log softmax(logits)[token]` of hidden states (n, h), nats (n,), in tiles that are made again."""
        if self.is_plain:
            return super().log_prob(hidden, tokens, excluded, expected)
        rows = categorical.rows_at_once(self.out_features, hidden.device)
        tiles = zip(hidden.split(rows), tokens.split(rows), strict=True)
        again = torch.is_grad_enabled() and hidden.requires_grad
        found = [
            checkpoint(self._tile, *tile, excluded, use_reentrant=False) if again else self._tile(*tile, excluded)
            for tile in tiles
        ]
        return torch.cat(found) if found else hidden.new_zeros(0)

    def _tile(self, hidden: Tensor, tokens: Tensor, excluded: int | None) -> Tensor:
        logits = self(hidden)
        if excluded is not None:
            logits = logits.index_fill(-1, torch.tensor([excluded], device=logits.device), -torch.inf)
        return categorical.token_log_prob(logits, tokens.unsqueeze(-1)).squeeze(-1)
