"""Training of an energy: what is logged, what is warned of, when it stops, and what it may share with the denoiser."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fault import Fault
from planting import package_in
from running import Runner
from smallest import CLOSING, NETWORK, TEXTS, UPDATES, denoiser_words, train, words_of
from test_planted_faults import plant
from torch import Tensor, nn

from edlm import contracts
from edlm.data import corpora, datasets
from edlm.data.vocabulary import characters
from edlm.evaluation import contrast
from edlm.likelihood import estimates, nelbo
from edlm.models import denoisers, energies
from edlm.nn import starts
from edlm.nn.networks import EnergyNetwork, Transformer
from edlm.objectives import batches, losses, transition
from edlm.process import schedules
from edlm.training.patience import Patience
from edlm.training.sharding import PURE, Weights
from edlm.weights import checkpoints

Run = Callable[..., tuple[int, str, str]]


def energy_words(folder: Path, denoiser: Path) -> list[str]:
    samples = {"num_samples": 1, "num_steps": 2, "num_particles": 2}
    paths = [f"output_dir={folder}", f"denoiser={denoiser}", "pretrain=null", "threads=1"]
    few = ["valid_rows=16", "report_particles=4", "scope=draft", *words_of(CLOSING, "closing.")]
    return [*paths, *words_of(UPDATES), *words_of(samples, "samples."), *few]


@pytest.fixture
def run(run: Runner) -> Run:
    """Run a recipe in this process: exit status, standard output and standard error."""

    def call(recipe: str, *words: str) -> tuple[int, str, str]:
        ran = run(recipe, *words)
        return ran.status, ran.out, run.error

    return call


@pytest.fixture(scope="session")
def denoiser(trained: Path) -> Path:
    return trained / "denoiser"


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- What is said of an energy


def figures_of(positive: Tensor, negative: Tensor) -> dict[str, Tensor]:
    t = (torch.arange(len(positive)).double() + 0.5) / len(positive)
    energies = torch.cat([positive.unsqueeze(1), negative], 1)
    return contrast.of_batch(energies, t, 2, "nce", 1)


GOOD = -1.0 + torch.randn(200, generator=torch.Generator().manual_seed(0))
BAD = 1.0 + torch.randn(200, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("positive", "negative", "said"),
    [
        (GOOD, BAD, None),
        (-GOOD, -BAD, "the energy is higher on data than on draws, its sign is wrong (mean gap -"),
        (torch.full((200,), 0.3), torch.full((200, 3), 0.3), "the energy is constant"),
        (
            GOOD,
            GOOD[torch.randperm(200, generator=torch.Generator().manual_seed(2))].unsqueeze(1),
            "does not tell data",
        ),
    ],
    ids=["right", "flipped", "constant", "noise"],
)
def test_an_energy_that_is_wrong_is_said_to_be_with_the_figure(positive: Tensor, negative: Tensor, said: str | None):
    warning = contrast.warning(figures_of(positive, negative))
    assert (warning is None) == (said is None)
    if warning is not None:
        assert said in warning
        assert "accuracy 0." in warning
        assert "n = 200" in warning


def test_what_is_logged_starts_with_the_loss_and_has_every_figure_of_every_noise_level():
    per_row = figures_of(GOOD, BAD)
    found = contrast.metrics(per_row, "nce", 1)
    assert next(iter(found)) == "loss"
    for name in (*contrast.FIGURES, "calibration_error"):
        parts = [found[f"{name}_t{level / 5:.1f}-{(level + 1) / 5:.1f}"] for level in range(5)]
        assert all(math.isfinite(value) for value in parts)
        if name != "calibration_error":  # of equally many rows each
            assert sum(parts) / 5 == pytest.approx(found[name], rel=1e-6)
    levels = contrast.by_noise_level(per_row, "nce", 1)
    inside = (per_row["t"] >= 0.4) & (per_row["t"] < 0.6)
    assert levels[2]["gap"] == pytest.approx(float((BAD.mean(1) - GOOD)[inside].mean()), rel=1e-6)
    at_one = {name: torch.ones_like(values) if name == "t" else values for name, values in per_row.items()}
    assert [level["n"] for level in contrast.by_noise_level(at_one, "nce", 1)] == [0, 0, 0, 0, 200]
    empty = {name: values[per_row["t"] < 0.2] for name, values in per_row.items()}
    assert not any("t0.2" in name for name in contrast.metrics(empty, "nce", 1))


@pytest.mark.slow
def test_figures_by_noise_level_are_logged_while_an_energy_learns_and_no_warning_is_given(
    run: Run, denoiser: Path, tmp_path: Path
) -> None:
    words = [*energy_words(tmp_path, denoiser), "optimizer.lr=0.02", "warmup_steps=0", "steps=12", "valid_every=6"]
    status, shown, error = run("edlm_nce", *words, "dropout=0.0", "ema_decay=0.5")
    assert status == 0, error
    assert "calibration error" in shown
    assert "warning" not in shown.splitlines()[-1]
    last = logged(tmp_path)[-1]
    for name in ("loss", "accuracy", "gap", "ess", "log_weight_std", "calibration_error"):
        assert {f"valid_{name}", f"valid_{name}_t0.0-0.2", f"valid_{name}_t0.8-1.0"} <= last.keys()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["gap"]["mean"] > 2 * report["gap"]["standard_error"], "else this run shows nothing"
    assert report["warning"] is None
    assert "warning" not in shown
    assert 0.0 <= report["calibration"]["error"] <= 1.0


@pytest.mark.slow
def test_a_planted_sign_is_warned_of_while_training_and_at_the_end(denoiser: Path, tmp_path: Path) -> None:
    """The loss of a copy of the package with data and drafts swapped: the figure and what it means, twice."""
    package_in(tmp_path / "copy")
    right = "return F.softplus(energy_positive) + F.softplus(-energy_negative).mean(-1)"
    wrong = "return F.softplus(-energy_positive) + F.softplus(energy_negative).mean(-1)"
    plant(tmp_path / "copy", Fault("the sign", "objectives/losses.py", right, wrong, ""))
    words = [*energy_words(tmp_path / "run", denoiser), "optimizer.lr=0.02", "warmup_steps=0", "steps=12"]
    command = [sys.executable, "-m", "edlm.cli.commands", "run", "edlm_nce", *words, "valid_every=12", "dropout=0.0"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "copy")}
    done = subprocess.run(
        [*command, "ema_decay=0.5"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = "warning: the energy is higher on data than on draws, its sign is wrong (mean gap -"
    assert f"step 12: {said}" in done.stderr
    assert said in done.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["warning"].startswith(said)
    assert report["gap"]["mean"] < 0


@pytest.mark.slow
def test_an_energy_that_learns_nothing_is_warned_of(run: Run, denoiser: Path, tmp_path: Path) -> None:
    words = [*energy_words(tmp_path, denoiser), "optimizer.lr=0.0", "start_from=scratch", "steps=3"]
    status, shown, error = run("edlm_nce", *words)
    assert status == 0, error
    assert "step 3: warning: the energy is constant" in error, "an energy starts at zero"
    assert "  warning: the energy is constant, it does not tell data from draws (mean gap 0.0000" in shown


def test_padding_is_neither_masked_nor_scored_nor_read(tmp_path: Path) -> None:
    """Texts of 4, 6 and 16 tokens: the contrast and the denoiser's bound are those without it."""
    (tmp_path / "text").mkdir()
    for split in ("train", "test"):
        lines = '{"text": "a bc"}\n{"text": "abcdefghijklmnop"}\n' * 6
        (tmp_path / "text" / f"{split}-0.jsonl").write_text(lines, encoding="utf-8")
    files = {"_component_": "edlm.datasets.named", "name": "lm1b", "path": tmp_path / "text"}
    files |= {"cache": tmp_path / "cache", "layout": "padded", "wrapped": "true"}
    own = [*energy_words(tmp_path / "energy", tmp_path / "denoiser")[:2], "threads=1", "scope=transition"]
    own += [*words_of(UPDATES), "optimizer.lr=0.02", "warmup_steps=0", "transition_steps=[2,4]", "report_particles=4"]
    own += words_of({"num_samples": 1, "num_steps": 3, "num_particles": 2}, "samples.")
    first = {**TEXTS, "length": 16, "vocabulary.specials": "[bos,eos,pad]"}
    own += words_of(CLOSING, "closing.")
    train(
        "edlm_nce",
        *own,
        *words_of(files, "corpus."),
        *words_of(first, "pretrain."),
        *words_of(NETWORK, "pretrain.network."),
    )
    report = json.loads((tmp_path / "energy" / "report.json").read_text("utf-8"))

    ids = checkpoints.load_vocabulary_of(tmp_path / "denoiser")
    denoiser = denoisers.subs(checkpoints.load_network(tmp_path / "denoiser"), ids.mask_id)
    energy = energies.learned_transition(checkpoints.load_network(tmp_path / "energy"), None, ids.pad_id)
    corpus = datasets.named("lm1b", tmp_path / "text", cache=tmp_path / "cache", layout="padded", wrapped=True)
    texts, row = corpus.blocks(ids, 16).test, torch.arange(32)
    x_0, schedule, seed = texts[row % len(texts)], schedules.log_linear(), torch.tensor(0)
    scored = x_0 != ids.pad_id
    stages = transition.contrastive(denoiser, energy, schedule, (2, 4), 4, pad_id=ids.pad_id)
    with torch.no_grad():
        found = stages(batches.training_batch(x_0, 0, row, batches.HELD_OUT_STEP, 32))[contracts.ENERGY].double()
    for name, values in (
        ("loss", losses.nce(found[:, 0], found[:, 1:2])),
        ("gap", found[:, 1:].mean(1) - found[:, 0]),
    ):
        assert report[name] == pytest.approx(estimates.estimate(values)._asdict(), abs=1e-5), name
    parts = [nelbo.nelbo(denoiser, schedule, x_0[part], seed, part, scored[part]) for part in row.split(8)]
    expected = estimates.estimate(torch.cat(parts), scored.sum(1))
    assert report["nelbo"] == pytest.approx(expected._asdict(), abs=1e-5)


