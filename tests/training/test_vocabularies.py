"""The vocabulary of a run: what its factory is given of the corpus, and what padding makes of it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from edlm import datasets, vocabulary
from edlm.data.corpora import Corpus
from edlm.training import vocabularies

CORPUS = Corpus(["one fish", "two fish"], ["valid"], ["test"])
given: dict[str, Any] = {}


def learned(documents: Any) -> vocabulary.Vocabulary:
    """A factory that learns from all it is given."""
    given["documents"] = list(documents)
    return vocabulary.characters()


def unread(documents: Iterator[str], size: int = 3) -> vocabulary.Vocabulary:
    """A factory that takes documents and reads none."""
    given["size"] = size
    return vocabulary.characters()


def known() -> vocabulary.Vocabulary:
    """A factory that takes no documents."""
    return given["own"]  # type: ignore[no-any-return]


def failing(documents: Iterator[str]) -> vocabulary.Vocabulary:
    """A factory that a text of the corpus does not suit."""
    raise ValueError(f"cannot learn from {next(iter(documents))!r}")


class Closed:
    """A corpus whose training split must not be read."""

    @property
    def train(self) -> list[str]:
        raise AssertionError("the corpus was read")


def build(factory: str, corpus: Any = CORPUS, padding: str = "ignored", **arguments: Any) -> vocabulary.Vocabulary:
    component = {"_component_": factory if "." in factory else f"{__name__}.{factory}", **arguments}
    return vocabularies.build({"vocabulary": component, "padding": padding}, corpus)


def test_a_factory_that_learns_is_given_the_training_split_and_nothing_else() -> None:
    build("learned")
    assert given["documents"] == CORPUS.train


def test_a_data_set_is_learned_from_as_a_corpus_is(tmp_path: Any) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.jsonl").write_text(f'{{"text": "of {split}"}}\n', "utf-8")
    build("learned", datasets.files(tmp_path))
    assert given["documents"] == ["of train"]


@pytest.mark.parametrize("factory", ["edlm.vocabulary.characters", "unread"])
def test_the_corpus_is_not_read_before_a_factory_asks_for_it(factory: str) -> None:
    build(factory, Closed())


def test_the_arguments_of_the_config_stand_beside_the_documents() -> None:
    build("unread", size=9)
    assert given["size"] == 9


def test_documents_that_the_config_gives_are_kept() -> None:
    build("learned", documents=["mine"])
    assert given["documents"] == ["mine"]


def test_padding_that_is_learned_ends_texts_and_other_padding_leaves_the_vocabulary_as_it_is() -> None:
    given["own"] = own = dataclasses.replace(vocabulary.train_bpe(CORPUS.train, 264), pad_id=7)
    assert build("known") is own
    ends = build("known", padding="learned")
    assert (ends.pad_id, ends.end_id) == (None, 7)


def test_an_error_of_the_factory_names_the_component() -> None:
    with pytest.raises(ValueError, match=rf"^vocabulary: {__name__}.failing: cannot learn from 'one fish'$"):
        build("failing")


def test_what_is_no_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^vocabulary: builtins\.list: .*makes no vocabulary"):
        build("builtins.list")


@pytest.mark.parametrize(("missing", "offered"), [("documents", True), ("size", False)])
def test_a_config_needs_no_documents_but_all_else(missing: str, offered: bool) -> None:
    name = f"{__name__}.{'learned' if offered else 'sized'}"
    if offered:
        vocabularies.check("vocabulary", {"_component_": name})
    else:
        with pytest.raises(ValueError, match=rf"^vocabulary\.{missing}: missing from the config"):
            vocabularies.check("vocabulary", {"_component_": name})


def sized(documents: Iterator[str], size: int) -> vocabulary.Vocabulary:
    """A factory with a size that the config has to name."""
    return vocabulary.characters()
