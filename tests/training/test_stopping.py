"""Signals that ask a run to stop: noted while it is entered, voted on, and obeyed at once when they come again."""

import os
import signal

import pytest

from edlm.training import stopping
from edlm.training.stopping import Stopping

TOLD = "stopping at the end of this step, with a checkpoint; a second Ctrl-C stops at once, without one"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_vote_and_handlers_are_as_before_afterwards(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    with Stopping() as asked:
        assert (sum(asked.votes()), asked.agreed) == (0.0, None)
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # within a second it is the same one
        asked.agree([2 * vote for vote in asked.votes()])
        assert asked.agreed == number
    assert {each: signal.getsignal(each) for each in before} == before


def test_what_no_process_was_asked_is_not_agreed_and_one_vote_is_enough() -> None:
    asked = Stopping()
    for votes, agreed in (([0.0, 0.0], None), ([0.0, 1.0], signal.SIGTERM), ([1.0, 3.0], signal.SIGINT)):
        asked.agree(votes)
        assert asked.agreed == agreed


@pytest.mark.parametrize(("rank", "times"), [(0, 1), (1, 0)])
def test_the_first_process_says_once_what_happens(
    rank: int, times: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stopping.processes, "rank", lambda: rank)
    with Stopping():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    said = capfd.readouterr().err
    assert said == f"\n{TOLD}\n" * times


def test_a_signal_that_comes_again_later_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_IMPATIENT", -1.0)
    with Stopping():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
