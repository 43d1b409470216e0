"""How `generate` goes on with a file of texts, and what it shows at its end; no network takes part."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edlm.recipes import generate
from edlm.runs import processes


def begun(folder: Path, asked: list[tuple[int, int]], **settings: Any) -> generate.Generate:
    """A recipe whose texts say their number."""

    def drawn(count: int, first: int) -> list[dict[str, Any]]:
        asked.append((count, first))
        rows = range(first, first + count)
        return [{"row": row, "seed": 3, "settings": "0a", "text": f"text {row}", "ess": float(row)} for row in rows]

    found = object.__new__(generate.Generate)
    found.settings = {"batch_size": 2, "num_samples": 7, "seed": 3, "execution": "eager", **settings}
    found.output, found.fingerprint, found.device = folder / "texts.jsonl", "0a", "cpu"  # type: ignore[assignment]
    found.drawn = drawn  # type: ignore[assignment]
    return found


def rows(folder: Path) -> list[int]:
    return [json.loads(line)["row"] for line in (folder / "texts.jsonl").read_text().splitlines()]


def test_missing_texts_are_drawn_in_batches_and_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[int, int]] = []
    begun(tmp_path, asked, num_samples=3).generate()
    assert (asked, rows(tmp_path)) == ([(2, 0), (1, 2)], [0, 1, 2])
    assert "holds" not in capsys.readouterr().out
    asked.clear()
    begun(tmp_path, asked).generate()
    assert (asked, rows(tmp_path)) == ([(2, 3), (2, 5)], list(range(7)))
    said = f"{tmp_path / 'texts.jsonl'} holds 3 texts of these settings already; overwrite=true draws them anew\n"
    assert capsys.readouterr().out == said
    asked.clear()
    again = begun(tmp_path, asked, num_samples=5)
    again.generate()
    assert (asked, rows(tmp_path), again.rate) == ([], list(range(7)), 0.0), "more than are asked for stay"
    again.settings["overwrite"] = True
    again.generate()
    assert rows(tmp_path) == list(range(5))


def test_each_of_several_processes_draws_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []

    def spread(work: Any, items: list[Any]) -> list[Any]:
        together.append(len(items))
        return [work(item) for item in items]

    monkeypatch.setattr(processes, "world", lambda: 3)
    monkeypatch.setattr(processes, "from_first", lambda find: find())
    monkeypatch.setattr(processes, "spread", spread)
    begun(tmp_path, [], num_samples=9).generate()
    assert (together, rows(tmp_path)) == ([3, 2], list(range(9)))


@pytest.mark.parametrize("rate", [0.0, 12.345])
def test_the_first_three_texts_are_shown_and_what_all_of_them_took(
    rate: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = begun(tmp_path, [])
    found.generate()
    found.rate = rate
    capsys.readouterr()
    found.cleanup()
    shown = "".join(f"\n  sample {row}:\n    text {row}\n" for row in range(3))
    out = capsys.readouterr().out
    assert out.startswith(f"{shown}\n")
    lines = [" ".join(line.split()) for line in out.removeprefix(shown).splitlines()]
    assert lines == [
        "",
        "texts 7 seed 3",
        "ess 3.00 effective particles, mean over corrected passes",
        *(["texts per second 12.3 cpu, eager, 2 at once"] if rate else []),
        "",
        f"written to {tmp_path / 'texts.jsonl'}",
    ]


def test_a_plan_is_shown_and_nothing_is_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "resolve", SimpleNamespace(require_plan=lambda settings: f"plan of {settings['a']}"))
    monkeypatch.setattr(generate, "Generate", None)
    generate.main({"plan": True, "a": 3})
    assert capsys.readouterr().out == "plan of 3\n"
