"""A value of one's own on an axis of a sampler: once registered it is in the frontier and beside a known law."""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import own_values
import pytest
import torch
from own_values import Rarely, Shares

from edlm.data import vocabulary
from edlm.frontier import draws, exact, exact_plot, exact_report, grid, plots, points, sweeps, table
from edlm.frontier.draws import Drawing
from edlm.frontier.exact import Beside
from edlm.frontier.grid import Entry
from edlm.frontier.lines import Lines
from edlm.likelihood import enumeration, hidden_markov
from edlm.likelihood.estimates import Estimate
from edlm.process import schedules
from edlm.samplers.sampler import Sampler
from edlm.weights.named import Diffusion, Models

SYMBOLS, LENGTH = 2, 4
SOURCE = hidden_markov.random_hidden_markov(2, 3, SYMBOLS, 3.0)
ALONE = {"plan": {"name": "shares", "share": [0.5, 1.0]}}
RARELY = {"correction": {"name": "rarely", "token": 0, "nats": [2.0, 4.0]}, "candidates": 3}
ALL = {**ALONE, **RARELY, "controls": ["one_particle", "zero", "flipped", "equal_passes"]}
CHOSEN = {**RARELY, "plan": {"name": "grid", "num_steps": 2}, "selection": ["last", "greedy"]}
UNTIL = {**RARELY, "candidates": {"ess": 2.5, "at_most": 8, "first": 2}}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with own_values.registered():
        yield


def expanded(*wanted: dict[str, Any]) -> dict[str, Entry]:
    for number, sweep in enumerate(wanted):
        sweeps.check_sweep(f"sweeps[{number}]", sweep)
    diffusion = Diffusion(hidden_markov.denoiser(SOURCE, LENGTH), schedules.log_linear(), {})
    models = Models(vocabulary.characters("ab"), LENGTH, diffusion, None, {})
    return grid.expand(wanted, grid.sources(models), LENGTH)


def drawing(n: int) -> Drawing:
    return Drawing(LENGTH, n, n, 0, torch.device("cpu"))


def samplers(entries: dict[str, Entry]) -> list[Sampler]:
    return [setting for setting, *_ in entries.values() if isinstance(setting, Sampler)]


def test_a_sweep_has_them_with_their_controls_and_their_names() -> None:
    found = expanded({**ALL, "correction": {"name": "rarely", "token": 0, "nats": 2.0}})
    assert list(found) == [
        "sir, rarely, 0.5 a pass, k=3",
        "sir, rarely, 1 a pass, k=3",
        "sir, rarely, 0.5 a pass, k=1",
        "sir, zero rarely, 0.5 a pass, k=3",
        "sir, flipped rarely, 0.5 a pass, k=3",
        "plain, T=2",
        "sir, rarely, 1 a pass, k=1",
        "sir, zero rarely, 1 a pass, k=3",
        "sir, flipped rarely, 1 a pass, k=3",
        "plain, T=1",
    ]
    first = samplers(found)[0]
    assert (first.plan, first.correction) == (Shares(0.5), Rarely(0, 2.0))
    assert grid.expected_passes(first, LENGTH) == 2.0


def test_two_values_of_one_name_are_refused() -> None:
    """The name of this correction does not say how many nats."""
    with pytest.raises(ValueError, match=r"sweeps\[0\]: two settings that are not the same are called 'sir, rarely"):
        expanded(ALL)


def test_their_texts_are_drawn_and_do_what_they_say() -> None:
    """The more a token costs the fewer of it there are; the last of three candidates is another than the first."""
    found = expanded({**ALL, "correction": {"name": "rarely", "token": 0, "nats": 2.0}}, _once(CHOSEN), _once(UNTIL))
    texts = {name: draws.draw(each.setting, drawing(200)) for name, each in found.items()}
    counts = {name: float((tokens == 0).double().mean()) for name, (tokens, _) in texts.items()}
    kept, zero, flipped = (
        counts[f"sir, {each}, 0.5 a pass, k=3"] for each in ("rarely", "zero rarely", "flipped rarely")
    )
    assert kept + 0.05 < zero < flipped - 0.05
    assert counts["greedy, rarely, T=2, k=3"] < zero - 0.05
    assert counts["last, rarely, T=2, k=3"] == pytest.approx(zero, abs=0.1)
    until = texts["sir, rarely, one by one, k<=8 until ESS 2.5"][1]
    assert {round(each) for each in until["denoiser_passes"]} == {LENGTH}
    for name, (_, costs) in texts.items():
        wanted = grid.expected_passes(found[name].setting, LENGTH)
        assert sum(costs["passes"]) / 200 == pytest.approx(wanted, abs=0.2)


