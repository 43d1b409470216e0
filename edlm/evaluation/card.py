"""The metric card of an evaluation: its networks and texts as they are found, and all that repeats its figures."""

import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import edlm
from edlm.contracts import Energy
from edlm.data import pieces
from edlm.data.pieces import Excerpt
from edlm.data.vocabulary import Vocabulary
from edlm.evaluation import figures, samples, scores
from edlm.evaluation import texts as text_sets
from edlm.evaluation.figures import Figure, TextSet
from edlm.likelihood import unigram
from edlm.runs import files, processes
from edlm.runs import settings as schemas
from edlm.samplers import configs
from edlm.weights import named, tensors
from edlm.weights.named import Models

PRECISION = "networks float32, sums float64"
_COUNTED = 1 << 20  # tokens of a training text that are counted, or a piece more


def load(settings: Mapping[str, Any], device: torch.device) -> Models:
    """Load the networks that a config names; an energy of one's own, a component, is built over the denoiser.

    Raises ValueError as `named.load` does, and for such an energy, or a sampler, with no denoiser to draw from.
    """
    own = settings["energy"]
    if not isinstance(own, Mapping):
        found = named.load(settings, device, settings.get("wrapped"))
        if settings.get("sampler") and found.diffusion is None and found.joint is None:
            raise ValueError(f"sampler = {settings['sampler']} needs a denoiser, or a joint network, to sample from")
        return found
    if settings["denoiser"] is None:
        raise ValueError(f"energy = {own} needs a denoiser to correct")
    found = named.load({**settings, "energy": None}, device, settings.get("wrapped"))
    if found.diffusion is None:
        raise ValueError(f"energy = {own} corrects a masked diffusion denoiser, and {settings['denoiser']!r} is none")
    denoiser = found.diffusion.denoiser
    about = {"vocabulary": found.vocabulary, "denoiser": denoiser, "mask_id": denoiser.mask_id}
    offered = configs.offers(settings, schedule=found.diffusion.schedule, **about)
    energy: Energy = schemas.call("energy", own, offered, "energy").to(device)
    energies = {**found.diffusion.energies, configs.called(own): energy}
    records = {**found.records, "energy": {"component": dict(own), "code_sha256": schemas.sources(own)}}
    return found._replace(diffusion=found.diffusion._replace(energies=energies), records=records)


