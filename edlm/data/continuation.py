"""A tokenizer for what does not begin a text: without the space that some put in front, and take away there again.

Tokenizers of SentencePiece's kind read `sat` as ` sat`. What goes on after a mask is to be read and shown as it is.
"""

import json
from typing import Any

from tokenizers import Tokenizer

_LISTS = ("normalizers", "pretokenizers", "decoders")


def of(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer for what goes on: the same one if it treats the beginning of a text like any other place."""
    parts = json.loads(tokenizer.to_str())
    changed = {name: _without_space(parts[name]) for name in ("normalizer", "pre_tokenizer", "decoder")}
    if all(changed[name] == parts[name] for name in changed):
        return tokenizer
    found = Tokenizer.from_str(json.dumps(parts | changed))
    found.encode_special_tokens = tokenizer.encode_special_tokens  # this stands in no file
    return found


def require_joined(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    """Raise ValueError if a text cannot go on after a gap: if a space would come between it and whatever fills the gap.

    Tokenizers of WordPiece's kind put one before every word, and those that mark the end of a word after it. ids: of
    the text, by the tokenizer `of` gives.
    """
    if json.loads(tokenizer.to_str())["model"].get("end_of_word_suffix"):
        raise ValueError("the tokenizer marks the end of a word, so a text that ends in a gap would end in a space")
    if not ids or text[0].isspace():
        return
    first, rest = (tokenizer.decode(part, skip_special_tokens=False) for part in (ids[:1], ids))
    if tokenizer.decode([ids[0], *ids], skip_special_tokens=False) == f"{first} {rest}":
        raise ValueError(
            f"the tokenizer puts a space before {text[:20]!r}, so it cannot stand right behind a gap: begin it with one"
        )


def _without_space(part: Any) -> Any:
    """A part of a tokenizer that leaves the beginning of a text as it is; None: no such part."""
    kind = part["type"] if part else None
    if kind == "Sequence":
        name = next(name for name in _LISTS if name in part)
        return {**part, name: [kept for each in part[name] if (kept := _without_space(each))]}
    if kind == "Prepend":
        return None
    changed: dict[str | None, dict[str, Any]] = {
        "Metaspace": {"prepend_scheme": "never"},
        "ByteLevel": {"add_prefix_space": False},
        "Strip": {name: value for name, value in (("start", 0), ("strip_left", False)) if part and name in part},
    }
    return {**part, **changed[kind]} if kind in changed else part
