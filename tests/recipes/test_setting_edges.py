"""Settings on the edge of what others allow: texts as long as the networks take, n-grams as long as a text."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from smallest import settings_of

from edlm.evaluation import card, figures, samples
from edlm.frontier import grid
from edlm.recipes import evaluate, frontier, likelihoods, oracle
from edlm.runs import settings as schemas

LONGEST = 8


class Reached(Exception):
    """The check is behind us."""


def reached(*_: Any, **__: Any) -> None:
    raise Reached


def loaded(recipe: Any, settings: Mapping[str, Any], folder: Path = Path()) -> Any:
    """A recipe whose networks take texts of `LONGEST` tokens."""
    found = object.__new__(recipe)
    found.settings, found.folder = dict(settings), folder
    found.models = SimpleNamespace(max_length=LONGEST)
    return found


@pytest.mark.parametrize(
    ("length", "ngrams", "said"),
    [
        (None, [1, LONGEST], None),
        (LONGEST, [LONGEST], None),
        (4, [4], None),
        (LONGEST + 1, [1], "length = 9 must lie in 1..8, what the networks take"),
        (4, [1, 5], "ngrams = [1, 5] must be at most length = 4"),
        (None, [9], "ngrams = [9] must be at most length = 8"),
    ],
)
def test_a_frontier_takes_the_longest_texts_and_their_n_grams(
    length: int | None, ngrams: list[int], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "sources", reached)
    found = loaded(frontier.Frontier, {"length": length, "ngrams": ngrams, "sweeps": []})
    with pytest.raises(Reached if said is None else ValueError) as error:
        found.setup()
    assert said is None or str(error.value) == said


@pytest.mark.parametrize(("length", "right"), [(None, True), (LONGEST, True), (LONGEST + 1, False)])
def test_so_do_likelihoods(length: int | None, right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "build", reached)
    found = loaded(likelihoods.Likelihoods, {"length": length, "corpus": {}, "split": "test"})
    with pytest.raises(Reached if right else ValueError):
        found.setup()


@pytest.mark.parametrize("distances", [[1], [1, 31]])
def test_distances_are_below_the_length(distances: list[int], tmp_path: Path) -> None:
    settings = settings_of("oracle", f"output_dir={tmp_path}", "length=32")
    oracle.Oracle({**settings, "distances": distances})
    with pytest.raises(ValueError, match=r"^distances = \[1, 32\] must be below length = 32$"):
        oracle.Oracle({**settings, "distances": [1, 32]})


@pytest.mark.parametrize("sets", [1, 2])
def test_sets_of_texts_are_compared_where_there_are_two(
    sets: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "markdown", lambda *_: "a table")
    monkeypatch.setattr(card, "sampler", lambda *_: None)
    monkeypatch.setattr(card, "card", lambda *_: {"figures": []})
    monkeypatch.setattr(samples, "record", lambda _: {"n": 3})
    found = loaded(evaluate.Evaluate, {}, tmp_path)
    found.texts, found.figures, found.documents, found.device = [None] * sets, [], {}, None
    found.judged_by, found.alike_by, found.quality = {"a": 1}, None, None
    found.save_card()
    content = json.loads((tmp_path / evaluate.CARD).read_text("utf-8"))
    assert content == {"figures": [], "judge": {"a": 1}, "mauve": None, "quality": {"n": 3}}
    assert (tmp_path / evaluate.TABLE).exists() is (sets == 2)
    assert str(tmp_path / evaluate.CARD) in capsys.readouterr().out
