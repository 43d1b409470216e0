"""The vocabulary of a run: the one that its config names, learned from its corpus where the config asks for that."""

from collections.abc import Iterator, Mapping
from typing import Any

from edlm.data.corpora import Source
from edlm.data.vocabulary import Vocabulary
from edlm.runs import settings as schemas
from edlm.training import padding

DOCUMENTS = "documents"  # of a factory, as `vocabulary.train_bpe`, that learns from texts
check = schemas.component(offered=[DOCUMENTS])


def build(settings: Mapping[str, Any], corpus: Source) -> Vocabulary:
    """Build what `vocabulary` of a config names, with padding as it says.

    A factory that takes `documents` is given those of the training split. Raises ValueError that names the component.
    """
    documents = {DOCUMENTS: _training_texts(corpus)}
    own: Vocabulary = schemas.call("vocabulary", settings["vocabulary"], documents, "vocabulary")
    return padding.vocabulary(settings["padding"], own)


def _training_texts(corpus: Any) -> Iterator[str]:
    """Give the documents to learn from, none of which is read before a factory asks for it."""
    yield from corpus.train
