"""`pretrain_denoiser objective=blocks`: what it trains, what its folder holds, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from running import Runner
from smallest import LENGTH, denoiser_words, train

from edlm.cli import commands
from edlm.data import corpora
from edlm.likelihood import nelbo
from edlm.models import denoisers
from edlm.nn.networks import Transformer
from edlm.process import schedules
from edlm.weights import checkpoints, loading


@pytest.mark.parametrize("levels", ["by_time", "by_count"])
def test_its_folder_holds_a_network_of_blocks_and_its_report_their_bound(tmp_path: Path, levels: str) -> None:
    train("pretrain_denoiser", *denoiser_words(tmp_path), "block=8", f"noise_levels={levels}", config="tiny_blocks")
    network = checkpoints.load_as(Transformer, tmp_path)
    assert network.arguments["block_size"] == 8
    assert checkpoints.read_description(checkpoints.find_network(tmp_path))["block"] == 8
    assert loading.frozen(str(tmp_path), torch.device("cpu")).denoiser.block_size == 8
    texts = corpora.load_blocks(corpora.embedded(), checkpoints.load_vocabulary_of(tmp_path), LENGTH).test
    x_0, row = texts[torch.arange(32) % len(texts)], torch.arange(32)
    model, parts = denoisers.subs(network, 27), [slice(first, first + 8) for first in range(0, 32, 8)]
    expected = [
        nelbo.nelbo(model, schedules.log_linear(), x_0[part], torch.tensor(0), row[part]).mean() for part in parts
    ]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["mean"] == pytest.approx(float(torch.stack(expected).mean()), rel=1e-6)


@pytest.mark.parametrize("base", ["tiny", "english27"])
def test_its_configs_are_those_of_mdlm_but_for_the_objective(base: str) -> None:
    configs = commands.configs("pretrain_denoiser")
    plain, other = (OmegaConf.to_container(OmegaConf.load(configs[key])) for key in (base, f"{base}_blocks"))
    own = {"output_dir", "objective", "block", "noise_levels", "loss_weights", "time_high"}
    assert {key: plain[key] for key in plain.keys() - own} == {key: other[key] for key in other.keys() - own}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["objective=blocks"], "block is null: objective = 'blocks' needs a number of tokens, for example 16"),
        (["objective=blocks", "block=65"], "block = 65 must be at most length = 64"),
        (["objective=blocks", "block=0"], "block = 0 must be a whole number of at least 1"),
        (["block=16"], "block = 16 needs objective = 'blocks', not 'mdlm'"),
        (["time_high=0.8"], "time_high = 0.8 needs objective = 'blocks'"),
        (
            ["objective=blocks", "block=4", "noise_levels=bell"],
            "objective = 'blocks' does not know noise_levels = 'bell'",
        ),
        (
            ["objective=blocks", "block=4", "noise_levels=some"],
            "noise_levels = 'some' must be one of by_time, by_count",
        ),
        (["objective=blocks", "block=4", "time_conditioning=true"], "needs time_conditioning = false"),
        (["objective=blocks", "block=4", "time_low=0.5", "time_high=0.4"], "time_high = 0.4 must be above time_low"),
        (["objective=blocks", "block=4", "network.block_size=8"], "network.block_size must be left out"),
        (["objective=blocks", "block=4", "loss_steps=5"], "loss_steps = 5 must be null"),
    ],
)
def test_a_choice_that_makes_no_sense_gets_one_line(run: Runner, tmp_path: Path, words: list[str], said: str) -> None:
    status, _, error = run("pretrain_denoiser", f"output_dir={tmp_path / 'run'}", *words)
    assert (status, said in error) == (2, True), error
    assert len(error.splitlines()) == 1
