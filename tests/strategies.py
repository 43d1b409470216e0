"""Hypothesis strategies shared by the tests: small shapes, and the values at which sampling code breaks."""

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import random_joint
from torch import Tensor

from edlm.process import schedules
from edlm.process.schedules import Schedule

SMALLEST, LARGEST = 2.0**-53, 1.0 - 2.0**-53  # the extreme uniforms that `noise` can give
_EDGES = (SMALLEST, LARGEST, 0.25, 0.5, 0.75)
_ELEMENTWISE = 48  # entries up to which a tensor is drawn one by one, and so shrinks one by one


# ---- Numbers


def seeds() -> st.SearchStrategy[int]:
    """A seed of the library: any 64 bits that an int64 tensor holds."""
    return st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**63 - 1]) | st.integers(0, 2**63 - 1)


def words() -> st.SearchStrategy[int]:
    """An unsigned 32-bit integer."""
    return st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)


def unit_floats() -> st.SearchStrategy[float]:
    """One uniform strictly inside (0, 1)."""
    return st.sampled_from(_EDGES) | st.floats(SMALLEST, LARGEST)


def uniforms(*shape: int) -> st.SearchStrategy[Tensor]:
    """Uniforms, float64, some of them at the edges of (0, 1) or equal to each other."""
    seeded = _generators().map(partial(_seeded_uniforms, shape))
    return _elementwise(shape, unit_floats()) | seeded if math.prod(shape) <= _ELEMENTWISE else seeded


def distinct_uniforms(b: int, length: int) -> st.SearchStrategy[Tensor]:
    """Uniforms (b, l) no two of which are closer than 1 / (b l): the midpoints of b l strata in any order."""
    count = b * length
    return _generators().map(lambda g: ((torch.randperm(count, generator=g) + 0.5) / count).double().view(b, length))


def energies(*shape: int, low: float = -50.0, high: float = 50.0) -> st.SearchStrategy[Tensor]:
    """Energies in nats, float64: ordinary, equal, huge, and infinite (a weight of zero)."""
    special = st.sampled_from([0.0, 1.0, 1e3, -1e3, math.inf])
    return _elementwise(shape, special | st.floats(low, high))


def finite_energies(*shape: int, bound: float = 50.0) -> st.SearchStrategy[Tensor]:
    """Energies in nats within +-bound, float64."""
    return _elementwise(shape, st.floats(-bound, bound))


# ---- Laws over tokens


def vocabulary_sizes() -> st.SearchStrategy[int]:
    """Sizes of which some fill one block of the inverse CDF, some several and some a part of the last."""
    return st.sampled_from([1, 2, 3, 28, 255, 256, 257, 511, 512, 513, 1000])


@st.composite
def logits(draw: st.DrawFn, n: int, v: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits (n, v): flat, ordinary, peaked or 1e4 in size; single ones, whole columns or all but one at -inf."""
    generator = draw(_generators())
    scale = draw(st.sampled_from([0.0, 1.0, 5.0, 1e4]))
    values = (scale * torch.randn(n, v, generator=generator, dtype=torch.float64)).to(dtype)
    share = draw(st.sampled_from([0.0, 0.1, 0.9, 1.0]))
    by_column = draw(st.booleans())
    shut = torch.rand(1 if by_column else n, v, generator=generator) < share
    shut[torch.arange(len(shut)), torch.randint(v, (len(shut),), generator=generator)] = False  # one stays open
    return values.masked_fill(shut, -torch.inf)


@st.composite
def small_laws(draw: st.DrawFn, max_symbols: int = 3, max_length: int = 3) -> Tensor:
    """A joint law over sequences, as in `oracles`."""
    symbols, length = draw(st.integers(2, max_symbols)), draw(st.integers(1, max_length))
    return random_joint(draw(st.integers(0, 1000)), symbols, length, draw(st.sampled_from([0.5, 1.0, 3.0])))


# ---- Tokens


class Batch(NamedTuple):
    """Data x_0 (b, l), the same with masks x_t (b, l), and where they are, bool (b, l)."""

    x_0: Tensor
    x_t: Tensor
    masked: Tensor
    mask_id: int
    vocab_size: int


def masks(b: int, length: int) -> st.SearchStrategy[Tensor]:
    """Which positions are masked, bool (b, l): any, none or all of them."""
    return _elementwise((b, length), st.booleans(), np.bool_) | st.booleans().map(partial(torch.full, (b, length)))


@st.composite
def batches(
    draw: st.DrawFn, max_rows: int = 4, max_length: int = 8, vocab_size: int | None = None, mask_id: int | None = None
) -> Batch:
    """Rows of tokens and their masked forms; the mask may be any id of the vocabulary unless it is given."""
    b, length = draw(st.integers(1, max_rows)), draw(st.integers(1, max_length))
    v = draw(st.integers(2, 6)) if vocab_size is None else vocab_size
    mask_id = draw(st.integers(0, v - 1)) if mask_id is None else mask_id
    tokens = torch.randint(v - 1, (b, length), generator=draw(_generators()))
    x_0 = tokens + (tokens >= mask_id)
    masked = draw(masks(b, length))
    return Batch(x_0, torch.where(masked, mask_id, x_0), masked, mask_id, v)


# ---- Schedules and grids


def noise_schedules(exact: bool = False) -> st.SearchStrategy[Schedule]:
    """Every kind of schedule; `exact` ones run from alpha = 1 to 0."""
    eps = st.just(0.0) if exact else st.sampled_from([0.0, 1e-3, 0.1])
    families = [st.builds(family, eps) for family in (schedules.log_linear, schedules.cosine, schedules.cosine_squared)]
    families.append(st.builds(schedules.polynomial, st.sampled_from([1.0, 1.5, 2.0, 3.0])))
    if not exact:
        families.append(st.builds(schedules.linear, st.sampled_from([0.0, 1e-3]), st.sampled_from([1.0, 7.0])))
        families.append(st.builds(schedules.geometric, st.sampled_from([1e-4, 1e-2]), st.sampled_from([2.0, 20.0])))
    return st.one_of(families)


def step_grids(max_steps: int = 12) -> st.SearchStrategy[Tensor]:
    """Times (T + 1,) that fall from 1 to 0: equal steps, the cosine's, or any."""
    inner = st.lists(st.integers(1, 999), max_size=max_steps - 1, unique=True).map(lambda n: sorted(n, reverse=True))
    irregular = inner.map(lambda n: torch.tensor([1000, *n, 0], dtype=torch.float64) / 1000)
    regular = [st.builds(grid, st.integers(1, max_steps)) for grid in (schedules.uniform_grid, schedules.cosine_grid)]
    return st.one_of(*regular, irregular)


# ---- Inside


def _generators() -> st.SearchStrategy[torch.Generator]:
    return st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))


def _elementwise(
    shape: tuple[int, ...], elements: st.SearchStrategy, dtype: type[np.generic] = np.float64
) -> st.SearchStrategy[Tensor]:
    # Without `fill` most entries would be equal, which hides mixed-up rows and positions.
    return arrays(dtype, shape, elements=elements, fill=st.nothing()).map(torch.from_numpy)


def _seeded_uniforms(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    values = torch.rand(shape, generator=generator, dtype=torch.float64).clamp(SMALLEST, LARGEST)
    edges = torch.tensor(_EDGES, dtype=torch.float64)[torch.randint(len(_EDGES), shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < 1 / 8, edges, values)
