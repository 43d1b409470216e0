"""Saving and loading: networks as safetensors and json, training state beside them, nothing executed on loading.

A network folder holds `network.json` (class, arguments, what it was trained on, hashes of the other files),
`network.safetensors` and the files of its vocabulary. A run folder holds `checkpoints/step_<n>/`, each a network folder
with the state of its training,
`checkpoints/last.json`, which names the newest whole one, and `checkpoints/best.json`, where a run keeps the best one.
Everything is written under a temporary name first and renamed, so a crash or a full disk leaves the earlier checkpoint
as it was. Checkpoints that no `last.json` names are lost from sight, and are refused; those of a run that was cut off
in its first save are known by `checkpoints/first.json`, which stands there only during that save.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edlm.data.vocabulary import Vocabulary, load_vocabulary
from edlm.nn import networks
from edlm.process import finite
from edlm.weights import permitted, pointers, tensors, whole

N = TypeVar("N", networks.Transformer, networks.EnergyNetwork, networks.JointNetwork)
HASHES = "sha256"  # the key of both json files under which hashes stand
OWN_KEYS = frozenset({"class", "arguments", "vocabulary", HASHES})  # of `network.json`, which are no notes
_WEIGHTS, _STATE = "network.safetensors", "training.safetensors"
_TENSOR = "tensor:"  # prefix of a name that stands for a tensor in the json of a training state


def save_network(folder: Path, network: nn.Module, vocabulary: Vocabulary, notes: Mapping[str, Any]) -> None:
    """Write a network folder that is new; `notes` are kept in `network.json` (step, corpus, ...).

    Raises ValueError naming the folder if it cannot be written, with nothing left of it.
    """
    whole.write_folder(Path(folder), lambda target: _fill_network(target, network, vocabulary, notes))


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
    bos_id, size = description.get("bos_id"), description["arguments"].get("vocab_size")
    if bos_id is not None and bos_id >= size:
        raise ValueError(f"{folder}/network.json: bos_id = {bos_id} must be an id below vocab_size = {size}")
    weights = tensors.unwrapped(tensors.read_safetensors(folder / _WEIGHTS), folder / _WEIGHTS)
    if verify:
        _verify(folder, description, _WEIGHTS, *(name for name in Vocabulary.FILES if (folder / name).is_file()))
        arguments = tensors.digest([description["class"], description["arguments"]])
        tensors.require_hash(arguments, _hashes(folder, description).get("arguments"), folder / "network.json")
    finite.require_weights(weights, folder / _WEIGHTS)
    network = cls(**description["arguments"])
    network.load_state_dict(weights)
    return network.eval()


def load_as(cls: type[N], path: str | Path, vocabulary: Vocabulary | None = None, verify: bool = True) -> N:
    """Load a network of a known class as `load_network` does. Raises ValueError, too, if it is of another."""
    network = load_network(path, vocabulary, verify)
    if not isinstance(network, cls):
        raise ValueError(f"{path} holds a network of class {type(network).__name__}, not {cls.__name__}")
    return network


def load_vocabulary_of(path: str | Path, verify: bool = True) -> Vocabulary:
    """Load the vocabulary of a network folder or run folder, its files compared with their hashes.

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
    """Find the network folder that a path stands for: itself, or a run's newest checkpoint; ValueError if neither."""
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
    description = whole.read_json(folder / "network.json")
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
            pointers.write_first(run / "checkpoints" / pointers.FIRST, folder)
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was cut off before `last.json` named it
        whole.write_folder(folder, fill, still_good=newest)
        pointers.write_pointer(run / "checkpoints" / pointers.LAST, {"folder": folder.name}, folder)
    best_folder = None if best is None else run / "checkpoints" / f"step_{best['step']:08d}"
    (run / "checkpoints" / pointers.FIRST).unlink(missing_ok=True)
    if best is not None and best_folder is not None and best_folder.is_dir():
        pointers.write_pointer(run / "checkpoints" / pointers.BEST, {"folder": best_folder.name, **best}, folder)
    pointers.remove_old(run / "checkpoints", folder.name, keep_last)
    return folder


def last_checkpoint(run: str | Path) -> Path | None:
    """Find the newest whole checkpoint of a run folder, None if it has none.

    Raises ValueError, which says what to do, if `last.json` is damaged, names what is gone, or is missing beside
    checkpoints.
    """
    pointer = Path(run) / "checkpoints" / pointers.LAST
    newest = pointers.pointed(pointer)
    if newest is None:
        pointers.refuse_lost(pointer)
    return newest


def best_checkpoint(run: str | Path) -> Path | None:
    """Find the checkpoint of the least held-out loss, None if there is none; errors as of `last_checkpoint`."""
    return pointers.pointed(Path(run) / "checkpoints" / pointers.BEST)


def load_state(folder: Path, verify: bool = True) -> dict[str, Any]:
    """Load the training state of a checkpoint, as it was saved.

    verify: whether it has to be what the hashes in `training.json` say. Raises ValueError naming the file that is
    missing, broken or changed.
    """
    file = folder / "training.json"
    record = whole.read_json(file)
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
    whole.write_json(target / "network.json", {**saved, **notes, HASHES: hashes})


def _fill_state(target: Path, state: Mapping[str, Any]) -> None:
    values: dict[str, Tensor] = {}
    encoded = _encode(state, values)
    save_file(values, target / _STATE)
    hashes = {_STATE: tensors.sha256(target / _STATE), "state": tensors.digest(encoded)}
    whole.write_json(target / "training.json", {"state": encoded, HASHES: hashes})


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
