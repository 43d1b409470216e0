import json
import os
import string
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edlm.data import corpora
from edlm.data.vocabulary import (
    MASK_SYMBOL,
    Vocabulary,
    byte_level_bpe,
    characters,
    from_tokenizer_json,
    load_vocabulary,
    train_bpe,
)

GPT2 = Path(os.environ.get("EDLM_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "gpt2"
TEXT8 = characters()
BYTES = train_bpe(corpora.embedded().train[-10:], size=400)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="session")
def gpt2() -> Vocabulary:
    if not GPT2.is_dir():
        pytest.skip(f"GPT-2's vocabulary is not at {GPT2}")
    return byte_level_bpe(GPT2 / "vocab.json", GPT2 / "merges.txt")


@pytest.fixture
def word_pieces(tmp_path: Path) -> Path:
    """A tokenizer with an unknown token, a special token, and a wish to truncate."""
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "a": 2, "b": 3, "[": 4, "]": 5, "CLS": 6}))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[CLS]"])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_text8_has_28_ids_with_the_mask_last():
    assert (TEXT8.size, TEXT8.mask_id) == (28, 27)
    assert (TEXT8.bos_id, TEXT8.eos_id, TEXT8.pad_id) == (None, None, None)
    assert TEXT8.encode("az b").tolist() == [0, 25, 26, 1]
    assert TEXT8.encode("az b").dtype == TEXT8.encode("").dtype == torch.int64


def test_specials_come_between_the_alphabet_and_the_mask():
    vocabulary = characters("ab", specials=["eos", "pad"])
    assert (vocabulary.eos_id, vocabulary.pad_id, vocabulary.mask_id, vocabulary.size) == (2, 3, 4, 5)


@settings(deadline=None)
@given(st.text(st.sampled_from(string.ascii_lowercase + " ")))
def test_text8_round_trips(text: str):
    assert TEXT8.decode(TEXT8.encode(text)) == text


@settings(deadline=None)
@given(st.data())
def test_any_alphabet_round_trips_with_and_without_the_library(data: st.DataObject):
    alphabet = "".join(data.draw(st.sets(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)))
    vocabulary = characters(alphabet)
    text = data.draw(st.text(st.sampled_from(alphabet)))
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert ids.tolist() == vocabulary.tokenizer.encode(text).ids
    assert vocabulary.tokenizer.decode(ids.tolist()) == text


@settings(deadline=None)
@given(ANY_TEXT)
def test_trained_bytes_round_trip_any_text(text: str):
    ids = BYTES.encode(text)
    assert BYTES.decode(ids) == text
    assert not {BYTES.mask_id, BYTES.eos_id} & set(ids.tolist())


@settings(deadline=None)
@given(text=ANY_TEXT)
def test_gpt2_round_trips_any_text(gpt2: Vocabulary, text: str):
    assert gpt2.decode(gpt2.encode(text)) == text


def test_gpt2_is_the_published_one(gpt2: Vocabulary):
    assert (gpt2.size, gpt2.mask_id, gpt2.bos_id, gpt2.eos_id) == (50258, 50257, 50256, 50256)
    assert gpt2.encode("Hello world").tolist() == [15496, 995]


def test_text_that_spells_a_special_token_stays_text(gpt2: Vocabulary):
    text = "a <|endoftext|> b"
    assert gpt2.eos_id not in gpt2.encode(text).tolist()
    assert gpt2.decode(gpt2.encode(text)) == text


@pytest.mark.parametrize("vocabulary", [TEXT8, BYTES])
@settings(deadline=None)
@given(documents=st.lists(st.text(st.sampled_from("abc "), max_size=9), max_size=5))
def test_documents_are_encoded_one_by_one(vocabulary: Vocabulary, documents: list[str]):
    rows = vocabulary.encode_documents(documents)
    assert [row.tolist() for row in rows] == [vocabulary.encode(text).tolist() for text in documents]


@pytest.mark.parametrize("vocabulary", [TEXT8, BYTES])
@settings(deadline=None)
@given(data=st.data())
def test_masks_are_shown_where_they_are(vocabulary: Vocabulary, data: st.DataObject):
    pieces = data.draw(st.lists(st.text(st.sampled_from("the ")), min_size=1, max_size=5))
    mask = torch.tensor([vocabulary.mask_id])
    ids = torch.cat([row for piece in pieces for row in (mask, vocabulary.encode(piece))][1:])
    assert vocabulary.decode(ids) == MASK_SYMBOL.join(pieces)


