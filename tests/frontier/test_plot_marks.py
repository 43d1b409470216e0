"""What a frontier's picture is told to show: names, ends of its axes, words at points, and marks of what lies outside.

Panels are stood in for, so that nothing is drawn.
"""

import math
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import builders
import pytest

from edlm.frontier import plots
from edlm.frontier.points import Point
from edlm.likelihood.estimates import Estimate
from edlm.models import energies
from edlm.samplers.corrections import ChainRule, OfEnergy
from edlm.samplers.plans import Grid, TokensPerPass
from edlm.samplers.sampler import Proposal, Sampler

DENOISER = builders.tiny_denoiser(0, 4, vocab_size=5)
PLAIN = Sampler(DENOISER, Grid(4))
LEFT, RIGHT = 2.0, 6.0  # of each panel


def shown(
    setting: Sampler | None, bits: float, passes: float, seconds: float | None = None, role: str = "", **figures: float
) -> Point:
    figures = {"bits_per_character": bits, "entropy": 3.0, "passes": passes, "calls": passes} | figures
    name = "held-out text" if setting is None else str(setting)
    return Point(name, setting, role, {key: Estimate(mean, 0.1, 9) for key, mean in figures.items()}, seconds)


def told(points: list[Point], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return all that the parts of a picture are called with, and the panels."""
    said: dict[str, Any] = {"panels": [], "outside": [], "labels": None, "ends": None}

    def canvas(title: str, note: str, rows: Any, names: list[str]) -> tuple[None, list[MagicMock]]:
        said.update(note=note, names=names, rows=rows)
        said["panels"] = [MagicMock() for _ in range(1 + rows[1][1])]
        for panel in said["panels"]:
            panel.get_ylim.side_effect = lambda panel=panel: panel.set_ylim.call_args.args[0]
            panel.get_xlim.return_value = (LEFT, RIGHT)
        return None, said["panels"]

    def outside(axes: Any, marks: Any, with_values: bool) -> None:
        said["outside"].append((with_values, [(mark.x, mark.y, mark.word) for mark in marks]))

    monkeypatch.setattr(plots.plots, "canvas", canvas)
    monkeypatch.setattr(plots.plots, "save", lambda *_: None)
    monkeypatch.setattr(plots.plots, "plain_numbers", lambda *_: None)
    monkeypatch.setattr(plots.plot_labels, "mark_outliers", outside)
    monkeypatch.setattr(plots.plot_labels, "name_points", lambda _, words: said.update(labels=words))
    monkeypatch.setattr(plots.plot_labels, "name_ends", lambda _, ends: said.update(ends=ends))
    plots.draw(Path("none.png"), points, "", "The note.")
    return said


def of_plain(number: int, **options: Any) -> Sampler:
    return PLAIN.replace(plan=Grid(number), **options)


def test_the_farthest_outside_is_marked_at_each_place_with_its_value_and_its_cost_where_that_lies_beside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside = [shown(PLAIN, 5.0 + 0.02 * number, 3.0) for number in range(60)]
    far = [
        *(shown(PLAIN, 40.0, 4.0), shown(PLAIN, 60.0, 4.0), shown(PLAIN, 50.0, 4.0)),
        *(shown(PLAIN, 70.0, 8.0), shown(PLAIN, 80.0, 1.0), shown(PLAIN, -40.0, 4.0)),
    ]
    found = told([*inside, *far], monkeypatch)["outside"]
    (large, marks), *small = found
    assert large is True
    assert sorted(marks) == [(2.0, 80.0, "at 1:"), (4.0, -40.0, ""), (4.0, 60.0, ""), (6.0, 70.0, "at 8:")]
    assert len(small) == 2
    assert not any(large for large, _ in small)
    assert all(word == "" for _, marks in small for _, _, word in marks)


def test_an_axis_of_costs_ends_a_little_beyond_the_samplers(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [shown(of_plain(2), 5.0, 2.0, 0.5), shown(of_plain(8), 4.0, 8.0), shown(None, 3.0, math.nan)]
    passes, entropy, seconds, calls = told(points, monkeypatch)["panels"]
    for panel, ends in ((passes, (1.6, 10.0)), (seconds, (0.4, 0.625)), (calls, (1.6, 10.0))):
        assert panel.set_xlim.call_args.args == pytest.approx(ends)
        panel.set_xscale.assert_called_once_with("log")
    entropy.set_xscale.assert_not_called()
    assert [panel.axhline.called for panel in (passes, entropy, seconds, calls)] == [True, False, True, True]
    assert entropy.plot.call_args_list[0].args == ([3.0], [3.0], "*")


def test_controls_are_hollow_without_a_name_and_the_front_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    ordered = PLAIN.replace(correction=ChainRule(), candidates=3)
    points = [
        *(shown(of_plain(2), 5.0, 2.0, entropy=3.5), shown(of_plain(8), 4.0, 8.0, entropy=2.0)),
        *(shown(ordered, 3.0, 4.0), shown(ordered, 2.0, 6.0, role="flipped_twice of x", entropy=2.5)),
    ]
    said = told(points, monkeypatch)
    assert len(said["names"]) == 4
    assert said["names"].count("plain") == 2
    assert [(end[0], end[1]) for end in said["ends"]] == [(3.0, said["names"][2]), (4.0, "plain")]
    assert [mark.word for mark in said["labels"]] == ["T=4, k=3", "T=8", "T=2", "flipped twice"]
    hollow = [call.kwargs["markerfacecolor"] == "white" for call in said["panels"][0].errorbar.call_args_list]
    assert hollow == [False, False, False, True]
    grey = [panel.plot.call_args_list[-1].args for panel in said["panels"][:2]]
    assert grey == [([2.0, 4.0, 6.0], [5.0, 3.0, 2.0], "-"), ([2.5, 3.0, 3.5], [2.0, 3.0, 5.0], "-")]


def test_marks_are_larger_and_bars_thin_in_the_large_panel_and_only_entropy_has_an_error_of_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    panels = told([shown(PLAIN, 5.0, 2.0, 0.5), shown(None, 3.0, math.nan)], monkeypatch)["panels"]
    for panel, size, of_place in zip(panels, (5, 3.5, 3.5, 3.5), (None, [0.1], None, None), strict=True):
        [mark] = panel.errorbar.call_args_list
        assert (mark.kwargs["markersize"], mark.kwargs["elinewidth"], mark.kwargs["alpha"]) == (size, 0.7, 0.9)
        assert (mark.args[1], mark.kwargs["yerr"], mark.kwargs["xerr"]) == ([5.0], [0.1], of_place)
    lines = [panel.axhline.call_args for panel in panels if panel.axhline.called]
    assert [(line.args, line.kwargs["linewidth"], line.kwargs["linestyle"]) for line in lines] == [
        ((3.0,), 0.9, ":")
    ] * 3
    assert panels[1].plot.call_args_list[0].kwargs["markersize"] == 9
    assert [panel.plot.call_args_list[-1].kwargs["linewidth"] for panel in panels] == [4.0] * 4


def test_selections_have_marks_of_their_own_that_the_note_calls_by_their_shapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ordered = PLAIN.replace(correction=ChainRule(), candidates=3)
    one = [shown(PLAIN, 5.0, 2.0), shown(ordered, 3.0, 4.0)]
    said = told(one, monkeypatch)
    assert "squares" not in said["note"]
    assert said["note"].endswith("in both. The note.")
    assert [call.kwargs["fmt"] for call in said["panels"][0].errorbar.call_args_list] == ["o", "s"]
    chosen = ordered.chooses.name
    other = shown(ordered.replace(selection="speculative", candidates=1), 3.0, 4.0)
    said = told([*one, other], monkeypatch)
    assert f" Squares: {chosen}, diamonds: speculative. The note." in said["note"]


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        (PLAIN, "T=4"),
        (PLAIN.replace(plan=TokensPerPass(2)), "2"),
        (PLAIN.replace(correction=OfEnergy(energies.zero(), called="e"), candidates=3), "T=4, k=3"),
        (PLAIN.replace(proposal=Proposal(temperature=0.5)), "T=4, temp 0.5"),
        (PLAIN.replace(proposal=Proposal(nucleus=0.9)), "T=4, nucleus 0.9"),
        (PLAIN.replace(proposal=Proposal(temperature=0.8, nucleus=0.9)), "T=4, temp 0.8, nucleus 0.9"),
    ],
)
def test_the_word_at_a_point_says_what_it_has_of_its_own(setting: Sampler, word: str) -> None:
    assert plots.word(setting) == word
