"""A decoder that looks both ways, read in order: new tokens one after the other, in one pass over them alone.

Two streams run through the blocks, as in `attention.two_streams`: rows that are new tokens, and rows that ask for one.
In a shifted decoder the row before a token predicts it. So the row that asks stands one place earlier, and holds what
stands there.
"""

from typing import Any

import torch
from torch import Tensor

from edlm.nn import attention, decoder_steps
from edlm.nn.attention import Cache


def remembered(layers: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run the blocks on embedded texts (b, l, h): the states, and keys and values (b, layers, 2, kv heads, l, d)."""
    where, kept = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2]), []
    for layer in layers:
        kept.append(torch.stack(decoder_steps.keys_and_values(layer.attn, layer.sa_norm(x), where), dim=1))
        x = layer(x)
    return x, torch.stack(kept, dim=1)


def places(where: Tensor, front: int, shifted: bool) -> tuple[Tensor, Tensor]:
    """Find where new tokens but the last stand, and where the rows that ask for the token after each: (b, n) each.

    where: the places of new tokens in the text, (b, n + 1). front: tokens that are read in front of the text.
    """
    return where[:, :-1] + front, where[:, 1:] + front - (1 if shifted else 0)


def read(candidate: Tensor, where: Tensor, mask_id: int, text: Tensor | None) -> Tensor:
    """List what both streams of a candidate (b, n + 1) read, (b, 2 n): new tokens, then what asks for the next.

    text: x_t or any candidate, (b, l): a shifted decoder asks by what stands before the token; None: by masks.
    """
    new, asked = candidate[:, :-1], torch.full_like(candidate[:, 1:], mask_id)
    if text is not None:
        before = (where[:, 1:] - 1).clamp(min=0)
        asked = torch.where(where[:, :-1] == before, new, text.gather(1, before.clamp(max=text.shape[1] - 1)))
    return torch.cat([new, asked], dim=1)


def predicting(layers: Any, x: Tensor, at: tuple[Tensor, Tensor], context: Tensor) -> Tensor:
    """Run the blocks on rows (b, 2 n, h) of one candidate beside the context: the states (b, n, h) of those that ask.

    The first n rows are new tokens, the others ask for the token after each. at: where both stand in what is read,
    int64 (b, n) each, ascending, beyond the context where a row has fewer.
    """
    where, mask = torch.cat(at, dim=1), attention.added(seen(*at, context.shape[4]), x)
    for layer, (keys, values) in zip(layers, (of.unbind(1) for of in context.unbind(1)), strict=True):
        x, _ = decoder_steps.rows(layer, x, where.clamp(max=context.shape[4] - 1), Cache(keys, values), mask)
    return x[:, at[0].shape[1] :]


def seen(written: Tensor, asking: Tensor, length: int) -> Tensor:
    """Mark what new tokens and rows that ask read, by where they stand: bool (b, 2 n, length + 2 n).

    New token j reads the new tokens up to itself. The row that asks for token j + 1 reads these too, and itself. Both
    read the context, but for places that a new token up to j has taken, and but for the place of the row itself.
    """
    n, places = written.shape[1], torch.arange(length, device=written.device)
    up_to = torch.ones(n, n, dtype=torch.bool, device=written.device).tril()
    taken = written.unsqueeze(-1) == places  # (b, n, length)
    free = taken.cumsum(1) == 0
    own = asking.unsqueeze(-1) == places
    of_text = torch.cat([free, free & ~own], dim=1)
    nowhere = torch.zeros_like(up_to)
    instead = up_to & (written.unsqueeze(1) != asking.unsqueeze(-1))  # else the row that asks is that token itself
    of_written, of_asking = torch.cat([up_to, nowhere], dim=1), torch.cat([instead, _alone(instead)], dim=2)
    of_new = torch.cat([of_written.expand(len(written), -1, -1), of_asking], dim=1)
    return torch.cat([of_text, of_new], dim=2)


def _alone(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=torch.bool, device=like.device).expand(like.shape)
