"""Texts of an AR model alone whose next tokens are drafted: what a config says of the drafts, and their drafter."""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from edlm.contracts import Causal
from edlm.data import corpora
from edlm.data.vocabulary import Vocabulary
from edlm.models.counts import Counts
from edlm.nn.networks import Transformer
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.samplers import ahead, drafters
from edlm.samplers.drafters import Drafter
from edlm.weights.resolve import Sources

SECTION: Schema = {
    "ahead": schemas.integer(1),
    "counts": schemas.omissible(schemas.optional(schemas.text)),
    "order": schemas.omissible(schemas.integer(1)),
    "tokens": schemas.omissible(schemas.integer(1)),
}
ORDER, TOKENS = 6, 2_000_000  # of an n-gram, and those that are counted


def drafter(settings: Mapping[str, Any], found: Sources) -> Drafter:
    """Build what drafts for the AR model of a config: its own masks, or counts in a text.

    Raises ValueError for masks of a network that cannot read them, for an order or a number of tokens without counts,
    and as `counts.Counts` and `corpora.text_files` do.
    """
    asked, law = settings["drafts"], settings["temperature"]
    if asked.get("counts") is not None:
        sizes = asked.get("order", ORDER), asked.get("tokens", TOKENS)
        device = cast(Tensor, found.ar.get_submodule("head").weight).device  # type: ignore[union-attr]
        return drafters.OfCounts(counts(asked["counts"], *sizes, found.vocabulary, device), asked["ahead"], law)
    for key in ("order", "tokens"):
        if key in asked:
            raise ValueError(f"drafts.{key} = {asked[key]} is of counts: give drafts.counts, a text to count in")
    if not isinstance(found.ar, Transformer):
        raise ValueError(
            f"drafts = {dict(asked)} asks for drafts by masks, which a {type(found.ar).__name__} does not read: give "
            "drafts.counts, a text to count in"
        )
    return drafters.OfMasks(found.ar, found.vocabulary.mask_id, asked["ahead"], law)


def counts(path: str, order: int, tokens: int, words: Vocabulary, device: torch.device) -> Counts:
    """Count the first tokens of a text, of the training split of a folder; the counts stay on a device."""
    counted, total = list[Tensor](), 0
    for document in corpora.text_files(path).train:
        counted.append(words.encode(document))
        total += len(counted[-1])
        if total >= tokens:
            break
    return Counts(torch.cat(counted)[:tokens].to(device), order, words.size, words.mask_id)


def draw(settings: Mapping[str, Any], found: Sources, length: int, prompt: Tensor | None) -> Any:
    """Build what draws so many texts from a number on, and says what they took."""
    ids = found.vocabulary.mask_id, found.bos_id
    how = {"seed": settings["seed"], "prompt": prompt}
    return partial(_drawn, partial(ahead.sample, cast(Causal, found.ar), drafter(settings, found)), length, ids, how)


def _drawn(
    sample: Any, length: int, ids: tuple[int, int | None], how: Mapping[str, Any], count: int, first: int
) -> tuple[Tensor, dict[str, list[Any]]]:
    out = sample(count, length, *ids, first_row=first, **how)
    return out.tokens, {"rounds": out.rounds.tolist(), "calls": out.calls.tolist()}
