"""A training that is stopped after two steps and repeated, beside one that nobody stopped."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edlm.weights import checkpoints

FILES = ("model.safetensors", "average.safetensors")  # of a checkpoint of a large model


def require_same_end(
    recipe: Callable[[dict[str, Any]], Any],
    main: Callable[[dict[str, Any]], None],
    asked: Callable[[Path], dict[str, Any]],
    folder: Path,
) -> Mapping[str, Path]:
    """Train `whole` at once and `run` in two parts, and require the same bytes; return their last checkpoints.

    asked: the settings of a run in a folder. Dropout is on while the first part is trained, as the recipe has it.
    """
    main(asked(folder / "whole"))
    half = recipe(asked(folder / "run"))
    half.setup()
    half.load_checkpoint()
    half.run.network.train()
    half.run._update()
    half.run._update()
    half.save_checkpoint()
    main(asked(folder / "run"))
    ends = {name: checkpoints.last_checkpoint(folder / name) or folder / name for name in ("whole", "run")}
    for file in FILES:
        assert (ends["whole"] / file).read_bytes() == (ends["run"] / file).read_bytes(), file
    return ends
