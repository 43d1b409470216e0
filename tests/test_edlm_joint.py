"""The recipe of a joint network, from a denoiser to figures and texts, at the smallest size that has every part."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from edlm import bounds, checkpoints, cli, corpora, denoisers, joint, likelihoods, pipelines, schedules, vocabulary
from edlm.networks import JointNetwork, Transformer
from edlm.recipes import _models

NETWORK = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "conditioning_size": 8}
SHORT = {"steps": 6, "batch_size": 8, "valid_every": 6, "valid_rows": 8, "save_every": 6}


def run(recipe: str, **overrides: Any) -> None:
    """Run the tiny config with changes; sections are given whole or with `__` for a dot."""
    settings = OmegaConf.load(cli.configs(recipe)["tiny"])
    changes = OmegaConf.from_dotlist([f"{key.replace('__', '.')}={value}" for key, value in overrides.items()])
    import_module(f"edlm.recipes.{recipe}").main(OmegaConf.to_container(OmegaConf.merge(settings, changes)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint network of a few steps, and the denoiser that it was started from, trained on the way."""
    folder = tmp_path_factory.mktemp("joint")
    pretrain = {f"pretrain__{key}": value for key, value in {"length": 32, **SHORT}.items()}
    sizes = {f"pretrain__network__{key}": value for key, value in NETWORK.items()}
    samples = {"samples__num_samples": 1, "samples__num_steps": 4, "samples__num_particles": 3}
    rest = {"num_negatives": 2, "report_particles": 4, "threads": 1, "optimizer__lr": 0.01}
    paths = {"output_dir": folder / "joint", "denoiser": folder / "denoiser"}
    run("edlm_joint", **paths, **pretrain, **sizes, **SHORT, **samples, **rest)
    return folder


@pytest.mark.parametrize("name", cli.configs("edlm_joint"))
def test_the_denoiser_it_starts_from_is_the_one_of_its_own_recipe_and_the_energys(name: str):
    alone, energy, within = (
        OmegaConf.to_container(OmegaConf.load(cli.configs(recipe)[name]))
        for recipe in ("pretrain_denoiser", "edlm_nce", "edlm_joint")
    )
    assert within["pretrain"] == {key: alone[key] for key in within["pretrain"]}
    assert within["denoiser"] == alone["output_dir"]
    differing = {key for key in within.keys() & energy.keys() if within[key] != energy[key]}
    assert differing == {"recipe", "output_dir"}


@pytest.mark.slow
def test_it_reports_what_the_denoiser_paid_and_what_the_bound_gained(trained: Path):
    report = json.loads((trained / "joint" / "report.json").read_text())
    network, start = (checkpoints.load_network(trained / name) for name in ("joint", "denoiser"))
    assert isinstance(network, JointNetwork)
    characters = vocabulary.characters()
    x_0 = corpora.load_blocks(corpora.embedded(), characters, 32).test
    per_row = {"nelbo": [], "start_nelbo": [], "plain_bound": [], "bound": []}
    schedule, seed, grid = schedules.log_linear(), torch.tensor(0), schedules.uniform_grid(4)
    parts = (denoisers.subs(network, 27), joint.energy(network), schedule, grid)
    for row in torch.arange(32).split(8):
        text = x_0[row % len(x_0)]
        for name, each in (("nelbo", network), ("start_nelbo", start)):
            per_row[name].append(likelihoods.nelbo(denoisers.subs(each, 27), schedule, text, seed, row))
        if int(row[0]) < 8:
            for name, k in (("plain_bound", 1), ("bound", 3)):
                per_row[name].append(bounds.transition_nelbo(*parts, text, seed, row, num_particles=k).nats)
    found = {name: torch.cat(values) for name, values in per_row.items()}
    found |= {"cost": found["nelbo"] - found["start_nelbo"], "gain": found["plain_bound"] - found["bound"]}
    for name, values in found.items():
        expected = likelihoods.estimate(values)._asdict()
        assert report[name] == pytest.approx(expected, abs=1e-5), name
    assert report["cost"]["mean"] != 0.0
    assert report["gain"]["standard_error"] > 0.0
    assert report["contrast"]["n"] <= 32 == report["nelbo"]["n"]


@pytest.mark.slow
def test_generate_draws_from_one_network_given_twice_and_refuses_another_denoiser(trained: Path):
    own, output = trained / "joint", trained / "x.jsonl"
    few = {"num_samples": 3, "num_steps": 4, "num_particles": 5, "threads": 1, "energy_temperature": 1e-3}
    run("generate", denoiser=own, energy=own, output=output, window="[0,1]", **few)
    records = [json.loads(line) for line in output.read_text().splitlines()]
    denoiser = denoisers.subs(checkpoints.load_network(own), 27)
    kernel = joint.importance(schedules.log_linear(), denoiser, 5, 1e-3)
    tokens = pipelines.sample(pipelines.sampling(kernel, 32, 4), 3, seed=records[0]["seed"])["tokens"]
    assert [record["tokens"] for record in records] == tokens.tolist()
    assert {record["denoiser_passes"] for record in records} == {1}
    assert all(record["energy_passes"] <= 20 for record in records)
    run("generate", denoiser=own, energy="null", output=trained / "plain.jsonl", **few)
    run("generate", denoiser=own, energy=own, output=trained / "more.jsonl", target_ess=2, **few)
    with pytest.raises(ValueError, match=f"the energy of '{own}' corrects the denoiser of the same network alone"):
        run("generate", denoiser=trained / "denoiser", energy=own, output=trained / "y.jsonl", **few)


