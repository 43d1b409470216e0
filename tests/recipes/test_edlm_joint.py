"""The recipe of a joint network, from a denoiser to figures and texts, at the smallest size that has every part."""

import json
import math
from pathlib import Path

import builders
import pytest
import torch
from omegaconf import OmegaConf
from smallest import NETWORK, TEXTS, UPDATES, settings_of, train, words_of

from edlm.cli import commands
from edlm.data import corpora, datasets, vocabulary
from edlm.evaluation import contrast
from edlm.evaluation.draws import Draws
from edlm.likelihood import estimates, nelbo
from edlm.models import denoisers, joint
from edlm.nn.networks import JointNetwork, Transformer
from edlm.objectives import joint as joint_objectives
from edlm.process import schedules
from edlm.samplers import pipelines
from edlm.weights import checkpoints, named, resolve

SHORT = {**UPDATES, "valid_every": 6, "save_every": 7}  # a checkpoint and a look at held-out text at the end alone


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint network of a few steps, and the denoiser that it was started from, trained on the way."""
    folder = tmp_path_factory.mktemp("joint")
    own = {"output_dir": folder / "joint", "denoiser": folder / "denoiser", **SHORT}
    own |= {"num_negatives": 2, "nelbo_weight": 2.0, "report_particles": 4, "threads": 1, "optimizer.lr": 0.01}
    pretrain = [*words_of({**TEXTS, **SHORT}, "pretrain."), *words_of(NETWORK, "pretrain.network.")]
    samples = words_of({"num_samples": 1, "num_steps": 4, "num_particles": 3}, "samples.")
    train("edlm_joint", *words_of(own), *pretrain, *samples)
    return folder


@pytest.mark.parametrize("name", commands.configs("edlm_joint"))
def test_the_denoiser_it_starts_from_is_the_one_of_its_own_recipe_and_the_energys(name: str):
    alone, energy, within = (
        OmegaConf.to_container(OmegaConf.load(commands.configs(recipe)[name]))
        for recipe in ("pretrain_denoiser", "edlm_nce", "edlm_joint")
    )
    assert within["pretrain"] == {key: alone[key] for key in within["pretrain"]}
    assert within["denoiser"] == alone["output_dir"]
    differing = {key for key in within.keys() & energy.keys() if within[key] != energy[key]}
    batches = {"steps", "batch_size", "optimizer", "warmup_steps", "ema_decay", "valid_every", "save_every"}
    assert differing == {"recipe", "output_dir"} | (batches if name == "tiny" else set())  # measured for energies alone


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
            per_row[name].append(nelbo.nelbo(denoisers.subs(each, 27), schedule, text, seed, row))
        if int(row[0]) < 8:
            for name, k in (("plain_bound", 1), ("bound", 3)):
                per_row[name].append(builders.transition_bound(*parts, text, seed, row, num_particles=k).nats)
    found = {name: torch.cat(values) for name, values in per_row.items()}
    found |= {"cost": found["nelbo"] - found["start_nelbo"], "gain": found["plain_bound"] - found["bound"]}
    for name, values in found.items():
        expected = estimates.estimate(values)._asdict()
        assert report[name] == pytest.approx(expected, abs=1e-5), name
    assert report["cost"]["mean"] != 0.0
    assert report["gain"]["standard_error"] > 0.0
    assert report["contrast"]["n"] < 32 == report["nelbo"]["n"], "a step that reveals nothing is not counted"


def test_its_last_step_is_kept_wherever_it_falls(trained: Path):
    assert [checkpoints.find_network(trained / name).name for name in ("joint", "denoiser")] == ["step_00000006"] * 2


def test_generate_draws_from_one_network_given_twice_and_refuses_another_denoiser(trained: Path):
    own, output = trained / "joint", trained / "x.jsonl"
    few = words_of({"num_samples": 3, "num_steps": 4, "num_particles": 5, "energy_temperature": 1e-3, "threads": 1})
    both = [f"denoiser={own}", f"energy={own}", *few]
    train("generate", *both, f"output={output}", "window=[0,1]")
    records = [json.loads(line) for line in output.read_text().splitlines()]
    denoiser = denoisers.subs(checkpoints.load_network(own), 27)
    kernel = builders.two_heads(schedules.log_linear(), denoiser, 5, 1e-3)
    tokens = pipelines.sample(builders.sampling(kernel, 32, 4), 3, seed=records[0]["seed"])["tokens"]
    assert [record["tokens"] for record in records] == tokens.tolist()
    assert {record["denoiser_passes"] for record in records} == {1}
    assert all(record["energy_passes"] <= 20 for record in records)
    found = resolve.load(settings_of("generate", *both), torch.device("cpu"))
    held = {id(weight) for weight in found.denoiser.parameters()}
    own_energy = found.correction.parts(found.denoiser).energy
    assert {id(weight) for weight in own_energy.parameters()} == held, "one set of weights in memory"
    train("generate", f"denoiser={own}", "energy=null", f"output={trained / 'plain.jsonl'}", *few)
    train("generate", *both, f"output={trained / 'more.jsonl'}", "target_ess=2")
    with pytest.raises(ValueError, match=f"the energy of '{own}' corrects the denoiser of the same network alone"):
        train("generate", *both, f"denoiser={trained / 'denoiser'}", f"output={trained / 'y.jsonl'}")
    with pytest.raises(ValueError, match=f"in order, as a Transformer is: denoiser = '{own}' holds one of class Joint"):
        train("generate", f"denoiser={own}", "energy=chain_rule", f"output={trained / 'y.jsonl'}")


def test_evaluate_and_frontier_take_it_with_its_own_denoiser(trained: Path):
    """Its bound is the one that the run reports; as an energy for another denoiser, or for its own, it is not taken."""
    own, cpu = str(trained / "joint"), torch.device("cpu")
    loaded = named.load({"joint": own}, cpu).joint
    assert loaded is not None
    x_0 = corpora.load_blocks(corpora.embedded(), vocabulary.characters(), 32).test[torch.arange(8)]
    parts = (loaded.denoiser, loaded.energies["joint"], loaded.schedule, schedules.uniform_grid(4))
    bound = builders.transition_bound(*parts, x_0, torch.tensor(0), torch.arange(8), num_particles=3)
    report = json.loads((trained / "joint" / "report.json").read_text())["bound"]
    assert float(bound.nats.mean()) == pytest.approx(report["mean"], abs=1e-5)
    for key in ("energy", "transition"):
        with pytest.raises(ValueError, match=f"holds a joint network, with its own denoiser: joint={own}"):
            named.load({"denoiser": own, key: own}, cpu)


@pytest.mark.slow
def test_what_came_from_the_denoiser_trains_at_its_share_of_the_rate_and_may_be_kept(trained: Path, tmp_path: Path):
    """Adam's first step is the rate times the sign of the gradient; a denoiser that is kept costs its NELBO nothing."""
    short = {**SHORT, "steps": 1, "valid_every": 1, "warmup_steps": 0, "decay": "constant", "clip_norm": 1e9}
    rest = {"report_particles": 2, "denoiser": trained / "denoiser", "pretrain": "null", "samples.num_steps": 2}
    exact = words_of({"weight_decay": 0.0, "eps": 1e-30, "lr": 1e-3}, "optimizer.")
    start = checkpoints.load_network(trained / "denoiser").state_dict()
    moved = {}
    for share in (1.0, 0.125, 0.0):
        folder = tmp_path / str(share)
        train("edlm_joint", *words_of({"output_dir": folder, "denoiser_rate": share, **short, **rest}), *exact)
        found = checkpoints.load_network(folder).state_dict()
        moved[share] = {key: found[f"denoiser.{key}"] - value for key, value in start.items()}
        cost = json.loads((folder / "report.json").read_text())["cost"]
        assert (cost["mean"] == 0.0) == (share == 0.0)
        state = checkpoints.load_state(checkpoints.find_network(folder))
        updated = [name for name in state["network"] if name.startswith("denoiser.")]
        assert bool(updated) == (share > 0.0), "what is kept takes no backward pass"
        assert state["optimizer"]["state"].keys() == set(range(len(state["network"])))
    assert all(not moved[0.0][key].any() for key in moved[0.0])
    for key, whole in moved[1.0].items():
        torch.testing.assert_close(moved[0.125][key], whole / 8, rtol=1e-2, atol=2e-6)
    assert sum(float(each.abs().sum()) for each in moved[1.0].values()) > 1.0


