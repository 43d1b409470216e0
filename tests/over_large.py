"""Tiny large denoisers of each kind, and energies over them as `edlm_nce` begins to train them."""

import importlib
from pathlib import Path
from typing import Any

import hub_folders
from hub_folder import hub_model
from large_folders import random_weights, write
from smallest import CLOSING, settings_of, words_of

from edlm.data import vocabulary
from edlm.recipes.adapt import main as adapt
from edlm.recipes.edlm_nce import EnergyByNCE

KINDS = ("adapted", "llada", "dream", "bert", "sdar")
LENGTH = 12
HOW: dict[str, dict[str, Any]] = {
    "frozen": {},
    "trained": {"trunk": "trained", "recompute": "true"},
    "lora": {"lora": "{rank: 2, alpha: 4.0}"},
}
_STEP = {"steps": 1, "batch_size": 2, "valid_every": 1, "valid_rows": 2, "save_every": 1, "log_every": 1}
_UPDATES = {"steps": 4, "batch_size": 4, "valid_every": 2, "valid_rows": 4, "save_every": 2, "log_every": 1}
_SENTENCES = "the cat sat on a mat . the dog ran and the cats sat . a hat and a mat . the dogs ran on the mat . "


def denoiser(root: Path, kind: str) -> Path:
    """The folder of a random large denoiser; of `adapted` the run that has made it, beside the AR model `hub`."""
    folder = root / kind
    if kind == "adapted":
        hub_model(root / "hub", tied=True)
        start = {"start_from": root / "hub", "output_dir": folder, "shifted": True, "length": LENGTH, "threads": 1}
        adapt(settings_of("adapt", *words_of({**start, **_STEP})))
    elif kind == "bert":
        hub_folders.save(hub_folders.model(kind, importlib.import_module("transformers")), folder)
        for split in ("train", "valid", "test"):
            (root / f"{split}.txt").write_text(_SENTENCES * 20)
    elif kind == "sdar":
        model = hub_folders.model("qwen3", importlib.import_module("transformers"))
        mask = {"block_size": 4, "mask_token_id": hub_folders.V - 1, "eos_token_id": 2}
        hub_folders.change(hub_folders.save(model, folder), model_type=kind, **mask)
        (folder / "tokenizer.json").write_text(vocabulary.characters().tokenizer.to_str())
    else:
        write(folder, kind, random_weights(kind))
        (folder / "tokenizer.json").write_text(vocabulary.characters().tokenizer.to_str())
    return folder


def settings(folder: Path, output: Path, **more: Any) -> dict[str, Any]:
    """The settings of a short run over a denoiser, on texts that its vocabulary spells."""
    values = {"denoiser": folder, "output_dir": output, "length": LENGTH, "threads": 1, "report_particles": 4}
    small = [
        *words_of(_UPDATES),
        *words_of({"num_samples": 1, "num_steps": 4, "num_particles": 2}, "samples."),
        *words_of(CLOSING, "closing."),
    ]
    found = settings_of("edlm_nce", *small, *words_of({**values, **more}), config="smollm2")
    found["corpus"] = {"_component_": "edlm.corpora.embedded"}
    if folder.name == "bert":
        found["corpus"] = {"_component_": "edlm.corpora.text_files", "path": str(folder.parent)}
    return found


def begun(folder: Path, output: Path, **more: Any) -> EnergyByNCE:
    """The recipe before its first step."""
    recipe = EnergyByNCE(settings(folder, output, **more))
    recipe.load_denoiser()
    recipe.setup()
    recipe.load_checkpoint()
    return recipe


def trained(folder: Path, output: Path, **more: Any) -> EnergyByNCE:
    """The recipe after its last step."""
    recipe = begun(folder, output, **more)
    recipe.train()
    recipe.save_checkpoint()
    return recipe
