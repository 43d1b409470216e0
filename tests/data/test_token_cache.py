"""Tokens on disk are the tokens, whatever happened to the files in between."""

import json
import string
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edlm.data import token_cache, vocabulary
from edlm.data.token_cache import Tokens, tokens

LETTERS = string.ascii_lowercase
TEXT8 = vocabulary.characters()
WITH_EOS = vocabulary.characters(specials=["eos"])
SOME = ["ab", "", "c ", "def"]


def never() -> Iterator[str]:
    raise AssertionError("documents were read again")


def ids_of(found: Tokens) -> list[int]:
    return found.at(torch.arange(len(found.stream))).tolist()


def write(folder: Path, documents: list[str] = SOME, ids: vocabulary.Vocabulary = TEXT8) -> Tokens:
    return tokens(folder, "train", lambda: iter(documents), ids)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.text(LETTERS + " ", max_size=9), min_size=1, max_size=9).filter(any), st.booleans())
def test_the_stream_is_the_documents_with_separators_and_bounds_say_which_is_which(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], eos: bool
) -> None:
    ids = WITH_EOS if eos else TEXT8
    found = write(tmp_path_factory.mktemp("cache"), documents, ids)
    texts = [text for text in documents if text]
    spelled = [ids.decode(found.at(torch.arange(start, end))) for start, end in found.bounds.tolist()]
    assert spelled == texts
    gaps = found.bounds[1:, 0] - found.bounds[:-1, 1]
    assert gaps.tolist() == [int(eos or not text[-1].isspace()) for text in texts[:-1]]
    inside = torch.cat([torch.arange(start, end) for start, end in found.bounds.tolist()])
    between = [id_ for place, id_ in enumerate(ids_of(found)) if place not in inside]
    assert set(between) <= {ids.eos_id if eos else int(TEXT8.encode(" "))}
    assert found.bounds[0, 0] == 0
    assert found.bounds[-1, 1] == len(found.stream)


@pytest.mark.parametrize(("size", "dtype"), [(65_536, torch.int16), (65_537, torch.int32)])
def test_every_id_comes_back_in_two_bytes_or_four(tmp_path: Path, size: int, dtype: torch.dtype) -> None:
    chosen = [0, 1, 32_767, 32_768, 65_534, size - 2]
    ids: Any = SimpleNamespace(size=size, fingerprint="any", encode_pieces=lambda *_: iter([torch.tensor(chosen)]))
    found = write(tmp_path, ["a text"], ids)
    assert found.stream.dtype == dtype
    assert found.stream.element_size() * len(chosen) == (tmp_path / "train.tokens").stat().st_size
    assert ids_of(found) == chosen


def test_what_is_there_is_not_read_again_and_nothing_else_is_left(tmp_path: Path) -> None:
    first = ids_of(write(tmp_path / "a"))
    assert ids_of(tokens(tmp_path / "a", "train", never, TEXT8)) == first
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"train.json", "train.tokens", "train.bounds", ".train.lock"}


def cut_off(folder: Path) -> None:
    path = folder / "train.tokens"
    path.write_bytes(path.read_bytes()[:-1])


