"""A run that was stopped in any way and at any moment goes on as if it had not been, bit for bit.

Every training here is a child forked from this warm process. Those that are killed at a change of the file system are
told by an audit hook, which lasts as long as the child.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from one_layer import CHARACTERS, train
from together import fork, wait
from tqdm import tqdm

from edlm.training import log as following
from edlm.training import settings
from edlm.training.patience import Patience
from edlm.training.resume import FREE
from edlm.weights import checkpoints

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
NUM_KILLS = 100


@pytest.fixture(autouse=True, scope="module")
def no_picture() -> Iterator[None]:
    """A picture of what a clock said differs from run to run, and a hundred of them take their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "draw_curves", lambda folder: None)
        yield


def left(folder: Path) -> dict[str, Any]:
    """All that a run left, by name, but for what a clock said."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content: Any = file.read_bytes()
        if file.name == "metrics.jsonl":
            content = [{**json.loads(line), "tokens_per_s": 0} for line in content.splitlines()]
        found[str(file.relative_to(folder))] = content
    return found


def readable(folder: Path) -> bool:
    """Whether there is a checkpoint; it is read in full."""
    newest = checkpoints.last_checkpoint(folder)
    if newest is not None:
        checkpoints.load_network(newest, CHARACTERS)
        state = checkpoints.load_state(newest)
        assert newest.name == f"step_{state['step']:08d}"
        assert checkpoints.best_checkpoint(folder) is None or checkpoints.load_state(
            checkpoints.best_checkpoint(folder) or newest
        )
    return newest is not None


def at_change(folder: Path, act: Callable[[int], None]) -> None:
    """Call `act` with its number before each of this process' operations on files, those that read included."""
    count = 0

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in FILE_EVENTS and (event in ("os.remove", "os.rmdir") or str(arguments[0]).startswith(str(folder))):
            count += 1
            act(count)

    sys.addaudithook(audit)


def killed_at(folder: Path, number: int) -> int:
    """Train in a child that is killed before one of its operations on files; its exit status."""

    def act(count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        at_change(folder, act)
        train(folder)

    return wait(fork(work, Path(os.devnull)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int, float]:
    """What an uninterrupted run leaves, its operations on files, and its seconds."""
    folder, counted = tmp_path_factory.mktemp("whole") / "run", tmp_path_factory.mktemp("count") / "operations"

    def work() -> None:
        at_change(folder, counts.append)
        train(folder)
        counted.write_text(str(counts[-1]))

    counts: list[int] = []
    started = time.monotonic()
    assert wait(fork(work, Path(os.devnull))) == 0
    return left(folder), int(counted.read_text()), time.monotonic() - started


def test_an_uninterrupted_run_is_the_same_twice_and_leaves_nothing_over(
    whole: tuple[dict[str, Any], int, float], tmp_path: Path
) -> None:
    assert wait(fork(lambda: train(tmp_path / "run"), Path(os.devnull))) == 0
    found = left(tmp_path / "run")
    assert found == whole[0]
    folders = {name.split("/")[1] for name in found if name.startswith("checkpoints/")}
    best = json.loads(found["checkpoints/best.json"])
    assert folders == {"last.json", "best.json", "step_00000003", best["folder"]}
    assert [line["step"] for line in found["metrics.jsonl"]] == [1, 2, 3]


@pytest.mark.slow
def test_kills_at_changes_of_the_file_system_lose_nothing(
    whole: tuple[dict[str, Any], int, float], tmp_path: Path
) -> None:
    """A hundred first kills spread over all operations, loading and tidying included, each with a second one."""
    wanted, operations, _ = whole
    numbers = sorted(random.Random(0).sample(range(1, operations + 1), min(NUM_KILLS, operations)))
    assert len(numbers) == NUM_KILLS
    for number in numbers:
        folder = tmp_path / "run"
        assert killed_at(folder, number) == -signal.SIGKILL
        there = readable(folder)
        killed_at(folder, 1 + number * 7 % operations)
        assert readable(folder) or not there, f"killed at {number}: a checkpoint was lost"
        assert wait(fork(lambda folder=folder: train(folder), Path(os.devnull))) == 0
        assert left(folder) == wanted, f"killed at {number}"
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_any_moment_changes_nothing(
    whole: tuple[dict[str, Any], int, float], tmp_path: Path, number: signal.Signals
) -> None:
    """At random times, a save or a step under way; the run is signalled until it has ended."""
    draw = random.Random(int(number))
    for trial in range(5):
        folder = tmp_path / str(trial)
        for _ in range(4):
            child = fork(lambda folder=folder: train(folder), Path(os.devnull))
            time.sleep(draw.uniform(0.0, whole[2]))
            os.kill(child, number)
            assert wait(child) in (0, -number, 128 + number, 1)
            readable(folder)
        assert wait(fork(lambda folder=folder: train(folder), Path(os.devnull))) == 0
        assert left(folder) == whole[0]


def test_a_signal_sent_twice_at_once_is_one_signal(tmp_path: Path) -> None:
    """To a process and to its group, as a shell and a launcher do."""

    def work() -> None:
        def twice(count: int) -> None:
            if count == 40:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)

        at_change(tmp_path, twice)
        train(tmp_path / "run", steps=50)

    assert wait(fork(work, Path(os.devnull))) == 128 + signal.SIGTERM
    assert readable(tmp_path / "run")


def test_a_child_that_is_killed_while_it_draws_its_progress_blocks_nobody() -> None:
    """Else what comes after a kill would hang, for a reason that is none of the library's."""

    def dies() -> None:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    def draws() -> None:
        for _ in tqdm(range(2)):
            pass

    draws()
    assert wait(fork(dies, Path(os.devnull))) == -signal.SIGKILL
    assert wait(fork(draws, Path(os.devnull)), seconds=20.0) == 0
    draws()


def test_a_line_of_the_log_that_was_cut_off_is_written_again(
    whole: tuple[dict[str, Any], int, float], tmp_path: Path
) -> None:
    assert wait(fork(lambda: train(tmp_path / "run", steps=2), Path(os.devnull))) == 0
    with (tmp_path / "run" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 3, "valid": {"loss": 1.0}')
    assert wait(fork(lambda: train(tmp_path / "run"), Path(os.devnull))) == 0
    assert [line["step"] for line in left(tmp_path / "run")["metrics.jsonl"]] == [1, 2, 3]


def test_a_log_without_a_checkpoint_is_begun_anew(whole: tuple[dict[str, Any], int, float], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "valid_loss": 0.0}\n')
    assert wait(fork(lambda: train(tmp_path / "run"), Path(os.devnull))) == 0
    assert left(tmp_path / "run") == whole[0]


def test_a_mean_over_steps_on_both_sides_of_a_stop_is_that_of_all(
    whole: tuple[dict[str, Any], int, float], tmp_path: Path
) -> None:
    for number in (50, 60, 70, 80):
        killed_at(tmp_path / "run", number)
    assert wait(fork(lambda: train(tmp_path / "run"), Path(os.devnull))) == 0
    assert left(tmp_path / "run") == whole[0]


def test_the_best_checkpoint_stays_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 1.0, 2.0, 1.0, 4.0])
    note = Patience.note
    monkeypatch.setattr(Patience, "note", lambda patience, step, loss: note(patience, step, next(losses)))
    train(tmp_path / "run", steps=5)
    kept = sorted(folder.name for folder in (tmp_path / "run" / "checkpoints").glob("step_*"))
    assert kept == ["step_00000002", "step_00000005"], "the first of equals, and the last"
    best = json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text())
    assert best == {"folder": "step_00000002", "step": 2, "loss": 1.0}
    found = checkpoints.best_checkpoint(tmp_path / "run")
    assert found is not None
    assert checkpoints.read_description(found)["step"] == 2


