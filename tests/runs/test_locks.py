"""One run to an output: a second one is refused with who holds it, and a dead one holds nothing."""

import errno
import fcntl
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from running import Runner
from smallest import denoiser_words, settings_of
from together import fork, start, wait

from edlm.recipes import pretrain_denoiser
from edlm.runs import locks
from edlm.training import start as starts


def hold(key: str, value: str, ready: Path) -> None:
    with locks.alone(key, value):
        ready.touch()
        time.sleep(60.0)


def holding(key: str, value: str, ready: Path) -> int:
    """A child that holds a lock."""
    child = fork(lambda: hold(key, value, ready), Path(os.devnull))
    while not ready.exists():
        time.sleep(0.005)
    return child


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    assert wait(child) == -signal.SIGKILL


@pytest.mark.parametrize("key", ["output_dir", "output", "denoiser"])
def test_a_second_run_is_refused_with_who_holds_it_until_that_one_is_dead(tmp_path: Path, key: str) -> None:
    value = str(tmp_path / "runs" / "one")
    child = holding(key, value, tmp_path / "ready")
    said = rf"^{key} = '{value}' is being written by process {child} on {socket.gethostname()} since 20\d\d-.*: wait"
    with pytest.raises(ValueError, match=said), locks.alone(key, value):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    with pytest.raises(ValueError, match="is being written"), locks.alone(key, str(tmp_path / "link" / "one")):
        pass
    end(child)
    with locks.alone(key, value):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "ready", "runs"]
    assert not list((tmp_path / "runs").rglob("*.lock")), "nor what the dead one left"


def test_what_was_made_for_the_lock_goes_with_it_unless_it_is_used(tmp_path: Path) -> None:
    with locks.alone("output_dir", str(tmp_path / "a" / "b")):
        assert (tmp_path / "a" / "b" / ".run.lock").is_file()
    assert not list(tmp_path.iterdir())
    with locks.alone("output_dir", str(tmp_path / "a" / "b")):
        (tmp_path / "a" / "b" / "report.json").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["report.json"]


def test_what_a_dead_run_wrote_down_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".run.lock").write_text('{"pid": 1, "host": "' + "a" * 200 + '", "since": "2001"}')
    with locks.alone("output_dir", str(tmp_path)):
        holder = json.loads((tmp_path / ".run.lock").read_text())
        assert (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname())
        assert holder.keys() == {"pid", "host", "since"}
        assert time.time() - time.mktime(time.strptime(holder["since"], "%Y-%m-%d %H:%M:%S %z")) < 86400 * 2


@pytest.mark.parametrize(
    ("said", "holder"),
    [
        ('{"pid": 3, "host": "a", "since": "b"}', "process 3 on a since b"),
        ('{"pid": 3, "host": "a"}', "another process"),
        ("", "another process"),
        ("[3]", "another process"),
    ],
)
def test_a_holder_that_has_not_signed_is_another_process(said: str, holder: str) -> None:
    assert locks._holder(said) == holder


def test_two_files_of_a_folder_are_two_outputs(tmp_path: Path) -> None:
    child = holding("output", str(tmp_path / "one.jsonl"), tmp_path / "ready")
    with locks.alone("output", str(tmp_path / "other.jsonl")):
        pass
    end(child)


def test_a_run_does_not_wait_for_itself(tmp_path: Path) -> None:
    """As where the denoiser that is trained first is to lie in the folder of the energy."""
    with (
        locks.alone("output_dir", str(tmp_path)),
        pytest.raises(ValueError, match=r"denoiser = .* is written by this very run already: use another denoiser"),
        locks.alone("denoiser", str(tmp_path)),
    ):
        pass


def test_a_child_of_the_run_keeps_no_lock_after_its_death(tmp_path: Path) -> None:
    """Workers that outlive a killed run for a while do not stop its repetition."""

    def parent() -> None:
        with locks.alone("output_dir", str(tmp_path / "run")):
            worker = os.fork()
            if not worker:
                (tmp_path / "begun").touch()
                time.sleep(60.0)
            while not (tmp_path / "begun").exists():
                time.sleep(0.005)
            (tmp_path / "worker").write_text(str(worker))
            os.kill(os.getpid(), signal.SIGKILL)

    assert wait(fork(parent, Path(os.devnull))) == -signal.SIGKILL
    try:
        with locks.alone("output_dir", str(tmp_path / "run")):
            pass
    finally:
        os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)


def test_a_file_that_is_taken_away_while_it_is_waited_for_is_no_lock(tmp_path: Path, monkeypatch: Any) -> None:
    """Its holder ends between the opening of the file and its locking: the lock is then on a file without a name."""
    lock, own = tmp_path / ".run.lock", fcntl.flock
    calls = []

    def flock(file: Any, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            lock.unlink()
        own(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.alone("output_dir", str(tmp_path)):
        assert lock.is_file()
        assert len(calls) == 2


def test_a_file_system_without_locks_is_said_to_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.alone("output_dir", str(tmp_path / "run")):
        (tmp_path / "run" / "report.json").touch()
    said = capsys.readouterr().err
    assert said.startswith(f"edlm: no lock on {tmp_path / 'run'}: its file system has none (No locks available)")
    assert len(said.splitlines()) == 1


def test_processes_of_one_run_share_its_lock_and_are_refused_together(tmp_path: Path) -> None:
    def work() -> None:
        with locks.outputs({"output_dir": str(tmp_path / "run"), "output": str(tmp_path / "texts.jsonl")}):
            pass

    assert [wait(child) for child in start(work, 2, tmp_path)] == [0, 0]
    holder = holding("output_dir", str(tmp_path / "run"), tmp_path / "ready")
    assert [wait(child) for child in start(work, 2, tmp_path)] == [1, 1]
    assert all(f"process {holder}" in (tmp_path / f"said_{rank}").read_text() for rank in (0, 1))
    end(holder)


def test_every_recipe_is_refused_an_output_that_another_run_writes(run: Runner, tmp_path: Path) -> None:
    child = holding("output_dir", str(tmp_path / "run"), tmp_path / "ready")
    for recipe in ("pretrain_denoiser", "edlm_nce", "evaluate", "frontier", "likelihoods", "oracle", "benchmark"):
        status, _, said = run(recipe, f"output_dir={tmp_path / 'run'}")
        assert (status, f"is being written by process {child}" in said) == (2, True), recipe
        assert len(said.splitlines()) == 1
    end(child)
    child = holding("output", str(tmp_path / "texts.jsonl"), tmp_path / "ready_too")
    status, _, said = run("generate", f"output={tmp_path / 'texts.jsonl'}")
    assert (status, f"is being written by process {child}" in said) == (2, True)
    end(child)


def test_the_denoiser_that_is_trained_first_is_an_output_too(tmp_path: Path) -> None:
    child = holding("denoiser", str(tmp_path / "denoiser"), tmp_path / "ready")
    settings = settings_of("edlm_nce", f"denoiser={tmp_path / 'denoiser'}")
    with pytest.raises(ValueError, match=f"^denoiser = .* is being written by process {child}"):
        starts.load(settings, "cpu", pretrain_denoiser.main)
    end(child)


def test_a_mistake_in_a_config_leaves_no_lock(run: Runner, tmp_path: Path) -> None:
    assert run("pretrain_denoiser", *denoiser_words(tmp_path / "run"), "length=100000").status == 2
    assert not list(tmp_path.iterdir())
