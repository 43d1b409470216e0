"""Every mistake of the table gets its sentence, in one line, and leaves nothing behind."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import mistakes
import pytest

from edlm.cli import commands
from edlm.runs import exits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("mistakes")
    mistakes.prepared(found)
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(folder)
    before = sorted(path.name for path in folder.iterdir())
    yield
    assert sorted(path.name for path in folder.iterdir()) == before


def test_there_are_at_least_sixty() -> None:
    assert len(mistakes.COMMANDS) >= 60
    assert len(mistakes.CALLS) >= 60


@pytest.mark.parametrize("command", mistakes.COMMANDS)
def test_a_mistake_on_the_command_line_gets_its_sentence(capfd: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        commands.main(shlex.split(command)[1:])
    _, error = capfd.readouterr()
    assert stop.value.code == exits.USAGE_ERROR
    assert error == f"edlm: {mistakes.COMMANDS[command]}\n"


def test_the_page_shows_the_tables() -> None:
    assert mistakes.PAGE.read_text("utf-8") == mistakes.written(), "python tests/mistakes.py writes it"
