"""The doctor says what is there, what is not, and what is wrong, whatever it meets."""

from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict

from edlm.cli import commands, doctor
from edlm.process import schedules
from edlm.samplers import execution, pipelines

EXTRAS = ("data", "docs", "families", "gguf", "harness", "judge", "mauve", "tensorboard", "wandb")


def found(what: str) -> doctor.Finding:
    return next(finding for finding in doctor.examine() if finding.what == what)


def test_everything_that_is_needed_is_looked_at_and_suffices_here(capsys: pytest.CaptureFixture[str]) -> None:
    commands.main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    names = {line[2:].split("  ")[0] for line in lines}
    assert {"edlm", "python", "torch", "tensordict", "torchtune", "torchao", "tokenizers"} <= names
    assert {"device", "compiler", "recipes", "token cache", "sampling"} <= names
    assert {name for name in names if name.startswith("extra")} == {f"extra {name}" for name in EXTRAS}
    assert not [line for line in lines if line.startswith("!")]


def test_a_version_that_does_not_do_is_marked_and_the_exit_status_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.17.0" if name == "torchao" else installed(name))
    with pytest.raises(SystemExit) as stop:
        commands.main(["doctor"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("!")]
    assert stop.value.code == 1
    assert line.split() == ["!", "torchao", "0.17.0", "needs", ">=0.14.1,<0.15"]


def test_an_extra_that_is_not_there_is_no_fault_and_says_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = metadata.version

    def version(name: str) -> str:
        if name == "wandb":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata, "version", version)
    expected = doctor.Finding("extra wandb", "wandb not installed", "pip install 'edlm-torch[wandb]'")
    assert found("extra wandb") == expected


def test_a_missing_compiler_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "missing_compiler", lambda device: "g++")
    assert found("compiler")[1:] == ("no g++", "execution=compile runs eager without a C++ compiler", True)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").write_text("a file where a folder has to be")
    assert found("token cache")[2:] == (f"{tmp_path / 'data'} cannot be written to", False)


@pytest.mark.parametrize(
    ("row", "mask_left", "said"), [(2, True, "masks are left"), (1, False, "another text alone")], ids=["masks", "rows"]
)
def test_a_sampler_that_is_broken_is_found(
    monkeypatch: pytest.MonkeyPatch, row: int, mask_left: bool, said: str
) -> None:
    def sample(pipeline: object, num_samples: int, *, seed: int, first_row: int = 0) -> TensorDict:
        rows = torch.arange(first_row, first_row + num_samples) if mask_left else torch.arange(num_samples)
        return TensorDict({"tokens": rows.unsqueeze(1).expand(-1, 32) + 25 * mask_left})

    monkeypatch.setattr(pipelines, "sample", sample)
    finding = found("sampling")
    assert finding.remark.endswith(said)
    assert not finding.suffices


def test_an_error_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("undefined symbol:\n  at::something")

    monkeypatch.setattr(schedules, "log_linear", broken)
    assert found("sampling")[1:] == ("failed", "RuntimeError: undefined symbol: at::something", False)


def test_a_card_is_told_by_its_name_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * 2**30))
    device = doctor._device()
    assert (device.what, device.found) == ("device", "cuda")
    assert device.remark.startswith("a card, 80 GiB; ")
