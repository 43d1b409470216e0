import re
import string
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.contracts import X_0
from edlm.data.corpora import Corpus, embedded, load_blocks, normalise, read_documents, text_files
from edlm.data.pieces import Blocks, batch_at, blocks, excerpts
from edlm.data.vocabulary import characters, train_bpe

LETTERS = string.ascii_lowercase
TEXT8 = characters()
WITH_EOS = characters(specials=["eos"])


def numbered(count: int) -> torch.Tensor:
    """Blocks (count, 2) that tell their own number."""
    return torch.arange(count).unsqueeze(-1).expand(count, 2)


def stream(count: int, num_items: int, batch_size: int, seed: int) -> list[int]:
    steps = range(-(-num_items // batch_size))
    batches = [batch_at(numbered(count), step=step, batch_size=batch_size, seed=seed) for step in steps]
    return torch.cat([batch[X_0][:, 0] for batch in batches]).tolist()[:num_items]


@settings(deadline=None)
@given(st.text())
def test_normalised_text_is_text8_and_stays_so(text: str):
    once = normalise(text)
    assert re.fullmatch("([a-z]+( [a-z]+)*)?", once)
    assert normalise(once) == once


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Über 42 cafés—naïve!", "uber four two cafes naive"),
        ("a1b", "a one b"),
        ("ﬁne ² İ", "fine two i"),
        ("\t x_y \n", "x y"),
        ("漢字", ""),
    ],
)
def test_normalise_examples(text: str, expected: str):
    assert normalise(text) == expected


def test_embedded_has_three_splits_of_the_stated_size():
    corpus = embedded()
    sizes = [sum(map(len, split)) for split in corpus]
    shares = [size / sum(sizes) for size in sizes]
    assert sum(sizes) > 250_000
    assert 0.86 < shares[0] < 0.94
    assert 0.03 < shares[1] < 0.07
    assert 0.03 < shares[2] < 0.07


def test_embedded_is_whole_topics_each_once():
    documents = [document for split in embedded() for document in split]
    assert set(documents) <= {normalise(text) for text in topics.values()}
    assert not any(a in b for i, a in enumerate(documents) for j, b in enumerate(documents) if i != j)


def test_embedded_is_the_same_every_time():
    assert embedded() == embedded()
    assert embedded().fingerprint == embedded().fingerprint
    assert len(TEXT8.encode(" ".join(embedded().train))) > 250_000


def test_fingerprint_sees_documents_order_and_splits():
    corpora = [
        Corpus(["ab"], ["c"], []),
        Corpus(["a", "b"], ["c"], []),
        Corpus(["b", "a"], ["c"], []),
        Corpus(["ab", "c"], [], []),
        Corpus(["ab"], [], ["c"]),
    ]
    assert len({corpus.fingerprint for corpus in corpora}) == len(corpora)


def test_a_folder_of_splits(tmp_path: Path):
    for name, text in {"train": "One.\n\nTwo\n \n\nThree\r\n\r\nFour\n", "valid": "\ufeffV", "test": "T 1"}.items():
        (tmp_path / f"{name}.txt").write_bytes(text.encode())
    assert text_files(tmp_path) == Corpus(["One.", "Two", "Three", "Four"], ["V"], ["T 1"])
    assert text_files(str(tmp_path), normalised=True).test == ["t one"]
    (tmp_path / "test.txt").unlink()
    with pytest.raises(ValueError, match=r"test\.txt: no such file"):
        text_files(tmp_path)


def test_a_folder_of_documents_is_split_by_document(tmp_path: Path):
    documents = {f"document {number:02}\n\nis one" for number in range(40)}
    for number, document in enumerate(sorted(documents)):
        (tmp_path / f"{number}.txt").write_text(document)
    corpus = text_files(tmp_path)
    assert [len(split) for split in corpus] == [36, 2, 2]
    assert {document for split in corpus for document in split} == documents


@settings(deadline=None)
@given(st.lists(st.text("ab", min_size=1, max_size=30), min_size=3, max_size=12), st.floats(0.05, 0.9))
def test_a_file_is_split_in_order_by_document(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], share: float
):
    path = tmp_path_factory.mktemp("file") / "a.txt"
    path.write_text("\n\n".join(documents))
    corpus = text_files(path, fractions=(share, (1 - share) / 2, (1 - share) / 2))
    assert [document for split in corpus for document in split] == documents
    assert all(corpus)


