"""The rise and fall of the learning rate over a run."""

import math


def factor(step: int, steps: int, warmup: int, decay: str) -> float:
    """Give the share of the learning rate at a step: linear warm-up, then constant or a half cosine down to zero.

    >>> [factor(step, steps=8, warmup=4, decay="cosine") for step in (0, 3, 4, 6)]
    [0.25, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return (step + 1) / warmup
    if decay == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
