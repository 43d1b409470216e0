"""How a picture looks: places in inches, letters in points, lines and colours, as every picture of a run has them."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from edlm.runs import plot_labels, plots
from edlm.runs.plot_labels import End, Mark


def look(text: Any) -> tuple[Any, ...]:
    return text.get_fontsize(), text.get_weight(), text.get_color(), text.get_va()


@pytest.mark.parametrize(
    ("names", "room"), [([], 0.12), (["abc", "ab"], 0.12 + 3 * 0.074), (["a" * 25], 0.12 + 25 * 0.074), (["a" * 26], 2)]
)
def test_panels_stand_in_inches_from_the_edges_and_from_each_other(names: list[str], room: float) -> None:
    """Of a title of two lines and a note of one: 0.64 inches above all panels, and 0.7 below them."""
    figure, panels = plots.canvas("a " * 50, "how", ((2.0, 1), (3.0, 2)), names)
    height = 0.64 + 2.0 + 0.8 + 3.0 + 0.7
    assert tuple(figure.get_size_inches()) == pytest.approx((7.0, height))
    found = [(box.x0 * 7, box.x1 * 7, box.y0 * height, box.y1 * height) for box in (p.get_position() for p in panels)]
    half = (7.0 - 0.72 - 0.5 - 0.15) / 2
    assert found == [
        pytest.approx((0.72, 7.0 - 0.15 - room, 4.5, 6.5)),
        pytest.approx((0.72, 0.72 + half, 0.7, 3.7)),
        pytest.approx((0.72 + half + 0.5, 6.85, 0.7, 3.7)),
    ]


def test_the_finding_is_bold_above_and_the_note_small_and_grey_below() -> None:
    figure, [panel] = plots.canvas("x" * 74 + " in bits", "n" * 122 + " and so on")
    said, noted = figure.texts
    height = 0.24 + 2 * 0.2 + 3.4 + 0.56 + 2 * 0.14
    assert (said.get_text(), noted.get_text()) == ("X" + "x" * 73 + "\nin bits", "n" * 122 + "\nand so on")
    assert (said.get_position(), look(said)) == ((0.012, pytest.approx(1 - 0.1 / height)), (11, "bold", "black", "top"))
    assert (noted.get_position(), look(noted)) == (
        (0.012, pytest.approx(0.06 / height)),
        (7, "normal", "#444444", "bottom"),
    )
    for axis in (panel.xaxis, panel.yaxis):
        assert {(line.get_color(), line.get_linewidth()) for line in axis.get_gridlines()} == {("#E6E6E6", 0.6)}
        assert axis.get_tick_params()["labelsize"] == 8.5
    plots.titles(panel, "step", "nats", "a title")
    words = panel.xaxis.label, panel.yaxis.label, panel._left_title
    assert [word.get_fontsize() for word in words] == [9, 9, 9]
    assert panel._left_title.get_position() == (0.0, 1.0)


def test_a_picture_is_saved_at_150_pixels_an_inch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **how: saved.append((path, how)) or path.touch())
    plots.save(plots.canvas("x")[0], tmp_path / "x.png")
    [(path, how)] = saved
    assert (path, how["dpi"], how["format"]) == (tmp_path / ".x.png.partial", 150, "png")


def test_a_name_is_small_in_its_colour_with_a_thin_line_to_its_end() -> None:
    _, [panel] = plots.canvas("x")
    plot_labels.name_ends(panel, [End(0.5, "one", "C1")])
    [text] = panel.texts
    assert look(text) == (8, "normal", "C1", "center")
    assert (text.xy, text.xycoords) == ((1.0, 0.5), "axes fraction")
    line = {"arrowstyle": "-", "color": "C1", "linewidth": 0.6, "relpos": (0.0, 0.5)}
    assert text.arrowprops == line


@pytest.mark.parametrize(("y", "share"), [(9.0, 1.0), (-9.0, 0.0)])
def test_an_outlier_is_a_triangle_that_the_edge_does_not_cut(y: float, share: float) -> None:
    _, [panel] = plots.canvas("x")
    plot_labels.mark_outliers(panel, [Mark(0.5, y, "far", "C2")])
    [mark], [text] = panel.lines, panel.texts
    assert (mark.get_markersize(), mark.get_clip_on(), mark.get_color()) == (6, False, "C2")
    assert mark.get_transform() == panel.get_xaxis_transform()
    assert (look(text), text.get_text()) == ((7, "normal", "C2", "center"), f"far {y:g}")
    assert (text.xycoords, text.anncoords, text.xy) == (panel.get_xaxis_transform(), "offset points", (0.5, share))
