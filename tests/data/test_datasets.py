"""Every named set on small files in the hub's format and in the one it was first published in; the hub by a folder."""

import json
import sys
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.data import catalogue, corpora, vocabulary
from edlm.data.catalogue import SETS
from edlm.data.datasets import files, named

HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
COLUMNS = {"ptb": "sentence", "pubmed": "article", "arxiv": "article"}
BPE = vocabulary.train_bpe(["a text of words, and more words"] * 3, 270)

# A document of each set as it is stored, and as the papers' networks read it.
STORED = {
    "lm1b": ("It 's a text , he said .", "It's a text, he said."),
    "openwebtext": ("A page.\n\nIts end.", "A page.\n\nIts end."),
    "wikitext2": (" A well @-@ known text . \n", " A well-known text.\n"),
    "wikitext103": (" A well @-@ known text . \n", " A well-known text.\n"),
    "ptb": ("it was n't $ N billion", "it wasn't $1 billion"),
    "lambada": ("“A text” ", '\n"A text"'),
    "ag_news": ("Title A text.", "Title A text."),
    "pubmed": ("a text ( with brackets ) , ok", "a text (with brackets), ok"),
    "arxiv": ("a text ( with brackets ) , ok", "a text (with brackets), ok"),
}
assert set(STORED) | {"text8"} == set(SETS)


def numbered(name: str, split: str, count: int = 3) -> tuple[list[str], list[str]]:
    """Documents of a split as stored, an empty one among them, and as read."""
    stored, read = STORED[name]
    texts = [stored.replace("text", f"text {split} {number}") for number in range(count)]
    return [texts[0], "", *texts[1:]], [read.replace("text", f"text {split} {number}") for number in range(count)]


