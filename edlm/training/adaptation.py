"""A denoiser made of an earlier model: what a config says of it, its network, its pipeline, its bound."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edlm.data.pieces import Blocks, Rows
from edlm.data.vocabulary import Vocabulary
from edlm.evaluation import draws
from edlm.models import denoisers
from edlm.models.denoisers import SubsDenoiser
from edlm.nn.networks import Transformer
from edlm.nn.pretrained import VocabularyHead
from edlm.objectives import blocks, denoising
from edlm.process import schedules
from edlm.runs import settings as schemas
from edlm.runs.settings import Schema
from edlm.training import log, texts
from edlm.training import settings as training_settings
from edlm.weights import adaptation, checkpoints, kinds, large, loading
from edlm.weights.formats import Format

SETTINGS: Schema = {
    "start_from": schemas.text,
    "tokenizer": schemas.optional(schemas.text),
    "length": schemas.integer(1),
    "shifted": schemas.optional(schemas.flag),
    "lora": schemas.optional(schemas.section(training_settings.ADAPTER)),
    "opening_steps": schemas.omissible(schemas.optional(schemas.integer(1))),
    **training_settings.WITHOUT_TIMES,
}
SCHEDULE = {"_component_": "edlm.schedules.log_linear"}
_ROWS = 4096  # blocks whose ids are looked at together


class Plan(NamedTuple):
    """The network to adapt with all that its training takes: ids, the form of its checkpoints, where it comes from."""

    network: nn.Module
    vocabulary: Vocabulary
    pad_id: int | None
    form: Format
    weights: str
    settings: Mapping[str, Any]

    def denoiser(self, network: nn.Module) -> SubsDenoiser:
        """Read a network as a denoiser that is told no time."""
        return denoisers.subs(network, self.vocabulary.mask_id)

    def stages(self, network: nn.Module) -> Any:
        """Build the training pipeline of a network, in its blocks where it has some."""
        denoiser = self.denoiser(network)
        if denoiser.block_size is not None:
            return blocks.denoising(denoiser, schedules.log_linear(), (0.0, 1.0), "by_count", self.pad_id)
        return denoising.denoising(
            denoiser,
            schedules.log_linear(),
            pad_id=self.pad_id,
            noise_levels="by_count",
            opening_steps=self.settings.get("opening_steps"),
        )

    def bound(self, network: nn.Module) -> draws.Score:
        """Give the score of a network by its continuous-time NELBO."""
        return draws.continuous(self.denoiser(network), schedules.log_linear())

    def texts(self, network: nn.Module) -> log.Texts:
        """Draw a few texts of a network."""
        return texts.denoiser_texts(self.denoiser(network), self.vocabulary, self.settings["seed"])

    def bytes_per_token(self, blocks: Rows, rows: int) -> float:
        """Count the bytes that a token spells, on average over so many blocks."""
        some = blocks[torch.arange(min(rows, len(blocks)))]
        return sum(len(text.encode()) for text in self.vocabulary.decode(some)) / some.numel()

    def require_possible(self, split: Blocks) -> None:
        """Raise ValueError, naming it, for a token that the network never draws: its loss would be infinite."""
        head: Any = self.network.head
        if not isinstance(head, VocabularyHead) or head.is_plain:
            return
        never = head.barred.cpu()
        parts = ((name, part) for name, rows in split._asdict().items() for part in _parts(rows))
        for name, ids in parts:
            found = ids[never[ids]]
            if len(found):
                token = self.vocabulary.tokenizer.id_to_token(int(found[0]))
                raise ValueError(f"corpus: a text of {name} holds {token!r}, a token that the model never draws")

    def notes(self, corpus: Any) -> dict[str, Any]:
        """Say what a resumed run must share, which its checkpoints keep."""
        in_blocks = self.denoiser(self.network).block_size is not None
        own = {key: self.settings[key] for key in ("length", "shifted", "lora")}
        if self.settings.get("opening_steps") is not None:
            own["opening_steps"] = self.settings["opening_steps"]
        trained = {
            "objective": "nelbo of blocks" if in_blocks else "nelbo",
            "schedule": SCHEDULE,
            "time_conditioning": False,
        }
        return {**trained, "corpus": corpus.fingerprint, "start_from": self.weights, **own}


def plan(settings: Mapping[str, Any]) -> Plan:
    """Read what a config starts from, and make a denoiser of it: of a large model's folder, or of one of ours.

    Raises ValueError naming the folder, or the setting, and what does not fit.
    """
    path, adapter, opening = settings["start_from"], settings["lora"], settings.get("opening_steps")
    if opening is not None and opening > settings["steps"]:
        raise ValueError(
            f"opening_steps = {opening} must be at most steps = {settings['steps']}: attention opens in them"
        )
    folder = large.hub_folder(path)
    if folder is None:
        return _of_ours(settings)
    if settings["parallel"] != "data":
        raise ValueError(f"parallel = {settings['parallel']!r} must be 'data': {path!r} is a large model's")
    if opening is not None and adaptation.predicts_masks(folder):
        raise ValueError(f"opening_steps = {opening} must be null: attention of {path!r} is open already")
    ranks = None if adapter is None else (adapter["rank"], adapter["alpha"])
    found = adaptation.start(folder, settings["length"], settings["shifted"], settings["tokenizer"], ranks)
    resolved = {**settings, "shifted": found.network.shifted}
    return Plan(found.network, found.vocabulary, None, found.form, found.weights, resolved)  # its padding ends texts


def _parts(rows: Rows) -> Iterator[Tensor]:
    """Give the blocks of a split, some thousands together."""
    return (rows[first : first + _ROWS] for first in range(0, len(rows), _ROWS))


def _held(path: str) -> loading.Found:
    """The AR model of ours at a path. Raises ValueError that names the key for anything else."""
    kinds.require_network("start_from", path, "pretrain_ar")
    try:
        said = checkpoints.read_description(checkpoints.find_network(path))
        if said["class"] == Transformer.__name__ and "schedule" in said:
            raise ValueError(
                f"{path!r} holds a denoiser: `edlm run pretrain_denoiser start_from={path}` trains it further"
            )
        return loading.autoregressive(path, torch.device("cpu"))
    except ValueError as error:
        raise ValueError(f"start_from = {str(error).removeprefix('ar = ')}") from error


def _of_ours(settings: Mapping[str, Any]) -> Plan:
    path = settings["start_from"]
    for key, plain in {"shifted": False, "lora": None, "tokenizer": None}.items():
        if settings[key] not in (None, plain):
            raise ValueError(f"{key} = {settings[key]!r} is for large models: with {path!r} give {plain!r}")
    held = _held(path)
    sizes = {**held.network.arguments, "causal": False, "max_length": settings["length"]}
    network = Transformer(**sizes)
    network.load_state_dict(held.network.state_dict())
    resolved = {**settings, "shifted": False}
    return Plan(network, held.vocabulary, held.vocabulary.pad_id, checkpoints.OWN, held.weights, resolved)
