"""Whoever watches a sampler sees its masks go, and changes nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict

import edlm
from edlm import progress
from edlm.likelihood import hidden_markov
from edlm.samplers import plans, remasking, watching
from edlm.samplers.sampler import Sampler

LENGTH, SYMBOLS = 8, 3
DENOISER = hidden_markov.denoiser(hidden_markov.random_markov(0, SYMBOLS), LENGTH)
PLANS = {"drawn": plans.Grid(4), "chosen": plans.Confidence(0.5)}


class Counted:
    """A bar that writes down where it was."""

    def __init__(self, total: int, unit: str) -> None:
        self.total, self.unit, self.n, self.seen, self.closed = total, unit, 0, [0], False

    def __enter__(self) -> "Counted":
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True

    def update(self, more: int) -> None:
        self.n += more
        self.seen.append(self.n)


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Counted]:
    found: list[Counted] = []

    def bar(total: int, unit: str) -> Counted:
        found.append(Counted(total, unit))
        return found[-1]

    monkeypatch.setattr(progress, "bar", bar)
    return found


def draws(plan: str) -> dict[str, Callable[..., TensorDict]]:
    pipeline = edlm.pipelines.pipeline(Sampler(DENOISER, PLANS[plan]), LENGTH)
    return {
        "sample": lambda **how: edlm.sample(pipeline, 3, **how),
        "extend": lambda **how: edlm.extend(pipeline, 12, 4, 3, **how),
    }


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("call", ["sample", "extend"])
def test_a_bar_counts_the_masks_that_are_gone_and_changes_no_token(plan: str, call: str, bars: list[Counted]) -> None:
    draw, states = draws(plan)[call], list[Any]()
    prompt = torch.tensor([0, SYMBOLS, 1])
    plain = draw(prompt=prompt)
    assert not bars
    shown = draw(prompt=prompt, progress=True, callback=lambda state, info: states.append(state["x_t"]))
    assert torch.equal(plain["tokens"], shown["tokens"])
    (bar,) = bars
    assert bar.total == bar.n == 3 * (shown["tokens"].shape[1] - 2)
    assert bar.seen == sorted(bar.seen)
    assert len(bar.seen) == len(states) + 1
    assert bar.closed
    assert bar.unit == "token"


def test_remasked_tokens_are_counted_back(bars: list[Counted]) -> None:
    sampler = Sampler(DENOISER, plans.Grid(6), remasking=remasking.Cap(0.5))
    edlm.sample(edlm.pipelines.pipeline(sampler, LENGTH), 4, progress=True)
    assert bars[0].n == bars[0].total == 4 * LENGTH


def test_without_a_bar_the_callback_is_handed_on_as_it_is() -> None:
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    for callback in (None, lambda state, info: None):
        with watching.watched(tokens, 3, False, callback) as shown:
            assert shown is callback


def test_the_live_view_shows_the_first_texts_with_their_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(progress, "redraw", shown.append)
    pipeline = edlm.pipelines.pipeline(Sampler(DENOISER, plans.TokensPerPass(2)), LENGTH)
    letters = edlm.vocabulary.characters("abc")
    out = edlm.sample(pipeline, 3, callback=edlm.samplers.live(letters, rows=2))
    assert len(shown) == 4
    assert [text.count("_") for text in shown] == [12, 8, 4, 0]
    assert shown[-1] == "\n\n".join(letters.decode(out["tokens"][:2]))
