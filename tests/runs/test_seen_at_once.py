"""What is said before long work is seen at once, where it goes to a file or through a pipe too."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import edlm
from edlm import recipes
from edlm.runs import entry
from edlm.training import log_check, resume

FOLDERS = Path(edlm.__file__).parent, Path(recipes.__path__[0])


class Pipe:
    """A stream that holds back what is written until it is flushed."""

    def __init__(self) -> None:
        self.held, self.seen = "", ""

    def write(self, said: str) -> None:
        self.held += said

    def flush(self) -> None:
        self.seen, self.held = self.seen + self.held, ""


def goes_on(_: Path) -> None:
    state = {"step": 4, "began": 0, "settings": {"steps": 4, "decay": "constant"}, "identity": {}}
    resume.require_unchanged(Path("run"), state, {"steps": 9, "decay": "constant", "patience": None}, {})


def puts_aside(folder: Path) -> None:
    (folder / "a").touch()
    log_check._put_aside(folder / "a")


@pytest.mark.parametrize(
    ("act", "stream", "said"),
    [
        (goes_on, "stdout", "run goes on at step 4: steps was 4, is 9\n"),
        (puts_aside, "stdout", "a is kept as {}/a.damaged\n"),
        (lambda _: entry._say("why"), "stderr", "edlm: why\n"),
    ],
    ids=["a run that goes on", "a file put aside", "a reason"],
)
def test_a_line_does_not_wait_for_the_next_one(
    act: Callable[[Path], None], stream: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipe()
    monkeypatch.setattr(sys, stream, pipe)
    act(tmp_path)
    assert (pipe.seen, pipe.held) == (said.format(tmp_path), "")


def test_nothing_that_is_printed_is_held_back_on_purpose() -> None:
    files = {path for folder in FOLDERS for path in folder.rglob("*.py")}
    asked = [word for path in files for word in re.findall(r"\bflush=(\w+)", path.read_text("utf-8"))]
    assert len(asked) > 10
    assert set(asked) == {"True"}
