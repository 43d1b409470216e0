"""The tokenizer that a GGUF file holds, as a `tokenizer.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

# How a text is cut into words, by the name that a file gives it.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = {
    "llama-bpe": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST,
    "qwen2": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST,
}
_DIGITS_APART = {"gpt-2": False, "smollm": True}
_CONTROL, _OF_USER = 3, 4  # types of tokens: special ones, and words that are never cut
_SPECIALS = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}


def build(path: Path, keys: Mapping[str, Any], size: int) -> Tokenizer:
    """Build the tokenizer. Raises ValueError, naming the file, for a kind that is unknown and for lists that do not fit
    each other or the `size` of the network.
    """
    kind, words = keys.get("tokenizer.ggml.model"), keys.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise ValueError(f"{path}: tokenizer.ggml.model = {kind!r} must be 'gpt2', byte-level pairs")
    if words not in _WORDS and words not in _DIGITS_APART:
        known = ", ".join((*_WORDS, *_DIGITS_APART))
        raise ValueError(f"{path}: tokenizer.ggml.pre = {words!r} must be one of {known}")
    tokens, merges, types = (_list(path, keys, name) for name in ("tokens", "merges", "token_type"))
    if not len(tokens) == len(types) == len(set(tokens)) == size:
        raise ValueError(f"{path}: {len(set(tokens))} tokens of {len(types)} types do not fit a network of {size} ids")
    pairs = [tuple(each.split(" ")) for each in merges]
    try:
        model = BPE(vocab={token: id_ for id_, token in enumerate(tokens)}, merges=pairs)
    except Exception as error:  # `tokenizers` raises nothing more specific
        raise ValueError(f"{path}: tokenizer.ggml.merges: {' '.join(str(error).split())}") from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _cut(str(words))
    tokenizer.decoder = decoders.ByteLevel()
    typed = list(zip(tokens, types, strict=True))
    tokenizer.add_special_tokens([AddedToken(each, normalized=False) for each, type_ in typed if type_ == _CONTROL])
    tokenizer.add_tokens([AddedToken(each, normalized=False) for each, type_ in typed if type_ == _OF_USER])
    return tokenizer


def special_ids(keys: Mapping[str, Any]) -> dict[str, int]:
    """Give the special ids of a file under the names of a `config.json`."""
    found = {theirs: keys.get(f"tokenizer.ggml.{own}_token_id") for own, theirs in _SPECIALS.items()}
    return {f"{name}_token_id": id_ for name, id_ in found.items() if type(id_) is int}


def settings(keys: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Write the content of a `tokenizer_config.json`, by which `transformers` finds the tokenizer."""
    tokens = keys["tokenizer.ggml.tokens"]
    ids = {name: config.get(f"{name}_token_id") for name in _SPECIALS.values()}
    named = {f"{name}_token": tokens[id_] for name, id_ in ids.items() if id_ is not None and 0 <= id_ < len(tokens)}
    template = keys.get("tokenizer.chat_template")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        **named,
        **({} if template is None else {"chat_template": template}),
    }


def _cut(words: str) -> Any:
    if words in _DIGITS_APART:
        by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = [pre_tokenizers.Digits(individual_digits=True)] if _DIGITS_APART[words] else []
        return pre_tokenizers.Sequence([*digits, by_bytes])
    split = pre_tokenizers.Split(Regex(_WORDS[words]), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _list(path: Path, keys: Mapping[str, Any], name: str) -> list[Any]:
    found = keys.get(f"tokenizer.ggml.{name}")
    kind = int if name == "token_type" else str
    if not isinstance(found, list) or not all(type(each) is kind for each in found):
        raise ValueError(f"{path}: tokenizer.ggml.{name} must be a list of {'types' if kind is int else 'texts'}")
    return found
