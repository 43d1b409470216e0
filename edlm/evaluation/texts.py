"""Texts that a config names to be evaluated: data sets by name, components, files and folders."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edlm.data import catalogue, corpora, datasets
from edlm.runs import settings

_SPLITS = ("train", "valid", "test")


def zero_shot(asked: str | Mapping[str, Any], folder: str | None, normalised: bool) -> tuple[str, list[str]]:
    """Name a set of texts, and read its documents.

    asked: the name of a data set, of which the split of the published zero-shot figures is read, or NAME:SPLIT; a
    component, of which that split or the test split is read; or a file or folder, as `corpora.read_documents` takes it.
    folder: where the files of a named set lie, in a folder of its name; None asks the hub.
    Raises ValueError for what is missing or not as expected.
    """
    if isinstance(asked, Mapping):
        corpus = settings.build(asked, "texts")
        name = str(asked.get("name", asked.get("path", asked["_component_"])))
        return name, list(getattr(corpus, getattr(corpus, "zero_shot", "test")))
    name, _, split = asked.partition(":")
    if name not in catalogue.SETS:
        if not Path(asked).exists():
            near = difflib.get_close_matches(name, catalogue.SETS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"sets by name: {', '.join(catalogue.SETS)}"
            raise ValueError(f"zero_shot = {asked!r}: no such file, and no data set; {hint}")
        return asked, corpora.read_documents(asked, normalised)
    if split not in ("", *_SPLITS):
        raise ValueError(f"zero_shot = {asked!r}: the split must be one of {', '.join(_SPLITS)}")
    data = datasets.named(name, None if folder is None else Path(folder) / name, normalised=normalised)
    return asked, list(data.documents(split or data.zero_shot))