def write_hub(folder: Path, name: str, suffix: str) -> None:
    """A folder as the hub has it: a file per stored split."""
    published = SETS[name]
    below = folder / (published.folder or "data")
    for split in {part.stored for part in published.parts.values()}:
        texts, _ = numbered(name, split)
        columns = {COLUMNS.get(name, "text"): texts, "label": list(range(len(texts)))}
        inside = below / HUB_SPLITS[split]
        inside.mkdir(parents=True)
        if suffix == "parquet":
            pyarrow.parquet.write_table(pyarrow.table(columns), inside / "0000.parquet")
        else:
            records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            (inside / "0000.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenWebText of three documents, the last of which is held out."""
    parts = {
        split: part._replace(**{k: min(v, 1) for k, v in part._asdict().items() if k != "stored"})
        for split, part in SETS["openwebtext"].parts.items()
    }
    monkeypatch.setitem(SETS, "openwebtext", SETS["openwebtext"]._replace(parts=parts))


def expected(name: str, split: str) -> list[str]:
    if name == "openwebtext":
        documents = numbered(name, "train")[1]
        return documents[:-1] if split == "train" else documents[-1:]
    return numbered(name, SETS[name].parts[split].stored)[1]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("name", STORED)
@pytest.mark.usefixtures("few")
def test_files_in_the_format_of_the_hub(tmp_path: Path, name: str, suffix: str) -> None:
    write_hub(tmp_path / "files", name, suffix)
    found = named(name, tmp_path / "files", cache=tmp_path / "cache")
    for split in SETS[name].parts:
        assert getattr(found, split) == expected(name, split)
    if name != "lambada":
        blocks = found.blocks(BPE, 8)
        assert [len(rows) > 0 for rows in blocks] == [True] * 3
        assert BPE.decode(blocks.test[:1])[0] in expected(name, "test")[0] + "".join(expected(name, "test")[1:2])


@pytest.mark.parametrize(("name", "streaming"), [("ptb", False), ("ptb", True), ("openwebtext", False)])
@pytest.mark.usefixtures("few")
def test_the_hub_gives_the_same(tmp_path: Path, name: str, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` takes a folder for a repository, so all but the network is gone through."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    write_hub(tmp_path / "files", name, "parquet")
    local = SETS[name]._replace(repository=str(tmp_path / "files"), revision=None, config=None)
    monkeypatch.setitem(SETS, name, local)
    found = named(name, streaming=streaming, cache=tmp_path / "cache")
    for split in local.parts:
        assert getattr(found, split) == expected(name, split)
    assert found.fingerprint == named(name, streaming=not streaming, cache=tmp_path / "cache").fingerprint


ORIGINAL = {
    "ptb": {"ptb.train.txt": "train", "ptb.valid.txt": "valid", "ptb.test.txt": "test"},
    "wikitext2": {"wiki.train.raw": "train", "wiki.valid.raw": "valid", "wiki.test.raw": "test"},
    "lm1b": {
        "training-monolingual.tokenized.shuffled/news.en-00001-of-00100": "train",
        "heldout-monolingual.tokenized.shuffled/news.en.heldout-00000-of-00050": "test",
    },
}


@pytest.mark.parametrize("name", ORIGINAL)
def test_files_as_they_were_first_published_hold_a_document_a_line(tmp_path: Path, name: str) -> None:
    for file, split in ORIGINAL[name].items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("".join(f"{text.strip()} \n" for text in numbered(name, split)[0]))
    found = named(name, tmp_path)
    for split in SETS[name].parts:
        assert [text.strip() for text in getattr(found, split)] == [text.strip() for text in expected(name, split)]


def test_of_what_is_published_together_a_set_is_read_alone(tmp_path: Path) -> None:
    """A copy of the hub's repository holds several sets; archives hold the same text in other forms."""
    for config in ("wikitext-2-raw-v1", "wikitext-2-v1", "wikitext-103-raw-v1"):
        (tmp_path / "wikitext" / config).mkdir(parents=True)
        table = pyarrow.table({"text": [config]})
        pyarrow.parquet.write_table(table, tmp_path / "wikitext" / config / "train-00000-of-00001.parquet")
    assert named("wikitext2", tmp_path / "wikitext").train == ["wikitext-2-raw-v1"]
    assert named("wikitext103", tmp_path / "wikitext").train == ["wikitext-103-raw-v1"]
    (tmp_path / "ptb").mkdir()
    (tmp_path / "lambada").mkdir()
    for kind, text in (("ptb", "words"), ("ptb.char", "w o r d s")):
        (tmp_path / "ptb" / f"{kind}.train.txt").write_text(f"{text}\n")
    assert named("ptb", tmp_path / "ptb").train == ["words"]
    for language in ("", "_de", "_fr"):
        (tmp_path / "lambada" / f"lambada_test{language}.jsonl").write_text(json.dumps({"text": f"A{language}"}) + "\n")
    assert named("lambada", tmp_path / "lambada").test == ["\nA"]


@pytest.mark.parametrize(
    ("name", "written"), [("ag_news", {"train", "valid"}), ("wikitext2", {"train", "valid", "test"})]
)
def test_splits_that_are_the_same_documents_are_written_once(tmp_path: Path, name: str, written: set[str]) -> None:
    write_hub(tmp_path / "files", name, "jsonl")
    blocks = named(name, tmp_path / "files", cache=tmp_path / "cache").blocks(BPE, 8)
    assert {path.stem for path in (tmp_path / "cache").rglob("*.tokens")} == written
    assert torch.equal(blocks.valid[:], blocks.test[:]) == ("test" not in written)


def test_archives_of_papers_and_news_as_they_were_first_published(tmp_path: Path) -> None:
    for file, split in (("train.txt", "train"), ("val.txt", "valid"), ("test.txt", "test")):
        records = [{"article_id": "1", "article_text": [f"{split} a ( b ) , c", "d"], "abstract_text": ["no"]}]
        (tmp_path / file).write_text("".join(json.dumps(record) + "\n" for record in records))
    found = named("arxiv", tmp_path)
    assert (found.train, found.valid, found.test) == (
        ["train a (b), c\nd"],
        ["valid a (b), c\nd"],
        ["test a (b), c\nd"],
    )
    news = tmp_path / "news"
    news.mkdir()
    (news / "train.csv").write_text('"3","A title","And a text"\n')
    (news / "test.csv").write_text('"1","B","text"\n')
    found = named("ag_news", news)
    assert (found.train, found.valid, found.test) == (["A title And a text"], ["B text"], ["B text"])


def test_lambada_as_it_was_first_published(tmp_path: Path) -> None:
    file = tmp_path / "lambada_test.jsonl"
    file.write_text('{"text": "“So,” he said"}\n{"text": "again"}\n', encoding="utf-8")
    found = named("lambada", file)
    assert found.test == ['\n"So," he said', "\nagain"]
    with pytest.raises(ValueError, match="lambada has no train split; it has test"):
        found.blocks(BPE, 8)


@pytest.mark.parametrize("packed", ["text8", "text8.zip", "text8.txt", "hub"])
def test_text8_is_cut_ninety_five_five(tmp_path: Path, packed: str) -> None:
    text = "".join("abcdefghij "[number % 11] for number in range(1000))
    if packed == "hub":
        parts = {"train": text[:900], "validation": text[900:950], "test": text[950:]}
        for split, part in parts.items():
            pyarrow.parquet.write_table(pyarrow.table({"text": [part]}), tmp_path / f"{split}-0.parquet")
    elif packed == "text8.zip":
        with zipfile.ZipFile(tmp_path / packed, "w") as archive:
            archive.writestr("text8", text)
    else:
        (tmp_path / packed).write_text(text)
    found = named("text8", tmp_path if packed == "hub" else tmp_path / packed, cache=tmp_path / "cache")
    assert (found.train, found.valid, found.test) == ([text[:900]], [text[900:950]], [text[950:]])
    assert len(found.blocks(vocabulary.characters(), 50).train) == 18


# ---- Files of one's own


@settings(deadline=None, max_examples=20)
@given(st.lists(st.text("ab ", min_size=1, max_size=9).filter(str.strip), min_size=3, max_size=9))
def test_files_whose_names_say_no_split_are_split_as_text_files_are(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str]
) -> None:
    file = tmp_path_factory.mktemp("files") / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    found = files(file)
    first, second = corpora.split_places(list(map(len, documents)), (0.9, 0.05, 0.05))
    assert (found.train, found.valid, found.test) == (documents[:first], documents[first:second], documents[second:])


def test_files_whose_names_say_a_split(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"body": f"Of {split}!"}) + "\n")
    found = files(tmp_path, column="body", normalised=True)
    assert (found.train, found.valid, found.test) == (["of train"], ["of validation"], ["of test"])
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(ValueError, match="has files for train, valid but none for test"):
        files(tmp_path, column="body")


def test_blocks_are_written_once_and_follow_the_content(tmp_path: Path) -> None:
    source, cache = tmp_path / "a.txt", tmp_path / "cache"
    source.write_text("\n\n".join(f"document {number} of many" for number in range(60)))
    before = files(source, cache=cache)
    rows = before.blocks(BPE, 16)
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*.tokens")}
    assert len(written) == 3
    assert torch.equal(files(source, cache=cache).blocks(BPE, 16).train[:], rows.train[:])
    assert files(source, cache=cache).blocks(BPE, 8).train.shape[1] == 8
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.tokens")} == written
    source.write_text(source.read_text().replace("many", "more"))
    after = files(source, cache=cache)
    assert after.fingerprint != before.fingerprint
    assert "more" in "".join(BPE.decode(after.blocks(BPE, 16).train[:]))


def test_the_fingerprint_sees_all_that_changes_blocks(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree")
    (tmp_path / "b.jsonl").write_text('{"text": "one", "body": "two"}')
    a, b = tmp_path / "a.txt", tmp_path / "b.jsonl"
    sets = [files(a), files(a, normalised=True), files(a, layout="padded"), files(a, wrapped=True), files(b)]
    sets += [files(a, documents_are="line"), files(b, column="body"), files(a, fractions=(0.5, 0.25, 0.25))]
    assert len({each.fingerprint for each in sets}) == len(sets)
    assert files(a).fingerprint == files(a, cache=tmp_path / "elsewhere").fingerprint


# ---- Mistakes


def test_names_and_values_that_cannot_be_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name = 'wikitext' is no data set; did you mean 'wikitext2'"):
        named("wikitext")
    with pytest.raises(ValueError, match="name = 'zzz' is no data set; known: text8, lm1b"):
        named("zzz")
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        named("ptb", tmp_path / "nowhere")
    (tmp_path / "ptb.train.txt").write_text("a\n")
    with pytest.raises(ValueError, match="no file of ptb says valid in its name or its folder's"):
        _ = named("ptb", tmp_path).valid
    with pytest.raises(ValueError, match="layout = 'loose' must be one of packed, padded"):
        named("ptb", tmp_path, layout="loose")
    with pytest.raises(ValueError, match="streaming = True reads from the hub: leave path null"):
        named("ptb", tmp_path, streaming=True)
    with pytest.raises(ValueError, match=r"fractions = \(0\.5, 0\.6\) must be three positive numbers that sum to 1"):
        files(tmp_path, fractions=(0.5, 0.6))
    with pytest.raises(ValueError, match="documents_are = 'pages' must be paragraphs, line or file"):
        files(tmp_path, documents_are="pages")
    (tmp_path / "few.txt").write_text("a\n\nb")
    with pytest.raises(ValueError, match=r"few\.txt: 2 documents are too few to be split in three"):
        _ = files(tmp_path / "few.txt").train


def test_a_set_too_small_for_its_held_out_documents_is_refused(tmp_path: Path) -> None:
    write_hub(tmp_path, "openwebtext", "jsonl")
    with pytest.raises(ValueError, match="openwebtext: 4 documents leave none to train on beside the last 100,000"):
        _ = named("openwebtext", tmp_path).train


def test_a_wrong_column_is_said_with_those_that_are_there(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"], "id": [1]}), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"test\.parquet has the columns body, id; expected 'sentence' or 'text'"):
        _ = named("ptb", tmp_path).test


def test_without_the_extra_and_without_the_hub_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SETS, "ptb", SETS["ptb"]._replace(repository=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"ptb: the hub does not give .*nowhere .*; name its files by path") as error:
        named("ptb")
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"come through `datasets`: pip install 'edlm-torch\[data\]'"):
        named("ptb")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: reading it needs pyarrow: pip install 'edlm-torch\[data\]'"):
        _ = files(tmp_path / "a.parquet").train


def test_published_splits_are_those_of_the_papers() -> None:
    owt = SETS["openwebtext"].parts
    assert owt["train"] == catalogue.Part("train", all_but_last=100_000)
    assert owt["valid"] == owt["test"] == catalogue.Part("train", last=100_000)
    assert {name for name, published in SETS.items() if published.zero_shot == "test"} == {
        "text8",
        "lm1b",
        "lambada",
        "ag_news",
    }
