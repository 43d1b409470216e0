"""Large models that are trained: autoregressive ones, made denoisers or as they are, and denoisers, further.

A folder is the start and the result. It has the files and names of the family that it began with, so `transformers`
reads it too. Its config says under "edlm" how the network is read, and what it was trained on.
"""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edlm.data.vocabulary import Vocabulary
from edlm.nn import adapters, decoders
from edlm.nn.decoders import Blueprint, DecoderNetwork
from edlm.nn.pretrained import PretrainedNetwork
from edlm.process import arguments
from edlm.weights import large, pretrained, shards, tensors, whole
from edlm.weights.formats import Format
from edlm.weights.pretrained import Pretrained

WEIGHTS, AVERAGE = "model.safetensors", "average.safetensors"  # of all, merged; of what is trained, as it is
_TOKENIZER = "tokenizer.json"
_BESIDE = (_TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
_OWN = {"torch_dtype"}  # settings of the config that are written anew, under another name


class Start(NamedTuple):
    """A model before its training: its network, its vocabulary, and the folder of the model that it is made of.

    made: it is a denoiser that an autoregressive model is made into; else it stays what its folder has.
    """

    network: DecoderNetwork | PretrainedNetwork
    vocabulary: Vocabulary
    folder: Path
    tokenizer: Path
    blueprint: Blueprint | Pretrained
    made: bool = False

    @property
    def form(self) -> Format:
        """The form in which a run keeps it: a folder in the names of the family."""
        return Format(self._fill, self._read)

    @property
    def weights(self) -> str:
        """The hash of the files that it begins with."""
        return tensors.digest({file.name: tensors.sha256(file) for file in shards.files(self.folder)})

    def _fill(self, target: Path, network: nn.Module, vocabulary: Vocabulary, notes: Mapping[str, Any]) -> None:
        assert self.blueprint.export is not None
        for name in _BESIDE:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, target / name)
        if self.tokenizer.is_file():
            shutil.copyfile(self.tokenizer, target / _TOKENIZER)
        state = self.blueprint.export(adapters.merged(network))
        save_file({name: value.cpu().contiguous() for name, value in state.items()}, target / WEIGHTS, {"format": "pt"})
        average = adapters.trained(self.network, network)
        save_file({name: value.cpu().contiguous() for name, value in average.items()}, target / AVERAGE)
        hashes = {name: tensors.sha256(target / name) for name in (WEIGHTS, AVERAGE)}
        config = whole.read_json(self.folder / "config.json")
        own: dict[str, Any] = {}
        if self.made:
            own = {"vocab_size": vocabulary.size, "mask_token_id": vocabulary.mask_id, "is_causal": False}
            notes = {**notes, "adapted": {"shifted": self.network.shifted, "bos_id": self.network.bos_id}}
        said = {**own, "dtype": "float32", "edlm": {**notes, tensors.HASHES: hashes}}
        kept = {name: value for name, value in config.items() if name not in _OWN}
        whole.write_json(target / "config.json", {**kept, **said})

    def _read(self, folder: Path, vocabulary: Vocabulary) -> dict[str, Tensor]:
        """Read the averages of what is trained; the rest is what it was."""
        tensors.verify(folder, whole.read_json(folder / "config.json").get("edlm", {}), AVERAGE)
        frozen = {name: value for name, value in self.network.named_parameters() if not value.requires_grad}
        return {**frozen, **tensors.read_safetensors(folder / AVERAGE)}


def start(
    folder: str | Path,
    length: int,
    shifted: bool | None = None,
    tokenizer: str | None = None,
    adapter: tuple[int, float] | None = None,
) -> Start:
    """Take up a denoiser's folder, or make one of an autoregressive model's: attention both ways, a row for a mask.

    Args:
        folder: `config.json`, weights and `tokenizer.json` of a causal family, of a denoiser, or what an adaptation has
            written.
        length: tokens of a text.
        shifted: whether the state of the token before predicts a token, the state of a bos in front the first one.
            None: as the model is; an autoregressive one is.
        tokenizer: another `tokenizer.json`; None: that of the folder.
        adapter: rank and alpha of low-rank adapters; None trains all weights.

    Returns:
        The denoiser, float32.

    Raises:
        ValueError: naming the folder, and what is missing or does not fit.

    Example:
        >>> from edlm.weights import adaptation
        >>> adaptation.start("Qwen2.5-7B", length=8, shifted=True).vocabulary.mask_id
        33
    """
    arguments.require_whole("length", length)
    folder = Path(folder)
    if predicts_masks(folder):
        return _further(folder, length, shifted, tokenizer, adapter)
    before = large.adapted_by(folder)
    if before is not None and shifted not in (None, before["shifted"]):
        raise ValueError(f"shifted = {shifted}: {folder} was adapted with shifted = {before['shifted']}")
    shifted = shifted if shifted is not None else before is None or before["shifted"]
    words = large.load_vocabulary(folder, tokenizer, add_mask=True)
    if shifted and words.bos_id is None:
        raise ValueError(f"shifted = True needs a bos to read in front of a text: {folder}/config.json names none")
    bos_id = words.bos_id if shifted else None
    network = partial(_network, words, length, bos_id)
    by_transformers = partial(_by_transformers, words, length, bos_id)
    blueprint: Any = large.read_start(folder, length + (1 if shifted else 0), network, by_transformers)
    found = decoders.load(blueprint, torch.float32)
    if found.max_length < length:
        raise ValueError(f"length = {length} must be at most {found.max_length}, what {folder} reads")
    if adapter is not None:
        adapters.add(found, *adapter)
    return Start(found, words, folder, Path(tokenizer or folder / _TOKENIZER), blueprint, made=True)


