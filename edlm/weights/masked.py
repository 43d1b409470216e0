"""The special tokens of a masked language model's folder: its mask, its frame, and ids that no text holds."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from edlm import limits
from edlm.data import tokenizer_files
from edlm.data.vocabulary import Vocabulary
from edlm.weights import whole

_UNUSED = re.compile(r"\[unused\d+\]")
_FILES = ("tokenizer_config.json", "special_tokens_map.json")


class Specials(NamedTuple):
    """Ids of a folder: its mask, what stands in front of a text and behind it, the padding, and what is never drawn."""

    mask: int
    frame: tuple[int, int]
    pad: int | None
    never: tuple[int, ...]


def specials(folder: Path, config: Mapping[str, Any], tokenizer: str | Path | None = None) -> Specials:
    """Find the special ids of a folder.

    Raises ValueError, naming the folder, for one whose tokenizer does not say which tokens are the mask, [CLS] and
    [SEP], or has more of them than the network has ids.
    """
    words, size = _tokenizer(folder, tokenizer), config.get("vocab_size")
    ids = {name: words.token_to_id(token) for name, token in named(folder).items()}
    mask, first, last = (_required(folder, ids, name) for name in ("mask", "cls", "sep"))
    if mask in words.encode(named(folder)["mask"], add_special_tokens=False).ids:
        raise ValueError(f"{folder}/tokenizer.json: text that spells the mask becomes the mask")
    if type(size) is not int or max(words.get_vocab().values()) >= size:
        raise ValueError(f"{folder}/config.json: vocab_size = {size!r} must be the network's number of ids")
    limits.require(f"{folder}/config.json", "vocab_size", size, limits.IDS)
    spelled = {id_: token for token, id_ in words.get_vocab().items()}
    special = {id_ for id_, token in words.get_added_tokens_decoder().items() if token.special}
    special |= {id_ for id_ in ids.values() if id_ is not None}
    drawn = {id_ for id_, token in spelled.items() if not _UNUSED.fullmatch(token)} - special
    return Specials(mask, (first, last), ids.get("pad"), tuple(id_ for id_ in range(size) if id_ not in drawn))


def load_vocabulary(folder: Path, config: Mapping[str, Any], tokenizer: str | Path | None = None) -> Vocabulary:
    """Load the vocabulary of such a folder. Raises ValueError as `specials` does."""
    found = specials(folder, config, tokenizer)
    return Vocabulary(_tokenizer(folder, tokenizer), size=config["vocab_size"], mask_id=found.mask, pad_id=found.pad)


def named(folder: Path) -> dict[str, str]:
    """Read which tokens a folder calls special: names such as mask, cls, sep and pad, with the tokens."""
    found: dict[str, str] = {}
    for file in (folder / name for name in reversed(_FILES)):
        content = whole.read_json(file) if file.is_file() else {}
        for key, value in content.items():
            token = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(token, str):
                found[key.removesuffix("_token")] = token
    return found


def _required(folder: Path, ids: Mapping[str, int | None], name: str) -> int:
    found = ids.get(name)
    if found is None:
        raise ValueError(f"{folder}: {' and '.join(_FILES)} name no {name}_token of its tokenizer.json")
    return found


def _tokenizer(folder: Path, tokenizer: str | Path | None) -> Tokenizer:
    return tokenizer_files.read(Path(tokenizer or folder / "tokenizer.json"))
