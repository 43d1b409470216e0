"""Uniforms are those of Philox4x32-10, and a draw depends on its own coordinates alone.

Statistical tests have fixed seeds, and a false alarm rate of 1e-4 each for a seed chosen at random.
"""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from strategies import LARGEST, SMALLEST, seeds, words
from torch import Tensor

from edlm.process import noise
from edlm.process.noise import Stream, Words

# The vectors published with Random123 for philox4x32, 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
FALSE_ALARM = 1e-4


def from_hex(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


every_way = pytest.mark.parametrize("philox", [noise.in_numpy, noise.in_torch])


def encrypt(philox: Callable[..., Words], counter: list[int], key: list[int]) -> list[int]:
    return [int(word) for word in philox(Words(*map(torch.tensor, counter)), tuple(key))]


def philox_in_python(counter: list[int], key: list[int]) -> list[int]:
    a, b, c, d = counter
    for n in range(10):
        k = [(key[0] + n * 0x9E3779B9) % 2**32, (key[1] + n * 0xBB67AE85) % 2**32]
        (high_0, low_0), (high_1, low_1) = divmod(a * 0xD2511F53, 2**32), divmod(c * 0xCD9E8D57, 2**32)
        a, b, c, d = high_1 ^ b ^ k[0], low_1, high_0 ^ d ^ k[1], low_0
    return [a, b, c, d]


def table(seed: int = 3, b: int = 3, length: int = 4, count: int = 5) -> Tensor:
    return noise.uniforms(seed, torch.arange(b).unsqueeze(-1), 7, Stream.PROPOSAL, torch.arange(length), count)


# ---- Philox


@every_way
@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(philox, counter, key, answer):
    assert encrypt(philox, from_hex(counter), from_hex(key)) == from_hex(answer)


@every_way
@given(st.lists(words(), min_size=4, max_size=4), st.lists(words(), min_size=2, max_size=2))
def test_philox_equals_arbitrary_precision_arithmetic(philox, counter, key):
    assert encrypt(philox, counter, key) == philox_in_python(counter, key)


def test_philox_is_the_same_in_numpy_and_in_torch_for_tensors_of_any_layout():
    row, position = torch.arange(3).unsqueeze(-1) + 2**32 - 2, torch.arange(8)[::2]
    counter = Words(*torch.broadcast_tensors(row & 0xFFFFFFFF, position, torch.tensor(7), torch.tensor(2**32 - 1)))
    key = (torch.tensor(2**32 - 1), 0x9E3779B9)
    for here, there in zip(noise.in_numpy(counter, key), noise.in_torch(counter, key), strict=True):
        assert torch.equal(here, there)
        assert here.dtype == torch.int64


@given(seeds(), words(), words(), words(), st.sampled_from(list(Stream)))
def test_a_uniform_is_its_blocks_top_52_bits(seed, row, step, position, stream):
    draws = noise.uniforms(seed, torch.tensor(row), step, stream, position, count=4)
    expected = []
    for block in range(2):
        a, b, c, d = philox_in_python([position, row, step, block + stream * 2**24], [seed % 2**32, seed >> 32])
        expected += [((high * 2**32 + low) // 2**12 + 0.5) / 2**52 for high, low in ((a, b), (c, d))]
    assert draws.tolist() == expected


@pytest.mark.parametrize(("word", "uniform"), [(0, SMALLEST), (0xFFFFFFFF, LARGEST)])
def test_uniforms_stay_strictly_inside_the_unit_interval_at_both_bit_extremes(monkeypatch, word, uniform):
    monkeypatch.setattr(noise, "philox", lambda counter, key: Words(*[torch.full_like(counter.a, word)] * 4))
    assert table().unique().tolist() == [uniform]
    assert 0.0 < uniform < 1.0


# ---- A draw depends on its own coordinates alone


@given(seeds(), st.integers(0, 9), st.integers(0, 9))
def test_draw_j_does_not_depend_on_count(seed, short, more):
    assert torch.equal(table(seed, count=short), table(seed, count=short + more)[..., :short])


@given(seeds(), st.permutations(range(5)), st.integers(1, 5))
def test_a_row_does_not_depend_on_the_batch_around_it(seed, order, size):
    rows = torch.tensor(order[:size])
    alone = [noise.grid(seed, torch.tensor([r]), 2, Stream.REVEAL, 6)[0] for r in order[:size]]
    assert torch.equal(noise.grid(seed, rows, 2, Stream.REVEAL, 6), torch.stack(alone))


@given(seeds(), st.integers(1, 4), st.integers(1, 6))
def test_a_grid_is_the_uniforms_at_its_points(seed, b, length):
    grid = noise.grid(seed, torch.arange(b), 1, Stream.CORRUPTION, length)
    for i in range(b):
        for j in range(length):
            assert grid[i, j] == noise.uniforms(seed, torch.tensor(i), 1, Stream.CORRUPTION, j)[0]


@given(seeds(), words(), words())
def test_numbers_and_tensors_are_the_same_coordinates(seed, step, position):
    row = torch.tensor([0, 8])
    numbers = noise.uniforms(seed, row, step, Stream.TIME, position, count=3)
    tensors = noise.uniforms(*map(torch.tensor, (seed, [0, 8], step)), Stream.TIME, torch.tensor(position), count=3)
    assert torch.equal(numbers, tensors)


def test_any_other_seed_row_step_stream_or_position_gives_other_numbers():
    row, position = torch.arange(3).unsqueeze(-1), torch.arange(3)
    draws = [
        noise.uniforms(seed, row, step, stream, position, count=3)
        for seed in (0, 1, 2**32, 2**32 + 1, 2**62)  # seeds that differ in their high word alone are among them
        for step in (0, 1, 2)
        for stream in Stream
    ]
    numbers = torch.stack(draws).flatten()
    assert len(numbers.unique()) == len(numbers)


def test_the_layout_is_float64_and_broadcasts():
    draws = table()
    assert (draws.shape, draws.dtype) == ((3, 4, 5), torch.float64)
    assert noise.grid(0, torch.arange(2), 0, Stream.REVEAL, 7).shape == (2, 7)


@pytest.mark.parametrize(("compiling", "way"), [(False, "in_numpy"), (True, "in_torch")])
def test_a_graph_holds_what_is_made_of_tensors_and_numpy_is_for_the_host_alone(monkeypatch, compiling, way):
    called = []
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    for name in ("in_numpy", "in_torch"):
        monkeypatch.setattr(noise, name, lambda *_, name=name: called.append(name))
    noise.philox(Words(*torch.arange(4)), (1, 2))
    noise.philox(Words(*torch.arange(4, device="meta")), (1, 2))
    assert called == [way, "in_torch"]


# ---- Statistics


def ks_p_value(sample: Tensor) -> float:
    return stats.kstest(sample.numpy(), "uniform").pvalue


def test_uniforms_are_uniform_and_a_small_bias_would_be_seen():
    sample = noise.grid(11, torch.arange(256), 0, Stream.PROPOSAL, 256).flatten()
    assert ks_p_value(sample) > FALSE_ALARM
    assert ks_p_value(sample**1.03) < FALSE_ALARM


@pytest.mark.parametrize("neighbour", ["row", "position", "step", "seed", "stream", "draw"])
def test_neighbouring_coordinates_are_independent(neighbour):
    point = {"seed": 5, "row": torch.arange(64).unsqueeze(-1), "step": 0, "stream": Stream.REVEAL}
    point |= {"position": 2 * torch.arange(128), "count": 2}
    here = noise.uniforms(**point)
    if neighbour == "draw":
        here, there = here.unbind(-1)
    else:
        there = noise.uniforms(**(point | {neighbour: _next(point[neighbour])}))
    assert pair_p_value(here, there) > FALSE_ALARM
    assert pair_p_value(here, 0.95 * there + 0.05 * here) < FALSE_ALARM


def _next(value):
    return Stream(value + 1) if isinstance(value, Stream) else value + 1


def pair_p_value(x: Tensor, y: Tensor) -> float:
    cells = torch.bincount((8 * x).long().flatten() * 8 + (8 * y).long().flatten(), minlength=64)
    return stats.chisquare(cells.numpy()).pvalue


# ---- Orders of the training data


@given(st.integers(0, 2**31), st.integers(0, 5), st.integers(0, 50))
def test_a_permutation_holds_every_item_once(seed, epoch, size):
    assert noise.permutation(seed, epoch, size).sort().values.tolist() == list(range(size))


def test_every_order_is_equally_likely_and_epochs_differ():
    orders = [noise.permutation(seed, epoch, 3).tolist() for seed in range(200) for epoch in range(3)]
    counts = [orders.count(list(order)) for order in {tuple(o) for o in orders}]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > FALSE_ALARM
    assert all(a != b for a, b in pairwise(noise.permutation(0, epoch, 20).tolist() for epoch in range(5)))


# ---- Compilation


@pytest.mark.slow
def test_compiled_uniforms_equal_eager_ones_bit_for_bit():
    # Odd sizes leave loops that are not vectorised, where a signed overflow would go wrong.
    compiled = torch.compile(noise.uniforms, fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    for b, length, count in ((2, 3, 3), (64, 61, 3), (512, 7, 5)):
        row = torch.randint(2**32, (b, 1), generator=generator)
        position = torch.randint(2**32, (length,), generator=generator)
        for seed in (0, 2**63 - 1):
            arguments = (torch.tensor(seed), row, torch.tensor(2**32 - 1), Stream.PROPOSAL, position, count)
            assert torch.equal(compiled(*arguments), noise.uniforms(*arguments))
