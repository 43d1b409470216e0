"""Figures of samples beside the same figures of held-out text: diversity, distance, and what a judge says."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edlm.data import pieces
from edlm.data.vocabulary import Vocabulary
from edlm.evaluation import judges, quality
from edlm.evaluation.figures import finite
from edlm.evaluation.judges import Judge, Judgement, Likeness
from edlm.likelihood.estimates import Estimate
from edlm.runs import processes, records, tables
from edlm.weights import checkpoints, tensors

ENTROPY = "unigram entropy, nats"
PERPLEXITY = "generative perplexity"
REPEATED = 4  # n of the n-grams whose repetition within a text is counted
_OF_A_MODEL = (".safetensors", ".json", ".txt", ".model")  # its weights, config and tokenizer in Hugging Face's format


class Texts(NamedTuple):
    """Texts of one kind, in tokens and in characters."""

    tokens: list[Tensor]
    spelled: list[str]


class Row(NamedTuple):
    """One figure of the samples, and of held-out text of the same number and length; None where there is none."""

    name: str
    samples: Estimate
    held_out: Estimate | None
    remark: str = ""


def read_samples(path: str, vocabulary: Vocabulary) -> Texts:
    """Read the texts of a file that `generate` wrote. Raises ValueError naming the file, and its line, if it cannot be
    read.

    A record needs `text` of as many tokens as `REPEATED`; its `tokens` are used where it has them, else the text is
    encoded. A record with a `sum` must be what `generate` wrote, in its place.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"samples = {path!r} cannot be read: {error}") from error
    tokens, spelled = [], []
    for number, line in enumerate(lines if any(lines) else [], start=1):
        try:
            text, found = _sample(line, number - 1, vocabulary)
        except (ValueError, KeyError, RecursionError) as error:
            wanted = "a json object with a text, as `edlm run generate` writes it"
            raise ValueError(f"samples = {path!r}, line {number} must be {wanted} ({error})") from error
        if len(found) < REPEATED:
            wanted = f"a text of at least {REPEATED} tokens, whose repetition is counted"
            raise ValueError(f"samples = {path!r}, line {number} must hold {wanted}, got {len(found)}")
        tokens.append(found)
        spelled.append(text)
    if len(tokens) < 2:
        raise ValueError(f"samples = {path!r} holds {len(tokens)} texts, but an error bar needs at least 2")
    return Texts(tokens, spelled)


def _sample(line: str, row: int, vocabulary: Vocabulary) -> tuple[str, Tensor]:
    """The text of a record and its tokens. Raises ValueError or KeyError for what is none."""
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"it is {record!r:.60}")
    said = records.changed(record, row)
    if said is not None:
        raise ValueError(said)
    text, ids = record["text"], record.get("tokens")
    if not isinstance(text, str):
        raise ValueError(f"text = {text!r:.60} must be a text")
    if ids is None:
        return text, vocabulary.encode(text)
    if not isinstance(ids, list) or not all(type(id_) is int and 0 <= id_ < vocabulary.size for id_ in ids):
        raise ValueError(f"tokens = {ids!r:.60} must be a list of ids in [0, {vocabulary.size})")
    return text, torch.tensor(ids, dtype=torch.int64)


