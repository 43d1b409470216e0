"""Blocks out of tokens on disk: every token in one, in order, the same as in memory, and what stands around it."""

import string
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.contracts import X_0
from edlm.data import pieces, vocabulary
from edlm.data.layouts import TokenRows, rows
from edlm.data.token_cache import Tokens, tokens

LETTERS = string.ascii_lowercase
TEXT8 = vocabulary.characters()
SPECIAL = vocabulary.characters(specials=["bos", "eos", "pad"])
DOCUMENTS = st.lists(st.text(LETTERS, min_size=1, max_size=12), min_size=1, max_size=8)


def on_disk(folder: Path, documents: list[str], ids: vocabulary.Vocabulary) -> Tokens:
    return tokens(folder, "train", lambda: iter(documents), ids)


@settings(deadline=None, max_examples=20)
@given(DOCUMENTS, st.integers(1, 9), st.booleans())
def test_packed_blocks_are_those_in_memory_and_the_last_one_reaches_back(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], length: int, special: bool
) -> None:
    ids = SPECIAL if special else TEXT8
    found = on_disk(tmp_path_factory.mktemp("cache"), documents, ids)
    total = len(found.stream)
    if total < length:
        return
    packed = rows(found, ids, length, "packed", False, "train")
    assert packed.shape == (len(packed), length) == (-(-total // length), length)
    assert torch.equal(packed[: total // length], pieces.blocks(documents, ids, length, "train"))
    assert torch.equal(packed[len(packed) - 1 :][0], found.at(torch.arange(total - length, total)))
    assert packed[:].dtype == torch.int64


@settings(deadline=None, max_examples=20)
@given(DOCUMENTS, st.integers(3, 9), st.booleans())
def test_padded_blocks_hold_every_document_alone_and_whole(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], length: int, wrapped: bool
) -> None:
    padded = rows(
        on_disk(tmp_path_factory.mktemp("cache"), documents, SPECIAL), SPECIAL, length, "padded", wrapped, "train"
    )
    room = length - 2 * wrapped
    expected = [text[i : i + room] for text in documents for i in range(0, len(text), room)]
    assert SPECIAL.decode(padded[:]) == expected
    shown = SPECIAL.decode(padded[:], show_specials=True)
    around = ("<bos>", "<eos>") if wrapped else ("", "")
    assert shown == [around[0] + text + around[1] + "<pad>" * (room - len(text)) for text in expected]


def test_wrapped_blocks_begin_with_bos_and_end_with_eos(tmp_path: Path) -> None:
    packed = rows(on_disk(tmp_path, ["abcd", "efg", "hi"], SPECIAL), SPECIAL, 6, "packed", True, "train")
    shown = SPECIAL.decode(packed[:], show_specials=True)
    assert shown == ["<bos>abcd<eos>", "<bos><eos>efg<eos>", "<bos>g<eos>hi<eos>"]


def test_a_split_shorter_than_a_block_is_padded_or_refused(tmp_path: Path) -> None:
    short = rows(on_disk(tmp_path / "a", ["abc"], SPECIAL), SPECIAL, 5, "packed", False, "valid")
    assert SPECIAL.decode(short[:], show_specials=True) == ["abc<pad><pad>"]
    with pytest.raises(ValueError, match="valid: 3 tokens are fewer than one block of length = 5, and there is no pad"):
        rows(on_disk(tmp_path / "b", ["abc"], TEXT8), TEXT8, 5, "packed", False, "valid")


def test_sentences_fill_blocks_of_1024_together(tmp_path: Path) -> None:
    """A block a sentence, or the whole blocks of every thousand sentences, would leave the Penn Treebank empty."""
    packed = rows(on_disk(tmp_path, ["a sentence of ptb"] * 70, TEXT8), TEXT8, 1024, "packed", False, "valid")
    assert packed.shape == (2, 1024)


def test_what_a_layout_needs_is_said(tmp_path: Path) -> None:
    found = on_disk(tmp_path, ["abc"], TEXT8)
    with pytest.raises(ValueError, match="wrapped = True needs a vocabulary with a bos and an eos id"):
        rows(found, TEXT8, 4, "packed", True, "train")
    with pytest.raises(ValueError, match="layout = 'padded' needs a vocabulary with a pad id"):
        rows(found, TEXT8, 4, "padded", False, "train")
    for length, wrapped, least in ((0, False, 1), (2, True, 3)):
        with pytest.raises(ValueError, match=f"length = {length} must be at least {least}"):
            rows(found, SPECIAL, length, "packed", wrapped, "train")


def test_blocks_are_indexed_as_a_tensor_is(tmp_path: Path) -> None:
    packed: TokenRows = rows(on_disk(tmp_path, [LETTERS], TEXT8), TEXT8, 4, "packed", False, "train")
    whole = packed[:]
    for index in (slice(2), slice(1, 99), slice(0, 5, 2), torch.tensor([3, 0, 3]), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(packed[index], whole[index])
    for number in (-1, len(packed)):
        with pytest.raises(IndexError, match=r"block numbers must lie in \[0, 7\)"):
            packed[torch.tensor([number])]


def test_batches_from_disk_are_those_from_memory(tmp_path: Path) -> None:
    documents = [LETTERS * 12]
    in_memory = pieces.blocks(documents, TEXT8, 8, "train")
    packed = rows(on_disk(tmp_path, documents, TEXT8), TEXT8, 8, "packed", False, "train")
    for step in range(12):
        one, other = (pieces.batch_at(b, step=step, batch_size=5, seed=1)[X_0] for b in (in_memory, packed))
        assert torch.equal(one, other)


def test_loading_a_batch_takes_little_time_whatever_the_size_of_the_set(tmp_path: Path) -> None:
    """32 blocks of 256 out of 100 million tokens: under 2 % of a step of `english27`, over a second on one core."""
    stream = torch.from_file(str(tmp_path / "tokens"), shared=True, size=100_000_000, dtype=torch.int16)
    packed = rows(Tokens(stream, torch.tensor([[0, len(stream)]])), TEXT8, 256, "packed", False, "train")
    pieces.batch_at(packed, step=0, batch_size=32, seed=0)  # the epoch's order, drawn once
    seconds = []
    for step in range(1, 21):
        started = time.perf_counter()
        pieces.batch_at(packed, step=step, batch_size=32, seed=0)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.02
