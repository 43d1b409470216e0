"""Text to ids and back: a `tokenizers.Tokenizer`, and the special ids that live outside of it.

The mask, and every special id the tokenizer does not hold itself, lies above the tokenizer's own ids. So no text can
be encoded to a mask, and the same tokenizer serves an autoregressive model that knows no mask.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from torch import Tensor

from edlm import limits
from edlm.data import continuation, tokenizer_files, tokenizer_kinds
from edlm.data.tokenizer_files import require
from edlm.process.arguments import require_folder, require_ids, require_kind, require_path, require_whole

MASK_SYMBOL = "_"  # how a mask is shown in decoded text
_NO_TOKEN = "\N{REPLACEMENT CHARACTER}"  # how an id is shown that has no token, as the unused rows of a padded network
END_OF_TEXT = "<|endoftext|>"  # the name of GPT-2's document separator

_TOKENIZER_FILE, _SPECIALS_FILE = "tokenizer.json", "vocabulary.json"
_ID_FIELDS = ("size", "mask_id", "bos_id", "eos_id", "pad_id")
_DOCUMENTS_PER_CALL = 1024  # bounds the memory of the tokenizer's own records, which are far larger than the ids
_PIECES_PER_CALL = 64  # of a long text, 4 million characters together
_GAP = re.compile(rf"(?<!\\){MASK_SYMBOL}")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer and its special ids. Compare two of them by `fingerprint`.

    `size` counts all ids, the mask included. pad_id fills a block after its text and is no part of it; end_id does so
    too, but is a token like others, by which a text says that it is over: see `ending_by_pad`.
    Law: `decode(encode(text)) == text` for the vocabularies built by `characters`, `byte_level_bpe` and `train_bpe`,
    for every text that `encode` accepts.
    Raises ValueError when an id lies outside [0, size), or the mask is an id that a text may have.
    """

    FILES: ClassVar[tuple[str, str]] = (_TOKENIZER_FILE, _SPECIALS_FILE)  # that `save` writes

    tokenizer: Tokenizer
    size: int
    mask_id: int
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    end_id: int | None = None

    def __post_init__(self) -> None:
        named = {name: getattr(self, name) for name in ("bos_id", "eos_id", "pad_id", "end_id")}
        least = tokenizer_kinds.least_mask(self.tokenizer, self.mask_id)
        require(
            least <= self.mask_id < self.size,
            f"mask_id = {self.mask_id} must lie above the tokenizer's {least} ids and below size = {self.size}",
        )
        limits.require("vocabulary", "ids", self.size, limits.IDS)
        for name, value in named.items():
            require(
                value is None or (0 <= value < self.size and value != self.mask_id),
                f"{name} = {value} must lie in [0, {self.size}) and differ from mask_id = {self.mask_id}",
            )

    def encode(self, text: str, continued: bool = False) -> Tensor:
        """Turn a text into ids, int64 (length,). Raises ValueError for a character outside of the vocabulary.

        continued: the text goes on after a mask, so it gets none of the space that some tokenizers put before a text;
        ValueError also if the tokenizer cannot do without.
        """
        require_kind("text", text, isinstance(text, str), "one text (encode_documents takes several)")
        if not continued:
            return self.encode_documents([text])[0]
        ids = self._going_on.encode_documents([text])[0]
        continuation.require_joined(self._going_on.tokenizer, text, ids.tolist())
        return ids

    def encode_prompt(self, text: str) -> Tensor:
        r"""Turn a text with gaps into a prompt for `edlm.sample`: every `_` is one mask, and `\_` an underscore.

        Raises ValueError as `encode` does.
        """
        require_kind("text", text, isinstance(text, str), "a text, with a _ for each token of a gap")
        first, *others = (part.replace(rf"\{MASK_SYMBOL}", MASK_SYMBOL) for part in _GAP.split(text))
        gap = torch.tensor([self.mask_id])
        return torch.cat([self.encode(first), *(each for part in others for each in (gap, self.encode(part, True)))])

    def encode_documents(self, documents: Sequence[str]) -> list[Tensor]:
        """Turn texts into ids, one int64 (length,) each. Raises ValueError for a character outside of the vocabulary.

        A document is never cut before its merges are made.
        """
        tokenizer_kinds.require_texts("documents", documents)
        if self._character_ids is not None:
            return [tokenizer_kinds.look_up(text, self._character_ids, self.tokenizer) for text in documents]
        starts = range(0, len(documents), _DOCUMENTS_PER_CALL)
        parts = (documents[start : start + _DOCUMENTS_PER_CALL] for start in starts)
        return [ids for part in parts for ids in tokenizer_kinds.encode(self.tokenizer, part, self._unknown_id)]

    def encode_pieces(self, text: str, size: int = 1 << 16) -> Iterator[Tensor]:
        """Encode a long text, piece after piece: `cat(encode_pieces(text)) == encode(text)`.

        A piece holds `size` characters or a few more, and the tokenizer is given so many at once as it can share among
        cores, so that memory does not grow with the text. A piece ends before a space between two letters, where no
        merge of a byte-level tokenizer reaches across; other tokenizers take the text whole.
        """
        pieces = self._pieces(text, size)
        while together := list(islice(pieces, _PIECES_PER_CALL)):
            try:
                encoded = self.encode_documents(together)
            except ValueError:
                self.encode(text)  # says the place in the whole text
                raise
            yield from encoded

    def decode(self, ids: Tensor, show_specials: bool = False) -> str | list[str]:
        """Turn ids (l,) into a text, (b, l) into a list of them; a mask is `MASK_SYMBOL`, an id without a token U+FFFD.

        The ids bos, eos and pad leave no trace unless `show_specials`, nor does the first end id with all after it.
        Raises ValueError for an id outside [0, size) and for another number of dimensions.
        """
        require_ids("ids", ids, 'as edlm.sample(...)["tokens"] is')
        require(ids.ndim in (1, 2), f"decode: ids must have shape (l,) or (b, l), got {tuple(ids.shape)}")
        outside = ids[(ids < 0) | (ids >= self.size)]
        if len(outside):
            raise ValueError(f"decode: id {int(outside[0])} must lie in [0, {self.size})")
        if ids.ndim == 2:
            return [self._decode_row(row, show_specials) for row in ids.tolist()]
        return self._decode_row(ids.tolist(), show_specials)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that differ when any text would get other ids."""
        content = self.tokenizer.to_str() + self._ids_json
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def unit(self) -> str:
        """Name what one id stands for, "character" or "token": figures are per unit."""
        return "token" if self._character_ids is None else "character"

    @property
    def filler_id(self) -> int | None:
        """The id that fills a block after its text, whether it is a part of it or not; None if nothing can."""
        return self.pad_id if self.end_id is None else self.end_id

    def ending_by_pad(self) -> "Vocabulary":
        """Return the same tokens, with the pad id as one by which a text ends, which is learned and scored like others.

        Raises ValueError if there is no pad id.
        """
        if self.pad_id is None:
            raise ValueError("a vocabulary without a pad id has nothing by which a text could end")
        return replace(self, pad_id=None, end_id=self.pad_id)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `vocabulary.json`; a file is either there whole or not at all."""
        folder = Path(folder)
        require_folder(folder)
        tokenizer_files.write_whole(folder / _TOKENIZER_FILE, self.tokenizer.to_str())
        tokenizer_files.write_whole(folder / _SPECIALS_FILE, self._ids_json)

    def __reduce__(self) -> tuple[Any, ...]:
        """Whether text that spells a special token is text stands in no tokenizer's own state."""
        ids = [getattr(self, field) for field in _ID_FIELDS]
        return _restored, (self.tokenizer.to_str(), self.tokenizer.encode_special_tokens, *ids)

    @property
    def _ids_json(self) -> str:
        own = {} if self.end_id is None else {"end_id": self.end_id}
        return json.dumps({**{field: getattr(self, field) for field in _ID_FIELDS}, **own}, indent=2)

    @cached_property
    def _character_ids(self) -> Tensor | None:
        return tokenizer_kinds.character_ids(self.tokenizer)

    @cached_property
    def _unknown_id(self) -> int | None:
        return tokenizer_kinds.unknown_id(self.tokenizer)

    @cached_property
    def _going_on(self) -> "Vocabulary":
        """This vocabulary for what does not begin a text: without the space that is put there and taken away."""
        tokenizer = continuation.of(self.tokenizer)
        return self if tokenizer is self.tokenizer else replace(self, tokenizer=tokenizer)

    def _pieces(self, text: str, size: int) -> Iterator[str]:
        cuts = tokenizer_kinds.cuts_at_spaces(self.tokenizer)
        return tokenizer_kinds.pieces(text, size, self._character_ids is not None, cuts)

    def _decode_row(self, ids: list[int], show_specials: bool) -> str:
        if self.end_id in ids and not show_specials:
            ids = ids[: ids.index(self.end_id)]
        specials = {"bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id, "end": self.end_id}
        symbols = {id_: _NO_TOKEN for id_ in set(ids) if self.tokenizer.id_to_token(id_) is None}
        symbols |= {
            id_: (self.tokenizer.id_to_token(id_) or f"<{name}>") if show_specials else ""
            for name, id_ in specials.items()
            if id_ is not None
        }
        symbols[self.mask_id] = MASK_SYMBOL
        parts: list[str] = []
        tokenizer = self.tokenizer
        for symbol, run in groupby((id_ for id_ in ids if symbols.get(id_) != ""), key=symbols.get):
            found = list(run)
            if symbol is None:
                parts.append(tokenizer.decode(found, skip_special_tokens=False))
            else:
                parts.append(symbol * len(found))
            tokenizer = self._going_on.tokenizer if symbol in (MASK_SYMBOL, _NO_TOKEN) else self.tokenizer
        return "".join(parts)


def load_vocabulary(folder: str | Path) -> Vocabulary:
    """Read what `Vocabulary.save` wrote.

    Args:
        folder: the folder it was written to.

    Returns:
        The vocabulary.

    Raises:
        ValueError: naming the file that is missing or broken.

    Example:
        >>> import edlm
        >>> edlm.vocabulary.characters("ab").save("letters")
        >>> edlm.vocabulary.load_vocabulary("letters").size
        3
    """
    folder = Path(folder)
    tokenizer = tokenizer_files.read(folder / _TOKENIZER_FILE)
    path = folder / _SPECIALS_FILE
    expected = f"JSON with the keys {', '.join(_ID_FIELDS)}"
    return tokenizer_files.parse(path, expected, lambda: Vocabulary(tokenizer, **json.loads(path.read_text("utf-8"))))


def characters(alphabet: str = "abcdefghijklmnopqrstuvwxyz ", specials: Sequence[str] = ()) -> Vocabulary:
    """Give every character of `alphabet` an id, then every special ("bos", "eos", "pad"), and the mask the last.

    Args:
        alphabet: the characters in the order of their ids; by default those of text8.
        specials: names out of "bos", "eos" and "pad", in the order of their ids.

    Returns:
        The vocabulary.

    Raises:
        ValueError: for an empty alphabet, for repetitions, and for other specials.

    Example:
        >>> import edlm
        >>> vocabulary = edlm.vocabulary.characters("ab", specials=["pad"])
        >>> vocabulary.encode("abba").tolist(), vocabulary.pad_id, vocabulary.mask_id
        ([0, 1, 1, 0], 2, 3)
    """
    require_kind("alphabet", alphabet, isinstance(alphabet, str), "a text of distinct characters")
    repeated = [symbol for symbol, count in Counter(alphabet).items() if count > 1]
    require(bool(alphabet) and not repeated, f"alphabet = {alphabet!r} must be distinct characters, at least one")
    tokenizer_kinds.require_unicode(alphabet)
    require(
        set(specials) <= {"bos", "eos", "pad"} and len(set(specials)) == len(specials),
        f"specials = {list(specials)} must be distinct names out of bos, eos, pad",
    )
    mask_id = len(alphabet) + len(specials)
    named = {f"{name}_id": len(alphabet) + index for index, name in enumerate(specials)}
    tokenizer = tokenizer_kinds.of_characters({symbol: index for index, symbol in enumerate(alphabet)})
    return Vocabulary(tokenizer, size=mask_id + 1, mask_id=mask_id, **named)


def byte_level_bpe(vocab: str | Path, merges: str | Path, pad: bool = False) -> Vocabulary:
    """Read GPT-2's kind of tokenizer from its two files; `<|endoftext|>`, where there is one, is both bos and eos.

    Any text can be encoded. Text that spells `<|endoftext|>` becomes ordinary tokens.

    Args:
        vocab: the file of tokens and their ids, json.
        merges: the file of merges.
        pad: whether there is an id for padding below the mask's, which padded blocks need and published networks lack.

    Returns:
        The vocabulary.

    Raises:
        ValueError: naming the file that is missing, empty or broken.

    Example:
        >>> import edlm
        >>> _ = edlm.vocabulary.train_bpe(["the hat"], size=260).tokenizer.model.save(".")
        >>> edlm.vocabulary.byte_level_bpe("vocab.json", "merges.txt").mask_id
        258
    """
    vocab, merges = Path(vocab), Path(merges)
    tokenizer_files.parse(
        vocab, "JSON from tokens to ids, all 256 byte symbols among them", lambda: tokenizer_files.require_bytes(vocab)
    )
    model = tokenizer_files.parse(
        merges, f"one merge of two tokens of {vocab} per line", lambda: tokenizer_files.read_bpe(vocab, merges)
    )
    tokenizer = tokenizer_kinds.byte_level(model)
    end = tokenizer.token_to_id(END_OF_TEXT)
    return _with_mask_on_top(
        tokenizer, bos_id=end, eos_id=end, pad_id=tokenizer_kinds.own_size(tokenizer) if pad else None
    )


def from_tokenizer_json(
    path: str | Path, bos: str | None = None, eos: str | None = None, pad: str | None = None
) -> Vocabulary:
    """Read any tokenizer in the one-file format; `bos`, `eos` and `pad` are the names of tokens it holds.

    The mask is added on top even where the tokenizer has one of its own. Whether decoding gives the text back is up
    to the tokenizer: a lower-casing one does not.

    Args:
        path: the `tokenizer.json`, or a folder that holds one, as a large model's does.
        bos: the name of the token that opens a text.
        eos: the name of the token that ends a text.
        pad: the name of the token that fills a block up.

    Returns:
        The vocabulary.

    Raises:
        ValueError: for a missing or broken file, an unknown name, and a tokenizer that silently drops characters.

    Example:
        >>> import edlm
        >>> edlm.vocabulary.characters("ab").save("two")
        >>> edlm.vocabulary.from_tokenizer_json("two/tokenizer.json").mask_id
        2
    """
    require_path("path", path)
    path = Path(path) / _TOKENIZER_FILE if Path(path).is_dir() else Path(path)
    tokenizer = tokenizer_files.read(path)
    require(
        tokenizer_kinds.says_what_it_cannot_spell(tokenizer),
        f"{path}: drops characters it does not know; expected a byte-level tokenizer or one with an unknown token",
    )
    named = {"bos": bos, "eos": eos, "pad": pad}
    ids = {name: None if token is None else tokenizer.token_to_id(token) for name, token in named.items()}
    for name, token in named.items():
        require(token is None or ids[name] is not None, f"{path}: {name} = {token!r} is not a token of this tokenizer")
    return _with_mask_on_top(tokenizer, bos_id=ids["bos"], eos_id=ids["eos"], pad_id=ids["pad"])


def train_bpe(documents: Iterable[str], size: int = 768) -> Vocabulary:
    """Train a byte-level tokenizer on `documents`; the same documents give the same vocabulary.

    Args:
        documents: the texts to learn from. In a config they are the corpus' own, its training split.
        size: all ids: 256 bytes, the merges, one id that is both bos and eos, and the mask.

    Returns:
        The vocabulary.

    Raises:
        ValueError: if `size` leaves no room for the bytes, or the documents cannot fill it.

    Example:
        >>> import edlm
        >>> vocabulary = edlm.vocabulary.train_bpe(["the cat and the hat"], size=260)
        >>> vocabulary.decode(vocabulary.encode("the hat"))
        'the hat'
    """
    tokenizer_kinds.require_texts("documents", documents)
    require_whole("size", size)
    own_size, fewest = size - 2, tokenizer_kinds.NUM_BYTES + 2  # bos = eos, and the mask
    require(size >= fewest, f"size = {size} must be at least {fewest}")
    tokenizer = tokenizer_kinds.learned(documents, own_size)
    require(
        tokenizer_kinds.own_size(tokenizer) == own_size,
        f"size = {size} must be at most {tokenizer_kinds.own_size(tokenizer) + 2}: so many pieces are in the documents",
    )
    return Vocabulary(tokenizer, size=size, mask_id=own_size + 1, bos_id=own_size, eos_id=own_size)


def _restored(content: str, encode_special_tokens: bool, *ids: Any) -> Vocabulary:
    tokenizer = Tokenizer.from_str(content)
    tokenizer.encode_special_tokens = encode_special_tokens
    return Vocabulary(tokenizer, *ids)


def _with_mask_on_top(
    tokenizer: Tokenizer, bos_id: int | None = None, eos_id: int | None = None, pad_id: int | None = None
) -> Vocabulary:
    mask_id = max(tokenizer_kinds.own_size(tokenizer), -1 if pad_id is None else pad_id + 1)
    return Vocabulary(tokenizer, size=mask_id + 1, mask_id=mask_id, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id)
