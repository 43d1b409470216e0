"""`edlm_nce` over large denoisers and over networks of one's own: to the end, gone on with, drawn with, refused."""

import json
import shutil
import string
from pathlib import Path
from typing import Any

import over_large
import own_parts
import pytest
import torch
from omegaconf import OmegaConf
from running import Runner
from safetensors.torch import load_file
from smallest import CLOSING, TEXTS, UPDATES, energy_words, settings_of, words_of

from edlm.cli import commands
from edlm.data import vocabulary
from edlm.recipes import edlm_joint, edlm_nce, evaluate, frontier, generate
from edlm.runs import environment
from edlm.training import log
from edlm.weights import checkpoints, resolve

transformers = pytest.importorskip("transformers", reason="needs pip install 'edlm-torch[families]'")


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "draw_curves", lambda _: None)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("over")
    for kind in over_large.KINDS:
        over_large.denoiser(folder, kind)
    return folder


def drawn(denoiser: Path, output: Path, **more: Any) -> list[list[int]]:
    """The tokens that `generate` draws."""
    asked = {"denoiser": denoiser, "output": output, "num_samples": 2, "length": over_large.LENGTH, "threads": 1}
    plain = {"num_steps": 4, "window": "[0.0,1.0]", "num_particles": 3}
    generate.main(settings_of("generate", *words_of({**asked, **plain, **more})))
    return [json.loads(line)["tokens"] for line in output.read_text("utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "how", "scope"),
    [
        ("adapted", "frozen", "transition"),
        ("dream", "lora", "draft"),
        ("bert", "trained", "transition"),
        ("sdar", "lora", "transition"),
    ],
)
def test_an_energy_over_each_kind_is_trained_reported_and_drawn_with(
    kind: str, how: str, scope: str, root: Path, tmp_path: Path
) -> None:
    more = {**over_large.HOW[how], "scope": scope, "optimizer.lr": 0.5, "steps": 8}
    edlm_nce.main(over_large.settings(root / kind, tmp_path / "energy", **more))
    report = json.loads((tmp_path / "energy" / "report.json").read_text("utf-8"))
    assert {"plain", "corrected by the energy"} <= report["ways"].keys()
    with_energy = drawn(root / kind, tmp_path / "x.jsonl", energy=tmp_path / "energy")
    assert [len(tokens) for tokens in with_energy] == [over_large.LENGTH] * 2
    in_rows = drawn(root / kind, tmp_path / "y.jsonl", energy=tmp_path / "energy", energy_rows=1)
    assert in_rows == with_energy


def test_drafts_of_a_denoiser_of_blocks_are_not_weighed(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scope = 'draft' must be transition"):
        over_large.begun(root / "sdar", tmp_path / "run", scope="draft")


def test_evaluate_and_frontier_take_it_beside_its_denoiser_and_an_ar_model(root: Path, tmp_path: Path) -> None:
    over_large.trained(root / "adapted", tmp_path / "energy")
    for rows in (1, None):
        own = {"denoiser": root / "adapted", "energy": tmp_path / "energy", "length": over_large.LENGTH}
        asked = settings_of("generate", *words_of({**own, "energy_rows": rows}))
        correction: Any = resolve.load(asked, torch.device("cpu")).correction
        assert correction.energy.module.network.trunk.rows_at_once == rows
    named = {"denoiser": root / "adapted", "energy": tmp_path / "energy", "ar": root / "hub", "threads": 1}
    small = {"length": 8, "rows": 2, "num_steps": 3, "num_passes": 2, "num_particles": 2, "num_completions": 1}
    more = {"output_dir": tmp_path / "card", "log_z_particles": 2}
    evaluate.main(settings_of("evaluate", *words_of({**named, **small, **more})))
    card = json.loads((tmp_path / "card" / "metric_card.json").read_text("utf-8"))
    assert "energy" in {figure["model"] for figure in card["figures"]}
    assert card["networks"]["energy"]["description"]["class"] == "TrunkEnergy"
    sweep = "{correction: {name: energy, called: learned}, plan: {name: grid, num_steps: 2}, candidates: 2}"
    judge = shutil.copytree(root / "hub", tmp_path / "judge")  # of what a random network may write
    (judge / "tokenizer.json").write_text(vocabulary.characters(string.ascii_lowercase + " \ufffd").tokenizer.to_str())
    asked = {"judge": judge, "output_dir": tmp_path / "out", "length": 8, "num_samples": 2, "batch_size": 2}
    frontier.main(settings_of("frontier", *words_of({**named, **asked, "sweeps": f"[{sweep}]", "ngrams": "[1]"})))
    assert "learned" in (tmp_path / "out" / "frontier.md").read_text("utf-8")


def test_a_joint_network_over_a_large_denoiser_is_refused_with_the_reason(root: Path, tmp_path: Path) -> None:
    words = [f"denoiser={root / 'llada'}", f"output_dir={tmp_path}", "threads=1"]
    with pytest.raises(ValueError, match="a joint network begins as a Transformer of ours, with blocks of ours behind"):
        edlm_joint.main(settings_of("edlm_joint", *words))


@pytest.mark.parametrize("word", ["trunk=frozen", "lora={rank: 2, alpha: 4.0}", "length=8", "tokenizer=x.json"])
def test_what_is_for_other_networks_is_refused_beside_ours(word: str, trained: Path) -> None:
    key = word.partition("=")[0]
    words = [*energy_words(trained), "pretrain=null", f"output_dir={trained / 'refused'}", word]
    with pytest.raises(ValueError, match=f"{key} = .* holds a Transformer of ours"):
        edlm_nce.main(settings_of("edlm_nce", *words))


def test_an_energy_over_a_network_of_ones_own(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.COMPONENTS, "")
    own_parts.forget(monkeypatch)
    monkeypatch.chdir(own_parts.write(tmp_path / "own"))
    config = OmegaConf.load(commands.configs("pretrain_denoiser")["tiny"])
    config.network = {"_component_": "my_network.Recurrent", "hidden_size": 16}
    OmegaConf.save(config, "my.yaml")
    status, _, error = run("pretrain_denoiser", *words_of(TEXTS), "output_dir=mine", "threads=1", config="my.yaml")
    assert status == 0, error
    small = [*words_of(UPDATES), *words_of(CLOSING, "closing."), "report_particles=4", "threads=1", "trunk=frozen"]
    few = words_of({"num_samples": 1, "num_steps": 4, "num_particles": 2}, "samples.")
    own = ["denoiser=mine", "pretrain=null", "output_dir=energy", *small, *few]
    status, _, error = run("edlm_nce", *own)
    assert status == 0, error
    weights = load_file(checkpoints.find_network("energy") / "network.safetensors")
    assert not any(name.startswith("trunk.") for name in weights)
    draw = ["denoiser=mine", "energy=energy", "num_samples=2", "num_steps=4", "threads=1", "output=x.jsonl"]
    status, _, error = run("generate", *draw, "num_particles=2", "window=[0.0,1.0]")
    assert status == 0, error
    status, _, error = run("edlm_joint", "denoiser=mine", "pretrain=null", "output_dir=joint", "threads=1")
    assert (status, "a joint network begins as a Transformer of ours" in error) == (2, True), error
