"""The shared parts of trainings of energies: what a config says, networks that start from a denoiser, and the end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edlm import limits
from edlm.evaluation import contrast, correction, draws
from edlm.evaluation.draws import Draws
from edlm.likelihood.estimates import Estimate
from edlm.models import denoisers, energies
from edlm.models.denoisers import SubsDenoiser
from edlm.nn import starts, trunk_energy
from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer
from edlm.objectives import contrastive, joint, losses, transition
from edlm.runs import files
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.training import denoiser
from edlm.training import settings as training_settings
from edlm.training.sharding import PURE
from edlm.weights import adaptation as folders
from edlm.weights import checkpoints, large, loading, pairs, trunk_energies
from edlm.weights.formats import Format
from edlm.weights.kinds import ENERGIES
from edlm.weights.loading import Found

SETTINGS: Schema = {
    "denoiser": schemas.text,
    "pretrain": schemas.optional(schemas.section(denoiser.MODEL)),
    "dropout": schemas.number(0, 0.9),
    "transition_steps": schemas.span,
    "objective": schemas.choice("nce", "info_nce"),
    "num_negatives": schemas.integer(1),
    "report_particles": schemas.integer(2),
    "samples": schemas.section(correction.SAMPLES),
}
# The AR model whose residual energy is trained, and the form of that energy.
OF_AR: Schema = {
    "ar": schemas.optional(schemas.text),
    "ar_form": schemas.choice("posterior", "carry_over"),
}
# How an energy is built over the network of a denoiser that is no Transformer of ours.
OVER: Schema = {
    "length": schemas.optional(schemas.integer(1)),
    "tokenizer": schemas.optional(schemas.text),
    "trunk": schemas.choice("trained", "frozen"),
    "lora": schemas.optional(schemas.section(training_settings.ADAPTER)),
}
_OF_OURS = {"length": None, "tokenizer": None, "trunk": "trained", "lora": None}
_OF_OTHERS = {"start_from": "denoiser", "embedding": "own", "parallel": "data"}
# What each of `JointPlan.nelbos` is of.
COMPARED = {
    "nelbo": "the joint network as a denoiser",
    "start_nelbo": "the denoiser it started from, same texts and noise",
    "cost": "their difference, text by text",
}


class TrainedAr(NamedTuple):
    """An AR model whose residual energy is trained. weights: the hash of those it begins with; form: how it is kept."""

    network: nn.Module
    bos_id: int | None
    weights: str
    form: Format


class EnergyPlan(NamedTuple):
    """The building and training of an energy against a frozen denoiser, by a config."""

    start: Found
    settings: Mapping[str, Any]
    ar: TrainedAr | None = None  # the model whose residual energy is trained, in the place of a network of its own

    def network(self) -> nn.Module:
        """Build an energy of the denoiser's sizes, with its trunk or embedding where the config says so.

        Over a network that is no Transformer of ours that is a head; of the residual energy of an AR model the model.
        """
        settings, start = self.settings, self.start.network
        if self.ar is not None:
            return self.ar.network
        if not _is_ours(self.start):
            return trunk_energy.over(start, settings["trunk"], adapter_of(settings), settings["dropout"])
        sizes = {key: value for key, value in start.arguments.items() if key not in ("causal", "pad_id", "block_size")}
        network = EnergyNetwork(**{**sizes, "dropout": settings["dropout"]}).to(_device(start))
        if settings["start_from"] == "denoiser":
            starts.start_energy_from(network, start)
        if settings["embedding"] == "shared":
            starts.share_embedding(network, start)
        return network

    def energy(self, network: nn.Module) -> Any:
        """Read a network as the energy of its scope, or as the AR model of a residual energy."""
        if self.ar is not None:
            mask_id, carry_over = self.start.vocabulary.mask_id, self.settings["ar_form"] == "carry_over"
            return energies.residual_ar(network, mask_id, self.ar.bos_id, carry_over, self.start.pad_id)
        return ENERGIES[self.settings["scope"]].build(network, self.start.told, self.start.pad_id)

    def stages(self, network: nn.Module, num_negatives: int) -> Any:
        """Build the training pipeline of a network, against so many draws of the denoiser."""
        settings, start = self.settings, self.start
        parts = start.denoiser, self.energy(network), start.schedule
        how = objective_of(settings), start.pad_id
        if settings["scope"] == "transition":
            return transition.contrastive(*parts, tuple(settings["transition_steps"]), num_negatives, *how)
        return contrastive.contrastive(*parts, num_negatives, settings["time_low"], *how)

    @property
    def form(self) -> Format:
        """The form in which a run keeps the network."""
        if self.ar is not None:
            return self.ar.form
        return checkpoints.OWN if _is_ours(self.start) else trunk_energies.FORM

    @property
    def called(self) -> str:
        """The name of this energy in tables, that of all recipes."""
        if self.ar is not None:
            return str(self.settings["ar_form"])
        return {"draft": "learned"}.get(self.settings["scope"], self.settings["scope"])

    def notes(self, corpus: Any) -> dict[str, Any]:
        """Say what a resumed run must share; scope and embedding where they are not the usual ones."""
        settings = self.settings
        unusual = {key: settings[key] for key in ("scope", "transition_steps") if settings["scope"] != "draft"}
        unusual |= {} if settings["embedding"] == "own" else {"embedding": "shared"}
        own = {key: settings[key] for key in ("objective", "num_negatives", "start_from")}
        if self.ar is not None:
            unusual |= {"ar_form": settings["ar_form"], "ar_weights": self.ar.weights, "bos_id": self.ar.bos_id}
        unusual |= {key: settings[key] for key, plain in _OF_OURS.items() if settings[key] != plain}
        return {**own, **_start_notes(self.start, corpus), "dropout": settings["dropout"], **unusual}


class JointPlan(NamedTuple):
    """The building of a joint network from a denoiser and its training, by a config."""

    start: Found
    settings: Mapping[str, Any]

    def network(self) -> JointNetwork:
        """Build a joint network over the denoiser; what is not trained of it takes no backward pass."""
        settings, start = self.settings, self.start.network
        sizes = {key: value for key, value in start.arguments.items() if key != "causal"}
        own = {"dropout": settings["dropout"], "num_energy_layers": settings["num_energy_layers"]}
        network = JointNetwork(**{**sizes, **own}).to(_device(start))
        starts.start_joint_from(network, start)
        network.denoiser.requires_grad_(settings["denoiser_rate"] > 0.0)
        return network

    def denoiser(self, network: nn.Module) -> SubsDenoiser:
        """Read a network as a denoiser that is told no time."""
        return denoisers.subs(network, self.start.vocabulary.mask_id, schedule=self.start.schedule)

    def nelbos(self, network: nn.Module, drawn: Draws) -> dict[str, Estimate]:
        """Estimate the NELBO of the network and of the denoiser that it started from, and what the energy cost."""
        own, start = self.denoiser(network.eval()), self.start.denoiser
        return draws.compared(own, start, self.start.schedule, drawn, self.start.vocabulary.pad_id)

    def stages(self, network: nn.Module, num_negatives: int) -> Any:
        """Build the training pipeline of a network, against so many draws of its own."""
        settings = self.settings
        return joint.contrastive(
            self.denoiser(network),
            self.start.schedule,
            tuple(settings["transition_steps"]),
            num_negatives,
            settings["nelbo_weight"],
            settings["energy_weight"],
            objective_of(settings),
            self.start.vocabulary.pad_id,
        )

    def notes(self, corpus: Any) -> dict[str, Any]:
        """Say what a resumed run must share."""
        own = ("num_energy_layers", "denoiser_rate", "transition_steps", "objective", "num_negatives")
        told = {key: self.settings[key] for key in (*own, "nelbo_weight", "energy_weight", "dropout")}
        return {**told, **_start_notes(self.start, corpus), "scope": "transition"}


def require_room(settings: Mapping[str, Any], length: int) -> None:
    """Raise ValueError for more drafts than may be in memory at once: of a batch, and of the texts at the end."""
    rows, samples, closing = settings["batch_size"], settings["samples"], settings.get("closing")
    for key in ("num_negatives", "report_particles"):
        limits.require_texts(key, settings[key], length, each_of=rows)
    texts = max(rows, samples["num_samples"])
    limits.require_texts("samples.num_particles", samples["num_particles"], length, each_of=texts)
    if closing is not None:
        limits.require_texts("closing.num_samples", closing["num_samples"], length)
        limits.require_texts("closing.num_completions", closing["num_completions"], length, each_of=rows)


def trained_ar(settings: Mapping[str, Any], start: Found) -> TrainedAr | None:
    """Load the AR model whose residual energy a config trains, None if it names none.

    Raises ValueError for what its training does not read, and a model of another vocabulary.
    """
    path = settings.get("ar")
    if path is None:
        return None
    for key, plain in {"scope": "draft", "embedding": "own"}.items():
        if settings[key] != plain:
            raise ValueError(f"{key} = {settings[key]!r} must be {plain!r}: the energy of ar = {path!r} is trained")
    device = _device(start.network)
    if not loading.is_large(path):
        for key in ("trunk", "lora"):
            if settings[key] != _OF_OURS[key]:
                raise ValueError(f"{key} = {settings[key]!r} is for large models: all of ar = {path!r} is trained")
        held = loading.autoregressive(path, device)
        pairs.require_trainable(path, start, held.network)
        return TrainedAr(held.network, held.description.get("bos_id"), held.weights, checkpoints.OWN)
    if settings["trunk"] == "frozen" and settings["lora"] is None:
        raise ValueError(f"trunk = 'frozen' trains nothing of ar = {path!r}: give lora, or trunk=trained")
    known = start.network.max_length, start.vocabulary, adapter_of(settings)
    found = folders.start_causal(large.hub_folder(path) or path, *known)
    pairs.require_trainable(path, start, found.network)
    return TrainedAr(found.network.to(device), pairs.front(path, start, found.network), found.weights, found.form)


def adapter_of(settings: Mapping[str, Any]) -> tuple[int, float] | None:
    """Give rank and alpha of the adapters that a config asks for, None if it asks for none."""
    found = settings["lora"]
    return None if found is None else (found["rank"], found["alpha"])


def plan(settings: Mapping[str, Any], start: Found) -> EnergyPlan:
    """Plan the training of an energy.

    Raises ValueError as `check` and `trained_ar` do, and for one of whole drafts of a denoiser of blocks, which draws
    none.
    """
    check(settings, start.path, _is_ours(start))
    if settings["scope"] == "draft" and start.denoiser.block_size is not None:
        raise ValueError(f"scope = 'draft' must be transition: denoiser = {start.path!r} draws block after block")
    return EnergyPlan(start, settings, trained_ar(settings, start))


def check(settings: Mapping[str, Any], path: str, ours: bool) -> None:
    """Raise ValueError for a setting that is not read beside such a denoiser. ours: it is a Transformer of ours."""
    beside = {"trunk", "lora"} if loading.is_large(settings.get("ar")) else set()  # those are of the AR model
    for key, plain in (_OF_OURS if ours else _OF_OTHERS).items():
        if settings[key] != plain and not (ours and key in beside):
            held = "a Transformer of ours" if ours else "no Transformer of ours"
            shown = "null" if plain is None else plain
            raise ValueError(f"{key} = {settings[key]!r} must be {shown}: denoiser = {path!r} holds {held}")
    if not ours and settings["precision"] == PURE:
        raise ValueError(f"precision = {PURE!r} must be bfloat16 or float32: an energy over {path!r} is not rounded")


def require_trained(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for weights and rates of a joint network by which nothing of it would be trained."""
    if settings["energy_weight"] == 0 == settings["nelbo_weight"] * settings["denoiser_rate"]:
        raise ValueError(
            "energy_weight = 0 and nelbo_weight or denoiser_rate = 0: nothing would be trained; give energy_weight"
        )


