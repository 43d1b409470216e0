"""Stateless, counter-based uniforms: Philox4x32-10 keyed by (seed, row, step, stream).

A draw depends on its own coordinates alone. So a sequence gets the same tokens whatever the batch size, the order of
rows, the device, or how many other numbers were drawn (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
3"). All arithmetic is on integers of 64 bits: exact on every device, inside `torch.compile` and in numpy.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# The published multipliers 0xD2511F53 and 0xCD9E8D57 less 2^32: a product with a word then fits into int64. Compilers
# take signed overflow as impossible, and a product that wraps comes out wrong of compiled code.
_MULTIPLIERS = (0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW_32 = 0xFFFFFFFF
_LOW, _HALF = np.uint64(_LOW_32), np.uint64(32)
_PAIR_OF_MULTIPLIERS = np.array([each + 2**32 for each in _MULTIPLIERS], np.uint64)
_INCREASED = np.arange(_ROUNDS, dtype=np.uint64)[:, None] * np.array(_KEY_INCREMENTS, np.uint64)
_LANES_PER_BLOCK = 2  # float64 uniforms in one Philox block of 128 bits
_BLOCKS_PER_STREAM = 1 << 24  # room for particles inside the word that names the stream


class Stream(IntEnum):
    """Purposes of a uniform. Two streams never share a number."""

    REVEAL = 0  # reveal times of the plan
    PROPOSAL = 1  # tokens of the candidates
    SELECTION = 2  # choice among particles
    TIME = 3  # training and evaluation times
    CORRUPTION = 4  # which tokens are masked in training
    NEGATIVES = 5  # noise samples of contrastive training
    ORDER = 6  # order of the training data
    EVALUATION = 7  # proposals drawn to evaluate a model
    AUTOREGRESSIVE = 8  # tokens of an autoregressive model
    ATTENTION = 9  # which later positions are read while attention opens


class Words(NamedTuple):
    """Four tensors of unsigned 32-bit integers held in int64."""

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor


def philox(counter: Words, key: tuple[Tensor | int, Tensor | int]) -> Words:
    """Encrypt a 128-bit counter with a 64-bit key by ten rounds of Philox4x32 (Salmon et al. 2011, section 3.4).

    The counter is four tensors that broadcast; the key has two words, numbers or tensors of no dimension.
    """
    at_hand = counter.a.device.type == "cpu" and not torch.compiler.is_compiling()
    return in_numpy(counter, key) if at_hand else in_torch(counter, key)


def in_numpy(counter: Words, key: tuple[Tensor | int, Tensor | int]) -> Words:
    """Encrypt as `in_torch` does, with fewer and cheaper calls."""
    a, b, c, d = (word.numpy().view(np.uint64) for word in counter)
    shape = np.broadcast(a, b, c, d).shape
    pair = (2, *(1,) * len(shape))
    multipliers = _PAIR_OF_MULTIPLIERS.reshape(pair)
    keys = ((np.array([int(word) for word in key], np.uint64) + _INCREASED) & _LOW).reshape(_ROUNDS, *pair)
    x, y = np.empty((2, *shape), np.uint64), np.empty((2, *shape), np.uint64)
    x[0], x[1] = a, c
    y[0], y[1] = b, d
    for n in range(_ROUNDS):
        product = (x * multipliers)[::-1]
        x, y = (product >> _HALF) ^ y ^ keys[n], product & _LOW
    first, second = torch.from_numpy(x.view(np.int64)), torch.from_numpy(y.view(np.int64))
    return Words(first[0], second[0], first[1], second[1])


def in_torch(counter: Words, key: tuple[Tensor | int, Tensor | int]) -> Words:
    """Encrypt on any device, and as a part of a graph."""
    a, b, c, d = counter
    key_0, key_1 = key
    for _ in range(_ROUNDS):
        product_0, product_1 = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            ((product_1 >> 32) + c) ^ b ^ key_0,  # + c puts the 2^32 back: the high word of the published product
            product_1 & _LOW_32,
            ((product_0 >> 32) + a) ^ d ^ key_1,
            product_0 & _LOW_32,
        )
        key_0, key_1 = (key_0 + _KEY_INCREMENTS[0]) & _LOW_32, (key_1 + _KEY_INCREMENTS[1]) & _LOW_32
    return Words(a, b, c, d)


def _to_uniform(high: Tensor, low: Tensor) -> Tensor:
    """Turn 52 of 64 random bits into a float64 strictly inside (0, 1), symmetric about one half."""
    bits = (high << 20) | (low >> 12)
    return (bits.to(torch.float64) + 0.5) * 2.0**-52


def uniforms(
    seed: Tensor | int, row: Tensor, step: Tensor | int, stream: Stream, position: Tensor | int = 0, count: int = 1
) -> Tensor:
    """Draw `count` uniforms for each coordinate: `u[..., j] = Philox(seed; position, row, step, stream, j)`.

    `row`, `step` and `position` broadcast against each other; each is an integer in [0, 2^32). Draw j does not
    depend on `count`. Returns float64 of shape (broadcast, count), strictly inside (0, 1).
    """
    first = int(stream) * _BLOCKS_PER_STREAM
    blocks = torch.arange(first, first - (-count // _LANES_PER_BLOCK), device=row.device)
    a, b, c = (word.unsqueeze(-1) for word in (_like(position, row), row, _like(step, row)))
    words = philox(Words(a, b, c, blocks), (seed & _LOW_32, (seed >> 32) & _LOW_32))
    lanes = _to_uniform(torch.stack([words.a, words.c], dim=-1), torch.stack([words.b, words.d], dim=-1))
    return lanes.flatten(-2)[..., :count]


def grid(seed: Tensor | int, row: Tensor, step: Tensor | int, stream: Stream, length: int) -> Tensor:
    """Draw one uniform per position: rows (b,) at one step to float64 (b, l), as `uniforms` gives them there."""
    position = torch.arange(length, device=row.device)
    return uniforms(seed, row.unsqueeze(-1), step, stream, position).squeeze(-1)


def permutation(seed: int, epoch: int, size: int) -> Tensor:
    """Draw a uniformly random order of `size` items, int64 (size,): a pure function of the seed and the epoch."""
    return uniforms(seed, torch.arange(size), epoch, Stream.ORDER).squeeze(-1).argsort()


def _like(value: Tensor | int, reference: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=torch.int64, device=reference.device)
