"""Where words and ticks of a picture stand, to the pixel: beside their point, on no other, at round numbers."""

from typing import Any
from unittest.mock import MagicMock

import pytest
from matplotlib import colormaps, colors

from edlm.runs import plot_labels, plots
from edlm.runs.plot_labels import End, Mark


def panel(low: float = 0.0, high: float = 1.0) -> Any:
    _, [axes] = plots.canvas("what it shows")
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(low, high)
    return axes


@pytest.mark.parametrize(
    ("x", "y", "right", "up"),
    [
        (0.5, 0.5, 0, 1),
        (0.5, 1.0, 0, -1),
        (0.0, 0.5, 1, 0),
        (1.0, 0.5, -1, 0),
        (0.0, 0.0, 1, 1),
        (1.0, 0.0, -1, 1),
        (0.0, 1.0, 1, -1),
        (1.0, 1.0, -1, -1),
    ],
)
def test_a_word_stands_at_the_best_side_of_its_point_that_lies_in_the_panel(
    x: float, y: float, right: int, up: int
) -> None:
    """Five points of type away from it across and four along, of letters 0.7 of their size wide."""
    axes = panel()
    plot_labels.name_points(axes, [Mark(x, y, "T=8, k=4", "C1")])
    [text] = axes.texts
    pixel = axes.figure.dpi / 72
    wide, tall = 0.7 * 7 * 8 * pixel, 1.15 * 7 * pixel
    at = axes.transData.transform((x, y))
    expected = at[0] + right * (wide / 2 + 5 * pixel), at[1] + up * (tall / 2 + 4 * pixel)
    assert tuple(axes.transAxes.transform(text.get_position())) == pytest.approx(expected)
    assert (text.get_color(), text.get_fontsize(), text.get_ha(), text.get_va()) == ("C1", 7, "center", "center")


def test_a_word_goes_around_what_is_drawn_above_its_point_and_is_left_out_where_all_is_full() -> None:
    axes = panel()
    pixel = axes.figure.dpi / 72
    x, y = axes.transData.transform((0.5, 0.5))
    above = axes.transData.inverted().transform((x, y + 6 * pixel))[1]
    axes.plot([0.2, 0.8], [above, above], "-")  # its ends are far from the word, what lies between them is not
    plot_labels.name_points(axes, [Mark(0.5, 0.5, "one", "C0")])
    assert axes.texts[0].get_position()[1] < 0.5
    full = panel()
    for row in range(50):
        full.plot([0.0, 1.0], [row / 49, row / 49], "-")
    plot_labels.name_points(full, [Mark(0.5, 0.5, "one", "C0")])
    assert not full.texts


def fits(edges: plot_labels.Box = (0, 0, 100, 100), points: Any = (), words: Any = ()) -> bool:
    """Whether a word from (10, 20) to (40, 30) fits into a panel with these edges, beside points and other words."""
    names = dict(zip(("x0", "y0", "x1", "y1"), edges, strict=True))
    return plot_labels._is_free((10, 20, 40, 30), MagicMock(bbox=MagicMock(**names)), points, words)


@pytest.mark.parametrize(
    ("beside", "free"),
    [
        ((0, 0, 40, 20), False),
        ((0, 0, 9, 50), True),
        ((0, 0, 10, 50), False),
        ((40, 0, 60, 50), False),
        ((41, 0, 60, 50), True),
        ((0, 0, 60, 19), True),
        ((0, 0, 60, 20), False),
        ((0, 30, 60, 50), False),
        ((0, 31, 60, 50), True),
    ],
)
def test_a_word_touches_no_other_word(beside: plot_labels.Box, free: bool) -> None:
    assert fits(words=[beside]) is free


@pytest.mark.parametrize(
    ("edges", "free"),
    [
        ((10, 20, 40, 30), True),
        ((11, 20, 40, 30), False),
        ((10, 21, 40, 30), False),
        ((10, 20, 39, 30), False),
        ((10, 20, 40, 29), False),
    ],
)
def test_a_word_may_end_with_its_panel(edges: plot_labels.Box, free: bool) -> None:
    assert fits(edges) is free


@pytest.mark.parametrize(
    ("point", "free"),
    [((10, 20), False), ((40, 30), False), ((9, 25), True), ((41, 25), True), ((20, 19), True), ((20, 31), True)],
)
def test_a_word_lies_on_no_point(point: tuple[float, float], free: bool) -> None:
    assert fits(points=[point]) is free


def test_a_word_goes_around_the_bar_of_an_error_and_lies_on_what_is_filled() -> None:
    axes = panel()
    axes.errorbar([0.5], [0.75], yerr=[0.24], fmt="none")  # from just above the point to the top
    plot_labels.name_points(axes, [Mark(0.5, 0.5, "one", "C0")])
    assert axes.texts[0].get_position()[1] < 0.5
    shaded = panel()
    shaded.fill_between([0.0, 1.0], [0.0, 0.0], [1.0, 1.0])
    plot_labels.name_points(shaded, [Mark(0.5, 0.5, "one", "C0")])
    assert shaded.texts[0].get_position()[1] > 0.5


