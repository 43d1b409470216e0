"""Validations without improvement are counted, over a stop too."""

import math

import pytest

from edlm.training.patience import Patience


def test_the_least_loss_and_the_validations_since_are_known() -> None:
    patience = Patience(2)
    assert (patience.best, patience.exhausted, patience.state()) == (None, False, {})
    assert patience.note(4, 3.0)
    assert patience.best == {"step": 4, "loss": 3.0}
    assert not patience.note(8, 3.0), "as low is not lower"
    assert not patience.exhausted
    assert patience.state() == {"step": 4, "loss": 3.0, "waited": 1}
    assert patience.note(12, 2.5)
    assert patience.state() == {"step": 12, "loss": 2.5, "waited": 0}
    assert [patience.note(step, loss) for step, loss in ((16, math.nan), (20, 2.6))] == [False, False]
    assert patience.exhausted
    assert patience.best == {"step": 12, "loss": 2.5}


@pytest.mark.parametrize(("limit", "exhausted"), [(None, False), (1, True), (2, True), (3, False)])
def test_it_goes_on_from_what_was_kept(limit: int | None, exhausted: bool) -> None:
    patience = Patience(limit)
    patience.load_state({})
    assert (patience.best, patience.waited, patience.exhausted) == (None, 0, False)
    patience.load_state({"step": 8, "loss": 1.5, "waited": 2})
    assert patience.exhausted is exhausted
    assert patience.state() == {"step": 8, "loss": 1.5, "waited": 2}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_validations_without_any_loss_are_counted_over_a_stop_too(loss: float) -> None:
    patience, again = Patience(3), Patience(3)
    assert [patience.note(step, loss) for step in (4, 8)] == [False, False]
    again.load_state(patience.state())
    assert (again.best, again.waited, again.exhausted) == (None, 2, False)
    assert not again.note(12, loss)
    assert again.exhausted
    assert again.note(16, 1e300)
    assert again.state() == {"step": 16, "loss": 1e300, "waited": 0}