def test_a_single_document_is_cut(tmp_path: Path):
    text = "".join(LETTERS[i % 26] + "\n" for i in range(500)).strip()
    (tmp_path / "a.txt").write_text(text)
    corpus = text_files(tmp_path / "a.txt")
    assert "".join(document for split in corpus for document in split) == text
    assert [len(split[0]) for split in corpus] == [899, 50, 50]
    assert text_files(tmp_path) == corpus


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no text"),
        (b" \n\n \n", "no text"),
        (b"fine until \xff here", "not UTF-8, byte 0xff at offset 11"),
        (b"ab", "2 characters are too few to be split in three"),
    ],
)
def test_a_file_that_cannot_serve_is_named(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    for asked in (path, tmp_path):
        with pytest.raises(ValueError, match=message) as error:
            text_files(asked)
        assert str(tmp_path) in str(error.value)


def test_what_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="nowhere: no such file"):
        text_files(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no \*\.txt; expected train\.txt, valid\.txt, test\.txt, or one document"):
        text_files(tmp_path)
    (tmp_path / "a.txt").write_text("漢字")
    with pytest.raises(ValueError, match=r"a\.txt: no text left after normalisation"):
        text_files(tmp_path / "a.txt", normalised=True)


@pytest.mark.parametrize("fractions", [(0.9, 0.1), (1.0, 0.0, 0.0), (0.5, 0.5, 0.5)])
def test_fractions_are_three_that_sum_to_one(tmp_path: Path, fractions: tuple[float, ...]):
    with pytest.raises(ValueError, match="three positive numbers that sum to 1"):
        text_files(tmp_path, fractions=fractions)


def test_blocks_put_one_space_between_documents():
    rows = blocks(["ab", "", "c ", "d"], TEXT8, 2, "train")
    assert TEXT8.decode(rows) == ["ab", " c", " d"]


def test_blocks_put_eos_between_documents():
    rows = blocks(["ab", "c ", "d"], WITH_EOS, 2, "train")
    assert WITH_EOS.decode(rows, show_specials=True) == ["ab", "<eos>c", " <eos>"]


def test_blocks_need_a_separator_only_between_documents():
    assert blocks(["abab"], characters("ab"), 2, "train").shape == (2, 2)
    with pytest.raises(ValueError, match="valid: several documents need a vocabulary with an eos or a space"):
        blocks(["ab", "ab"], characters("ab"), 2, "valid")


@settings(deadline=None)
@given(st.lists(st.text(LETTERS, min_size=1, max_size=9), min_size=1, max_size=9), st.integers(1, 9))
def test_blocks_are_the_text_cut(documents: list[str], length: int):
    text = " ".join(documents)
    if len(text) < length:
        with pytest.raises(
            ValueError, match=f"train: {len(text)} tokens are fewer than one block of length = {length}"
        ):
            blocks(documents, TEXT8, length, "train")
        return
    rows = blocks(documents, TEXT8, length, "train")
    assert rows.dtype == torch.int64
    assert rows.shape == (len(text) // length, length)
    assert "".join(TEXT8.decode(rows)) == text[: rows.numel()]


def test_blocks_of_nothing_and_of_no_length_are_errors():
    with pytest.raises(ValueError, match="test: 0 tokens are fewer"):
        blocks([], TEXT8, 4, "test")
    with pytest.raises(ValueError, match="length = 0 must be at least 1"):
        blocks(["abc"], TEXT8, 0, "test")


def test_load_blocks_cuts_every_split():
    corpus = embedded()
    loaded = load_blocks(corpus, TEXT8, 64)
    assert isinstance(loaded, Blocks)
    assert [len(rows) for rows in loaded] == [len(" ".join(split)) // 64 for split in corpus]
    bytes_ = load_blocks(corpus, train_bpe(corpus.train[-3:], 300), 64)
    assert all(rows.shape[1] == 64 for rows in bytes_)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 20), seed=st.integers(0, 2**40), batch_size=st.integers(1, 50))
def test_every_epoch_is_a_permutation(count: int, seed: int, batch_size: int):
    items = stream(count, 3 * count, batch_size, seed)
    for epoch in range(3):
        assert sorted(items[epoch * count : (epoch + 1) * count]) == list(range(count))


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 20), seed=st.integers(0, 2**40), sizes=st.tuples(st.integers(1, 50), st.integers(1, 9)))
def test_the_stream_does_not_depend_on_the_batch_size(count: int, seed: int, sizes: tuple[int, int]):
    assert stream(count, 60, sizes[0], seed) == stream(count, 60, sizes[1], seed)


