"""The recording of the first ten minutes shows what a reader needs: output without bars or folders, and times."""

from pathlib import Path

import first_ten_minutes as recording
import pytest
from commands import in_markdown, run_of

from edlm.cli import commands

FOLDER = Path("/somewhere/made/up")
BAR = " 10%|#    | 1/10 [00:01<00:09, 1.0step/s]"


def test_bars_and_folders_are_left_out() -> None:
    here = "WARNING: Location 'file:///packages/torch/' is ignored: it is neither a file nor a directory."
    printed = f"begin\n{here}\n{BAR}\rdone\n{BAR}\n\n\n\n{FOLDER}/edlm: 3 texts\n"
    assert recording.shown(printed, FOLDER) == "begin\ndone\n\n~/edlm: 3 texts"


@pytest.mark.parametrize("more", [0, 3])
def test_of_a_long_output_the_beginning_and_the_end_are_shown(more: int) -> None:
    lines = [str(number) for number in range(recording.FIRST + recording.LAST + more)]
    left_out = [f"... {more} lines more"] if more else []
    expected = [*lines[: recording.FIRST], *left_out, *lines[recording.FIRST + more :]]
    assert recording.shown("\n".join(lines), FOLDER).split("\n") == expected


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (99.4, "99 s"), (119.7, "2 min 0 s"), (125.0, "2 min 5 s")]
)
def test_a_time_is_said_as_a_person_says_it(seconds: float, said: str) -> None:
    assert recording.minutes(seconds) == said


def test_its_commands_would_start_but_for_the_one_that_is_misspelt() -> None:
    shown = [step.command for step in recording.STEPS if "stepz" not in step.command]
    runs = [run for words in in_markdown(f"```bash\n{chr(10).join(shown)}\n```") if (run := run_of(words))]
    assert [run.recipe for run in runs] == ["edlm_nce", "generate", "generate", "generate"]
    for run in runs:
        assert run.recipe in commands.recipes()
        run.settings()
