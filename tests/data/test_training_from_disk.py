"""Training on a set that is read from disk: the losses are those of memory, and padding is not scored."""

import json
import math
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from edlm.cli import commands
from edlm.data import vocabulary
from edlm.data.datasets import named
from edlm.likelihood import estimates, nelbo
from edlm.models import autoregressive, denoisers
from edlm.process import schedules
from edlm.runs import entry
from edlm.weights import checkpoints

SMALL = {
    **{"length": 16, "steps": 4, "batch_size": 4, "valid_every": 2, "valid_rows": 8, "save_every": 4, "log_every": 1},
    **{f"network.{key}": 8 for key in ("hidden_size", "conditioning_size")},
    **{"network.num_layers": 1, "network.num_heads": 1, "network.dropout": 0.0, "threads": 1},
    "vocabulary": "{_component_: edlm.vocabulary.characters}",
}


def trained(
    recipe: str, folder: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """The log of a small run, without what the clock says."""
    module = import_module(f"edlm.recipes.{recipe}")
    given = {**SMALL, "output_dir": folder, **settings}
    if recipe == "pretrain_ar":
        del given["network.conditioning_size"]
    overrides = [f"{key}={value}" for key, value in given.items()]
    monkeypatch.setattr(sys, "argv", [recipe, "--config", str(commands.configs(recipe)["tiny"]), *overrides])
    with pytest.raises(SystemExit) as stop:
        entry.enter(module.main, module.SETTINGS)
    assert not stop.value.code
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in lines]


@pytest.mark.parametrize("recipe", ["pretrain_denoiser", "pretrain_ar"])
def test_training_from_disk_is_training_from_memory(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, where the text fills its blocks, so that no block reaches back."""
    source = tmp_path / "text"
    source.mkdir()
    for split, blocks in (("train", 9), ("valid", 3), ("test", 2)):
        (source / f"{split}.txt").write_text(("abcdefgh" * 2 * blocks)[:-2] + "xy")
    corpus = {"corpus.path": source}
    memory = {"corpus._component_": "edlm.corpora.text_files", **corpus}
    disk = {"corpus._component_": "edlm.datasets.files", **corpus, "corpus.cache": tmp_path / "cache"}
    one, other = (
        trained(recipe, tmp_path / name, settings, monkeypatch)
        for name, settings in (("memory", memory), ("disk", disk))
    )
    assert len(one) == SMALL["steps"]
    assert one == other


@pytest.mark.parametrize("recipe", ["pretrain_denoiser", "pretrain_ar"])
def test_padded_sentences_train_and_padding_is_not_scored(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "text"
    source.mkdir()
    for split in ("train", "test"):
        (source / f"{split}-0.jsonl").write_text('{"text": "a bc"}\n{"text": "abcdefghijklmnop"}\n' * 6)
    settings = {
        "corpus._component_": "edlm.datasets.named",
        "corpus.name": "lm1b",
        "corpus.path": source,
        "corpus.cache": tmp_path / "cache",
        "corpus.layout": "padded",
        "corpus.wrapped": "true",
        "vocabulary": "{_component_: edlm.vocabulary.characters, specials: [bos, eos, pad]}",
    }
    log = trained(recipe, tmp_path / "run", settings, monkeypatch)
    assert all(math.isfinite(line["loss"]) for line in log)
    network = checkpoints.load_network(checkpoints.last_checkpoint(tmp_path / "run"))
    ids = vocabulary.characters(specials=["bos", "eos", "pad"])
    x_0 = named("lm1b", source, cache=tmp_path / "cache", layout="padded", wrapped=True).blocks(ids, 16).valid[:8]
    scored = x_0 != ids.pad_id
    assert sorted(set(scored.sum(1).tolist())) == [4, 6, 16]
    if recipe == "pretrain_ar":
        with torch.no_grad():
            log_p = autoregressive.ar_log_prob(network, x_0, ids.mask_id, ids.bos_id)
        assert log[-1]["valid_nll"] == pytest.approx(-float(log_p[scored].mean()), rel=1e-5)
    else:
        denoiser = denoisers.subs(network, ids.mask_id)
        keys = torch.tensor(0), torch.arange(8)
        parts = [
            nelbo.nelbo(denoiser, schedules.log_linear(), x_0[part], keys[0], keys[1][part], scored[part])
            for part in keys[1].split(4)
        ]
        expected = estimates.estimate(torch.cat(parts), scored.sum(1))
        assert log[-1]["valid_nelbo"] == pytest.approx(expected.mean, rel=1e-5)
        x_0 = named("lm1b", source, cache=tmp_path / "cache", layout="padded", wrapped=True).blocks(ids, 16).test[:8]
        levels = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))["masked_nll"]
        for t, found in levels.items():
            times = torch.full((8,), float(t))
            nats = nelbo.masked_nll(
                denoiser, schedules.log_linear(), x_0, times, *keys, nelbo.not_padding(x_0, ids.pad_id)
            )
            assert found == pytest.approx(estimates.estimate(nats[~nats.isnan()])._asdict(), rel=1e-5)
        assert levels["0.1"]["n"] < levels["0.9"]["n"] == 8, "a row without a mask says nothing"
