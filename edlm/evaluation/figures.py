"""Likelihoods of a set of texts: one pass over the texts per figure, and the tables that show them."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edlm.data.pieces import Excerpt
from edlm.data.vocabulary import Vocabulary
from edlm.evaluation.scores import TUBE, Score, Scores
from edlm.likelihood import estimates, orders, paper_nelbo
from edlm.likelihood.estimates import Estimate
from edlm.runs import processes, tables

_SHORT = (3, 2, 4, 8)  # columns for a terminal: bits, perplexity, what is over plain, passes
MOST_UNRELIABLE = 0.05  # of the texts of an interval


class TextSet(NamedTuple):
    """Excerpts to be scored, chosen out of `num_all`; `characters`: how many the scored tokens of the chosen spell."""

    name: str
    excerpts: list[Excerpt]
    num_all: int
    characters: int

    @property
    def tokens(self) -> int:
        """Count the tokens that are scored."""
        return sum(len(excerpt.scored) for excerpt in self.excerpts)


class Collected(NamedTuple):
    """Scores of every text, in the order of the texts; how many tokens of each are scored (n,); seconds."""

    scores: Scores
    tokens: Tensor
    seconds: float


class Figure(NamedTuple):
    """One number of one model on one set of texts, in nats per token, with what is needed to judge it."""

    texts: str
    model: str
    name: str
    value: Estimate
    tokens_per_character: float
    seconds: float
    passes: Mapping[str, float]
    ess: float | None
    log_weight_std: float | None
    excess: Estimate | None  # over the plain sampler's bound on the same passes
    unreliable_rows: float | None  # share of rows past `paper_nelbo.RELIABLE_STD`, or as the scores say

    @property
    def is_paper_nelbo(self) -> bool:
        """Whether this is one end of the paper's figure."""
        return self.name.startswith("paper_nelbo")

    @property
    def is_tube(self) -> bool:
        """Whether this is the lower end of an interval."""
        return self.name.startswith(TUBE)

    @property
    def unreliable(self) -> bool:
        """Whether weights vary too much: for log Z to be known, or, of more than one text in 20, for an interval."""
        std, rows = self.log_weight_std, self.unreliable_rows
        if self.is_tube:
            return rows is not None and rows > MOST_UNRELIABLE
        return self.is_paper_nelbo and std is not None and not std <= paper_nelbo.RELIABLE_STD

    def record(self) -> dict[str, Any]:
        """Give all of it as plain values; a number that is not finite is null."""
        per_character = self.tokens_per_character / math.log(2)
        record = {
            "texts": self.texts,
            "model": self.model,
            "figure": self.name,
            "nats_per_token": self.value.mean,
            "nats_error": self.value.standard_error,
            "perplexity": self.value.perplexity,
            "bits_per_character": self.value.mean * per_character,
            "bits_error": self.value.standard_error * per_character,
            "excess_nats": None if self.excess is None else self.excess.mean,
            "excess_error": None if self.excess is None else self.excess.standard_error,
            "n": self.value.n,
            "ess": self.ess,
            "log_weight_std": self.log_weight_std,
            "unreliable_rows": self.unreliable_rows,
            "seconds": self.seconds,
            "passes": self.passes,
        }
        if self.is_paper_nelbo:
            record |= {"warning": paper_nelbo.WARNING, "reliable": not self.unreliable}
        if self.is_tube:
            record |= {"reliable": not self.unreliable}
        return {key: finite(value) for key, value in record.items()}


