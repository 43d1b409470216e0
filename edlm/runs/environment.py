"""The device on which a run computes, and the folder to which it may write."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

# The environment variable by which damaged or exchanged weights are read all the same.
UNVERIFIED = "EDLM_UNVERIFIED"
# The one that lists, with commas between, the components that a saved folder may name beside the library's own.
COMPONENTS = "EDLM_COMPONENTS"


def device_of(settings: Mapping[str, Any]) -> torch.device:
    """Return the device a config names. Raises ValueError for cuda where there is none."""
    if settings["threads"] is not None:
        torch.set_num_threads(settings["threads"])
    name = settings["device"]
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device = 'cuda' but no CUDA device is there; use device=cpu")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)


def writable(key: str, value: str) -> Path:
    """Find the folder a config names to be writable before any work is done. Raises ValueError naming the key."""
    folder = Path(value)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise ValueError(f"{key} = {value!r} cannot be written: {existing} is not a folder that can be written to")
    return folder