@settings(deadline=None)
@given(data=st.data())
def test_an_id_without_a_token_is_seen_in_the_text(data: st.DataObject):
    """A tokenizer that lacks an id, or ends below the network's last ones, as published ones do."""
    ids = data.draw(st.sets(st.integers(0, 30), min_size=1, max_size=10))
    letters = {id_: chr(ord("a") + number) for number, id_ in enumerate(sorted(ids))}
    tokenizer = Tokenizer(models.WordLevel({letter: id_ for id_, letter in letters.items()}))
    tokenizer.decoder = decoders.Fuse()
    vocabulary = Vocabulary(tokenizer, size=34, mask_id=33, bos_id=32)
    drawn = data.draw(st.lists(st.integers(0, 33), max_size=20))
    shown = {**dict.fromkeys(range(32), "\N{REPLACEMENT CHARACTER}"), **letters, 32: "", 33: MASK_SYMBOL}
    assert vocabulary.decode(torch.tensor(drawn, dtype=torch.int64)) == "".join(shown[id_] for id_ in drawn)


def test_a_word_keeps_its_space_behind_an_id_without_a_token():
    tokenizer = Tokenizer(models.WordLevel({"\N{LOWER ONE EIGHTH BLOCK}a": 0}))
    tokenizer.decoder = decoders.Metaspace()
    vocabulary = Vocabulary(tokenizer, size=3, mask_id=2)
    assert vocabulary.decode(torch.tensor([0, 1, 0])) == "a\N{REPLACEMENT CHARACTER} a"


def test_specials_are_dropped_unless_asked_for(gpt2: Vocabulary):
    vocabulary = characters("ab", specials=["bos", "eos", "pad"])
    ids = torch.tensor([[2, 0, 5, 1, 3], [2, 1, 3, 4, 4]])
    assert vocabulary.decode(ids) == ["a_b", "b"]
    assert vocabulary.decode(ids, show_specials=True) == ["<bos>a_b<eos>", "<bos>b<eos><pad><pad>"]
    assert gpt2.decode(torch.tensor([50256, 15496, 50257])) == "Hello_"
    assert gpt2.decode(torch.tensor([50256, 15496]), show_specials=True) == "<|endoftext|>Hello"


@pytest.mark.parametrize("symbol", ["A", "\n", "é", "漢", "🤗", "\ud800"])
def test_a_foreign_character_is_named_with_its_offset(symbol: str):
    with pytest.raises(ValueError, match="is not in the vocabulary") as error:
        TEXT8.encode(f"abc {symbol} def{symbol}")
    assert repr(symbol) in str(error.value)
    assert "offset 4 " in str(error.value)
    assert "abcdefghijklmnopqrstuvwxyz" in str(error.value)


def test_half_a_surrogate_pair_is_an_error_for_bytes_too():
    with pytest.raises(ValueError, match=r"'\\ud800' at offset 2"):
        BYTES.encode("ab\ud800")


@pytest.mark.parametrize("ids", [[28], [0, -1], [[0, 99]]])
def test_decoding_an_id_out_of_range_is_an_error(ids: list[int]):
    with pytest.raises(ValueError, match=r"must lie in \[0, 28\)"):
        TEXT8.decode(torch.tensor(ids))


def test_decoding_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"\(l,\) or \(b, l\), got \(1, 1, 1\)"):
        TEXT8.decode(torch.zeros(1, 1, 1, dtype=torch.int64))


@pytest.mark.parametrize("vocabulary", [TEXT8, BYTES, characters("ab\n", specials=["bos", "eos", "pad"])])
def test_saved_and_loaded_is_the_same(vocabulary: Vocabulary, tmp_path: Path):
    vocabulary.save(tmp_path / "new")
    loaded = load_vocabulary(tmp_path / "new")
    assert loaded.fingerprint == vocabulary.fingerprint
    assert (loaded.size, loaded.mask_id, loaded.eos_id) == (vocabulary.size, vocabulary.mask_id, vocabulary.eos_id)
    assert loaded.encode("ab").tolist() == vocabulary.encode("ab").tolist()
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["tokenizer.json", "vocabulary.json"]


def test_fingerprints_differ_when_ids_do():
    others = [characters("ab"), characters("ba"), characters("ab", ["eos"]), characters("ab", ["pad"]), BYTES, TEXT8]
    assert len({vocabulary.fingerprint for vocabulary in others}) == len(others)
    assert characters("ab").fingerprint == characters("ab").fingerprint


def test_loading_names_the_file_that_is_missing_or_broken(tmp_path: Path):
    with pytest.raises(ValueError, match=r"tokenizer\.json: expected a tokenizer\.json of"):
        load_vocabulary(tmp_path)
    TEXT8.save(tmp_path)
    content = json.loads((tmp_path / "vocabulary.json").read_text())
    for broken in ("", "[]", "{}", json.dumps(content | {"mask_id": 3}), json.dumps(content | {"other": 1})):
        (tmp_path / "vocabulary.json").write_text(broken)
        with pytest.raises(ValueError, match=r"vocabulary\.json: expected JSON with the keys size, mask_id"):
            load_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json: expected"):
        load_vocabulary(tmp_path)


