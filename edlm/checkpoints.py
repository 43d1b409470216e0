"""Saving and loading: networks as safetensors and json, training state beside them, nothing executed on loading.

A network folder holds `network.json` (class, arguments, what it was trained on), `network.safetensors` and the files
of its vocabulary. A run folder holds `checkpoints/step_<n>/`, each a network folder with the state of its training,
`checkpoints/last.json`, which names the newest whole one, and `checkpoints/best.json`, where a run keeps the best one.
Everything is written under a temporary name first and renamed, so a crash or a full disk leaves the earlier checkpoint
as it was.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edlm import networks
from edlm.vocabulary import Vocabulary, load_vocabulary

_CLASSES: dict[str, type[nn.Module]] = {
    c.__name__: c for c in (networks.Transformer, networks.EnergyNetwork, networks.JointNetwork)
}
N = TypeVar("N", networks.Transformer, networks.EnergyNetwork, networks.JointNetwork)
_TENSOR = "tensor:"  # prefix of a name that stands for a tensor in the json of a training state


def save_network(folder: Path, network: nn.Module, vocabulary: Vocabulary, notes: Mapping[str, Any]) -> None:
    """Write a network folder that is new; `notes` are kept in `network.json` (step, corpus, ...).

    Raises ValueError naming the folder if it cannot be written, with nothing left of it.
    """
    write_folder(Path(folder), lambda target: _fill_network(target, network, vocabulary, notes))


def load_network(path: str | Path, vocabulary: Vocabulary | None = None) -> nn.Module:
    """Build the network of a network folder, or of the newest checkpoint of a run folder, in eval mode.

    Raises ValueError naming the file if it is missing, broken, of an unknown class, with arguments that the class does
    not take, of other shapes than its `network.json` says, or trained on another vocabulary than the one given.
    """
    folder = find_network(path)
    description = read_description(folder)
    if vocabulary is not None and description["vocabulary"] != vocabulary.fingerprint:
        found = description["vocabulary"]
        raise ValueError(f"{folder} was trained on vocabulary {found}, not {vocabulary.fingerprint}")
    cls = _CLASSES.get(description["class"])
    if cls is None:
        raise ValueError(f"{folder}/network.json: class {description['class']!r} is not one of {', '.join(_CLASSES)}")
    try:
        network = cls(**description["arguments"])
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{folder}/network.json: its arguments make no {cls.__name__} ({error})") from error
    _load_weights(network, folder / "network.safetensors")
    return network.eval()


def load_as(cls: type[N], path: str | Path, vocabulary: Vocabulary | None = None) -> N:
    """`load_network` for a network of a known class. Raises ValueError, too, if it is of another."""
    network = load_network(path, vocabulary)
    if not isinstance(network, cls):
        raise ValueError(f"{path} holds a network of class {type(network).__name__}, not {cls.__name__}")
    return network


def load_vocabulary_of(path: str | Path) -> Vocabulary:
    """The vocabulary a network folder or run folder was trained with. Raises ValueError naming the file."""
    return load_vocabulary(find_network(path))


def require_same_vocabulary(first: str | Path, second: str | Path) -> None:
    """Raise ValueError, naming both folders and what differs, unless two networks give every text the same ids."""
    one, other = load_vocabulary_of(first), load_vocabulary_of(second)
    if one.fingerprint == other.fingerprint:
        return
    names = ("size", "mask_id", "bos_id", "eos_id", "pad_id", "end_id")
    pairs = [(name, getattr(one, name), getattr(other, name)) for name in names]
    differing = [f"{name} = {a} and {b}" for name, a, b in pairs if a != b]
    if one.tokenizer.to_str() != other.tokenizer.to_str():
        differing.append("their tokenizers")
    raise ValueError(f"{first} and {second} were trained on different vocabularies: {', '.join(differing)}")


def find_network(path: str | Path) -> Path:
    """The network folder that a path stands for: itself, or a run's newest checkpoint. Raises ValueError if neither."""
    path = Path(path)
    if (path / "network.json").is_file():
        return path
    newest = last_checkpoint(path)
    if newest is None:
        raise ValueError(f"{path}: no checkpoint there (expected network.json, or checkpoints/last.json of a run)")
    return newest


def read_description(folder: Path) -> dict[str, Any]:
    """Read `network.json`: class, arguments, vocabulary fingerprint and notes. Raises ValueError naming the file."""
    description = read_json(folder / "network.json")
    missing = {"class", "arguments", "vocabulary"} - set(description)
    if missing:
        raise ValueError(f"{folder}/network.json: lacks {', '.join(sorted(missing))}")
    return description


