"""What pictures show: every figure in a panel that can be seen, no place without one, at the right values."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import builders
import pytest
from matplotlib.figure import Figure

from edlm.benchmark import plots
from edlm.frontier import plots as frontier_plots
from edlm.frontier.grid import Alone
from edlm.frontier.points import Point
from edlm.likelihood.estimates import Estimate
from edlm.runs import plots as plots_of_runs
from edlm.samplers import corrections, plans
from edlm.samplers.sampler import Proposal, Sampler
from edlm.training import curve_plot, log


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, which are not drawn: that takes seconds."""
    figures: list[Figure] = []

    def keep(figure: Figure, path: Path, **options: Any) -> None:
        assert options["format"] == "png"
        figures.append(figure)
        Path(path).write_bytes(b"\x89PNG")

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def shown(axes: Sequence[Any]) -> list[Any]:
    """Panels that can be seen; those that are empty must not be."""
    seen = [panel for panel in axes if panel.axison and panel.get_visible()]
    assert all(panel.lines or panel.patches or panel.containers for panel in seen)
    assert not [panel for panel in axes if panel not in seen and (panel.lines or panel.containers)]
    return seen


@pytest.mark.parametrize("count", range(1, 9))
def test_every_figure_of_a_run_has_its_panel(count: int, tmp_path: Path, drawn: list[Figure]) -> None:
    names = [f"valid_{number}" for number in range(count)]
    records = [{"step": 5, **dict.fromkeys(names, 1.0)}, {"step": 9, **{name: i + 2.0 for i, name in enumerate(names)}}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    log.draw_curves(tmp_path)
    [figure] = drawn
    large, *small = shown(figure.axes)
    assert large.get_ylabel() == "held-out 0"
    assert [panel.get_title(loc="left") for panel in small] == [f"held-out {number}" for number in range(1, count)]
    for number, panel in enumerate((large, *small)):
        assert panel.get_xlabel() == "step"
        line = panel.lines[0]
        assert [list(line.get_xdata()), list(line.get_ydata())] == [[5, 9], [1.0, number + 2.0]]
    assert len(figure.axes) == 1 + -(-(count - 1) // 3) * 3
    assert (tmp_path / "curves.png").exists()
    assert not list(tmp_path.glob(".*"))


def test_figures_that_share_a_panel_are_named_and_have_their_errors(tmp_path: Path, drawn: list[Figure]) -> None:
    records = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0, "valid_nelbo": 2.5, "valid_nelbo_error": 0.25},
        {"step": 3, "loss": None, "valid_nelbo": 2.25},
    ]
    lines = [json.dumps(record) for record in records]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 4, "lo']), "utf-8")
    log.draw_curves(tmp_path)
    [panel] = shown(drawn[0].axes)
    assert panel.get_ylabel() == "loss, nats"
    named = [(text.get_text(), text.get_color()) for text in panel.texts]
    loss, held_out = panel.containers
    assert named == [("training 2", loss.lines[0].get_color()), ("held-out NELBO 2.25", held_out.lines[0].get_color())]
    assert drawn[0].texts[0].get_text() == "Held-out NELBO 2.25 at step 3, the lowest so far"
    assert list(loss.lines[0].get_xdata()) == [1, 2]
    assert not loss.has_yerr
    assert held_out.has_yerr
    ends = [list(end) for end in held_out.lines[2][0].get_segments()]
    assert [[low[1], high[1]] for low, high in ends] == [[2.25, 2.75], [2.25, 2.25]]


