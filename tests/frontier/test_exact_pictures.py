"""The picture beside a source: each point in its panel, at its own cost, and the frontier through the best of them."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from edlm.frontier import exact_plot, exact_report
from edlm.frontier.exact_report import Row
from edlm.likelihood import hidden_markov
from edlm.models import energies
from edlm.runs import plots
from edlm.samplers import corrections, plans
from edlm.samplers.sampler import Proposal, Sampler

LENGTH = 4
PLAIN = Sampler(hidden_markov.denoiser(hidden_markov.random_markov(0, 3), LENGTH), plans.Grid(2))
CORRECTED = PLAIN.replace(correction=corrections.OfEnergy(energies.zero(), "draft"), candidates=4)
ROWS = [
    Row("source", None, "", {"total_variation": [0.05, 0.01], "passes": [0.0, 0.0]}),
    Row("plain 1", PLAIN.replace(plan=plans.Grid(1)), "", {"total_variation": [0.5, 0.0], "passes": [1.0, 0.0]}),
    Row("plain 2", PLAIN, "", {"total_variation": [0.3, 0.0], "passes": [2.0, 0.0]}),
    Row("cold", PLAIN.replace(proposal=Proposal(0.5)), "", {"total_variation": [0.4, 0.0], "passes": [2.0, 0.0]}),
    Row("corrected", CORRECTED, "", {"total_variation": [0.1, 0.0], "passes": [10.0, 0.0]}),
    Row("control", CORRECTED, "zero energy", {"total_variation": [0.35, 0.0], "passes": [10.0, 0.0]}),
    Row("exact", PLAIN.replace(plan=plans.TokensPerPass(1)), "", {"total_variation": [0.0, 0.0], "passes": [4.0, 0.0]}),
]


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Figure:
    """The picture of these rows; it is not drawn, which takes seconds."""
    figures: list[Figure] = []

    def keep(figure: Figure, path: Path, **options: Any) -> None:
        figures.append(figure)
        Path(path).write_bytes(b"")

    monkeypatch.setattr(Figure, "savefig", keep)
    exact_plot.draw(tmp_path / "oracle.png", ROWS, LENGTH, "what is near", "two words")
    assert [path.name for path in tmp_path.iterdir()] == ["oracle.png"]
    return figures[0]


def drawn(panel: Any) -> dict[str, Any]:
    return {str(line.get_label()): line for line in panel.lines}


def test_every_point_lies_inside_its_panel(figure: Figure) -> None:
    for panel in figure.axes:
        assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
        (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
        assert bottom == pytest.approx(0.7 * 0.05)
        points = [point for line in panel.lines if line.get_marker() != "None" for point in line.get_xydata()]
        assert len(points) == 5
        assert all(left <= x <= right and bottom < y <= top for x, y in points)


def test_a_point_stands_at_its_cost_and_its_distance(figure: Figure) -> None:
    steps, passes = map(drawn, figure.axes)
    of_plain, of_cold, of_corrected, of_control = ("plain", "plain, temperature 0.5", "own, k=4", "own, k=4 (control)")
    assert passes[of_plain].get_xydata().tolist() == [[1.0, 0.5], [2.0, 0.3]]
    assert passes[of_cold].get_xydata().tolist() == [[2.0, 0.4]]
    assert passes[of_corrected].get_xydata().tolist() == [[10.0, 0.1]]
    assert [y for _, y in steps[of_plain].get_xydata()] == [0.5, 0.3]
    assert [x for x, _ in steps[of_plain].get_xydata()] == pytest.approx([1.0, 1.875])
    assert [x for x, _ in steps[of_corrected].get_xydata()] == pytest.approx([1.875])
    assert passes[of_control].get_markerfacecolor() == "white" != passes[of_corrected].get_markerfacecolor()
    assert [passes[label].get_linestyle() for label in (of_plain, of_cold, of_control)] == ["-", ":", "None"]
    assert passes[of_plain].get_color() == plots.COLOURS["plain"] == passes[of_cold].get_color()
    assert passes[of_plain].get_color() != passes[of_corrected].get_color() == passes[of_control].get_color()
    assert passes[of_plain].get_marker() != passes[of_corrected].get_marker() == passes[of_control].get_marker()


def test_every_curve_is_named_beside_its_panel(figure: Figure) -> None:
    """In the colour of its method; two of one method that end together share a name."""
    names = {"plain", "plain, temperature 0.5", "own, k=4", "own, k=4 (control)", "source"}
    for panel in figure.axes:
        words = {" ".join(text.get_text().split()): text.get_color() for text in panel.texts}
        assert set(words) >= names - {"plain", "plain, temperature 0.5", "own, k=4 (control)"}
        assert words["own, k=4"] == drawn(panel)["own, k=4"].get_color()
    near = [Row("x", CORRECTED, "", {"total_variation": [far, 0.0], "passes": [5.0, 0.0]}) for far in (0.1, 0.102)]
    curves = exact_plot._curves(
        [near[0], near[1]._replace(setting=CORRECTED.replace(candidates=8))], "total_variation", 4
    )
    panel = figure.axes[0]
    ends = [exact_plot.End(points[-1][2], str(curve), "C0") for curve, points in curves.items()]
    assert [(end.name, end.value) for end in exact_plot._named(panel, ends)] == [("own, k=4, k=8", 0.1)]


def test_the_source_is_a_line_and_what_has_no_distance_a_cost(figure: Figure) -> None:
    for panel in map(drawn, figure.axes):
        assert list(panel["source"].get_ydata()) == [0.05, 0.05]
    passes = drawn(figure.axes[1])
    assert list(passes["exact: no distance"].get_xdata()) == [4.0, 4.0]
    assert "exact: no distance" not in drawn(figure.axes[0])
    assert [label for label in passes if label.endswith("no distance")] == ["exact: no distance"]
    assert passes["Pareto front"].get_xydata().tolist() == [[1.0, 0.5], [2.0, 0.3]]
    assert [panel.get_ylabel() for panel in figure.axes] == ["total variation to the source"] * 2
    assert [panel.get_xlabel() for panel in figure.axes] == [
        "passes of the plan, one after the other",
        "network passes per text",
    ]


def test_the_title_says_what_comes_nearest() -> None:
    assert exact_report.title(ROWS) == (
        "nearest to the source: corrected, 0.1 with 10 passes; exact, no distance with 4 passes"
    )
    assert exact_report.title(ROWS[:3]) == "nearest to the source: plain 2, 0.3 with 2 passes"
    assert exact_report.title(ROWS[:1]) == "nothing beside the source"


def test_a_terminal_shows_all_of_few_rows_and_of_many_the_best() -> None:
    assert [row[0] for row in exact_report.short(ROWS)[1:]] == [row.name for row in ROWS]
    kept = [row[0] for row in exact_report.short(ROWS, most=3)[1:]]
    assert kept == ["source", "plain 1", "plain 2", "corrected", "exact"]
