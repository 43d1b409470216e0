"""Given pieces come out around a gap as they went in, for every vocabulary, and a text without one is itself."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from edlm.data import continuation, vocabulary
from edlm.data.vocabulary import Vocabulary

WORDS = ["the", "ca", "sat", "t", "h", "e", "c", "a", "s", " "]
TEXTS = st.lists(st.sampled_from([*WORDS, "_"]), max_size=8).map("".join)


def sentence_piece(kind: str) -> Tokenizer:
    """A tokenizer of SentencePiece's kind: today's, by the way it prepends, or as Llama 2 has it."""
    symbols = ["▁", *(word.replace(" ", "▁") for word in ("the", "ca", "sat", " the", " ca", " sat"))]
    pieces = [(piece, -1.0 - 0.01 * rank) for rank, piece in enumerate([*symbols, *"thecas"]) if piece]
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *dict(pieces).items()], unk_id=0))
    if kind == "llama":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(parts)
    elif kind == "nested":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace()])
        tokenizer.decoder = decoders.Sequence([decoders.Metaspace()])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=kind)
    return tokenizer


def of(tokenizer: Tokenizer) -> Vocabulary:
    own = max(tokenizer.get_vocab().values()) + 1
    return Vocabulary(tokenizer, size=own + 1, mask_id=own)


def spaced_bytes() -> Tokenizer:
    tokenizer = Tokenizer.from_str(vocabulary.train_bpe(["the ca sat"] * 9, 260).tokenizer.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


KINDS = {
    "characters": vocabulary.characters(),
    "bytes": vocabulary.train_bpe(["the ca sat"] * 9, 260),
    "bytes with a space": of(spaced_bytes()),
    **{kind: of(sentence_piece(kind)) for kind in ("first", "always", "never", "llama", "nested")},
}


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(text=TEXTS)
def test_given_pieces_come_out_around_a_gap_as_they_are(kind: str, text: str) -> None:
    """What stands before the first gap is a text of its own, and as its tokenizer has it."""
    ids = KINDS[kind]
    tokens = ids.encode_prompt(text)
    first, *others = text.split("_")
    if not others:
        assert torch.equal(tokens, ids.encode(text))
    assert int((tokens == ids.mask_id).sum()) == len(others)
    assert ids.decode(tokens) == "_".join([ids.decode(ids.encode(first)), *others])


@pytest.mark.parametrize("kind", KINDS)
def test_a_filled_gap_is_the_text_it_spells(kind: str) -> None:
    ids = KINDS[kind]
    tokens = ids.encode_prompt("the ca_sat")
    fill = ids.encode("t", continued=True)
    at = tokens.tolist().index(ids.mask_id)
    filled = torch.cat([tokens[:at], fill, tokens[at + 1 :]])
    assert ids.decode(filled).strip() == "the catsat"


def of_words(kind: str) -> Tokenizer:
    """A tokenizer whose words are set apart by spaces that no token holds."""
    words = ["[UNK]", *WORDS[:-1], *(f"##{word}" for word in WORDS[:-1]), *(f"{word}</w>" for word in WORDS[:-1])]
    known = {word: number for number, word in enumerate(dict.fromkeys(words))}
    if kind == "word pieces":
        tokenizer = Tokenizer(models.WordPiece(known, unk_token="[UNK]"))
        tokenizer.decoder = decoders.WordPiece()
    elif kind == "ends of words":
        tokenizer = Tokenizer(models.BPE(known, [], unk_token="[UNK]", end_of_word_suffix="</w>"))
        tokenizer.decoder = decoders.BPEDecoder()
    else:
        tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize("kind", ["word pieces", "whole words"])
def test_a_word_that_gets_a_space_cannot_stand_right_behind_a_gap(kind: str) -> None:
    ids = of(of_words(kind))
    for prompt in ("the ca_sat", "_sat", "the _ca sat", "the_ _ca"):
        with pytest.raises(ValueError, match=r"puts a space before '(sat|ca sat|ca)', so it cannot stand right behind"):
            ids.encode_prompt(prompt)
    for prompt in ("the ca_ sat", "the _ sat", "the_", "_ the", "the"):
        tokens = ids.encode_prompt(prompt)
        filled = torch.where(tokens == ids.mask_id, ids.encode("the")[0], tokens)
        assert ids.decode(filled) == " ".join(prompt.replace("_", " the ").split())


def test_a_word_whose_end_is_marked_cannot_go_on_in_a_gap() -> None:
    ids = of(of_words("ends of words"))
    assert ids.decode(ids.encode_prompt("the sat")) == "the sat"
    for prompt in ("the ca_sat", "the ca_ sat", "the_"):
        with pytest.raises(ValueError, match="marks the end of a word"):
            ids.encode_prompt(prompt)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_pickles_with_its_treatment_of_special_tokens(kind: str) -> None:
    ids = KINDS[kind]
    for again in (pickle.loads(pickle.dumps(ids)), copy.deepcopy(ids)):
        assert again.fingerprint == ids.fingerprint
        assert torch.equal(again.encode("the ca"), ids.encode("the ca"))


def test_a_special_token_that_a_text_spells_stays_text_in_another_process(tmp_path: Path) -> None:
    tokenizer = sentence_piece("first")
    tokenizer.add_special_tokens(["<the>"])
    content = json.loads(tokenizer.to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    ids = vocabulary.from_tokenizer_json(tmp_path / "tokenizer.json", bos="<the>")
    with pytest.raises(ValueError, match="cannot be spelled by the tokenizer"):
        ids.encode("<the>")
    for again in (pickle.loads(pickle.dumps(ids)), ids._going_on):
        with pytest.raises(ValueError, match="cannot be spelled by the tokenizer"):
            again.encode("<the>")


@pytest.mark.parametrize(
    ("part", "kept"),
    [
        ({"type": "Strip", "strip_left": True, "strip_right": True}, {"strip_left": False, "strip_right": True}),
        ({"type": "Strip", "content": " ", "start": 1, "stop": 0}, {"content": " ", "start": 0, "stop": 0}),
        ({"type": "Metaspace", "prepend_scheme": "first"}, {"prepend_scheme": "never"}),
        ({"type": "ByteLevel", "add_prefix_space": True}, {"add_prefix_space": False}),
        ({"type": "Lowercase"}, {}),
    ],
)
def test_what_a_tokenizer_does_to_the_beginning_of_a_text_is_left_out_and_nothing_else(
    part: dict[str, object], kept: dict[str, object]
) -> None:
    """Of a normalizer that strips, and of a decoder that does."""
    assert continuation._without_space(part) == {"type": part["type"], **kept}
