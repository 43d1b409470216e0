"""Files of the published MDLM and EDLM code, read without being executed: weights under their published names.

There are three kinds: a Hugging Face folder (`config.json` beside `model.safetensors` or `pytorch_model.bin`), a
checkpoint of the Lightning trainer (`state_dict`, averaged weights under `ema`, settings under `hyper_parameters`), and
bare weights as safetensors. An EDLM checkpoint holds two networks: the trained energy and the frozen denoiser. The
other files hold one. `published` knows what the names mean.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edlm.weights import checkpoints, inert, permitted, tensors, whole

# What stands before a parameter's name in a file, and which network it then belongs to; the first that fits counts.
_ONLY = "only"
_PARTS = (
    ("backbone.backbone.", "denoiser"),
    ("backbone.ebm.", "energy"),
    ("ebm.", "energy"),
    ("backbone.", _ONLY),
    ("", _ONLY),
)
# Settings by our names: their names in a Hugging Face config, and below `model` in a trainer's config.
HF_SETTINGS = {
    "num_heads": "n_heads",
    "max_length": "model_length",
    "dropout": "dropout",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_dim",
    "num_layers": "n_blocks",
    "conditioning_size": "cond_dim",
}
_TRAINER_SETTINGS = {
    "num_heads": "n_heads",
    "max_length": "length",
    "dropout": "dropout",
    "hidden_size": "hidden_size",
    "num_layers": "n_blocks",
    "conditioning_size": "cond_dim",
}
_NESTED = 8  # nodes around a value, of which OmegaConf writes one
_SCHEDULE = {"_component_": "edlm.schedules.log_linear", "eps": 1e-3}  # of every published network


class Weights(NamedTuple):
    """One network of a file: its weights under published names, and the settings and notes beside them."""

    source: str  # what kind of file it is
    state: dict[str, Tensor]  # as trained
    average: list[Tensor] | None  # their moving average, in the order of the published parameters; None: not kept
    settings: dict[str, Any]  # arguments of our networks, as far as the file gives them
    notes: dict[str, Any]  # step, schedule, ... for `network.json`


def read(path: str | Path, part: str | None = None) -> Weights:
    """Read a published file or folder; `part`, "energy" or "denoiser", selects the network of an EDLM checkpoint.

    Without a part it is the energy, if there is one. Raises ValueError naming the file for what is missing, broken, of
    an unknown kind, or would have to be executed.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, part)
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors":
        state = _part(_weights(tensors.read_safetensors(path), path), part, path)
        return Weights("weights in safetensors", state, None, {}, _notes({}))
    return _read_trainers(path, part)


def _read_folder(folder: Path, part: str | None) -> Weights:
    config = whole.read_json(folder / "config.json")
    if config.get("model_type") != "mdlm":
        raise ValueError(
            f"{folder}: model_type = {config.get('model_type')!r} must be mdlm; edlm.large reads llada and Dream"
        )
    file = folder / "model.safetensors"
    if file.is_file():
        found = _weights(tensors.read_safetensors(file), file)
    else:
        file = folder / "pytorch_model.bin"
        if not file.is_file():
            raise ValueError(f"{folder}: neither model.safetensors nor pytorch_model.bin is there")
        found = _weights(inert.read(file), file)
    own = config.get("edlm")  # what `exchange.export` wrote, or anybody else
    notes = permitted.known_notes(own, f"{folder}/config.json: edlm") if isinstance(own, dict) else _notes(config)
    notes = {key: value for key, value in notes.items() if key not in checkpoints.OWN_KEYS}
    return Weights("Hugging Face folder", _part(found, part, file), None, _settings(config, HF_SETTINGS), notes)


