"""What a saved folder or a stranger's config may name: a closed table, and nothing else is imported or called."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import hf_folder, small
from smallest import denoiser_words, settings_of
from torch import Tensor

from edlm.cli import commands
from edlm.data import vocabulary
from edlm.process import schedules
from edlm.recipes import pretrain_denoiser
from edlm.runs import settings as schemas
from edlm.training import start
from edlm.weights import checkpoints, exchange, loading, permitted
from edlm.weights import named as named_networks

CPU = torch.device("cpu")
SCHEDULE = {"_component_": "edlm.schedules.log_linear", "eps": 1e-3}
STRANGERS = (
    "os.system",
    "builtins.eval",
    "subprocess.run",
    "edlm.checkpoints.load_network",
    "edlm.schedules.sigma",
    "edlm.schedules.os.system",
    "edlm.process.schedules",
    "log_linear",
    "",
    None,
    ["os.system"],
    {"_component_": "os.system"},
)


def leave_a_mark(where: str, params: object = None) -> None:
    """What must never be called."""
    Path(where).touch()


def saved(folder: Path, **notes: Any) -> Path:
    """A denoiser's folder whose `network.json` was written by somebody else."""
    checkpoints.save_network(
        folder, small("denoiser"), vocabulary.characters(), {"schedule": SCHEDULE, "time_conditioning": False}
    )
    description = json.loads((folder / "network.json").read_text("utf-8"))
    (folder / "network.json").write_text(json.dumps({**description, **notes}), "utf-8")
    return folder


@pytest.mark.parametrize("home", ["edlm.schedules", "edlm.process.schedules"])
@pytest.mark.parametrize("name", permitted.SCHEDULES)
def test_every_schedule_is_found_by_its_name_wherever_it_lives(home: str, name: str) -> None:
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    found = permitted.schedule({"_component_": f"{home}.{name}"}, "here")
    assert torch.equal(found.alpha(t), getattr(schedules, name)().alpha(t))


def test_every_schedule_of_the_library_is_in_the_table() -> None:
    made = {name for name, each in vars(schedules).items() if getattr(each, "__annotations__", {}).get("return")}
    made = {name for name in made if getattr(schedules, name).__annotations__["return"] is schedules.Schedule}
    assert {name for name in made if name[0] != "_"} == set(permitted.SCHEDULES)


def test_the_numbers_of_a_schedule_reach_it() -> None:
    t = torch.ones((), dtype=torch.float64)
    assert float(permitted.schedule({**SCHEDULE, "eps": 0.25}, "here").alpha(t)) == 0.25


