"""Baselines by config: trained, drawn and scored as what their checkpoint says they are."""

import json
from pathlib import Path
from typing import Any

import pytest
import smallest
import torch
from omegaconf import OmegaConf
from running import Runner

from edlm.cli import commands
from edlm.data import corpora
from edlm.likelihood import baselines as baseline_bounds
from edlm.likelihood import nelbo
from edlm.models import denoisers
from edlm.nn import folding
from edlm.nn.networks import Transformer
from edlm.process import schedules
from edlm.samplers import baselines
from edlm.training import texts as training_texts
from edlm.weights import checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each kind after a few steps."""
    folder = tmp_path_factory.mktemp("baselines")
    for config, own in (("tiny", []), ("tiny_sedd", []), ("tiny_d3pm", ["loss_steps=20", "time_conditioning=false"])):
        words = [*smallest.denoiser_words(folder / config), "sample_every=6", *own]
        smallest.train("pretrain_denoiser", *words, config=config)
    return folder


@pytest.mark.parametrize(("base", "of"), [("tiny", "tiny"), ("text8_paper", "text8")])
@pytest.mark.parametrize("name", ["sedd", "d3pm"])
def test_a_baseline_has_the_network_data_and_batches_of_the_denoiser_it_is_compared_with(
    base: str, of: str, name: str
) -> None:
    configs = commands.configs("pretrain_denoiser")
    plain, other = (OmegaConf.to_container(OmegaConf.load(configs[key])) for key in (base, f"{of}_{name}"))
    own = {
        "output_dir",
        "schedule",
        "time_conditioning",
        "objective",
        "loss_steps",
        "time_low",
        "noise_levels",
        "loss_weights",
    }
    assert {key: plain[key] for key in plain.keys() - own} == {key: other[key] for key in other.keys() - own}
    assert (plain["objective"], other["objective"]) == ("mdlm", name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["objective=sedd"],
            "objective = 'sedd' needs time_conditioning = true: with sigma = 0 its scores are infinite",
        ),
        (["objective=sedd", "time_conditioning=true"], "needs a schedule with a finite sigma(1): log_linear(eps=1e-3)"),
        (["objective=d3pm"], "loss_steps is null: objective = 'd3pm' needs the number T of steps of its loss"),
        (["loss_steps=5"], "loss_steps = 5 must be null: objective = 'mdlm' has no steps"),
        (["objective=d3pm", "loss_steps=[2,8]"], "loss_steps is [2, 8]: objective = 'd3pm' needs the number T"),
        (["objective=chain_rule"], "loss_steps is null: objective = 'chain_rule' needs the fewest and the most steps"),
        (["objective=chain_rule", "loss_steps=8"], "loss_steps is 8: objective = 'chain_rule' needs the fewest"),
        (["loss_steps=[8,2]"], "loss_steps = [8, 2] must be two whole numbers [fewest, most]"),
        (["objective=ddpm"], "objective = 'ddpm' must be one of mdlm, chain_rule, blocks, d3pm, sedd"),
        (["patience=2"], "steps = 700 must be a multiple of valid_every = 9 where patience is given"),
    ],
)
def test_a_choice_without_what_it_needs_gets_one_line(run: Runner, tmp_path: Path, words: list[str], said: str) -> None:
    status, _, error = run(
        "pretrain_denoiser",
        f"output_dir={tmp_path / 'run'}",
        "valid_every=9",
        "noise_levels=by_time",
        "loss_weights=nelbo",
        *words,
    )
    assert (status, said in error) == (2, True), error
    assert len(error.splitlines()) == 1


def test_a_checkpoint_says_what_it_holds_and_a_report_what_was_measured(trained: Path) -> None:
    described = {
        name: checkpoints.read_description(checkpoints.find_network(trained / name))
        for name in ("tiny", "tiny_sedd", "tiny_d3pm")
    }
    assert "parameterisation" not in described["tiny"]
    found = {name: (each["objective"], each.get("parameterisation")) for name, each in described.items()}
    assert found == {
        "tiny": ("nelbo, by_count, even", None),
        "tiny_sedd": ("score_entropy", "sedd"),
        "tiny_d3pm": ("t_step", "d3pm"),
    }
    blocks = corpora.load_blocks(
        corpora.embedded(), checkpoints.load_vocabulary_of(trained / "tiny"), smallest.LENGTH
    ).test
    x_0, seed, row = blocks[torch.arange(32) % len(blocks)], torch.tensor(0), torch.arange(32)
    sedd, d3pm = (checkpoints.load_as(Transformer, trained / f"tiny_{name}") for name in ("sedd", "d3pm"))
    schedule = schedules.log_linear(1e-3)
    parts = [slice(first, first + 8) for first in range(0, 32, 8)]
    scores = denoisers.sedd(sedd, 27, schedule)
    expected = [baseline_bounds.score_entropy(scores, schedule, x_0[part], seed, row[part]) for part in parts]
    report = json.loads((trained / "tiny_sedd" / "report.json").read_text())
    assert report["mean"] == pytest.approx(float(torch.cat(expected).mean()), rel=1e-6)
    kernel = baselines.d3pm(denoisers.d3pm(d3pm, 27), schedule)
    expected = [baseline_bounds.t_step_nelbo(kernel, x_0[part], seed, row[part], 20) for part in parts]
    report = json.loads((trained / "tiny_d3pm" / "report.json").read_text())
    assert report["mean"] == pytest.approx(float(torch.cat(expected).mean()), rel=1e-6)


@pytest.mark.parametrize("name", ["sedd", "d3pm"])
def test_generate_draws_a_baseline_with_its_own_kernel(run: Runner, trained: Path, tmp_path: Path, name: str) -> None:
    texts = []
    words = [f"denoiser={trained / f'tiny_{name}'}", "energy=null", "num_samples=3", "num_steps=5", "threads=1"]
    for batch_size in (2, 3):
        output = tmp_path / f"{batch_size}.jsonl"
        status, shown, error = run("generate", *words, f"output={output}", f"batch_size={batch_size}", "prompt=a __ of")
        assert status == 0, error
        texts.append([json.loads(line)["tokens"] for line in output.read_text().splitlines()])
    assert "denoiser passes" in shown
    assert texts[0] == texts[1]
    schedule = schedules.log_linear(1e-3)
    network = checkpoints.load_as(Transformer, trained / f"tiny_{name}")
    if name == "sedd":
        kernel = baselines.analytic(denoisers.sedd(network, 27, schedule), schedule)
    else:
        kernel = baselines.d3pm(denoisers.d3pm(folding.fold_conditioning(network), 27), schedule)
    prompt = checkpoints.load_vocabulary_of(trained / "tiny").encode("a ")
    prompt = torch.cat([prompt, torch.tensor([27, 27]), checkpoints.load_vocabulary_of(trained / "tiny").encode(" of")])
    assert texts[0] == baselines.sample(kernel, 32, 5, 3, seed=0, prompt=prompt)["tokens"].tolist()


def test_texts_on_the_way_are_drawn_as_the_kind_that_is_trained(trained: Path) -> None:
    schedule, ids = schedules.log_linear(1e-3), checkpoints.load_vocabulary_of(trained / "tiny")
    plain, sedd, d3pm = (
        checkpoints.load_as(Transformer, trained / name) for name in ("tiny", "tiny_sedd", "tiny_d3pm")
    )
    expected = {
        "tiny": training_texts.denoiser_texts(denoisers.subs(plain, 27), ids, 0),
        "tiny_sedd": training_texts.baseline_texts(
            baselines.analytic(denoisers.sedd(sedd, 27, schedule), schedule), ids, 0
        ),
        "tiny_d3pm": training_texts.baseline_texts(baselines.d3pm(denoisers.d3pm(d3pm, 27), schedule), ids, 0),
    }
    for name, texts in expected.items():
        lines = (trained / name / "training_samples.jsonl").read_text("utf-8").splitlines()
        assert [json.loads(line) for line in lines] == [{"step": 6, **text} for text in texts]


@pytest.mark.parametrize("name", ["sedd", "d3pm"])
def test_evaluate_scores_a_baseline_by_its_own_bounds(run: Runner, trained: Path, tmp_path: Path, name: str) -> None:
    words = [f"denoiser={trained / f'tiny_{name}'}", "energy=null", "ar=null", "rows=8", f"output_dir={tmp_path}"]
    status, shown, error = run("evaluate", *words, "num_steps=6", "threads=1")
    assert status == 0, error
    card = json.loads((tmp_path / "metric_card.json").read_text())
    figures = [figure["figure"] for figure in card["figures"]]
    assert figures == (["score_entropy", "t_step_nelbo"] if name == "sedd" else ["t_step_nelbo"])
    assert "t_step_nelbo" in shown
    if name == "d3pm":
        status, _, error = run("evaluate", *words, "num_steps=null", "threads=1")
        assert (status, "whose bound is one of a number" in error) == (2, True), error


@pytest.mark.parametrize(
    ("recipe", "words", "said"),
    [
        ("generate", ["energy=x"], "energy = 'x' must be None"),
        ("generate", ["energy=chain_rule"], "energy = 'chain_rule' must be None"),
        ("generate", ["energy=null", "num_steps=null"], "num_steps is null"),
        ("generate", ["energy=null", "temperature=0.5"], "temperature = 0.5 must be 1.0"),
        ("generate", ["energy=null", "length=33"], "length = 33 must lie in 1..32"),
        ("edlm_nce", [], "holds a baseline (sedd), which is drawn and scored alone"),
        ("frontier", [], "holds a baseline (sedd), which is drawn and scored alone"),
        ("evaluate", ["energy=null", "transition={}/tiny"], "holds a baseline (sedd), which is drawn and scored alone"),
        (
            "edlm_nce",
            ["pretrain.objective=sedd", "denoiser=nowhere"],
            "pretrain.objective = 'sedd' must be mdlm or chain_rule",
        ),
        ("edlm_nce", ["pretrain.patience=2", "denoiser=nowhere"], "pretrain.patience = 2 must be null"),
    ],
)
def test_what_a_baseline_cannot_do_gets_one_line(
    run: Runner, trained: Path, tmp_path: Path, recipe: str, words: list[str], said: str
) -> None:
    where = {"generate": f"output={tmp_path / 'x.jsonl'}"}.get(recipe, f"output_dir={tmp_path / 'run'}")
    given = [word.replace("{}", str(trained)) for word in words]
    pretrain = ["pretrain=null"] if recipe == "edlm_nce" and not words else []
    status, _, error = run(recipe, f"denoiser={trained / 'tiny_sedd'}", where, "threads=1", *pretrain, *given)
    assert (status, said in error) == (2, True), error
    assert len(error.splitlines()) == 1


def test_resuming_as_another_kind_is_refused(run: Runner, trained: Path) -> None:
    words = [*smallest.denoiser_words(trained / "tiny_sedd"), "time_conditioning=true", "schedule.eps=1.0e-3"]
    status, _, error = run("pretrain_denoiser", *words)
    assert status == 2
    assert "objective was 'score_entropy', is 'nelbo, by_count, even'" in error


def test_under_subs_the_scores_are_a_law_that_costs_no_more(trained: Path) -> None:
    """The same network read as a denoiser: row by row its NELBO is at most the score-entropy bound."""
    network, schedule = checkpoints.load_as(Transformer, trained / "tiny_sedd"), schedules.log_linear(1e-3)
    blocks = corpora.load_blocks(corpora.embedded(), checkpoints.load_vocabulary_of(trained / "tiny"), 32).test[:16]
    keys: tuple[Any, ...] = (schedule, blocks, torch.tensor(1), torch.arange(16))
    plain = nelbo.nelbo(denoisers.subs(network, 27, schedule), *keys)
    scored = baseline_bounds.score_entropy(denoisers.sedd(network, 27, schedule), *keys)
    assert (scored - plain >= -1e-6).all()
    assert float((scored - plain).mean()) > 0.0