@pytest.mark.parametrize(
    "ids", [{"mask_id": 26}, {"mask_id": 28}, {"mask_id": 27, "eos_id": 27}, {"mask_id": 27, "pad_id": 28}]
)
def test_special_ids_must_make_sense(ids: dict[str, int]):
    with pytest.raises(ValueError, match="must lie"):
        Vocabulary(TEXT8.tokenizer, size=28, **ids)


@pytest.mark.parametrize("alphabet", ["", "aba", "a\ud800"])
def test_an_alphabet_is_distinct_characters(alphabet: str):
    with pytest.raises(ValueError, match=r"must be distinct|surrogate"):
        characters(alphabet)


@pytest.mark.parametrize("specials", [["mask"], ["eos", "eos"]])
def test_specials_are_distinct_known_names(specials: list[str]):
    with pytest.raises(ValueError, match="must be distinct names out of bos, eos, pad"):
        characters("ab", specials)


def byte_files(folder: Path, merges: str) -> tuple[Path, Path]:
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the"]
    (folder / "vocab.json").write_text(json.dumps({symbol: index for index, symbol in enumerate(symbols)}))
    (folder / "merges.txt").write_text(merges)
    return folder / "vocab.json", folder / "merges.txt"


def test_byte_level_bpe_from_small_files(tmp_path: Path):
    vocabulary = byte_level_bpe(*byte_files(tmp_path, "#version: 0.2\nt h\nth e\n"))
    assert (vocabulary.size, vocabulary.mask_id, vocabulary.eos_id) == (259, 258, None)
    assert len(vocabulary.encode("the")) == 1
    assert vocabulary.decode(vocabulary.encode("the é\n")) == "the é\n"


def test_byte_level_bpe_has_an_id_for_padding_where_one_is_asked_for(tmp_path: Path):
    files = byte_files(tmp_path, "t h\nth e\n")
    padded, plain = byte_level_bpe(*files, pad=True), byte_level_bpe(*files)
    assert (padded.size, padded.pad_id, padded.mask_id) == (260, 258, 259)
    assert torch.equal(padded.encode("the hat"), plain.encode("the hat"))
    assert padded.decode(torch.tensor([*padded.encode("the"), 258, 259])) == "the" + MASK_SYMBOL


@pytest.mark.parametrize("merges", ["", "t h\nq q\n", "t\n"])
def test_broken_merges_are_named(tmp_path: Path, merges: str):
    with pytest.raises(ValueError, match=r"merges\.txt: expected one merge of two tokens"):
        byte_level_bpe(*byte_files(tmp_path, merges))


@pytest.mark.parametrize("content", ["", "{", '{"a": 0}', "7"])
def test_a_broken_vocabulary_file_is_named(tmp_path: Path, content: str):
    vocab, merges = byte_files(tmp_path, "t h\n")
    vocab.write_text(content)
    with pytest.raises(ValueError, match=r"vocab\.json: expected JSON from tokens to ids"):
        byte_level_bpe(vocab, merges)
    with pytest.raises(ValueError, match=r"nowhere\.json: expected .*No such file"):
        byte_level_bpe(tmp_path / "nowhere.json", merges)


def test_a_tokenizer_file_keeps_its_own_specials_apart_from_text(word_pieces: Path):
    vocabulary = from_tokenizer_json(word_pieces, bos="[CLS]")
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.mask_id, vocabulary.size) == (1, None, 7, 8)
    assert vocabulary.encode("a b [CLS] a").tolist() == [2, 3, 4, 6, 5, 2]  # neither cut, padded, nor special


def test_what_a_tokenizer_file_cannot_spell_is_named(word_pieces: Path):
    with pytest.raises(ValueError, match="'漢x' at offset 4 cannot be spelled by the tokenizer"):
        from_tokenizer_json(word_pieces).encode("a b 漢x")


def test_tokenizer_files_that_cannot_serve_are_errors(word_pieces: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"tokenizer\.json: eos = '</s>' is not a token"):
        from_tokenizer_json(word_pieces, eos="</s>")
    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "drops.json"))
    with pytest.raises(ValueError, match=r"drops\.json: drops characters it does not know"):
        from_tokenizer_json(tmp_path / "drops.json")


def test_training_is_deterministic_and_fills_the_size():
    documents = corpora.embedded().train[-10:]
    assert train_bpe(iter(documents), size=400).fingerprint == BYTES.fingerprint
    assert (BYTES.size, BYTES.mask_id, BYTES.eos_id, BYTES.bos_id) == (400, 399, 398, 398)
    assert len(BYTES.encode(documents[0])) < len(documents[0]) / 1.5


@pytest.mark.parametrize(("size", "message"), [(257, "must be at least 258"), (900, "must be at most 2")])
def test_a_size_that_cannot_be_had_is_an_error(size: int, message: str):
    with pytest.raises(ValueError, match=message):
        train_bpe(["the cat and the hat"], size=size)


def test_figures_are_per_character_or_per_token():
    assert characters().unit == "character"
    assert train_bpe(["some text to learn from, some text"], size=260).unit == "token"
