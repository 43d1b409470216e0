"""The weights of a folder in Hugging Face's layout: one safetensors file, or several that an index names."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edlm.weights import tensors, whole

INDEX, _FILE = "model.safetensors.index.json", "model.safetensors"
_KINDS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
# Tensors that a file may hold beside the weights of its model, which no state or logit depends on.
BESIDE = re.compile(
    r"(rotary_emb|rotary)\.inv_freq$|\.attn\.(masked_)?bias$|position_ids$|(^|\.)pooler\.|^cls\.seq_relationship\."
)

_KEPT = re.compile(r"\.gate\.expert_bias$")  # a few numbers, in float32 whatever the others are


def files(folder: Path) -> list[Path]:
    """Find the files of the weights. Raises ValueError for an index that points elsewhere."""
    index = folder / INDEX
    if not index.is_file():
        return [folder / _FILE]
    where = whole.read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(re.fullmatch(r"[\w.-]+\.safetensors", str(f)) for f in where.values()):
        raise ValueError(f"{index}: no weight_map from parameters to safetensors files beside it")
    return [folder / name for name in sorted(set(where.values()))]


def read(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a folder. Raises ValueError naming the file that is missing or broken."""
    found: dict[str, Tensor] = {}
    for file in files(folder):
        found.update(tensors.read_safetensors(file))
    return found


def unread(folder: Path) -> dict[str, Any]:
    """Open all tensors of a folder, each of which `[:]` reads. Raises ValueError as `read` does."""
    found: dict[str, Any] = {}
    for file in files(folder):
        opened = _opened(file)
        found |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  it is no mapping
    return found


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read the shape of every tensor of a folder, but no tensor. Raises ValueError as `read` does."""
    return {name: shape for file in files(folder) for name, shape in tensors.shapes(file).items()}


def tensor(folder: Path, name: str) -> Tensor:
    """Read one tensor of a folder that has it."""
    (file,) = (each for each in files(folder) if name in tensors.shapes(each))
    with safe_open(file, "pt") as opened:
        found: Tensor = opened.get_tensor(name)
    return found


def widest(folder: Path) -> torch.dtype:
    """Find the type that holds every weight as it is, float32 if no file is there.

    Raises ValueError, naming the weight, for a type that no weight has.
    """
    found: torch.dtype | None = None
    for file in files(folder):
        for dtype in _dtypes(file) if file.is_file() else ():
            found = dtype if found is None else torch.promote_types(found, dtype)
    return torch.float32 if found is None else found


def require_same(folder: Path, one: str, value: Tensor, other: str, expected: Tensor) -> None:
    """Raise ValueError for a weight that is tied to another one, is there all the same, and differs."""
    if not torch.equal(value, expected):
        raise ValueError(f"{folder}: {one} differs from {other}, and tie_word_embeddings = true makes them one")


def _opened(file: Path) -> Any:
    tensors.shapes(file)
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error})") from error


def _dtypes(file: Path) -> Iterator[torch.dtype]:
    with _opened(file) as opened:
        for name in opened.keys():  # noqa: SIM118  it is no mapping
            kind = opened.get_slice(name).get_dtype()
            if BESIDE.search(name) or (_KEPT.search(name) and kind == "F32"):
                continue
            if kind not in _KINDS:
                raise ValueError(f"{file}: {name} holds {kind}, and weights are one of {', '.join(_KINDS)}")
            yield _KINDS[kind]