def test_a_denoiser_that_is_told_the_time_cannot_be_shared(tmp_path: Path):
    network = Transformer(28, 32, **NETWORK)
    notes = {"schedule": {"_component_": "edlm.schedules.log_linear", "eps": 1e-3}, "time_conditioning": True}
    checkpoints.save_network(tmp_path / "told", network, vocabulary.characters(), notes)
    with pytest.raises(ValueError, match="told no time: time_conditioning: false"):
        train("edlm_joint", f"denoiser={tmp_path / 'told'}", f"output_dir={tmp_path / 'joint'}", "pretrain=null")


def test_a_network_that_is_no_denoiser_cannot_be_started_from(tmp_path: Path):
    checkpoints.save_network(tmp_path / "ar", Transformer(28, 32, **NETWORK, causal=True), vocabulary.characters(), {})
    said = f"denoiser = '{tmp_path / 'ar'}' holds a network that was not trained as a denoiser"
    with pytest.raises(ValueError, match=said):
        train("edlm_joint", f"denoiser={tmp_path / 'ar'}", f"output_dir={tmp_path / 'joint'}", "pretrain=null")
    assert not (tmp_path / "joint").exists()


def test_a_loss_of_nothing_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="energy_weight = 0 and nelbo_weight or denoiser_rate = 0: nothing"):
        train("edlm_joint", "nelbo_weight=0", "energy_weight=0.0", f"output_dir={tmp_path / 'joint'}")


