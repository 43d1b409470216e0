"""Refusals that stand in no other file of tests: each is one line that names the file, the key or the network."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import smallest
import torch
from torch import nn

from edlm.data import documents, folders, vocabulary
from edlm.evaluation import card, generation
from edlm.nn.networks import Transformer
from edlm.recipes import pretrain_ar
from edlm.samplers import execution
from edlm.weights import checkpoints, foreign, inert

CPU = torch.device("cpu")
LETTERS = vocabulary.characters()


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def packed(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return path


def without(folder: Path, key: str) -> Path:
    """A network's folder whose description lacks a key."""
    network = Transformer(LETTERS.size, 4, hidden_size=4, num_layers=1, num_heads=1)
    checkpoints.save_network(folder, network, LETTERS, {})
    description = json.loads((folder / "network.json").read_text("utf-8"))
    del description[key]
    (folder / "network.json").write_text(json.dumps(description), "utf-8")
    return folder


REFUSALS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "json that is none": (lambda at: folders._read(written(at / "state.json", "{")), r"state\.json: not JSON \("),
    "json of a list": (
        lambda at: folders._read(written(at / "state.json", "[]")),
        r"state\.json: must be a JSON object",
    ),
    "csv that is none": (
        lambda at: list(documents.read(written(at / "a.csv", 'text\n"a"b\n'))),
        r"a\.csv.*: not CSV \(",
    ),
    "a number for a text": (
        lambda at: list(documents.read(written(at / "a.jsonl", '{"text": 3}\n'))),
        r"a\.jsonl.*: 3 must be a text",
    ),
    "a list of more than texts": (
        lambda at: list(documents.read(written(at / "a.jsonl", '{"text": ["a", 3]}\n'))),
        r"a\.jsonl.*: \['a', 3\] must be a text",
    ),
    "a file of torch.save without what it saves": (lambda at: inert.read(packed(at / "a.ckpt", "a/other")), r"a\.ckpt"),
    "a file of torch.save with two": (
        lambda at: inert.read(packed(at / "a.ckpt", "a/data.pkl", "b/data.pkl")),
        r"a\.ckpt.*no data\.pkl, or more than one",
    ),
    "a published folder without weights": (
        lambda at: foreign.read(written(at / "mdlm" / "config.json", '{"model_type": "mdlm"}').parent),
        r"mdlm: neither model\.safetensors nor pytorch_model\.bin is there",
    ),
    "a network without its arguments": (
        lambda at: checkpoints.read_description(without(at / "network", "arguments")),
        r"network\.json: lacks arguments",
    ),
    "a network without blocks": (
        lambda _: execution.compile_blocks(nn.Linear(2, 2)),
        "^Linear has no blocks to compile$",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_it_is_refused_in_one_line_that_says_what_it_is(what: str, tmp_path: Path) -> None:
    call, said = REFUSALS[what]
    with pytest.raises(ValueError, match=said) as error:
        call(tmp_path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(("module", "loader"), [(card, "named"), (generation, "resolve")])
def test_an_energy_of_ones_own_corrects_no_baseline(module: Any, loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(denoiser=None, diffusion=None)
    monkeypatch.setattr(getattr(module, loader), "load", lambda settings, device: found)
    settings = {
        **smallest.settings_of("generate"),
        "denoiser": "runs/sedd",
        "energy": {"_component_": "edlm.energies.zero"},
    }
    said = r"^energy = \{.*zero.\} corrects a masked diffusion denoiser, and .runs/sedd. is none$"
    with pytest.raises(ValueError, match=said):
        module.load(settings, CPU)


def test_an_error_of_held_out_text_needs_two_blocks(tmp_path: Path) -> None:
    text = written(tmp_path / "a.txt", "\n\n".join(["abcdefgh " * 40] * 3))
    words = [f"corpus={{_component_: edlm.corpora.text_files, path: {text}}}", "length=300"]
    settings = smallest.settings_of("pretrain_ar", *smallest.ar_words(tmp_path / "ar"), *words)
    said = "length = 300: valid has one block so long, and an error needs two"
    with pytest.raises(ValueError, match=said):
        pretrain_ar.main(settings)
