"""Conversion of published checkpoints to network folders, and of our networks to Hugging Face folders.

A file may not say the number of heads or the longest sequence. Then they are those of every published network: 12 and
1024.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from edlm.data import vocabulary
from edlm.data.vocabulary import END_OF_TEXT, Vocabulary
from edlm.nn.networks import EnergyNetwork, Transformer
from edlm.weights import checkpoints, foreign, published, whole
from edlm.weights.foreign import Weights

TEXT8 = "text8"  # the name of a vocabulary, where the path of a tokenizer is asked for
DEFAULT_HEADS, DEFAULT_LENGTH = 12, 1024

# The published text8 ids in our order: the characters, seven specials ([CLS] [SEP] [BOS] [EOS] [PAD] ...), the mask.
_TEXT8_IDS = (*range(8, 35), 0, 1, 2, 3, 5, 6, 7, 4)
_TEXT8_SPECIALS = {"bos_id": 29, "eos_id": 30, "pad_id": 31}
_CHARACTERS, _MASK, _OTHER = "abcdefghijklmnopqrstuvwxyz ", "_", "?"  # of an order: text8's, the mask, any other id
_ARCHITECTURES = {"denoiser": "MDLM", "autoregressive": "AR", "energy": "EBM"}  # the published classes

Rows = list[tuple[str, str]]  # a table for people: what, and what was found


class Sizes(NamedTuple):
    """Sizes that no weight shows, and where each was taken from."""

    num_heads: int
    max_length: int
    heads_from: str
    length_from: str


def convert(
    path: str | Path,
    out: Path,
    tokenizer: str | Path | None = None,
    part: str | None = None,
    num_heads: int | None = None,
    max_length: int | None = None,
    raw: bool = False,
    bos: str | None = None,
    order: str | None = None,
    wrapped: bool = False,
) -> Rows:
    """Convert a published file to a new network folder of ours, with the averaged weights unless `raw`.

    bos: the token that an AR model reads in front of a text, which gives the first token a law too; None: it is given,
    as the published figures take it. tokenizer: see `find_vocabulary`; a Hugging Face folder may hold its own. order:
    of the ids of text8's characters in the file, one symbol for each id, `_` the mask and `?` any other; None: the
    published one, or ours where there are no more ids. wrapped: whether a denoiser was trained on texts between a bos
    and an eos, which an AR model beside it then reads in their place. Raises ValueError as `foreign.read`, `build` and
    `find_vocabulary` do, if `out` exists, for a bos that is no token, for an order that is none, and for texts that
    cannot be wrapped.
    """
    _require_new(out)
    weights = foreign.read(path, part)
    sizes = sizes_of(weights, num_heads, max_length)
    network = build(weights, sizes, raw)
    if order is not None and tokenizer != TEXT8:
        raise ValueError(f"order = {order!r} is of the characters of {TEXT8}: give --tokenizer {TEXT8}")
    if tokenizer is None and not Path(path).is_dir():
        raise ValueError(f"{path} holds no tokenizer: name a tokenizer.json, a folder with GPT-2's files, or {TEXT8}")
    size = network.arguments["vocab_size"]
    if order is not None:
        words = Vocabulary(vocabulary.characters().tokenizer, size=size, mask_id=size - 1)
        _reorder(network, torch.tensor(_in_our_order(order, size)))
    else:
        words = find_vocabulary(tokenizer or path, size)
        if tokenizer == TEXT8 and words.size == len(_TEXT8_IDS):
            _reorder(network, torch.tensor(_TEXT8_IDS))
    notes = dict(weights.notes) if bos is None else {**weights.notes, "bos_id": _id_of(bos, network, words)}
    if wrapped:
        _require_wrapped(words, network)
        notes["wrapped"] = True
    if weights.average is not None:
        notes["weights"] = "raw" if raw else "averaged"
    checkpoints.save_network(out, network, words, notes)
    return _table(weights.source, network, words, notes, sizes)


def _require_wrapped(words: Vocabulary, network: Transformer | EnergyNetwork) -> None:
    if isinstance(network, EnergyNetwork) or network.arguments.get("causal"):
        raise ValueError("wrapped = True is for a denoiser, and this is none: leave it out")
    if None in (words.bos_id, words.eos_id):
        raise ValueError("wrapped = True needs a vocabulary with a bos and an eos")


def export(path: str | Path, out: Path) -> Rows:
    """Write a network folder of ours as a new Hugging Face folder with published names.

    `config.json` keeps our notes under "edlm" and the vocabulary lies beside it, so `convert` gives the same network
    folder back, byte for byte if its weights are float32: weights of any other type are read, and written, as float32.
    Raises ValueError if `out` exists, for a network that is missing or broken, and for one with biases in
    its norms, `qk_norm`, two heads, a `pad_id`, or conditioning if it is autoregressive: published networks have none.
    """
    _require_new(out)
    folder = checkpoints.find_network(path)
    network = checkpoints.load_network(folder)
    if not isinstance(network, Transformer | EnergyNetwork):
        raise ValueError(f"{folder}: a {type(network).__name__} has no published names")
    if network.arguments["norm_bias"]:
        raise ValueError(f"{folder}: published norms have no biases; export the network that this one was folded from")
    if network.arguments["qk_norm"]:
        raise ValueError(f"{folder}: published networks have no qk_norm")
    if network.arguments.get("causal") and network.arguments["conditioning_size"]:
        raise ValueError(f"{folder}: a published autoregressive network has no conditioning (conditioning_size: 0)")
    if network.arguments.get("pad_id") is not None:
        raise ValueError(f"{folder}: published networks read their padding, and this one never does (padding: ignored)")
    if network.arguments.get("block_size") is not None:
        raise ValueError(f"{folder}: published networks read whole texts, and this one blocks (objective: blocks)")
    words, description = checkpoints.load_vocabulary_of(folder), checkpoints.read_description(folder)
    notes = {key: value for key, value in description.items() if key not in checkpoints.OWN_KEYS}

    def fill(target: Path) -> None:
        words.save(target)
        state = {f"backbone.{name}": value for name, value in published.export(network).items()}
        save_file(state, target / "model.safetensors", {"format": "pt"})
        whole.write_json(target / "config.json", _hf_config(network, words, notes))

    whole.write_folder(out, fill)
    return _table(f"network folder {folder}", network, words, notes)


def sizes_of(weights: Weights, num_heads: int | None = None, max_length: int | None = None) -> Sizes:
    """Find the sizes that no weight shows: as given, else from the file's settings or frequencies, else the default.

    Raises ValueError for a length below 1.
    """
    choices_of_heads = (
        (num_heads, "as given"),
        (weights.settings.get("num_heads"), "from the file's settings"),
        (published.num_heads_of(weights.state), "from the rotary frequencies"),
        (DEFAULT_HEADS, "the published default, the file does not say"),
    )
    choices_of_length = (
        (max_length, "as given"),
        (weights.settings.get("max_length"), "from the file's settings"),
        (DEFAULT_LENGTH, "the published default, the file does not say"),
    )
    heads, heads_from = next((value, origin) for value, origin in choices_of_heads if value is not None)
    length, length_from = next((value, origin) for value, origin in choices_of_length if value is not None)
    if length < 1:
        raise ValueError(f"length = {length} must be at least 1")
    return Sizes(int(heads), int(length), heads_from, length_from)


def build(weights: Weights, sizes: Sizes, raw: bool = False) -> Transformer | EnergyNetwork:
    """Build the network of some weights in eval mode, from the averaged weights if the file has them, unless `raw`.

    Raises ValueError naming each parameter that is missing, unknown or of another shape, and a size that differs from
    the file's own settings.
    """
    arguments = (sizes.num_heads, sizes.max_length, weights.settings.get("dropout", 0.0))
    network = published.load(weights.state, *arguments)
    for name in ("vocab_size", "hidden_size", "num_layers", "conditioning_size"):
        said, found = weights.settings.get(name), network.arguments[name]
        without = name == "conditioning_size" and found == 0  # an autoregressive network ignores its setting
        if said is not None and said != found and not without:
            raise ValueError(f"the file's settings say {name} = {said}, its weights say {found}")
    if weights.average is None or raw:
        return network
    average = _by_name(weights.average, weights.state, published.parameter_order(network))
    return published.load({**weights.state, **average}, *arguments)


def find_vocabulary(source: str | Path, vocab_size: int) -> Vocabulary:
    """Find the vocabulary of a published network: `source` is "text8", a `tokenizer.json`, or a folder with one.

    A folder may also hold GPT-2's `vocab.json` and `merges.txt`, or what `Vocabulary.save` wrote. The mask comes after
    the tokenizer's own ids. Raises ValueError naming the file, or both sizes where they differ.
    """
    found = _text8(vocab_size) if source == TEXT8 else _read_vocabulary(Path(source))
    if found.size != vocab_size:
        raise ValueError(f"{source}: a vocabulary of {found.size} ids, mask included; the network has {vocab_size}")
    return found


def _by_name(average: list[Tensor], state: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Name the averaged weights, after a check of their number and shapes."""
    if len(average) != len(names):
        raise ValueError(f"the file averages {len(average)} parameters, the network has {len(names)}: take raw weights")
    for name, value in zip(names, average, strict=True):
        if value.shape != state[name].shape:
            shapes = f"{tuple(value.shape)}, not {tuple(state[name].shape)}"
            raise ValueError(f"the file's average in the place of {name} has shape {shapes}: take raw weights")
    return dict(zip(names, average, strict=True))


