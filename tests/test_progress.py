"""Progress is a bar where somebody looks, and a line a minute elsewhere, which nothing overwrites."""

import sys
from types import ModuleType
from typing import Any

import pytest

from edlm import progress


@pytest.fixture(autouse=True)
def no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


def test_off_a_terminal_it_is_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 1e-9)
    with progress.bar(total=4, initial=1, unit="text", bar_format="{desc}") as bar:
        for _ in range(3):
            bar.update()
    error = capsys.readouterr().err
    assert "\r" not in error
    assert "\x1b" not in error
    lines = error.splitlines()
    assert len(lines) >= 3
    assert lines[-1].startswith("100% 4/4")
    assert all(line == line.strip() for line in lines)


@pytest.mark.parametrize("leave", [True, False])
def test_what_is_over_within_a_minute_says_nothing(leave: bool, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress.bar(range(100), leave=leave):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("leave", [True, False])
def test_a_line_comes_once_a_minute_and_what_is_asked_for_is_kept(leave: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_tqdm", lambda *given, **settings: (given, settings))
    (given, settings) = progress.bar(range(3), leave=leave, unit="text", bar_format="{desc}", ncols=60)
    assert given == (range(3),)
    assert isinstance(settings.pop("file"), progress._Lines)
    every: dict[str, Any] = dict.fromkeys(("mininterval", "maxinterval", "delay"), 60.0)
    assert settings == {"unit": "text", "leave": leave, "ascii": True, "bar_format": None, "ncols": 0, **every}
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert progress.bar(range(3), leave=leave, unit="text") == ((range(3),), {"unit": "text", "leave": leave})


def test_in_a_terminal_it_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.bar(total=2, ncols=60) as bar:
        bar.update(2)
    assert "\r100%|" in capsys.readouterr().err


def test_a_text_takes_the_place_of_the_one_before_it_where_it_can(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.redraw("one")
    assert capsys.readouterr().err == "one\n", "a log keeps them all"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress.redraw("two")
    assert capsys.readouterr().err == "\x1b[H\x1b[2Jtwo\n"
    cleared: list[bool] = []
    notebook = ModuleType("IPython.display")

    def clear_output(wait: bool) -> None:
        cleared.append(wait)

    notebook.clear_output = clear_output  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    progress.redraw("three")
    assert capsys.readouterr().out == "three\n"
    assert cleared == [True]
    assert progress.is_seen()
