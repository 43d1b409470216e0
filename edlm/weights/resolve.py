"""The networks of `generate`: folders of runs, folders of large models, or a torchtune builder with files.

A folder with a `config.json` in place of a `network.json` is a large model's, as the hub has it. The word `chain_rule`
in place of an energy's folder is the energy that the denoiser has in itself.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from edlm.contracts import Ordered
from edlm.data.vocabulary import Vocabulary
from edlm.models import energies
from edlm.models.denoisers import SubsDenoiser
from edlm.nn import decoders
from edlm.process import schedules
from edlm.process.schedules import Schedule
from edlm.runs import settings as schemas
from edlm.runs import tables
from edlm.runs.settings import Schema
from edlm.samplers import corrections
from edlm.samplers.autoregressive import Stepped
from edlm.samplers.baselines import Reverse
from edlm.samplers.corrections import Correction
from edlm.weights import checkpoints, formats, kinds, large, loading, memory, pairs, sources, trunk_energies
from edlm.weights import named as named_networks
from edlm.weights.loading import DTYPES, Found, is_large
from edlm.weights.named import CHAIN_RULE, SPECULATIVE
from edlm.weights.sources import LONGEST, How

SETTINGS: Schema = {
    "denoiser": schemas.optional(schemas.text),
    "energy": schemas.optional(schemas.text),
    "ar": sources.AR,
    "ar_form": schemas.choice("posterior", "carry_over"),
    "tokenizer": schemas.optional(schemas.text),
    "precision": schemas.optional(schemas.choice("float32", "bfloat16")),
    "energy_rows": schemas.optional(schemas.integer(1)),
}


class Sources(NamedTuple):
    """The models that a config names, loaded. ar: a model to draw from by itself; beside a denoiser it is in the
    energy.

    bos_id: what the AR model reads in front of a text, None if the first token is given to it; opening: the tokens
    that every text starts with, because nothing predicts them.
    """

    vocabulary: Vocabulary
    schedule: Schedule = schedules.log_linear()
    denoiser: SubsDenoiser | None = None
    correction: Correction | None = None
    ar: Stepped | None = None
    bos_id: int | None = None
    opening: tuple[int, ...] = ()
    baseline: Reverse | None = None  # in the place of a denoiser


def check(settings: Mapping[str, Any]) -> None:
    """Raise ValueError unless the config names a denoiser with at most one correction, or an AR model alone."""
    if settings["denoiser"] is None and settings["ar"] is None:
        raise ValueError("denoiser and ar are both null: name one of them, or both")
    if settings["energy"] is not None and settings["ar"] is not None:
        raise ValueError(
            f"energy = {settings['energy']!r} and ar = {settings['ar']!r} exclude each other: set one to null"
        )
    if settings["energy"] == CHAIN_RULE and is_large(settings["denoiser"]):
        outline = decoders.outline(large.read_diffusion(sources.folder_of(settings["denoiser"]), _longest(settings)))
        if not isinstance(outline, Ordered):
            raise ValueError(
                f"energy = {CHAIN_RULE!r} needs a network that is read in order, as a Transformer or a decoder of "
                f"torchtune is: denoiser = {settings['denoiser']!r} is run by `transformers`"
            )
    if settings["selection"] == SPECULATIVE:
        needed = {"energy": CHAIN_RULE, "target_ess": None, "energy_temperature": 1.0}
        for key, wanted in needed.items():
            if settings[key] != wanted:
                raise ValueError(f"selection = {SPECULATIVE!r} needs {key} = {wanted!r}, not {settings[key]!r}")
    plain_alone = {"energy": None, "nucleus": 1.0, "stride": None, "execution": "eager", "live": False}
    for key, plain in plain_alone.items():
        if settings["denoiser"] is None and settings[key] != plain:
            raise ValueError(f"{key} = {settings[key]!r} needs a denoiser; an AR model alone takes {plain!r}")
    denoiser, ar = is_large(settings["denoiser"]), is_large(settings["ar"])
    alone_ar = ar and settings["denoiser"] is None
    in_rows = ar or (settings["energy_rows"] is not None and denoiser and _over_trunk(settings))
    for key, is_read in {
        "tokenizer": denoiser or alone_ar,
        "energy_rows": in_rows,
        "precision": denoiser or ar,
    }.items():
        if settings[key] is not None and not is_read:
            folder = settings["ar" if key == "energy_rows" else "denoiser"]
            raise ValueError(
                f"{key} = {settings[key]!r} is for large models, and {folder!r} holds no config.json of one"
            )
    if settings["energy_rows"] is not None and settings["execution"] != "eager":  # one graph per number of parts
        raise ValueError(f"execution = {settings['execution']!r} needs energy_rows = null, or must be 'eager'")


def load(settings: Mapping[str, Any], device: torch.device) -> Sources:
    """Load the networks of a config to the device. Raises ValueError naming the folder and what is wrong with it."""
    check(settings)
    path, ours = settings["denoiser"], _ours(settings)
    if "denoiser" in ours:
        named_networks.require_there({"denoiser": path})
        if kinds.held_by(path) is not None:
            _check_baseline(settings)
            held = loading.baseline(path, device)
            return Sources(held.vocabulary, baseline=held.kernel)
    named_networks.require_there(ours)
    if path is None:
        ar = loading.autoregressive(settings["ar"], device, _how(settings))
        return Sources(ar.vocabulary, ar=ar.network, bos_id=ar.description.get("bos_id"))
    if is_large(path):
        known = _longest(settings), settings["tokenizer"], settings["precision"]
        # An energy over its network, and an AR model of ours, read texts as in their training: without what opens them.
        unopened = _over_trunk(settings) or (settings["ar"] is not None and not is_large(settings["ar"]))
        load_large = loading.large_start if unopened else loading.large_denoiser
        loaded = load_large(path, *known, device)
    else:
        loaded = loading.denoiser(path, device)
    found = Sources(loaded.vocabulary, loaded.schedule, loaded.denoiser, opening=loaded.opening)
    assert found.denoiser is not None
    if settings["energy"] == CHAIN_RULE:
        named_networks.require_ordered(path, found.denoiser)
        return found._replace(correction=corrections.ChainRule(settings["energy_temperature"]))
    if settings["energy"] is not None:
        energy, scope = loading.energy(settings["energy"], found.denoiser, found.vocabulary, device, path)
        if settings["energy_rows"] is not None:
            energy.module.network.trunk.rows_at_once = settings["energy_rows"]
        heat = settings["energy_temperature"]
        of_energy = corrections.Joint(heat) if scope == "joint" else corrections.OfEnergy(energy, temperature=heat)
        return found._replace(correction=of_energy)
    return found if settings["ar"] is None else _with_ar(settings, found, loaded, device)


def weights_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Hash the weights of every network of ours that a config names, by key.

    Large models stand for themselves; of a run that adapts one, its newest checkpoint does.
    """
    named_networks.require_there(_ours(settings))
    large_ones = {key: settings[key] for key in ("denoiser", "ar") if isinstance(settings[key], str)}
    found = {key: sources.folder_of(path) for key, path in large_ones.items() if is_large(path)}
    newest = {key: folder.name for key, folder in found.items() if folder != Path(settings[key])}
    return {**newest, **{key: loading.weights_of(path) for key, path in _ours(settings).items()}}


