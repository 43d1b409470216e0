"""The published data sets as they are published: where the hub has each, and what of it the papers take."""

import pytest

from edlm.data import catalogue, detokenizers, folders
from edlm.data.catalogue import Part

SCRIPTS = "refs/convert/parquet"
ALL_PARTS = {"train": Part("train"), "valid": Part("valid"), "test": Part("test")}
NO_VALID = {"train": Part("train"), "valid": Part("test"), "test": Part("test")}
OF_ONE = {
    "train": Part("train", all_but_last=100_000),
    "valid": Part("train", last=100_000),
    "test": Part("train", last=100_000),
}
PLACES = {  # repository, config, folder and revision
    "text8": ("afmck/text8", None, None, None),
    "lm1b": ("billion-word-benchmark/lm1b", None, "plain_text", SCRIPTS),
    "openwebtext": ("Skylion007/openwebtext", None, None, None),
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", None, None),
    "wikitext103": ("Salesforce/wikitext", "wikitext-103-raw-v1", None, None),
    "ptb": ("ptb-text-only/ptb_text_only", None, "penn_treebank", SCRIPTS),
    "lambada": ("EleutherAI/lambada_openai", "default", None, None),
    "ag_news": ("fancyzhx/ag_news", None, None, None),
    "pubmed": ("armanc/scientific_papers", None, "pubmed", SCRIPTS),
    "arxiv": ("armanc/scientific_papers", None, "arxiv", SCRIPTS),
}
PARTS = {
    **dict.fromkeys(PLACES, ALL_PARTS),
    **dict.fromkeys(("lm1b", "ag_news"), NO_VALID),
    "openwebtext": OF_ONE,
    "lambada": {"test": Part("test")},
}
ZERO_SHOT = {**dict.fromkeys(PLACES, "valid"), **dict.fromkeys(("text8", "lm1b", "lambada", "ag_news"), "test")}
TEXTS = {  # columns, unit, whole, and the names of files beside it
    **dict.fromkeys(PLACES, (("text",), "line", False, ())),
    "text8": (("text",), "file", True, ()),
    "openwebtext": (("text",), "file", False, ()),
    "ptb": (("sentence", "text"), "line", False, ("ptb.char.",)),
    "lambada": (
        ("text",),
        "line",
        False,
        ("lambada_test_de", "lambada_test_es", "lambada_test_fr", "lambada_test_it", "lambada_control_test"),
    ),
    **dict.fromkeys(("pubmed", "arxiv"), (("article", "article_text"), "record", False, ())),
}
DETOKENIZED = {
    "lm1b": detokenizers.lm1b,
    **dict.fromkeys(("wikitext2", "wikitext103"), detokenizers.wikitext),
    "ptb": detokenizers.ptb,
    "lambada": detokenizers.lambada,
    **dict.fromkeys(("pubmed", "arxiv"), detokenizers.scientific_papers),
}


@pytest.mark.parametrize("name", catalogue.SETS)
def test_a_set_is_what_was_published(name: str) -> None:
    found = catalogue.SETS[name]
    assert (found.repository, found.config, found.folder, found.revision) == PLACES[name]
    assert (found.columns, found.unit, found.whole, found.beside) == TEXTS[name]
    stored = {"validation": "valid"}  # by either name of a split
    for split, part in found.parts.items():
        assert part._replace(stored=stored.get(part.stored, part.stored)) == PARTS[name][split]
    assert found.parts.keys() == PARTS[name].keys()
    assert found.zero_shot == ZERO_SHOT[name]
    assert found.detokenize is DETOKENIZED.get(name)


NOTES = ("readme", "license", "licence", "copying", "changelog", "notice", "authors", "citation", "sha256sums")
SUFFIXES = (".md", ".rst", ".py", ".yaml", ".yml", ".lock", ".gitattributes", ".html", ".pdf", ".sha256", ".md5")
NO_DATA = [
    *NOTES,
    *(f"{name}.txt" for name in NOTES),
    *(name.upper() for name in NOTES),
    *(f"a{suffix}" for suffix in SUFFIXES),
    *("state.json", "dataset_info.json", "dataset_dict.json", "dataset_infos.json"),
    *("__MACOSX/a.txt", "train/__MACOSX/a.txt", ".hidden.txt", ".git/a.txt", "train/"),
]


@pytest.mark.parametrize("name", NO_DATA)
def test_notes_and_hidden_files_are_no_data(name: str) -> None:
    assert not folders.is_data(name)


@pytest.mark.parametrize(
    "name", ["a.txt", "readme.jsonl", "train/a.json", "notice.csv", "states.json", "MACOSX/a.txt", "a"]
)
def test_what_only_looks_like_a_note_is_data(name: str) -> None:
    assert folders.is_data(name)
