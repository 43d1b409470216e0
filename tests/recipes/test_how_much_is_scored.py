"""How many held-out texts each recipe scores and how it asks for them; what is asked is kept, and nothing is run."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edlm.data.pieces import Blocks
from edlm.evaluation import card as cards
from edlm.evaluation import draws
from edlm.frontier.grid import Entry
from edlm.likelihood import estimates
from edlm.likelihood.estimates import Estimate
from edlm.recipes import adapt, benchmark, frontier, likelihoods, pretrain_ar, pretrain_denoiser, speedrun
from edlm.training import report
from edlm.training import speedrun as speedruns
from edlm.weights import kinds, named

CPU = torch.device("cpu")
ROWS = torch.arange(60).view(30, 2)
BLOCKS = Blocks(ROWS, ROWS + 100, ROWS + 200)
FOUND = Estimate(1.5, 0.25, 9)


def recipe(cls: Any, **own: Any) -> Any:
    """A recipe after its training, of three held-out rows at a validation."""
    found = object.__new__(cls)
    found.settings, found.device, found.blocks = {"valid_rows": 3, "batch_size": 4, "seed": 5}, CPU, BLOCKS
    found.vocabulary = SimpleNamespace(pad_id=7, unit="token", mask_id=8)
    found.run = SimpleNamespace(average="average", vocabulary="run's", step=0)
    for name, value in own.items():
        setattr(found, name, value)
    return found


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a report is asked for, in the place of writing it."""
    calls: list[Any] = []
    monkeypatch.setattr(report, "held_out", lambda *given: calls.append(("held out", *given)) or "text")
    monkeypatch.setattr(report, "lines", lambda *given: [("line", *given)])
    monkeypatch.setattr(report, "level_lines", lambda levels, unit: [("levels", list(levels), unit)])
    monkeypatch.setattr(report, "conclude", lambda *given, **more: calls.append(("end", *given, more)))
    return calls


LEVELS = ["0.1", "0.3", "0.5", "0.7", "0.9"]


def test_a_denoisers_report_is_of_four_times_the_rows_of_a_validation(told: list[Any]) -> None:
    asked: list[Any] = []
    plan = SimpleNamespace(objective=SimpleNamespace(claim="a claim"))
    found = recipe(pretrain_denoiser.PretrainDenoiser, plan=plan)
    found.held_out_bound = lambda *given: asked.append(given) or FOUND
    found.masked_nll = lambda t: None if t == 0.9 else FOUND
    found.cleanup()
    assert asked == [("average", BLOCKS.test, 12)]
    levels = {**dict.fromkeys(LEVELS, FOUND._asdict()), "0.9": None}
    rows = [("line", "a claim", FOUND, "draws", "perplexity bound", found.run, "text"), ("levels", LEVELS, "token")]
    assert told == [
        ("held out", BLOCKS, found.vocabulary, 12),
        ("end", found.run, rows, FOUND, "text", {"masked_nll": levels}),
    ]
    assert found.validate("network") == {"nelbo": 1.5, "nelbo_error": 0.25}
    assert asked[1:] == [("network", BLOCKS.valid, 3)]


def test_so_is_that_of_an_adapted_model(told: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Any] = []
    size = lambda rows, count: asked.append((rows, count)) or 0.5  # noqa: E731
    found = recipe(adapt.Adapt, plan=SimpleNamespace(bytes_per_token=size, vocabulary=SimpleNamespace(unit="token")))
    found.held_out_bound = lambda *given: asked.append(given) or FOUND
    found.masked_nll = lambda t: None if t == 0.9 else FOUND
    found.cleanup()
    assert asked == [("average", BLOCKS.test, 12), (BLOCKS.test, 12)]
    per_byte = ("the same per byte", f"{FOUND.bits / 0.5:.4f}", "0.50 bytes a token")
    line = ("line", "denoiser NELBO", FOUND, "draws", "perplexity bound", found.run, "text")
    more = {"masked_nll": {**dict.fromkeys(LEVELS, FOUND._asdict()), "0.9": None}, "bytes_per_token": 0.5}
    assert told == [
        ("held out", BLOCKS, "run's", 12),
        ("end", found.run, [line, per_byte, ("levels", LEVELS, "token")], FOUND, "text", more),
    ]
    for step, said in ((0, f"before training: {FOUND.bits:.4f} ± {FOUND.bits_error:.4f} bits/token\n"), (1, "")):
        found.run = SimpleNamespace(average="average", step=step, train=lambda: asked.append("trained"))
        asked.clear()
        found.train()
        assert asked == [*([("average", BLOCKS.valid, 3)] if step == 0 else []), "trained"]
        assert capsys.readouterr().out == said