# ---- Shared embedding


def test_a_shared_embedding_is_one_memory_and_takes_no_gradient():
    denoiser, energy = Transformer(5, 8, 16, 1, 2, 8), EnergyNetwork(5, 8, 16, 1, 2, 8)
    starts.share_embedding(energy, denoiser)
    assert energy.embedding.weight.data_ptr() == denoiser.embedding.weight.data_ptr()
    with torch.no_grad():
        energy.scalar.weight.fill_(1.0)
    energy(torch.randint(5, (2, 8)), torch.randint(5, (2, 8))).sum().backward()
    assert energy.embedding.weight.grad is None
    assert energy.combine.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"embedding \(6, 16\) must have the denoiser's shape \(5, 16\)"):
        starts.share_embedding(EnergyNetwork(6, 8, 16, 1, 2, 8), denoiser)


def test_an_energy_in_half_precision_leaves_the_embedding_of_its_denoiser_as_it_was():
    denoiser, energy = Transformer(5, 8, 16, 1, 2, 8), EnergyNetwork(5, 8, 16, 1, 2, 8)
    starts.share_embedding(energy, denoiser)
    before = denoiser.embedding.weight.clone()
    Weights(energy, "data", PURE)
    assert energy.embedding.weight.dtype == torch.bfloat16
    assert torch.equal(denoiser.embedding.weight, before)
    assert denoiser.embedding.weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("start_from", ["denoiser", "scratch"])