def turn_a_bit(folder: Path) -> None:
    path = folder / "train.tokens"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_bounds(folder: Path) -> None:
    path = folder / "train.bounds"
    path.write_bytes(path.read_bytes()[::-1])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_off, r"train\.tokens has 15 bytes and not 16; it is written anew"),
        (turn_a_bit, r"train\.tokens is not what was written; it is"),
        (damage_bounds, r"train\.bounds is not what was written; it is"),
        (lambda folder: (folder / "train.tokens").unlink(), "cannot be read .*; it is written anew"),
        (lambda folder: (folder / "train.json").write_text("{"), r"train\.json or what .* cannot be read"),
        (lambda folder: (folder / "train.json").write_text("{}"), r"train\.json or what .* cannot be read"),
    ],
)
def test_damage_is_said_and_mended(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    before = ids_of(write(tmp_path))
    damage(tmp_path)
    with pytest.warns(UserWarning, match=said):
        assert ids_of(write(tmp_path)) == before
    assert ids_of(tokens(tmp_path, "train", never, TEXT8)) == before


def test_another_vocabulary_is_noticed(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.warns(UserWarning, match="is of another version, machine or vocabulary"):
        assert ids_of(write(tmp_path, ids=WITH_EOS)).count(WITH_EOS.eos_id) == 2


def test_every_page_has_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "PAGE_BYTES", 6)
    write(tmp_path, ["abcdefgh"] * 2)
    [checksums, _] = json.loads((tmp_path / "train.json").read_text())["checksums"]
    assert len(checksums) == 6, "17 tokens of two bytes"
    content = (tmp_path / "train.tokens").read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 255
        (tmp_path / "train.tokens").write_bytes(changed)
        with pytest.warns(UserWarning, match="is not what was written"):
            write(tmp_path, ["abcdefgh"] * 2)


def test_what_fails_halfway_leaves_nothing_that_counts(tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        yield "ab" * (1 << 22)
        raise ValueError("a.txt: not UTF-8")

    with pytest.raises(ValueError, match="not UTF-8"):
        tokens(tmp_path, "train", broken, TEXT8)
    assert {path.name for path in tmp_path.iterdir()} == {".train.lock"}
    assert ids_of(write(tmp_path))


def test_texts_that_cannot_serve_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train: documents 0 to 1: character 'é' at offset 0"):
        write(tmp_path, ["ok", "é"])
    with pytest.raises(ValueError, match="train: there is no text"):
        write(tmp_path, ["", ""])
    with pytest.raises(ValueError, match="train: several documents need a vocabulary with an eos or a space"):
        write(tmp_path, ["ab", "ab"], vocabulary.characters("ab"))


@pytest.mark.parametrize(
    ("number", "characters", "said"),
    [
        (2, 99, "4 to 5"),
        (3, 99, "3 to 5"),
        (99, 4, "3 to 4"),
        (99, 6, "4 to 5"),
        (99, 7, "0 to 4"),
        (99, 1, "4 to 4"),
        (6, 10, "0 to 5"),
    ],
)
def test_a_batch_holds_so_many_documents_of_so_many_characters_at_most(
    number: int, characters: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of texts of 1, 1, 1, 3, 1 and 3 characters the fifth cannot be spelt; an empty one is none."""
    monkeypatch.setattr(token_cache, "_BATCH_DOCUMENTS", number)
    monkeypatch.setattr(token_cache, "_BATCH_CHARACTERS", characters)
    with pytest.raises(ValueError, match=f"^train: documents {said}: character 'é' at offset 0"):
        write(tmp_path, ["a", "", "b", "c", "def", "é", "ghi"])


def test_of_those_that_ask_at_once_one_writes_and_the_others_wait(tmp_path: Path) -> None:
    read = []

    def documents() -> Iterator[str]:
        read.append(None)
        for _ in range(20):
            time.sleep(0.01)
            yield LETTERS

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(tokens, tmp_path, "train", documents, TEXT8) for _ in range(3)]
        found = [ids_of(each.result()) for each in asked]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 27 * 20 - 1
    assert len(read) == 1


# ---- Giant documents


BPE = vocabulary.train_bpe(["the cat's hat, don't 123 go  there\n\nagain " * 3], 280)


@settings(deadline=None, max_examples=40)
@given(st.text(st.sampled_from("the cat's 12,.\n é  "), max_size=80), st.integers(1, 12))
def test_pieces_of_a_text_have_its_ids(text: str, size: int) -> None:
    pieces = list(BPE.encode_pieces(text, size))
    assert torch.equal(torch.cat(pieces), BPE.encode(text))


def test_pieces_go_to_the_tokenizer_together_for_it_to_share_among_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    encode = BPE.tokenizer.encode_batch_fast
    own = BPE.tokenizer
    spy = SimpleNamespace(
        to_str=own.to_str, get_vocab=own.get_vocab, get_added_tokens_decoder=own.get_added_tokens_decoder
    )
    spy.encode_batch_fast = lambda texts, **how: given.append(len(texts)) or encode(texts, **how)
    ids = vocabulary.Vocabulary(spy, BPE.size, BPE.mask_id)  # type: ignore[arg-type]
    text = "the cat " * 500
    assert torch.equal(torch.cat(list(ids.encode_pieces(text, 20))), BPE.encode(text))
    assert given[0] == 64
    assert max(given) == 64


def test_a_character_that_cannot_be_spelled_is_placed_in_the_whole_text() -> None:
    with pytest.raises(ValueError, match="'é' at offset 150 is not in the vocabulary"):
        list(TEXT8.encode_pieces("a" * 150 + "é" + "a" * 50, 4))


def test_a_long_text_is_cut_and_a_character_at_any_place() -> None:
    assert len(list(BPE.encode_pieces("the cat " * 20, 10))) > 10
    assert [len(piece) for piece in TEXT8.encode_pieces("abcdefg", 3)] == [3, 3, 1]


def test_a_tokenizer_that_may_merge_across_spaces_gets_the_whole_text() -> None:
    parts = json.loads(BPE.tokenizer.to_str())
    text = "the cat " * 20
    for change in (
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {**parts["pre_tokenizer"], "use_regex": False}},
        {"pre_tokenizer": {**parts["pre_tokenizer"], "add_prefix_space": True}},
        {"pre_tokenizer": None},
    ):
        other = Tokenizer.from_str(json.dumps({**parts, **change}))
        ids = vocabulary.Vocabulary(other, BPE.size, BPE.mask_id)
        assert len(list(ids.encode_pieces(text, 10))) == 1
