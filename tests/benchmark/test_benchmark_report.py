"""The report of a benchmark, of records written by hand."""

import io
import json
import math
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from edlm.benchmark import plots, report
from edlm.benchmark.comparison import Verdict
from edlm.benchmark.report import Report

MET = Verdict("times faster", "eager", 3.0, 2.0, True)
MISSED = Verdict("times less memory", "compile", 1.0, 2.0, False)


class Case(SimpleNamespace):
    def __str__(self) -> str:
        return f"case of {self.rows}"


def swept() -> dict[str, Any]:
    times = {"textbook": [1.0, 4.0, 16.0], "eager": [1.0, 2.0, 4.0]}
    records = [
        {"methods": {**{name: {"median": of[i]} for name, of in times.items()}, "large": {"failed": "memory"}}}
        for i in range(3)
    ]
    every: Any = [Case(rows=rows) for rows in (1, 2, 4)]
    return report.summarise("rows", every, records)


def test_what_is_measured_is_written_at_once_and_told_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "draw", lambda *given: drawn.append(given))
    folder = tmp_path / "new" / "folder"
    found = Report(folder, {"cpu": "x", "gpu": None, "rate": 123456.789, "cores": 2}, {"seed": 1})
    assert capsys.readouterr().out == "  cpu            x\n  rate   1.235e+05\n  cores          2\n"
    found.add("cases", {"name": "a", "n": 1}, [MET])
    found.add("training", {"name": "b", "n": 2}, [MISSED])
    found.add("growth", {"name": "c"}, [])
    content = json.loads((folder / "benchmark.json").read_text())
    assert content == {
        "environment": {"cpu": "x", "gpu": None, "rate": 123456.789, "cores": 2},
        "settings": {"seed": 1},
        "cases": [{"name": "a", "n": 1}],
        "training": [{"name": "b", "n": 2}],
        "growth": [{"name": "c"}],
        "verdicts": [{"name": "a", **MET._asdict()}, {"name": "b", **MISSED._asdict()}],
    }
    met, missed = "  eager: times faster 3, target 2: met", "  compile: times less memory 1, target 2: missed"
    assert capsys.readouterr().out == f"{met}\n{missed}\n"
    found.conclude()
    png = folder / "benchmark.png"
    assert drawn == [(png, [{"name": "a", "n": 1}, {"name": "b", "n": 2}], [{"name": "c"}])]
    where = f"\n  written to {folder / 'benchmark.json'} and {png}\n"
    assert capsys.readouterr().out == f"targets\n{met}  (a)\n{missed}  (b)\n{where}"
    Report(folder, {}, {}).conclude()
    assert "targets" not in capsys.readouterr().out


def test_whoever_reads_along_has_a_line_when_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="utf-8", write_through=False))
    found = Report(tmp_path, {"cpu": "x"}, {})
    assert written.getvalue() == b"  cpu  x\n"
    found.add("cases", {"name": "a"}, [MET])
    assert written.getvalue().endswith(b"\n  eager: times faster 3, target 2: met\n")


def test_a_sweep_has_its_medians_and_the_exponents_of_what_ran_everywhere() -> None:
    found = swept()
    assert (found["name"], found["axis"], found["values"]) == ("case of 1 .. rows = 4", "rows", [1, 2, 4])
    assert found["medians"] == {"textbook": [1.0, 4.0, 16.0], "eager": [1.0, 2.0, 4.0]}
    assert {name: fit["exponent"] for name, fit in found["exponents"].items()} == pytest.approx(
        {"textbook": 2.0, "eager": 1.0}
    )


@pytest.mark.parametrize(("limit", "met"), [(2.0, True), (1.9, False)])
def test_the_last_value_of_a_sweep_is_held_against_the_one_before(limit: float, met: bool) -> None:
    assert report.flatness(swept(), limit) == [Verdict("last over previous", "eager", 2.0, limit, met)]
    assert report.flatness(swept(), None) == []


def test_a_sweeps_table_shows_errors_where_there_are_any() -> None:
    sweep = {
        "values": [1, 2],
        "medians": {"eager": [0.123456, 2.0], "compile": [1.0, 2.0]},
        "exponents": {"eager": {"exponent": 1.234, "error": None}, "compile": {"exponent": 1.0, "error": 0.256}},
    }
    rows = [line.split() for line in report.growth_table(sweep).split("\n")]
    assert rows == [
        ["1", "2", "exponent"],
        ["eager", "0.1235", "2", "1.23"],
        ["compile", "1", "2", "1.00", "±", "0.26"],
    ]


def test_the_machine_is_told_by_its_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "processor : 0\nmodel name\t: A fine: one \nmodel name\t: another\n"
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: listed)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    told = report.environment(torch.device("cuda"), 7.0)
    assert (told["cpu"], told["gpu"], told["matmul_flops_per_second"]) == ("A fine: one", "a card", 7.0)
    assert report.environment(torch.device("cpu"), 7.0)["gpu"] is None
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    assert report.environment(torch.device("cpu"), 7.0)["cpu"] == platform.machine()
    assert math.isfinite(told["load_at_start"])


def test_a_curve_is_named_where_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[Any] = []
    monkeypatch.setattr(plots.plot_labels, "name_ends", lambda _, found: ends.extend(found))
    plots._curves(Figure().add_subplot(), swept())
    assert [(end.value, end.name) for end in ends] == [(16.0, "textbook: power 2.00"), (4.0, "eager: power 1.00")]