@pytest.mark.slow
def test_evaluate_and_frontier_take_it_with_its_own_denoiser(trained: Path):
    """Its bound is the one that the run reports; as an energy for another denoiser, or for its own, it is not taken."""
    own, cpu = str(trained / "joint"), torch.device("cpu")
    loaded = _models.load({"joint": own}, cpu).joint
    assert loaded is not None
    x_0 = corpora.load_blocks(corpora.embedded(), vocabulary.characters(), 32).test[torch.arange(8)]
    parts = (loaded.denoiser, loaded.energies["joint"], loaded.schedule, schedules.uniform_grid(4))
    bound = bounds.transition_nelbo(*parts, x_0, torch.tensor(0), torch.arange(8), num_particles=3)
    report = json.loads((trained / "joint" / "report.json").read_text())["bound"]
    assert float(bound.nats.mean()) == pytest.approx(report["mean"], abs=1e-5)
    for key in ("energy", "transition"):
        with pytest.raises(ValueError, match=f"holds a joint network, with its own denoiser: joint={own}"):
            _models.load({"denoiser": own, key: own}, cpu)


@pytest.mark.slow
def test_what_came_from_the_denoiser_trains_at_its_share_of_the_rate_and_may_be_kept(trained: Path, tmp_path: Path):
    """Adam's first step is the rate times the sign of the gradient; a denoiser that is kept costs its NELBO nothing."""
    exact = {"weight_decay": 0.0, "eps": 1e-30, "lr": 1e-3}
    short = {**SHORT, "steps": 1, "valid_every": 1, "warmup_steps": 0, "decay": "constant", "clip_norm": 1e9}
    rest = {"report_particles": 2, "threads": 1, "denoiser": trained / "denoiser", "pretrain": "null"}
    start = checkpoints.load_network(trained / "denoiser").state_dict()
    moved = {}
    for share in (1.0, 0.125, 0.0):
        folder = tmp_path / str(share)
        at = {f"optimizer__{key}": value for key, value in exact.items()}
        run("edlm_joint", output_dir=folder, denoiser_rate=share, **short, **rest, **at, samples__num_steps=2)
        found = checkpoints.load_network(folder).state_dict()
        moved[share] = {key: found[f"denoiser.{key}"] - value for key, value in start.items()}
        cost = json.loads((folder / "report.json").read_text())["cost"]
        assert (cost["mean"] == 0.0) == (share == 0.0)
    assert all(not moved[0.0][key].any() for key in moved[0.0])
    for key, whole in moved[1.0].items():
        torch.testing.assert_close(moved[0.125][key], whole / 8, rtol=1e-2, atol=2e-6)
    assert sum(float(each.abs().sum()) for each in moved[1.0].values()) > 1.0


@pytest.mark.slow
def test_a_denoiser_that_is_told_the_time_cannot_be_shared(tmp_path: Path):
    network = Transformer(28, 32, **NETWORK)
    notes = {"schedule": {"_component_": "edlm.schedules.log_linear", "eps": 1e-3}, "time_conditioning": True}
    checkpoints.save_network(tmp_path / "told", network, vocabulary.characters(), notes)
    with pytest.raises(ValueError, match="told no time: time_conditioning: false"):
        run("edlm_joint", denoiser=tmp_path / "told", output_dir=tmp_path / "joint", pretrain="null")


def test_a_network_that_is_no_denoiser_cannot_be_started_from(tmp_path: Path):
    checkpoints.save_network(tmp_path / "ar", Transformer(28, 32, **NETWORK, causal=True), vocabulary.characters(), {})
    said = f"denoiser = '{tmp_path / 'ar'}' holds a network that was not trained as a denoiser"
    with pytest.raises(ValueError, match=said):
        run("edlm_joint", denoiser=tmp_path / "ar", output_dir=tmp_path / "joint", pretrain="null")
    assert not (tmp_path / "joint").exists()


def test_a_loss_of_nothing_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="energy_weight = 0 and nelbo_weight or denoiser_rate = 0: nothing"):
        run("edlm_joint", nelbo_weight=0, energy_weight=0.0, output_dir=tmp_path / "joint")


@pytest.mark.slow
def test_the_held_out_loss_is_what_is_trained(trained: Path) -> None:
    """It comes first, so patience and the best checkpoint go by it."""
    lines = (trained / "joint" / "metrics.jsonl").read_text("utf-8").splitlines()
    last = json.loads(lines[-1])
    assert next(name for name in last if name.startswith("valid_")) == "valid_loss"
    settings = json.loads((trained / "joint" / "report.json").read_text("utf-8"))["settings"]
    expected = settings["nelbo_weight"] * last["valid_nelbo"] + settings["energy_weight"] * last["valid_contrast"]
    assert last["valid_loss"] == pytest.approx(expected, rel=1e-9)
