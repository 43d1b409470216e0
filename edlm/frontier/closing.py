"""The end of an energy's training: its sampler beside plain ones and the one in order, on the same texts.

All write in one order, by margin, which is a rule. So plain and in order have exact likelihoods, and what an energy
corrects has a bound.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edlm.contracts import Denoiser
from edlm.data.pieces import Blocks, Excerpt, Rows
from edlm.data.vocabulary import Vocabulary
from edlm.evaluation import figures, ngrams, scores
from edlm.evaluation.figures import TextSet
from edlm.evaluation.judges import Judge
from edlm.frontier import curve, draws
from edlm.frontier.curve import Point
from edlm.frontier.draws import Drawing
from edlm.likelihood import estimates, nelbo, unigram
from edlm.likelihood.estimates import Estimate
from edlm.models.denoisers import SubsDenoiser
from edlm.runs import processes
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.samplers import blocks as block_plans
from edlm.samplers import plans, selections
from edlm.samplers.corrections import ChainRule, Correction
from edlm.samplers.planning import Plan
from edlm.samplers.sampler import Sampler

SETTINGS: Schema = {
    "rows": schemas.integer(2),
    "num_samples": schemas.integer(2),
    "counts": schemas.items(schemas.integer(1)),
    "num_completions": schemas.integer(1),
}
ONE, PLAIN, ENERGY, IN_ORDER = "plain, one token a pass", "plain", "corrected by the energy", "written in order"
_COUNTED = 2**21  # tokens of the training text that the judge counts in, at most


class Way(NamedTuple):
    """A way of writing: its likelihood on held-out texts, and texts of its own with what each of them cost."""

    name: str
    point: Point
    judged: Estimate
    passes: Estimate
    seconds: float
    texts: Sequence[str]


class Closing(NamedTuple):
    """All that is known at the end.

    points, records: of all that was scored, for the picture. held_out: what the judge says of the texts themselves.
    left_out: ways that this denoiser or energy has not, each with the reason. single: bits per character of the texts
    by a law of single tokens.
    """

    ways: Sequence[Way]
    held_out: Estimate
    points: Sequence[Point]
    records: Mapping[str, Mapping[str, Any]]
    texts: TextSet
    left_out: Mapping[str, str]
    single: float


def of_run(
    settings: Mapping[str, Any], denoiser: SubsDenoiser, correction: Correction, blocks: Blocks, vocabulary: Vocabulary
) -> Closing:
    """Compare every way: `samples` of a recipe has steps, candidates and window, `closing` has numbers of texts.

    The judge has counted in the training split, and the texts that are scored are of the test split.
    """
    wanted, closing = settings["samples"], settings["closing"]
    length, device = denoiser.max_length, next(denoiser.parameters()).device
    together = -(-length // min(wanted["num_steps"], length))
    table, left_out = ways(denoiser, correction, together, wanted["num_particles"], tuple(wanted["window"]))
    texts = held_out(blocks.test, closing["rows"], vocabulary)
    judge = ngrams.judge(vocabulary.decode(_spread(blocks.train, _COUNTED // length)))
    samplers = {str(each): each for each in (*table.values(), *_curves(table, closing["counts"]))}
    how = {"num_completions": closing["num_completions"], "num_passes": None}
    records = dict(_scored(samplers, texts, how, (settings["batch_size"], wanted["seed"], device)))
    points = {each.name: each for each in curve.points(samplers, records, texts.characters)}
    drawing = Drawing(length, closing["num_samples"], settings["batch_size"], wanted["seed"], device)
    draws.warm_up(list(table.values()), drawing)
    found = [
        _way(name, points[str(each)], each, drawing, judge, vocabulary)
        for name, each in processes.bar(table.items(), desc="texts", unit="way", leave=False)
    ]
    spelled = vocabulary.decode(torch.stack([each.tokens for each in texts.excerpts]))
    single = without_context(texts, blocks.train, vocabulary)
    return Closing(found, judged(judge, spelled), list(points.values()), records, texts, left_out, single)


def without_context(texts: TextSet, train: Rows, vocabulary: Vocabulary) -> float:
    """Compute the bits per character of texts by how often each token occurs in the training text."""
    seen = _spread(train, _COUNTED // len(texts.excerpts[0].tokens))
    law = unigram.log_law(seen[nelbo.not_padding(seen, vocabulary.pad_id)], vocabulary.size, vocabulary.mask_id)
    return figures.by_single_tokens(texts, law) / math.log(2.0) / texts.characters


def ways(
    denoiser: SubsDenoiser, correction: Correction, together: int, candidates: int, window: tuple[float, float]
) -> tuple[dict[str, Sampler], dict[str, str]]:
    """Build the ways of writing, of so many tokens a pass, by name; and say of those that there are not, why.

    The window is that of the energy.
    """
    plain = Sampler(denoiser, plan(denoiser, together))
    built, left_out = {ONE: plain.replace(plan=plan(denoiser, 1)), PLAIN: plain}, {}
    for name, axes in (
        (ENERGY, {"correction": correction, "candidates": candidates, "window": window}),
        (IN_ORDER, {"correction": ChainRule(), "selection": _writing_in_order()}),
    ):
        try:
            sampler = plain.replace(**axes)
            reason = scores.missing(sampler)
        except ValueError as error:
            reason = str(error)
        if reason:
            left_out[name] = reason
        else:
            built[name] = sampler
    return built, left_out


def _writing_in_order() -> str:
    """Name the selection that draws from a law in order, with no candidates to weigh."""
    return next(each.name for each in selections.SELECTIONS.values() if each.in_order)


def plan(denoiser: Denoiser, together: int) -> Plan:
    """Choose so many positions a pass, those first whose likeliest token is furthest ahead; of blocks within each."""
    return block_plans.of_denoiser(plans.Ranked(together, by="margin"), denoiser)


def held_out(blocks: Rows, rows: int, vocabulary: Vocabulary) -> TextSet:
    """Choose texts, evenly spread over blocks; what fills a block up is not scored."""
    tokens = _spread(blocks, rows)
    pad_id = vocabulary.pad_id
    fills = torch.zeros(len(tokens)) if pad_id is None else (tokens == pad_id).sum(1)
    excerpts = [Excerpt(text, 0, int(fill)) for text, fill in zip(tokens, fills, strict=True)]
    return figures.choose("test", excerpts, None, vocabulary, 0)


def judged(judge: Judge, texts: Sequence[str]) -> Estimate:
    """Estimate what a judge says of texts, in bits per character; an empty text counts for nothing."""
    found = judge(texts)
    per_character = estimates.estimate(found.nll / found.tokens.clamp(min=1), found.tokens)
    return Estimate(per_character.bits, per_character.bits_error, per_character.n)


def _curves(table: Mapping[str, Sampler], counts: Sequence[int]) -> Iterator[Sampler]:
    """Yield the samplers of the picture: plain and in order at every number of tokens a pass."""
    for count in counts:
        for name in (PLAIN, IN_ORDER) if count > 1 else (PLAIN,):
            if name in table:
                yield table[name].replace(plan=plan(table[name].denoiser, count))


def _scored(
    samplers: Mapping[str, Sampler], texts: TextSet, how: Mapping[str, Any], on: tuple[int, int, torch.device]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the record of each sampler on the texts. how: of bounds; on: batch size, seed and device."""
    for number, (name, sampler) in enumerate(samplers.items(), start=1):
        shown = f"likelihood {number}/{len(samplers)}"
        yield name, curve.record([figures.collect(shown, each, texts, *on) for each in scores.of_sampler(sampler, how)])


def _way(name: str, point: Point, sampler: Sampler, drawing: Drawing, judge: Judge, vocabulary: Vocabulary) -> Way:
    tokens, cost = draws.draw(sampler, drawing)
    texts = vocabulary.decode(tokens)
    passes = estimates.estimate(torch.tensor(cost["passes"]))
    return Way(name, point, judged(judge, texts), passes, cost["seconds"], texts)


def _spread(blocks: Rows, rows: int) -> Tensor:
    """Take so many blocks, or all if there are fewer, evenly spread."""
    count = min(rows, len(blocks))
    return blocks[torch.arange(count) * len(blocks) // count]