@pytest.mark.parametrize(("x", "side", "beside"), [(0.02, 4, "left"), (0.5, 0, "center"), (0.98, -4, "right")])
@pytest.mark.parametrize(("y", "share", "down"), [(9.0, 1.0, -9), (-9.0, 0.0, 9)])
def test_the_value_of_an_outlier_stands_inside_of_the_panel(
    x: float, side: int, beside: str, y: float, share: float, down: int
) -> None:
    axes = panel()
    plot_labels.mark_outliers(axes, [Mark(x, y, "", "C2")])
    [text] = axes.texts
    assert (text.get_text(), text.xy, text.xyann, text.get_ha()) == (f"{y:g}", (x, share), (side, down), beside)


def test_an_outlier_has_no_value_where_none_is_wanted_and_what_lies_on_the_edge_is_none() -> None:
    axes = panel()
    plot_labels.mark_outliers(axes, [Mark(0.5, 9.0, "", "C2")], with_values=False)
    assert (len(axes.lines), len(axes.texts)) == (1, 0)
    plot_labels.mark_outliers(axes, [Mark(0.5, 0.0, "", "C2"), Mark(0.5, 1.0, "", "C2")])
    assert len(axes.lines) == 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.12345, "0.123"), (999.4, "999"), (1000.0, "1,000"), (-1234.5, "-1,234"), (-2.5, "-2.5")],
)
def test_a_value_has_three_digits_and_no_power_of_ten(value: float, shown: str) -> None:
    assert plot_labels._number(value) == shown


def test_names_of_lines_stand_at_their_heights_and_long_ones_go_on_in_the_next_line() -> None:
    axes = panel()
    plot_labels.name_ends(axes, [End(0.25, "a name of more than 26 letters", "C0"), End(0.75, "short", "C1")])
    long, short = axes.texts
    assert long.get_text() == "a name of more than 26\nletters"
    away = 0.16 / (axes.get_position().width * plots.WIDTH)
    assert [text.xyann for text in (long, short)] == [pytest.approx((1 + away, place)) for place in (0.25, 0.75)]
    both = panel()
    plot_labels.name_ends(both, [End(0.5, "one", "C0"), End(0.5, "other", "C1")])
    apart = both.texts[1].xyann[1] - both.texts[0].xyann[1]
    assert apart == pytest.approx(1.25 * 8 / 72 / (both.get_position().height * both.figure.get_size_inches()[1]))


@pytest.mark.parametrize(("least", "names"), [(0.25, ["a", "b", "c"]), (0.26, ["a, b", "c"]), (0.51, ["a, b, c"])])
def test_names_are_joined_only_where_they_are_nearer_than_that(least: float, names: list[str]) -> None:
    ends = [End(1.0, "c", "C2"), End(0.25, "a", "C0"), End(0.5, "b", "C1")]
    found = plot_labels.merged(ends, least)
    assert [end.name for end in found] == names
    assert found[0].colour == "C0"


def test_ticks_of_a_logarithmic_axis_are_round_numbers_and_small_ticks_have_none() -> None:
    axes = panel()
    axes.set_xscale("log")
    plots.plain_numbers(axes.xaxis)
    shown = [value for value in axes.xaxis.get_major_locator().tick_values(0.1, 10.0) if 0.09 < value < 11.0]
    assert shown == pytest.approx([0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0])
    assert [axes.xaxis.get_major_formatter()(value) for value in (0.1, 0.5, 20.0)] == ["0.1", "0.5", "20"]
    assert [axes.xaxis.get_minor_formatter()(value) for value in (0.3, 3.0)] == ["", ""]
    plots.plain_numbers(axes.xaxis, (1.0,))
    shown = [value for value in axes.xaxis.get_major_locator().tick_values(0.1, 10.0) if 0.09 < value < 11.0]
    assert shown == pytest.approx([0.1, 1.0, 10.0])


@pytest.mark.parametrize(("most", "last"), [(1.0, 1), (8.0, 8), (10.0, 8), (10.7, 16), (11.0, 16), (2.0**40, 2**23)])
def test_ticks_of_a_binary_axis_are_powers_up_to_the_one_above_the_largest_value(most: float, last: int) -> None:
    axes = panel()
    axes.set_xscale("log", base=2)
    plots.plain_powers(axes.xaxis, most)
    powers = list(axes.xaxis.get_major_locator().tick_values(0, 1))
    assert powers == [2.0**power for power in range(last.bit_length())]
    assert list(axes.xaxis.get_minor_locator().tick_values(1, 8)) == []
    assert axes.xaxis.get_major_formatter()(4.0) == "4"


def test_what_has_an_order_goes_from_dark_to_light() -> None:
    dark, middle, light = (colors.to_hex(colormaps["viridis"](share)) for share in (0.0, 0.425, 0.85))
    assert plots.shades(3) == [dark, middle, light]
    assert plots.shades(2) == [dark, light]
    assert plots.shades(1) == [dark]


def test_a_method_that_no_table_knows_has_the_colour_of_its_letters() -> None:
    assert [plots.colour(name) for name in ("aa", "ab", "ac", "ad")] == ["#AA4499", "#661100", "#332288", "#117733"]


def test_axes_are_named_and_the_grid_lies_behind_what_is_drawn() -> None:
    axes = panel()
    plots.titles(axes, "step", "nats", "a title")
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")) == ("step", "nats", "a title")
    plots.titles(axes, "step", "nats")
    assert axes.get_title(loc="left") == "a title"
    assert [axes.spines[side].get_visible() for side in ("left", "bottom", "right", "top")] == [
        True,
        True,
        False,
        False,
    ]
    assert axes.get_axisbelow() is True
