"""Special ids of a masked language model's folder, by what its tokenizer's files say."""

import json
from pathlib import Path
from typing import Any

import hub_folders
import pytest
from tokenizers import Tokenizer

from edlm import limits
from edlm.data import tokenizer_files
from edlm.weights import masked

SIZE = 40


def folder(at: Path, **changed: Any) -> Path:
    hub_folders.tokenizer(at)
    file = at / "tokenizer_config.json"
    content = {**json.loads(file.read_text()), **changed}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return at


def test_the_mask_the_frame_the_padding_and_what_is_never_drawn(tmp_path: Path) -> None:
    words = len(Tokenizer.from_file(str(folder(tmp_path) / "tokenizer.json")).get_vocab())
    found = masked.specials(tmp_path, {"vocab_size": words + 2})
    assert found == masked.Specials(4, (2, 3), 0, (0, 1, 2, 3, 4, 5, 6, words, words + 1))
    assert masked.specials(tmp_path, {"vocab_size": words}).never == (0, 1, 2, 3, 4, 5, 6)
    folder(tmp_path, pad_token=None)
    assert masked.specials(tmp_path, {"vocab_size": words}).pad is None
    vocabulary = masked.load_vocabulary(tmp_path, {"vocab_size": words + 2})
    assert (vocabulary.size, vocabulary.mask_id, vocabulary.pad_id) == (words + 2, 4, None)


def test_as_many_ids_are_listed_as_a_limit_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = len(Tokenizer.from_file(str(folder(tmp_path) / "tokenizer.json")).get_vocab())
    monkeypatch.setattr(limits, "IDS", words + 1)
    assert masked.specials(tmp_path, {"vocab_size": words + 1}).never[-1] == words
    with pytest.raises(ValueError, match=rf"config\.json: vocab_size = {words + 2} must be at most {words + 1}; EDLM_"):
        masked.specials(tmp_path, {"vocab_size": words + 2})


@pytest.mark.parametrize("size", [None, "40", 3])
def test_a_network_has_an_id_for_every_token(size: Any, tmp_path: Path) -> None:
    folder(tmp_path)
    with pytest.raises(ValueError, match=rf"config\.json: vocab_size = {size!r} must be the network's number of ids$"):
        masked.specials(tmp_path, {"vocab_size": size})
    words = len(Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab())
    with pytest.raises(ValueError, match="must be the network's number of ids"):
        masked.specials(tmp_path, {"vocab_size": words - 1})


@pytest.mark.parametrize("name", ["mask", "cls", "sep"])
def test_a_token_that_no_file_names_is_asked_for(name: str, tmp_path: Path) -> None:
    said = rf"tokenizer_config\.json and special_tokens_map\.json name no {name}_token of its tokenizer\.json$"
    for told in (None, "[LOST]", 3):
        folder(tmp_path, **{f"{name}_token": told})
        with pytest.raises(ValueError, match=said):
            masked.specials(tmp_path, {"vocab_size": SIZE})


def test_the_config_goes_before_the_map_and_words_are_given_plainly_or_in_a_section(tmp_path: Path) -> None:
    assert masked.named(tmp_path) == {}
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"cls_token": "<s>", "sep_token": {"content": "</s>"}})
    )
    assert masked.named(tmp_path) == {"cls": "<s>", "sep": "</s>"}
    config = {"cls_token": "[CLS]", "mask_token": {"content": "[MASK]"}, "pad": "[PAD]", "pad_token_id": 0}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert masked.named(tmp_path) == {"cls": "[CLS]", "sep": "</s>", "mask": "[MASK]"}


def test_a_mask_that_text_spells_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_files, "plain", lambda tokenizer: tokenizer)
    with pytest.raises(ValueError, match=r"tokenizer\.json: text that spells the mask becomes the mask$"):
        masked.specials(folder(tmp_path), {"vocab_size": SIZE})