def test_epochs_and_seeds_have_orders_of_their_own():
    items = stream(50, 100, 10, seed=1)
    assert items[:50] != items[50:]
    assert items[:50] != stream(50, 50, 10, seed=2)


def test_a_batch_is_a_tensordict_of_its_step_alone():
    rows = numbered(7)
    later = batch_at(rows, step=5, batch_size=4, seed=3)
    assert later.batch_size == (4,)
    assert list(later.keys()) == [X_0]
    assert later[X_0].shape == (4, 2)
    assert torch.equal(later[X_0], batch_at(rows, step=5, batch_size=4, seed=3)[X_0])
    later[X_0].zero_()
    assert torch.equal(rows, numbered(7))


@pytest.mark.parametrize(("step", "batch_size", "count"), [(-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_a_batch_that_cannot_be_had_is_an_error(step: int, batch_size: int, count: int):
    with pytest.raises(ValueError, match=r"step = -1|batch_size = 0|at least 1 block"):
        batch_at(numbered(count), step=step, batch_size=batch_size, seed=0)


# ---- Excerpts to be scored


@given(st.text("abc ", min_size=1, max_size=25), st.integers(1, 9), st.integers(0, 8))
def test_every_token_is_scored_exactly_once_with_its_context_before_it(text: str, length: int, context: int) -> None:
    context = min(context, length - 1)
    found = excerpts([text], TEXT8, length, context=context)
    tokens, done = TEXT8.encode(text), 0
    for excerpt in found:
        assert len(excerpt.tokens) == min(length, len(tokens))
        assert torch.equal(excerpt.tokens, tokens[done - excerpt.given :][: len(excerpt.tokens)])
        assert excerpt.given == 0 if done == 0 else excerpt.given >= context
        done += len(excerpt.tokens) - excerpt.given
    assert done == len(tokens)


def test_documents_are_joined_with_a_separator_or_stand_alone() -> None:
    documents = ["ababa", "aba", "", "ab"]
    apart = excerpts(documents, TEXT8, 3, joined=False)
    assert [(len(excerpt.tokens), excerpt.given) for excerpt in apart] == [(3, 0), (3, 1), (3, 0), (2, 0)]
    joined = excerpts(documents, TEXT8, 4)
    assert "".join(TEXT8.decode(excerpt.tokens[excerpt.given :]) for excerpt in joined) == "ababa aba ab"
    with_eos = torch.cat([excerpt.tokens[excerpt.given :] for excerpt in excerpts(documents, WITH_EOS, 4)])
    assert (with_eos == WITH_EOS.eos_id).nonzero().flatten().tolist() == [5, 9]


def test_a_context_must_leave_something_to_score() -> None:
    with pytest.raises(ValueError, match="context = 4 must be at least 0 and below length = 4"):
        excerpts(["abc"], TEXT8, 4, context=4)


def test_documents_to_be_evaluated_are_those_of_the_test_split_or_all(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("two", encoding="utf-8")
    (tmp_path / "a.txt").write_text("One\n\nstill one", encoding="utf-8")
    assert read_documents(tmp_path) == ["One\n\nstill one", "two"]
    assert read_documents(tmp_path / "a.txt", normalised=True) == ["one", "still one"]
    (tmp_path / "test.txt").write_text("x\n\ny", encoding="utf-8")
    assert read_documents(tmp_path) == ["x", "y"]
    with pytest.raises(ValueError, match="nowhere: no such file"):
        read_documents(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no \*\.txt; expected test\.txt"):
        read_documents(tmp_path / "empty")
    with pytest.raises(ValueError, match="there is no text to cut"):
        excerpts([""], TEXT8, 4)
