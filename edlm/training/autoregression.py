"""An autoregressive model by a config: a network of ours, or a folder of the hub that is trained further."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from edlm.data import corpora
from edlm.data.corpora import Source
from edlm.data.pieces import Blocks
from edlm.data.vocabulary import Vocabulary
from edlm.objectives import denoising, drafting
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.training import continuation, log, padding, texts, vocabularies
from edlm.training import settings as training_settings
from edlm.weights import adaptation, checkpoints, large, whole
from edlm.weights.formats import Format

SETTINGS: Schema = {
    "vocabulary": schemas.optional(vocabularies.check),
    "length": schemas.integer(1),
    "padding": padding.check,
    "network": schemas.optional(schemas.component("vocab_size", "max_length", "causal", "pad_id")),
    continuation.KEY: continuation.check,
    "tokenizer": schemas.omissible(schemas.optional(schemas.text)),
    "lora": schemas.omissible(schemas.optional(schemas.section(training_settings.ADAPTER))),
    "drafts": schemas.omissible(
        schemas.optional(schemas.section({"ahead": schemas.integer(1), "every": schemas.integer(1)}))
    ),
    **training_settings.WITHOUT_TIMES,
}
_OF_OURS = ("vocabulary", "network")  # what a folder of the hub has itself
_OF_OTHERS = ("tokenizer", "lora")


class Plan(NamedTuple):
    """A model with all that its training takes: blocks of text, ids, the form of its checkpoints, what a run keeps."""

    network: nn.Module
    vocabulary: Vocabulary
    bos_id: int
    pad_id: int | None
    blocks: Blocks
    form: Format
    identity: Mapping[str, Any]
    settings: Mapping[str, Any]

    def exact(self, network: nn.Module) -> Any:
        """Build the pipeline of the exact likelihood of a network."""
        return denoising.next_token(network, self.vocabulary.mask_id, self.bos_id, self.pad_id)

    def stages(self, network: nn.Module) -> Any:
        """Build the training pipeline of a network, by its likelihood alone or with drafts."""
        drafts, ids = self.settings.get("drafts"), (self.vocabulary.mask_id, self.bos_id)
        if drafts is None:
            return self.exact(network)
        return drafting.next_token(network, *ids, **drafts, pad_id=self.pad_id)  # type: ignore[arg-type]

    def texts(self, network: nn.Module) -> log.Texts:
        """Draw a few texts of a network."""
        return texts.ar_texts(network, self.vocabulary, self.bos_id, self.settings["seed"])


def plan(settings: Mapping[str, Any], corpus: Source) -> Plan:
    """Build the model of a config, and cut its corpus into blocks.

    Raises ValueError that names the key, or the folder, and what does not fit.
    """
    start = settings.get(continuation.KEY)
    folder = None if start is None else large.hub_folder(start)
    _check(settings, folder is not None)
    return _of_ours(settings, corpus) if folder is None else _of_folder(settings, corpus, folder)


def start_id(vocabulary: Vocabulary) -> int:
    """Return the id in front of every block: the vocabulary's bos, or the mask, which no text holds, if it has none."""
    return vocabulary.mask_id if vocabulary.bos_id is None else vocabulary.bos_id


def _check(settings: Mapping[str, Any], large_model: bool) -> None:
    """Raise ValueError for a key that is not read beside what training starts from, or that is missing there."""
    start, unread = settings.get(continuation.KEY), _OF_OURS if large_model else _OF_OTHERS
    what = f"start_from = {start!r} is a large model's folder, see --config smollm2"
    what = what if large_model else "start_from names no large model"
    for key in unread:
        if settings.get(key) is not None:
            raise ValueError(f"{key} = {settings[key]!r} must be null: {what}")
    if not large_model:
        for key in _OF_OURS:
            if settings[key] is None:
                raise ValueError(f"{key} = null is for the folder of a large model in start_from, not {start!r}")
        return
    for key, plain in {"padding": "ignored", "parallel": "data", "drafts": None}.items():
        if settings.get(key) != plain:
            raise ValueError(f"{key} = {settings[key]!r} must be {'null' if plain is None else plain}: {what}")


def _of_ours(settings: Mapping[str, Any], corpus: Source) -> Plan:
    words = vocabularies.build(settings, corpus)
    blocks = _blocks(settings, corpus, words)
    torch.manual_seed(settings["seed"])
    sizes = {"vocab_size": words.size, "max_length": settings["length"]}
    network = schemas.build({"conditioning_size": 0, **settings["network"]}, "network", **sizes, causal=True)
    continuation.take_up(network, settings.get(continuation.KEY), words)
    identity = {
        **_identity(settings, corpus, start_id(words)),
        "network": settings["network"],
        **padding.notes(settings["padding"], blocks, words.filler_id),
        **continuation.notes(settings.get(continuation.KEY)),
        **({} if settings.get("drafts") is None else {"drafts": settings["drafts"]}),
    }
    return Plan(network, words, start_id(words), words.pad_id, blocks, checkpoints.OWN, identity, settings)


def _of_folder(settings: Mapping[str, Any], corpus: Source, folder: Path) -> Plan:
    words = large.load_vocabulary(folder, settings.get("tokenizer"), add_mask=True)
    bos_id = large.special_id(folder, whole.read_json(folder / "config.json"), "bos")
    if bos_id is None:
        raise ValueError(f"start_from: {folder}/config.json names no bos_token_id to read in front of a text")
    adapter = settings.get("lora")
    ranks = None if adapter is None else (adapter["rank"], adapter["alpha"])
    found = adaptation.start_causal(folder, settings["length"], words, ranks, "start_from")
    identity = {
        **_identity(settings, corpus, bos_id),
        **{"start_from": found.weights, "lora": adapter, "tokenizer": words.fingerprint},
    }
    blocks = _blocks(settings, corpus, words)  # what fills them up ends a text, and counts
    return Plan(found.network, words, bos_id, None, blocks, found.form, identity, settings)


def _identity(settings: Mapping[str, Any], corpus: Any, bos_id: int) -> dict[str, Any]:
    known = {"objective": "next_token", "corpus": corpus.fingerprint, "bos_id": bos_id}
    return {**known, "length": settings["length"]}


def _blocks(settings: Mapping[str, Any], corpus: Source, words: Vocabulary) -> Blocks:
    blocks = corpora.load_blocks(corpus, words, settings["length"])
    for name in ("valid", "test"):
        if len(getattr(blocks, name)) < 2:
            raise ValueError(f"length = {settings['length']}: {name} has one block so long, and an error needs two")
    return blocks
