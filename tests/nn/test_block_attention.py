"""Block-causal networks: what each position reads, in one pass over the text and in one beside its clean copy."""

from functools import partial
from pathlib import Path

import pytest
import torch
from block_networks import LENGTH, MASK, denoiser, network
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edlm.data import vocabulary
from edlm.nn import folding
from edlm.nn.networks import JointNetwork, Transformer
from edlm.weights import checkpoints, exchange

close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-11)
sizes = pytest.mark.parametrize("size", [1, 2, 3, 4])


def tokens(length: int, b: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(3, (b, length), generator=torch.Generator().manual_seed(seed))


def changed(x: Tensor, place: int) -> Tensor:
    return x.index_copy(1, torch.tensor([place]), (x[:, place : place + 1] + 1) % 3)


def moved(before: Tensor, after: Tensor) -> list[int]:
    """The positions whose states have changed."""
    return (before - after).abs().amax((0, 2)).gt(1e-9).nonzero().flatten().tolist()


@sizes
@pytest.mark.parametrize("place", range(LENGTH))
def test_a_token_moves_its_own_block_and_later_ones_alone(size: int, place: int):
    net, x = network(size), tokens(LENGTH)
    assert moved(net(x), net(changed(x, place))) == list(range(place // size * size, LENGTH))


@sizes
@pytest.mark.parametrize("place", range(LENGTH))
def test_beside_a_clean_copy_masks_are_read_in_their_block_and_the_clean_copy_in_later_ones(size: int, place: int):
    net, x_t, x_0 = network(size), tokens(LENGTH, seed=1), tokens(LENGTH)
    start, end = place // size * size, min(place // size * size + size, LENGTH)
    before = net(x_t, clean=x_0)
    assert moved(before, net(changed(x_t, place), clean=x_0)) == list(range(start, end))
    assert moved(before, net(x_t, clean=changed(x_0, place))) == list(range(end, LENGTH))


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_all_blocks_at_once_are_each_block_alone_after_the_clean_text(size: int, length: int, seed: int):
    net = network(size, max_length=9)
    x_0 = tokens(length, seed=seed)
    x_t = torch.where(tokens(length, seed=seed + 100) == 0, MASK, x_0)
    apart = [
        net(torch.cat([x_0[:, :start], x_t[:, start : start + size]], dim=1))[:, start:]
        for start in range(0, length, size)
    ]
    close(net(x_t, clean=x_0), torch.cat(apart, dim=1))
    positions = torch.tensor([0, length - 1, length])
    close(net(x_t, positions=positions, clean=x_0), torch.cat(apart, dim=1).flatten(0, 1)[positions])


def test_one_block_is_the_network_without_blocks_bit_for_bit():
    x = tokens(LENGTH)
    assert torch.equal(network(LENGTH)(x), network(None)(x))
    assert torch.equal(network(LENGTH)(x, clean=tokens(LENGTH, seed=1)), network(None)(x))


def test_padding_is_read_in_neither_copy():
    net, x_0 = network(2, pad_id=2, max_length=6), tokens(6) % 2
    padded = x_0.clone()
    padded[:, 4:] = 2
    x_t = padded.clone()
    x_t[:, 1::2] = torch.where(padded[:, 1::2] == 2, 2, MASK)
    close(net(x_t, clean=padded)[:, :4], net(x_t[:, :4], clean=x_0[:, :4]))
    close(net(padded)[:, :4], net(x_0[:, :4]))


@sizes
def test_in_order_reads_no_later_block(size: int):
    """What is asked of new tokens is what the network says of a text that ends with their block."""
    net, x_t = network(size, max_length=8), torch.full((1, 8), MASK)
    x_t[0, :size] = tokens(size, b=1)[0]
    where = torch.arange(size, min(2 * size, 8)).unsqueeze(0)
    new = tokens(where.shape[1], b=1, seed=3).unsqueeze(1)
    _, whole = net(x_t, keep=True)
    _, short = net(x_t[:, : 2 * size], keep=True)
    close(net.in_order(new, where, MASK, whole), net.in_order(new, where, MASK, short))


def test_the_energy_of_a_joint_network_reads_no_later_block():
    torch.manual_seed(0)
    net = JointNetwork(4, 4, 16, 1, 2, 8, block_size=2).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, at = tokens(4, b=1), torch.tensor([1])
    states = net(x)
    later = states.clone()
    later[:, 2:] += torch.randn(2, 16).double()
    expected = torch.zeros(1, 16).double()
    close(net.scalars(states, expected, at), net.scalars(later, expected, at))
    assert not torch.allclose(net.scalars(states, expected, torch.tensor([3])), net.scalars(later, expected, at + 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 0}, "block_size = 0 must be a whole number of at least 1, or null"),
        ({"block_size": True}, "block_size = True must be a whole number"),
        ({"block_size": 2, "causal": True}, "block_size = 2 needs causal = false"),
    ],
)
def test_a_size_that_no_network_can_have_is_refused_by_its_name(changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        Transformer(4, 8, 16, 1, 2, **changes)


def test_a_denoiser_says_its_blocks_where_there_are_several():
    assert denoiser(2).block_size == 2
    assert denoiser(LENGTH).block_size is None
    assert denoiser(None).block_size is None


def test_a_network_of_blocks_is_saved_with_them_and_has_no_published_form(tmp_path: Path):
    ids = vocabulary.characters("abc")
    checkpoints.save_network(tmp_path / "own", network(2), ids, {})
    assert checkpoints.load_network(tmp_path / "own").block_size == 2
    with pytest.raises(ValueError, match=r"published networks read whole texts, and this one blocks"):
        exchange.export(tmp_path / "own", tmp_path / "published")


@sizes
def test_constant_conditioning_is_folded_with_the_blocks_kept(size: int):
    net, x_t = network(size), tokens(LENGTH, seed=1)
    folded = folding.fold_conditioning(net)
    close(folded(x_t, clean=tokens(LENGTH)), net(x_t, clean=tokens(LENGTH)))
    close(folded(x_t), net(x_t))
