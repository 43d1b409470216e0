"""Held-out text without a network: how often tokens occur, and how many characters a token stands for."""

import math

import pytest
import torch

from edlm.data import vocabulary
from edlm.data.pieces import Blocks
from edlm.training import report


def test_the_unigram_law_is_that_of_the_training_text() -> None:
    """Of a, b and the pad, each counted once more than it occurs: a 4 of 7, b 2, the pad 1; padding does not count."""
    words = vocabulary.characters("ab", specials=["pad"])
    train, test = torch.tensor([[0, 0], [0, 1], [2, 2]]), torch.tensor([[0, 1], [1, 2]])
    found = report.held_out(Blocks(train, train, test), words, 2)
    a, b = -math.log(4 / 7), -math.log(2 / 7)
    assert found.unigram.mean == pytest.approx((a + 2 * b) / 3)
    assert found.unigram.n == 2
    assert found.characters_per_token == 1.0


def test_characters_are_those_of_the_text_that_tokens_spell() -> None:
    words = vocabulary.train_bpe(["the cat and the hat"] * 4, size=262)
    blocks = torch.stack([words.encode("the cat and the hat")] * 2)
    found = report.held_out(Blocks(blocks, blocks, blocks), words, 9)
    assert found.characters_per_token == pytest.approx(19 / blocks.shape[1])
    assert found.characters_per_token > 1.0


def test_only_the_blocks_that_a_network_is_scored_on_are_measured() -> None:
    """Else bits per character divide by the length of other texts' tokens."""
    words = vocabulary.train_bpe(["the cat and the hat"] * 4, size=262)
    whole = words.encode("the cat and the hat")
    spelled_out = words.encode("zyxwvutsrqponmlkjihgfedcba")[: len(whole)]  # a token a letter
    test = torch.stack([whole, whole, spelled_out])
    for rows, blocks in ((2, 2), (3, 3), (9, 3)):
        found = report.held_out(Blocks(test, test, test), words, rows)
        assert found.characters_per_token == sum(map(len, words.decode(test[:rows]))) / test[:rows].numel()
        assert found.unigram.n == blocks


def test_a_block_of_padding_alone_counts_for_nothing() -> None:
    words = vocabulary.characters("ab", specials=["pad"])
    train, test = torch.tensor([[0, 0], [0, 1]]), torch.tensor([[0, 1], [2, 2], [1, 2]])
    found = report.held_out(Blocks(train, train, test), words, 3)
    a, b = -math.log(4 / 7), -math.log(2 / 7)
    assert found.unigram.mean == pytest.approx((a + b + 0.0 + b) / 4)  # the empty block stands as one token of no nats
    assert math.isfinite(found.unigram.standard_error)