@pytest.mark.parametrize("name", STRANGERS)
def test_a_folder_that_names_something_else_is_refused_by_name(name: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "n", schedule={"_component_": name})
    for read in (checkpoints.read_description, checkpoints.load_network):
        with pytest.raises(
            ValueError, match=r"n/network\.json: schedule .* is not executed: it must be one of"
        ) as caught:
            read(folder)
        assert repr(name) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({**SCHEDULE, "eps": "0"}, "schedule.eps = '0' must be a finite number"),
        ({**SCHEDULE, "eps": float("nan")}, "schedule.eps = nan must be a finite number"),
        ({**SCHEDULE, "eps": float("inf")}, "schedule.eps = inf must be a finite number"),
        ({**SCHEDULE, "eps": -float("inf")}, "schedule.eps = -inf must be a finite number"),
        ({**SCHEDULE, "eps": True}, "schedule.eps = True must be a finite number"),
        ({**SCHEDULE, "eps": {"_component_": "os.system"}}, r"schedule.eps = \{'_component_': 'os.system'\} must be"),
        ({**SCHEDULE, "eps": 2.0}, r"log_linear: eps = 2.0 must lie in \[0, 1\)"),
        ({**SCHEDULE, "eps": -(10**400)}, "schedule"),
        ({**SCHEDULE, "power": 2.0}, "schedule.power is not known; log_linear takes eps"),
        ([SCHEDULE], "must be a section with a _component_"),
        ("edlm.schedules.log_linear", "must be a section with a _component_"),
    ],
)
def test_a_schedule_takes_its_own_numbers_alone(schedule: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        permitted.schedule(schedule, "here")


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ({"parameterisation": "os.system"}, "parameterisation = 'os.system' must be one of None, 'd3pm', 'sedd'"),
        ({"scope": "system"}, "scope = 'system' must be one of 'draft', 'transition'"),
        ({"time_conditioning": "yes"}, "time_conditioning = 'yes' must be one of True, False"),
        ({"time_conditioning": 1}, "time_conditioning = 1 must be one of True, False"),
        ({"bos_id": -1}, "bos_id = -1 must be an id, or null"),
        ({"bos_id": [1]}, r"bos_id = \[1\] must be an id, or null"),
        ({"bos_id": True}, "bos_id = True must be an id, or null"),
        ({"bos_id": 10**6}, "bos_id = 1000000 must be an id below vocab_size = "),
        ({"scope": [[]]}, "scope"),
    ],
)
def test_other_notes_that_decide_how_a_folder_is_read_are_checked(
    notes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        checkpoints.load_network(saved(tmp_path / "n", **notes))


READERS: dict[str, Callable[[str], object]] = {
    "generate": lambda path: loading.denoiser(path, CPU),
    "evaluate": lambda path: named_networks.load({"denoiser": path}, CPU),
    "edlm_nce": lambda path: start.load({"denoiser": path, "pretrain": None}, CPU, pretrain_denoiser.main),
    "a baseline": lambda path: loading.baseline(path, CPU),
    "export": lambda path: exchange.export(path, Path(path).parent / "hf"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("parameterisation", [None, "d3pm"])
def test_no_reader_calls_what_a_folder_names(reader: str, parameterisation: str | None, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    named = {"_component_": f"{__name__}.leave_a_mark", "where": str(mark)}
    folder = saved(tmp_path / "n", schedule=named, parameterisation=parameterisation)
    with pytest.raises(ValueError, match=r"leave_a_mark' is not executed"):
        READERS[reader](str(folder))
    assert not mark.exists()
    schemas.build(named)  # the control: as part of a config, which is code, it is called
    assert mark.exists()


def test_a_strangers_notes_with_another_schedule_are_not_converted(tmp_path: Path) -> None:
    edlm = {"schedule": {"_component_": "os.system", "command": "true"}, "time_conditioning": False}
    folder = hf_folder(tmp_path / "hf", small("denoiser"), edlm=edlm)
    with pytest.raises(ValueError, match=r"config\.json: edlm: schedule 'os\.system' is not executed"):
        exchange.convert(folder, tmp_path / "out", "text8")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("home", ["edlm.networks", "edlm.nn.networks"])
def test_of_a_strangers_notes_data_is_kept_and_what_names_something_is_dropped(home: str, tmp_path: Path) -> None:
    hidden = {"deep": [{"_component_": "os.system"}]}
    network = {"_component_": f"{home}.Transformer", "hidden_size": 12}
    edlm = {"corpus": "x", "step": 3, "other": hidden, "network": network, "class": "os.system", "sha256": "0"}
    folder = hf_folder(tmp_path / "hf", small("denoiser"), edlm=edlm)
    exchange.convert(folder, tmp_path / "out", "text8")
    assert "os.system" not in (tmp_path / "out" / "network.json").read_text("utf-8")
    description = checkpoints.read_description(tmp_path / "out")
    assert {key: description.get(key) for key in edlm} == {
        **{"corpus": "x", "step": 3, "other": None, "network": network, "class": "Transformer"},
        "sha256": description["sha256"],
    }
    assert checkpoints.load_network(tmp_path / "out") is not None


def test_nesting_without_end_is_no_error_of_pythons() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    assert permitted.known_notes({"a": deep}, "here") == {"a": deep}


def test_a_denoiser_is_trained_on_a_schedule_that_its_folder_can_name(tmp_path: Path) -> None:
    settings = settings_of("pretrain_denoiser", *denoiser_words(tmp_path / "x"))
    schemas.check(pretrain_denoiser.SETTINGS, settings)
    settings["schedule"] = {"_component_": f"{__name__}.own_schedule"}
    with pytest.raises(
        ValueError, match=r"own_schedule' is not executed: it must be one of edlm\.schedules\.log_linear"
    ):
        schemas.check(pretrain_denoiser.SETTINGS, settings)


def own_schedule() -> schedules.Schedule:
    """One that no folder can name."""
    return schedules.Schedule(_alpha, _alpha, _alpha)


def _alpha(t: Tensor) -> Tensor:
    return 1 - t


def test_validate_calls_nothing_that_a_config_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    text = (commands.configs("pretrain_denoiser")["tiny"]).read_text("utf-8")
    named = f"optimizer: {{_component_: {__name__}.leave_a_mark, where: {mark}}}"
    lines, inside = [], False
    for line in text.splitlines():
        inside = line.startswith("optimizer:") or (inside and line.startswith((" ", "#")))
        lines += [] if inside else [line]
    config = tmp_path / "own.yaml"
    config.write_text("\n".join([*lines, named]), "utf-8")
    monkeypatch.setattr(sys, "argv", ["edlm"])
    with pytest.raises(SystemExit) as stop:
        commands.main(["validate", str(config)])
    assert not stop.value.code
    assert not mark.exists()