def test_beside_a_known_law_they_have_what_is_known_of_them() -> None:
    """Exact distances and bounds of SIR; of a selection without a law its samples alone."""
    texts = hidden_markov.texts(SOURCE, 40, LENGTH, seed=1)
    beside = Beside(SOURCE, LENGTH, Estimate(0.5, 0.0, 2), texts, [1], 0, 4)
    found = expanded(ALONE, {**ALONE, **_once(RARELY)}, _once(CHOSEN))
    half, whole, rarely, _, last, greedy = (exact.of_sampler(each, beside) for each in samplers(found))
    assert 0.0 < half["total_variation"][0] < whole["total_variation"][0] < rarely["total_variation"][0] + 0.5
    assert rarely["kl"][0] <= rarely["kl_bound"][0] + 4 * rarely["kl_bound"][1]
    assert last == greedy == {}
    law = enumeration.law(samplers(found)[2], LENGTH)
    tokens, _ = draws.draw(samplers(found)[2], drawing(2000))
    drawn = torch.zeros(SYMBOLS**LENGTH).index_add(
        0, (tokens * 2 ** torch.arange(LENGTH - 1, -1, -1)).sum(-1), torch.ones(2000)
    )
    assert float((drawn / 2000 - law.flatten()).abs().sum() / 2) < 0.05


def test_they_have_their_rows_and_their_places_in_the_pictures(tmp_path: Path) -> None:
    found = expanded(ALONE, {**ALONE, **_once(RARELY), "controls": ["flipped"]}, _once(CHOSEN), _once(UNTIL))
    lines = Lines(tmp_path, "frontier", {"settings": {}}, {name: grid.config(each) for name, each in found.items()})
    judged = {"nll": [4.0, 5.0], "judged_tokens": [4, 4], "characters": [4, 4], "entropy": [0.5, 0.6]}
    rows, beside = [], [exact_report.Row("source", None, "", {"total_variation": [0.0, 0.0], "passes": [0.0, 0.0]})]
    for number, (name, (setting, role, _)) in enumerate(found.items()):
        assert isinstance(setting, Sampler)
        _, costs = draws.draw(setting, drawing(2))
        lines.add(name, {**costs, **judged, "divergences": {}})
        rows.append(points.point(name, setting, role, lines.records[name], 0, 4))
        figures = {"total_variation": [0.1 * number + 0.1, 0.0], "passes": [float(number + 1), 0.0]}
        beside.append(exact_report.Row(name, setting, role, figures))
    compared = points.with_comparisons(rows)
    for text in (table.to_csv(compared), exact_report.to_csv(beside)):
        columns = {row["name"]: row for row in csv.DictReader(text.splitlines())}
        own = columns["sir, rarely, 0.5 a pass, k=3"]
        assert [own[key] for key in ("family", "plan", "candidates", "temperature", "window_high")] == [
            *("sir, rarely", "0.5 a pass", "3", "1", "1")
        ]
        assert columns["sir, flipped rarely, 1 a pass, k=3"]["control"] == "flipped of sir, rarely, 1 a pass, k=3"
        assert columns["sir, rarely, one by one, k<=8 until ESS 2.5"]["candidates"] == "k<=8 until ESS 2.5"
    assert all(own.speedups for own in compared if own.name.startswith(("sir", "last", "greedy")))
    plots.draw(tmp_path / "frontier.png", compared, "", "")
    exact_plot.draw(tmp_path / "oracle.png", beside, LENGTH, "", "")
    again = Lines(tmp_path, "frontier", {"settings": {}}, lines.settings)
    assert list(again.records) == list(found)


@pytest.mark.parametrize("changed", [lambda was: {**was, "candidates": 4}, lambda was: None], ids=["another", "none"])
def test_a_line_goes_on_as_the_sampler_that_it_is_of(tmp_path: Path, changed: Callable[[Any], Any]) -> None:
    """Not as another one of the same name, nor where an older file does not say of which it is."""
    found = {name: grid.config(each) for name, each in expanded(ALONE).items()}
    name = next(iter(found))
    was = changed(found[name])
    lines = Lines(tmp_path, "frontier", {"settings": {}}, {} if was is None else {name: was})
    lines.add(name, {"nll": [1.0]})
    before = (tmp_path / "frontier.json").read_bytes()
    with pytest.raises(ValueError, match=rf"cannot resume .*: '{name}' was .*, is .*; use another output_dir"):
        Lines(tmp_path, "frontier", {"settings": {"sweeps": [1]}}, found)
    assert (tmp_path / "frontier.json").read_bytes() == before


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"plan": {"name": "shares"}}, "share"),
        ({"plan": {"name": "shares", "part": 1}}, "part"),
        ({"plan": {"name": "share"}}, "tokens_per_pass, left_to_right, shares"),
        ({"selection": "first"}, "must be one of sir, imh, greedy, speculative, last"),
    ],
)
def test_a_mistake_in_them_names_the_sweep(sweep: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"sweeps\[0\].*{said}"):
        sweeps.check_sweep("sweeps[0]", sweep)


def test_an_axis_that_is_a_list_is_one_value_and_a_list_of_lists_several() -> None:
    times: Sequence[Any] = [[1.0, 0.0], [1.0, 0.5, 0.0]]
    for at, names in ((times[1], ["plain, T=2 at times"]), (times, ["plain, T=1 at times", "plain, T=2 at times"])):
        found = expanded({"plan": {"name": "times", "at": at}})
        assert list(found) == names
        for each in samplers(found):
            assert draws.draw(each, drawing(2))[0].shape == (2, LENGTH)


def _once(sweep: dict[str, Any]) -> dict[str, Any]:
    """With one price of a token, which names do not tell apart."""
    return {**sweep, "correction": {**sweep["correction"], "nats": 2.0}}
