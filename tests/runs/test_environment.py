"""The device that a config means, whatever this machine has, and the folder that it may write."""

from pathlib import Path

import pytest
import torch

from edlm.runs import environment


@pytest.mark.parametrize(
    ("name", "is_there", "device"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
        ("cuda", False, None),
        ("meta", True, "meta"),
    ],
)
def test_a_device_is_the_one_that_is_named_or_the_best_that_is_there(
    name: str, is_there: bool, device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
    settings = {"threads": None, "device": name}
    if device is None:
        with pytest.raises(ValueError, match=r"^device = 'cuda' but no CUDA device is there; use device=cpu$"):
            environment.device_of(settings)
        return
    assert environment.device_of(settings) == torch.device(device)


@pytest.mark.parametrize(("threads", "set_to"), [(None, []), (3, [3])])
def test_threads_are_set_where_a_config_says_how_many(
    threads: int | None, set_to: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    environment.device_of({"threads": threads, "device": "cpu"})
    assert calls == set_to


def test_a_folder_is_writable_if_the_one_that_it_is_made_in_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.writable("output_dir", str(tmp_path)) == tmp_path
    assert environment.writable("output_dir", str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()
    monkeypatch.chdir(tmp_path)
    assert environment.writable("output_dir", "a/b") == Path("a/b")
    (tmp_path / "file").write_text("")
    for inside in ("file", "file/a"):
        with pytest.raises(ValueError, match=rf"^output_dir = '{inside}' cannot be written: .*file is not a folder"):
            environment.writable("output_dir", inside)
    monkeypatch.setattr(environment.os, "access", lambda path, how: (path, how) != (tmp_path, environment.os.W_OK))
    with pytest.raises(ValueError, match=r"^output_dir = .* cannot be written: .* is not a folder that can be written"):
        environment.writable("output_dir", str(tmp_path / "a"))