def test_levels_that_share_a_small_panel_are_named_in_colours_of_their_own(tmp_path: Path, drawn: list[Figure]) -> None:
    names = ["valid_ess", "valid_ess_t0.0-0.5", "valid_ess_t0.5-1.0"]
    records = [
        {"step": step, "loss": 1.0, **{name: n + step / 90 for n, name in enumerate(names)}} for step in (10, 20, 30)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    log.draw_curves(tmp_path)
    _, panel = shown(drawn[0].axes)
    assert panel.get_title(loc="left") == "held-out ESS"
    assert [text.get_text() for text in panel.texts] == ["all", "t 0.0-0.5", "t 0.5-1.0"]
    colours = [each.lines[0].get_color() for each in panel.containers]
    assert [text.get_color() for text in panel.texts] == colours
    assert len(set(colours)) == 3


def test_a_spike_does_not_flatten_the_loss(tmp_path: Path, drawn: list[Figure]) -> None:
    records = [{"step": step, "loss": 4_000.0 if step == 2 else 3.0 - step / 20} for step in range(1, 21)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    log.draw_curves(tmp_path)
    [panel] = shown(drawn[0].axes)
    assert panel.get_ylim()[1] < 3.2
    assert [text.get_text() for text in panel.texts] == ["4,000", "training 2"]


@pytest.mark.parametrize(
    ("last", "error", "said"),
    [
        (1.9, 0.1, "held-out NELBO 1.90 ± 0.10 at step 30, the lowest so far"),
        (2.1, 0.1, "held-out NELBO 2.10 ± 0.10 at step 30, within its error of the lowest, 2 at step 20"),
        (2.3, 0.1, "held-out NELBO 2.30 ± 0.10 at step 30, above the lowest, 2 at step 20"),
    ],
)
def test_the_title_says_where_a_run_stands(last: float, error: float, said: str) -> None:
    figures = zip((10, 20, 30), (2.5, 2.0, last), strict=True)
    records = [{"step": step, "loss": 1.5, "valid_nelbo": value, "valid_nelbo_error": error} for step, value in figures]
    assert curve_plot.title(records, ["loss", "valid_nelbo"]) == said
    assert curve_plot.title(records, ["loss"]) == "training 1.5 at step 30"
    assert curve_plot.title(records[:1], ["loss", "valid_nelbo"]) == "held-out NELBO 2.50 ± 0.10 at step 10"


def sweep(number: int) -> dict[str, Any]:
    return {
        "name": f"sweep {number}",
        "axis": "length",
        "values": [8, 16],
        "medians": {"eager": [1.0, 2.0 + number]},
        "exponents": {"eager": {"exponent": 1.25}},
    }


@pytest.mark.parametrize("count", range(8))
def test_every_case_has_its_bars_and_every_sweep_its_panel(count: int, tmp_path: Path, drawn: list[Figure]) -> None:
    ratio = {"median": 4.0, "low": 3.0, "high": 6.0}
    cases = [
        {"name": "one", "ratios": {"eager": ratio, "compile": ratio}, "targets": {"target": 2.0}},
        {"name": "other", "ratios": {"eager": ratio}, "targets": {"target": None}},
    ]
    plots.draw(tmp_path / "x.png", cases, [sweep(number) for number in range(count)])
    [figure] = drawn
    bars, *panels = figure.axes
    assert [label.get_text() for label in bars.get_yticklabels()] == ["one", "other"]
    assert list(bars.get_yticks()) == [0.5, 3.0]
    assert [(patch.get_x(), patch.get_width()) for patch in bars.patches] == [(1, 3.0)] * 3
    assert [patch.get_y() + patch.get_height() / 2 for patch in bars.patches] == pytest.approx([0.0, 1.0, 3.0])
    [targets] = [line for line in bars.lines if line.get_linestyle() == ":"]
    assert [list(targets.get_xdata()), list(targets.get_ydata())] == [[2.0, 2.0], [-0.6, 1.6]]
    assert [text.get_text() for text in bars.texts] == ["eager 4", "compile 4", "eager 4"]
    assert figure.texts[0].get_text() == "Times as fast as the textbook: eager 4, compile 4"
    seen = shown(panels)
    assert [panel.get_title(loc="left") for panel in seen] == [f"sweep {number}" for number in range(count)]
    for number, panel in enumerate(seen):
        assert [list(panel.lines[0].get_xdata()), list(panel.lines[0].get_ydata())] == [[8, 16], [1.0, 2.0 + number]]
        assert [text.get_text() for text in panel.texts] == ["eager: power 1.25"]
        assert panel.get_xlabel() == "length"


def test_the_title_of_a_benchmark_has_the_range_of_every_mode() -> None:
    modes = [{"eager": {"median": 2.0}}, {"eager": {"median": 4.5}, "compile": {"median": 9.0}}]
    assert plots.title([{"ratios": each} for each in modes]) == (
        "times as fast as the textbook: eager 2 to 4.5, compile 9"
    )
    assert plots.title([]) == "no case was measured"


def test_held_out_text_is_a_star_by_its_entropy_and_a_line_where_it_costs_nothing(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    names = ("bits_per_character", "entropy", "passes", "calls")
    values = [{"bits_per_character": 2.5, "entropy": 2.75}, dict(zip(names, (3.5, 2.25, 8.0, 9.0), strict=True))]
    figures = [{name: Estimate(value, 0.1, 5) for name, value in each.items()} for each in values]
    alone = Alone(None, 4, 1.0)  # type: ignore[arg-type]
    points = [Point("real", None, "", figures[0], None), Point("ar", alone, "", figures[1], 0.5)]
    frontier_plots.draw(tmp_path / "frontier.png", points, "what was found", "of what")
    [figure] = drawn
    assert [text.get_text().split()[0] for text in figure.texts] == ["What", "Lower"]
    by_passes, by_entropy, *by_cost = figure.axes
    stars = [line for line in by_entropy.lines if line.get_marker() == "*"]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in stars] == [([2.75], [2.5])]
    for panel in (by_passes, *by_cost):
        assert not [line for line in panel.lines if line.get_marker() == "*"]
        assert [2.5, 2.5] in [list(line.get_ydata()) for line in panel.lines]
    assert [text.get_text() for text in by_passes.texts] == ["real", "AR model"]


def test_a_frontier_has_a_colour_for_each_method_and_words_at_its_points(tmp_path: Path, drawn: list[Figure]) -> None:
    """A control is hollow; what lies far above is a triangle at the edge with its value."""
    denoiser = builders.tiny_denoiser(0, 4, vocab_size=5)
    plain = Sampler(denoiser, plans.TokensPerPass(8))
    ordered = plain.replace(correction=corrections.ChainRule(), selection="speculative")
    cold = plain.replace(proposal=Proposal(0.5))

    def point(setting: Sampler, bits: float, passes: float, role: str = "") -> Point:
        values = {"bits_per_character": bits, "entropy": 2.5, "passes": passes, "calls": passes}
        return Point(str(setting), setting, role, {key: Estimate(v, 0.01, 9) for key, v in values.items()}, passes)

    many = [point(plain.replace(plan=plans.TokensPerPass(n)), 4.0 + n / 8, 64 / n) for n in (1, 2, 4)]
    points = [
        *many,
        point(ordered, 4.1, 9.0),
        point(cold, 4.3, 8.5),
        point(plain, 40.0, 8.0),
        point(ordered, 4.6, 9, "zero of x"),
    ]
    frontier_plots.draw(tmp_path / "frontier.png", points, "", "")
    by_passes, *others = drawn[0].axes
    words = {text.get_text(): text.get_color() for text in by_passes.texts}
    ours, theirs = plots_of_runs.COLOURS["in order"], plots_of_runs.COLOURS["plain"]
    assert words == {
        **dict.fromkeys(("one by one", "2", "4", "8, temp 0.5", "40", "plain"), theirs),
        **dict.fromkeys(("8", "in order", "zero"), ours),
    }
    low, high = by_passes.get_ylim()
    assert (4.0 < low < 4.1, 4.6 < high < 5.0) == (True, True)
    for panel in (by_passes, *others):
        hollow = [each.lines[0] for each in panel.containers if each.lines[0].get_markerfacecolor() == "white"]
        assert [(mark.get_color(), mark.get_ydata()[0]) for mark in hollow] == [(ours, 4.6)]
        assert [line.get_color() for line in panel.lines if line.get_marker() == "^"] == [theirs]
