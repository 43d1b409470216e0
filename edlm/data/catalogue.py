"""Published data sets: where they are, what their text is called, and how the papers split and clean them."""

from collections.abc import Mapping
from typing import NamedTuple

from edlm.data import detokenizers
from edlm.data.detokenizers import Detokenizer
from edlm.data.documents import Unit

_SPLITS = ("train", "valid", "test")
_PARQUET = "refs/convert/parquet"  # the hub's own copy of sets whose repository holds a script


class Part(NamedTuple):
    """Documents of one stored split: all of them, all but the last so many, or only the last so many."""

    stored: str
    all_but_last: int = 0
    last: int = 0


class Published(NamedTuple):
    """A data set as published: where the hub has it, what its text is called, and how the papers split it.

    zero_shot: the split of the published zero-shot figures. whole: one text, cut 90/5/5 by characters. beside: the
    beginning of the names of files that are published with the set and do not belong to it.
    """

    repository: str
    parts: Mapping[str, Part]
    zero_shot: str
    config: str | None = None
    folder: str | None = None
    revision: str | None = None
    columns: tuple[str, ...] = ("text",)
    unit: Unit = "line"
    detokenize: Detokenizer | None = None
    whole: bool = False
    beside: tuple[str, ...] = ()


_THREE = {name: Part(name) for name in _SPLITS}
_TWO = {"train": Part("train"), "valid": Part("test"), "test": Part("test")}


def _papers(folder: str) -> Published:
    """Describe one of the two halves of the scientific papers of Cohan et al. 2018."""
    return Published(
        "armanc/scientific_papers",
        _THREE,
        "valid",
        folder=folder,
        revision=_PARQUET,
        columns=("article", "article_text"),
        unit="record",
        detokenize=detokenizers.scientific_papers,
    )


SETS = {
    "text8": Published("afmck/text8", _THREE, "test", unit="file", whole=True),
    "lm1b": Published(
        "billion-word-benchmark/lm1b",
        _TWO,
        "test",
        folder="plain_text",
        revision=_PARQUET,
        detokenize=detokenizers.lm1b,
    ),
    "openwebtext": Published(
        "Skylion007/openwebtext",
        {
            "train": Part("train", all_but_last=100_000),
            "valid": Part("train", last=100_000),
            "test": Part("train", last=100_000),
        },
        "valid",
        unit="file",
    ),
    "wikitext2": Published(
        "Salesforce/wikitext", _THREE, "valid", config="wikitext-2-raw-v1", detokenize=detokenizers.wikitext
    ),
    "wikitext103": Published(
        "Salesforce/wikitext", _THREE, "valid", config="wikitext-103-raw-v1", detokenize=detokenizers.wikitext
    ),
    "ptb": Published(
        "ptb-text-only/ptb_text_only",
        _THREE,
        "valid",
        folder="penn_treebank",
        revision=_PARQUET,
        columns=("sentence", "text"),
        detokenize=detokenizers.ptb,
        beside=("ptb.char.",),  # the same text letter by letter
    ),
    "lambada": Published(
        "EleutherAI/lambada_openai",
        {"test": Part("test")},
        "test",
        config="default",
        detokenize=detokenizers.lambada,
        beside=tuple(f"lambada_{name}" for name in ("test_de", "test_es", "test_fr", "test_it", "control_test")),
    ),
    "ag_news": Published("fancyzhx/ag_news", _TWO, "test"),
    "pubmed": _papers("pubmed"),
    "arxiv": _papers("arxiv"),
}
