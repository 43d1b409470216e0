"""The curve of likelihoods: what is compared with what, and how its picture and its errors are made."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import tiny_denoiser
from matplotlib.figure import Figure
from torch import Tensor

import edlm
from edlm.data.pieces import Excerpt
from edlm.evaluation import figures
from edlm.evaluation.figures import MOST_UNRELIABLE, TextSet
from edlm.evaluation.scores import Scores
from edlm.frontier import curve, curve_plot
from edlm.frontier.curve import Point
from edlm.likelihood import estimates
from edlm.likelihood.estimates import Estimate
from edlm.process import noise
from edlm.process.noise import Stream
from edlm.runs import plots
from edlm.samplers.corrections import ChainRule
from edlm.samplers.sampler import Sampler


def test_a_rule_is_told_by_its_words_and_a_way_by_what_writes() -> None:
    sampler = Sampler(tiny_denoiser(), edlm.plans.Ranked(4, by="margin"))
    assert curve.rule_of(sampler) == curve.rule_of(sampler.replace(plan=edlm.plans.Ranked(1, by="margin")))
    assert curve.rule_of(sampler) == "ranked margin"
    assert curve.rule_of(sampler.replace(plan=edlm.plans.Ranked(4))) == "ranked confidence"
    weighed = sampler.replace(correction=ChainRule(), candidates=8)
    ways = [curve.way_of(each) for each in (sampler, weighed.replace(candidates=1, selection="speculative"), weighed)]
    assert ways == ["plain", "in order", "chain_rule, k=8"]


def test_the_error_of_an_excess_is_paired() -> None:
    """2,000 repetitions of 30 texts, which differ by far more than two settings do: the error is the spread there is.

    A chi-square of 2,000 differs from its mean by 16 % of it with probability below 1e-6.
    """
    n, repetitions = 30, 2_000
    normal = torch.special.ndtri(noise.grid(0, torch.arange(3 * repetitions), 0, Stream.EVALUATION, n))
    texts, one, other = normal.view(3, repetitions, n)
    values, others = 2.2 + 0.4 * texts + 0.02 * one, 2.0 + 0.4 * texts + 0.02 * other
    tokens = torch.full((n,), 64)
    found = [estimates.excess(*each, tokens) for each in zip(values, others, strict=True)]
    ratio = torch.tensor([each.mean for each in found])
    errors = torch.tensor([each.standard_error for each in found])
    assert float(errors.square().mean()) == pytest.approx(float(ratio.var()), rel=0.16)
    assert float(ratio.mean()) == pytest.approx(0.1, abs=0.002)
    alone = estimates.estimate(values[0]).standard_error / 2.0
    assert float(errors.mean()) < 0.3 * alone


def test_an_excess_counts_every_token_once() -> None:
    values, others = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0])
    assert estimates.excess(values, others, torch.tensor([1, 3])).mean == pytest.approx(10 / 7 - 1)
    same = estimates.excess(values, values, torch.tensor([1, 3]))
    assert (same.mean, same.standard_error) == (0.0, 0.0)
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        estimates.excess(values[:1], others[:1], torch.tensor([1]))


def test_values_stand_in_the_order_of_the_texts_whatever_their_lengths() -> None:
    excerpts = [Excerpt(torch.arange(length), 0) for length in (3, 5, 4, 5, 3, 4, 2)]
    texts = TextSet("some", excerpts, 7, 26)

    def score(tokens: Tensor, scored: Tensor, seed: Tensor, row: Tensor) -> Scores:
        return Scores({"length": scored.sum(1).double(), "row": row.double()}, {"denoiser": len(row)}, steps=row + 1)

    scores, tokens, _ = figures.collect("m", score, texts, 2, 0, torch.device("cpu"))
    assert tokens.tolist() == scores.nats["length"].tolist() == [3, 5, 4, 5, 3, 4, 2]
    assert scores.nats["row"].tolist() == list(range(7))
    assert scores.steps is not None
    assert scores.steps.tolist() == list(range(1, 8))
    assert scores.passes == {"denoiser": 7}
    assert scores.ess is None


def test_labels_are_words() -> None:
    curve.labels("labels", {"tokens per pass": "random"})
    for wrong in ({"a": 1}, ["a"], "a", {1: "a"}):
        with pytest.raises(ValueError, match=r"labels = .* must be a section with a name for each rule"):
            curve.labels("labels", wrong)


def scored(nats: list[float], steps: list[int], **more: Any) -> dict[str, Any]:
    """The record of a setting on two texts of 4 and 8 tokens."""
    return {"nats": {"exact_nll": nats}, "tokens": [4, 8], "steps": steps, "seconds": 1.0, **more}


def test_bits_are_per_character_and_so_is_their_error() -> None:
    """20 nats over 30 characters, in 12 tokens."""
    line = curve.line("ar", scored([1.0, 2.0], [4, 8]), 30)
    per_token = estimates.estimate(torch.tensor([1.0, 2.0]), torch.tensor([4, 8]))
    assert (line.name, line.figure) == ("ar", "exact_nll")
    assert line.bits.mean == pytest.approx(20 / 30 / math.log(2))
    assert line.bits.standard_error == pytest.approx(per_token.standard_error * 12 / 30 / math.log(2))
    assert line.bits.n == 2


@pytest.mark.parametrize("characters", [0, 1, 2])
def test_texts_without_a_character_count_as_one(characters: int) -> None:
    bits = curve.line("ar", scored([1.0, 1.0], [4, 8]), characters).bits.mean
    assert bits == pytest.approx(12 / max(1, characters) / math.log(2))


def test_what_was_collected_is_one_record_of_plain_values() -> None:
    """Figures of all parts by name; steps and what is unreliable where a part has them; seconds of all."""
    tokens = torch.tensor([4, 8])
    one = Scores({"nelbo": torch.tensor([1.0, 2.0])}, {"denoiser": 3.0})
    unreliable, steps = torch.tensor([True, False]), torch.tensor([2, 5])
    two = Scores({"tube": torch.tensor([0.5, 0.25])}, {"ar": 7.0}, unreliable=unreliable, steps=steps)
    record = curve.record([figures.Collected(one, tokens, 0.12345), figures.Collected(two, tokens + 1, 1.0)])
    assert record == {
        **{"nats": {"nelbo": [1.0, 2.0], "tube": [0.5, 0.25]}, "tokens": [4, 8], "steps": [2.0, 5.0]},
        **{"unreliable_rows": 0.5, "passes": {"denoiser": 3.0, "ar": 7.0}, "seconds": 1.123},
    }
    alone = curve.record([figures.Collected(one, tokens, 1.0)])
    assert (alone["steps"], alone["unreliable_rows"]) == (None, None)


def test_the_long_table_has_every_column() -> None:
    point = a_point("left to right", curve.IN_ORDER, 2.0, 4.0, exact=False)
    point = point._replace(name="x", lower=Estimate(1.5, 0.125, 5), excess=Estimate(0.25, 0.0625, 5), seconds=2.6)
    head, line, own, bare = curve.rows(
        [point, point._replace(lower=None, excess=None)], [curve.Line("ar", "nll", point.bits)]
    )
    assert head[1:3] + head[5:] == ("way", "figure", "at least", "over one token, %", "n", "seconds")
    assert line == ("ar", "-", "nll", "-", "2.0000 ± 0.2500", "-", "-", "5", "-")
    bits = ("4.00", "2.0000 ± 0.2500", "1.5000 ± 0.1250", "+25.00 ± 6.25", "5", "3")
    assert own == ("x", "in order", "<= t_step_nelbo", *bits)
    assert bare[5:7] == ("-", "-")
    text = curve.markdown([point], [], ["one", "two"])
    assert text.endswith(" |\n\none\n\ntwo\n")


def test_settings_are_compared_with_one_of_their_own_proposal() -> None:
    one, four = (Sampler(tiny_denoiser(), edlm.plans.LeftToRight(count)) for count in (1, 4))
    settings = {"one": one, "four": four, "cold": four.replace(proposal=edlm.samplers.Proposal(0.5))}
    records = {
        "one": scored([1.0, 2.0], [4, 8]),
        "four": scored([2.0, 2.0], [1, 2]),
        "cold": scored([2.0, 2.0], [1, 2]),
    }
    first, second, cold = curve.points(settings, records, 12)
    assert (first.together, second.together) == (1.0, 4.0)
    assert [own.one_by_one for own in (first, second)] == [True, False]
    assert first.excess is not None
    assert first.excess.mean == 0.0
    assert second.excess is not None
    assert second.excess.mean == pytest.approx(24 / 20 - 1)
    assert cold.excess is None


@pytest.mark.parametrize(("unreliable", "told"), [(0.0, True), (MOST_UNRELIABLE, True), (0.2, False)])
def test_an_interval_has_its_lower_end_where_that_is_reliable(unreliable: float, told: bool) -> None:
    nats = {"t_step_nelbo": [9.0, 9.0], "k_order_bound, K=3": [2.0, 2.0], "tube_lower, K=3": [1.0, 1.0]}
    sampler = Sampler(tiny_denoiser(), edlm.plans.TokensPerPass(2))
    own = {**scored([], [2, 4]), "nats": nats, "unreliable_rows": unreliable}
    [point] = curve.points({"some": sampler}, {"some": own}, 12)
    assert (point.figure, point.is_exact) == ("k_order_bound, K=3", False)
    assert point.bits.mean == pytest.approx(2 / math.log(2))
    assert (point.lower is not None) == told
    if point.lower is not None:
        assert point.lower.mean == pytest.approx(1 / math.log(2))


def a_point(rule: str, way: str, bits: float, together: float, exact: bool = True) -> Point:
    figure = "exact_nll" if exact else "t_step_nelbo"
    return Point("", rule, way, figure, Estimate(bits, 0.25, 5), None, together, None, 1.0)


def test_the_picture_shows_every_curve_by_its_colour_and_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order begins at the plain point of one token a pass; what is weighed may leave the picture."""
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda own, path, **_: (kept.append(own), Path(path).write_bytes(b"x")))
    points = [
        a_point("left to right", curve.PLAIN, 2.5, 4.0),
        a_point("left to right", curve.PLAIN, 2.0, 1.0),
        a_point("left to right", curve.IN_ORDER, 2.1, 4.0),
        a_point("tokens per pass", curve.PLAIN, 2.2, 3.0, exact=False),
        a_point("left to right", "learned, k=2", 9.0, 2.0, exact=False),
    ]
    lines = [curve.Line("ar", "exact_nll", Estimate(1.8, 0.1, 5))]
    curve_plot.draw(tmp_path / "x.png", points, lines, {"tokens per pass": "random"}, "what it says", "what it is")
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]
    [figure] = kept
    [axes] = figure.axes
    ours, plain, other = (plots.COLOURS[name] for name in ("in order", "plain", "learned"))
    shown = [
        (line.get_linestyle(), line.get_color(), list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if line.get_linestyle() != "None"
    ]
    assert shown == [
        ("--", plain, [1.0, 4.0], [2.0, 2.5]),
        ("-", ours, [1.0, 4.0], [2.0, 2.1]),
        ("--", plain, [3.0], [2.2]),
        (":", other, [2.0], [9.0]),
        (":", "black", [0, 1], [1.8, 1.8]),
    ]
    marks = [each.lines[0] for each in axes.containers]
    bounds = [list(mark.get_ydata()) for mark in marks if mark.get_markerfacecolor() == "white"]
    assert [ys for ys in bounds if ys] == [[2.2], [9.0]]
    filled = [list(mark.get_ydata()) for mark in marks if mark.get_markerfacecolor() != "white"]
    assert [ys for ys in filled if ys] == [[2.0, 2.5], [2.0, 2.1]]
    assert marks[0].get_marker() == marks[2].get_marker() != marks[4].get_marker(), "a mark for each rule"
    assert axes.get_ylim() == pytest.approx((1.8 - 0.042, 2.5 + 0.042))
    assert axes.get_xscale() == "log"
    assert list(axes.xaxis.get_major_locator()()) == [1.0, 2.0, 4.0]
    assert axes.get_xlabel() == "tokens written in a pass, as measured"
    assert axes.get_ylabel() == "bits per character (lower is better)"
    words = [(text.get_text(), text.get_color()) for text in axes.texts]
    assert words == [
        ("9", other),
        ("plain: random", plain),
        ("plain: left to right", plain),
        ("in order: left to right", ours),
        ("learned, k=2: left to\nright 9 ↑", other),
        ("AR model", "black"),
    ]
    heights = [text.xy[1] for text in axes.texts[1:]]
    assert heights == pytest.approx([(height - 1.758) / 0.784 for height in (2.2, 2.5, 2.1, 2.542, 1.8)])
    assert figure.texts[0].get_text() == "What it says"
    assert figure.texts[1].get_text().endswith("what it is")


def test_a_plain_curve_that_ends_early_is_named_at_its_last_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda own, path, **_: (kept.append(own), Path(path).write_bytes(b"x")))
    points = [
        a_point("left to right", curve.PLAIN, 2.0, 8.0),
        a_point("confidence", curve.PLAIN, 2.5, 4.0),
    ]
    curve_plot.draw(tmp_path / "x.png", points, [], {}, "", "")
    axes = kept[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["confidence", "plain: left to right"]


def test_curves_of_a_way_that_end_together_share_a_name() -> None:
    """Nearer than 3.5 % of the panel's height."""
    axes = Figure().add_subplot()
    axes.set_ylim(2.0, 4.0)
    ends = [curve_plot.End(bits, name, "C0") for bits, name in ((3.0, "a"), (3.069, "b"), (3.5, "c"), (3.571, "d"))]
    named = curve_plot._named(axes, {"in_order": ends, "plain": [curve_plot.End(3.0, "a", "C1")]})
    assert [(end.name, end.value) for end in named] == [
        *(("in order: a, b", pytest.approx(3.0345)), ("in order: c", 3.5), ("in order: d", 3.571), ("plain: a", 3.0)),
    ]


def test_no_curve_of_plain_or_in_order_leaves_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda own, path, **_: (kept.append(own), Path(path).write_bytes(b"x")))
    points = [a_point("left to right", curve.IN_ORDER, 2.0 + n / 100, n) for n in range(1, 9)]
    points += [a_point("left to right", curve.PLAIN, 5.0, 8.0), a_point("left to right", "learned, k=2", 9.0, 8.0)]
    curve_plot.draw(tmp_path / "x.png", points, [curve.Line("ar", "exact_nll", Estimate(0.5, 0.1, 5))], {}, "", "")
    low, high = kept[0].axes[0].get_ylim()
    assert 1.8 < low < 2.01
    assert 5.0 < high < 5.3


def test_the_short_table_has_the_most_tokens_a_pass_of_every_curve() -> None:
    points = [
        a_point("left to right", curve.PLAIN, 2.0, 1.0)._replace(name="one"),
        a_point("left to right", curve.PLAIN, 2.5, 4.0)._replace(name="four"),
        a_point("left to right", curve.IN_ORDER, 2.1, 2.0, exact=False)._replace(name="in order, two"),
    ]
    lines = [curve.Line("ar", "exact_nll", Estimate(1.8, 0.1, 5))]
    head, *body = curve.short(points, lines)
    assert head == ("", "figure", "tokens a pass", "bits/character", "over one token, %")
    assert body == [
        ("ar", "exact_nll", "-", "1.8000 ± 0.1000", "-"),
        ("four", "exact_nll", "4.00", "2.5000 ± 0.2500", "-"),
        ("in order, two", "<= t_step_nelbo", "2.00", "2.1000 ± 0.2500", "-"),
    ]