def test_so_is_that_of_an_ar_model_whose_likelihood_is_exact(told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[Any] = []

    def stages(batch: Any) -> Any:
        scored.append(batch["x_0"].tolist())
        return {"loss": batch["x_0"].sum(1).double()}

    monkeypatch.setattr(estimates, "estimate", lambda values, counts: (values.tolist(), counts.tolist()))
    plan = SimpleNamespace(exact=lambda network: SimpleNamespace(eval=lambda: stages), pad_id=1, blocks=BLOCKS)
    found = recipe(pretrain_ar.PretrainAr, plan=plan)
    rows = torch.tensor([[4, 2], [3, 1], [2, 2], [5, 5], [6, 1]])
    assert found.held_out_nll("network", rows) == ([3.0, 4.0, 2.0, 5.0, 7.0], [2, 1, 2, 2, 1])
    assert scored == [rows[:4].tolist(), rows[4:].tolist()]
    asked: list[Any] = []
    found.held_out_nll = lambda network, part: asked.append((network, part.tolist())) or FOUND
    found.cleanup()
    assert found.validate("network") == {"nll": 1.5, "nll_error": 0.25}
    assert asked == [("average", BLOCKS.test[:12].tolist()), ("network", BLOCKS.valid[:3].tolist())]
    assert told == [
        ("held out", BLOCKS, "run's", 12),
        (
            "end",
            found.run,
            [("line", "exact NLL", FOUND, "blocks", "perplexity", found.run, "text")],
            FOUND,
            "text",
            {},
        ),
    ]


@pytest.mark.parametrize("cls", [adapt.Adapt, pretrain_denoiser.PretrainDenoiser])
def test_masks_at_one_time_are_those_of_the_test_split(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(draws, "masked_nll", lambda law, schedule, t, *given: calls.append((t, *given)))
    plan = SimpleNamespace(denoiser=lambda network: ("law", network), pad_id=7, told=None)
    found = recipe(cls, plan=plan, schedule="schedule")
    monkeypatch.setattr(pretrain_denoiser.denoisers, "subs", lambda *given: given)
    found.masked_nll(0.5)
    assert calls == [(0.5, draws.Draws(BLOCKS.test, 3, 4, 5, CPU), 7)]


def test_a_benchmark_looks_at_its_cases_in_detail_and_not_at_the_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    found = object.__new__(benchmark.Benchmark)
    found.settings = {"growth": [{"last_over_previous": 1.5}]}
    found.cases, found.sweeps = [("case", {"target": 2.0})], [("length", ["small", "large"])]  # type: ignore[list-item]
    found._measure = lambda case, detailed: asked.append((case, detailed)) or {"of": case}  # type: ignore[method-assign]
    found.bench = SimpleNamespace(forget=lambda: asked.append("forgotten"))  # type: ignore[assignment]
    found.report = SimpleNamespace(add=lambda *given: asked.append(given))  # type: ignore[assignment]
    monkeypatch.setattr(benchmark.comparison, "judge", lambda record, targets: (record, targets))
    monkeypatch.setattr(benchmark.reports, "summarise", lambda *given: {"sweep": given})
    monkeypatch.setattr(benchmark.reports, "growth_table", str)
    monkeypatch.setattr(benchmark.reports, "flatness", lambda sweep, most: most)
    found.measure_cases()
    judged = {"of": "case"}, {"target": 2.0}
    assert asked == [("case", True), ("cases", {"of": "case", "targets": {"target": 2.0}}, judged), "forgotten"]
    asked.clear()
    found.measure_growth()
    records = [{"of": "small"}, {"of": "large"}]
    sweep = {"sweep": ("length", ["small", "large"], records), "records": records}
    assert asked == [("small", False), ("large", False), ("growth", sweep, 1.5), "forgotten"]


def test_texts_of_likelihoods_stand_between_no_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(kinds, "require_subs", calls.append)
    monkeypatch.setattr(named, "load", lambda *given, **more: calls.append((*given, more)))
    found = object.__new__(likelihoods.Likelihoods)
    found.settings, found.device = {"denoiser": "a"}, CPU
    found.load_checkpoint()
    assert calls == ["a", ({"denoiser": "a"}, CPU, {"wrapped": False})]


@pytest.mark.parametrize(("step", "seconds"), [(0, 100.0 - 2 * 4.0), (3, None)])
def test_seconds_of_a_training_are_those_of_its_updates(
    step: int, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped on the way has none."""
    now, did = [0.0], Counter[str]()

    class Recipe:
        folder = "folder"
        run = SimpleNamespace(step=step, average="average", network="network")

        def __init__(self, settings: Any) -> None:
            pass

        def setup(self) -> None:
            now[0] += 1000.0

        def load_checkpoint(self) -> None:
            now[0] += 1000.0

        def train(self) -> None:
            now[0] += 100.0
            self.run.step = 9

        def validate(self, network: str) -> None:
            did[network] += 1
            now[0] += 4.0

        def cleanup(self) -> None:
            now[0] += 1000.0

    told = {"mean": 1.5, "standard_error": 0.25, "n": 9}
    monkeypatch.setattr(speedrun, "PretrainDenoiser", Recipe)
    monkeypatch.setattr(speedrun, "_written", lambda folder: ([[1, 2.0], [2, 1.5]], told))
    monkeypatch.setattr(speedruns, "step_flops", lambda *given: given)
    found = object.__new__(speedrun.Speedrun)
    found.clock = lambda: now[0]
    assert found.measured({"a": 1}) == {
        **{"curve": [[1, 2.0], [2, 1.5]], "seconds": seconds, "flops": ("network", {"a": 1})},
        **{"test": 1.5, "error": 0.25, "n": 9},
    }
    assert did == {"average": 1}


@pytest.mark.parametrize(("bos_id", "least"), [(None, 1), (3, 0), ("no model", 0)])
def test_a_first_token_that_an_ar_model_cannot_score_is_given_to_all(
    bos_id: Any, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reached(Exception):
        pass

    def choose(*given: Any) -> None:
        asked.append(given)
        raise Reached

    asked: list[Any] = []
    ar = None if bos_id == "no model" else named.Autoregressive("network", bos_id)
    models: Any = SimpleNamespace(max_length=8, ar=ar, vocabulary="ids")
    settings = {"length": None, "corpus": {}, "split": "test", "rows": 5, "wrapped": False, "documents": "joined"}
    monkeypatch.setattr(likelihoods.schemas, "build", lambda *_: SimpleNamespace(test=["a", "b"]))
    monkeypatch.setattr(likelihoods.pieces, "excerpts", lambda *given, **_: given)
    monkeypatch.setattr(likelihoods.figures, "choose", choose)
    found = object.__new__(likelihoods.Likelihoods)
    found.settings, found.models = settings, models
    with pytest.raises(Reached):
        found.setup()
    with pytest.raises(Reached):
        cards.text_set("test", ["a", "b"], {**settings, "context": 0}, models)
    assert asked == [("test", (["a", "b"], "ids", 8, True, 0), 5, "ids", least)] * 2


def test_a_frontier_draws_what_is_missing_and_judges_the_time_by_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    class Bar:
        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        set_description = update = lambda _, what: said.append(what)

    def bar(total: float, initial: float, bar_format: str) -> Bar:
        said.append((total, initial))
        return Bar()

    written: list[Any] = []
    found = object.__new__(frontier.Frontier)
    found.grid = {name: Entry(f"setting {name}", "") for name in "abc"}  # type: ignore[arg-type]
    found.drawing, found.other, found.reference = SimpleNamespace(length=9), "other", "reference"  # type: ignore[assignment]
    found.models = SimpleNamespace(vocabulary=SimpleNamespace(decode=lambda tokens: ["x"] * len(tokens)))  # type: ignore[assignment]
    found.lines = SimpleNamespace(records={"b": {}}, add=lambda *given: written.append(given))  # type: ignore[assignment]
    monkeypatch.setattr(frontier.grid, "expected_passes", lambda setting, length: length + "abc".index(setting[-1]))
    monkeypatch.setattr(frontier.draws, "warm_up", lambda missing, _: said.append(missing))
    monkeypatch.setattr(frontier.draws, "draw", lambda setting, _: (torch.zeros(2, 3), {"costs": setting}))
    monkeypatch.setattr(
        frontier.draws, "describe", lambda texts, _: {"of": texts if texts == "other" else texts.spelled}
    )
    monkeypatch.setattr(frontier.processes, "bar", bar)
    found.sweep()
    assert said == [["setting a", "setting c"], (9 + 10 + 11, 10), "2/3 a", 9, "3/3 c", 11]
    own = [(name, {"costs": f"setting {name}", "of": ["x", "x"]}) for name in "ac"]
    assert written == [(frontier.HELD_OUT, {"of": "other"}), *own]
