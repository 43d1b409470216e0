"""Networks of ours that a config names, and what a report has to say of each."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from edlm.contracts import Denoiser, Energy, Ordered
from edlm.data.vocabulary import Vocabulary
from edlm.models import chain_rule, energies, joint
from edlm.models.denoisers import SubsDenoiser
from edlm.nn.networks import Transformer
from edlm.process.schedules import Schedule
from edlm.samplers import selections
from edlm.samplers.baselines import Reverse
from edlm.samplers.corrections import ChainRule
from edlm.weights import checkpoints, kinds, loading
from edlm.weights.loading import Found

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
    if loading.is_large(named.get("denoiser")):
        return _of_folder(named, settings, device)
    require_there(named)
    first = next(iter(named.values()))
    for path in named.values():
        checkpoints.require_same_vocabulary(first, path)
    vocabulary = checkpoints.load_vocabulary_of(first)
    ar = autoregressive_model(loading.autoregressive(named["ar"], device)) if "ar" in named else None
    diffusion, baseline = None, None
    if "denoiser" in named and kinds.held_by(named["denoiser"]) is not None:
        if {"energy", "transition"} & named.keys():
            kinds.require_subs(named["denoiser"])
        baseline = loading.baseline(named["denoiser"], device).kernel
    elif "denoiser" in named:
        diffusion = _diffusion(named, vocabulary, ar, device)
    own = _joint(named["joint"], device) if "joint" in named else None
    lengths = [each.denoiser.max_length for each in (diffusion, baseline, own) if each is not None]
    lengths += [ar.network.max_length] if ar is not None else []
    records = {key: loading.record_of(path) for key, path in named.items()}
    return Models(vocabulary, min(lengths), diffusion, ar, records, baseline, own)


def _of_folder(named: Mapping[str, str], settings: Mapping[str, Any], device: torch.device) -> Models:
    """Load a denoiser from a folder as the hub has it, by itself.

    Raises ValueError for another network beside it, and for a model that predicts no first token.
    """
    path = named["denoiser"]
    for key in named.keys() - {"denoiser"}:
        raise ValueError(f"{key} = {named[key]!r} must be null: denoiser = {path!r} is read by itself here")
    found = loading.large_denoiser(path, settings["length"] or loading.LONGEST, None, None, device)
    if found.opening:
        raise ValueError(f"denoiser = {path!r} predicts no first token, so it gives whole texts no probability")
    diffusion = Diffusion(found.denoiser, found.schedule, {})
    records = {"denoiser": loading.record_of(path)}
    return Models(found.vocabulary, found.denoiser.max_length, diffusion, None, records)


def autoregressive_model(found: Found) -> Autoregressive:
    """Give an AR model that was loaded with what it reads in front of a text."""
    return Autoregressive(found.network, found.description.get("bos_id"))


def require_there(named: Mapping[str, str]) -> None:
    """Raise ValueError, naming the key and what trains it, for a folder without a network. named: folders by key."""
    for key, path in named.items():
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


def _diffusion(named: Mapping[str, str], ids: Vocabulary, ar: Autoregressive | None, device: torch.device) -> Diffusion:
    """Load the denoiser and every energy there is for it: its own, those learned, and the AR model's in both forms."""
    start = loading.denoiser(named["denoiser"], device)
    denoiser, found = start.denoiser, dict[str, Energy]()
    if isinstance(denoiser.network, Ordered):
        found[CHAIN_RULE] = chain_rule.energy(denoiser)
    for key, wanted in {"energy": "draft", "transition": "transition"}.items():
        if key in named:
            path = named[key]
            if loading.is_joint(path):
                raise ValueError(f"{key} = {path!r} holds a joint network, with its own denoiser: joint={path}")
            found[key], scope = loading.energy(path, denoiser, ids, device)
            if scope != wanted:
                raise ValueError(f"{key} = {path!r} weighs {scope}s and must weigh {wanted}s")
    if ar is not None:
        for form in ("posterior", "carry_over"):
            carry_over = form == "carry_over"
            found[f"ar, {form}"] = energies.residual_ar(ar.network, ids.mask_id, ar.bos_id, carry_over, ids.pad_id)
    return Diffusion(denoiser, start.schedule, found)