def predicts_masks(folder: str | Path) -> bool:
    """Check whether a folder holds a diffusion model or a masked language model: no one has to make a denoiser of it.

    Args:
        folder: holds `config.json`.

    Returns:
        Whether its `model_type` is that of such a family.

    Raises:
        ValueError: naming the file, if it cannot be read.

    Example:
        >>> from edlm.weights import adaptation
        >>> adaptation.predicts_masks("LLaDA-8B-Base"), adaptation.predicts_masks("Qwen2.5-7B")
        (True, False)
    """
    return whole.read_json(Path(folder) / "config.json").get("model_type") in large.DENOISERS


def start_causal(
    folder: str | Path, length: int, ids: Vocabulary, adapter: tuple[int, float] | None = None, key: str = "ar"
) -> Start:
    """Make an autoregressive model's folder ready to be trained further: all weights, or adapters.

    Args:
        folder: `config.json` and the weights of a causal family.
        length: tokens of a text.
        ids: the vocabulary of the training, whose tokens have to be the model's.
        adapter: rank and alpha of low-rank adapters; None trains all weights.
        key: the key that names the folder in a config, for messages.

    Returns:
        The model, float32.

    Raises:
        ValueError: naming the folder, and what does not fit.

    Example:
        >>> import edlm
        >>> from edlm.weights import adaptation
        >>> ids = edlm.large.load_vocabulary("LLaDA-8B-Base")
        >>> adaptation.start_causal("Qwen2.5-7B", length=8, ids=ids).network.max_length
        8
    """
    arguments.require_whole("length", length)
    folder = Path(folder)
    large.require_same_tokens(ids, folder)
    blueprint: Any = large.read_autoregressive(folder, length, vocab_size=ids.size)
    found = decoders.load(blueprint, torch.float32)
    if found.max_length < length:
        raise ValueError(
            f"{key} = {str(folder)!r} reads {found.max_length} tokens, and a text has {length}: give length="
        )
    if adapter is not None:
        adapters.attach(found, *adapter)
    return Start(found, ids, folder, folder / _TOKENIZER, blueprint)


def _further(
    folder: Path, length: int, shifted: bool | None, tokenizer: str | None, adapter: tuple[int, float] | None
) -> Start:
    """Take up a denoiser as its folder has it; what nothing in a text predicts is read in front of it."""
    kind = whole.read_json(folder / "config.json")["model_type"]
    if tokenizer is not None and kind in large.MASKED:
        raise ValueError(f"tokenizer = {tokenizer!r} must be null: {folder}, a {kind}, goes by that of its folder")
    words = large.load_vocabulary(folder, tokenizer)
    blueprint: Any = large.read_diffusion(folder, length + 1)
    outline = decoders.outline(blueprint)
    if shifted not in (None, outline.shifted):
        raise ValueError(f"shifted = {shifted}: {folder}, a {kind}, has {outline.shifted}; give null")
    if outline.shifted and words.bos_id is None:
        raise ValueError(f"{folder}/config.json: bos_token_id is missing, and nothing else predicts a first token")
    longest = outline.max_length - (1 if outline.shifted else 0)
    if longest < length:
        raise ValueError(f"length = {length} must be at most {longest}, what {folder} reads")
    found = decoders.load(blueprint, torch.float32)
    found.bos_id, found.max_length = words.bos_id if outline.shifted else None, length
    if adapter is not None:
        adapters.add(found, *adapter)
    return Start(found, words, folder, Path(tokenizer or folder / _TOKENIZER), blueprint)


def _by_transformers(
    words: Vocabulary, length: int, bos_id: int | None, folder: Path, config: Any, _: int
) -> Pretrained:
    return pretrained.adapted(folder, config, length, bos_id is not None, bos_id, words.mask_id)


def _network(words: Vocabulary, length: int, bos_id: int | None, decoder: Any) -> DecoderNetwork:
    decoder = decoders.bidirectional(decoder)
    if words.mask_id == decoder.tok_embeddings.num_embeddings:
        decoder = decoders.with_mask(decoder)
    return DecoderNetwork(decoder, length, bos_id is not None, vocab_size=words.size, bos_id=bos_id)