def _ours(settings: Mapping[str, Any]) -> dict[str, str]:
    """Give the folders of our own networks that a config names, by key."""
    named = {key: settings[key] for key in ("denoiser", "energy", "ar")}
    if named["energy"] == CHAIN_RULE:
        del named["energy"]
    return {key: path for key, path in named.items() if path is not None and not is_large(path)}


def _over_trunk(settings: Mapping[str, Any]) -> bool:
    """Check whether a config names an energy over its denoiser's network. Raises ValueError for one that is none."""
    path = settings["energy"]
    if path in (None, CHAIN_RULE):
        return False
    named_networks.require_there({"energy": path})
    return trunk_energies.is_one(path)


def _check_baseline(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for what a baseline is not drawn with."""
    path = settings["denoiser"]
    name = kinds.held_by(path)
    if settings["num_steps"] is None:
        raise ValueError(
            f"num_steps is null: {path!r} holds a baseline ({name}), which is drawn in steps: give a number"
        )
    plain = {"energy": None, "ar": None, "nucleus": 1.0, "temperature": 1.0, "stride": None, "execution": "eager"}
    for key, value in plain.items():
        if settings[key] != value:
            raise ValueError(f"{key} = {settings[key]!r} must be {value!r}: {path!r} holds a baseline ({name})")


def memory_plan(settings: Mapping[str, Any]) -> str | None:
    """Lay out what a step needs of a large denoiser and its energy, from their configs alone; None for others.

    Raises ValueError as `load` does, for what the weights do not decide.
    """
    check(settings)
    if not is_large(settings["denoiser"]) or not (settings["ar"] is None or is_large(settings["ar"])):
        return None
    dtype = DTYPES[settings["precision"]]
    folder = sources.folder_of(settings["denoiser"])
    denoiser = decoders.outline(large.read_diffusion(folder, _longest(settings)), dtype)
    energy, own = None, 0
    if settings["ar"] is not None:
        energy = decoders.outline(sources.read(settings["ar"], _how(settings), denoiser.head.out_features), dtype)
    if _over_trunk(settings):
        file = checkpoints.find_network(settings["energy"]) / formats.WEIGHTS
        energy, own = denoiser, file.stat().st_size  # what was trained is held beside the denoiser
        denoiser.rows_at_once = settings["energy_rows"]
    length = min(settings["length"] or denoiser.max_length, denoiser.max_length)
    rows, k = min(settings["batch_size"], settings["num_samples"]), 1 if energy is None else settings["num_particles"]
    plan = memory.memory_plan(denoiser, energy, rows, k, length, trained=own)
    remarks = {"drafts": f"{rows} texts of {length} tokens, {k} candidates each"}
    table = [(name, f"{size / 1e9:.2f} GB", remarks.get(name, "")) for name, size in plan._asdict().items()]
    at_most = ("at most", f"{plan.peak / 1e9:.2f} GB", "weights, drafts and the largest of the rest; by formula")
    return tables.table([*table, at_most])


def require_plan(settings: Mapping[str, Any]) -> str:
    """Lay out `memory_plan` as a table. Raises ValueError, too, where there is none."""
    plan = memory_plan(settings)
    if plan is None:
        raise ValueError("plan = True is for large models: denoiser, and ar if there is one, from folders of the hub")
    return plan


def _with_ar(settings: Mapping[str, Any], found: Sources, loaded: Found, device: torch.device) -> Sources:
    """Add the residual energy of an AR model against the denoiser."""
    assert found.denoiser is not None
    window = min(settings["length"] or found.denoiser.max_length, found.denoiser.max_length)
    ar = pairs.autoregressive(settings["ar"], loaded, device, _how(settings), window=window)
    opening = (ar.bos_id,) if ar.opened and ar.bos_id is not None else found.opening
    bos_id = None if opening else ar.bos_id  # a text that opens with bos has it in its first place
    carry_over, mask_id = settings["ar_form"] == "carry_over", found.vocabulary.mask_id
    energy = energies.residual_ar(ar.network, mask_id, bos_id, carry_over, loaded.pad_id)
    correction = corrections.OfEnergy(energy, temperature=settings["energy_temperature"])
    return found._replace(correction=correction, bos_id=bos_id, opening=opening)


def _how(settings: Mapping[str, Any]) -> How:
    """Collect how a large AR model is read. tokenizer: of one alone, which is no denoiser's."""
    tokenizer = settings["tokenizer"] if settings["denoiser"] is None else None
    dtype, output = DTYPES[settings["precision"]], sources.output_of(settings)
    return How(settings["length"], settings["energy_rows"], dtype, tokenizer, output)


def _longest(settings: Mapping[str, Any]) -> int:
    return int(settings["length"] or LONGEST)