def test_an_energy_that_learns_nothing_is_noticed(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a rate of zero it stays the constant that it starts as: said while it trains, at the end and in the report."""
    own = {"output_dir": tmp_path / "run", "denoiser": trained / "denoiser", "pretrain": None, **SHORT}
    train("edlm_joint", *words_of({**own, "report_particles": 4, "threads": 1, "optimizer.lr": 0.0}))
    shown, said = capsys.readouterr()
    warning = json.loads((tmp_path / "run" / "report.json").read_text())["warning"]
    assert warning.startswith("warning: the energy is constant")
    assert f"  {warning}" in shown
    assert "step 6: warning: the energy is constant" in said
    assert json.loads((trained / "joint" / "report.json").read_text())["warning"] != warning


def test_the_held_out_loss_is_what_is_trained(trained: Path) -> None:
    """It comes first, so patience and the best checkpoint go by it."""
    lines = (trained / "joint" / "metrics.jsonl").read_text("utf-8").splitlines()
    last = json.loads(lines[-1])
    assert next(name for name in last if name.startswith("valid_")) == "valid_loss"
    settings = json.loads((trained / "joint" / "report.json").read_text("utf-8"))["settings"]
    expected = settings["nelbo_weight"] * last["valid_nelbo"] + settings["energy_weight"] * last["valid_contrast"]
    assert last["valid_loss"] == pytest.approx(expected, rel=1e-9)


def test_before_it_learns_it_is_the_denoiser_that_it_starts_from(trained: Path, tmp_path: Path) -> None:
    """Ranked among one draw, as it is trained, and not among the four that the weights are reported of."""
    words = words_of({**SHORT, "steps": 1, "optimizer.lr": 0.0, "report_particles": 4, "pretrain": None, "threads": 1})
    words += ["objective=info_nce"]
    train("edlm_joint", f"denoiser={trained / 'denoiser'}", f"output_dir={tmp_path}", *words)
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["nelbo"] == pytest.approx(report["start_nelbo"], rel=1e-5)
    assert report["gain"]["mean"] == pytest.approx(0.0, abs=1e-6)
    assert report["contrast"]["mean"] == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("key", "was", "now"),
    [
        ("num_energy_layers", "1", "2"),
        ("denoiser_rate", "1.0", "0.5"),
        ("transition_steps", r"\[1, 8\]", r"\[2, 32\]"),
        ("nelbo_weight", "2.0", "1.0"),
        ("energy_weight", "1.0", "0.5"),
        ("objective", "'nce'", "'info_nce'"),
        ("num_negatives", "2", "1"),
        ("dropout", "0.0", "0.2"),
    ],
)
def test_what_it_was_trained_with_is_kept_on_resume(trained: Path, key: str, was: str, now: str) -> None:
    own = {"output_dir": trained / "joint", "denoiser": trained / "denoiser", "pretrain": None, **SHORT}
    own |= {"num_negatives": 2, "nelbo_weight": 2.0, "threads": 1, "optimizer.lr": 0.01}
    with pytest.raises(ValueError, match=f"cannot resume .*: {key} was {was}, is {now}; use another output_dir"):
        train("edlm_joint", *words_of({**own, key: now.replace("\\", "")}))


SAMPLER = {"samples.num_steps": 3, "samples.num_particles": 2, "samples.num_samples": 1}


def test_padding_is_not_scored(tmp_path: Path) -> None:
    """Texts of 4, 6 and 16 tokens: each counts by its tokens in what the denoiser pays and in the bound."""
    (tmp_path / "text").mkdir()
    for split in ("train", "test"):
        lines = '{"text": "a bc"}\n{"text": "abcdefghijklmnop"}\n' * 6
        (tmp_path / "text" / f"{split}-0.jsonl").write_text(lines, encoding="utf-8")
    files = {"_component_": "edlm.datasets.named", "name": "lm1b", "path": tmp_path / "text"}
    files |= {"cache": tmp_path / "cache", "layout": "padded", "wrapped": "true"}
    first = {**TEXTS, "length": 16, "vocabulary.specials": "[bos,eos,pad]", **SHORT}
    own = {"output_dir": tmp_path / "joint", "denoiser": tmp_path / "denoiser", "threads": 1, "optimizer.lr": 0.01}
    own |= {**SHORT, "valid_rows": 16, "transition_steps": "[2,4]", "report_particles": 4, **SAMPLER}
    words = [*words_of(files, "corpus."), *words_of(first, "pretrain."), *words_of(NETWORK, "pretrain.network.")]
    train("edlm_joint", *words, *words_of(own))
    report = json.loads((tmp_path / "joint" / "report.json").read_text("utf-8"))
    network, ids = (load(tmp_path / "joint") for load in (checkpoints.load_network, checkpoints.load_vocabulary_of))
    corpus = datasets.named("lm1b", tmp_path / "text", cache=tmp_path / "cache", layout="padded", wrapped=True)
    texts, row = corpus.blocks(ids, 16).test, torch.arange(64)
    x_0, schedule, seed = texts[row % len(texts)], schedules.log_linear(), torch.tensor(0)
    scored, denoiser = x_0 != ids.pad_id, denoisers.subs(network, ids.mask_id)
    assert sorted(set(scored.sum(1).tolist())) == [4, 6, 16]
    parts = [nelbo.nelbo(denoiser, schedule, x_0[part], seed, part, scored[part]) for part in row.split(8)]
    expected = estimates.estimate(torch.cat(parts), scored.sum(1))
    assert report["nelbo"] == pytest.approx(expected._asdict(), abs=1e-5)
    few, keys = scored[:16], (schedule, schedules.uniform_grid(3), x_0[:16], seed, row[:16])
    bound = builders.transition_bound(denoiser, joint.energy(network), *keys, num_particles=2, scored=few)
    for name, values in (("bound", bound.nats), ("gain", -bound.excess)):
        assert report[name] == pytest.approx(estimates.estimate(values, few.sum(1))._asdict(), abs=1e-5)


def test_figures_of_too_few_steps_that_reveal_anything_are_refused_before_the_first_step() -> None:
    """What a step reveals depends on noise alone, so it is known in advance whether there will be two rows."""
    settings = {"seed": 0, "valid_rows": 8, "transition_steps": [4096, 4096]}
    texts = torch.zeros(8, 2, dtype=torch.int64)
    drawn = Draws(texts, 8, batch_size=3, seed=0, device=torch.device("cpu"))
    for steps, refused in (((4096, 4096), True), ((2, 2), False)):
        stage = joint_objectives.contrastive(
            denoisers.subs(JointNetwork(4, 2, **NETWORK), 3), schedules.log_linear(), steps
        ).module["corrupt"]
        if refused:
            with pytest.raises(ValueError, match=r"^valid_rows = 8: in [01] of 8 draws of the test split"):
                contrast.require_new(stage, "test", drawn, settings)
        else:
            contrast.require_new(stage, "test", drawn, settings)
