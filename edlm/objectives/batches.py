"""Batches that training pipelines read: texts with the keys from which their noise follows."""

import torch
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts

HELD_OUT_STEP = (1 << 32) - 1  # the noise of evaluation is that of a step no training reaches


def training_batch(
    x_0: Tensor, seed: int, row: Tensor, step: int, num_rows: int, num_tokens: int | None = None
) -> TensorDict:
    """Build what every pipeline of `edlm.objectives` reads: `{x_0, seed, row, step, num_rows, num_tokens}`.

    x_0: tokens (b, l). seed, row, step: the keys of the noise; row holds the numbers of the texts in the whole batch
    (b,). num_rows, num_tokens: of the whole batch, of which these rows may be a part, so that the parts of a batch have
    the losses of the whole; num_tokens leaves padding out, and None says that there is none.

    >>> texts = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 1, 0]])
    >>> part = training_batch(texts[1:], seed=7, row=torch.tensor([1, 2]), step=0, num_rows=3)
    >>> part["row"].tolist(), int(part["num_tokens"])
    ([1, 2], 9)
    """
    count = num_rows * x_0.shape[1] if num_tokens is None else num_tokens
    keys = {contracts.SEED: seed, contracts.STEP: step, contracts.NUM_ROWS: num_rows, contracts.NUM_TOKENS: count}
    scalars = {name: torch.tensor(value, device=x_0.device) for name, value in keys.items()}
    return TensorDict({contracts.X_0: x_0, contracts.ROW: row, **scalars})
