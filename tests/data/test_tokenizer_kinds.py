"""What a tokenizer is, found from outside: its size, its unknown id, its table of characters, and where it cuts."""

import json

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from edlm.data import tokenizer_kinds

SYMBOLS = {"a": 0, "b": 3, " ": 1, "ü": 2}
CHARACTERS = tokenizer_kinds.of_characters(SYMBOLS)


def bytes_alone() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return tokenizer_kinds.byte_level(models.BPE({letter: id_ for id_, letter in enumerate(letters)}, []))


def unknowing(**model: object) -> Tokenizer:
    return Tokenizer(models.WordLevel({"a": 0, "?": 1}, **model))


def test_a_table_of_characters_gives_the_ids_of_the_tokenizer() -> None:
    table = tokenizer_kinds.character_ids(CHARACTERS)
    assert table is not None
    assert len(table) == ord("ü") + 2
    assert (table >= 0).sum() == len(SYMBOLS)
    text = "ab üba"
    assert tokenizer_kinds.look_up(text, table, CHARACTERS).tolist() == CHARACTERS.encode(text).ids
    assert tokenizer_kinds.look_up("", table, CHARACTERS).tolist() == []
    for wrong in ("c", "ý", "\U0001f600", "\ud800"):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            tokenizer_kinds.look_up(f"ab{wrong}", table, CHARACTERS)
        assert str(error.value) == f"character {wrong!r} at offset 2 is not in the vocabulary, only ' abü'"


@pytest.mark.parametrize(("letters", "more"), [(80, ""), (81, "...")])
def test_of_a_large_alphabet_a_part_is_shown(letters: int, more: str) -> None:
    tokenizer = tokenizer_kinds.of_characters({chr(256 + i): i for i in range(letters)})
    table = tokenizer_kinds.character_ids(tokenizer)
    shown = "".join(chr(256 + i) for i in range(80))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        tokenizer_kinds.look_up("a", table, tokenizer)  # type: ignore[arg-type]
    assert str(error.value).endswith(f"only {shown!r}{more}")


def test_other_tokenizers_have_no_such_table() -> None:
    changed = tokenizer_kinds.of_characters(SYMBOLS)
    changed.normalizer = normalizers.Lowercase()
    assert tokenizer_kinds.character_ids(changed) is None
    assert tokenizer_kinds.character_ids(tokenizer_kinds.of_characters({"a": 0, "bc": 1})) is None
    assert tokenizer_kinds.character_ids(bytes_alone()) is None


@pytest.mark.parametrize(
    ("tokenizer", "unknown", "says"),
    [
        (unknowing(unk_token="?"), 1, True),
        (unknowing(unk_token="lost"), None, True),
        (Tokenizer(models.Unigram([("a", -1.0), ("?", -2.0)], unk_id=1)), 1, True),
        (Tokenizer(models.Unigram([("a", -1.0)])), None, True),
        (bytes_alone(), None, True),
        (Tokenizer(models.BPE({"a": 0}, [])), None, False),
    ],
)
def test_the_unknown_id_and_whether_what_cannot_be_spelled_is_told(
    tokenizer: Tokenizer, unknown: int | None, says: bool
) -> None:
    assert tokenizer_kinds.unknown_id(tokenizer) == unknown
    assert tokenizer_kinds.says_what_it_cannot_spell(tokenizer) is says


def test_a_mask_is_above_all_ids_but_for_a_special_token_that_no_text_becomes() -> None:
    tokenizer = bytes_alone()
    assert tokenizer_kinds.own_size(tokenizer) == 256
    assert tokenizer_kinds.own_size(tokenizer_kinds.of_characters({"a": 7})) == 8
    tokenizer.add_special_tokens([AddedToken("<mask>")])
    tokenizer.add_tokens([AddedToken("<tag>")])
    assert tokenizer_kinds.least_mask(tokenizer, 256) == 258, "text may spell it"
    tokenizer.encode_special_tokens = True
    assert [tokenizer_kinds.least_mask(tokenizer, id_) for id_ in (0, 256, 257, 300)] == [258, 256, 258, 258]


def changed(**parts: object) -> Tokenizer:
    content = json.loads(bytes_alone().to_str())
    content["pre_tokenizer"] |= parts.pop("words", {})  # type: ignore[arg-type]
    return Tokenizer.from_str(json.dumps({**content, **parts}))


def test_words_are_those_of_byte_level_alone() -> None:
    spaced = bytes_alone()
    spaced.add_tokens([AddedToken("a b")])
    plain = bytes_alone()
    plain.add_tokens([AddedToken("ab")])
    assert tokenizer_kinds.cuts_at_spaces(bytes_alone())
    assert tokenizer_kinds.cuts_at_spaces(plain)
    for other in (
        spaced,
        CHARACTERS,
        Tokenizer(models.BPE({"a": 0}, [])),
        changed(words={"use_regex": False}),
        changed(words={"add_prefix_space": True}),
        changed(normalizer={"type": "Lowercase"}),
    ):
        assert not tokenizer_kinds.cuts_at_spaces(other)


def test_what_becomes_the_unknown_id_is_named_with_its_place() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    assert [each.tolist() for each in tokenizer_kinds.encode(tokenizer, ["a a", "a"], 1)] == [[0, 0], [0]]
    assert tokenizer_kinds.encode(tokenizer, ["a b"], None)[0].dtype == torch.int64
    with pytest.raises(ValueError, match=r"^'bc' at offset 2 cannot be spelled by the tokenizer$"):
        tokenizer_kinds.encode(tokenizer, ["a", "a bc a"], 1)
    with pytest.raises(
        ValueError, match=r"^character '\\ud800' at offset 1 is half of a surrogate pair, no character$"
    ):
        tokenizer_kinds.encode(tokenizer, ["a", "a\ud800"], 1)


def test_a_learned_tokenizer_has_every_byte_and_no_more_ids_than_asked_for() -> None:
    tokenizer = tokenizer_kinds.learned(["the the the then"] * 3, 258)
    assert tokenizer_kinds.own_size(tokenizer) == 258
    merged = tokenizer.get_vocab().keys() - set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(map(len, merged)) == [2, 3], "a pair, and a token of that pair"
    assert tokenizer.to_str() == tokenizer_kinds.learned(["the the the then"] * 3, 258).to_str()
