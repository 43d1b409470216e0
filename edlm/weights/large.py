"""Language models by folder: diffusion models and masked ones as denoisers, causal ones as the model of an energy.

The folders are in Hugging Face's layout, and nothing in them is executed. `families` has those whose blocks torchtune
has exactly: LLaDA, a Llama, and Dream, a Qwen 2.5, whose attention looks both ways, and Llama and Qwen 2 themselves.
`pretrained` has `transformers` run all others. A folder is read first into what takes no memory.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from edlm import limits
from edlm.data import formats, tokenizer_files
from edlm.data.vocabulary import Vocabulary
from edlm.nn import decoders
from edlm.nn.decoders import Blueprint, DecoderNetwork, Readable
from edlm.weights import checkpoints, families, masked, pretrained, shards, tensors, whole

MASKED = tuple(pretrained.MASKED)  # the `model_type` of folders whose mask is of their own vocabulary
_NOTES = "edlm"  # the key of a config under which an adapted model says how it is read
_BUILT = ("qwen2", "llama")  # those that torchtune has builders of
DENOISERS: Mapping[str, Callable[..., Readable]] = {
    "llada": families.llada,
    "Dream": families.dream,
    **dict.fromkeys(pretrained.BLOCKS, pretrained.in_blocks),
    **dict.fromkeys(MASKED, pretrained.masked_lm),
}


def load_diffusion(folder: str | Path, max_length: int = 2048) -> Any:
    """Load a diffusion model, or a masked language model, from its folder: `decoders.load(read_diffusion(...))`.

    Args:
        folder: `config.json` and the weights.
        max_length: the longest text that it reads, if the model has no smaller limit.

    Returns:
        The bidirectional network, in eval mode.

    Raises:
        ValueError: naming the file or the setting that is missing, unknown or unlike these models.

    Example:
        >>> import edlm
        >>> network = edlm.large.load_diffusion("LLaDA-8B-Base", max_length=8)
        >>> network(torch.zeros(1, 8, dtype=torch.int64)).shape[:2]
        torch.Size([1, 8])
    """
    return decoders.load(read_diffusion(folder, max_length))


def read_diffusion(folder: str | Path, max_length: int = 2048) -> Readable:
    """Read a model that predicts masks, as its `config.json` says: LLaDA 1 and 2, Dream, SDAR, Fast-dLLM v2, or BERT's.

    Args:
        folder: `config.json` and the weights.
        max_length: the longest text that it reads, if the model has no smaller limit.

    Returns:
        The model before it takes memory; `decoders.load` fills it.

    Raises:
        ValueError: naming the file or the setting that is missing, unknown or unlike these models.

    Example:
        >>> import edlm
        >>> edlm.large.read_diffusion("LLaDA-8B-Base").dtype
        torch.float32
    """
    folder = Path(folder)
    noted = whole.read_json(folder / "config.json")
    own, config, notes = adapted_by(folder), _without_notes(noted), noted.get(_NOTES)
    if own is None:
        return _compared(folder, notes, _read(folder, config, DENOISERS, max_length))
    if not _is_built(folder, config):
        causal: Callable[..., Readable] = partial(pretrained.adapted, **own, notes=notes)
        return _read(folder, config, dict.fromkeys(pretrained.CAUSAL, causal), max_length)
    longer = max_length + (0 if own["bos_id"] is None else 1)  # a bos is read in front
    return _compared(folder, notes, _read(folder, config, _built(partial(_adapted, own)), longer))


def hub_folder(path: str | Path) -> Path | None:
    """Find the folder of a large model that a path stands for.

    Args:
        path: such a folder, with a `config.json`, or the folder of a run that adapts such a model.

    Returns:
        The folder itself, or the newest checkpoint of the run; None for anything else.

    Example:
        >>> import edlm
        >>> edlm.large.hub_folder("Qwen2.5-7B").name
        'Qwen2.5-7B'
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        try:
            folder = checkpoints.last_checkpoint(path) or folder
        except ValueError:  # which will be said where a network of ours is looked for
            return None
    found = (folder / "config.json").is_file() and not (folder / "network.json").is_file()
    return folder if found else None


def adapted_by(folder: str | Path) -> dict[str, Any] | None:
    """Read how a denoiser that `edlm run adapt` made of an autoregressive model is read; None for another folder.

    Args:
        folder: holds `config.json`.

    Returns:
        `shifted` and `bos_id`, as `decoders.DecoderNetwork` takes them.

    Raises:
        ValueError: naming the file and what of it cannot be.

    Example:
        >>> import edlm
        >>> print(edlm.large.adapted_by("Qwen2.5-7B"))
        None
    """
    config = whole.read_json(Path(folder) / "config.json")
    notes = config.get(_NOTES)
    own = notes.get("adapted") if isinstance(notes, dict) else None
    if own is None:
        return None
    if not isinstance(own, dict) or own.keys() != {"shifted", "bos_id"} or type(own["shifted"]) is not bool:
        raise ValueError(f"{folder}/config.json: edlm.adapted = {own!r} must be shifted, true or false, and bos_id")
    bos_id, size = own["bos_id"], config.get("vocab_size")
    if bos_id is not None and not (type(bos_id) is int and type(size) is int and 0 <= bos_id < size and own["shifted"]):
        raise ValueError(f"{folder}/config.json: edlm.adapted.bos_id = {bos_id!r} must be an id of a shifted model")
    return own


