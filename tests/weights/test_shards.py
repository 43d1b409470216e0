"""The files of a folder's weights: which they are, which type holds them all, and what lies beside a model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from edlm.weights import shards

BESIDE = (
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "a.rotary.inv_freq",
    "h.0.attn.bias",
    "h.0.attn.masked_bias",
    "bert.embeddings.position_ids",
    "bert.pooler.dense.weight",
    "pooler.dense.bias",
    "cls.seq_relationship.weight",
)
OF_A_MODEL = (
    "h.0.attn.c_attn.bias",
    "xattn.biases",
    "position_ids_too",
    "a.cls.seq_relationship.weight",
    "mypooler.weight",
    "inv_freq",
)


def indexed(folder: Path, **files: dict[str, Tensor]) -> Path:
    for name, content in files.items():
        save_file(content, folder / f"{name}.safetensors")
    where = {key: f"{name}.safetensors" for name, content in files.items() for key in content}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def ones(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(2, dtype=dtype)


def test_files_are_one_or_those_of_the_index(tmp_path: Path) -> None:
    assert shards.files(tmp_path) == [tmp_path / "model.safetensors"]
    indexed(tmp_path, b={"x": ones(), "z": 3 * ones()}, a={"y": 2 * ones()})
    assert shards.files(tmp_path) == [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    assert {name: float(value[0]) for name, value in shards.read(tmp_path).items()} == {"x": 1.0, "y": 2.0, "z": 3.0}
    assert shards.shapes(tmp_path) == {"x": (2,), "y": (2,), "z": (2,)}
    assert torch.equal(shards.tensor(tmp_path, "y"), 2 * ones())


@pytest.mark.parametrize(
    "where",
    [None, [], {"x": "../a.safetensors"}, {"x": "a.bin"}, {"x": 3}, {"x": "a.safetensors", "y": "../a.safetensors"}],
)
def test_an_index_that_points_elsewhere_is_refused(where: object, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(ValueError, match=r"index\.json: no weight_map from parameters to safetensors files beside it$"):
        shards.files(tmp_path)


F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("dtypes", "widest"),
    [((F16,), F16), ((BF16, BF16), BF16), ((F16, BF16), F32), ((BF16, F32), F32), ((F32, F64), F64), ((), F32)],
)
def test_the_widest_type_holds_every_weight(
    dtypes: tuple[torch.dtype, ...], widest: torch.dtype, tmp_path: Path
) -> None:
    if dtypes:
        save_file({f"w{i}": ones(dtype) for i, dtype in enumerate(dtypes)}, tmp_path / "model.safetensors")
    assert shards.widest(tmp_path) == widest


def test_what_lies_beside_a_model_has_any_type_and_weights_have_not(tmp_path: Path) -> None:
    save_file({"w": ones(F16), **{name: ones(torch.int64) for name in BESIDE}}, tmp_path / "model.safetensors")
    assert shards.widest(tmp_path) == F16
    for name in OF_A_MODEL:
        save_file({"w": ones(), name: ones(torch.int64)}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=rf"{name} holds I64, and weights are one of F32, F16, BF16, F64$"):
            shards.widest(tmp_path)


def test_a_tied_weight_is_the_same_twice() -> None:
    shards.require_same(Path("m"), "head", ones(), "embedding", ones())
    with pytest.raises(ValueError, match=r"^m: head differs from embedding, and tie_word_embeddings = true makes"):
        shards.require_same(Path("m"), "head", ones(), "embedding", 2 * ones())
