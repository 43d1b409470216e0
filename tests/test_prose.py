"""The pages are plain English: no long sentence, and none of the turns of phrase that readers stumbled over."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("tutorials", "howto", "explanation")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [page for folder in FOLDERS for page in sorted((ROOT / "docs" / folder).glob("*.md"))]
RECORDED = {"first_ten_minutes.md"}  # what programs print
MOST_WORDS = 35
NOT_PROSE = re.compile(r"\A---\n.*?\n---\n|```.*?```|<!--.*?-->", flags=re.DOTALL)
PARAGRAPH, ITEM = re.compile(r"\n\s*\n"), re.compile(r"(?:\n|^)\s*(?:- |\d+\. )")
LAID_OUT = re.compile(r"\s*(?:\||#|!\[|\[!\[|    |::)")  # tables, titles, pictures, formulas
SHORTENED = ((r"`[^`]*`", "code"), (r"!?\[([^\]]*)\]\([^)]*\)", r"\1"), (r"\([^()]*\)", ""), (r"\*+", ""))
ENDS = re.compile(r"(?<=[.?!:;])\s+")
RIDDLES = (
    r"by lot",
    r"drawn? apart",
    r"that there are not",
    r"built of",
    r"as dear",
    r"hangs? on",
    r"buys?",
    r"for nothing",
    r"no more than that",
)
RIDDLE = re.compile(rf"\b(?:{'|'.join(RIDDLES)})\b", flags=re.IGNORECASE)


def sentences(page: str) -> Iterator[str]:
    """The sentences of a page's paragraphs and lists, each piece of code one word; a colon ends one too."""
    for paragraph in PARAGRAPH.split(NOT_PROSE.sub("", page)):
        if LAID_OUT.match(paragraph):
            continue
        for item in ITEM.split(paragraph):
            yield from filter(None, ENDS.split(" ".join(shortened(item).split())))


def shortened(text: str) -> str:
    """A text without what a reader does not read as words: code, addresses, asides, marks."""
    for pattern, short in SHORTENED:
        text = re.sub(pattern, short, text)
    return text


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in RECORDED], ids=lambda page: page.stem)
def test_a_sentence_can_be_read_once(page: Path) -> None:
    found = list(sentences(page.read_text("utf-8")))
    assert not [each for each in found if len(each.split()) > MOST_WORDS]
    assert not [each for each in found if RIDDLE.search(each)]


def test_long_sentences_and_riddles_are_found() -> None:
    page = "# Title\n\nShort. " + "word " * 35 + "end.\n\n- An item; `a b c` (aside) hangs on it.\n\n| a | table |\n"
    found = list(sentences(page))
    assert [len(each.split()) for each in found] == [1, 36, 2, 4]
    assert [bool(RIDDLE.search(each)) for each in found] == [False, False, False, True]
