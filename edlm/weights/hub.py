"""Models by folder, or by their name on the Hugging Face hub: loaded, saved, and pushed there.

A folder is data: json and safetensors are read, and nothing else of it is even downloaded. What it may name is a closed
table (`permitted`), and the weights are compared with the hashes beside them.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from safetensors.torch import save as serialised
from tensordict.nn import TensorDictModule
from torch import nn

from edlm.data.vocabulary import Vocabulary
from edlm.models import energies
from edlm.models.denoisers import SubsDenoiser
from edlm.nn import folding
from edlm.process.schedules import Schedule
from edlm.runs import files
from edlm.samplers.baselines import Reverse
from edlm.weights import checkpoints, formats, kinds, large, loading, model_card, pairs, permitted, shards
from edlm.weights.loading import Found
from edlm.weights.sources import How

# The files of a model, ours and those of large ones, beside its weights.
_OURS = ("network.json", *Vocabulary.FILES)
_LARGE = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
_WEIGHTS = (formats.WEIGHTS, "model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
DOWNLOADED = [*dict.fromkeys((*_OURS, *_LARGE, *_WEIGHTS, model_card.METRICS, files.REPORT))]


class Model(ModelHubMixin, library_name="edlm", tags=["edlm", "masked-diffusion"]):
    """A network with its vocabulary, and how it is read.

    kind: "subs" of a denoiser, "ar", "d3pm" or "sedd" of a baseline, "draft" or "transition" of a learned energy.
    network: with the weights as they were saved. vocabulary: text to ids and back. description: what its folder says of
    it. schedule: of the masking process that it was trained on.
    """

    def __init__(self, found: Found) -> None:
        self.found = found
        self.kind, self.network, self.vocabulary = found.kind, found.network, found.vocabulary
        self.description, self.schedule = found.description, found.schedule

    def __repr__(self) -> str:
        """Name the kind, the class of the network, and the folder."""
        return f"{type(self).__name__}({self.kind}, {type(self.network).__name__}, {self.found.path!r})"

    @property
    def told(self) -> Schedule | None:
        """The schedule if the network is told the time, else None."""
        return self.found.told

    @property
    def bos_id(self) -> int | None:
        """The id that an autoregressive model reads in front of a text; None: its first token is given."""
        found: int | None = self.description.get("bos_id")
        return found

    @property
    def denoiser(self) -> SubsDenoiser:
        """The network as a denoiser, conditioning that is always the same folded into its weights."""
        self._require(kinds.SUBS)
        return self.found._replace(network=self._folded).denoiser

    @property
    def baseline(self) -> Reverse:
        """The network as the sampler of a baseline."""
        self._require(*kinds.BASELINES)
        return self.found.kernel

    @property
    def autoregressive(self) -> Any:
        """The network as a causal one, to sample from and to score texts by."""
        self._require("ar")
        return self._folded

    def energy(self, of: "Model", carry_over: bool = False) -> TensorDictModule:
        """Build the energy that corrects the denoiser of another model: a learned one, or that of an AR model.

        carry_over: the form of an AR model's, see `energies.residual_ar`. Raises ValueError for models of different
        vocabularies, and for a model that is no energy.
        """
        self._require("ar", *kinds.ENERGIES)
        if self.kind == "ar" and (loading.is_large(self.found.path) or loading.is_large(of.found.path)):
            device, how = next(self.network.parameters()).device, How(self.network.max_length)
            ar, mask_id = pairs.autoregressive(self.found.path, of.found, device, how), of.vocabulary.mask_id
            return energies.residual_ar(ar.network, mask_id, ar.front, carry_over, of.found.pad_id)
        ids = self.vocabulary
        if ids.fingerprint != of.vocabulary.fingerprint:
            raise ValueError(f"{self.found.path} and {of.found.path} were trained on different vocabularies")
        if self.kind == "ar":
            return energies.residual_ar(self._folded, ids.mask_id, self.bos_id, carry_over, ids.pad_id)
        return kinds.ENERGIES[self.kind].build(self._folded if of.told is None else self.network, of.told, ids.pad_id)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "Model":
        """Load a model, see `hub.from_pretrained`. No `config.json` is asked for: ours is `network.json`."""
        return from_pretrained(pretrained_model_name_or_path, **options)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the folder of the model, new or empty; options of `ModelHubMixin.save_pretrained`.

        A network of ours is written as it is in memory. The folder of a large model is copied. `model_card_kwargs` may
        name the `metrics` that its card shows, a file that `edlm run evaluate` wrote.
        Raises ValueError, naming the folder, for one that holds something, and if it cannot be written.
        """
        folder = Path(save_directory)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} exists already: remove it or choose another path")
        with files.writing(folder):
            found: str | None = super().save_pretrained(folder, **options)
        return found

    def generate_model_card(self, metrics: str | Path | None = None, **options: Any) -> ModelCard:
        """Write the model card: what it is, how it is loaded, and the figures that were found of these weights."""
        return model_card.of(self.found, self._weights, metrics)

    def _save_pretrained(self, save_directory: Path) -> None:
        source = large.hub_folder(self.found.path)
        if source is None:
            notes = {key: value for key, value in self.description.items() if key not in checkpoints.OWN_KEYS}
            formats.fill_network(save_directory, self.network, self.vocabulary, notes)
            return
        if any(parameter.requires_grad for parameter in self.network.parameters()):
            raise ValueError(
                f"{source} is copied, and its weights in memory may be trained: `edlm run adapt` writes those"
            )
        for file in (*shards.files(source), source / shards.INDEX, *(source / name for name in _LARGE)):
            if file.is_file():
                shutil.copyfile(file, save_directory / file.name)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,
    ) -> "Model":
        folder = model_id
        if not Path(model_id).exists():
            options = {"revision": revision, "cache_dir": cache_dir, "force_download": force_download, "token": token}
            folder = _downloaded(model_id, local_files_only=local_files_only, **options)
        found = loading.as_saved(folder, torch.device(model_kwargs["device"]), model_kwargs["length"])
        if loading.is_large(folder):
            found.network.requires_grad_(False)
        return cls(found)

    @property
    def _weights(self) -> str:
        """The hash of the weights as they are in memory; of a large model, those of its files."""
        if loading.is_large(self.found.path):
            return self.found.weights
        return hashlib.sha256(serialised(formats.weights_of(self.network, self.found.path))).hexdigest()

    @property
    def _folded(self) -> nn.Module:
        """The network as it is sampled: what it is told at every time alike is a part of its weights."""
        ours = self.description.get("class") in permitted.NETWORKS
        return folding.fold_conditioning(self.network) if ours and self.told is None else self.network

    def _require(self, *wanted: str) -> None:
        if self.kind not in wanted:
            raise ValueError(
                f"{self.found.path} holds a model of kind {self.kind!r}, not {' or '.join(map(repr, wanted))}"
            )


