"""Files of tokenizers, their sizes known before they are read, and one line for what cannot be."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer, models, pre_tokenizers

from edlm import limits
from edlm.data import formats

EXPECTED = "a tokenizer.json of `tokenizers`"

_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")  # of a model's pieces

_Parsed = TypeVar("_Parsed")


def read(path: Path) -> Tokenizer:
    """Read a tokenizer in the one-file format, made neither to cut nor to pad; special tokens in it are text."""
    return plain(parse(path, EXPECTED, lambda: Tokenizer.from_str(path.read_text("utf-8"))))


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """Have a tokenizer neither cut nor pad, and read text that spells a special token as text."""
    tokenizer.no_truncation()  # a file may ask to cut and pad every text
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def alike(one: str, other: str) -> bool:
    """Check whether two tokenizers, as the content of their files, give every text the same ids.

    All that decides an id is compared: the normaliser, the cut into words, the model and the tokens added to it.
    Special tokens are not, since no text is encoded to them.
    """
    return _deciding(one) == _deciding(other)


def _deciding(content: str) -> dict[str, Any] | None:
    """Collect what decides a text's ids, in the form of this version of `tokenizers`; None if it is no tokenizer."""
    try:
        parts = json.loads(Tokenizer.from_str(content).to_str(), object_hook=_without_offsets)
    except Exception:  # `tokenizers` raises nothing more specific
        return None
    added = {token["content"]: token["id"] for token in parts["added_tokens"] if not token["special"]}
    affixes = {name: parts["model"].get(name) or "" for name in _AFFIXES}  # none is written in two ways
    own = {"added": added, "model": {**parts["model"], **affixes}}
    return {**own, **{name: parts[name] for name in ("normalizer", "pre_tokenizer")}}


def _without_offsets(part: dict[str, Any]) -> dict[str, Any]:
    """Drop from a part of a tokenizer what changes only the places of tokens."""
    return {name: value for name, value in part.items() if not (name == "trim_offsets" and part.get("type"))}


def read_bpe(vocab: Path, merges: Path) -> models.BPE:
    """Read the model of GPT-2's two files. Raises ValueError for merges that are empty."""
    require(bool(merges.read_text("utf-8").strip()), "the file is empty")
    return models.BPE.from_file(str(vocab), str(merges))


def require_bytes(vocab: Path) -> None:
    """Raise ValueError unless the file is a JSON object that can spell every byte."""
    missing = set(pre_tokenizers.ByteLevel.alphabet()) - set(json.loads(vocab.read_text("utf-8")))
    require(not missing, f"{len(missing)} byte symbols are missing")


def parse(path: Path, expected: str, parser: Callable[[], _Parsed]) -> _Parsed:
    """Run `parser`; whatever it raises becomes a ValueError that names the file and what is expected of it."""
    if not path.exists():
        raise ValueError(f"{path}: expected {expected}; No such file")
    formats.require_size(path, limits.TOKENIZER_BYTES)
    try:
        return parser()
    except Exception as error:  # `tokenizers` raises nothing more specific
        raise ValueError(f"{path}: expected {expected}; {error}") from error


def write_whole(path: Path, content: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


def require(condition: bool, message: str) -> None:
    """Raise ValueError with a message unless a condition holds."""
    if not condition:
        raise ValueError(message)
