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
from edlm.weights import checkpoints, kinds, loading, trunk_energies
from edlm.weights.loading import Found, is_large

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
    require_same_vocabulary(named)
    length = settings.get("length")
    start = loading.denoiser(named["denoiser"], device, length) if _holds_subs(named) else None
    ids = start.vocabulary if start is not None and is_large(start.path) else None
    found_ar = loading.autoregressive(named["ar"], device, ids, length) if "ar" in named else None
    ar = None if found_ar is None else autoregressive_model(found_ar)
    known = start or found_ar
    vocabulary = checkpoints.load_vocabulary_of(next(iter(named.values()))) if known is None else known.vocabulary
    diffusion, baseline = None, None
    if "denoiser" in named and kinds.held_by(named["denoiser"]) is not None:
        if {"energy", "transition"} & named.keys():
            kinds.require_subs(named["denoiser"])
        baseline = loading.baseline(named["denoiser"], device).kernel
    elif start is not None:
        diffusion = _diffusion(named, start, ar, device)
    own = _joint(named["joint"], device) if "joint" in named else None
    lengths = [each.denoiser.max_length for each in (diffusion, baseline, own) if each is not None]
    lengths += [ar.network.max_length] if ar is not None else []
    records = {key: loading.record_of(path) for key, path in named.items()}
    return Models(vocabulary, min(lengths), diffusion, ar, records, baseline, own)


def autoregressive_model(found: Found) -> Autoregressive:
    """Give an AR model that was loaded with what it reads in front of a text."""
    return Autoregressive(found.network, found.description.get("bos_id"))


def require_there(named: Mapping[str, str]) -> None:
    """Raise ValueError, naming the key and what trains it, for a folder without a network. named: folders by key."""
    for key, path in named.items():
        if is_large(path):
            continue
        try:
            checkpoints.find_network(path)
        except ValueError as error:
            raise ValueError(f"{key} = {error}; `edlm run {NETWORKS[key]}` trains one") from error


def require_ordered(path: str, denoiser: SubsDenoiser) -> None:
    """Raise ValueError for a denoiser whose network is not read in order, and so has no `chain_rule`."""
    network = denoiser.network
    if not isinstance(network, Ordered):
        raise ValueError(
            f"energy {CHAIN_RULE!r} needs a network that is read in order, as a Transformer is: "
            f"denoiser = {path!r} holds one of class {type(network).__name__}"
        )


def _joint(path: str, device: torch.device) -> Diffusion:
    """Load the denoiser of a joint network with its own energy."""
    found = loading.joint(path, device)
    return Diffusion(found.denoiser, found.schedule, {"joint": joint.energy(found.network)})


def _holds_subs(named: Mapping[str, str]) -> bool:
    return "denoiser" in named and kinds.held_by(named["denoiser"]) is None


def require_same_vocabulary(named: Mapping[str, str]) -> None:
    """Raise ValueError, naming two folders, for networks that do not give every text the same ids.

    named: folders by key. Large ones, and energies over a denoiser's network, are compared where the second of them is
    loaded.
    """
    ours = [path for path in named.values() if not is_large(path) and not trunk_energies.is_one(path)]
    for key, path in named.items():
        if is_large(path) and ours:
            raise ValueError(f"{key} = {path!r} holds a large model, which shares no vocabulary with {ours[0]!r}")
    for path in ours:
        checkpoints.require_same_vocabulary(ours[0], path)


def _diffusion(named: Mapping[str, str], start: Found, ar: Autoregressive | None, device: torch.device) -> Diffusion:
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
