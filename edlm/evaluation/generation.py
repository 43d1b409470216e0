"""Texts of whatever a config names: its networks, its sampler, and what is written of each text that they draw."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edlm import limits, samplers
from edlm.data import corpora
from edlm.data.vocabulary import Vocabulary
from edlm.evaluation import drafted
from edlm.runs import files, locks, processes
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.samplers import autoregressive, baselines, configs, execution, pipelines
from edlm.samplers.autoregressive import Stepped
from edlm.samplers.baselines import Reverse
from edlm.samplers.corrections import OfEnergy
from edlm.samplers.pipelines import Pipeline
from edlm.weights import resolve
from edlm.weights.resolve import Sources

SETTINGS: Schema = {
    **resolve.SETTINGS,
    **configs.SHORT_KEYS,
    "energy": schemas.optional(schemas.either(schemas.text, configs.COMPONENT)),
    "drafts": schemas.omissible(schemas.optional(schemas.section(drafted.SECTION))),
}
FIGURES = {
    "denoiser_passes": "per text",
    "energy_passes": "per text",
    "rounds": "of drafts, per text",
    "ess": "effective particles, mean over corrected passes",
    "log_prob": "nats per text, under the law it was drawn from",
}
_CHANGES_NO_TEXT = {
    "output",
    "overwrite",
    "num_samples",
    "batch_size",
    "device",
    "threads",
    "execution",
    "live",
    "energy_rows",
    "plan",
}

Figures = dict[str, list[Any]]
Draw = Callable[[int, int], tuple[Tensor, Figures]]  # so many texts from a number on: tokens (b, l), and what they took


def load(settings: Mapping[str, Any], device: torch.device) -> Sources:
    """Load what a config names; an energy of one's own, a component, is built over the loaded denoiser.

    Raises ValueError as `resolve.load` does, and for such an energy with nothing to correct.
    """
    own = settings["energy"]
    if not isinstance(own, Mapping):
        return resolve.load(settings, device)
    resolve.check(settings)
    found = resolve.load({**settings, "energy": None}, device)
    if found.denoiser is None:
        raise ValueError(
            f"energy = {dict(own)} corrects a masked diffusion denoiser, and {settings['denoiser']!r} is none"
        )
    energy = schemas.call("energy", own, configs.offers(settings, **offered(found)), "energy").to(device)
    heat = settings["energy_temperature"]
    return found._replace(correction=OfEnergy(energy, temperature=heat, called=configs.called(own)))


def offered(found: Sources) -> dict[str, Any]:
    """Collect what a component of one's own can take of what is loaded."""
    about = {} if found.denoiser is None else {"denoiser": found.denoiser, "mask_id": found.denoiser.mask_id}
    return {"vocabulary": found.vocabulary, "schedule": found.schedule, **about}


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Hash all that holds texts of different settings, weights or components apart."""
    kept = {key: value for key, value in settings.items() if key not in _CHANGES_NO_TEXT}
    counted = (settings.get("drafts") or {}).get("counts")
    if counted is not None:
        kept["counted"] = corpora.text_files(counted).fingerprint
    code = schemas.sources({key: settings.get(key) for key in ("energy", "sampler")})
    return files.fingerprint({**kept, "weights": resolve.weights_of(settings), **({"code": code} if code else {})})


@contextmanager
def named_output(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Put the fingerprint of the settings in the name of their output, where that asks for it, and lock it."""
    output = settings["output"]
    if locks.BY_SETTINGS not in output:
        yield dict(settings)
        return
    resolve.check(settings)
    output = output.replace(locks.BY_SETTINGS, fingerprint(settings)[:8])
    with locks.alone(locks.FILE, output):
        yield {**settings, "output": output}


def prompt(settings: Mapping[str, Any], found: Sources) -> Tensor | None:
    """Encode a config's prompt: tokens (l,), after those that every text opens with; None if there are none."""
    tokens = None if settings["prompt"] is None else found.vocabulary.encode_prompt(settings["prompt"])
    if not found.opening:
        return tokens
    return torch.tensor([*found.opening, *(() if tokens is None else tokens)])


