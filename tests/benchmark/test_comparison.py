"""A case measured by a clock that is told what it shows: times, shares, rates, ratios and verdicts."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edlm.benchmark import comparison
from edlm.benchmark.comparison import Verdict
from edlm.benchmark.methods import Method
from edlm.runs import timing
from edlm.runs.timing import Part

CPU = torch.device("cpu")
PARTS = {
    "denoiser": Part(4, 8, 2.0, 100.0),
    "energy": Part(2, 16, 1.0, 60.0),
    "denoiser head": Part(4, 8, 0.5, 30.0),
    "energy head": Part(2, 16, 0.25, 10.0),
    "propose": Part(4, 8, 0.125, 5.0),
    "others": Part(9, 9, 9.0, 9.0),
}


class Named(SimpleNamespace):
    repeats = 3

    def _asdict(self) -> dict[str, Any]:
        return {"num_steps": 8, "textbook_steps": 2}

    def __str__(self) -> str:
        return "a case"


def nothing(*_: object) -> None: ...


def measured(monkeypatch: pytest.MonkeyPatch, memory: bool, detailed: bool = True) -> dict[str, Any]:
    """The textbook takes 4 s a run of half the case, eager 1 s, compiled 0.5 s after 5 s of preparation."""
    runs = {"textbook": [3.0, 4.0, 5.0], "eager": [1.0, 1.25, 1.0], "compile": [0.5, 0.5, 0.75]}

    def fails() -> None:
        raise torch.OutOfMemoryError

    methods = {
        "textbook": Method(nothing, nothing, nothing, 2.0),
        "eager": Method(nothing, nothing, nothing, 1.0),
        "compile": Method(nothing, nothing, None, 1.0),
        "large": Method(nothing, fails, nothing, 1.0),
    }

    def seconds(run: Any, device: torch.device) -> float:
        run()
        return 2.75 if run is nothing else 8.0

    monkeypatch.setattr(timing, "seconds", seconds)
    monkeypatch.setattr(timing, "can_measure_memory", lambda device: memory)
    monkeypatch.setattr(timing, "memory_in_use", lambda device: 100)
    monkeypatch.setattr(timing, "peak_memory", lambda look, device, above: look() or 3 * 2**20 + above)
    monkeypatch.setattr(timing, "interleaved", lambda run, repeats, device: {name: runs[name] for name in run})
    monkeypatch.setattr(comparison, "Clock", lambda device: SimpleNamespace(parts=PARTS))
    case: Any = Named()
    return comparison.measure(case, methods, CPU, 40.0, detailed)


def test_times_are_those_of_the_whole_case_and_ratios_those_to_the_textbook(monkeypatch: pytest.MonkeyPatch) -> None:
    record = measured(monkeypatch, memory=True)
    methods = record["methods"]
    assert (record["name"], record["case"]) == ("a case", {"num_steps": 8, "textbook_steps": 2})
    assert methods["large"] == {"failed": "out of memory"}
    assert methods["textbook"]["seconds"] == [6.0, 8.0, 10.0]
    assert [methods["textbook"][key] for key in ("median", "low", "high")] == [8.0, 6.0, 10.0]
    assert methods["textbook"]["extrapolated_by"] == 2.0
    assert "extrapolated_by" not in methods["eager"]
    assert record["ratios"] == {
        "eager": {"median": 8.0, "low": 6.0, "high": 10.0},
        "compile": {"median": 16.0, "low": 12.0, "high": pytest.approx(16.0)},
    }
    assert "preparation" not in methods["eager"]
    assert methods["compile"]["first_runs"] == 2.75 + 2.75
    assert methods["compile"]["preparation"] == 2.75 + 2.75 - 0.5


def test_what_is_looked_into_tells_passes_shares_and_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = measured(monkeypatch, memory=True)["methods"]
    assert methods["textbook"]["passes"] == {
        "denoiser": {"calls": 8.0, "rows": 16.0},
        "energy": {"calls": 4.0, "rows": 32.0},
        "denoiser head": {"calls": 8.0, "rows": 16.0},
        "energy head": {"calls": 4.0, "rows": 32.0},
    }
    assert methods["textbook"]["flops"] == 400.0
    assert methods["eager"]["flops"] == 200.0
    assert methods["eager"]["denoiser_flops_per_second"] == 50.0
    assert methods["eager"]["denoiser_share_of_matmul_rate"] == 1.25
    assert methods["eager"]["shares"] == {
        **{"networks": 3.0 / 8.0, "heads": 0.75 / 8.0, "machinery": 4.25 / 8.0, "propose": 0.125 / 8.0}
    }
    assert methods["textbook"]["share_of_matmul_rate"] == 400.0 / 8.0 / 40.0
    assert methods["eager"]["share_of_matmul_rate"] == 200.0 / 1.0 / 40.0
    assert methods["compile"]["share_of_matmul_rate"] == 200.0 / 0.5 / 40.0, "it does what eager was seen to do"
    assert methods["eager"]["peak_memory"] == 3 * 2**20 + 100
    assert "shares" not in methods["compile"]


def test_without_a_look_nothing_is_told_of_parts_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = measured(monkeypatch, memory=True, detailed=False)["methods"]
    assert not {"shares", "flops", "peak_memory", "share_of_matmul_rate"} & {*methods["eager"], *methods["compile"]}
    with monkeypatch.context() as own:
        assert "peak_memory" not in measured(own, memory=False)["methods"]["eager"]
        assert "shares" in measured(own, memory=False)["methods"]["eager"]


RECORD: dict[str, Any] = {
    "ratios": {"eager": {"median": 8.0}, "compile": {"median": 3.0}},
    "methods": {
        "textbook": {"peak_memory": 600},
        "eager": {"peak_memory": 200, "shares": {"machinery": 0.25}},
        "compile": {"peak_memory": 0},
    },
}


def test_a_figure_on_its_target_meets_it() -> None:
    targets = {"target": 3.0, "memory_target": 3.0, "machinery_target": 0.25}
    assert comparison.judge(RECORD, targets) == [
        Verdict("times faster", "eager", 8.0, 3.0, True),
        Verdict("times less memory", "eager", 3.0, 3.0, True),
        Verdict("machinery's share", "eager", 0.25, 0.25, True),
        Verdict("times faster", "compile", 3.0, 3.0, True),
        Verdict("times less memory", "compile", 600.0, 3.0, True),
    ]
    beyond = comparison.judge(RECORD, {"target": 8.1, "memory_target": 3.1, "machinery_target": 0.24})
    assert [each.met for each in beyond] == [False, False, False, False, True]
    assert not comparison.judge(RECORD, dict.fromkeys(targets))
    bare = {**RECORD, "methods": {**RECORD["methods"], "textbook": {}}}
    assert {each.what for each in comparison.judge(bare, targets)} == {"times faster", "machinery's share"}


@pytest.mark.parametrize(("met", "outcome"), [(True, "met"), (False, "missed")])
def test_a_verdict_is_one_line(met: bool, outcome: str) -> None:
    said = comparison.say(Verdict("times faster", "eager", 3.14159, 2.5, met))
    assert said == f"  eager: times faster 3.14, target 2.5: {outcome}"


def test_the_table_has_a_line_for_each_method_and_says_where_the_time_went(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = comparison.table(measured(monkeypatch, memory=True)).split("\n")
    assert lines[0] == "a case"
    assert [line.split() for line in lines[1:6]] == [
        "seconds lowest highest x faster lowest highest peak passes of matmul rate preparation".split(),  # noqa: SIM905
        ["textbook", "8", "6", "10", "3", "MiB", "8", "+", "4", "125.0%"],
        ["eager", "1", "1", "1.25", "8", "6", "10", "3", "MiB", "4", "+", "2", "500.0%"],
        ["compile", "0.5", "0.5", "0.75", "16", "12", "16", "3", "MiB", "1000.0%", "5.0", "s"],
        ["large", "out", "of", "memory"],
    ]
    shares = "networks 37.5%, heads 9.4%, machinery 53.1%, propose 1.6%; a denoiser pass at 125.0% of the matmul rate"
    assert lines[6:] == [
        "  textbook: extrapolated from 2 of 8 steps",
        f"  textbook: {shares}",
        f"  eager: {shares}",
    ]