def require_joinable(path: str) -> None:
    """Raise ValueError for a large model, over which no joint network can be built."""
    if loading.is_large(path):
        raise ValueError(
            f"denoiser = {path!r} holds a large model, and a joint network begins as a Transformer of ours, with "
            "blocks of ours behind it: `edlm run edlm_nce` trains an energy over the model itself"
        )


def require_untold(start: Found) -> None:
    """Raise ValueError for a denoiser that is told the time, over which no joint network can be built."""
    if not _is_ours(start):
        raise ValueError(
            f"denoiser = {start.path!r} holds a {type(start.network).__name__}, and a joint network begins as a "
            "Transformer of ours: `edlm run edlm_nce` trains an energy over it"
        )
    if start.description["time_conditioning"]:
        raise ValueError(f"denoiser = {start.path!r} must be one that is told no time: time_conditioning: false")


def objective_of(settings: Mapping[str, Any]) -> Any:
    """Give the loss of a contrast that a config names."""
    return getattr(losses, settings["objective"])


def held_out(plan: EnergyPlan | JointPlan, network: nn.Module, drawn: Draws) -> dict[str, Tensor]:
    """Measure an energy on draws, against as many drafts as its training or `report_particles` take.

    Of a joint network the rows count in which a step reveals anything.
    """
    settings = plan.settings
    stages = plan.stages(network, max(settings["report_particles"], settings["num_negatives"])).eval()
    return contrast.held_out(stages, drawn, settings, only_new=isinstance(plan, JointPlan))


