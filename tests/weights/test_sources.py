"""Where a large model's files lie, what it is called, and how it is read, by a folder's name or by a section."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edlm.nn import decoders
from edlm.runs import settings as schemas
from edlm.weights import large, sources
from edlm.weights.sources import How


def section(folder: Path, **more: Any) -> dict[str, Any]:
    return {"model": {"_component_": "a.model"}, "checkpointer": {"checkpoint_dir": str(folder), **more}}


def test_a_text_is_as_long_as_is_said_or_of_2048_tokens() -> None:
    assert (How().longest, How(9).longest, sources.PLAIN.longest) == (2048, 9, 2048)


def test_files_are_those_of_the_folder_or_those_that_a_checkpointer_names(tmp_path: Path) -> None:
    plain = tmp_path / "model.safetensors"
    assert sources.files_of(str(tmp_path)) == sources.files_of(section(tmp_path)) == [plain]
    assert sources.files_of(section(tmp_path, checkpoint_files=["b.x", "a.x"])) == [tmp_path / "b.x", tmp_path / "a.x"]
    assert sources.files_of(section(tmp_path, checkpoint_files="b.x")) == [plain]
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "b.safetensors", "v": "a.safetensors", "u": "b.safetensors"}})
    )
    assert [file.name for file in sources.files_of(str(tmp_path))] == ["a.safetensors", "b.safetensors"]


def test_a_model_is_called_as_its_config_does_or_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = tmp_path / "run" / "checkpoints" / "step_00000004"
    monkeypatch.setattr(large, "hub_folder", lambda path: newest if path == "run" else None)
    assert (sources.folder_of("run"), sources.folder_of("other")) == (newest, Path("other"))
    assert sources.folder_of(section(tmp_path)) == tmp_path
    assert (sources.said("run"), sources.said(section(tmp_path))) == ("'run'", repr(str(tmp_path)))


@pytest.mark.parametrize(
    ("settings", "folder"),
    [
        ({}, None),
        ({"output": None}, None),
        ({"output": "a/b/c.jsonl"}, "a/b"),
        ({"output_dir": "d"}, "d"),
        ({"output_dir": "d", "output": "a/b.jsonl"}, "d"),
        ({"output_dir": None, "output": "a/b.jsonl"}, None),
    ],
)
def test_a_checkpointer_is_told_where_the_recipe_writes(settings: dict[str, Any], folder: str | None) -> None:
    assert sources.output_of(settings) == folder


@pytest.mark.parametrize(
    ("config", "ids"),
    [
        (None, {"bos_id": None, "eos_id": None}),
        ({}, {"bos_id": None, "eos_id": None}),
        ({"bos_token_id": 3, "eos_token_id": [5, 6]}, {"bos_id": 3, "eos_id": 5}),
        ({"bos_token_id": [], "eos_token_id": 0}, None),
        ({"bos_token_id": "3"}, None),
    ],
)
def test_special_ids_are_those_of_the_config(
    config: dict[str, Any] | None, ids: dict[str, int | None] | None, tmp_path: Path
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    if ids is None:
        with pytest.raises(ValueError, match=r"config\.json: bos_token_id = .* must be an id, a list of ids, or null$"):
            sources.special_ids(str(tmp_path))
        return
    assert sources.special_ids(str(tmp_path)) == sources.special_ids(section(tmp_path)) == ids


def test_a_folder_is_read_with_its_length_its_rows_and_the_ids_of_the_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "read_autoregressive", lambda *given: given)
    assert sources.read("a", How(9, 4), 40) == (Path("a"), 9, 4, 40)
    assert sources.read("a", How()) == (Path("a"), 2048, None, None)


@pytest.mark.parametrize("output", [None, "out"])
def test_a_section_is_built_and_its_weights_read_by_its_checkpointer(
    output: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Any] = []
    held = {"model": {"w": torch.zeros(1)}}

    def build(values: Any, **supplied: Any) -> Any:
        built.append((values, supplied))
        return SimpleNamespace(load_checkpoint=lambda: held) if "checkpoint_dir" in values else "a decoder"

    monkeypatch.setattr(schemas, "build", build)
    monkeypatch.setattr(large, "dtype_of", lambda folder: (folder, torch.bfloat16), raising=False)
    monkeypatch.setattr(decoders, "autoregressive", lambda *given: given)
    own = section(tmp_path / "folder")
    found: Any = sources.read(own, How(9, 4, output=output), 40)
    assert (found.where, found.dtype) == ("ar", (tmp_path / "folder", torch.bfloat16))
    assert [each() for each in found[:2]] == ["a decoder", held["model"]]
    assert built[1:] == [(own["checkpointer"], {"output_dir": output or str(tmp_path)})]
    assert next(each for each in found if callable(each) and each not in found[:2])("d") == ("d", 9, 4, 40)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("of another kind"), "ar.checkpointer: of another kind"),
        (KeyError("lost"), "ar.checkpointer: KeyError: 'lost'"),
        (OSError("no file"), "ar.checkpointer: OSError: no file"),
        (AssertionError("no"), "ar.checkpointer: AssertionError: no"),
    ],
)
def test_a_checkpointer_that_cannot_read_its_files_is_named(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(values: Any, **_: Any) -> Any:
        raise error

    monkeypatch.setattr(schemas, "build", build)
    monkeypatch.setattr(large, "dtype_of", lambda _: None, raising=False)
    found: Any = sources.read(section(tmp_path), How())
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        found.weights()
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "float16"}, torch.float16),
        ({"torch_dtype": "bfloat16", "dtype": "float16"}, torch.bfloat16),
        ({"dtype": "Tensor"}, torch.float32),
        ({"dtype": "float7"}, torch.float32),
        ({}, torch.float32),
        (None, torch.float32),
    ],
)
def test_weights_have_the_type_that_their_folder_names(config: Any, expected: torch.dtype, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    assert large.dtype_of(tmp_path) == expected
