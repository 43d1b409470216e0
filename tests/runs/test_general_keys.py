"""What every recipe knows without a config that holds it, and what falls to whom where there are several processes."""

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch

from edlm import limits
from edlm.runs import entry, environment, files, hints, processes, records, tables


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    names = environment.UNVERIFIED, environment.COMPONENTS, limits.FACTOR
    for name in names:
        monkeypatch.setenv(name, "before")  # which is there again afterwards
        monkeypatch.delenv(name)
    yield names
    for name in names:
        os.environ.pop(name, None)


OWN = {"_component_": "mine.Network"}


@pytest.mark.parametrize(
    ("given", "left", "unverified", "components", "factor"),
    [
        ({}, {}, None, None, None),
        ({"seed": 3, "verify": True}, {"seed": 3}, None, None, None),
        ({"verify": False}, {}, "1", None, None),
        ({"limits": 2.5}, {}, None, None, "2.5"),
        ({"components": []}, {}, None, None, None),
        ({"components": ["a.B", "c.D"]}, {}, None, "a.B,c.D", None),
        ({"network": OWN, "components": ["a.B"]}, {"network": OWN}, None, "a.B,mine.Network", None),
        ({"pretrain": {"network": OWN}}, {"pretrain": {"network": OWN}}, None, "mine.Network", None),
        ({"network": {"size": 3}}, {"network": {"size": 3}}, None, None, None),
        ({"network": None, "pretrain": None}, {"network": None, "pretrain": None}, None, None, None),
        ({"network": "a", "pretrain": {"network": "b"}}, {"network": "a", "pretrain": {"network": "b"}}, *[None] * 3),
    ],
)
def test_general_keys_are_taken_out_and_kept_for_the_process(
    given: dict[str, Any],
    left: dict[str, Any],
    unverified: str | None,
    components: str | None,
    factor: str | None,
    variables: tuple[str, ...],
) -> None:
    values = dict(given)
    entry._take_in_general(values)
    assert values == left
    assert [os.environ.get(name) for name in variables] == [unverified, components, factor]


@pytest.mark.parametrize(
    "given", [{"verify": 0}, {"limits": 0}, {"limits": "2"}, {"components": "a.B"}, {"components": [""]}]
)
def test_a_general_key_of_another_kind_is_refused_by_name(given: dict[str, Any], variables: tuple[str, ...]) -> None:
    [name] = given
    with pytest.raises(ValueError, match=rf"^{name}"):
        entry._take_in_general(given)
    assert not [variable for variable in variables if variable in os.environ]


@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_the_first_process_speaks_and_another_gives_it_a_head_start(
    rank: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(entry.time, "sleep", slept.append)
    monkeypatch.delenv("RANK", raising=False) if rank is None else monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as stop:
        entry._exit("in  more\nthan a line", 7)
    assert (stop.value.code, slept) == (7, [30.0] if rank == "1" else [])
    assert capsys.readouterr().err == "edlm: in more than a line\n"


def test_rows_and_items_fall_to_the_processes_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "world", lambda: 3)
    shares: list[list[int]] = []
    for rank in range(3):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        shares.append(processes.rows_of_rank(torch.arange(8)).tolist())
        assert processes.is_first() is (rank == 0)
        assert processes.bar([], desc="x").disable is (rank > 0)
    assert shares == [[0, 1, 2], [3, 4, 5], [6, 7]]
    worked: list[int] = []
    monkeypatch.setattr(processes, "gather", lambda own: [[10, 13, 16], own, [12, 15]])
    monkeypatch.setattr(processes, "rank", lambda: 1)
    found = processes.spread(lambda item: worked.append(item) or 10 + item, range(8))
    assert (worked, found) == ([1, 4, 7], list(range(10, 18)))
    with pytest.raises(
        ValueError, match=r"^oracle runs in one process, and 3 were started: leave --nproc_per_node out$"
    ):
        processes.require_one("oracle")


