"""What a run reads of its own folder is data from elsewhere: damage of any kind is one line, and costs nothing."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_layer import train
from torch import nn

from edlm.runs import environment
from edlm.training import log, state
from edlm.weights import checkpoints

JUNK = [None, "x", -1, 1e400, float("nan"), 10**400, [], {}, [[]], True, 0.5, {"pairs": [["a"]]}, "tensor:99"]


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of two steps; no test writes into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "draw_curves", lambda folder: None)
        folder = tmp_path_factory.mktemp("two_steps") / "run"
        train(folder, steps=2)
        yield folder


def state_file(run: Path) -> Path:
    newest = checkpoints.last_checkpoint(run)
    assert newest is not None
    return newest / "training.json"


def damaged(run: Path, folder: Path, content: bytes) -> Path:
    """A copy of a run with other content of its training state."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run, folder)
    state_file(folder).write_bytes(content)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder: Path, named: str = "training.json") -> str:
    """What is said of a folder that cannot go on, in which nothing changes."""
    before = files(folder)
    with pytest.raises(ValueError, match=named) as found:
        train(folder, steps=3)
    assert files(folder) == before
    said = str(found.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b'{"state": 1}', b"\xff\xfe{}", b"[" * 100_000, b'{"state":' * 100_000, b"1" * 5000],
    ids=lambda content: str(content[:8]),
)
def test_a_file_that_holds_no_state_is_named(two_steps: Path, tmp_path: Path, content: bytes) -> None:
    refused(damaged(two_steps, tmp_path / "run", content))


@pytest.mark.parametrize("kept", [0.25, 0.5, 0.99])
def test_a_state_that_was_cut_off_is_named(two_steps: Path, tmp_path: Path, kept: float) -> None:
    content = state_file(two_steps).read_bytes()
    refused(damaged(two_steps, tmp_path / "run", content[: int(len(content) * kept)]))


@pytest.mark.parametrize("key", list(state._SCHEMA))
def test_every_key_of_a_state_is_needed_and_has_a_type(
    two_steps: Path, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environment.UNVERIFIED, "1")  # the hash alone would refuse it
    content = json.loads(state_file(two_steps).read_text())
    pairs = content["state"]["pairs"]
    place = next(number for number, (name, _) in enumerate(pairs) if name == key)
    for value in ("x", None, float("nan"), -1, {"pairs": [[1, 2]]}):
        pairs[place][1] = value
        said = refused(damaged(two_steps, tmp_path / "run", json.dumps(content).encode()), r"training\.json")
        assert key in said
    del pairs[place]
    if key not in state._OLDER:
        refused(damaged(two_steps, tmp_path / "run", json.dumps(content).encode()), r"training\.json")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested json."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


@pytest.mark.slow
@settings(max_examples=40)
@given(draw=st.data())
def test_junk_anywhere_in_a_state_is_one_line_or_changes_nothing(
    two_steps: Path, tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject
) -> None:
    content = json.loads(state_file(two_steps).read_text())
    *path, last = draw.draw(st.sampled_from([each for each in places(content) if each]))
    inner = content
    for key in path:
        inner = inner[key]
    inner[last] = copy.deepcopy(draw.draw(st.sampled_from(JUNK)))
    folder = damaged(two_steps, tmp_path_factory.mktemp("junk") / "run", json.dumps(content).encode())
    before, said = files(folder), None
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv(environment.UNVERIFIED, "1")  # the hash alone would refuse it
            train(folder, steps=3)
    except ValueError as error:
        said = str(error)
    if said is not None:
        assert "\n" not in said
        assert str(folder) in said
        assert files(folder) == before
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["head.weight", "blocks.0.mlp.0.weight"])
def test_a_weight_that_is_missing_or_of_another_shape_is_named(name: str, tmp_path: Path) -> None:
    shapes = {"head.weight": torch.Size([2, 3]), "blocks.0.mlp.0.weight": torch.Size([4])}
    right = {key: torch.zeros(shape) for key, shape in shapes.items()}
    state.require_weights(tmp_path, "network", right, shapes)
    for wrong in (
        {key: value for key, value in right.items() if key != name},
        right | {name: torch.zeros(7)},
        right | {name: None},
    ):
        with pytest.raises(ValueError, match=f"training.json: network.{name} "):
            state.require_weights(tmp_path, "network", wrong, shapes)
    with pytest.raises(ValueError, match=r"network\.other is no weight of this network"):
        state.require_weights(tmp_path, "network", right | {"other": torch.zeros(1)}, shapes)


@pytest.mark.parametrize(
    "build",
    [
        torch.optim.AdamW,
        lambda p: torch.optim.AdamW(p, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1),
        torch.optim.Adafactor,
        torch.optim.RMSprop,
        torch.optim.Adagrad,
        lambda p: torch.optim.NAdam(p, lr=1e-3),
    ],
)
def test_the_state_of_any_optimiser_is_its_own_and_lost_moments_are_named(build: Any, tmp_path: Path) -> None:
    def made() -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(shape)) for shape in ((3, 4), (5,), ())]
        return parameters, build(parameters)

    parameters, optimizer = made()
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    state.require_optimizer(tmp_path, optimizer.state_dict(), made()[1])
    optimizer.step()
    saved = optimizer.state_dict()
    state.require_optimizer(tmp_path, saved, made()[1])
    for name in [name for name, value in saved["state"].get(0, {}).items() if isinstance(value, torch.Tensor)]:
        lost = copy.deepcopy(saved)
        del lost["state"][0][name]
        with pytest.raises(ValueError, match=r"optimizer\.state\.0 must hold"):
            state.require_optimizer(tmp_path, lost, made()[1])
        changed = copy.deepcopy(saved)
        changed["state"][0][name] = None
        with pytest.raises(ValueError, match=rf"optimizer\.state\.0\.{name} must be "):
            state.require_optimizer(tmp_path, changed, made()[1])


@pytest.mark.parametrize("pointer", ["last.json", "best.json"])
def test_a_damaged_pointer_is_named_before_a_step_is_taken(two_steps: Path, tmp_path: Path, pointer: str) -> None:
    for content in (b"", b"[]", b"\xff", b'{"folder": 3}', b'{"folder": "../.."}', b'{"folder": "step_00000009"}'):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(two_steps, tmp_path / "run")
        (tmp_path / "run" / "checkpoints" / pointer).write_bytes(content)
        said = refused(tmp_path / "run", pointer)
        assert f'write {{"folder": "step_00000002"}} into {pointer}' in said


@pytest.mark.parametrize("saved", [[1], [1, 2, 3], [1, "2"], 1, "12", None, {}])
def test_a_list_stands_for_one_of_its_length_and_kinds_alone(saved: Any) -> None:
    assert state._alike([3, 4.0], [1, 2])
    assert not state._alike(saved, [1, 2])
