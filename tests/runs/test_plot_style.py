"""The style of pictures: limits that no outlier flattens, names that do not overlap, colours that can be told apart."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edlm.runs import plot_labels, plots
from edlm.runs.plot_labels import End, Mark

NEAR = st.lists(st.floats(2.0, 3.0), min_size=8, max_size=30)


def panel(low: float = 0.0, high: float = 1.0, **options: Any) -> Any:
    _, [axes] = plots.canvas("what it shows", **options)
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(low, high)
    return axes


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0], 1.0, 5.0),
        ([1.0, 2.0, 3.0, 4.0, 50.0], 1.0, 4.0),
        ([-50.0, 1.0, 2.0, 3.0, 4.0], 1.0, 4.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 40.0, 41.0], 1.0, 6.0),
        ([1.0, 1.0, 1.0, 1.0, 9.0], 1.0, 9.0),
        ([1.0, 90.0, 2.0], 1.0, 90.0),
        ([1.0, 1.0, 1.05, 1.05, 1.1, 1.2, 1.35, 1.5], 1.0, 1.5),
    ],
    ids=["none", "above", "below", "two above", "no middle half", "too few", "a curve that rises"],
)
def test_an_outlier_does_not_make_the_axis(values: list[float], low: float, high: float) -> None:
    room = 0.06 * (high - low)
    assert plots.limits(values) == pytest.approx((low - room, high + room))
    mirrored = plots.limits([-value for value in values])
    assert mirrored == pytest.approx((-high - room, -low + room))


@given(NEAR, st.floats(10.0, 1e6))
def test_one_far_value_changes_no_limits(values: list[float], far: float) -> None:
    """Unless the middle half is so narrow that the next gap is the wider one too."""
    spread = [2.0, 2.2, 2.4, 2.6, 2.8, 3.0, *values]
    assert plots.limits([*spread, far])[1] < 3.1


def test_limits_of_nothing_and_of_one_value_have_a_width() -> None:
    assert plots.limits([]) == (0.0, 1.0)
    assert plots.limits([2.0]) == pytest.approx((1.88, 2.12))
    assert plots.limits([0.0, 0.0]) == pytest.approx((-0.06, 0.06))


LABELS = st.lists(st.tuples(st.floats(-1.0, 2.0), st.floats(0.02, 0.2)), min_size=1, max_size=12)


@given(LABELS)
def test_labels_keep_apart_and_in_order_and_move_no_more_than_they_must(labels: list[tuple[float, float]]) -> None:
    places, heights = [place for place, _ in labels], [height for _, height in labels]
    found = plot_labels.spaced(places, heights)
    order = sorted(range(len(places)), key=lambda number: places[number])
    for before, after in itertools.pairwise(order):
        assert found[after] - found[before] >= (heights[after] + heights[before]) / 2 - 1e-9
    assert sum(found) == pytest.approx(sum(places), abs=1e-9), "a block stands where its labels want it in the mean"
    assert plot_labels.spaced(found, [0.999 * height for height in heights]) == pytest.approx(found, abs=1e-6)


def test_panels_fill_a_canvas_with_a_gap_between_them() -> None:
    for columns, names in itertools.product((1, 2, 3, 4), (0.0, 1.2)):
        places = plots._places(columns, names)
        assert places[0][0] == plots._LEFT
        assert places[-1][1] == pytest.approx(plots.WIDTH - names - 0.15)
        widths = [right - left for left, right in places]
        assert widths == pytest.approx([widths[0]] * columns)
        gaps = [later[0] - earlier[1] for earlier, later in itertools.pairwise(places)]
        assert gaps == pytest.approx([plots._GAP] * (columns - 1))


def test_lines_that_end_together_share_a_name() -> None:
    ends = [End(2.8, "margin", "b"), End(2.82, "random", "b"), End(3.2, "threshold", "b"), End(2.79, "ltr", "b")]
    assert plot_labels.merged(ends, 0.05) == [
        End(pytest.approx((2.79 + 2.8 + 2.82) / 3), "ltr, margin, random", "b"),
        End(3.2, "threshold", "b"),
    ]


def test_a_line_that_ends_outside_says_where() -> None:
    axes = panel(2.0, 3.0)
    plot_labels.name_ends(axes, [End(2.5, "one", "C0"), End(7.066, "high", "C1"), End(1.83, "AR", "black")])
    assert [text.get_text() for text in axes.texts] == ["one", "high 7.07 ↑", "AR 1.83 ↓"]
    assert [text.xy[1] for text in axes.texts] == pytest.approx([0.5, 1.0, 0.0])
    assert [text.get_color() for text in axes.texts] == ["C0", "C1", "black"]


def test_an_outlier_stands_at_the_edge_with_its_value() -> None:
    axes = panel(2.0, 3.0)
    plot_labels.mark_outliers(axes, [Mark(0.5, 7.066, "T=4", "C0"), Mark(0.2, 2.5, "", "C0"), Mark(0.7, 1.0, "", "C1")])
    assert [text.get_text() for text in axes.texts] == ["T=4 7.07", "1"]
    assert [(line.get_xdata()[0], line.get_ydata()[0], line.get_marker()) for line in axes.lines] == [
        (0.5, 1.0, "^"),
        (0.7, 0.0, "v"),
    ]


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)), min_size=1, max_size=25))
def test_words_at_points_lie_on_nothing(points: list[tuple[float, float]]) -> None:
    axes = panel()
    axes.plot(*zip(*points, strict=True), "o-")
    plot_labels.name_points(axes, [Mark(x, y, f"T={number}", "C0") for number, (x, y) in enumerate(points)])
    renderer = axes.figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    pixels = axes.transData.transform(points)
    assert not [(x, y) for x, y in pixels for box in boxes if box.contains(x, y)]


def test_a_point_alone_has_its_word_above() -> None:
    axes = panel()
    plot_labels.name_points(axes, [Mark(0.5, 0.5, "T=8, k=4", "C0")])
    [text] = axes.texts
    assert (text.get_text(), text.get_position()[0]) == ("T=8, k=4", pytest.approx(0.5))
    assert text.get_position()[1] > 0.5


def test_a_method_has_one_colour_whatever_stands_before_its_name() -> None:
    assert plots.colour("chain_rule") == plots.colour("chain rule") == plots.COLOURS["chain rule"]
    assert plots.colour("flipped learned") == plots.colour("learned")
    assert plots.colour("exact_transition") != plots.colour("transition")
    assert plots.colour("flipped exact_transition") == plots.colour("exact_transition")
    assert plots.colour("my own method") == plots.colour("my own method") not in plots.COLOURS.values()


def test_methods_that_stand_in_one_picture_differ_for_every_reader() -> None:
    """As seen without red or green cones (Viénot et al. 1999) any two are at least 9 % of the way from black to white
    apart in one channel.
    """
    names = ("plain", "in order", "chain rule", "learned", "transition", "joint", "posterior", "carry over", "ar")
    for matrix in (
        ((0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)),
        ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)),
    ):
        seen = [_seen(plots.COLOURS[name], matrix) for name in names]
        for one, other in itertools.combinations(seen, 2):
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 0.09


def _seen(code: str, matrix: tuple[tuple[float, ...], ...]) -> list[float]:
    linear = [(int(code[at : at + 2], 16) / 255) ** 2.2 for at in (1, 3, 5)]
    return [max(0.0, sum(a * b for a, b in zip(row, linear, strict=True))) ** (1 / 2.2) for row in matrix]


def test_a_canvas_has_room_for_its_words(tmp_path: Path) -> None:
    long = "a finding that goes on " * 8
    rows = ((2.0, 1), (3.0, 3))
    figure, panels = plots.canvas(long, "what was measured " * 20, rows, names=["a name"])
    width, height = figure.get_size_inches()
    assert (len(panels), width) == (4, plots.WIDTH)
    boxes = [axes.get_position() for axes in panels]
    assert [box.height * height for box in boxes] == pytest.approx([2.0, 3.0, 3.0, 3.0])
    assert width - boxes[0].x1 * width > 0.5, "a name has its place"
    renderer = figure.canvas.get_renderer()
    said, noted = (text.get_window_extent(renderer) for text in figure.texts)
    assert said.x1 < width * figure.dpi > noted.x1
    assert said.y0 > boxes[0].y1 * height * figure.dpi
    assert noted.y1 < boxes[1].y0 * height * figure.dpi - 40
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    plots.save(figure, tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
