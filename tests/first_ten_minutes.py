"""The first ten minutes of a user, recorded: a fresh clone, a fresh environment, each command with its output and time.

Run it by `python tests/first_ten_minutes.py [PAGE [BRANCH]]`: the commands run in a new folder, and the page is written
anew. It takes as long as the page says, and leaves nothing else behind.
"""

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "first_ten_minutes.md"
BAR = re.compile(r"\d+%\||\d+/\d+ \[|it/s\]|step/s")  # a progress bar's line
OWN = re.compile(r"^WARNING: Location ")  # pip, of the places where this machine looks for packages
FIRST, LAST = 24, 72  # lines of an output that are shown
OPENING = """\
# The first ten minutes

This page is a recording: a fresh clone, a fresh environment, and each command with its real output and its time. It was
made by `python tests/first_ten_minutes.py`. Progress bars are left out.

"""


class Step(NamedTuple):
    """A command of the recording, and what a reader learns from it."""

    says: str
    command: str
    leads_to: str = ""  # what the shell of the next steps has to do again: its folder and its environment


STEPS = (
    Step("Get the code.", "git clone --quiet REPOSITORY edlm && cd edlm", "cd edlm && "),
    Step(
        "Make an environment.",
        "python -m venv environment && . environment/bin/activate",
        ". environment/bin/activate && ",
    ),
    Step("The first of the README's two commands, in two halves: install", "pip install --quiet ."),
    Step("and train, with everything at its default.", "edlm run edlm_nce"),
    Step("What is there?", "edlm ls"),
    Step("Is all there that is needed?", "edlm doctor"),
    Step("Texts by the denoiser alone.", "edlm run generate energy=null num_samples=2 output=plain.jsonl"),
    Step(
        "The same denoiser, written in order: eight tokens a pass, and no energy.",
        "edlm run generate energy=chain_rule num_samples=2 output=in_order.jsonl"
        " 'sampler={plan: {name: tokens_per_pass, count: 8}, selection: speculative, window: [0.0, 1.0]}'",
    ),
    Step("A gap.", "edlm run generate energy=null num_samples=2 prompt='the ________ of the' output=gap.jsonl"),
    Step("A key that is misspelt.", "edlm run generate num_stepz=8"),
    Step("The README's eight lines of Python.", "python README.py"),
)


def code_of_the_readme() -> str:
    """The first block of Python in the README."""
    [code, *_] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    return str(code)


def shown(output: str, folder: Path) -> str:
    """An output as the page shows it: without progress bars, and without the name of the folder."""
    lines = [line.rpartition("\r")[2].rstrip() for line in output.replace("\x1b[A", "").split("\n")]
    whole = "\n".join(line for line in lines if not (BAR.search(line) or OWN.search(line))).replace(str(folder), "~")
    kept = re.sub(r"\n{3,}", "\n\n", whole).strip("\n").split("\n")
    more = len(kept) - FIRST - LAST
    return "\n".join([*kept[:FIRST], f"... {more} lines more", *kept[-LAST:]] if more > 0 else kept)


def record(folder: Path, branch: str) -> list[str]:
    """Run every step where the steps before it have led, and tell of each in Markdown."""
    before, parts = "", []
    (folder / "README.py").write_text(code_of_the_readme(), "utf-8")
    for step in STEPS:
        command = step.command.replace("REPOSITORY", f"--branch {branch} {ROOT}")
        words = ["bash", "-c", f"exec 2>&1; {before}{command.replace('README.py', f'{folder}/README.py')}"]
        start = time.monotonic()
        ran = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, text=True, env=environment(), check=False)
        seconds, output = time.monotonic() - start, shown(ran.stdout, folder)
        status = f", exit status {ran.returncode}" if ran.returncode else ""
        told = f"$ {step.command}\n\n{output}".strip()
        parts.append(f"{step.says}\n\n```text\n{told}\n```\n\n*{minutes(seconds)}{status}*\n")
        before += step.leads_to
        print(step.command, minutes(seconds), status, flush=True)
    return parts


def environment() -> dict[str, str]:
    """The variables of a plain shell: nothing of the environment that runs this script."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EDLM", "PYTHON", "VIRTUAL"))}
    return {**kept, "COLUMNS": "120"}


def minutes(seconds: float) -> str:
    """A duration as a person says it."""
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60} s"


def machine() -> str:
    """One sentence on what it ran on."""
    return f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()}. No GPU was used.\n\n"


def main(page: Path = PAGE, branch: str = "") -> None:
    """Record, and write the page; the branch is the present one unless another is named."""
    start, present = time.monotonic(), ["git", "-C", str(ROOT), "branch", "--show-current"]
    branch = branch or subprocess.run(present, capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as name:
        parts = record(Path(name), branch)
    whole = f"All of it took {minutes(time.monotonic() - start)}.\n"
    page.write_text(OPENING + machine() + "\n".join([*parts, whole]), "utf-8")


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((Path, str), sys.argv[1:], strict=False)))