def held_out(
    documents: Sequence[str], vocabulary: Vocabulary, length: int, num_samples: int
) -> tuple[Texts, Texts] | None:
    """Choose two sets of excerpts of real text as long as a sample, which share none: as many as there are samples, or
    fewer.

    Taken in turns, evenly spread over the documents. None if there are fewer than four.
    """
    found = [e for e in pieces.excerpts(documents, vocabulary, length) if len(e.tokens) == length and e.given == 0]
    count = min(2 * num_samples, len(found) // 2 * 2)
    if count < 4:
        return None
    tokens = [found[number * len(found) // count].tokens for number in range(count)]
    spelled = [str(vocabulary.decode(row)) for row in tokens]
    return Texts(tokens[::2], spelled[::2]), Texts(tokens[1::2], spelled[1::2])


def load_judge(path: str, device: torch.device) -> tuple[Judge, dict[str, Any]]:
    """Load a judge whose texts several processes share, and say what it is, by the hashes of its files too."""
    judge, what = judges.load(path, device)
    if what["kind"] == "autoregressive":
        what["weights_sha256"] = tensors.sha256(checkpoints.find_network(path) / "network.safetensors")
    else:
        what["files_sha256"] = files_sha256(what["path"])
    return _shared(judge), what


def load_likeness(name: str, device: torch.device) -> tuple[Likeness, dict[str, Any]]:
    """Load MAUVE by the features of a model, and say what it is taken with."""
    likeness = judges.mauve(name, device)
    return likeness, {
        "path": name,
        "mauve-text": version("mauve-text"),
        **judges.describe(name),
        "files_sha256": files_sha256(name),
    }


def files_sha256(path: str) -> dict[str, str]:
    """Hash a model's files, by their names; none if it is no folder here."""
    folder = Path(path)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {file.name: tensors.sha256(file) for file in files if file.suffix in _OF_A_MODEL}


def _shared(judge: Judge) -> Judge:
    def judged(texts: Sequence[str]) -> Judgement:
        size = -(-len(texts) // processes.world())
        pieces = [texts[first : first + size] for first in range(0, len(texts), size)]
        found = processes.spread(judge, pieces)
        return Judgement(torch.cat([each.nll for each in found]), torch.cat([each.tokens for each in found]))

    return judge if processes.world() == 1 else judged


def rows(
    samples: Texts,
    reference: tuple[Texts, Texts] | None,
    ngrams: Sequence[int],
    judge: Judge | None,
    seed: int,
    replicates: int,
    likeness: Likeness | None = None,
) -> list[Row]:
    """Compute all figures, with bootstrap errors: the divergence from the first set of real text, the second as its
    floor.

    likeness: MAUVE, whose error is that of its clustering.
    """

    def error_bar(statistic: quality.Statistic, *sets: Texts) -> Estimate:
        return quality.bootstrap(statistic, [len(texts.tokens) for texts in sets], seed, replicates)

    def both(name: str, build: Callable[[Texts], Estimate], remark: str) -> Row:
        return Row(name, build(samples), None if reference is None else build(reference[1]), remark)

    def distinct(n: int, texts: Texts) -> Estimate:
        statistic = quality.distinct(quality.grams(texts.tokens, n))
        return quality.half_sampling(statistic, len(texts.tokens), seed, replicates)

    def entropy(texts: Texts) -> Estimate:
        return error_bar(quality.mean(quality.unigram_entropy(texts.tokens)), texts)

    def repetition(texts: Texts) -> Estimate:
        return error_bar(quality.mean(quality.repetition(texts.tokens, REPEATED)), texts)

    found = [
        both(ENTROPY, entropy, "within a text"),
        both(f"repetition-{REPEATED}", repetition, "share of a text's n-grams that it held before"),
        *(both(f"distinct-{n}", partial(distinct, n), "falls with the number of texts") for n in ngrams),
    ]
    if reference is not None:
        real, other = reference
        for n in ngrams:
            values = [
                error_bar(quality.divergence(quality.grams([*texts.tokens, *real.tokens], n)), texts, real)
                for texts in (samples, other)
            ]
            found.append(Row(f"{n}-gram divergence, nats", values[0], values[1], "at most 0.693; its floor beside it"))
        if likeness is not None:
            ours, floor = (likeness(texts.spelled, real.spelled) for texts in (samples, other))
            found.append(Row("MAUVE", ours, floor, "at most 1; what real text reaches beside it; error: of clustering"))
    if judge is not None:

        def perplexity(texts: Texts) -> Estimate:
            judgement = judge(texts.spelled)
            return error_bar(quality.perplexity(judgement.nll, judgement.tokens), texts)

        found.append(both(PERPLEXITY, perplexity, "under the judge, its tokens"))
    return found


def table(found: Sequence[Row]) -> str:
    """Lay out the figures of samples and of held-out text side by side; entropy in bits too."""
    lines = [("", "samples", "held-out text", "")]
    for row in found:
        lines.append((row.name, _cell(row.samples), _cell(row.held_out), row.remark))
        if row.name == ENTROPY:
            lines.append(("unigram entropy, bits", _bits(row.samples), _bits(row.held_out), ""))
    return tables.columns(lines)


def record(found: Sequence[Row]) -> list[dict[str, Any]]:
    """Give the figures as plain values."""
    return [{"figure": row.name, "samples": _plain(row.samples), "held_out": _plain(row.held_out)} for row in found]


def _plain(value: Estimate | None) -> dict[str, Any] | None:
    return None if value is None else {name: finite(number) for name, number in value._asdict().items()}


def _cell(value: Estimate | None) -> str:
    return "-" if value is None else f"{value.mean:.4g} ± {value.standard_error:.2g}"


def _bits(value: Estimate | None) -> str:
    return "-" if value is None else f"{value.bits:.4g} ± {value.bits_error:.2g}"
