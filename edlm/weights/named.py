"""Networks that a config names, ours and large ones, and what a report has to say of each."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from edlm.contracts import Denoiser, Energy, Ordered
from edlm.data.vocabulary import Vocabulary
from edlm.models import chain_rule, energies, joint
from edlm.models.denoisers import SubsDenoiser
from edlm.process.schedules import Schedule
from edlm.samplers import selections
from edlm.samplers.baselines import Reverse
from edlm.samplers.corrections import ChainRule
from edlm.weights import checkpoints, kinds, loading, pairs, sources, trunk_energies
from edlm.weights.loading import Found, is_large
from edlm.weights.sources import How

# The keys of a config that name them, and what trains each.
NETWORKS = {
    "denoiser": "pretrain_denoiser",
    "energy": "edlm_nce",
    "transition": "edlm_nce scope=transition",
    "joint": "edlm_joint",
    "ar": "pretrain_ar",
}
CHAIN_RULE = ChainRule.name  # the energy that a denoiser has in itself, for which nothing is loaded
SPECULATIVE = selections.SPECULATIVE.name  # drawn in order, what weighing by it tends to


class Diffusion(NamedTuple):
    """A denoiser, the schedule it was trained on, and the energies that correct it, by name."""

    denoiser: Denoiser
    schedule: Schedule
    energies: dict[str, Energy]


class Autoregressive(NamedTuple):
    """A causal network and the id in front of a text; None: the first token is given."""

    network: Any
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


def length_of(settings: Mapping[str, Any], models: Models) -> int:
    """Give the length of texts that a config asks for, the longest by default. Raises ValueError for a longer one."""
    length = settings["length"] or models.max_length
    if length > models.max_length:
        raise ValueError(f"length = {length} must lie in 1..{models.max_length}, what the networks take")
    return int(length)


def load(settings: Mapping[str, Any], device: torch.device, wrapped: bool | None = None) -> Models:
    """Load `denoiser`, `energy` and `ar` of a config, and `transition` and `joint` where it has these keys.

    The AR model corrects the denoiser in both of its forms. wrapped: whether texts stand between a bos and an eos;
    None: where the denoiser was trained on such, and the AR model's own texts do not.

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
    require_same_vocabulary(named)
    length = settings.get("length")
    start, baseline = None, None
    if "denoiser" in named and kinds.held_by(named["denoiser"]) is not None:
        if {"energy", "transition"} & named.keys():
            kinds.require_subs(named["denoiser"])
        baseline = loading.baseline(named["denoiser"], device)
    elif "denoiser" in named:
        start = loading.denoiser(named["denoiser"], device, length)
    own = loading.joint(named["joint"], device) if "joint" in named else None
    writes = start or baseline or own  # the vocabulary of all is its
    ar, front, ids = None, None, None if writes is None else writes.vocabulary
    if "ar" in named:
        how = How(length, output=sources.output_of(settings))
        if writes is None:
            alone = loading.autoregressive(named["ar"], device, how)
            ids, ar = alone.vocabulary, autoregressive_model(alone)
        else:
            beside = pairs.autoregressive(named["ar"], writes, device, how, wrapped)
            front = Autoregressive(beside.network, beside.front)
            ar = front if wrapped else Autoregressive(beside.network, beside.bos_id)
    assert ids is not None
    diffusion = None if start is None else _diffusion(named, start, front, device)
    joint_one = None if own is None else Diffusion(own.denoiser, own.schedule, {"joint": joint.energy(own.network)})
    kernel = None if baseline is None else baseline.kernel
    lengths = [each.denoiser.max_length for each in (diffusion, kernel, joint_one) if each is not None]
    lengths += [ar.network.max_length] if ar is not None else []
    records = {key: loading.record_of(path) for key, path in named.items()}
    return Models(ids, min(lengths), diffusion, ar, records, kernel, joint_one)


def autoregressive_model(found: Found) -> Autoregressive:
    """Give an AR model that was loaded with what it reads in front of a text."""
    return Autoregressive(found.network, found.description.get("bos_id"))


def require_there(named: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the key and what trains it, for a folder without a network. named: folders by key."""
    for key, path in named.items():
        if not is_large(path):
            kinds.require_network(key, path, NETWORKS[key])


def require_ordered(path: str, denoiser: SubsDenoiser) -> None:
    """Raise ValueError for a denoiser whose network is not read in order, and so has no `chain_rule`."""
    network = denoiser.network
    if not isinstance(network, Ordered):
        raise ValueError(
            f"energy {CHAIN_RULE!r} needs a network that is read in order, as a Transformer is: "
            f"denoiser = {path!r} holds one of class {type(network).__name__}"
        )


def require_same_vocabulary(named: Mapping[str, Any]) -> None:
    """Raise ValueError, naming two folders, for networks of ours that do not give every text the same ids.

    named: folders by key. An AR model and energies over a denoiser's network are compared where they are loaded. All
    else that is ours shares no vocabulary with a large model.
    """
    ours = {key: path for key, path in named.items() if not is_large(path) and not trunk_energies.is_one(path)}
    others = [path for key, path in ours.items() if key != "ar"]
    for key, path in named.items():
        if key != "ar" and is_large(path) and others:
            raise ValueError(f"{key} = {path!r} holds a large model, which shares no vocabulary with {others[0]!r}")
    for path in ours.values():
        checkpoints.require_same_vocabulary(next(iter(ours.values())), path)


def _diffusion(named: Mapping[str, Any], start: Found, ar: Autoregressive | None, device: torch.device) -> Diffusion:
    """Load every energy there is for a denoiser: its own, those learned, and the AR model's in both forms."""
    ids, pad_id = start.vocabulary, start.pad_id
    denoiser, found = start.denoiser, dict[str, Energy]()
    if isinstance(denoiser.network, Ordered):
        found[CHAIN_RULE] = chain_rule.energy(denoiser)
    for key in ("energy", "transition"):
        if key in named:
            path = named[key]
            if loading.is_joint(path):
                raise ValueError(f"{key} = {path!r} holds a joint network, with its own denoiser: joint={path}")
            found[key], scope = loading.energy(path, denoiser, ids, device, start.path)
            if key == "transition" and scope != key:
                raise ValueError(f"{key} = {path!r} weighs {scope}s and must weigh {key}s: energy={path}")
    if ar is not None:
        for form in ("posterior", "carry_over"):
            carry_over = form == "carry_over"
            found[f"ar, {form}"] = energies.residual_ar(ar.network, ids.mask_id, ar.bos_id, carry_over, pad_id)
    return Diffusion(denoiser, start.schedule, found)