def read_start(
    folder: str | Path,
    max_length: int,
    network: Callable[[Any], DecoderNetwork],
    by_transformers: Callable[..., Readable] | None = None,
) -> Readable:
    """Read an autoregressive model, or what was made of one, to be made into a network of one's own.

    Args:
        folder: `config.json` and the weights.
        max_length: the longest text that it reads, if the model has no smaller limit.
        network: what is made of its torchtune decoder.
        by_transformers: reads a folder that `transformers` runs, as `pretrained.adapted` does; None refuses it.

    Returns:
        The model before it takes memory; `decoders.load` fills it.

    Raises:
        ValueError: as `read_autoregressive` does.

    Example:
        >>> import edlm
        >>> from edlm.nn import decoders
        >>> edlm.large.read_start("Qwen2.5-7B", 8, decoders.autoregressive).where
        'Qwen2.5-7B'
    """
    folder = Path(folder)
    config = _without_notes(whole.read_json(folder / "config.json"))
    if by_transformers is not None and not _is_built(folder, config):
        return _read(folder, config, dict.fromkeys(pretrained.CAUSAL, by_transformers), max_length)
    lacking = families.beyond(folder, config) if config.get("model_type") in _BUILT else None
    if lacking is not None:
        raise ValueError(f"{folder}/config.json: {lacking} is not read so: torchtune's builders do not have it")
    return _read(folder, config, _built(network), max_length)


