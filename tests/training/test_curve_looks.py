"""How the picture of a training looks, and what it says: panels, lines, notes, outliers and the room for names."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from edlm.runs import plot_labels, plots
from edlm.runs.plot_labels import Mark
from edlm.training import curve_plot, log

LEVELS = ["valid_ess", "valid_ess_t0.0-0.5", "valid_ess_t0.5-1.0"]
LOSSES = ("step", "loss", "valid_nelbo", "valid_nelbo_error")
RECORDS: list[dict[str, Any]] = [
    {"step": step, "loss": 3.0, "valid_nelbo": 2.5, "valid_nelbo_error": 0.1, "lr": 0.5, **dict.fromkeys(LEVELS, 1.0)}
    for step in (10, 20, 30)
]


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The figure of some records, which is not drawn."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))

    def drawn(records: list[dict[str, Any]]) -> Figure:
        curve_plot.draw(tmp_path / "x.png", records, log.curves(records))
        return figures[-1]

    return drawn


def test_the_loss_is_large_and_other_figures_are_three_in_a_row(picture: Any) -> None:
    more = {f"valid_{number}": 1.0 for number in range(3)}
    figure = picture([{**record, **more} for record in RECORDS])
    height = figure.get_size_inches()[1]
    found = [(box.height * height, box.x0) for box in (panel.get_position() for panel in figure.axes)]
    assert [tall for tall, _ in found] == pytest.approx([3.0, *[1.6] * 6])
    assert [x for _, x in found[4:]] == [x for _, x in found[1:4]]
    room = 0.12 + 0.074 * len("held-out NELBO 0.000")
    assert figure.axes[0].get_position().x1 * plots.WIDTH == pytest.approx(plots.WIDTH - 0.15 - room)


@pytest.mark.parametrize("known", [True, False])
def test_a_note_says_what_the_bars_are_where_there_are_any(picture: Any, known: bool) -> None:
    records: list[dict[str, Any]] = [{"step": 4, "valid_loss": 1.0, **({"valid_loss_error": 0.5} if known else {})}]
    _, note = picture(records).texts
    assert note.get_text() == ("Bars: one standard error over the held-out texts." if known else "")


def test_what_is_held_out_has_points_and_a_thicker_line(picture: Any) -> None:
    [large] = picture([{key: value for key, value in each.items() if key in LOSSES} for each in RECORDS]).axes
    loss, held_out = (each.lines[0] for each in large.containers)
    looks = [(line.get_marker(), line.get_linestyle(), line.get_linewidth()) for line in (loss, held_out)]
    assert looks == [("None", "-", 1.1), ("o", "-", 1.5)]
    assert held_out.get_markersize() == 3.5
    assert [each.get_label() for each in large.containers] == ["loss", "valid_nelbo"]
    assert [line.get_color() for line in (loss, held_out)] == ["#999999", "#0072B2"]


def test_names_of_levels_stand_at_their_last_points_with_a_share_of_the_panel_on_the_right(
    picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[list[Mark]] = []
    monkeypatch.setattr(plot_labels, "name_points", lambda axes, marks: named.append(list(marks)))
    records = [{"step": step, "loss": 1.0, "lr": 2.0} for step in (10, 20, 30)]
    for place, record in enumerate(records):
        record |= {name: n + place / 8 for n, name in enumerate(LEVELS)}
    _, rate, levels = picture([*records, {"step": 40, "lr": 2.0, LEVELS[0]: None}]).axes[:3]
    dark, light = plots.shades(2)
    words = ("all", plots.COLOURS["held out"]), ("t 0.0-0.5", dark), ("t 0.5-1.0", light)
    assert named == [[Mark(30, n + 0.25, word, colour) for n, (word, colour) in enumerate(words)]]
    levels.set_xlim(auto=True)
    levels.autoscale_view()
    left, right = levels.get_xlim()
    del named[:]
    levels = picture(records).axes[2]
    assert levels.get_xlim() == pytest.approx((left, right + 0.45 * (right - left)))
    assert rate.get_xlim()[1] > right


def test_the_highest_and_the_lowest_of_what_lies_far_away_are_marked(picture: Any) -> None:
    losses = [3.0 - step / 40 for step in range(20)]
    losses[4], losses[5], losses[8], losses[9] = 90.0, 50.0, -70.0, -60.0
    [panel] = picture([{"step": step, "loss": loss} for step, loss in enumerate(losses)]).axes
    found = [(line.get_marker(), line.get_xdata()[0]) for line in panel.lines if line.get_marker() in ("^", "v")]
    assert sorted(found) == [("^", 4), ("v", 8)]
    assert {text.get_text() for text in panel.texts} == {"90", "-70", "training 2.525"}
    low, high = panel.get_ylim()
    assert 2.3 < low < 2.525
    assert 3.0 < high < 3.2


@pytest.mark.parametrize("error", [0.125, 0.12])
def test_two_standard_errors_above_the_lowest_are_within_its_error(error: float) -> None:
    records = [
        {"step": step, "valid_loss": value, "valid_loss_error": error}
        for step, value in ((4, 1.5), (8, 1.25), (12, 1.5))
    ]
    where = "within its error of" if error == 0.125 else "above"
    said = curve_plot.title(records, ["valid_loss"])
    assert said == f"held-out loss 1.50 ± {error:.2f} at step 12, {where} the lowest, 1.25 at step 8"


def test_the_last_held_out_figure_is_told_in_steps_that_have_it() -> None:
    records: list[dict[str, Any]] = [{"step": 4, "loss": 2.0, "valid_nll": 3.0, "valid_loss": 1.0}, {"step": 8}]
    records[1] |= {"loss": 1.0, "valid_nll": None}
    assert curve_plot.title(records, ["loss", "valid_loss", "valid_nll"]) == "held-out NLL 3 at step 4"
    assert curve_plot.title(records, ["loss"]) == "training 1 at step 8"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("loss", "training"),
        ("valid_loss", "held-out loss"),
        ("lr", "learning rate"),
        ("tokens_per_s", "tokens per second"),
        ("valid_nll", "held-out NLL"),
        ("valid_nelbo", "held-out NELBO"),
        ("valid_ess", "held-out ESS"),
        ("valid_log_z", "held-out log z"),
        ("my_figure", "my figure"),
    ],
)
def test_a_figure_has_its_name_for_people(name: str, said: str) -> None:
    assert curve_plot.named(name) == said


@pytest.mark.parametrize("name", ["loss", "valid_loss", "valid_nelbo", "valid_nll", "valid_ess", "lr"])
def test_losses_in_nats_share_the_large_panel(name: str) -> None:
    losses = name in ("loss", "valid_loss", "valid_nelbo", "valid_nll")
    found = log.curves([{"step": 1, name: 1.0, f"{name}_error": 0.5}])
    assert found == {"loss, nats" if losses else name: [name]}
