"""The recipe `speedrun`: every variant with every seed, in folders of their own, and one table."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from running import Runner
from smallest import NETWORK, TEXTS, settings_of, train, words_of
from torch import nn

from edlm.recipes.pretrain_denoiser import PretrainDenoiser
from edlm.recipes.speedrun import Speedrun
from edlm.weights import checkpoints

VARIANTS = 'variants={"published": {}, "short warm-up": {"warmup_steps": 1}, 2: {}}'


def words(folder: Path) -> list[str]:
    return [f"output_dir={folder}", *words_of(TEXTS, "base."), *words_of(NETWORK, "base.network."), "threads=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("speedrun")
    train("speedrun", *words(found), "seeds=[0, 1]", "targets=[9.0]", "only=[published, by count]")
    return found


def lines(folder: Path) -> dict[str, dict]:
    return {each["name"]: each for each in map(json.loads, (folder / "speedrun.jsonl").read_text().splitlines())}


def test_a_training_is_that_of_the_recipe_with_its_settings_and_seed(folder: Path, tmp_path: Path) -> None:
    own = [f"output_dir={tmp_path / 'alone'}", *words_of(TEXTS), *words_of(NETWORK, "network."), "threads=1", "seed=1"]
    same = "network.qk_norm=false", "warmup_steps=12", "ema_decay=0.98", "noise_levels=by_count", "loss_weights=nelbo"
    train("pretrain_denoiser", *own, *same)
    alone, ours = (
        torch.cat([each.flatten() for each in checkpoints.load_network(path).parameters()])
        for path in (tmp_path / "alone", folder / "by_count" / "seed1")
    )
    assert torch.equal(alone, ours)
    report = json.loads((folder / "by_count" / "seed1" / "report.json").read_text())
    record = lines(folder)["by count, seed 1"]
    assert (record["test"], record["error"], record["n"]) == (report["mean"], report["standard_error"], report["n"])
    logged = map(json.loads, (folder / "by_count" / "seed1" / "metrics.jsonl").read_text().splitlines())
    assert record["curve"] == [[each["step"], each["valid_nelbo"]] for each in logged if "valid_nelbo" in each]
    assert record["seconds"] > 0.0


def test_the_table_has_every_variant_with_its_seeds(folder: Path) -> None:
    table = (folder / "speedrun.md").read_text().splitlines()
    assert [row.split(" | ")[:2] for row in table[2:]] == [["| published", "2"], ["| by count", "2"]]


def test_what_is_finished_is_taken_as_it_is_and_more_may_come(folder: Path, run: Runner) -> None:
    before = (folder / "speedrun.jsonl").read_bytes()
    status, _, error = run("speedrun", *words(folder), "seeds=[0]", VARIANTS, "only=[published, short warm-up, '2']")
    assert status == 0, error
    after = (folder / "speedrun.jsonl").read_bytes()
    assert after.startswith(before)
    assert list(lines(folder))[4:] == ["short warm-up, seed 0", "2, seed 0"]
    table = (folder / "speedrun.md").read_text().splitlines()
    status, _, error = run("speedrun", *words(folder), "seeds=[0]", VARIANTS, "only=['2', published]")
    assert status == 0, error
    assert (folder / "speedrun.jsonl").read_bytes() == after
    assert (folder / "speedrun.md").read_text().splitlines() == [*table[:3], table[-1]]
    status, _, error = run("speedrun", *words(folder), "seeds=[0]", "base.batch_size=4")
    assert status == 2
    assert "base.batch_size was 8, is 4; use another output_dir" in error


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("{network: {hidden_size: 7}}", "hidden_size = 7 must be a multiple of"),
        ("{start_from: nowhere}", "start_from = nowhere: no checkpoint there"),
    ],
)
def test_a_variant_that_cannot_be_built_is_refused_before_anything_is_trained(
    variant: str, said: str, run: Runner, tmp_path: Path
) -> None:
    status, _, error = run("speedrun", *words(tmp_path / "out"), "seeds=[0]", f"variants={{last: {variant}}}")
    assert (status, said in error) == (2, True), error
    assert not [*tmp_path.rglob("checkpoints")]


def test_only_variants_that_are_there_can_be_named(folder: Path, run: Runner) -> None:
    for given, said in (
        ("[mine]", "only = 'mine' must be one of the variants: published, Muon, by count"),
        ("[]", "only = [] must"),
        ("[2]", "only[0] = 2 must"),
    ):
        status, _, error = run("speedrun", *words(folder), f"only={given}")
        assert (status, said in error) == (2, True), error


def test_a_known_name_for_another_variant_is_refused_with_both(folder: Path, run: Runner) -> None:
    status, _, error = run("speedrun", *words(folder), "seeds=[0]", "variants={published: {steps: 3}}")
    assert status == 2
    assert "'published, seed 0' was {}, is {'steps': 3}; use another output_dir" in error


def test_a_training_that_ended_before_its_line_has_its_figures_and_no_seconds(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = lines(copy)["published, seed 0"]
    for name in ("speedrun.jsonl", "speedrun.md"):
        (copy / name).unlink()
    recipe = Speedrun(settings_of("speedrun", *words(copy), "seeds=[0]"))
    recipe.setup()
    found = recipe.measured(recipe._settings("published", 0))
    assert found["seconds"] is None
    assert before["seconds"] > 0.0
    assert all(found[key] == before[key] for key in ("curve", "flops", "test", "error", "n"))


def test_seconds_leave_validations_out(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation that takes a hundred seconds of the processor, by its clock, is none of the training's."""
    validate, clock, validated = PretrainDenoiser.validate, time.process_time, list[int]()

    def slow(self: PretrainDenoiser, network: nn.Module) -> dict[str, float]:
        validated.append(1)
        return validate(self, network)

    monkeypatch.setattr(PretrainDenoiser, "validate", slow)
    monkeypatch.setattr(time, "process_time", lambda: clock() + 100.0 * len(validated))
    recipe = Speedrun(settings_of("speedrun", *words(tmp_path), "seeds=[0]"))
    recipe.setup()
    found = recipe.measured(recipe._settings("published", 0))
    assert len(found["curve"]) == 2
    assert len(validated) >= 2
    assert 0.0 < found["seconds"] < 50.0
