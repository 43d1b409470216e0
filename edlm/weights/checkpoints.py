"""Saving and loading: networks as safetensors and json, training state beside them, nothing executed on loading.

A network folder holds `network.json` (class, arguments, what it was trained on, hashes of the other files),
`network.safetensors` and the files of its vocabulary. A run folder holds `checkpoints/step_<n>/`, each a network folder
with the state of its training,
`checkpoints/last.json`, which names the newest whole one, and `checkpoints/best.json`, where a run keeps the best one.
Everything is written under a temporary name first and renamed, so a crash or a full disk leaves the earlier checkpoint
as it was. Checkpoints that no `last.json` names are lost from sight, and are refused; those of a run that was cut off
in its first save are told by `checkpoints/first.json`, which stands there only during that save.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from edlm import limits
from edlm.data.vocabulary import Vocabulary, load_vocabulary
from edlm.nn import networks
from edlm.process import finite
from edlm.weights import permitted, tensors

N = TypeVar("N", networks.Transformer, networks.EnergyNetwork, networks.JointNetwork)
HASHES = "sha256"  # the key of both json files under which hashes stand
OWN_KEYS = frozenset({"class", "arguments", "vocabulary", HASHES})  # of `network.json`, which are no notes
_WEIGHTS, _STATE = "network.safetensors", "training.safetensors"
_FIRST = "first.json"
_STEP = re.compile(r"step_\d{8,}")
_TENSOR = "tensor:"  # prefix of a name that stands for a tensor in the json of a training state


def save_network(folder: Path, network: nn.Module, vocabulary: Vocabulary, notes: Mapping[str, Any]) -> None:
    """Write a network folder that is new; `notes` are kept in `network.json` (step, corpus, ...).

    Raises ValueError naming the folder if it cannot be written, with nothing left of it.
    """
    write_folder(Path(folder), lambda target: _fill_network(target, network, vocabulary, notes))


def load_network(path: str | Path, vocabulary: Vocabulary | None = None, verify: bool = True) -> nn.Module:
    """Build the network of a network folder, or of the newest checkpoint of a run folder, in eval mode.

    verify: whether the weights and the arguments have to be those whose hashes stand in `network.json`.
    Raises ValueError naming the file if it is missing, broken, of an unknown class, with arguments that the class does
    not take, of other shapes than its `network.json` says, changed since it was saved, not of finite floats, or trained
    on another vocabulary than the one given.
    """
    folder = find_network(path)
    description = read_description(folder)
    if vocabulary is not None and description["vocabulary"] != vocabulary.fingerprint:
        found = description["vocabulary"]
        raise ValueError(f"{folder} was trained on vocabulary {found}, not {vocabulary.fingerprint}")
    cls = permitted.NETWORKS.get(str(description["class"]))
    if cls is None:
        known = ", ".join(permitted.NETWORKS)
        raise ValueError(f"{folder}/network.json: class {description['class']!r} is not one of {known}")
    try:
        with torch.device("meta"):  # takes no memory, whatever the arguments say
            outline = cls(**description["arguments"])
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{folder}/network.json: its arguments make no {cls.__name__} ({error})") from error
    _require_shapes(outline, folder / _WEIGHTS)
    weights = tensors.unwrapped(tensors.read_safetensors(folder / _WEIGHTS), folder / _WEIGHTS)
    if verify:
        _verify(folder, description, _WEIGHTS)
        arguments = tensors.digest([description["class"], description["arguments"]])
        tensors.require_hash(arguments, _hashes(folder, description).get("arguments"), folder / "network.json")
    finite.require_weights(weights, folder / _WEIGHTS)
    network = cls(**description["arguments"])
    network.load_state_dict(weights)
    return network.eval()


def load_as(cls: type[N], path: str | Path, vocabulary: Vocabulary | None = None, verify: bool = True) -> N:
    """`load_network` for a network of a known class. Raises ValueError, too, if it is of another."""
    network = load_network(path, vocabulary, verify)
    if not isinstance(network, cls):
        raise ValueError(f"{path} holds a network of class {type(network).__name__}, not {cls.__name__}")
    return network


def load_vocabulary_of(path: str | Path, verify: bool = True) -> Vocabulary:
    """The vocabulary a network folder or run folder was trained with, its files compared with their hashes.

    Raises ValueError naming the file that is missing, broken or changed.
    """
    folder = find_network(path)
    found = load_vocabulary(folder)
    if verify:
        _verify(folder, read_description(folder), *Vocabulary.FILES)
    return found


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
    """Read `network.json`: class, arguments, vocabulary fingerprint, hashes and notes; nothing it names is called.

    Raises ValueError naming the file, and for a note that names what is not in the tables of `permitted`.
    """
    description = read_json(folder / "network.json")
    missing = OWN_KEYS - {HASHES} - set(description)
    if missing:
        raise ValueError(f"{folder}/network.json: lacks {', '.join(sorted(missing))}")
    permitted.check_notes(description, f"{folder}/network.json")
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
        if newest is None:
            _write_first(run / "checkpoints" / _FIRST, folder)
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was cut off before `last.json` named it
        write_folder(folder, fill, still_good=newest)
        _write_pointer(run / "checkpoints" / "last.json", {"folder": folder.name}, folder)
    best_folder = None if best is None else run / "checkpoints" / f"step_{best['step']:08d}"
    (run / "checkpoints" / _FIRST).unlink(missing_ok=True)
    if best is not None and best_folder is not None and best_folder.is_dir():
        _write_pointer(run / "checkpoints" / "best.json", {"folder": best_folder.name, **best}, folder)
    _remove_old(run / "checkpoints", folder.name, keep_last)
    return folder


def last_checkpoint(run: str | Path) -> Path | None:
    """The newest whole checkpoint of a run folder, None if it has none.

    Raises ValueError, which says what to do, if `last.json` is damaged, names what is gone, or is missing beside
    checkpoints.
    """
    pointer = Path(run) / "checkpoints" / "last.json"
    newest = _pointed(pointer)
    if newest is None:
        _refuse_lost(pointer)
    return newest


def best_checkpoint(run: str | Path) -> Path | None:
    """The checkpoint of the least held-out loss, None if none was kept. Raises ValueError as `last_checkpoint` does."""
    return _pointed(Path(run) / "checkpoints" / "best.json")


def load_state(folder: Path, verify: bool = True) -> dict[str, Any]:
    """The training state of a checkpoint, as it was saved.

    verify: whether it has to be what the hashes in `training.json` say. Raises ValueError naming the file that is
    missing, broken or changed.
    """
    file = folder / "training.json"
    record = read_json(file)
    values = tensors.read_safetensors(folder / _STATE)
    if verify:
        _verify(folder, record, _STATE)
        tensors.require_hash(tensors.digest(record.get("state")), _hashes(folder, record).get("state"), file)
    try:
        state = _decode(record["state"], values)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: its key 'state' holds no training state ({_said(error)})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{file}: its key 'state' holds no training state, but {type(state).__name__}")
    return state


def _pointed(pointer: Path) -> Path | None:
    if not os.path.lexists(pointer):
        return None
    try:
        name = read_json(pointer).get("folder")
        if not (isinstance(name, str) and _STEP.fullmatch(name)):
            raise ValueError(f"{pointer}: folder = {name!r} must be the name of a checkpoint")
    except ValueError as error:
        raise ValueError(f"{error}{_remedy(pointer)}") from error
    if not (pointer.parent / name).is_dir():
        raise ValueError(f"{pointer} names {name}, which is not there{_remedy(pointer)}")
    return pointer.parent / name


def _refuse_lost(pointer: Path) -> None:
    """Raise ValueError if checkpoints are there but no `last.json`, unless the first save of the run was cut off."""
    there = _steps_in(pointer.parent)
    first = pointer.with_name(_FIRST)
    cut_off = {str(read_json(first).get("folder"))} if there and first.is_file() else set()
    if set(there) - cut_off:
        raise ValueError(f"{pointer} is missing, and {len(there)} checkpoints are there{_remedy(pointer)}")


def _remedy(pointer: Path) -> str:
    """What to do about a pointer that is lost or damaged."""
    there = _steps_in(pointer.parent)
    if not there:
        return ""
    which = "to go on from the last of those there" if pointer.name == "last.json" else "or the best of those there"
    content = json.dumps({"folder": there[-1]})
    return (
        f": write {content} into {pointer.name} {which} ({', '.join(there[-3:])}), or use another output_dir; nothing "
        "was removed"
    )


def _steps_in(checkpoints: Path) -> list[str]:
    """Names of the checkpoints there, the latest step last."""
    found = [folder.name for folder in checkpoints.glob("step_*") if _STEP.fullmatch(folder.name)]
    return sorted(found, key=lambda name: (len(name), name))


def _write_first(marker: Path, folder: Path) -> None:
    """Say that a run's first save is under way. Raises ValueError naming the folder if nothing can be written there."""
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        write_json(marker, {"folder": folder.name})
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error}") from error


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
    plain: Any = network
    while hasattr(plain, "_orig_mod"):  # what `torch.compile` puts around a network
        plain = plain._orig_mod
    if type(plain).__name__ not in permitted.NETWORKS:
        known = ", ".join(permitted.NETWORKS)
        raise ValueError(f"{target}: only a {known} is saved, and this is a {type(plain).__name__}")
    vocabulary.save(target)
    weights = tensors.unwrapped(plain.state_dict(), target)
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, target / _WEIGHTS)
    saved = {"class": type(plain).__name__, "arguments": plain.arguments, "vocabulary": vocabulary.fingerprint}
    hashes = {name: tensors.sha256(target / name) for name in (_WEIGHTS, *Vocabulary.FILES)}
    hashes["arguments"] = tensors.digest([saved["class"], json.loads(json.dumps(saved["arguments"]))])
    write_json(target / "network.json", {**saved, **notes, HASHES: hashes})


