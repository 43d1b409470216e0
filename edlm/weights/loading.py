"""Networks that a config names, loaded: ours, baselines and folders of large models, with one description of each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict.nn import TensorDictModule

from edlm.data.vocabulary import Vocabulary
from edlm.models import denoisers
from edlm.models.denoisers import SubsDenoiser
from edlm.nn import decoders, folding
from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer
from edlm.process import schedules
from edlm.process.schedules import Schedule
from edlm.samplers.baselines import Reverse
from edlm.weights import checkpoints, kinds, large, permitted, pretrained, sources, tensors, trunk_energies, whole
from edlm.weights.kinds import ENERGIES, READINGS
from edlm.weights.sources import LONGEST, PLAIN, How, Source

_EXACT = {permitted.COMPONENT: "edlm.schedules.log_linear"}  # the masking process of a large denoiser
DTYPES = {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16}


class Found(NamedTuple):
    """A network that a config names, and what its folder says of it.

    kind: one of `kinds.READINGS` or `kinds.ENERGIES`, or "ar". schedule: what a model of diffusion was trained on.
    opening: the tokens that every text starts with, because nothing predicts them.
    """

    kind: str
    path: str
    network: Any
    vocabulary: Vocabulary
    description: Mapping[str, Any]
    schedule: Schedule = schedules.log_linear()
    opening: tuple[int, ...] = ()

    @property
    def told(self) -> Schedule | None:
        """The schedule if the network is told the time, else None."""
        return self.schedule if self.description.get("time_conditioning") else None

    @property
    def pad_id(self) -> int | None:
        """Give the id that fills a block and counts nowhere; None for large models, which draw theirs to end a text."""
        return None if is_large(self.path) else self.vocabulary.pad_id

    @property
    def denoiser(self) -> SubsDenoiser:
        """The network as a denoiser with a reveal plan."""
        return denoisers.subs(self.network, self.vocabulary.mask_id, self.told, self.schedule)

    @property
    def kernel(self) -> Reverse:
        """The network as the sampler of a baseline."""
        reading = READINGS[self.kind]
        assert reading.kernel is not None
        return reading.kernel(reading.build(self.network, self.vocabulary.mask_id, self.told), self.schedule)

    @property
    def weights(self) -> str:
        """The hash of the weights' file."""
        return weights_of(self.path)


def weights_of(source: Source) -> str:
    """Hash the weights of a network of ours, or of all files of a large one's."""
    if is_large(source):
        return tensors.digest({file.name: tensors.sha256(file) for file in sources.files_of(source)})
    return tensors.sha256(checkpoints.find_network(str(source)) / "network.safetensors")


def record_of(source: Source) -> dict[str, Any]:
    """Say where a network came from: its folder, its weights' hash, and all that was written down with it."""
    if not isinstance(source, str):
        folder, description = sources.folder_of(source), dict(source)
    elif is_large(source):
        folder = sources.folder_of(source)
        description = whole.read_json(folder / "config.json")
    else:
        folder = checkpoints.find_network(source)
        description = checkpoints.read_description(folder)
    return {"folder": str(folder), "weights_sha256": weights_of(source), "description": description}


def as_saved(path: str, device: torch.device, length: int | None = None) -> Found:
    """Load whatever network a folder holds, each weight as it was saved: no conditioning is folded.

    length: the longest text of a large model. Raises ValueError for a folder without a network, and as the loaders of
    its kind do.
    """
    if is_large(path):
        return autoregressive(path, device, How(length)) if _is_causal(path) else denoiser(path, device, length)
    description = _description_of(path)
    cls: Any
    if description["class"] == EnergyNetwork.__name__:
        kind, cls = description.get("scope", "draft"), EnergyNetwork
    elif description["arguments"].get("causal"):
        kind, cls = "ar", Transformer
    else:
        kind, cls = kinds.held_by(path) or kinds.SUBS, JointNetwork if is_joint(path) else Transformer
    network = _network(cls, path, None, device, fold=False)
    found = Found(kind, path, network, checkpoints.load_vocabulary_of(path), description)
    return found._replace(schedule=_schedule_of(path)) if kind in READINGS else found