def finite(value: Any) -> Any:
    """Return the value, or None for a number that json has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def choose(
    name: str, excerpts: Sequence[Excerpt], rows: int | None, vocabulary: Vocabulary, least_given: int
) -> TextSet:
    """Choose so many excerpts, evenly spread over all, each with at least `least_given` tokens that are not scored.

    Raises ValueError unless two are left.
    """
    given = [excerpt._replace(given=max(excerpt.given, least_given)) for excerpt in excerpts]
    usable = [excerpt for excerpt in given if len(excerpt.scored)]
    count = len(usable) if rows is None else min(rows, len(usable))
    chosen = [usable[number * len(usable) // count] for number in range(count)]
    if count < 2:
        raise ValueError(f"{name}: {count} excerpts to score, but an error bar needs at least 2")
    characters = sum(len(vocabulary.decode(excerpt.scored)) for excerpt in chosen)
    return TextSet(name, chosen, len(usable), characters)


def by_single_tokens(texts: TextSet, law: Tensor) -> float:
    """Score texts by a law of single tokens, log p (v,): the nats of all scored tokens together."""
    return -float(torch.cat([law[each.scored] for each in texts.excerpts]).sum())


def batches(texts: TextSet, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield tokens (b, l), which of them are scored, and the rows' numbers (b,); all excerpts once, without padding."""
    lengths = torch.tensor([len(excerpt.tokens) for excerpt in texts.excerpts])
    for length in lengths.unique().flip(0):
        for row in (lengths == length).nonzero().squeeze(-1).split(batch_size):
            tokens = torch.stack([texts.excerpts[number].tokens for number in row.tolist()])
            given = torch.tensor([texts.excerpts[number].given for number in row.tolist()]).unsqueeze(-1)
            end = length - torch.tensor([texts.excerpts[number].given_after for number in row.tolist()]).unsqueeze(-1)
            place = torch.arange(int(length))
            yield tokens, (place >= given) & (place < end), row


def collect(model: str, score: Score, texts: TextSet, batch_size: int, seed: int, device: torch.device) -> Collected:
    """Score all excerpts, a value for each in the order of `texts`.

    Several processes share the batches. Raises ValueError naming the model and the texts for what is no number.
    """
    key, started = torch.tensor(seed, device=device), time.monotonic()

    def work(batch: tuple[Tensor, Tensor, Tensor]) -> Scores:
        tokens, scored, row = (part.to(device) for part in batch)
        try:
            return score(tokens, scored, key, row).cpu()
        except ValueError as error:
            raise ValueError(f"{model} on {texts.name}: {error}") from error

    parts = list(batches(texts, batch_size))
    found = processes.spread(work, parts, f"{texts.name}: {model}")
    back = torch.cat([row for _, _, row in parts]).argsort()
    passes: dict[str, float] = {}
    for name, number in ((name, number) for scores in found for name, number in scores.passes.items()):
        passes[name] = passes.get(name, 0) + number
    rows = [_in_place(each, back) for each in zip(*(scores.of_rows for scores in found), strict=True)]
    nats = {name: torch.cat([each.nats[name] for each in found])[back] for name in found[0].nats}
    tokens = torch.cat([scored.sum(-1) for _, scored, _ in parts])[back]
    return Collected(Scores(nats, passes, *rows), tokens, time.monotonic() - started)


def measure(model: str, score: Score, texts: TextSet, batch_size: int, seed: int, device: torch.device) -> list[Figure]:
    """Score all excerpts and average over tokens: one figure for each that `score` names; see `collect`."""
    scores, tokens, seconds = collect(model, score, texts, batch_size, seed, device)
    std, wrong = scores.log_weight_std, scores.unreliable
    if wrong is None and std is not None:
        wrong = std > paper_nelbo.RELIABLE_STD
    return [
        Figure(
            texts.name,
            model,
            name,
            estimates.estimate(values, tokens),
            texts.tokens / max(texts.characters, 1),
            seconds,
            scores.passes,
            None if scores.ess is None else float(scores.ess.nanmean()),
            None if std is None else float(std.nanmean()),
            None if scores.excess is None else estimates.estimate(scores.excess, tokens),
            None if wrong is None else float(wrong.double().mean()),
        )
        for name, values in scores.nats.items()
    ]


def table(figures: Sequence[Figure]) -> str:
    """Lay out the figures of one set of texts for a terminal; the paper's figure never without its warning."""
    shown = [(row[0], *(row[at] for at in _SHORT)) for row in _rows(figures, "token")]
    return "\n".join([tables.columns(shown), *_notes(figures)])