def _is_built(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether torchtune's builders have all settings of a model."""
    return config.get("model_type") in _BUILT and families.beyond(folder, config) is None


def _compared(folder: Path, notes: Any, found: Readable) -> Readable:
    """Have weights compared with the hashes that notes of ours hold, if a folder has any."""
    if not isinstance(notes, dict):
        return found
    if isinstance(found, Blueprint):
        return found._replace(weights=partial(_unchanged, folder, notes, found.weights))
    assert isinstance(found, pretrained.Pretrained)
    return found._replace(notes=notes)


def _unchanged(folder: Path, notes: Mapping[str, Any], read: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Read weights whose hashes stand in the folder's notes. Raises ValueError for a file that was changed since."""
    tensors.verify(folder, notes, *(file.name for file in shards.files(folder)))
    return read()


def _built(network: Callable[[Any], DecoderNetwork]) -> dict[str, Callable[..., Blueprint]]:
    """Families that torchtune has builders of. network: what is made of a decoder."""
    qwen = partial(families.qwen, fixed=families.QWEN_FIXED, network=network)
    return {"qwen2": qwen, "llama": partial(families.llama, network=network)}


def _without_notes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != _NOTES}


def _adapted(own: Mapping[str, Any], decoder: Any) -> DecoderNetwork:
    return DecoderNetwork(decoders.bidirectional(decoder), **own).eval()


def read_autoregressive(
    folder: str | Path,
    max_length: int = 2048,
    rows_at_once: int | None = None,
    vocab_size: int | None = None,
) -> Readable:
    """Read a causal model for `energies.residual_ar`: Llama, Qwen 2 and 3, Mistral, Gemma or GPT-2.

    Llama and Qwen 2 are torchtune's, if its builders have all of their settings, and otherwise run by `transformers`.

    Args:
        folder: `config.json` and the weights.
        max_length: the longest text that it reads, if the model has no smaller limit.
        rows_at_once: how many rows are run at a time, which bounds memory; None: all.
        vocab_size: that of the denoiser, where it is larger; ids that the decoder does not know are impossible.

    Returns:
        The model before it takes memory; `decoders.load` fills it.

    Raises:
        ValueError: naming the file or the setting that is missing, unknown or unlike these models.

    Example:
        >>> import edlm
        >>> edlm.large.read_autoregressive("Qwen2.5-7B", rows_at_once=4).where
        'Qwen2.5-7B'
    """
    folder = Path(folder)
    if adapted_by(folder) is not None:
        raise ValueError(f"{folder} holds a denoiser made of an autoregressive model, and no autoregressive model")
    noted = whole.read_json(folder / "config.json")
    config = _without_notes(noted)
    network = partial(decoders.autoregressive, rows_at_once=rows_at_once, vocab_size=vocab_size)
    causal = partial(pretrained.causal, rows_at_once=rows_at_once, vocab_size=vocab_size)
    known: dict[str, Callable[..., Readable]] = dict.fromkeys(pretrained.CAUSAL, causal)
    if _is_built(folder, config):
        known |= _built(network)
    return _compared(folder, noted.get(_NOTES), _read(folder, config, known, max_length))  # of one that we trained


def load_vocabulary(folder: str | Path, tokenizer: str | Path | None = None, add_mask: bool = False) -> Vocabulary:
    """Load the vocabulary of such a folder: its `tokenizer.json`, or another one, and the special ids of its config.

    Special tokens of the tokenizer from the mask's id on are left out, as no text stands for them. `size` counts the
    ids of the network.

    Args:
        folder: holds `config.json`.
        tokenizer: another `tokenizer.json`. Dream's folder has none: give that of Qwen 2.5, which Dream extends.
        add_mask: whether a mask comes after all ids of the network, where the config names none.

    Returns:
        The vocabulary.

    Raises:
        ValueError: naming what is missing.

    Example:
        >>> import edlm
        >>> vocabulary = edlm.large.load_vocabulary("LLaDA-8B-Base")
        >>> vocabulary.size, vocabulary.mask_id
        (40, 33)
    """
    folder = Path(folder)
    config = whole.read_json(folder / "config.json")
    if config.get("mask_token_id") is None:
        config["mask_token_id"] = pretrained.mask_of(config)
    if config.get("model_type") in MASKED:
        return masked.load_vocabulary(folder, config, tokenizer)
    size = families.whole_number(folder, config, "embedding_size" if config.get("embedding_size") else "vocab_size")
    if add_mask and config.get("mask_token_id") is None:
        mask_id, size = size, size + 1
    else:
        mask_id = families.whole_number(folder, config, "mask_token_id")
    file = Path(tokenizer or folder / "tokenizer.json")
    if file.exists():
        formats.require_file(file)
    content = whole.read_json(file, limits.TOKENIZER_BYTES)
    words = tokenizer_files.parse(file, tokenizer_files.EXPECTED, partial(_without_mask, content, mask_id))
    specials = {f"{name}_id": special_id(folder, config, name) for name in ("bos", "eos", "pad")}
    return Vocabulary(words, size=size, mask_id=mask_id, **specials)


def _without_mask(content: Mapping[str, Any], mask_id: int) -> Tokenizer:
    """The tokenizer of a file's content, without special tokens from the mask's id on."""
    added = [token for token in content.get("added_tokens", []) if token["id"] < mask_id]
    words = Tokenizer.from_str(json.dumps({**content, "added_tokens": added}))
    return tokenizer_files.plain(words)


def special_id(folder: str | Path, config: Mapping[str, Any], name: str) -> int | None:
    """Find the id of bos, eos or pad in a `config.json`; of several, the first.

    Args:
        folder: named in errors.
        config: the content of the file.
        name: "bos", "eos" or "pad".

    Returns:
        The id, None if the config has none.

    Raises:
        ValueError: for what is no id.

    Example:
        >>> import edlm
        >>> edlm.large.special_id("Llama-3.1-8B", {"eos_token_id": [128001, 128009]}, "eos")
        128001
    """
    given = config.get(f"{name}_token_id")
    found = given[0] if isinstance(given, list) and given else given
    if found is not None and type(found) is not int:
        raise ValueError(f"{folder}/config.json: {name}_token_id = {given!r} must be an id, a list of ids, or null")
    return found


def require_same_tokens(vocabulary: Vocabulary, folder: str | Path) -> None:
    """Raise ValueError if the `tokenizer.json` of a folder gives text other ids than a vocabulary does.

    All that decides an id is compared: the normaliser, the cut into words, the model and the tokens added to it.
    Special tokens are not: Dream has two that Qwen 2.5 has not, and no text is encoded to them.

    Args:
        vocabulary: that of the denoiser.
        folder: that of the energy's model; one without a `tokenizer.json` passes.

    Raises:
        ValueError: if the ids differ.

    Example:
        >>> import edlm
        >>> edlm.large.require_same_tokens(edlm.large.load_vocabulary("LLaDA-8B-Base"), "LLaDA-8B-Base")
    """
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        return
    content = json.dumps(whole.read_json(file, limits.TOKENIZER_BYTES))
    if not tokenizer_files.alike(vocabulary.tokenizer.to_str(), content):
        raise ValueError(f"{file}: another tokenizer than the denoiser's, so a token means another text to each")


def _read(
    folder: Path, config: Mapping[str, Any], known: Mapping[str, Callable[..., Readable]], max_length: int
) -> Readable:
    family = known.get(str(config.get("model_type")))
    if family is None:
        raise ValueError(f"{folder}: model_type = {config.get('model_type')!r} must be one of {', '.join(known)}")
    found = family(folder, config, max_length)
    return found._replace(where=str(folder), dtype=dtype_of(folder)) if isinstance(found, Blueprint) else found


def dtype_of(folder: str | Path) -> torch.dtype:
    """Read the precision of a folder's weights in its `config.json`, under either of its names.

    Args:
        folder: holds `config.json`.

    Returns:
        The precision; float32 if the config names none.

    Raises:
        ValueError: naming the file, if it cannot be read.

    Example:
        >>> import edlm
        >>> edlm.large.dtype_of("LLaDA-8B-Base")
        torch.float32
    """
    file = Path(folder) / "config.json"
    config = whole.read_json(file) if file.is_file() else {}
    found = getattr(torch, str(config.get("torch_dtype") or config.get("dtype")), None)
    return found if isinstance(found, torch.dtype) else torch.float32
