"""A torchtune decoder that looks both ways, read in order: new tokens one after the other, in one pass over them alone.

Two streams run through the blocks, as in `attention.two_streams`: rows that are new tokens, and rows that ask for one.
In a shifted decoder the row before a token predicts it. So the row that asks stands one place earlier, and holds what
stands there.
"""

from typing import Any

import torch
from torch import Tensor

from edlm.nn import decoder_steps
from edlm.nn.attention import Cache


def remembered(layers: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run the blocks on embedded texts (b, l, h): the states, and keys and values (b, layers, 2, kv heads, l, d)."""
    where, kept = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2]), []
    for layer in layers:
        kept.append(torch.stack(decoder_steps.keys_and_values(layer.attn, layer.sa_norm(x), where), dim=1))
        x = layer(x)
    return x, torch.stack(kept, dim=1)


def predicting(layers: Any, x: Tensor, at: tuple[Tensor, Tensor], context: Tensor) -> Tensor:
    """Run the blocks on rows (b, 2 n, h) of one candidate beside the context: the states (b, n, h) of those that ask.

    The first n rows are new tokens, the others ask for the token after each. at: where both stand in what is read,
    int64 (b, n) each, ascending, beyond the context where a row has fewer.
    """
    where, mask = torch.cat(at, dim=1), _seen(*at, context.shape[4], x)
    for layer, (keys, values) in zip(layers, (of.unbind(1) for of in context.unbind(1)), strict=True):
        x, _ = decoder_steps.rows(layer, x, where.clamp(max=context.shape[4] - 1), Cache(keys, values), mask)
    return x[:, at[0].shape[1] :]


def _seen(written: Tensor, asking: Tensor, length: int, like: Tensor) -> Tensor:
    """Build the mask (b, 1, 2 n, length + 2 n) of new tokens and of rows that ask, by where they stand.

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
    seen = torch.cat([of_text, of_new], dim=2).unsqueeze(1)
    return like.new_zeros(seen.shape).masked_fill(~seen, -torch.inf)


def _alone(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=torch.bool, device=like.device).expand(like.shape)
