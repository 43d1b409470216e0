"""New tokens read after a cache of earlier ones: the states of the pass over the whole text."""

from functools import partial

import torch
from drafting import ar_decoder, ar_network, close, followed
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.nn.attention import Cache


@torch.no_grad()
@settings(max_examples=25)
@given(st.integers(0, 50), st.integers(1, 3), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 2))
def test_what_follows_is_the_pass_over_the_whole_text(seed: int, b: int, parts: list[int], room: int) -> None:
    """Rows that are at other places, and a cache in which what is not read is anything."""
    kinds = [
        *(partial(ar_network, num_heads=heads, max_length=24) for heads in (1, 2, 4)),
        partial(ar_decoder, length=18),
    ]
    found, whole = followed(kinds[seed % 4](seed % 5), seed, b, parts, room, unread=1e6)
    close(found, whole, atol=1e-5 if seed % 4 == 3 else 1e-9)  # norms are float32 there


def test_it_writes_into_nothing() -> None:
    network = ar_network()
    past = network.empty_cache(2, 3)
    before = [kept.clone() for kept in past]
    network.follow(torch.tensor([[0, 1], [1, 2]]), torch.tensor([1, 0]), past)
    assert all(torch.equal(kept, old) for kept, old in zip(past, before, strict=True))


@torch.no_grad()
def test_beyond_the_places_that_a_decoder_knows_it_reads_on() -> None:
    """One row may end before the others: what stands behind its end has no meaning, and is no error."""
    network = ar_decoder(length=4)
    tokens, start = torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.tensor([0, 3])
    first = network.follow(torch.tensor([[1, 1, 1], [2, 0, 1]]), torch.zeros_like(start), network.empty_cache(2, 8))[1]
    cache = Cache(*(torch.nn.functional.pad(kept, (0, 0, 0, 5)) for kept in first))
    hidden, _ = network.follow(tokens, start, cache)
    close(hidden[0], network(tokens[:1])[0], atol=1e-5)
    close(hidden[1, 0], network(torch.tensor([[2, 0, 1, 1]]))[0, 3], atol=1e-5)