def _read_vocabulary(path: Path) -> Vocabulary:
    if path.is_file():
        return _from_json(path)
    if (path / "vocabulary.json").is_file():
        return vocabulary.load_vocabulary(path)
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return vocabulary.byte_level_bpe(path / "vocab.json", path / "merges.txt")
    if (path / "tokenizer.json").is_file():
        return _from_json(path / "tokenizer.json")
    raise ValueError(f"{path}: no tokenizer there (expected tokenizer.json, or GPT-2's vocab.json and merges.txt)")


def _from_json(file: Path) -> Vocabulary:
    """Read a tokenizer's vocabulary; `<|endoftext|>`, if it has one, is both bos and eos, as for GPT-2's two files."""
    plain = vocabulary.from_tokenizer_json(file)
    if plain.tokenizer.token_to_id(END_OF_TEXT) is None:
        return plain
    return vocabulary.from_tokenizer_json(file, bos=END_OF_TEXT, eos=END_OF_TEXT)


def _id_of(bos: str, network: Transformer | EnergyNetwork, words: Vocabulary) -> int:
    """Find the id of a bos. Raises ValueError for a token that is none, and for a network that reads none."""
    found = words.tokenizer.token_to_id(bos)
    if found is None:
        raise ValueError(f"bos = {bos!r} is no token of the vocabulary")
    if _kind(network) != "autoregressive":
        raise ValueError(f"bos = {bos!r} is read by an AR model alone, and this is a network of kind {_kind(network)}")
    return found