def _read_trainers(file: Path, part: str | None) -> Weights:
    content = inert.read(file)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(f"{file}: no checkpoint of a Lightning trainer, which has a state_dict")
    found = _weights(content["state_dict"], file)
    config = _plain(_plain(content.get("hyper_parameters")).get("config"))
    notes = _notes(config)
    if isinstance(content.get("global_step"), int):
        notes["step"] = content["global_step"]
    # The average is of what was trained, which in an EDLM checkpoint is the energy alone.
    frozen = part == "denoiser" and any(_place(name)[0] == "energy" for name in found)
    average = None if frozen else _average(content.get("ema"), file)
    settings = _settings(_plain(config.get("model")), _TRAINER_SETTINGS)
    return Weights("Lightning checkpoint", _part(found, part, file), average, settings, notes)


def _average(ema: Any, file: Path) -> list[Tensor] | None:
    """Find the list of averaged weights that a trainer keeps, None if it keeps none."""
    if ema is None:
        return None
    shadow = _section(ema).get("shadow_params")
    if not isinstance(shadow, list) or not all(isinstance(value, Tensor) for value in shadow):
        raise ValueError(f"{file}: its averaged weights, ema, are not a list of tensors under shadow_params")
    tensors.require_held({f"ema[{i}]": value for i, value in enumerate(shadow)}, file)
    return shadow


def _weights(content: Any, file: Path) -> dict[str, Tensor]:
    """Collect tensors by name, without the parts of names that a wrapper added."""
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{file}: no weights by name; expected a state dict, from names to tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{file}: {name} is no tensor")
    tensors.require_held(content, file, copies=2)  # an energy stands there twice, in one place
    return tensors.unwrapped(content, file)


def _place(name: str) -> tuple[str, str]:
    """Split a parameter's name into the network it belongs to and its name there."""
    prefix, part = next((prefix, part) for prefix, part in _PARTS if name.startswith(prefix))
    return part, name.removeprefix(prefix)


def _part(found: Mapping[str, Tensor], part: str | None, file: Path) -> dict[str, Tensor]:
    """Select the weights of one network of a file, without their prefix."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in found.items():
        owner, own_name = _place(name)
        earlier = parts.setdefault(owner, {}).setdefault(own_name, value)
        same = earlier is value or (earlier.dtype == value.dtype and torch.equal(earlier, value))
        if not same:  # the energy stands in the file twice
            raise ValueError(f"{file}: {own_name} of {owner} is there twice, with different weights")
    if len(parts) > 1 and _ONLY in parts:
        raise ValueError(f"{file}: {next(iter(parts[_ONLY]))} belongs neither to an energy nor to its denoiser")
    wanted = part or next(known for known in ("energy", "denoiser", _ONLY) if known in parts)
    if wanted not in parts:
        held = "one network alone" if _ONLY in parts else " and ".join(sorted(parts))
        raise ValueError(f"{file}: there is no part {wanted!r}; it holds {held}")
    return parts[wanted]


def _settings(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Collect the finite numbers among the settings, by our names; an unresolved `${...}` is none.

    Raises ValueError for what is no number, and for a size that is no whole one.
    """
    found = {ours: config.get(theirs) for ours, theirs in names.items()}
    given = {
        ours: value
        for ours, value in found.items()
        if value is not None and not (isinstance(value, str) and "${" in value)
    }
    for ours, value in given.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
        if not is_number or (ours != "dropout" and value != int(value)):
            wanted = "a number" if ours == "dropout" else "a whole number"
            raise ValueError(f"the file's settings say {names[ours]} = {value!r:.60}, which must be {wanted}")
    return given


def _notes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what a network folder says of how its network is used."""
    trained = {key: config[key] for key in ("parameterization",) if isinstance(config.get(key), str)}
    return {"schedule": dict(_SCHEDULE), "time_conditioning": config.get("time_conditioning") is True, **trained}


def _plain(value: Any) -> dict[str, Any]:
    """Take one level of settings out of what stands for OmegaConf's nodes; empty for what is no section."""
    return {key: _content(item) for key, item in _section(_content(value)).items()}


def _content(value: Any) -> Any:
    """Take the content of an OmegaConf node; None for one that holds nodes without end."""
    for _ in range(_NESTED):
        if not isinstance(value, inert.Inert):
            return value
        state = _section(value.state)
        value = state.get("_content", state.get("_val"))
    return None


def _section(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