def source(settings: Mapping[str, Any], found: Sources) -> tuple[Draw, list[str]]:
    """Build what draws texts, and a line for each setting that does nothing: a sampler, a baseline, or an AR model."""
    shown = samplers.live(found.vocabulary) if settings["live"] and processes.is_first() else None
    how = {"seed": settings["seed"], "prompt": prompt(settings, found)}
    length = settings["length"]
    if settings.get("drafts") and (found.denoiser is not None or found.baseline is not None):
        raise ValueError(
            f"drafts = {dict(settings['drafts'])} is for an AR model alone: with denoiser = {settings['denoiser']!r} "
            "the sampler says how it drafts, docs/howto/samplers.md"
        )
    if found.denoiser is not None:
        pipeline, told = _pipeline(settings, found)
        length = length or found.denoiser.max_length
        return partial(_of_pipeline, pipeline, length, settings["stride"], {**how, "callback": shown}), told
    if settings.get("sampler"):
        raise ValueError(f"sampler = {settings['sampler']} needs a masked diffusion denoiser to sample from")
    if found.baseline is not None:
        length = length or found.baseline.denoiser.max_length
        return partial(_of_baseline, found.baseline, length, settings["num_steps"], {**how, "callback": shown}), []
    assert found.ar is not None
    if settings.get("drafts"):
        return drafted.draw(settings, found, length or found.ar.max_length, how["prompt"]), []
    how |= {"temperature": settings["temperature"]}
    ids = (found.vocabulary.mask_id, found.bos_id)
    return partial(_of_ar, found.ar, length or found.ar.max_length, ids, how), []


def records(draw: Draw, vocabulary: Vocabulary, seed: int, drawn_by: str, count: int, first: int) -> list[Any]:
    """Make one record per text: what it says, what it is made of, and how it came about; drawn_by: a fingerprint."""
    tokens, figures = draw(count, first)
    return [
        {
            "row": first + index,
            "seed": seed,
            "settings": drawn_by,
            "text": text,
            "tokens": tokens[index].tolist(),
            **{name: values[index] for name, values in figures.items()},
        }
        for index, text in enumerate(vocabulary.decode(tokens.cpu()))
    ]


def summary(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Average what the records of texts say, as rows of a table."""
    rows = []
    for key, remark in FIGURES.items():
        measured = [record[key] for record in found if record.get(key) is not None]
        if measured:
            rows.append((key.replace("_", " "), f"{sum(measured) / len(measured):.2f}", remark))
    return rows


def _pipeline(settings: Mapping[str, Any], found: Sources) -> tuple[Pipeline, list[str]]:
    """The sampler of a config over the window of its denoiser, in its execution mode."""
    assert found.denoiser is not None
    window = found.denoiser.max_length
    length = settings["length"] or window
    if length > window and settings["stride"] is None:
        raise ValueError(
            f"length = {length} is more than the denoiser's {window}: give a stride below {window}, by which "
            "its window moves on"
        )
    energies = {}
    if found.correction is not None:
        energies["energy" if settings["ar"] is None else "ar"] = found.correction.parts(found.denoiser).energy
    sampler, told = configs.sampler_of(settings, found.denoiser, found.correction, energies, offered(found))
    key = "sampler.candidates" if settings.get("sampler") else "num_particles"
    rows = min(settings["batch_size"], settings["num_samples"])
    pipeline = pipelines.pipeline(sampler, min(length, window))
    limits.require_texts(key, sampler.most, pipeline.length, each_of=rows)
    return execution.accelerate(pipeline, settings["execution"]), told


def _of_pipeline(
    pipeline: Pipeline, length: int, stride: int | None, how: Mapping[str, Any], count: int, first: int
) -> tuple[Tensor, Figures]:
    sample = partial(pipelines.sample, pipeline)
    if length > pipeline.length and stride is not None:
        sample = partial(pipelines.extend, pipeline, length, stride)
    out = sample(count, first_row=first, **how)
    info = out["info"].cpu()
    return out["tokens"], {
        "denoiser_passes": info["denoiser_passes"].tolist(),
        "energy_passes": info["energy_passes"].tolist(),
        "ess": [None if math.isnan(value) else value for value in info["ess"].nanmean(-1).tolist()],
    }


def _of_baseline(
    kernel: Reverse, length: int, num_steps: int, how: Mapping[str, Any], count: int, first: int
) -> tuple[Tensor, Figures]:
    out = baselines.sample(kernel, length, num_steps, count, first_row=first, **how)
    return out["tokens"], {"denoiser_passes": out["info"]["denoiser_passes"].tolist()}


def _of_ar(
    ar: Stepped, length: int, ids: tuple[int, int | None], how: Mapping[str, Any], count: int, first: int
) -> tuple[Tensor, Figures]:
    out = autoregressive.sample(ar, count, length, *ids, first_row=first, **how)
    return out.tokens, {"log_prob": out.log_prob.sum(-1).tolist()}
