"""The tokenizers that vocabularies are built on: characters, and pairs of bytes; what any of them can spell."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

_ANY_CHARACTER = r"[\s\S]"
_RARE_LETTER = "\N{EGYPTIAN HIEROGLYPH A001}"
NUM_BYTES = 256


def says_what_it_cannot_spell(tokenizer: Tokenizer) -> bool:
    """Say whether an unknown character becomes a token or an error: of whole words without an unknown, an error."""
    try:
        return bool(tokenizer.encode(_RARE_LETTER, add_special_tokens=False).ids)
    except Exception:  # `tokenizers` raises nothing more specific
        return True


def own_size(tokenizer: Tokenizer) -> int:
    """Return the number of ids up to the tokenizer's highest one: not the count, for published files have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


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
