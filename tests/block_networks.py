"""Small networks of blocks, and what they must compute: each block by itself, after clean ones, with a loop."""

import itertools
import math
from collections.abc import Callable

import torch
from builders import randomise
from torch import Tensor

from edlm.models import denoisers
from edlm.models.denoisers import SubsDenoiser
from edlm.nn.networks import Transformer
from edlm.process import schedules
from edlm.process.schedules import Schedule

MASK, LENGTH, SYMBOLS = 3, 4, 3
SIZES = {"vocab_size": 4, "max_length": LENGTH, "hidden_size": 16, "num_layers": 2, "num_heads": 2}


def network(block_size: int | None, seed: int = 0, **changes: object) -> Transformer:
    made = Transformer(**{**SIZES, "conditioning_size": 8, "block_size": block_size, **changes})
    return randomise(made, seed).double()


def denoiser(block_size: int | None, seed: int = 0, **changes: object) -> SubsDenoiser:
    return denoisers.subs(network(block_size, seed, **changes).eval(), MASK)


def every_text(length: int = LENGTH, symbols: int = SYMBOLS) -> Tensor:
    return torch.tensor(list(itertools.product(range(symbols), repeat=length)))


@torch.no_grad()
def log_prob(net: Transformer, x_t: Tensor) -> Tensor:
    """`log p_i` of one text (l,), whose first blocks have no mask: a pass over it alone, (l, v), the mask excluded."""
    logits = net.head(net(x_t.unsqueeze(0)))[0]
    return logits.index_fill(1, torch.tensor([MASK]), -torch.inf).log_softmax(-1)


def chance(n: int, m: int) -> float:
    """How much one set of m masks of n counts in the bound, for each mask: it is met on the way, and then one of m."""
    return 1 / math.comb(n, m) / m


def chance_by_time(schedule: Schedule, low: float, high: float, n: int, m: int) -> float:
    """The same of a time uniform in (low, high) with the weight of the NELBO, by the midpoint rule."""
    t = low + (high - low) * (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    alpha = schedule.alpha(t)
    return float((schedules.nelbo_weight(schedule, t) * (1 - alpha) ** m * alpha ** (n - m)).mean())


@torch.no_grad()
def exact_nelbo(net: Transformer, size: int, text: Tensor, chances: Callable[[int, int], float] = chance) -> float:
    """The NELBO of a text in nats: over its blocks and over every set of masks that a block can have on the way."""
    total = 0.0
    for start in range(0, len(text), size):
        end = min(start + size, len(text))
        n = end - start
        for m in range(1, n + 1):
            counts = chances(n, m)
            for masks in itertools.combinations(range(start, end), m):
                x_t = text[:end].clone()
                x_t[list(masks)] = MASK
                found = log_prob(net, x_t)
                total -= sum(float(found[i, text[i]]) for i in masks) * counts
    return total
