"""The recipe `distill`: rounds, each from the one before, to a folder that is a denoiser like any other."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from running import Runner
from smallest import UPDATES, denoiser_words, settings_of, train, words_of

from edlm.evaluation.draws import Draws
from edlm.likelihood.estimates import Estimate
from edlm.objectives import batches, distillation
from edlm.process import schedules
from edlm.recipes.distill import Distillation
from edlm.training.loop import TrainingRun
from edlm.weights import checkpoints, loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser that is told the time, and what two rounds make of it."""
    found = tmp_path_factory.mktemp("distilled")
    train("pretrain_denoiser", *denoiser_words(found / "denoiser"), "time_conditioning=true", "schedule.eps=0.001")
    train("distill", *words(found))
    return found


def words(folder: Path) -> list[str]:
    own = {"denoiser": folder / "denoiser", "rounds": 2, "num_steps": 8, "time_low": 0.01, "threads": 1}
    return [f"output_dir={folder / 'distilled'}", *words_of({**own, **UPDATES})]


def weights(path: Path) -> torch.Tensor:
    return torch.cat([p.flatten() for p in checkpoints.load_network(path).parameters()])


def test_every_round_is_a_denoiser_and_the_last_one_is_the_output(folder: Path, run: Runner) -> None:
    first, last = folder / "distilled" / "round0", folder / "distilled"
    found = loading.denoiser(str(last), torch.device("cpu"))
    assert found.told is not None
    assert float(found.schedule.alpha(torch.ones((), dtype=torch.float64))) == pytest.approx(1e-3)
    assert [checkpoints.find_network(each).name for each in (first, last)] == ["step_00000006"] * 2
    described = checkpoints.read_description(checkpoints.find_network(last))
    assert (described["objective"], described["round"], described["at_once"]) == ("distillation, kl", 1, 2)
    assert described["denoiser_weights"] == loading.weights_of(str(folder / "denoiser"))
    assert not torch.equal(weights(first), weights(folder / "denoiser"))
    assert not torch.equal(weights(first), weights(last))
    report = json.loads((last / "report.json").read_text("utf-8"))
    assert report["num_steps"] == 2.0
    assert report["cost"]["mean"] == pytest.approx(report["nelbo"]["mean"] - report["start_nelbo"]["mean"])
    output = folder / "texts.jsonl"
    status, _, error = run(
        "generate", f"denoiser={last}", "energy=null", "num_samples=2", "num_steps=2", f"output={output}", "threads=1"
    )
    assert status == 0, error
    assert len(output.read_text("utf-8").splitlines()) == 2


def test_a_finished_run_is_left_as_it_is_and_a_changed_one_is_refused(folder: Path, run: Runner) -> None:
    before = weights(folder / "distilled")
    status, shown, _ = run("distill", *words(folder))
    assert status == 0
    assert torch.equal(weights(folder / "distilled"), before)
    assert f"written to {folder / 'distilled'}" in shown
    report = json.loads((folder / "distilled" / "report.json").read_text("utf-8"))
    for name in ("nelbo", "start_nelbo", "cost"):
        found = Estimate(**report[name])
        assert f"{found.bits:.4f} ± {found.bits_error:.4f} bits/character" in shown
    status, _, error = run("distill", *words(folder), "divergence=tvd")
    assert status == 2
    assert "objective was 'distillation, kl', is 'distillation, tvd'" in error


def test_a_round_takes_steps_that_are_as_many_times_longer_as_are_done_at_once(folder: Path) -> None:
    recipe = Distillation(settings_of("distill", *words(folder), "num_steps=64", "rounds=3"))
    recipe.load_checkpoint()
    lengths = [
        recipe.plan.stages(recipe.teacher, recipe.teacher, n).module["teach"].stage.module.length for n in range(3)
    ]
    assert lengths == [1 / 64, 1 / 32, 1 / 16]
    assert recipe.plan.denoiser(recipe.teacher).schedule.alpha(torch.ones(())) == schedules.log_linear(1e-3).alpha(
        torch.ones(())
    )


def test_a_round_is_trained_and_measured_by_what_the_settings_say(folder: Path) -> None:
    """Its times, its divergence, and its loss per token that is no padding, on held-out texts."""
    recipe = Distillation(settings_of("distill", *words(folder), "time_low=0.4", "divergence=tvd"))
    recipe.load_checkpoint()
    recipe.setup()
    pad, start = 4, recipe.plan.start
    padded = start._replace(vocabulary=SimpleNamespace(mask_id=start.vocabulary.mask_id, pad_id=pad))
    plan, rows = recipe.plan._replace(start=padded), 8
    drawn = Draws(recipe.blocks.valid, rows, 4, 3, torch.device("cpu"))
    x_0 = drawn.texts(torch.arange(rows))
    batch = batches.training_batch(x_0, 3, torch.arange(rows), batches.HELD_OUT_STEP, rows)
    network = copy.deepcopy(recipe.teacher)
    with torch.no_grad():
        network.head.weight.add_(torch.randn(network.head.weight.shape, generator=torch.Generator().manual_seed(1)))
    teacher, student = plan.denoiser(recipe.teacher), plan.denoiser(network)
    wanted = distillation.distillation(student, teacher, start.schedule, 8.0, 2, "tvd", 0.4, pad).eval()(batch)
    found = plan.stages(network, recipe.teacher, 0).eval()(batch)
    for key in ("x_t", "t", "loss"):
        torch.testing.assert_close(found[key], wanted[key])
    assert (x_0 == pad).any()
    assert (found["x_t"][x_0 == pad] == pad).all()
    assert float(found["t"].min()) > 0.4
    per_token = float(wanted["loss"].detach().sum() / (x_0 != pad).sum())
    assert per_token > 0.01
    assert plan.held_out(network, recipe.teacher, 0, drawn) == pytest.approx(per_token, rel=1e-5)


def test_the_student_of_a_round_is_the_teacher_of_the_next(folder: Path) -> None:
    recipe = Distillation(settings_of("distill", *words(folder)))
    recipe.load_checkpoint()
    recipe.setup()
    taught = []
    build = recipe.round

    def seen(number: int) -> TrainingRun:
        taught.append(torch.cat([p.flatten() for p in recipe.teacher.parameters()]))
        return build(number)

    recipe.round = seen  # type: ignore[method-assign]
    recipe.train()
    assert torch.equal(taught[0], weights(folder / "denoiser"))
    assert torch.equal(taught[1], weights(folder / "distilled" / "round0"))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("rounds=4", "rounds = 4 with at_once = 2 put 16 steps into one: num_steps = 8 must be at least as many"),
        ("divergence=js", "divergence = 'js' must be one of kl, kl-fwd, mse, tvd"),
        ("at_once=0", "at_once = 0 must be a whole number of at least 1"),
        ("denoiser=nowhere", "nowhere"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, run: Runner, tmp_path: Path, word: str, said: str) -> None:
    status, _, error = run("distill", *words(folder), f"output_dir={tmp_path / 'x'}", word)
    assert status == 2
    assert said in error
    assert len(error.strip().splitlines()) == 1
