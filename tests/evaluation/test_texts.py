"""Texts that a config names: which set, which split, from where, and what a name that is none might have meant."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edlm.data import corpora, datasets
from edlm.evaluation import texts


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What data sets are asked for, in the place of reading them."""
    found: list[tuple[Any, ...]] = []

    def named(name: str, folder: Path | None, normalised: bool) -> Any:
        def documents(split: str) -> list[str]:
            found.append((name, folder, normalised, split))
            return [split]

        return SimpleNamespace(documents=documents, zero_shot="valid")

    monkeypatch.setattr(datasets, "named", named)
    return found


@pytest.mark.parametrize(
    ("name", "folder", "normalised", "wanted"),
    [
        ("ptb", None, False, ("ptb", None, False, "valid")),
        ("ptb:test", "sets", True, ("ptb", Path("sets/ptb"), True, "test")),
        ("wikitext2:train", "sets", False, ("wikitext2", Path("sets/wikitext2"), False, "train")),
        ("text8:valid", None, True, ("text8", None, True, "valid")),
    ],
)
def test_a_set_is_read_in_its_published_split_or_in_the_one_that_is_named(
    name: str, folder: str | None, normalised: bool, wanted: tuple[Any, ...], asked: list[tuple[Any, ...]]
) -> None:
    assert texts.zero_shot(name, folder, normalised) == (name, [wanted[3]])
    assert asked == [wanted]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ptb:dev", "zero_shot = 'ptb:dev': the split must be one of train, valid, test"),
        ("wikitext", "zero_shot = 'wikitext': no such file, and no data set; did you mean 'wikitext2'?"),
        (
            "zzz",
            "zero_shot = 'zzz': no such file, and no data set; sets by name: text8, lm1b, openwebtext, ",
        ),
    ],
)
def test_what_is_no_set_is_named(name: str, said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        texts.zero_shot(name, None, False)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("normalised", [True, False])
def test_a_file_is_read_as_it_is_or_normalised(
    normalised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "read_documents", lambda path, normalised: [f"{path} {normalised}"])
    file = tmp_path / "a.txt"
    file.write_text("")
    assert texts.zero_shot(str(file), None, normalised) == (str(file), [f"{file} {normalised}"])
