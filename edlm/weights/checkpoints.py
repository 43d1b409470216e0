"""Saving and loading: networks as safetensors and json, training state beside them, nothing executed on loading.

A network folder holds `network.json` (class, arguments, what it was trained on, hashes of the other files),
`network.safetensors` and the files of its vocabulary. A run folder holds `checkpoints/step_<n>/`, each a network folder
with the state of its training, `checkpoints/last.json`, which names the newest whole one, and `checkpoints/best.json`,
where a run keeps the best one.
Everything is written under a temporary name first and renamed, so a crash or a full disk leaves the earlier checkpoint
as it was. Checkpoints that no `last.json` names are lost from sight, and are refused; those of a run that was cut off
in its first save are known by `checkpoints/first.json`, which stands there only during that save.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edlm.data.vocabulary import Vocabulary, load_vocabulary
from edlm.nn import networks
from edlm.process import arguments, finite
from edlm.weights import formats, own, permitted, pointers, tensors, whole
from edlm.weights.formats import Format

N = TypeVar("N", networks.Transformer, networks.EnergyNetwork, networks.JointNetwork)
OWN_KEYS = frozenset({"class", "arguments", "vocabulary", tensors.HASHES})  # of `network.json`, which are no notes
_STATE = "training.safetensors"


def save_network(folder: str | Path, network: nn.Module, vocabulary: Vocabulary, notes: Mapping[str, Any]) -> None:
    """Write a network folder that is new.

    Args:
        folder: where it is to be.
        network: of a class that can be saved.
        vocabulary: that it was trained on.
        notes: what else `network.json` keeps (step, corpus, ...).

    Raises:
        ValueError: naming the folder if it cannot be written, with nothing left of it.

    Example:
        >>> import edlm, pathlib, tempfile
        >>> network = edlm.networks.Transformer(3, max_length=8, hidden_size=16, num_layers=1, num_heads=2)
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "network"
        >>> edlm.checkpoints.save_network(folder, network, edlm.vocabulary.characters("ab"), {"step": 5})
        >>> edlm.checkpoints.read_description(folder)["step"]
        5
    """
    whole.write_folder(Path(folder), lambda target: formats.fill_network(target, network, vocabulary, notes))


def load_network(
    path: str | Path, vocabulary: Vocabulary | None = None, verify: bool = True, components: Sequence[str] = ()
) -> nn.Module:
    """Build the network of a network folder, or of the newest checkpoint of a run folder, in eval mode.

    Args:
        path: the folder.
        vocabulary: that it has to be trained on; None: any.
        verify: whether weights and arguments have to be those whose hashes stand in `network.json`.
        components: dotted paths of networks of one's own that the folder may name, and that are executed then.

    Returns:
        The network.

    Raises:
        ValueError: naming the file if it is missing, broken, of an unknown class, with arguments that the class does
            not take, of other shapes than its `network.json` says, changed since it was saved, not of finite floats, or
            trained on another vocabulary than the one given.

    Example:
        >>> import edlm, pathlib, tempfile
        >>> network = edlm.networks.Transformer(3, max_length=8, hidden_size=16, num_layers=1, num_heads=2)
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "network"
        >>> edlm.checkpoints.save_network(folder, network, edlm.vocabulary.characters("ab"), {})
        >>> edlm.checkpoints.load_network(folder).max_length
        8
    """
    folder = find_network(path)
    description = read_description(folder)
    if vocabulary is not None and description["vocabulary"] != vocabulary.fingerprint:
        found = description["vocabulary"]
        raise ValueError(f"{folder} was trained on vocabulary {found}, not {vocabulary.fingerprint}")
    cls = own.find(description["class"], f"{folder}/network.json", components)
    try:
        with torch.device("meta"):  # takes no memory, whatever the arguments say
            outline = cls(**description["arguments"])
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{folder}/network.json: its arguments make no {description['class']} ({error})") from error
    tensors.require_shapes(outline, folder / formats.WEIGHTS)
    bos_id, size = description.get("bos_id"), description["arguments"].get("vocab_size")
    if bos_id is not None and bos_id >= size:
        raise ValueError(f"{folder}/network.json: bos_id = {bos_id} must be an id below vocab_size = {size}")
    weights = tensors.unwrapped(tensors.read_safetensors(folder / formats.WEIGHTS), folder / formats.WEIGHTS)
    if verify:
        formats.verify(folder, description)
    finite.require_weights(weights, folder / formats.WEIGHTS)
    network: Any = cls(**description["arguments"])
    network.load_state_dict(weights)
    if not own.is_ours(network):
        network.component, network.arguments = description["class"], description["arguments"]
    if (folder / Vocabulary.FILES[1]).is_file():
        network.mask_id = load_vocabulary(folder).mask_id  # a denoiser of it has no other
    return network.eval()


def load_as(cls: type[N], path: str | Path, vocabulary: Vocabulary | None = None, verify: bool = True) -> N:
    """Load a network of a known class.

    Args:
        cls: the class that it has to be of.
        path: as for `load_network`, and so are the others.
        vocabulary: see `load_network`.
        verify: see `load_network`.

    Returns:
        The network.

    Raises:
        ValueError: as `load_network` does, and for a network of another class.

    Example:
        >>> import edlm
        >>> edlm.checkpoints.load_as(edlm.networks.Transformer, "nowhere")
        Traceback (most recent call last):
        ValueError: nowhere: no checkpoint there (expected network.json, or checkpoints/last.json of a run)
    """
    network = load_network(path, vocabulary, verify)
    if not isinstance(network, cls):
        raise ValueError(f"{path} holds a network of class {type(network).__name__}, not {cls.__name__}")
    return network


def load_vocabulary_of(path: str | Path, verify: bool = True) -> Vocabulary:
    """Load the vocabulary of a network folder or run folder. Raises ValueError for a file missing, broken or changed.

    Args:
        path: the folder.
        verify: whether its files are compared with their hashes.

    Returns:
        The vocabulary.

    Example:
        >>> import edlm, pathlib, tempfile
        >>> network = edlm.networks.Transformer(3, max_length=8, hidden_size=16, num_layers=1, num_heads=2)
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "network"
        >>> edlm.checkpoints.save_network(folder, network, edlm.vocabulary.characters("ab"), {})
        >>> edlm.checkpoints.load_vocabulary_of(folder).size
        3
    """
    folder = find_network(path)
    found = load_vocabulary(folder)
    if verify:
        tensors.verify(folder, read_description(folder), *Vocabulary.FILES)
    return found


def require_same_vocabulary(first: str | Path, second: str | Path) -> None:
    """Refuse two networks that do not give every text the same ids.

    Args:
        first: a network folder or run folder.
        second: another one.

    Raises:
        ValueError: naming both folders and what differs.

    Example:
        >>> import edlm, pathlib, tempfile
        >>> network = edlm.networks.Transformer(3, max_length=8, hidden_size=16, num_layers=1, num_heads=2)
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "network"
        >>> edlm.checkpoints.save_network(folder, network, edlm.vocabulary.characters("ab"), {})
        >>> edlm.checkpoints.require_same_vocabulary(folder, folder)
    """
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
    """Find the network folder that a path stands for.

    Args:
        path: a network folder, or a run folder.

    Returns:
        The folder itself, or the run's newest checkpoint.

    Raises:
        ValueError: if it is neither.

    Example:
        >>> import edlm
        >>> edlm.checkpoints.find_network("nowhere")
        Traceback (most recent call last):
        ValueError: nowhere: no checkpoint there (expected network.json, or checkpoints/last.json of a run)
    """
    arguments.require_path("path", path)
    path = Path(path)
    if (path / "network.json").is_file():
        return path
    newest = last_checkpoint(path)
    if newest is None:
        raise ValueError(f"{path}: no checkpoint there (expected network.json, or checkpoints/last.json of a run)")
    return newest


def read_description(folder: str | Path) -> dict[str, Any]:
    """Read `network.json`. Nothing it names is called.

    Args:
        folder: of the network.

    Returns:
        Class, arguments, vocabulary fingerprint, hashes and notes.

    Raises:
        ValueError: naming the file, and for a note that names what is not in the tables of `permitted`.

    Example:
        >>> import edlm, pathlib, tempfile
        >>> network = edlm.networks.Transformer(3, max_length=8, hidden_size=16, num_layers=1, num_heads=2)
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "network"
        >>> edlm.checkpoints.save_network(folder, network, edlm.vocabulary.characters("ab"), {})
        >>> edlm.checkpoints.read_description(folder)["class"]
        'Transformer'
    """
    description = whole.read_json(Path(folder) / "network.json")
    missing = OWN_KEYS - {tensors.HASHES} - set(description)
    if missing:
        raise ValueError(f"{folder}/network.json: lacks {', '.join(sorted(missing))}")
    permitted.check_notes(description, f"{folder}/network.json")
    return description


def save_checkpoint(
    run: str | Path,
    step: int,
    network: nn.Module,
    vocabulary: Vocabulary,
    notes: Mapping[str, Any],
    state: Mapping[str, Any],
    keep_last: int = 2,
    best: Mapping[str, float] | None = None,
    form: Format | None = None,
) -> Path:
    """Add `checkpoints/step_<n>` to a run and make it the newest; older ones beyond `keep_last` are removed after.

    Raises ValueError naming the folder, and the checkpoint that is still good, if it cannot be written.

    Args:
        run: the run folder.
        step: n.
        network: as for `save_network`, and so are the next two.
        vocabulary: see `save_network`.
        notes: see `save_network`.
        state: nested dicts and lists of tensors and plain values, the training state.
        keep_last: how many of the newest are kept.
        best: `step` of the best checkpoint and its `loss`, which is kept beside the last ones and named in `best.json`;
            None: as it was.
        form: how the network is kept; None: as `save_network` does.

    Returns:
        The folder of the checkpoint.

    Example:
        >>> import edlm, pathlib, tempfile
        >>> network = edlm.networks.Transformer(3, max_length=8, hidden_size=16, num_layers=1, num_heads=2)
        >>> run = pathlib.Path(tempfile.mkdtemp())
        >>> edlm.checkpoints.save_checkpoint(run, 5, network, edlm.vocabulary.characters("ab"), {}, {"step": 5}).name
        'step_00000005'
    """
    run = Path(run)
    folder, form = run / "checkpoints" / f"step_{step:08d}", form or OWN

    def fill(target: Path) -> None:
        form.fill(target, network, vocabulary, {**notes, "step": step})
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
    """Find the newest whole checkpoint of a run folder.

    Raises ValueError, which says what to do, if `last.json` is damaged, names what is gone, or is missing beside
    checkpoints.

    Args:
        run: the run folder.

    Returns:
        The folder of the checkpoint, None if there is none.

    Example:
        >>> import edlm, tempfile
        >>> print(edlm.checkpoints.last_checkpoint(tempfile.mkdtemp()))
        None
    """
    pointer = Path(run) / "checkpoints" / pointers.LAST
    newest = pointers.pointed(pointer)
    if newest is None:
        pointers.refuse_lost(pointer)
    return newest


def best_checkpoint(run: str | Path) -> Path | None:
    """Find the checkpoint of the least held-out loss; errors as of `last_checkpoint`.

    Args:
        run: the run folder.

    Returns:
        The folder of the checkpoint, None if there is none.

    Example:
        >>> import edlm, tempfile
        >>> print(edlm.checkpoints.best_checkpoint(tempfile.mkdtemp()))
        None
    """
    return pointers.pointed(Path(run) / "checkpoints" / pointers.BEST)


def load_state(folder: str | Path, verify: bool = True) -> dict[str, Any]:
    """Load the training state of a checkpoint, as it was saved.

    Args:
        folder: of the checkpoint.
        verify: whether it has to be what the hashes in `training.json` say.

    Returns:
        The state.

    Raises:
        ValueError: naming the file that is missing, broken or changed.

    Example:
        >>> import edlm, pathlib, tempfile
        >>> network = edlm.networks.Transformer(3, max_length=8, hidden_size=16, num_layers=1, num_heads=2)
        >>> run, vocabulary = pathlib.Path(tempfile.mkdtemp()), edlm.vocabulary.characters("ab")
        >>> edlm.checkpoints.load_state(edlm.checkpoints.save_checkpoint(run, 5, network, vocabulary, {}, {"step": 5}))
        {'step': 5}
    """
    folder = Path(folder)
    file = folder / "training.json"
    record = whole.read_json(file)
    values = tensors.read_safetensors(folder / _STATE)
    if verify:
        tensors.verify(folder, record, _STATE)
        tensors.require_hash(tensors.digest(record.get("state")), tensors.hashes(folder, record).get("state"), file)
    try:
        state = tensors.decode(record["state"], values)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: its key 'state' holds no training state ({_said(error)})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{file}: its key 'state' holds no training state, but {type(state).__name__}")
    return state


def _fill_state(target: Path, state: Mapping[str, Any]) -> None:
    values: dict[str, Tensor] = {}
    encoded = tensors.encode(state, values)
    save_file(values, target / _STATE)
    hashes = {_STATE: tensors.sha256(target / _STATE), "state": tensors.digest(encoded)}
    whole.write_json(target / "training.json", {"state": encoded, tensors.HASHES: hashes})


def _said(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


OWN = Format(formats.fill_network, lambda folder, vocabulary: load_network(folder, vocabulary).state_dict())
