"""Tokenizers of GGUF files by their keys: how words are cut, which ids are special, and lists that are none."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from edlm.weights import gguf_tokens

LETTERS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|end|>", "<tag>"]
FILE = Path("a.gguf")


def keys(words: str = "gpt-2", **changed: Any) -> dict[str, Any]:
    found = {
        **{"model": "gpt2", "pre": words, "tokens": LETTERS, "merges": []},
        **{"token_type": [1] * (len(LETTERS) - 2) + [3, 4], **changed},
    }
    return {f"tokenizer.ggml.{name}": value for name, value in found.items() if value is not ...}


def pieces(words: str, text: str) -> list[str]:
    tokenizer = gguf_tokens.build(FILE, keys(words), len(LETTERS))
    return [text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


TEXT = "it's 1234 a_b !\n x  y"


@pytest.mark.parametrize(
    ("words", "cut"),
    [
        ("gpt-2", ["it", "'s", " 1234", " a", "_", "b", " !", "\n", " x", " ", " y"]),
        ("smollm", ["it", "'s", " ", "1", "2", "3", "4", " a", "_", "b", " !", "\n", " x", " ", " y"]),
        ("qwen2", ["it", "'s", " ", "1", "2", "3", "4", " a", "_b", " !\n", " x", " ", " y"]),
        ("llama-bpe", ["it", "'s", " ", "123", "4", " a", "_b", " !\n", " x", " ", " y"]),
    ],
)
def test_words_are_cut_as_the_file_says(words: str, cut: list[str]) -> None:
    assert pieces(words, TEXT) == cut


def test_tokens_of_control_are_special_and_those_of_a_user_are_not() -> None:
    tokenizer = gguf_tokens.build(FILE, keys(), len(LETTERS))
    added = tokenizer.get_added_tokens_decoder()
    assert {token.content: token.special for token in added.values()} == {"<|end|>": True, "<tag>": False}
    assert tokenizer.get_vocab() == {token: id_ for id_, token in enumerate(LETTERS)}
    assert tokenizer.decode(tokenizer.encode("a <tag>ü").ids) == "a <tag>ü"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model = 'llama' must be 'gpt2', byte-level pairs"),
        ({"model": ...}, "tokenizer.ggml.model = None must be 'gpt2', byte-level pairs"),
        ({"tokens": "abc"}, "tokenizer.ggml.tokens must be a list of texts"),
        ({"tokens": [1, 2]}, "tokenizer.ggml.tokens must be a list of texts"),
        ({"tokens": ["a", 2]}, "tokenizer.ggml.tokens must be a list of texts"),
        ({"merges": ...}, "tokenizer.ggml.merges must be a list of texts"),
        ({"token_type": ["1"]}, "tokenizer.ggml.token_type must be a list of types"),
        ({"token_type": [1]}, "258 tokens of 1 types do not fit a network of 258 ids"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "1 tokens of 2 types do not fit a network of 258 ids"),
    ],
)
def test_keys_that_make_no_tokenizer_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        gguf_tokens.build(FILE, keys(**changed), len(LETTERS))
    assert str(error.value) == f"a.gguf: {said}"


def test_an_unknown_cut_and_merges_of_unknown_tokens_are_named() -> None:
    with pytest.raises(ValueError, match=r"^a\.gguf: tokenizer\.ggml\.pre = 'other' must be one of .*qwen2.*smollm$"):
        gguf_tokens.build(FILE, keys("other"), len(LETTERS))
    with pytest.raises(ValueError, match=r"^a\.gguf: tokenizer\.ggml\.merges: "):
        gguf_tokens.build(FILE, keys(merges=["a lost"]), len(LETTERS))


def test_special_ids_have_the_names_of_a_config() -> None:
    own = {"bos": 1, "eos": 2, "unknown": 3, "padding": 0}
    found = gguf_tokens.special_ids({f"tokenizer.ggml.{name}_token_id": id_ for name, id_ in own.items()})
    assert found == {"bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 3, "pad_token_id": 0}
    assert gguf_tokens.special_ids({"tokenizer.ggml.bos_token_id": "1"}) == {}


def test_a_tokenizers_settings_name_its_special_tokens() -> None:
    about = {"tokenizer.ggml.tokens": ["a", "b", "c"], "tokenizer.chat_template": "hello"}
    config = {"max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 3, "unk_token_id": -1}
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "model_max_length": 8}
    assert gguf_tokens.settings(about, config) == {
        **plain,
        "bos_token": "a",
        "eos_token": "c",
        "chat_template": "hello",
    }
    assert gguf_tokens.settings({"tokenizer.ggml.tokens": []}, {"max_position_embeddings": 8}) == plain