def conclude(
    folder: Path,
    settings: Mapping[str, Any],
    report: Mapping[str, Any],
    tables: Sequence[str],
    what: tuple[str, str],
    texts: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the report and the samples, if any, to the run's folder, and print them with where all is.

    what: the names of the trained network and of what it started from.
    """
    files.write_json(folder / files.REPORT, {"settings": dict(settings), **report})
    if texts:
        files.write_jsonl(folder / "samples.jsonl", texts)
    print(f"\nheld-out text (test split, seed {settings['seed']}):")
    print("\n\n".join(tables))
    if report["warning"] is not None:
        print(f"  {report['warning']}")
    for text in texts:
        print(f"\n  sample {text['row']}, energy {text['energy']}:\n    {text['text']}")
    print(f"\n  {what[0]}, figures and log: {folder}\n  {what[1]}: {settings['denoiser']}")


def _start_notes(start: Found, corpus: Any) -> dict[str, Any]:
    """Say which denoiser and which corpus an energy is trained on."""
    return {
        "corpus": corpus.fingerprint,
        "schedule": start.description["schedule"],
        "time_conditioning": start.description["time_conditioning"],
        "denoiser_step": start.description.get("step"),
        "denoiser_weights": start.weights,
    }


def _is_ours(start: Found) -> bool:
    return isinstance(start.network, Transformer)


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