def every_column(figures: Sequence[Figure], unit: str, heading: str) -> str:
    """Write the figures of one set of texts as Markdown, with all that is known of each; unit: what a token is."""
    notes = [note.strip().replace("* ", "\\* ", 1) for note in _notes(figures)]
    return "\n\n".join([heading, tables.markdown(_rows(figures, unit)), *notes]) + "\n"


def _rows(figures: Sequence[Figure], unit: str) -> list[tuple[str, ...]]:
    head = (
        "",
        f"nats/{unit}",
        "perplexity",
        "bits/character",
        "over plain",
        "n",
        "ESS",
        "s.d.",
        "passes/text",
        "seconds",
    )
    return [head, *((f"{figure.model}: {figure.name}{_mark(figure)}", *_cells(figure)) for figure in figures)]


def comparison(figures: Sequence[Figure]) -> str:
    """Lay out perplexities of all models over all sets of texts: a row per figure, a column per set."""
    return "\n".join([tables.columns(_perplexities(figures)), *_notes(figures)])


def markdown(figures: Sequence[Figure], remarks: Sequence[str]) -> str:
    """Write the table of `comparison` as Markdown, with remarks behind it."""
    notes = [note.strip().replace("* ", "\\* ", 1) for note in (*remarks, *_notes(figures))]
    return "\n\n".join([tables.markdown(_perplexities(figures)), *notes]) + "\n"


def _perplexities(figures: Sequence[Figure]) -> list[tuple[str, ...]]:
    names = list(dict.fromkeys(figure.texts for figure in figures))
    rows: dict[tuple[str, str], dict[str, Figure]] = {}
    for figure in figures:
        rows.setdefault((figure.model, figure.name), {})[figure.texts] = figure
    lines = [
        (f"{model}: {name}{'*' if name.startswith('paper_nelbo') else ''}", *(_perplexity(found[n]) for n in names))
        for (model, name), found in rows.items()
    ]
    return [("perplexity", *names), *lines]


def _perplexity(figure: Figure) -> str:
    return f"{figure.value.perplexity:.4g}{'!' if figure.unreliable else ''}"


def _mark(figure: Figure) -> str:
    return ("*" if figure.is_paper_nelbo else "") + ("!" if figure.unreliable else "")


def _notes(figures: Sequence[Figure]) -> list[str]:
    notes = [f"  * {paper_nelbo.WARNING}"] if any(figure.is_paper_nelbo for figure in figures) else []
    if any(figure.unreliable and figure.is_paper_nelbo for figure in figures):
        notes.append(f"  ! unreliable: the log-weights' s.d. is above {paper_nelbo.RELIABLE_STD:g}, log Z is not known")
    if any(figure.unreliable and figure.is_tube for figure in figures):
        notes.append(
            f"  ! unreliable: the ESS is below {orders.RELIABLE_SHARE:g} K for more than {MOST_UNRELIABLE:.0%} of the "
            f"texts; what {TUBE} says is then mostly too high, and no lower end"
        )
    return notes


def _in_place(parts: Sequence[Tensor | None], back: Tensor) -> Tensor | None:
    """Values of batches in the order of the texts, None if there are none."""
    there = [part for part in parts if part is not None]
    return torch.cat(there)[back] if there else None


def _cells(figure: Figure) -> tuple[str, ...]:
    value, record = figure.value, figure.record()
    bits, error = record["bits_per_character"], record["bits_error"]
    return (
        f"{value.mean:.4f} ± {value.standard_error:.4f}",
        f"{value.perplexity:.4g}",
        "-" if bits is None or error is None else f"{bits:.4f} ± {error:.4f}",
        "-" if figure.excess is None else f"{figure.excess.mean:+.4f} ± {figure.excess.standard_error:.4f}",
        str(value.n),
        "-" if figure.ess is None else f"{figure.ess:.2f}",
        "-" if figure.log_weight_std is None else f"{figure.log_weight_std:.2f}",
        f"{sum(figure.passes.values()) / value.n:.0f}",
        f"{figure.seconds:.1f}",
    )