@pytest.mark.parametrize("shown", [None, "judge"])
def test_a_bar_is_shown_where_it_has_a_name(shown: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []
    monkeypatch.setattr(processes, "bar", lambda share, **how: bars.append(how) or share)
    assert processes.spread(lambda item: item + 1, [1, 2], shown) == [2, 3]
    assert bars == ([] if shown is None else [{"desc": "judge", "unit": "batch", "leave": False}])


@pytest.mark.parametrize("count", [1, 2])
def test_gradients_of_a_network_of_one_weight_are_summed_too(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes with the same gradients."""
    monkeypatch.setattr(processes, "world", lambda: 2)
    monkeypatch.setattr(processes.dist, "all_reduce", lambda tensor, *_: tensor.mul_(2))
    weights = [torch.nn.Parameter(torch.zeros(3)) for _ in range(count)]
    for weight in weights:
        weight.grad = torch.ones(3)
    processes.sum_gradients(iter(weights))
    assert [weight.grad.tolist() for weight in weights if weight.grad is not None] == [[2.0] * 3] * count


def test_gradients_are_summed_in_buckets_of_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_BUCKET", 4)
    halves = {2: torch.bfloat16}
    sizes = ((3, 0), (1, 0), (1, 0), (4, 0), (5, 0), (1, 2), (1, 2), (1, 0))
    tensors = [torch.zeros(size, dtype=halves.get(kind, torch.float32)) for size, kind in sizes]
    found = [[each.numel() for each in bucket] for bucket in processes._buckets(tensors)]
    assert found == [[3, 1], [1], [4], [5], [1, 1], [1]]
    assert list(processes._buckets([])) == []


def test_only_the_first_process_writes(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for first in (False, True):
        monkeypatch.setattr(processes, "is_first", lambda first=first: first)
        files.write_json(tmp_path / "a.json", {"b": 1})
        files.append_jsonl(tmp_path / "deep" / "er" / "c.jsonl", [{"d": 1}, {"d": 2}])
        assert sorted(path.name for path in tmp_path.rglob("*.json*")) == (["a.json", "c.jsonl"] if first else [])
    assert (tmp_path / "a.json").read_text() == '{\n  "b": 1\n}\n'
    files.append_jsonl(tmp_path / "deep" / "er" / "c.jsonl", [{"d": 3}])
    assert (tmp_path / "deep" / "er" / "c.jsonl").read_text() == '{"d": 1}\n{"d": 2}\n{"d": 3}\n'
    files.write_jsonl(tmp_path / "c.jsonl", [{"d": 3}, {}])
    assert (tmp_path / "c.jsonl").read_text() == '{"d": 3}\n{}\n'


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (2.5, float("inf"), "2.5"),
        (2.5, float("nan"), "2.5"),
        (0.0, 0.0, "0"),
        (1e9, 1.0, "1e+09"),  # but rounding
        (1e9, 1.01, "1000000000.0 ± 1.0"),
        (12345.6, 99.4, "12346 ± 99"),
        (2.0, 9.94, "2.0 ± 9.9"),
    ],
)
def test_an_error_is_told_unless_it_is_none_or_rounding(value: float, error: float, shown: str) -> None:
    assert tables.amount(value, error) == shown


def test_keys_deep_in_sections_are_found_and_no_key_has_no_hint() -> None:
    values = {"a": {"b": {"c": 1}, "c": 2}, "c": 3, "d": {"c": {"c": 1}}}
    said = "did you mean 'a.c' or 'a.b.c' or 'd.c' or 'd.c.c'?"
    assert hints.unknown("c", [], values) == f"c: unknown key; {said}"
    assert hints.unknown("x.c", [], {"a": {"c": 1}}) == "x.c: unknown key; did you mean 'x.a.c'?"
    assert hints.unknown("x.y", []) == "x.y: unknown key; known keys: none"
    assert hints.unknown("stepz", ["seed", "steps"]) == "stepz: unknown key; did you mean 'steps'?"


def test_a_log_is_what_it_says_and_not_the_order_of_its_keys(tmp_path: Any) -> None:
    lines = [
        '{"step": 1, "loss": 2.0}',
        '{"loss": 2.0, "step": 1}',
        '{"step": 1, "loss": 2.5}',
        '["a", "b"]',
        '["b", "a"]',
    ]
    found = []
    for line in lines:
        (tmp_path / "log").write_text(f"{line}\n")
        found.append(records.extent(tmp_path / "log")["sha256"])
    assert found[0] == found[1]
    assert len(set(found)) == 4
    (tmp_path / "log").write_text('{"step": 1}\n{"step": 9}\n{"step": 4}\n{"st')
    assert (records.extent(tmp_path / "log")["lines"], records.last_step(tmp_path / "log")) == (3, 9)
    assert (records.extent(tmp_path / "none")["lines"], records.last_step(tmp_path / "none")) == (0, 0)
    (tmp_path / "log").write_text('{"step": 1}\n{"step": true}\n')
    with pytest.raises(
        ValueError, match=r"log, line 2 is no line of a log: move the file away, or use another output_dir$"
    ):
        records.last_step(tmp_path / "log")


@pytest.mark.parametrize(
    ("device", "there", "backend"),
    [
        ("cpu", True, "gloo"),
        ("cpu", False, "gloo"),
        ("auto", True, "cpu:gloo,cuda:nccl"),
        ("cuda", True, "cpu:gloo,cuda:nccl"),
        ("auto", False, "gloo"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_processes_join_on_their_own_devices_and_only_the_first_prints(
    device: str,
    there: bool,
    backend: str,
    rank: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[Any] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(processes.dist, "init_process_group", lambda name, timeout: calls.append((name, timeout)))
    monkeypatch.setattr(processes.dist, "all_reduce", lambda here: calls.append(f"met on {here.device}"))
    monkeypatch.setattr(processes.dist, "destroy_process_group", lambda: calls.append("left"))
    monkeypatch.setattr(processes, "is_first", lambda: rank == 0)
    with processes.joined(device):
        print("said")
    joined = [(backend, timedelta(hours=2)), "met on cpu", "left"]
    assert calls == [*([3] if "nccl" in backend else []), *joined], "nobody goes on before all have met"
    assert capsys.readouterr().out == ("said\n" if rank == 0 else "")
    calls.clear()
    with pytest.raises(KeyError), processes.joined("cpu"):
        raise KeyError
    assert "left" not in calls, "after an error the others may never come to it"
    calls.clear()
    for alone in ("1", None):
        monkeypatch.delenv("WORLD_SIZE") if alone is None else monkeypatch.setenv("WORLD_SIZE", alone)
        with processes.joined(device):
            print("said")
        assert (calls, capsys.readouterr().out) == ([], "said\n")
