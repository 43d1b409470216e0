"""Masks behind a text of a causal network: what each reads, beside the text and beside a cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.nn import attention, drafting
from edlm.nn.attention import Cache
from edlm.nn.networks import Transformer

MASK, LENGTH = 4, 7


def network(conditioning_size: int = 0) -> Transformer:
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "conditioning_size": conditioning_size}
    made = Transformer(5, 12, causal=True, **sizes).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def texts(b: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 4, (b, LENGTH), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(1, 5), st.data(), st.sampled_from([0, 8]))
def test_a_mask_reads_the_text_before_its_run_and_its_run(seed, size, data, conditioning_size) -> None:
    """Against a pass by hand for every run: its prefix, read causally, and its masks, read together."""
    offset, made, tokens = data.draw(st.integers(0, size - 1)), network(conditioning_size), texts(2, seed)
    known, drafted = drafting.beside_masks(made, tokens, MASK, size, torch.tensor(offset))
    torch.testing.assert_close(known, made(tokens))
    first = 1
    while first < LENGTH:
        count = min(size - offset if first == 1 else size, LENGTH - first)
        read = torch.cat([tokens[:, :first], torch.full((2, count), MASK)], dim=1)
        seen = torch.ones(first + count, first + count, dtype=torch.bool).tril()
        seen[first:, first:] = True
        states, _ = made.trunk(made.embedding(read), mask=seen)
        torch.testing.assert_close(drafted[:, first : first + count], states[:, first:])
        first += count


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 3), st.data())
def test_beside_a_cache_it_is_the_same_pass(seed, masks, m, data) -> None:
    """Rows whose caches end at different places, and a mask that the cache holds beyond them."""
    made, tokens = network(), texts(2, seed)
    start = torch.tensor([data.draw(st.integers(0, LENGTH - m)) for _ in range(2)])
    _, kept = made.follow(tokens, torch.zeros(2, dtype=torch.int64), made.empty_cache(2, 0))
    cache = Cache(*(torch.cat([part, torch.randn_like(part)], dim=3) for part in kept))
    new = torch.stack([row[first : first + m] for row, first in zip(tokens, start, strict=True)])
    states = drafting.after(made, new, masks, MASK, start, cache)
    for row, first in enumerate(start.tolist()):
        read = torch.cat([tokens[row, : first + m], torch.full((masks,), MASK)])[None]
        seen = torch.ones(read.shape[1], read.shape[1], dtype=torch.bool).tril()
        seen[first + m :, first + m :] = True
        whole, _ = made.trunk(made.embedding(read), mask=seen)
        torch.testing.assert_close(states[row], whole[0, first:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_token_but_the_first_is_drafted_once_whatever_the_offset(size: int) -> None:
    for offset in range(size):
        seen = attention.drafting(LENGTH, size, torch.tensor(offset))
        own = seen[:LENGTH, :LENGTH]
        assert own.sum(1).max() <= size
        assert torch.equal(own, own.T)
        assert not seen[LENGTH:, :LENGTH].any(), "the text reads no mask"
        assert torch.equal(seen[1:LENGTH, LENGTH:].sum(1) + (own.tril(-1)[1:]).sum(1), torch.arange(1, LENGTH))
