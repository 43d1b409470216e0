"""The denoiser that an energy's training starts from: trained where it is missing, frozen, and none of another kind."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from builders import tiny_network
from smallest import energy_words, settings_of

from edlm.data import vocabulary
from edlm.process import schedules
from edlm.recipes import pretrain_denoiser
from edlm.training import start as starts
from edlm.weights import checkpoints
from edlm.weights.loading import Found

CPU = torch.device("cpu")


def load(folder: Path, steps: int, *others: str) -> Found:
    words = [f"pretrain.steps={steps}", "pretrain.decay=constant", "pretrain.schedule.eps=0.01", "seed=3", *others]
    return starts.load(settings_of("edlm_nce", *energy_words(folder), *words), CPU, pretrain_denoiser.main)


def stopped(folder: Path) -> Path:
    """The run of a denoiser as it was after 3 of its 6 steps."""
    load(folder, 6)
    run = folder / "denoiser"
    shutil.rmtree(run / "checkpoints" / "step_00000006")
    (run / "checkpoints" / "last.json").write_text(json.dumps({"folder": "step_00000004"}))
    (run / "report.json").unlink()
    return run


def test_it_is_trained_until_it_has_its_steps_and_then_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that came to its own end is what it is, whatever steps are asked for; one that was stopped goes on."""
    said = f"no finished denoiser at {tmp_path / 'denoiser'}: training it first"
    for steps, at, trains in ((4, 4, True), (4, 4, False), (3, 4, False), (6, 4, False)):
        start = load(tmp_path, steps)
        assert (start.description["step"], start.description["seed"]) == (at, 3)
        assert (said in capsys.readouterr().out) == trains
        assert not any(parameter.requires_grad for parameter in start.network.parameters())
    (tmp_path / "other").mkdir()
    stopped(tmp_path / "other")
    capsys.readouterr()
    assert load(tmp_path / "other", 6).description["step"] == 6
    assert "training it first" in capsys.readouterr().out
    time = torch.tensor(0.5)
    expected = schedules.log_linear(0.01)
    assert torch.equal(start.schedule.alpha(time), expected.alpha(time))
    assert not torch.equal(start.schedule.alpha(time), 1.0 - time)


@pytest.mark.slow
def test_a_denoiser_that_was_stopped_before_its_report_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between its last checkpoint and its report, or after fewer steps; another plan cannot write it."""
    load(tmp_path, 2)
    folder = tmp_path / "denoiser"
    report, weights = (folder / "report.json").read_text(), load(tmp_path, 2).weights
    for lost in ("report.json", "curves.png"):
        (folder / lost).unlink()
        capsys.readouterr()
        assert load(tmp_path, 2).weights == weights
        assert f"the denoiser at {folder} has no report: writing it" in capsys.readouterr().out
        assert (folder / lost).is_file()
        assert (folder / "report.json").read_text() == report
    for content in (json.dumps({**json.loads(report), "step": 1}), "{"):
        (folder / "report.json").write_text(content)
        load(tmp_path, 2)
        assert (folder / "report.json").read_text() == report
    (folder / "report.json").unlink()
    assert load(tmp_path, 2, "pretrain.batch_size=4").weights == weights
    assert "without a report: cannot resume" in capsys.readouterr().out


def test_a_network_folder_is_taken_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint by its path, or published weights: nothing is trained into their folder."""
    last = checkpoints.find_network(_trained(tmp_path))
    kept = shutil.copytree(last, tmp_path / "kept" / "denoiser")
    capsys.readouterr()
    assert load(tmp_path / "kept", steps=9).description["step"] == 2
    assert "training it first" not in capsys.readouterr().out
    assert {file.name for file in kept.iterdir()} == {file.name for file in last.iterdir()}


def test_a_network_folder_without_its_json_is_not_trained_into(tmp_path: Path) -> None:
    abc, notes = vocabulary.characters(), {"schedule": {"_component_": "edlm.process.schedules.cosine"}}
    checkpoints.save_network(
        tmp_path / "denoiser", tiny_network(vocab_size=abc.size), abc, {**notes, "time_conditioning": False}
    )
    (tmp_path / "denoiser" / "network.json").unlink()
    before = sorted(path.name for path in (tmp_path / "denoiser").iterdir())
    with pytest.raises(ValueError, match=r"holds the weights of a network and no network\.json"):
        load(tmp_path, 2)
    assert sorted(path.name for path in (tmp_path / "denoiser").iterdir()) == before


def test_a_run_of_another_plan_is_named_with_what_to_do(tmp_path: Path) -> None:
    stopped(tmp_path)
    words = ["pretrain.steps=6", "pretrain.decay=constant", "pretrain.schedule.eps=0.01", "pretrain.batch_size=3"]
    with pytest.raises(ValueError, match=r"batch_size was \d+, is 3;.* name another denoiser=, or .* pretrain=null$"):
        starts.load(settings_of("edlm_nce", *energy_words(tmp_path), *words), CPU, pretrain_denoiser.main)


def _trained(folder: Path) -> Path:
    load(folder, steps=2)
    return folder / "denoiser"


NOTES = {"schedule": {"_component_": "edlm.schedules.cosine", "eps": 0.125}, "time_conditioning": False}


def saved(folder: Path, **notes: object) -> dict[str, object]:
    """The settings of a run that starts from a checkpoint with these notes and trains none."""
    checkpoints.save_network(folder, tiny_network(0, 5, 8).float(), vocabulary.characters("abcd"), notes)
    return {"denoiser": str(folder), "pretrain": None}


def test_a_denoiser_that_is_there_is_loaded_frozen_with_its_own_schedule(tmp_path: Path) -> None:
    start = starts.load(saved(tmp_path / "denoiser", **NOTES), CPU, pretrain_denoiser.main)
    assert not any(parameter.requires_grad for parameter in start.network.parameters())
    expected, time = tiny_network(0, 5, 8).float().state_dict(), torch.linspace(0.0, 1.0, 5)
    assert all(torch.equal(value, expected[key]) for key, value in start.network.state_dict().items())
    assert torch.equal(start.schedule.alpha(time), schedules.cosine(0.125).alpha(time))
    assert (start.vocabulary.size, start.description["time_conditioning"]) == (5, False)


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ({**NOTES, "parameterisation": "sedd"}, r"holds a baseline \(sedd\), which is drawn and scored alone"),
        ({}, "holds a network that was not trained as a denoiser"),
    ],
)
def test_what_holds_no_denoiser_of_drafts_is_refused(tmp_path: Path, notes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"denoiser = '{tmp_path / 'denoiser'}' {said}"):
        starts.load(saved(tmp_path / "denoiser", **notes), CPU, pretrain_denoiser.main)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("pretrain.objective=sedd", "pretrain.objective = 'sedd' must be mdlm or chain_rule"),
        ("pretrain.patience=2", "pretrain.patience = 2 must be null"),
        ("accumulate=9", "batch_size = 8 must be at least accumulate = 9"),
        ("patience=2 valid_every=4", "steps = 6 must be a multiple of valid_every = 4"),
        ("batch_size=600000", "batch_size = 600000 texts of 32 tokens: tokens = 19200000 must be at most"),
        ("num_negatives=70000", "num_negatives = 70000 texts of 32 tokens for each of 8: tokens = "),
    ],
)
def test_a_wrong_plan_of_either_training_is_refused_before_the_denoiser_is_trained(
    tmp_path: Path, word: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        starts.load(settings_of("edlm_nce", *energy_words(tmp_path), *word.split()), CPU, pretrain_denoiser.main)
    assert not list(tmp_path.iterdir())
