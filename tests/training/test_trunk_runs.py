"""Trainings of energies over large denoisers: their start, going on, forecasts, and what is refused."""

import math
import re
from pathlib import Path
from typing import Any

import over_large
import pytest
import torch
from large_folders import random_weights, write

import edlm
from edlm import energies, pipelines
from edlm.data import vocabulary
from edlm.samplers import corrections, plans
from edlm.samplers.sampler import Sampler
from edlm.training import forecast, log
from edlm.weights import checkpoints


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "draw_curves", lambda _: None)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaDA, a denoiser made of an AR model, and that model."""
    folder = tmp_path_factory.mktemp("over")
    for kind in ("llada", "adapted"):
        over_large.denoiser(folder, kind)
    return folder


@pytest.mark.parametrize("how", over_large.HOW)
def test_before_training_texts_are_those_of_no_energy(how: str, root: Path, tmp_path: Path) -> None:
    recipe = over_large.begun(root / "llada", tmp_path / "run", **over_large.HOW[how])
    plain = Sampler(recipe.denoiser, plans.Grid(4))
    ways = (recipe.plan.energy(recipe.run.network.eval()), energies.zero())
    samplers = [plain.replace(correction=corrections.OfEnergy(each), candidates=4) for each in ways]
    texts = [edlm.sample(pipelines.pipeline(each, length=over_large.LENGTH), 4, seed=1) for each in samplers]
    assert torch.equal(texts[0]["tokens"], texts[1]["tokens"])
    assert texts[0]["info", "ess"].nansum() > 0  # weighed, and evenly


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["draft", "transition"])
@pytest.mark.parametrize("how", over_large.HOW)
def test_it_learns_to_tell_texts_from_draws(how: str, scope: str, root: Path, tmp_path: Path) -> None:
    """Of a random denoiser, whose draws are easily told: knowing nothing costs 2 ln 2 = 1.386 nats."""
    fast = {"steps": 60, "batch_size": 16, "warmup_steps": 0, "optimizer.lr": 0.01}
    run = over_large.begun(root / "llada", tmp_path / "run", scope=scope, **{**fast, **over_large.HOW[how]}).run
    losses = [run._update() for _ in range(60)]
    assert losses[0] == pytest.approx(2 * math.log(2), abs=1e-6)
    assert sum(losses[-10:]) / 10 < 1.25


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llada", {"scope": "draft", "dropout": 0.2}),
        ("llada", over_large.HOW["trained"]),
        ("llada", over_large.HOW["lora"]),
        ("adapted", {"ar": "hub", "scope": "draft", "trunk": "trained"}),
    ],
)
def test_a_run_that_was_stopped_and_goes_on_is_the_run_that_was_not(
    kind: str, more: dict[str, Any], root: Path, tmp_path: Path
) -> None:
    more = {**more, "ar": root / "hub"} if "ar" in more else more
    over_large.trained(root / kind, tmp_path / "whole", **more)
    half = over_large.begun(root / kind, tmp_path / "run", **more)
    half.run._update()
    half.run._update()
    half.save_checkpoint()
    again = over_large.begun(root / kind, tmp_path / "run", **more)
    assert again.run.step == 2
    again.train()
    one, other = (checkpoints.last_checkpoint(tmp_path / name) for name in ("whole", "run"))
    assert one is not None
    assert other is not None
    files = {file.name for file in one.glob("*.safetensors")} - {"training.safetensors"}
    assert files
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    states = [checkpoints.load_state(folder)["network"] for folder in (one, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_run_does_not_go_on_over_another_denoiser_or_in_another_way(root: Path, tmp_path: Path) -> None:
    over_large.trained(root / "llada", tmp_path / "run")
    for kind, more, said in (
        ("llada", over_large.HOW["lora"], "lora was None, is {'rank': 2, 'alpha': 4.0}"),
        ("llada", {"trunk": "trained"}, "trunk was 'frozen', is"),
        ("llada", {"length": 8}, "length was 12, is 8"),
        ("adapted", {}, "denoiser_weights was"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            over_large.begun(root / kind, tmp_path / "run", **more)


@pytest.mark.parametrize("how", over_large.HOW)
def test_frozen_weights_keep_the_precision_of_their_folder_and_what_takes_gradients_is_float32(
    how: str, tmp_path: Path
) -> None:
    write(tmp_path / "half", "llada", random_weights("llada", dtype=torch.bfloat16), torch_dtype="bfloat16")
    (tmp_path / "half" / "tokenizer.json").write_text(vocabulary.characters().tokenizer.to_str())
    recipe = over_large.begun(tmp_path / "half", tmp_path / "run", **over_large.HOW[how])
    held = {value.dtype for value in recipe.denoiser.network.layers.parameters() if value.ndim == 2}
    assert held == {torch.bfloat16 if how == "frozen" else torch.float32}
    assert {value.dtype for value in recipe.run.network.parameters() if value.requires_grad} == {torch.float32}
    recipe.run._update()
    assert recipe.run._update() == pytest.approx(1.386, abs=0.1)


def test_texts_that_a_bos_opens_have_the_length_that_is_asked_for(tmp_path: Path) -> None:
    """Dream's, whose network reads it in front of them; the tokens of a text are its own."""
    recipe = over_large.begun(over_large.denoiser(tmp_path, "dream"), tmp_path / "run")
    assert recipe.denoiser.max_length == over_large.LENGTH == recipe.blocks.train[torch.arange(1)].shape[1]


@pytest.mark.parametrize("how", over_large.HOW)
def test_the_forecast_counts_frozen_tensors_once_and_states_of_what_is_trained(
    how: str, root: Path, tmp_path: Path
) -> None:
    run = over_large.begun(root / "llada", tmp_path / "run", **over_large.HOW[how]).run
    found = forecast.forecast(run.network, run.stages, run.optimizer, run._some_loss, run.settings)
    tensors = {each.data_ptr(): each.nbytes for each in run.stages.parameters()}
    trained = sum(each.nbytes for each in run.network.parameters() if each.requires_grad)
    assert found.held["parameters"] + found.held["frozen networks"] == sum(tensors.values())
    assert (found.held["EMA"], found.held["gradients"], found.held["optimizer"]) == (trained, trained, 2 * trained)
    assert sum(each.nbytes for each in run.weights._averages) == trained


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"start_from": "scratch"}, "start_from = 'scratch' must be denoiser"),
        ({"embedding": "shared"}, "embedding = 'shared' must be own"),
        ({"parallel": "sharded"}, "parallel = 'sharded' must be data"),
        ({"precision": "pure_bfloat16"}, "precision = 'pure_bfloat16' must be bfloat16 or float32"),
        ({"ar": "hub", "scope": "draft"}, "trunk = 'frozen' trains nothing of ar = "),
        ({"ar": "ours", "scope": "draft"}, "trunk = 'frozen' is for large models: all of ar = "),
        ({"compile": "true"}, "TrunkEnergy has no blocks to compile"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(more: dict[str, Any], said: str, root: Path, tmp_path: Path) -> None:
    given = {**more, "ar": root / more["ar"]} if "ar" in more else more
    with pytest.raises(ValueError, match=re.escape(said)) as refusal:
        over_large.begun(root / "adapted", tmp_path / "run", **given)
    assert "\n" not in str(refusal.value)