def from_pretrained(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    length: int | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Model:
    """Load a model from a folder, or by its name from the Hugging Face hub.

    A name is looked up on the hub, and files that the hub's cache has are taken from there. With `local_files_only`, or
    `HF_HUB_OFFLINE=1`, nothing is asked of the hub.

    Args:
        name: a folder of a run, a network's folder, a large model's folder, or a name as `user/model`.
        device: where the network is to be.
        length: the longest text that a large model reads; None: 2048 tokens, or what the model allows.
        revision: a branch, a tag or a commit of the hub.
        cache_dir: the folder of the cache; None: that of `huggingface_hub`.
        token: for models that are not public.
        force_download: whether what the cache has is downloaded again.
        local_files_only: whether the cache alone is looked at.

    Returns:
        The model.

    Raises:
        ValueError: naming the folder or the name, for what is not there, broken, or unlike what the library knows.

    Example:
        >>> import edlm
        >>> network = edlm.networks.Transformer(3, max_length=8, hidden_size=16, num_layers=1, num_heads=2)
        >>> notes = {"schedule": {"_component_": "edlm.schedules.log_linear"}, "time_conditioning": False}
        >>> edlm.checkpoints.save_network("tiny", network, edlm.vocabulary.characters("ab"), notes)
        >>> model = edlm.from_pretrained("tiny")
        >>> pipeline = edlm.pipelines.pipeline(edlm.samplers.Sampler(model.denoiser), length=8)
        >>> len(model.vocabulary.decode(edlm.sample(pipeline)["tokens"])[0])
        8
    """
    return Model._from_pretrained(
        model_id=str(name),
        revision=revision,
        cache_dir=cache_dir,
        force_download=force_download,
        local_files_only=local_files_only,
        token=token,
        device=device,
        length=length,
    )


def _downloaded(name: str, **options: Any) -> str:
    """Give the folder in the hub's cache. Raises ValueError for a name that is neither there nor on the hub."""
    try:
        return snapshot_download(name, allow_patterns=DOWNLOADED, **options)
    except (OSError, ValueError) as error:  # of its many kinds of errors each is one of these
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name!r} is no folder, and no model of that name was found ({reason})") from error
