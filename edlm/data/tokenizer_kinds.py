"""The tokenizers that vocabularies are built on: characters, and pairs of bytes; what any of them can spell."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

_CUT = re.compile("(?<=[A-Za-z]) (?=[A-Za-z])")
_ANY_CHARACTER = r"[\s\S]"
_RARE_LETTER = "\N{EGYPTIAN HIEROGLYPH A001}"
NUM_BYTES = 256
_SHOWN_ALPHABET = 80


def says_what_it_cannot_spell(tokenizer: Tokenizer) -> bool:
    """Say whether an unknown character becomes a token or an error: of whole words without an unknown, an error."""
    try:
        return bool(tokenizer.encode(_RARE_LETTER, add_special_tokens=False).ids)
    except Exception:  # `tokenizers` raises nothing more specific
        return True


def own_size(tokenizer: Tokenizer) -> int:
    """Return the number of ids up to the tokenizer's highest one: not the count, for published files have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def least_mask(tokenizer: Tokenizer, mask_id: int) -> int:
    """Return the least id that a mask may have: above all others, but for a special token that no text becomes."""
    token = tokenizer.get_added_tokens_decoder().get(mask_id)
    apart = token is not None and token.special and tokenizer.encode_special_tokens
    return mask_id if apart else own_size(tokenizer)


def of_characters(symbols: dict[str, int]) -> Tokenizer:
    """Build a tokenizer with an id for each of these characters."""
    tokenizer = Tokenizer(models.WordLevel(symbols))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_ANY_CHARACTER), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def byte_level(model: models.BPE | None = None) -> Tokenizer:
    """Build a tokenizer of GPT-2's kind, by default without a merge."""
    tokenizer = Tokenizer(models.BPE() if model is None else model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def learned(documents: Iterable[str], size: int) -> Tokenizer:
    """Train a byte-level tokenizer of at most so many ids; the same documents give the same one."""
    tokenizer = byte_level()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def character_ids(tokenizer: Tokenizer) -> Tensor | None:
    """Make the table from code point to id, -1 where there is none; None if the tokenizer is not `of_characters`.

    The tokenizer needs hundreds of bytes and about a microsecond per character, a table next to nothing.
    """
    symbols = tokenizer.get_vocab()
    if any(len(symbol) != 1 for symbol in symbols):
        return None
    if tokenizer.to_str() != of_characters(symbols).to_str():
        return None
    table = torch.full((max(map(ord, symbols)) + 2,), -1, dtype=torch.int64)
    table[[ord(symbol) for symbol in symbols]] = torch.tensor(list(symbols.values()))
    return table


def look_up(text: str, table: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Encode a text by the table of `character_ids`. Raises ValueError for a character that is not in it."""
    if not text:
        return torch.empty(0, dtype=torch.int64)
    code_points = torch.frombuffer(bytearray(text.encode("utf-32-le", "surrogatepass")), dtype=torch.int32)
    ids = table.index_select(0, code_points.clamp(max=len(table) - 1))  # the last entry is no character's
    if (ids < 0).any():
        offset = int((ids < 0).nonzero()[0])
        alphabet = "".join(sorted(tokenizer.get_vocab()))
        shown = repr(alphabet[:_SHOWN_ALPHABET]) + ("..." if len(alphabet) > _SHOWN_ALPHABET else "")
        raise ValueError(f"character {text[offset]!r} at offset {offset} is not in the vocabulary, only {shown}")
    return ids


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Find the id by which a tokenizer replaces what it cannot spell."""
    model = json.loads(tokenizer.to_str())["model"]
    unknown = model.get("unk_id", model.get("unk_token"))
    return tokenizer.token_to_id(unknown) if isinstance(unknown, str) else unknown


def cuts_at_spaces(tokenizer: Tokenizer) -> bool:
    """Check that only the words of byte-level pre-tokenization, each with its space in front, are merged."""
    parts = json.loads(tokenizer.to_str())
    words = parts["pre_tokenizer"] or {}
    return (
        words.get("type") == "ByteLevel"
        and words.get("use_regex", True)
        and not words["add_prefix_space"]
        and parts["normalizer"] is None
        and not any(" " in added["content"] for added in parts["added_tokens"])
    )


def pieces(text: str, size: int, anywhere: bool, at_spaces: bool) -> Iterator[str]:
    """Cut a text into pieces of `size` characters or a few more, which have the ids that they have in the whole.

    anywhere: each character is an id. at_spaces: no merge reaches across a space between letters. A text of neither
    kind is one piece.
    """
    start = 0
    while len(text) - start > size and (end := _cut_after(text, start + size, anywhere, at_spaces)) is not None:
        yield text[start:end]
        start = end
    yield text[start:]


def _cut_after(text: str, position: int, anywhere: bool, at_spaces: bool) -> int | None:
    """The first place from `position` on where a text can be cut before it is encoded; None if there is none."""
    if anywhere:
        return position
    found = _CUT.search(text, position) if at_spaces else None
    return None if found is None else found.start()


def require_texts(name: str, documents: object) -> None:
    """Raise ValueError, naming the argument, for one text in the place of several."""
    one = "bytes" if isinstance(documents, bytes) else "one text" if isinstance(documents, str) else None
    if one is not None:
        raise ValueError(f"{name} must be several texts, as a list of them is, not {one}")


def encode(tokenizer: Tokenizer, documents: Sequence[str], unknown: int | None) -> list[Tensor]:
    """Encode texts, int64 (length,) each. Raises ValueError for what is no character or becomes the unknown id."""
    for text in documents:
        require_unicode(text)
    try:
        encodings = tokenizer.encode_batch_fast(documents, add_special_tokens=False)
    except Exception as error:  # `tokenizers` raises nothing more specific
        raise ValueError(f"a text holds what the tokenizer cannot spell ({error})") from error
    rows = [encoding.ids for encoding in encodings]
    for text, ids in zip(documents, rows, strict=True):
        if unknown is not None and unknown in ids:
            raise ValueError(_unknown_message(tokenizer, text, ids.index(unknown)))
    return [torch.tensor(ids, dtype=torch.int64) for ids in rows]


def require_unicode(text: str) -> None:
    """Raise ValueError for half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"character {text[error.start]!r} at offset {error.start} is half of a surrogate pair, no character"
        raise ValueError(message) from error


def _unknown_message(tokenizer: Tokenizer, text: str, position: int) -> str:
    encoding = tokenizer.encode(text, add_special_tokens=False)  # the fast call keeps no offsets
    start, end = encoding.offsets[position]
    return f"{text[start:end]!r} at offset {start} cannot be spelled by the tokenizer"
