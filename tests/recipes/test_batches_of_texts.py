"""Texts in batches: which rows each batch has, what is gone on with, what is shown, and what a recipe says first."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edlm.recipes import evaluate, generate
from edlm.runs import processes, records


def recipe(folder: Path, **settings: Any) -> Any:
    """One whose texts say which batch they are from."""
    found: Any = object.__new__(generate.Generate)
    own = {"batch_size": 3, "num_samples": 8, "seed": 5, "execution": "eager", **settings}
    found.settings, found.output, found.fingerprint, found.device = own, folder / "o.jsonl", "f", torch.device("cpu")
    found.asked = []

    def drawn(count: int, first: int) -> list[dict[str, Any]]:
        found.asked.append((count, first))
        rows = range(first, first + count)
        return [{"row": row, "seed": 5, "settings": "f", "text": f"text {row} of {first}"} for row in rows]

    found.drawn = drawn
    return found


def rows(found: Any) -> list[int]:
    return [json.loads(line)["row"] for line in found.output.read_text().splitlines()]


@pytest.mark.parametrize("world", [1, 2, 5])
def test_every_row_is_drawn_once_in_batches_and_the_last_one_is_smaller(
    world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many batches at a time as there are processes."""
    spread: list[list[int]] = []
    monkeypatch.setattr(processes, "world", lambda: world)
    monkeypatch.setattr(processes, "from_first", lambda find: find())
    monkeypatch.setattr(
        processes, "spread", lambda work, items: spread.append(list(items)) or [work(item) for item in items]
    )
    found = recipe(tmp_path)
    found.generate()
    assert found.asked == [(3, 0), (3, 3), (2, 6)]
    firsts = [0, 3, 6]
    assert spread == [firsts[at : at + world] for at in range(0, 3, world)]
    assert rows(found) == list(range(8))
    assert records.texts_done(found.output, "f", 5) == 8, "each is sealed"


@pytest.mark.parametrize(("there", "asked"), [(1, [(3, 1), (3, 4), (1, 7)]), (7, [(1, 7)]), (8, []), (10, [])])
def test_a_file_that_was_cut_off_is_gone_on_with(
    there: int, asked: list[tuple[int, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = recipe(tmp_path, num_samples=there)
    first.generate()
    found = recipe(tmp_path)
    found.generate()
    assert found.asked == asked
    assert rows(found) == list(range(max(8, there)))
    said = f"{found.output} holds {there} texts of these settings already; overwrite=true draws them anew\n"
    assert capsys.readouterr().out == said
    assert (found.rate > 0.0) == bool(asked)
    if not asked:
        assert found.rate == 0.0
    again = recipe(tmp_path, overwrite=True)
    again.generate()
    assert (len(again.asked), rows(again)) == (3, list(range(8)))


@pytest.mark.parametrize("rate", [0.0, 12.34567])
def test_the_first_three_texts_are_shown_with_how_many_there_are_and_how_fast_they_came(
    rate: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate.generation, "summary", lambda found: [("passes", f"{len(found)}", "in all")])
    found = recipe(tmp_path)
    found.generate()
    capsys.readouterr()
    found.rate = rate
    found.cleanup()
    shown, _, table = capsys.readouterr().out.partition("\n\n  texts")
    assert shown == "\n" + "\n\n".join(f"  sample {row}:\n    text {row} of 0" for row in range(3))
    lines = [line.split() for line in f"texts{table}".splitlines() if line]
    speed = [["texts", "per", "second", "12.3", "cpu,", "eager,", "3", "at", "once"]] if rate else []
    assert lines == [
        ["texts", "8", "seed", "5"],
        ["passes", "8", "in", "all"],
        *speed,
        ["written", "to", str(found.output)],
    ]


@pytest.mark.parametrize("key", ["judge", "mauve"])
def test_what_reads_samples_needs_some(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = object.__new__(evaluate.Evaluate)
    found.device = torch.device("cpu")
    monkeypatch.setattr(evaluate.cards, "load", lambda settings, device: "models")
    for name in ("load_judge", "load_likeness"):
        monkeypatch.setattr(evaluate.samples, name, lambda *given, name=name: ((name, *given), f"by {name}"))
    plain = {"judge": None, "mauve": None, "samples": None}
    found.settings = {**plain, key: "a"}
    doing = "judge" if key == "judge" else "compare"
    with pytest.raises(ValueError, match=f"^{key} = 'a' has nothing to {doing}: name samples$"):
        found.load_checkpoint()
    found.settings = {**plain, key: "a", "samples": "file"}
    found.load_checkpoint()
    loader = "load_judge" if key == "judge" else "load_likeness"
    held = ((loader, "a", found.device), f"by {loader}")
    own, other = (found.judge, found.judged_by), (found.likeness, found.alike_by)
    assert (own, other) == ((held, (None, None)) if key == "judge" else ((None, None), held))
    assert found.models == "models"
