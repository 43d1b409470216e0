"""Decoders that `transformers` runs, read beside what was read before: the laws of our own trunk, windows included.

Each family is shifted after a bos or not. A window has two tokens and texts have four to eight, so windows matter.
"""

from functools import cache
from typing import Any

import hub_folders as hub
import pytest
import torch
from drafting import followed
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import all_sequences
from revealing import LENGTH, MASK, Step, fillings_of_every_set, steps

from edlm.contracts import ENERGY, Causal, Ordered
from edlm.likelihood import enumeration, exact
from edlm.models import chain_rule, denoisers
from edlm.models.denoisers import SubsDenoiser
from edlm.nn import pretrained
from edlm.nn.pretrained import VocabularyHead
from edlm.nn.pretrained_decoder import PretrainedDecoder
from edlm.samplers import corrections, plans
from edlm.samplers.sampler import Sampler

transformers = pytest.importorskip("transformers", minversion="5", reason="needs pip install 'edlm-torch[families]'")
WINDOW = {"sliding_window": 2}
KINDS: dict[str, dict[str, Any]] = {"llama": {}, "qwen3": {}, "gemma": {}, "gpt2": {}}
KINDS |= {"mistral": WINDOW, "gemma2": WINDOW, "gemma3_text": WINDOW}
WAYS = {"plain": {"shifted": False}, "after a bos": {"shifted": True, "bos_id": 1}}
SOME = ("llama", "gpt2", "mistral", "gemma3_text")  # rotary or learned positions; a window in every layer or in some
some_kinds = [pytest.param(kind, marks=[] if kind in SOME else [pytest.mark.slow]) for kind in KINDS]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_way = pytest.mark.parametrize("way", WAYS)


def decoder(
    kind: str, way: str = "plain", layers: int = 2, size: int = MASK + 1, both_ways: bool = True
) -> PretrainedDecoder:
    """A random model of a family. Its first layer has a window, if any has."""
    named = "n_layer" if kind == "gpt2" else "num_hidden_layers"
    rope = hub.ROPES["llama3"] if kind == "llama" else None
    model = hub.model(kind, transformers, rope, **{named: layers, "vocab_size": size}, **KINDS[kind])
    model.config._attn_implementation = "eager" if kind == "gemma2" else "sdpa"
    softcap = getattr(model.config, "final_logit_softcapping", None)
    body = pretrained.bidirectional(model.base_model) if both_ways else model.base_model
    how = WAYS[way]
    network = PretrainedDecoder(
        body, VocabularyHead(model.get_output_embeddings(), softcap), LENGTH, shifted=how["shifted"]
    )
    network.bos_id = how.get("bos_id")
    return network.eval().requires_grad_(False)


def denoiser(kind: str, way: str, layers: int = 2, size: int = MASK + 1) -> SubsDenoiser:
    return denoisers.subs(decoder(kind, way, layers, size), size - 1)


kept_decoder, kept_denoiser = cache(decoder), cache(denoiser)  # for properties: one network for all their examples


@every_kind
@every_way
def test_what_is_kept_changes_no_state(kind: str, way: str) -> None:
    """The states without it are of the masks that `transformers` makes itself, windows included."""
    network = decoder(kind, way)
    assert isinstance(network, Ordered)
    tokens = torch.randint(0, MASK, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    for positions in (None, torch.tensor([0, 5, 17])):
        states, context = network(tokens, None, positions, keep=True)
        torch.testing.assert_close(states, network(tokens, None, positions), atol=2e-5, rtol=1e-5)
        assert context.shape[:2] == (3, 2)
        assert context.shape[4] == LENGTH + (way == "after a bos")
    with pytest.raises(ValueError, match="length = 9 must be at most 8"):
        network(tokens.repeat(1, 2)[:, : LENGTH + 1], keep=True)


@every_kind
def test_a_mask_that_lets_all_through_keeps_the_windows(kind: str) -> None:
    network, tokens = decoder(kind), torch.arange(LENGTH).unsqueeze(0) % MASK
    everything = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    torch.testing.assert_close(network(tokens, attention=everything), network(tokens), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", some_kinds)
@every_way
@settings(max_examples=15)
@given(steps)
def test_of_one_layer_a_pass_over_the_new_tokens_is_as_good_as_a_pass_for_each(kind: str, way: str, step: Step) -> None:
    own = kept_denoiser(kind, way, 1)
    state = step.state(own)
    found, expected = (build(own)(state)[ENERGY] for build in (chain_rule.energy, chain_rule.exact_energy))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=5e-5)


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        *(pytest.param(kind, "after a bos", marks=[] if kind in SOME else [pytest.mark.slow]) for kind in KINDS),
        ("gemma3_text", "plain"),
    ],
)
def test_of_more_layers_it_is_a_law_whatever_the_weights(kind: str, way: str) -> None:
    """`sum p_theta(x^S | x_t) e^-E = 1` over all fillings of every set, and it is not the plain law."""
    own = denoiser(kind, way, 2, 4)
    sums, moved = fillings_of_every_set(own, chain_rule.energy(own))
    assert sums == pytest.approx([1.0] * len(sums), abs=1e-5)
    assert moved > 0.01


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        pytest.param("gemma3_text", "after a bos", marks=pytest.mark.slow),
        ("gpt2", "after a bos"),
        pytest.param("qwen3", "plain", marks=pytest.mark.slow),
    ],
)
def test_the_speculative_sampler_has_the_exact_law_that_enumeration_gives(kind: str, way: str) -> None:
    own, texts = denoiser(kind, way, 2, 4), all_sequences(3, 4)
    sampler = Sampler(own, plans.LeftToRight(2), correction=corrections.ChainRule(), selection="speculative")
    law = (-exact.of_sampler(sampler, texts).nats * 4).exp()
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(law, enumeration.law(sampler, 4).flatten(), atol=1e-6)


def test_one_new_token_asks_for_nothing() -> None:
    own = decoder("qwen3", "after a bos")
    tokens, where = torch.zeros(2, 3, 1, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64)
    assert own.in_order(tokens, where, MASK, own(tokens[:, 0], keep=True)[1]).shape == (2, 3, 0, 32)


@torch.no_grad()
@every_kind
@settings(max_examples=15)
@given(st.integers(0, 50), st.integers(1, 3), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 2))
def test_what_follows_is_the_pass_over_the_whole_text(
    kind: str, seed: int, b: int, parts: list[int], room: int
) -> None:
    """Rows that are at other places, windows that end in the cache, and a cache whose unread places hold anything."""
    network = kept_decoder(kind, both_ways=False)
    assert isinstance(network, Causal)
    network.max_length = 32
    torch.testing.assert_close(*followed(network, seed, b, parts, room, unread=1e3), atol=5e-5, rtol=1e-4)


@torch.no_grad()
@every_kind
def test_a_step_is_the_pass_at_that_place(kind: str) -> None:
    network, tokens = decoder(kind, both_ways=False), torch.arange(2 * LENGTH).view(2, LENGTH) % MASK
    cache, expected = network.empty_cache(2, LENGTH + 1), network(tokens)
    for place in range(LENGTH):
        hidden, own = network.step(tokens[:, place], torch.tensor(place), cache)
        torch.testing.assert_close(hidden, expected[:, place], atol=5e-5, rtol=1e-4)
        for kept, new in zip(cache, own, strict=True):
            kept[:, :, :, place] = new
