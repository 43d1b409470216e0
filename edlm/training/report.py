"""The end of a network's training: lines of a table and the figures of a report."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from edlm.data.pieces import Blocks
from edlm.data.vocabulary import Vocabulary
from edlm.likelihood import estimates, nelbo, unigram
from edlm.likelihood.estimates import Estimate
from edlm.runs import files, tables
from edlm.training.loop import TrainingRun

Line = tuple[str, str, str]
NOISE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # times at which a report says what is left of a mask
_MOST = 1024  # blocks of the training split whose tokens are counted


class HeldOut(NamedTuple):
    """Held-out text without a network. unigram: its NLL in nats per token by how often tokens occur in training."""

    unigram: Estimate
    characters_per_token: float


def held_out(blocks: Blocks, vocabulary: Vocabulary, rows: int) -> HeldOut:
    """Measure the first `rows` blocks of the test split, those of a network's own figure.

    Bits per character are of these blocks alone: a token of other texts may spell more or fewer characters.
    """
    train, test = blocks.train[:_MOST], blocks.test[:rows]
    counted = nelbo.not_padding(test, vocabulary.pad_id)
    seen = train[nelbo.not_padding(train, vocabulary.pad_id)]
    nats = -unigram.log_law(seen, vocabulary.size, vocabulary.mask_id)[test]
    tokens = counted.sum(1).clamp(min=1)
    characters = sum(map(len, vocabulary.decode(test)))
    single = estimates.estimate(torch.where(counted, nats, 0.0).sum(1) / tokens, tokens)
    return HeldOut(single, characters / int(tokens.sum()))


def lines(claim: str, found: Estimate, counted: str, perplexity: str, run: TrainingRun, text: HeldOut) -> list[Line]:
    """Lay out a figure of held-out text in bits beside a model that knows no context, and the size of the run.

    claim: the name of the figure; counted: what n counts; perplexity: what its exponential is called.
    """
    parameters, unit = sum(p.numel() for p in run.average.parameters()), run.vocabulary.unit
    value, length = f"{found.bits:.4f} ± {found.bits_error:.4f} bits/{unit}", text.characters_per_token
    per_character = f"{found.bits / length:.4f} ± {found.bits_error / length:.4f}"
    return [
        (f"{claim} (test)", value, f"n = {found.n} {counted}"),
        *[("bits per character", per_character, f"{length:.2f} characters a token")] * (unit == "token"),
        unigram_line(text, unit),
        (perplexity, f"{found.perplexity:.3f}", ""),
        ("steps, parameters", f"{run.step:,}, {parameters:,}", f"seed {run.seed}, EMA weights"),
    ]


def unigram_line(text: HeldOut, unit: str) -> Line:
    """Lay out what a model that knows no context has: less than that must be had to have learned anything."""
    return "unigram law", f"{text.unigram.bits:.4f} bits/{unit}", f"knows how often each {unit} occurs, and no context"


def level_lines(levels: Mapping[str, Estimate | None], unit: str) -> list[Line]:
    """Lay out what is left of a mask at each time, or that too few draws got one."""
    return [
        (f"bits left at t = {t}", f"{value.bits:.4f}", f"per masked {unit}")
        if value is not None
        else (f"bits left at t = {t}", "left out", "fewer than two draws got a mask")
        for t, value in levels.items()
    ]


def conclude(run: TrainingRun, rows: list[Line], found: Estimate, text: HeldOut, **others: Any) -> None:
    """Print the table, and write the figures to the report of the run's folder."""
    print(f"\n{tables.table(rows)}\n\n  written to {run.folder}")
    figures = {**found._asdict(), "bits": found.bits, "bits_error": found.bits_error, "step": run.step}
    figures |= {"bits_per_character": found.bits / text.characters_per_token, "unigram_bits": text.unigram.bits}
    files.write_json(run.folder / files.REPORT, {**figures, **others})