def save_checkpoint(
    run: Path,
    step: int,
    network: nn.Module,
    vocabulary: Vocabulary,
    notes: Mapping[str, Any],
    state: Mapping[str, Any],
    keep_last: int = 2,
    best: Mapping[str, float] | None = None,
) -> Path:
    """Add `checkpoints/step_<n>` to a run and make it the newest; older ones beyond `keep_last` are removed after.

    state: nested dicts and lists of tensors and plain values, the training state. best: `step` of the best checkpoint
    and its `loss`, which is kept beside the last ones and named in `best.json`; None: as it was. Raises ValueError
    naming the folder, and the checkpoint that is still good, if it cannot be written.
    """
    folder = run / "checkpoints" / f"step_{step:08d}"

    def fill(target: Path) -> None:
        _fill_network(target, network, vocabulary, {**notes, "step": step})
        _fill_state(target, state)

    newest = last_checkpoint(run)
    if newest != folder:  # else a run that ends on a saving step
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was cut off before `last.json` named it
        write_folder(folder, fill, still_good=newest)
        _write_pointer(run / "checkpoints" / "last.json", {"folder": folder.name}, folder)
    best_folder = None if best is None else run / "checkpoints" / f"step_{best['step']:08d}"
    if best is not None and best_folder is not None and best_folder.is_dir():
        _write_pointer(run / "checkpoints" / "best.json", {"folder": best_folder.name, **best}, folder)
    _remove_old(run / "checkpoints", folder.name, keep_last)
    return folder


def last_checkpoint(run: str | Path) -> Path | None:
    """The newest whole checkpoint of a run folder, None if it has none. Raises ValueError if what it names is gone."""
    return _pointed(Path(run) / "checkpoints" / "last.json")


def best_checkpoint(run: str | Path) -> Path | None:
    """The checkpoint of the least held-out loss, None if none was kept. Raises ValueError if what is named is gone."""
    return _pointed(Path(run) / "checkpoints" / "best.json")


def load_state(folder: Path) -> dict[str, Any]:
    """The training state of a checkpoint, as it was saved. Raises ValueError naming the file."""
    tensors = read_safetensors(folder / "training.safetensors")
    return _decode(read_json(folder / "training.json")["state"], tensors)


def _pointed(pointer: Path) -> Path | None:
    if not pointer.is_file():
        return None
    folder = pointer.parent / str(read_json(pointer).get("folder"))
    if not folder.is_dir():
        raise ValueError(f"{pointer} names {folder.name}, which is not there")
    return folder


def _write_pointer(pointer: Path, content: Mapping[str, Any], still_good: Path) -> None:
    """Write `last.json` or `best.json`. Raises ValueError naming it if it cannot be."""
    try:
        write_json(pointer, content)
    except OSError as error:
        raise ValueError(f"cannot write {pointer}: {error}; {still_good} is whole") from error


def _remove_old(checkpoints: Path, newest: str, keep_last: int) -> None:
    """Remove all but the last ones up to the newest, and the best; and what a run that was cut off left behind.

    Checkpoints of later steps are such: the run went on from an earlier one.
    """
    folders = sorted(folder.name for folder in checkpoints.glob("step_*"))
    kept = set([name for name in folders if name <= newest][-keep_last:])
    best = checkpoints / "best.json"
    kept |= {str(read_json(best).get("folder"))} if best.is_file() else set()
    for name in [name for name in folders if name not in kept]:
        hidden = checkpoints / f".{name}.partial"  # half a checkpoint is never seen under its name
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(checkpoints / name, hidden)
    for partial in checkpoints.glob(".*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _fill_network(target: Path, network: nn.Module, vocabulary: Vocabulary, notes: Mapping[str, Any]) -> None:
    description = {
        "class": type(network).__name__,
        "arguments": network.arguments,
        "vocabulary": vocabulary.fingerprint,
        **notes,
    }
    vocabulary.save(target)
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()},
        target / "network.safetensors",
    )
    write_json(target / "network.json", description)


def _fill_state(target: Path, state: Mapping[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    encoded = _encode(state, tensors)
    save_file(tensors, target / "training.safetensors")
    write_json(target / "training.json", {"state": encoded})


def write_folder(folder: Path, fill: Callable[[Path], None], still_good: Path | None = None) -> None:
    """Fill a temporary folder, flush it to disk and rename it; on failure remove it and say what still stands.

    Raises ValueError naming the folder if it cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        for file in [*temporary.iterdir(), temporary]:
            _flush(file)
        os.rename(temporary, folder)
        _flush(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        kept = "" if still_good is None else f"; the last good checkpoint is {still_good}"
        raise ValueError(f"cannot write {folder}: {error}{kept}") from error


def _load_weights(network: nn.Module, file: Path) -> None:
    weights = read_safetensors(file)
    expected = network.state_dict()
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is not known" for name in weights.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected.keys() & weights.keys()
        if weights[name].shape != expected[name].shape
    ]
    if problems:
        raise ValueError(f"{file}: {'; '.join(sorted(problems)[:5])}")
    network.load_state_dict(weights)


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises ValueError naming the file if it is missing or broken."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error})") from error


def read_json(file: Path) -> dict[str, Any]:
    """The object of a json file. Raises ValueError naming the file if it is missing, broken or no object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{file}: not valid json ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: not a json object")
    return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a json file that is there whole or not at all."""
    temporary = file.with_name(f".{file.name}.partial")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _flush(temporary)
    os.replace(temporary, file)
    _flush(file.parent)


def _flush(path: Path) -> None:
    """Have the file or folder on the disk before anything that relies on it is written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Plain json for a nested value; tensors go into `tensors` and leave their name behind."""
    if isinstance(value, Tensor):
        name = f"{_TENSOR}{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return name
    if isinstance(value, Mapping):
        return {"pairs": [[key, _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_encode(item, tensors) for item in value]
    return value


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return {key: _decode(item, tensors) for key, item in value["pairs"]}
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if isinstance(value, str) and value.startswith(_TENSOR):
        return tensors[value]
    return value