def denoiser(path: str, device: torch.device, length: int | None = None) -> Found:
    """Load a denoiser of ours, that of a joint network, or a large model's of at most `length` tokens.

    Conditioning that is always the same goes into the weights. Raises ValueError for a network that is none, or a
    baseline.
    """
    if is_large(path):
        longest = length or LONGEST
        return _read_from_bos(large_denoiser(path, longest + 1, None, None, device), longest)
    kinds.require_subs(path)
    schedule = _schedule_of(path)
    return _found(kinds.SUBS, JointNetwork if is_joint(path) else Transformer, path, schedule, device)


def frozen(path: str, device: torch.device) -> Found:
    """Load a denoiser of ours as it was trained, without gradients, for another network to start from.

    Raises ValueError as `denoiser` does, and for a joint network.
    """
    kinds.require_subs(path)
    found = _found(kinds.SUBS, Transformer, path, _schedule_of(path), device, fold=False)
    found.network.requires_grad_(False)
    return found


def large_start(
    path: str, length: int | None, tokenizer: str | None, precision: str | None, device: torch.device
) -> Found:
    """Load a large denoiser for an energy over its network, without gradients; see `large_denoiser`.

    What opens a text is read in front of it, and is not one of its `length` tokens.
    """
    longest = length or LONGEST
    found = _read_from_bos(large_denoiser(path, longest + 1, tokenizer, precision, device), longest)
    found.network.requires_grad_(False)
    return found._replace(description={"schedule": _EXACT, "time_conditioning": False})


def baseline(path: str, device: torch.device) -> Found:
    """Load a baseline. Raises ValueError for a folder that holds none."""
    name = kinds.held_by(path)
    if name is None:
        raise ValueError(f"denoiser = {path!r} holds no baseline")
    return _found(name, Transformer, path, _schedule_of(path), device)


def joint(path: str, device: torch.device) -> Found:
    """Load a joint network. Raises ValueError for a network with one head."""
    if not is_joint(path):
        raise ValueError(f"joint = {path!r} holds a network with one head: `edlm run edlm_joint` trains one with two")
    return denoiser(path, device)


def autoregressive(source: Source, device: torch.device, how: How = PLAIN) -> Found:
    """Load an AR model of ours by itself, or a large one, whose ids get a mask behind them.

    Raises ValueError for a network that is not causal.
    """
    if is_large(source):
        return _large_ar(source, device, how)
    path = str(source)
    network = _network(Transformer, path, None, device)
    if not network.arguments.get("causal"):
        raise ValueError(f"ar = {path!r} holds a network that is not causal: `edlm run pretrain_ar` trains one")
    network = folding.fold_conditioning(network)
    return Found("ar", path, network, checkpoints.load_vocabulary_of(path), _description_of(path))


def energy(
    path: str, denoiser: SubsDenoiser, ids: Vocabulary, device: torch.device, over: str | None = None
) -> tuple[TensorDictModule, str]:
    """Load a learned energy of a denoiser, and what it weighs: a key of `kinds.ENERGIES`.

    over: the denoiser's folder, which an energy over its network needs. Raises ValueError for such an energy, and for
    that of a joint network, beside any denoiser but its own.
    """
    kind = "joint" if is_joint(path) else _description_of(path).get("scope", "draft")
    cls, build = ENERGIES[kind]
    told = None if kind == "joint" else denoiser.told
    if trunk_energies.is_one(path):
        if over is None:
            raise ValueError(f"energy = {path!r} is over the network of its denoiser: say which folder that is from")
        known = denoiser.network, weights_of(over), ids, device
        return build(trunk_energies.load(path, *known), told, None if is_large(over) else ids.pad_id), kind
    network: Any = _network(cls, path, told, device, ids)
    if kind == "joint":  # one set of weights in memory
        _require_same_network(path, network, denoiser.network)
        network = denoiser.network
    return build(network, told, ids.pad_id), kind


