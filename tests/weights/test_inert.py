"""Files of `torch.save` are read and never executed."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from published_files import built, prefixed, same_weights, small, trainers_config, trainers_file

from edlm.weights import foreign, inert


class Planted:
    """An object whose pickle asks for a call that leaves a file behind."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (call, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def test_a_call_that_a_file_asks_for_is_not_made(tmp_path: Path) -> None:
    mark, network = tmp_path / "mark", small("denoiser")
    state = prefixed("backbone.", network)
    weights = foreign.read(
        trainers_file(tmp_path / "0.ckpt", state, callbacks=Planted(eval, f"open({str(mark)!r}, 'w').close()"))
    )
    assert same_weights(built(weights), network)
    refused = {"builtins.getattr, not loaded": Planted(Path.touch, mark), "system": Planted(os.system, f"touch {mark}")}
    for named, call in refused.items():
        with pytest.raises(ValueError, match=f"holds more than weights and settings, and is not executed .*{named}"):
            foreign.read(trainers_file(tmp_path / "1.ckpt", state, callbacks=call))
    assert not mark.exists()
    torch.load(tmp_path / "0.ckpt", weights_only=False)  # the control: read as a plain pickle, the call is made
    assert mark.exists()


def test_a_call_in_the_place_of_weights_is_no_tensor(tmp_path: Path) -> None:
    state: Any = {**prefixed("backbone.", small("denoiser")), "backbone.x": Planted(eval, "1/0")}
    with pytest.raises(ValueError, match=r"backbone\.x is no tensor"):
        foreign.read(trainers_file(tmp_path / "x.ckpt", state))


class Items(dict[str, int]):
    """A class of its own that is filled item by item, which the restricted reader refuses."""


@pytest.mark.slow
def test_what_is_refused_comes_with_the_command_that_keeps_the_plain_part(tmp_path: Path) -> None:
    """And that command's file loads with the same weights."""
    raw, average = small("denoiser", 0), small("denoiser", 1)
    file = trainers_file(tmp_path / "x.ckpt", prefixed("backbone.", raw), average, callbacks=Items(a=1))
    with pytest.raises(ValueError, match="is not executed") as error:
        foreign.read(file)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert "add_safe_globals" not in message, "no advice to execute it here"
    assert "Can only SETITEM" in message
    command = message.split('python -c "')[1].removesuffix('"')
    trusted = (
        f"import sys; sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]!r}; import test_inert; "
    )
    subprocess.run([sys.executable, "-c", trusted + command], check=True, cwd=tmp_path, env=dict(os.environ))
    weights = foreign.read(tmp_path / "plain.ckpt")
    assert same_weights(built(weights), average)
    assert weights.notes["step"] == 500


def test_unknown_objects_keep_their_state_and_stay_apart(tmp_path: Path) -> None:
    torch.save({"a": Path("/x"), "b": partial(print, 1), "c": OmegaConf.create({"k": 3})}, tmp_path / "x.pt")
    read = inert.read(tmp_path / "x.pt")
    assert all(isinstance(value, inert.Inert) for value in read.values())
    assert read["a"].arguments == ("/", "x")
    assert len({type(value) for value in read.values()}) == 3
    assert foreign._plain(read["c"]) == {"k": 3}


def test_reading_leaves_torch_as_strict_as_before(tmp_path: Path) -> None:
    file = trainers_file(tmp_path / "x.ckpt", prefixed("backbone.", small("denoiser")), config=trainers_config())
    before = set(torch.serialization.get_safe_globals())
    foreign.read(file)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken", pickle.dumps({"state_dict": {}})])
def test_a_file_that_torch_did_not_write_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.ckpt: not a whole zip file of torch\.save"):
        foreign.read(file)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named(kept: float, tmp_path: Path) -> None:
    file = trainers_file(tmp_path / "x.ckpt", prefixed("backbone.", small("denoiser")))
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"x\.ckpt: not a whole zip file"):
        foreign.read(file)
