"""A causal network as its own drafter: masks behind a text, read together, are states of the tokens after the next.

A mask stands in the place of a token that is not known, and predicts the one after it, as every state of such a network
does. The last known token has the network's exact law of the next one, so n masks draft n tokens more. A mask reads
what is known and the masks beside it. What is known reads no mask, so the network's own law stays what it is.
"""

import torch
from torch import Tensor

from edlm.nn import attention, rope
from edlm.nn.attention import Cache
from edlm.nn.networks import Transformer


def beside_masks(
    network: Transformer, tokens: Tensor, mask_id: int, size: int, offset: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the states (b, l, h) of tokens (b, l), and those of masks in the place of all but the first.

    Masks come in runs of `size`, of which each reads the tokens before it; offset, int64 () in [0, size): how much
    shorter the first run is. One pass over both. The first row of the masks' states means nothing.
    """
    l = tokens.shape[1]
    x = network.embedding(torch.cat([torch.full_like(tokens, mask_id), tokens], dim=1))
    cos, sin = (table.repeat(2, 1) for table in rope.table(l, network.trunk.head_size, x))
    states, _ = network.trunk(x, (cos, sin), mask=attention.drafting(l, size, offset))
    return states[:, l:], states[:, :l]


def after(network: Transformer, tokens: Tensor, masks: int, mask_id: int, start: Tensor, cache: Cache) -> Tensor:
    """Compute the states (b, m + masks, h) of the next tokens (b, m) at `start` (b,), and of masks behind them.

    cache: as of `Transformer.follow`, which is not written to.
    """
    read = torch.cat([tokens, tokens.new_full((len(tokens), masks), mask_id)], dim=1)
    return network.follow(read, start, cache, together=masks)[0]