def large_denoiser(path: str, length: int, tokenizer: str | None, precision: str | None, device: torch.device) -> Found:
    """Load a diffusion model, a masked language model or what `edlm run adapt` has made, on the exact masking process.

    A text of Dream opens with bos: nothing predicts a first token. Raises ValueError for a config without one.
    """
    folder = large.hub_folder(path) or Path(path)
    blueprint = large.read_diffusion(folder, length)
    vocabulary = large.load_vocabulary(folder, tokenizer)
    network = decoders.load(blueprint, DTYPES[precision]).to(device)
    # A bos that a network reads itself opens every text.
    unopened = network.shifted and getattr(network, "bos_id", None) is None
    if unopened and vocabulary.bos_id is None:
        raise ValueError(
            f"{folder}/config.json: bos_token_id is missing, and nothing else can open a text of this model"
        )
    opening = (vocabulary.bos_id,) if unopened and vocabulary.bos_id is not None else ()
    return Found(kinds.SUBS, path, network, vocabulary, {}, opening=opening)


def is_large(source: Any) -> bool:
    """Check whether a config names a large model: a folder as the hub has it, or a section with a builder."""
    if not isinstance(source, str):
        return isinstance(source, dict)
    return large.hub_folder(source) is not None


def is_joint(path: str) -> bool:
    """Check whether a folder holds a joint network."""
    return bool(_description_of(path)["class"] == JointNetwork.__name__)


def _is_causal(path: str) -> bool:
    """Check whether a large model's folder holds an autoregressive model that nobody made a denoiser of."""
    folder = large.hub_folder(path) or Path(path)
    known = whole.read_json(folder / "config.json").get("model_type") in pretrained.CAUSAL
    return known and large.adapted_by(folder) is None


def _read_from_bos(found: Found, longest: int) -> Found:
    """Have a model whose texts open with a bos read it in front of them instead: the same law, of one token less."""
    network = found.network
    if found.opening:
        network.bos_id, network.max_length = found.opening[0], network.max_length - 1
    network.max_length = min(network.max_length, longest)
    return found._replace(opening=())


def _large_ar(source: Source, device: torch.device, how: How) -> Found:
    folder = sources.folder_of(source)
    ids = large.load_vocabulary(folder, how.tokenizer, add_mask=True)
    network = decoders.load(sources.read(source, how, ids.size), how.dtype).to(device)
    return Found("ar", str(folder), network, ids, {"bos_id": ids.bos_id})


def _found(kind: str, cls: Any, path: str, schedule: Schedule, device: torch.device, fold: bool = True) -> Found:
    description = _description_of(path)
    told = schedule if description["time_conditioning"] else None
    network = _network(cls, path, told, device, fold=fold)
    return Found(kind, path, network, checkpoints.load_vocabulary_of(path), description, schedule)


def _network(
    cls: Any,
    path: str,
    told: Schedule | None,
    device: torch.device,
    ids: Vocabulary | None = None,
    fold: bool = True,
) -> Any:
    """Load a network, its conditioning folded into the weights where it is always the same."""
    own = cls is Transformer and _description_of(path)["class"] not in permitted.NETWORKS  # by its owner's word
    network: Any = checkpoints.load_network(path, ids) if own else checkpoints.load_as(cls, path, ids)
    return (folding.fold_conditioning(network) if fold and told is None and not own else network).to(device)


def _schedule_of(path: str) -> Schedule:
    """Build the schedule that a denoiser was trained on. Raises ValueError for a network that is none."""
    description = _description_of(path)
    if "schedule" not in description:
        raise ValueError(f"denoiser = {path!r} holds a network that was not trained as a denoiser")
    return permitted.schedule(description["schedule"], path)


def _description_of(path: str) -> dict[str, Any]:
    return checkpoints.read_description(checkpoints.find_network(path))


def _require_same_network(path: str, found: Any, own: Any) -> None:
    """Raise ValueError unless a joint network is that of the denoiser, weight by weight."""
    weights = found.state_dict()
    same = isinstance(own, JointNetwork) and own.arguments == found.arguments
    if not same or not all(torch.equal(value, weights[name]) for name, value in own.state_dict().items()):
        raise ValueError(f"the energy of {path!r} corrects the denoiser of the same network alone: denoiser={path}")
