"""Figures beside a source: which spaces are small, what is known is used again, what has an error."""

import math
from typing import Any

import pytest
import torch
from builders import tiny_denoiser

from edlm.frontier import draws, exact, exact_plot, exact_report
from edlm.frontier.exact import Beside, Known
from edlm.frontier.exact_report import Row
from edlm.likelihood import enumeration, hidden_markov
from edlm.likelihood.estimates import Estimate
from edlm.samplers import plans, remasking
from edlm.samplers.sampler import Sampler

SYMBOLS, LENGTH = 2, 3
SOURCE = hidden_markov.random_markov(0, SYMBOLS)
PLAIN = Sampler(hidden_markov.denoiser(SOURCE, LENGTH), plans.Grid(2))
TEXTS = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 0]])


def beside(length: int = LENGTH, **changes: Any) -> Beside:
    return Beside(SOURCE, length, Estimate(0.5, 0.25, 9), TEXTS, [1], 0, 4)._replace(**changes)


@pytest.mark.parametrize(("most", "small"), [(5**3, True), (5**3 - 1, False)])
def test_a_space_is_small_whose_transitions_can_be_enumerated(
    most: int, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each position stays a token, is a token or a mask before and after: five ways with two symbols."""
    monkeypatch.setattr(enumeration, "MOST_TRANSITIONS", most)
    assert beside().is_small == small
    assert ("kl" in exact.of_sampler(PLAIN, beside())) == small


def test_what_steps_write_is_computed_once_for_plans_alone() -> None:
    known: Known = []
    first = exact.of_sampler(PLAIN, beside(), known)
    assert [each.plan for each, _ in known] == [plans.first_hitting()]
    other = exact.of_sampler(PLAIN.replace(plan=plans.Grid(1)), beside(), known)
    assert len(known) == 1
    assert other["kl"] > first["kl"]
    exact.of_sampler(PLAIN.replace(remasking=remasking.Cap(0.1)), beside(), known)
    assert len(known) == 1, "its steps depend on the plan"
    assert exact.of_sampler(PLAIN, beside()) == first


def test_the_excess_is_above_the_entropy_with_both_errors() -> None:
    nats = -hidden_markov.log_prob(SOURCE, TEXTS) / LENGTH
    mean, error = exact.of_texts(TEXTS, beside())["excess"]
    assert mean == pytest.approx(float(nats.mean()) - 0.5)
    assert error == pytest.approx(math.hypot(float(nats.std()) / math.sqrt(3), 0.25))


@pytest.mark.parametrize(("distance", "counts"), [(1, [1, 2, 1, 2]), (2, [1, 1, 0, 1])])
def test_pairs_of_tokens_are_counted_at_their_distance(distance: int, counts: list[int]) -> None:
    """Of the texts 001, 111 and 010: how often 00, 01, 10 and 11 stand so far apart."""
    wanted = hidden_markov.pair_law(SOURCE, LENGTH, distance).flatten()
    law = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    found = exact.of_texts(TEXTS, beside(distances=[distance]))
    assert found[f"pairs_{distance}"][0] == pytest.approx(float((law - wanted).abs().sum()) / 2)


def test_two_texts_have_an_error_and_one_has_none() -> None:
    costs: dict[str, Any] = {"seconds": 0.5, **{name: [None, 2.0, None] for name in draws.PER_TEXT}}
    found = exact.of_costs({**costs, "ess": [1.0, 3.0, None]})
    assert found == {"seconds": [0.5, 0.0], "ess": [2.0, pytest.approx(1.0)]}


# ---- The report


def row(name: str, setting: Sampler | None, role: str = "", **figures: list[float]) -> Row:
    return Row(name, setting, role, figures)


ROWS = [
    row("source", None, total_variation=[0.05, 0.012], pairs_1=[0.01, 0.0], passes=[0.0, 0.0]),
    row(
        "plain",
        PLAIN,
        total_variation=[0.25, 0.0],
        kl=[0.5, 0.0],
        pairs_2=[0.1, 0.0],
        passes=[2.0, 0.0],
        ess=[1.5, 0.3],
    ),
    row("other", PLAIN, "zero of x", total_variation=[0.3, 0.0], pairs_10=[0.2, 0.0], passes=[3.0, 0.0]),
]


def test_the_table_for_people_has_the_figures_in_their_order() -> None:
    remark, table, how = exact_report.to_markdown(ROWS, ["a remark"]).split("\n\n")
    assert (remark, how) == ("a remark", exact_report.HOW_TO_READ[0] + "\n")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.split("\n")]
    pairs = [f"pairs, distance {distance}" for distance in (1, 10, 2)]
    assert lines[0] == ["setting", "total variation", "KL", *pairs, "passes", "ESS", "front", "control"]
    assert lines[2:] == [
        ["source", "0.05 ± 0.012", "", "0.01", "", "", "0", "", "", ""],
        ["plain", "0.25", "0.5", "", "", "0.1", "2", "1.5 ± 0.3", "passes", ""],
        ["other", "0.3", "", "", "0.2", "", "3", "", "", "zero of x"],
    ]


def test_a_terminal_has_a_figure_of_each_kind_and_dashes() -> None:
    assert exact_report.short(ROWS) == [
        ("", "total variation", "KL", "ESS", "passes"),
        ("source", "0.05 ± 0.012", "-", "-", "0"),
        ("plain", "0.25", "0.5", "1.5 ± 0.3", "2"),
        ("other", "0.3", "-", "-", "3"),
    ]
    pairs = [row("source", None, pairs_1=[0.1, 0.0], excess=[0.2, 0.0], passes=[0.0, 0.0])]
    assert exact_report.short(pairs)[0] == ("", "excess -log q", "pairs, distance 1", "passes")


def test_the_rows_of_a_sweep_begin_with_the_source() -> None:
    records = {name: {"figures": {"passes": [number, 0.0]}} for number, name in enumerate(("a", "source"))}
    found = exact_report.rows_of({"a": (PLAIN, "zero of x", None)}, records, "source")  # type: ignore[dict-item]
    assert found == [row("source", None, passes=[1, 0.0]), row("a", PLAIN, "zero of x", passes=[0, 0.0])]


# ---- The picture


def test_a_plan_that_depends_on_tokens_stands_at_the_passes_that_it_took() -> None:
    denoiser = tiny_denoiser()
    rule = Sampler(denoiser, plans.EntropyBound(0.5))
    figures = {"total_variation": [0.5, 0.0], "denoiser_passes": [3.5, 0.0], "passes": [7.0, 0.0]}
    near = {**figures, "total_variation": [1e-9, 0.0]}
    [curve] = exact_plot._curves([Row("x", rule, "", figures), Row("y", rule, "", near)], "total_variation", 8).items()
    assert (str(curve[0]), curve[1]) == ("plain", [(3.5, 7.0, 0.5)])


@pytest.mark.parametrize(
    ("markers", "said"),
    [
        ({"": "o"}, ""),
        ({"": "o", "k=2": "s"}, ""),
        ({"": "o", "k=2": "s", "k=4": "D"}, "Square k=2, diamond k=4. "),
        ({"k=2": "o", "k=4": "^", "k=8": "v"}, "Circle k=2, triangle k=4. "),
    ],
)
def test_marks_are_explained_where_there_are_several(markers: dict[str, str], said: str) -> None:
    assert exact_plot._marks(markers) == said


def test_the_axis_says_which_distance_it_is() -> None:
    assert [exact_plot._of(name) for name in ("total_variation", "pairs_3")] == ["", ", pairs 3 apart"]
