"""Networks of ours that a config names, and what a report has to say of each."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from tensordict.nn import TensorDictModule

from edlm.contracts import Denoiser, Energy, Ordered
from edlm.data.vocabulary import Vocabulary
from edlm.models import chain_rule, denoisers, energies, joint
from edlm.models.denoisers import SubsDenoiser
from edlm.nn import folding
from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer
from edlm.process.schedules import Schedule
from edlm.samplers.baselines import Reverse
from edlm.training import kinds
from edlm.weights import checkpoints, permitted, tensors
from edlm.weights.checkpoints import N

# The keys of a config that name them, and what trains each.
NETWORKS = {
    "denoiser": "pretrain_denoiser",
    "energy": "edlm_nce",
    "transition": "edlm_nce scope=transition",
    "joint": "edlm_joint",
    "ar": "pretrain_ar",
}
CHAIN_RULE = "chain_rule"  # the energy that a denoiser has in itself, for which nothing is loaded
SPECULATIVE = "speculative"  # drawn in order, what weighing by it tends to


class Diffusion(NamedTuple):
    """A denoiser, the schedule it was trained on, and the energies that correct it, by name."""

    denoiser: Denoiser
    schedule: Schedule
    energies: dict[str, Energy]


class Autoregressive(NamedTuple):
    """A causal network and the id in front of a text; None: the first token is given."""

    network: Transformer
    bos_id: int | None


class Models(NamedTuple):
    """A denoiser with its energies, or a baseline in its place, a joint network and an AR model, over one vocabulary.

    max_length: the longest text that all of them take; records: what each network is, for a report; joint: the denoiser
    of a joint network with the energy of its own, a sampler beside those of the other denoiser; learned: a denoiser
    that was learned, with `chain_rule`, beside the exact one of a source, which has no network.
    """

    vocabulary: Vocabulary
    max_length: int
    diffusion: Diffusion | None
    ar: Autoregressive | None
    records: dict[str, dict[str, Any]]
    baseline: Reverse | None = None
    joint: Diffusion | None = None
    learned: Diffusion | None = None


def load(settings: Mapping[str, Any], device: torch.device) -> Models:
    """Load `denoiser`, `energy` and `ar` of a config, and `transition` and `joint` where it has these keys.

    The AR model corrects the denoiser in both of its forms.

    Raises ValueError if no network that draws texts is named, or an energy has no denoiser, for networks of another
    kind or of another vocabulary, and for a checkpoint that cannot be read.
    """
    named = {key: settings[key] for key in NETWORKS if settings.get(key) is not None}
    if not {"denoiser", "joint", "ar"} & named.keys():
        raise ValueError("denoiser, joint and ar are all null: name one of them, or more")
    for key in ("energy", "transition"):
        if key in named and "denoiser" not in named:
            raise ValueError(f"{key} = {named[key]!r} needs a denoiser to correct")
    require_there(named)
    first = next(iter(named.values()))
    for path in named.values():
        checkpoints.require_same_vocabulary(first, path)
    vocabulary = checkpoints.load_vocabulary_of(first)
    ar = None if "ar" not in named else load_ar(named["ar"], device)
    diffusion, baseline = None, None
    if "denoiser" in named and kinds.held_by(named["denoiser"]) is not None:
        if {"energy", "transition"} & named.keys():
            kinds.require_subs(named["denoiser"])
        baseline = kinds.load(named["denoiser"], device)
    elif "denoiser" in named:
        diffusion = _load_diffusion(named, vocabulary, ar, device)
    own = load_joint(named["joint"], device) if "joint" in named else None
    lengths = [each.denoiser.max_length for each in (diffusion, baseline, own) if each is not None]
    lengths += [ar.network.max_length] if ar is not None else []
    records = {key: _record(path) for key, path in named.items()}
    return Models(vocabulary, min(lengths), diffusion, ar, records, baseline, own)


def require_there(named: Mapping[str, str]) -> None:
    """Raise ValueError, naming the key and what trains it, for a folder without a network. named: folders by key."""
    for key, path in named.items():
        try:
            checkpoints.find_network(path)
        except ValueError as error:
            raise ValueError(f"{key} = {error}; `edlm run {NETWORKS[key]}` trains one") from error


def load_denoiser(path: str, device: torch.device) -> tuple[SubsDenoiser, Schedule]:
    """A denoiser and the schedule it was trained on. Raises ValueError for a network that is none, or a baseline."""
    kinds.require_subs(path)
    description = checkpoints.read_description(checkpoints.find_network(path))
    if "schedule" not in description:
        raise ValueError(f"denoiser = {path!r} holds a network that was not trained as a denoiser")
    schedule = permitted.schedule(description["schedule"], path)
    told = schedule if description["time_conditioning"] else None
    network: torch.nn.Module
    if _is_joint(path):
        network = _network(JointNetwork, path, told, device)
    else:
        network = _network(Transformer, path, told, device)
    return denoisers.subs(network, checkpoints.load_vocabulary_of(path).mask_id, told, schedule), schedule


def require_ordered(path: str, denoiser: SubsDenoiser) -> None:
    """Raise ValueError for a denoiser whose network is not read in order, and so has no `chain_rule`."""
    network = denoiser.network
    if not isinstance(network, Ordered):
        raise ValueError(
            f"energy {CHAIN_RULE!r} needs a network that is read in order, as a Transformer is: "
            f"denoiser = {path!r} holds one of class {type(network).__name__}"
        )


def load_joint(path: str, device: torch.device) -> Diffusion:
    """The denoiser of a joint network with its own energy. Raises ValueError for a network with one head."""
    if not _is_joint(path):
        raise ValueError(f"joint = {path!r} holds a network with one head: `edlm run edlm_joint` trains one with two")
    denoiser, schedule = load_denoiser(path, device)
    return Diffusion(denoiser, schedule, {"joint": joint.energy(denoiser.network)})


def load_ar(path: str, device: torch.device) -> Autoregressive:
    """An AR model. Raises ValueError for a network that is not causal."""
    network = _network(Transformer, path, None, device)
    if not network.arguments["causal"]:
        raise ValueError(f"ar = {path!r} holds a network that is not causal: `edlm run pretrain_ar` trains one")
    return Autoregressive(network, checkpoints.read_description(checkpoints.find_network(path)).get("bos_id"))


def load_energy(
    path: str, denoiser: SubsDenoiser, ids: Vocabulary, device: torch.device
) -> tuple[TensorDictModule, str]:
    """A learned energy of a denoiser, and what it weighs: "draft", "transition", or "joint" for its own network's.

    Raises ValueError for the energy of a joint network beside any denoiser but that network.
    """
    told = denoiser.told
    if _is_joint(path):
        return _own_energy(path, denoiser, ids, device), "joint"
    network = _network(EnergyNetwork, path, told, device, ids)
    scope = checkpoints.read_description(checkpoints.find_network(path)).get("scope", "draft")
    learned = energies.learned_transition if scope == "transition" else energies.learned
    return learned(network, told, ids.pad_id), scope


def _is_joint(path: str) -> bool:
    return bool(checkpoints.read_description(checkpoints.find_network(path))["class"] == JointNetwork.__name__)


def _own_energy(path: str, denoiser: SubsDenoiser, ids: Vocabulary, device: torch.device) -> TensorDictModule:
    """The energy of the network that the denoiser is made of, one set of weights in memory."""
    found, own = _network(JointNetwork, path, None, device, ids), denoiser.network
    weights = found.state_dict()
    same = isinstance(own, JointNetwork) and own.arguments == found.arguments
    if not same or not all(torch.equal(value, weights[name]) for name, value in own.state_dict().items()):
        raise ValueError(f"the energy of {path!r} corrects the denoiser of the same network alone: denoiser={path}")
    return joint.energy(own)


def _load_diffusion(
    named: Mapping[str, str], ids: Vocabulary, ar: Autoregressive | None, device: torch.device
) -> Diffusion:
    """The denoiser and every energy there is for it: its own, those learned, and the AR model's in both forms."""
    denoiser, schedule = load_denoiser(named["denoiser"], device)
    found: dict[str, Energy] = {}
    if isinstance(denoiser.network, Ordered):
        found[CHAIN_RULE] = chain_rule.energy(denoiser)
    for key, wanted in {"energy": "draft", "transition": "transition"}.items():
        if key in named:
            path = named[key]
            if _is_joint(path):
                raise ValueError(f"{key} = {path!r} holds a joint network, with its own denoiser: joint={path}")
            found[key], scope = load_energy(path, denoiser, ids, device)
            if scope != wanted:
                raise ValueError(f"{key} = {path!r} weighs {scope}s and must weigh {wanted}s")
    if ar is not None:
        for form in ("posterior", "carry_over"):
            carry_over = form == "carry_over"
            found[f"ar, {form}"] = energies.residual_ar(ar.network, ids.mask_id, ar.bos_id, carry_over, ids.pad_id)
    return Diffusion(denoiser, schedule, found)


def _network(cls: type[N], path: str, told: Schedule | None, device: torch.device, ids: Vocabulary | None = None) -> N:
    """A network, its conditioning folded into the weights where it is always the same."""
    network = checkpoints.load_as(cls, path, ids)
    return (network if told is not None else folding.fold_conditioning(network)).to(device)


def _record(path: str) -> dict[str, Any]:
    """Where a network came from: its folder, its weights' hash, and all that was written down with it."""
    folder = checkpoints.find_network(path)
    return {
        "folder": str(folder),
        "weights_sha256": tensors.sha256(folder / "network.safetensors"),
        "description": checkpoints.read_description(folder),
    }