def _fill_state(target: Path, state: Mapping[str, Any]) -> None:
    values: dict[str, Tensor] = {}
    encoded = _encode(state, values)
    save_file(values, target / _STATE)
    hashes = {_STATE: tensors.sha256(target / _STATE), "state": tensors.digest(encoded)}
    write_json(target / "training.json", {"state": encoded, HASHES: hashes})


def _hashes(folder: Path, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The hashes that a json file of the folder holds, none in a folder of an earlier version."""
    found = record.get(HASHES, {})
    if not isinstance(found, dict):
        raise ValueError(f"{folder}: {HASHES} = {found!r} must be a section of hashes by name")
    return found


def _verify(folder: Path, record: Mapping[str, Any], *names: str) -> None:
    """Raise ValueError for the first of these files that is not what its hash in the json file says."""
    hashes = _hashes(folder, record)
    for name in names:
        if name in hashes:
            tensors.require_hash(tensors.sha256(folder / name), hashes[name], folder / name)


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


def _require_shapes(outline: nn.Module, file: Path) -> None:
    """Raise ValueError naming each parameter that the file lacks, has beside, or has in another shape."""
    expected = {name: tuple(value.shape) for name, value in outline.state_dict().items()}
    found = tensors.unwrapped(tensors.shapes(file), file)
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not known" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} has shape {found[name]}, not {expected[name]}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name]
    ]
    if problems:
        raise ValueError(f"{file}: {'; '.join(sorted(problems)[:5])}")


def read_json(file: Path, most: int = limits.JSON_BYTES) -> dict[str, Any]:
    """The object of a json file of at most so many bytes.

    Raises ValueError naming the file if it is missing, broken, larger or no object.
    """
    limits.require_small(file, most)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
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


def _said(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return {key: _decode(item, tensors) for key, item in value["pairs"]}
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if isinstance(value, str) and value.startswith(_TENSOR):
        return tensors[value]
    return value
