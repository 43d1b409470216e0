"""No number in the config of a large model ends in anything but a network or one line, and none costs memory first."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import block_folders
import hub_folders
import pytest
from large_folders import CONFIGS, random_weights, write

from edlm.nn import decoders
from edlm.weights import large

NUMBERS = (-1, 0, 3, (1 << 24) + 1, 1 << 40, 1 << 63, 10**400, 1e300)
QUICK = ("bert",)


def built(read: Callable[..., Any], folder: Path) -> str | None:
    """What is said of a folder; None if its network was loaded."""
    try:
        decoders.load(read(folder, 8))
    except ValueError as error:
        return str(error)
    return None


def assert_every_number_is_taken_or_named(read: Callable[..., Any], folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert built(read, folder) is None
    refused = set()
    for name, value in config.items():
        for number in NUMBERS if type(value) in (int, float) else ():
            (folder / "config.json").write_text(json.dumps({**config, name: number}), "utf-8")
            said = built(read, folder)
            if said is not None:
                refused.add(name)
                assert str(folder) in said
    assert len(refused) >= 6, "its sizes"


@pytest.mark.parametrize("family", CONFIGS)
def test_of_what_torchtune_builds(family: str, tmp_path: Path) -> None:
    read = large.read_diffusion if family in ("llada", "dream") else large.read_autoregressive
    assert_every_number_is_taken_or_named(read, write(tmp_path / "m", family, random_weights(family), shards=1))


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.slow) for kind in (*hub_folders.MODELS, "llada2")],
)
def test_of_what_transformers_builds(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if kind == "llada2":
        folder = block_folders.llada2(tmp_path / "m", block_folders.llada2_weights())
    else:
        folder = hub_folders.save(hub_folders.model(kind, transformers), tmp_path / "m")
    read = large.read_autoregressive if kind in hub_folders.CAUSAL else large.read_diffusion
    assert_every_number_is_taken_or_named(read, folder)