def documents(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Read the documents of every set of texts, by name. Raises ValueError for a name that is given twice."""
    found = {}
    if settings["split"] is not None:
        found[settings["split"]] = list(getattr(schemas.build(settings["corpus"], "texts"), settings["split"]))
    for asked in settings["zero_shot"]:
        name, texts = text_sets.zero_shot(asked, settings["zero_shot_files"], settings["normalised"])
        if name in found:
            raise ValueError(f"zero_shot names {name!r} twice")
        found[name] = texts
    return found


def text_set(name: str, documents: list[str], settings: Mapping[str, Any], models: Models) -> TextSet:
    """Cut documents as a config says, and choose excerpts. Raises ValueError, naming the set, if too few are left."""
    length = settings["length"] or models.max_length
    least_given = 1 if models.ar is not None and models.ar.bos_id is None else 0
    try:
        found = _excerpts(documents, length, settings, models.vocabulary)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return figures.choose(name, found, settings["rows"], models.vocabulary, least_given)


def real_text(
    drawn: samples.Texts | None, documents: Mapping[str, list[str]], vocabulary: Vocabulary
) -> tuple[samples.Texts, samples.Texts] | None:
    """Choose two sets of excerpts of the first set of texts, as long as a sample; None without samples or texts."""
    if drawn is None or not documents:
        return None
    length = max(len(row) for row in drawn.tokens)
    return samples.held_out(next(iter(documents.values())), vocabulary, length, len(drawn.tokens))


def single_tokens(settings: Mapping[str, Any], vocabulary: Vocabulary) -> Tensor | None:
    """Estimate the law of single tokens, log p (v,), from the training text of the corpus.

    None where no text of the corpus is read, and where it has no training text in this vocabulary.
    """
    if settings["split"] is None:
        return None
    seen = [torch.zeros(0, dtype=torch.int64)]
    try:
        for ids in _encoded(schemas.build(settings["corpus"], "texts"), vocabulary):
            seen.append(ids)
            if sum(map(len, seen)) >= _COUNTED:
                break
    except ValueError:
        return None
    return unigram.log_law(torch.cat(seen), vocabulary.size, vocabulary.mask_id)


def _encoded(corpus: Any, vocabulary: Vocabulary) -> Iterator[Tensor]:
    """The training text, piece after piece; a data set on disk is read no further than it is asked for."""
    for text in corpus.documents("train") if hasattr(corpus, "documents") else corpus.train:
        yield from vocabulary.encode_pieces(text)


def heading(texts: TextSet, settings: Mapping[str, Any], models: Models, singles: Tensor | None) -> str:
    """Say what a table of figures is of: texts, seed, precision, the sampler, and what a law of single tokens has."""
    shown = f"{len(texts.excerpts)} of {texts.num_all} excerpts, {texts.tokens:,} tokens"
    scored = f"{texts.name}: {shown}, {texts.characters:,} characters, seed {settings['seed']}, {PRECISION}"
    return "\n".join([scored, *_without_context(texts, models.vocabulary.unit, singles), *sampler(settings, models)])


def _without_context(texts: TextSet, unit: str, singles: Tensor | None) -> Iterator[str]:
    """Name the figure that a model has to beat to have learned anything."""
    if singles is not None:
        bits = figures.by_single_tokens(texts, singles) / math.log(2.0) / texts.tokens
        yield f"a law of single tokens, of the training text: {bits:.4f} bits/{unit}"


def sampler(settings: Mapping[str, Any], models: Models) -> list[str]:
    """Say of which sampler the bounds are, where one of the models has steps."""
    diffusion = models.diffusion or models.joint
    values = configs.of_short_keys(settings)
    low, high = values["window"]
    alone = None if diffusion is None else scores.plain(models, diffusion, settings)
    plan = f"T={settings['num_steps']}" if alone is None else str(alone.plan)
    how = f"{plan}, k={values['candidates']}, m={settings['num_completions']}, t in [{low:g}, {high:g}]"
    drafts = f"log Z of {settings['log_z_particles']} drafts"
    return [f"  bounds of the sampler with {how}; {drafts}"] if set(models.records) - {"ar"} else []


def card(
    settings: Mapping[str, Any],
    device: torch.device,
    models: Models,
    texts: Sequence[TextSet],
    documents: Mapping[str, list[str]],
    found: Sequence[Figure],
) -> dict[str, Any]:
    """Record settings, versions, device, networks by the hash of their weights, texts by the hash of their content."""
    return {
        "settings": dict(settings),
        "versions": {"edlm": edlm.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "processes": processes.world(),
        "precision": PRECISION,
        "vocabulary": models.vocabulary.fingerprint,
        "networks": models.records,
        "texts": [_text_record(each, documents[each.name]) for each in texts],
        "figures": [figure.record() for figure in found],
        "samples": None if settings["samples"] is None else tensors.sha256(Path(settings["samples"])),
    }


def _text_record(texts: TextSet, documents: list[str]) -> dict[str, Any]:
    return {
        "name": texts.name,
        "fingerprint": files.fingerprint({"documents": documents}),
        "documents": len(documents),
        "excerpts": len(texts.excerpts),
        "of": texts.num_all,
        "tokens": texts.tokens,
        "characters": texts.characters,
    }


def _excerpts(documents: list[str], length: int, settings: Mapping[str, Any], vocabulary: Vocabulary) -> list[Excerpt]:
    """Documents cut as a config says, between bos and eos if it says so."""
    room = length - 2 if settings["wrapped"] else length
    found = pieces.excerpts(documents, vocabulary, room, settings["documents"] == "joined", settings["context"])
    return [pieces.wrap(excerpt, vocabulary) for excerpt in found] if settings["wrapped"] else found