def _text8(vocab_size: int) -> Vocabulary:
    """Build the 27 characters and a mask, with the seven other special ids of the published tokenizer if they fit."""
    words = vocabulary.characters()
    if vocab_size != len(_TEXT8_IDS):
        return words
    return Vocabulary(words.tokenizer, size=vocab_size, mask_id=vocab_size - 1, **_TEXT8_SPECIALS)


def _in_our_order(order: str, size: int) -> tuple[int, ...]:
    """List the ids of a file in our order: the characters, all others, the mask. Raises ValueError for no order."""
    if len(order) != size or sorted(order.replace(_OTHER, "")) != sorted(_CHARACTERS + _MASK):
        raise ValueError(
            f"order = {order!r} must have {size} symbols, one for each id: {_CHARACTERS!r} and {_MASK!r}, the mask, "
            f"each once, and {_OTHER!r} for all others"
        )
    others = (id_ for id_, symbol in enumerate(order) if symbol == _OTHER)
    return (*(order.index(symbol) for symbol in _CHARACTERS), *others, order.index(_MASK))


@torch.no_grad()
def _reorder(network: Transformer | EnergyNetwork, order: Tensor) -> None:
    """Give row `order[i]` of the vocabulary the id i; for a network that nobody else holds yet."""
    rows: list[Tensor] = [network.embedding.weight]
    if isinstance(network, Transformer):
        rows += [network.head.weight, network.head.bias]
    for values in rows:
        values.copy_(values[order])


def _require_new(out: Path) -> None:
    if out.exists():
        raise ValueError(f"{out} exists already; remove it or choose another path")


def _kind(network: Transformer | EnergyNetwork) -> published.Kind:
    if isinstance(network, EnergyNetwork):
        return "energy"
    return "autoregressive" if network.arguments["causal"] else "denoiser"


def _hf_config(network: Transformer | EnergyNetwork, words: Vocabulary, notes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model_type": "mdlm",
        "architectures": [_ARCHITECTURES[_kind(network)]],
        **{theirs: network.arguments[ours] for ours, theirs in foreign.HF_SETTINGS.items()},
        "time_conditioning": bool(notes.get("time_conditioning", False)),
        "mask_token_id": words.mask_id,
        "torch_dtype": str(network.embedding.weight.dtype).removeprefix("torch."),
        "edlm": dict(notes),
    }


def _table(
    source: str,
    network: Transformer | EnergyNetwork,
    words: Vocabulary,
    notes: Mapping[str, Any],
    sizes: Sizes | None = None,
) -> Rows:
    arguments = network.arguments
    heads, length = str(arguments["num_heads"]), str(arguments["max_length"])
    rows = [
        ("source", source),
        ("kind", _kind(network)),
        ("layers", str(arguments["num_layers"])),
        ("width", str(arguments["hidden_size"])),
        ("heads", heads if sizes is None else f"{heads}, {sizes.heads_from}"),
        ("length", length if sizes is None else f"{length}, {sizes.length_from}"),
        ("vocabulary", f"{words.size} ids, the mask is {words.mask_id}"),
        ("conditioning", str(arguments["conditioning_size"] or "none")),
    ]
    shown = ("weights", "step", "parameterization", "time_conditioning", "bos_id")
    return rows + [(key, str(notes[key])) for key in shown if key in notes]