def test_a_new_best_is_saved_between_saving_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 1.0, 2.0])
    note = Patience.note
    monkeypatch.setattr(Patience, "note", lambda patience, step, loss: note(patience, step, next(losses)))
    train(tmp_path / "run", save_every=100)
    kept = sorted(folder.name for folder in (tmp_path / "run" / "checkpoints").glob("step_*"))
    assert kept == ["step_00000002", "step_00000003"]


def test_what_has_changed_is_said_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "run", steps=1)
    capsys.readouterr()
    train(tmp_path / "run", steps=2, keep_last=4, accumulate=2)
    said = "goes on at step 1: accumulate was 1, is 2; keep_last was 1, is 4; steps was 1, is 2"
    assert said in capsys.readouterr().out
    with pytest.raises(ValueError, match="batch_size was 2, is 3; use another output_dir"):
        train(tmp_path / "run", steps=3, batch_size=3)
    with pytest.raises(ValueError, match="seed was 3, is 4; use another output_dir"):
        train(tmp_path / "run", steps=3, seed=4)
    assert FREE - {"processes"} <= set(settings.SETTINGS)


def test_the_largest_seed_trains(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=1, seed=2**63 - 1)
    assert readable(tmp_path / "run")


def test_a_finished_run_whose_picture_is_missing_or_old_draws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its last checkpoint and the picture, perhaps beside the picture of fewer steps."""
    drawn: list[Path] = []
    train(tmp_path / "run", steps=2)
    monkeypatch.setattr(following, "draw_curves", drawn.append)
    train(tmp_path / "run", steps=2)
    assert drawn == [tmp_path / "run"]
    (tmp_path / "run" / "curves.png").touch()
    train(tmp_path / "run", steps=2)
    assert len(drawn) == 1, "it is there"
    os.utime(tmp_path / "run" / "curves.png", (0, 0))
    train(tmp_path / "run", steps=2)
    assert len(drawn) == 2, "it is older than the log"


def test_without_resume_a_folder_that_holds_a_run_is_refused_and_stays(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=2, keep_last=2)
    before = left(tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run already: set resume=true to go on, or another output_dir"):
        train(tmp_path / "run", resume=False)
    assert left(tmp_path / "run") == before
    (tmp_path / "run" / "checkpoints" / "last.json").unlink()
    for resume in (True, False):
        with pytest.raises(ValueError, match=r"last\.json is missing, and 2 checkpoints are there"):
            train(tmp_path / "run", resume=resume)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    for resume in (True, False):
        with pytest.raises(ValueError, match="checkpoints are gone" if resume else "holds a run already"):
            train(tmp_path / "run", resume=resume)
    assert left(tmp_path / "run").keys() == {"metrics.jsonl"}


def test_a_run_whose_log_is_lost_goes_on_without_it_if_asked(
    whole: tuple[dict[str, Any], int, float], tmp_path: Path
) -> None:
    train(tmp_path / "run", steps=2)
    (tmp_path / "run" / "metrics.jsonl").write_text("notes")
    with pytest.raises(ValueError, match=r"metrics\.jsonl is not what the run had written at step 2"):
        train(tmp_path / "run")
    train(tmp_path / "run", resume="without_log")
    assert (tmp_path / "run" / "metrics.jsonl.damaged").read_text() == "notes"
    assert [line["step"] for line in left(tmp_path / "run")["metrics.jsonl"]] == [3]