def test_by_config_the_energy_reads_tokens_as_the_denoiser_does(
    run: Run, denoiser: Path, tmp_path: Path, start_from: str
) -> None:
    words = [*energy_words(tmp_path, denoiser), f"start_from={start_from}", "optimizer.lr=0.02", "steps=3"]
    status, _, error = run("edlm_nce", *words, "embedding=shared")
    assert status == 0, error
    of_denoiser = checkpoints.load_as(Transformer, denoiser).embedding.weight
    assert torch.equal(checkpoints.load_as(EnergyNetwork, tmp_path).embedding.weight, of_denoiser)
    status, _, error = run("edlm_nce", *words)
    assert (status, "embedding was 'shared', is None" in error) == (2, True), error


# ---- Early stopping


class Nothing(nn.Module):
    """A network with one number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))


def test_patience_counts_what_does_not_improve():
    patience = Patience(2)
    assert (patience.best, patience.state()) == (None, {})
    for step, (loss, waited) in enumerate([(3.0, 0), (2.0, 0), (2.0, 1), (1.5, 0), (math.nan, 1)], start=1):
        assert patience.note(step, loss) == (waited == 0)
        assert (patience.waited, patience.exhausted) == (waited, False)
    resumed = Patience(2)
    resumed.load_state(json.loads(json.dumps(patience.state())))
    assert not resumed.note(6, 1.5)
    assert resumed.exhausted
    assert resumed.best == {"step": 4, "loss": 1.5}


def test_without_a_limit_it_never_has_enough():
    patience = Patience(None)
    for step in range(1, 6):
        patience.note(step, float(step))
    assert not patience.exhausted
    assert patience.best == {"step": 1, "loss": 1.0}


# A rate at which no weight changes, so that no validation is better than the first one, on any processor: one at which
# training diverges would leave to rounding which is the best.
STANDING_STILL = [
    "optimizer.lr=1e-30",
    "warmup_steps=0",
    "decay=constant",
    "ema_decay=0.0",
    "patience=3",
    "valid_rows=16",
]


def test_a_run_stops_when_the_held_out_loss_no_longer_improves_and_reports_the_best(run: Run, tmp_path: Path) -> None:
    """And a run cut in two stops where the whole one does, bit for bit."""
    for folder, ends in (("whole", [30]), ("parts", [6, 30])):
        for steps in ends:
            status, shown, error = run(
                "pretrain_denoiser", *denoiser_words(tmp_path / folder), *STANDING_STILL, f"steps={steps}"
            )
            assert status == 0, error
    bounds = [
        (record["step"], record["valid_nelbo"]) for record in logged(tmp_path / "whole") if "valid_nelbo" in record
    ]
    least = min(bounds, key=lambda bound: bound[1])
    assert [step for step, _ in bounds][-1] == least[0] + 9 < 30, "three validations after the best"
    assert f"held-out loss was least at step {least[0]}: {least[1]:.5f}; that network is" in shown
    names = ["network.safetensors", "training.safetensors"]
    last = [checkpoints.last_checkpoint(tmp_path / folder) for folder in ("whole", "parts")]
    assert last[0].name == last[1].name == f"step_{least[0] + 9:08d}"
    assert all((last[0] / name).read_bytes() == (last[1] / name).read_bytes() for name in names)
    assert checkpoints.load_state(last[0])["best"] == checkpoints.load_state(last[1])["best"]

    best = checkpoints.best_checkpoint(tmp_path / "parts")
    assert best is not None
    assert best.name == f"step_{least[0]:08d}"
    network = checkpoints.load_as(Transformer, best)
    assert checkpoints.read_description(best)["step"] == least[0]
    blocks = corpora.load_blocks(corpora.embedded(), characters(), 32).test
    found = [
        nelbo.nelbo(
            denoisers.subs(network, 27), schedules.log_linear(), blocks[row % len(blocks)], torch.tensor(0), row
        )
        for row in torch.arange(64).split(8)
    ]
    reports = [json.loads((tmp_path / folder / "report.json").read_text()) for folder in ("whole", "parts")]
    assert reports[0] == reports[1]
    assert reports[0]["mean"] == pytest.approx(float(torch.cat(found).mean()), rel=1e-5)

    status, shown, error = run("pretrain_denoiser", *denoiser_words(tmp_path / "parts"), *STANDING_STILL, "steps=30")
    assert status == 0, error
    assert f"held-out loss was least at step {least[0]}" in shown
    assert checkpoints.last_checkpoint(tmp_path / "parts") == last[1], "a run that has stopped goes on no more"
    for change, said in (("valid_rows=8", "valid_rows was 16, is 8"), ("valid_every=6", "valid_every was 3, is 6")):
        words = [*denoiser_words(tmp_path / "parts"), *STANDING_STILL, "steps=30", change]
        status, _, error = run("pretrain_denoiser", *words)
        assert (status, said in error) == (2, True), "it decides where a run stops"
