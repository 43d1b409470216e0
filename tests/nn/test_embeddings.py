"""Embeddings that know fewer ids than are read: rows of zeros, a row for a mask, and heads beside them."""

import pytest
import torch
from torch import nn

from edlm.nn import decoders, known_ids
from edlm.nn.decoders import EmbeddingWithMask
from edlm.nn.known_ids import KnownEmbedding
from edlm.nn.networks import Transformer
from edlm.nn.pretrained import VocabularyHead

ROWS = nn.Embedding.from_pretrained(torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]]))
TOKENS = torch.tensor([[0, 2, 1], [1, 1, 0]])


def test_a_mask_begins_as_the_mean_of_all_rows_and_has_a_row_of_its_own() -> None:
    embedding = EmbeddingWithMask(ROWS)
    assert (embedding.num_embeddings, embedding.embedding_dim) == (4, 2)
    assert embedding.mask.tolist() == [3.0, 3.0]
    assert embedding(torch.tensor([[3, 1]])).tolist() == [[[3.0, 3.0], [3.0, 6.0]]]
    assert torch.equal(embedding(TOKENS), ROWS(TOKENS))
    assert embedding.weight is ROWS.weight
    assert embedding.scale is None


def test_a_scale_of_what_is_read_stays_where_the_embedding_had_one() -> None:
    scaled = nn.Embedding.from_pretrained(ROWS.weight.clone())
    scaled.embed_scale = torch.tensor(4.0)
    assert EmbeddingWithMask(scaled)(torch.tensor([[3, 0]])).tolist() == [[[12.0, 12.0], [4.0, 8.0]]]


@pytest.mark.parametrize(("bos_id", "first"), [(None, [0.0, 0.0]), (2, [5.0, 1.0]), (1, [0.0, 0.0])])
def test_ids_that_are_not_known_are_rows_of_zeros_but_for_the_one_in_front(
    bos_id: int | None, first: list[float]
) -> None:
    embedding = KnownEmbedding(ROWS, known=2, bos_id=bos_id)
    assert embedding(torch.tensor([[2, 0, 1, 7]])).tolist() == [[first, [1.0, 2.0], [3.0, 6.0], [0.0, 0.0]]]


@pytest.mark.parametrize(
    ("width", "known", "mask_id", "fits"),
    [(5, 5, 4, True), (5, 4, 4, True), (5, 4, 3, False), (5, 3, 4, False), (6, 5, 5, False), (4, 4, 3, False)],
)
def test_a_network_fits_whose_columns_are_all_known_but_the_mask(
    width: int, known: int, mask_id: int, fits: bool
) -> None:
    network = Transformer(5, 8, hidden_size=4, num_layers=1, num_heads=1, conditioning_size=0, causal=True)
    embedding, head = network.embedding, network.head
    assert known_ids.fits(network, width, known, mask_id) == fits
    made = known_ids.over(network, width, known, mask_id, bos_id=None)
    assert made is network
    assert (made.embedding is embedding, made.head is head) == (fits, fits)
    if not fits:
        logits = made.head(torch.randn(2, 4))
        assert logits.isfinite().tolist() == [[id_ < min(known, 5) for id_ in range(width)]] * 2
        zeros = made.embedding(torch.arange(5)).eq(0.0).all(-1)
        assert zeros.tolist() == [id_ >= known for id_ in range(5)]


def test_a_head_caps_its_logits_and_bars_what_it_may_never_draw() -> None:
    linear = nn.Linear(2, 3)
    x = 10.0 * torch.randn(4, 2)
    plain = VocabularyHead(linear)
    assert plain.is_plain
    assert torch.equal(plain(x), linear(x))
    for changed in (VocabularyHead(linear, 5.0), VocabularyHead(linear, never=[1]), VocabularyHead(linear, width=5)):
        assert not changed.is_plain
    found = VocabularyHead(linear, softcap=5.0, never=[1], width=5)(x)
    capped = 5.0 * torch.tanh(linear(x) / 5.0)
    torch.testing.assert_close(found[:, [0, 2]], capped[:, [0, 2]])
    assert (found[:, [1, 3, 4]] == -torch.inf).all()
    part = VocabularyHead(linear, softcap=5.0, never=[1], width=5)(x, slice(2, 4))
    torch.testing.assert_close(part, found[:, 2:4])


def test_a_padded_head_gives_no_chance_to_columns_that_its_weight_lacks() -> None:
    head = decoders._PaddedHead(2, 5, bias=False, device="meta")
    head.weight = nn.Parameter(torch.randn(3, 2))
    x, tokens = torch.randn(4, 2), torch.tensor([0, 2, 3, 4])
    logits = head(x)
    assert logits.isfinite().tolist() == [[True] * 3 + [False] * 2] * 4
    torch.testing.assert_close(head(x, slice(1, 4)), logits[:, 1:4])
    for excluded in (None, 1, 4):
        law = logits.clone()
        if excluded is not None:
            law[:, excluded] = -torch.inf
        wanted = law.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(head.log_prob(x, tokens, excluded), wanted)
