"""The examples in the docstrings of the face, and of figures of samples, are run as they stand."""

import doctest
from importlib import import_module
from pathlib import Path
from types import ModuleType

import large_folders
import pytest
import torch

import edlm
from edlm.data import vocabulary


def modules_with_examples() -> list[str]:
    """Modules that `edlm` shows, those whose functions it shows, and figures of samples."""
    shown = [getattr(edlm, name) for name in edlm.__all__]
    face = {thing.__name__ if isinstance(thing, ModuleType) else thing.__module__ for thing in shown}
    return sorted(face | {"edlm.evaluation.judges", "edlm.evaluation.quality", "edlm.samplers.sampler"})


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that holds tiny models under the names of large ones, as the examples expect."""
    for name, family in (("LLaDA-8B-Base", "llada"), ("Qwen2.5-7B", "qwen2")):
        folder = large_folders.write(tmp_path / name, family, large_folders.random_weights(family))
        (folder / "tokenizer.json").write_text(vocabulary.characters().tokenizer.to_str())
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("module", modules_with_examples())
def test_examples_give_what_they_show(module: str, folders: None) -> None:
    result = doctest.testmod(import_module(module), extraglobs={"edlm": edlm, "torch": torch}, report=False)
    assert result.failed == 0, f"{result.failed} of {result.attempted} lines; run python -m doctest on {module}"
