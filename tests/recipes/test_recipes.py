"""Recipes: configs are valid, a mistake gets one line, a stopped run resumes bit for bit, the whole path works."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from running import Runner
from safetensors.torch import load
from smallest import TEXTS, ar_words, denoiser_words, energy_words
from together import fork, wait

from edlm.cli import commands
from edlm.data import corpora, vocabulary
from edlm.models import autoregressive
from edlm.nn.networks import Transformer
from edlm.runs import settings
from edlm.training import autoregression
from edlm.weights import checkpoints

CONFIGS = [(recipe, name) for recipe in commands.recipes() for name in commands.configs(recipe)]


@pytest.mark.parametrize(("recipe", "name"), CONFIGS)
def test_every_config_is_valid_and_opens_with_its_own_command(recipe: str, name: str) -> None:
    path = commands.configs(recipe)[name]
    schema = import_module(f"edlm.recipes.{recipe}").SETTINGS
    settings.check(schema, OmegaConf.to_container(OmegaConf.load(path), resolve=True))
    default = "" if name == "tiny" and recipe != "pretrain_denoiser" else f" --config {name}"
    assert path.read_text("utf-8").startswith(f"# edlm run {recipe}{default}")


@pytest.mark.parametrize("name", [name for name in commands.configs("edlm_nce") if name != "smollm2"])
def test_the_denoiser_that_edlm_nce_trains_is_the_one_of_its_own_recipe(name: str) -> None:
    alone = OmegaConf.to_container(OmegaConf.load(commands.configs("pretrain_denoiser")[name]))
    within = OmegaConf.to_container(OmegaConf.load(commands.configs("edlm_nce")[name]))
    assert within["pretrain"] == {key: alone[key] for key in within["pretrain"]}
    assert within["denoiser"] == alone["output_dir"]


def test_over_a_large_denoiser_edlm_nce_takes_what_adapt_has_made() -> None:
    adapted = OmegaConf.load(commands.configs("adapt")["smollm2"])
    energy = OmegaConf.load(commands.configs("edlm_nce")["smollm2"])
    assert energy.pretrain is None
    assert (energy.denoiser, energy.length, energy.corpus) == (adapted.output_dir, adapted.length, adapted.corpus)


@pytest.mark.parametrize("name", sorted(set(commands.configs("pretrain_ar")) - {"smollm2"}))
def test_the_ar_model_has_the_compute_of_the_denoiser_of_the_same_config(name: str) -> None:
    """Same text, blocks, network, optimiser, batches and steps; what times need is left out.

    `tiny` has fewer steps: an AR model knows its corpus by heart sooner.
    """
    denoiser = OmegaConf.to_container(OmegaConf.load(commands.configs("pretrain_denoiser")[name]))
    ar = OmegaConf.to_container(OmegaConf.load(commands.configs("pretrain_ar")[name]))
    for key in ("schedule", "time_conditioning", "objective", "loss_steps", "time_low", "noise_levels", "loss_weights"):
        denoiser.pop(key, None)
    assert ar.pop("drafts") is None
    for key in ("recipe", "output_dir"):
        assert ar.pop(key) != denoiser.pop(key)
    assert ar["network"].pop("dropout") >= denoiser["network"].pop("dropout")  # what it needs against overfitting
    if name == "tiny":
        for key in ("steps", "warmup_steps", "valid_every", "save_every"):
            assert ar.pop(key) < denoiser.pop(key)
    assert ar == denoiser


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stepz=3"], "stepz: unknown key; did you mean 'steps'?"),
        (["network.hiden_size=8"], "network.hiden_size: unknown key; did you mean 'hidden_size'?"),
        (["network.hidden_size=wide"], "network.hidden_size = 'wide' must be of type int"),
        (["network.hidden_size=30"], "hidden_size = 30 must be a multiple of 2 * num_heads = 8"),
        (["network._component_=edlm.networks.Transformr"], "network._component_ = 'edlm.networks.Transformr' must be"),
        (["schedule.eps=-1"], "eps = -1 must lie in [0, 1)"),
        (["steps=0"], "steps = 0 must be a whole number of at least 1"),
        (["steps=many"], "steps = 'many' must be a whole number of at least 1"),
        (["steps=true"], "steps = True must be a whole number of at least 1"),
        (["time_low=0.9"], "time_low = 0.9 must be a number of at least 0 and at most 0.5"),
        (["clip_norm=0"], "clip_norm = 0 must be a number above 0"),
        (["parallel=tensor"], "parallel = 'tensor' must be one of data, sharded"),
        (["precision=fp8"], "precision = 'fp8' must be one of float32, bfloat16, pure_bfloat16"),
        (["accumulate=0"], "accumulate = 0 must be a whole number of at least 1"),
        (["accumulate=65"], "batch_size = 64 must be at least accumulate = 65"),
        (["seed=9223372036854775808"], "seed = 9223372036854775808 must be a whole number of at least 0 and at most"),
        (["decay=exponential"], "decay = 'exponential' must be one of constant, cosine"),
        (["resume=maybe"], "resume = 'maybe' must be true or false"),
        (["recipe=generate"], "recipe = 'generate' must be one of pretrain_denoiser"),
        (["seed"], "'seed' must be key=value"),
        (["=3"], "'=3' must be key=value"),
        (["corpus._component_=edlm.corpora.text_files", "corpus.path=a=b"], "a=b: no such file"),
        (["~seed"], "seed: missing from the config"),
        (["corpus._component_=edlm.corpora.text_files"], "corpus.path: missing from the config"),
        (["length=100000"], "100000"),
        (["optimizer.lr=fast"], "optimizer.lr = 'fast' must be of type float"),
        (["optimizer.lr=-1"], "lr = -1 must be at least 0, and finite"),
        (["schedule={eps:[1]}"], "schedule = '{eps:[1]}' must be YAML, with a space after each colon"),
        (["log_to={a: 1}"], "log_to = '{a: 1}' must be what the config has there: a list, or a section"),
        (["corpus.path=x"], "corpus.path: unknown key; known keys: none"),
    ],
)
def test_a_mistake_in_a_config_gets_one_line_that_names_it(
    run: Runner, tmp_path: Path, overrides: list[str], said: str
) -> None:
    status, _, error = run("pretrain_denoiser", f"output_dir={tmp_path / 'run'}", *overrides)
    assert status == 2
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists(), "nothing is left half-written"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"", "no text"),
        (b"abc \xff def", "not UTF-8, byte 0xff at offset 4"),
        (b"a few words only", "train: 14 tokens are fewer than one block of length = 32"),
        (b"Capital Letters. " * 500, "character"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_named(run: Runner, tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "corpus.txt"
    if content is not None:
        file.write_bytes(content)
    corpus = ["corpus._component_=edlm.corpora.text_files", f"corpus.path={file}"]
    status, _, error = run("pretrain_denoiser", *denoiser_words(tmp_path / "run"), *corpus)
    assert status == 2
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_named(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, _, error = run("pretrain_denoiser", *denoiser_words(tmp_path / "file" / "run"))
    assert status == 2
    assert f"output_dir = '{tmp_path / 'file' / 'run'}' cannot be written: {tmp_path / 'file'} is not a folder" in error


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["time_low=0.1"], "time_low: unknown key"),
        (["network.causal=false"], "network.causal: unknown key"),
    ],
)
def test_an_ar_model_has_no_times_and_is_always_causal(
    run: Runner, tmp_path: Path, overrides: list[str], said: str
) -> None:
    status, _, error = run("pretrain_ar", *ar_words(tmp_path / "run"), *overrides)
    assert (status, said in error) == (2, True), error


@pytest.mark.slow
def test_an_ar_run_resumes_bit_for_bit_and_says_what_a_loader_needs(run: Runner, tmp_path: Path) -> None:
    constant = ["decay=constant", "network.dropout=0.2"]
    assert run("pretrain_ar", *ar_words(tmp_path / "whole"), *constant)[0] == 0
    assert run("pretrain_ar", *ar_words(tmp_path / "parts"), *constant, "steps=2")[0] == 0
    assert run("pretrain_ar", *ar_words(tmp_path / "parts"), *constant)[0] == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name in ("network.safetensors", "training.safetensors"):
        same = whole[name] == parts[name]
        assert same, name

    folder = checkpoints.find_network(tmp_path / "whole")
    network, characters = checkpoints.load_as(Transformer, folder), checkpoints.load_vocabulary_of(folder)
    bos_id = checkpoints.read_description(folder)["bos_id"]
    assert bos_id == characters.mask_id, "the 27 symbols have no bos: the mask, which no text holds, stands there"
    assert network.arguments["causal"]
    assert network.arguments["conditioning_size"] == 32
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    blocks = corpora.load_blocks(corpora.embedded(), characters, TEXTS["length"]).test[: report["n"]]
    with torch.no_grad():
        log_prob = autoregressive.ar_log_prob(network, blocks, characters.mask_id, bos_id)
    assert report["n"] == 4 * TEXTS["valid_rows"]
    assert report["mean"] == pytest.approx(-float(log_prob.double().mean()), abs=1e-5)
    assert report["standard_error"] == pytest.approx(float(log_prob.mean(-1).std()) / report["n"] ** 0.5, rel=1e-4)


def test_a_vocabulary_with_a_bos_starts_with_it() -> None:
    assert autoregression.start_id(vocabulary.characters(specials=["bos"])) == 27
    assert autoregression.start_id(vocabulary.characters("ab")) == 2


def weights(folder: Path) -> dict[str, bytes]:
    """Every file of the newest checkpoint that training wrote."""
    newest = sorted((folder / "checkpoints").glob("step_*"))[-1]
    return {file.name: file.read_bytes() for file in newest.iterdir()}


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(run: Runner, tmp_path: Path) -> None:
    constant = ["decay=constant", "network.dropout=0.2"]
    assert run("pretrain_denoiser", *denoiser_words(tmp_path / "whole"), *constant)[0] == 0
    assert run("pretrain_denoiser", *denoiser_words(tmp_path / "parts"), *constant, "steps=2")[0] == 0
    assert run("pretrain_denoiser", *denoiser_words(tmp_path / "parts"), *constant)[0] == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name in ("network.safetensors", "training.safetensors"):
        same = whole[name] == parts[name]  # said apart: a failing assert would look for a difference in all the bytes
        assert same, name
    logged = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in logged] == sorted({record["step"] for record in logged})


def test_a_checkpoint_holds_the_averaged_weights(trained: Path) -> None:
    """The average of the paths so far, not where training stands: that is in the state of training."""
    folder = checkpoints.find_network(trained / "denoiser")
    average, raw = checkpoints.load_network(folder).state_dict(), checkpoints.load_state(folder)["network"]
    assert average.keys() == raw.keys()
    assert not torch.equal(average["head.weight"], raw["head.weight"])
    torch.testing.assert_close(average["head.weight"], raw["head.weight"], rtol=0.5, atol=0.01)


def test_accumulation_changes_no_update_beyond_rounding(run: Runner, tmp_path: Path) -> None:
    for parts in (1, 3):
        overrides = [*denoiser_words(tmp_path / str(parts)), f"accumulate={parts}", "network.dropout=0.0"]
        assert run("pretrain_denoiser", *overrides)[0] == 0
    one, three = (load(weights(tmp_path / str(parts))["network.safetensors"]) for parts in (1, 3))
    for name, value in one.items():
        torch.testing.assert_close(three[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_resuming_with_another_setting_is_refused_with_both_values(run: Runner, tmp_path: Path) -> None:
    overrides = denoiser_words(tmp_path)
    assert run("pretrain_denoiser", *overrides)[0] == 0
    status, _, error = run("pretrain_denoiser", *overrides, "batch_size=4", "steps=8", "decay=constant")
    assert status == 2
    assert "batch_size was 8, is 4; decay was 'cosine', is 'constant'" in error
    status, _, error = run("pretrain_denoiser", *overrides, "resume=false")
    assert status == 2
    assert "holds a run already: set resume=true to go on, or another output_dir" in error


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(run: Runner, tmp_path: Path) -> None:
    overrides = [*denoiser_words(tmp_path), "save_every=1", "optimizer.lr=1.0e+30", "warmup_steps=0"]
    status, _, error = run("pretrain_denoiser", *overrides)
    assert status == 2
    assert "at step" in error
    assert "the last good checkpoint is" in error
    saved = [weights(tmp_path)]
    assert saved[0]["network.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_that_resumes(tmp_path: Path, number: signal.Signals) -> None:
    overrides = [*denoiser_words(tmp_path), "steps=100000", "save_every=100000", "valid_every=100000"]
    words = ["run", "pretrain_denoiser", *overrides, "decay=constant"]
    child = fork(lambda: commands.main(words), tmp_path / "said")
    deadline = time.monotonic() + 120
    log = tmp_path / "metrics.jsonl"
    while not (log.is_file() and log.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(child, number)
    status, error = wait(child), (tmp_path / "said").read_text()
    assert status == 128 + number, error
    step = int(sorted((tmp_path / "checkpoints").glob("step_*"))[-1].name.removeprefix("step_"))
    assert f"stopped at step {step}; the same command goes on" in error
    again = [word.replace("steps=100000", f"steps={step + 2}") for word in words]
    assert wait(fork(lambda: commands.main(again), tmp_path / "said")) == 0, (tmp_path / "said").read_text()
    assert sorted((tmp_path / "checkpoints").glob("step_*"))[-1].name == f"step_{step + 2:08d}"


@pytest.mark.slow
def test_the_whole_path_runs_through_the_command_line(tmp_path: Path) -> None:
    """Denoiser, energy, report, samples, generation with a prompt: as on a fresh machine, in its smallest form.

    The first command starts an interpreter of its own, as a person's does; the others are children of this process.
    """

    def edlm(*arguments: str) -> subprocess.CompletedProcess[str]:
        said = tmp_path / "said"
        said.unlink(missing_ok=True)
        status = wait(fork(lambda: commands.main(arguments), said))
        return subprocess.CompletedProcess(arguments, status, said.read_text(), said.read_text())

    command = [sys.executable, "-m", "edlm.cli.commands", "run", "edlm_nce", *energy_words(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert first.returncode == 0, first.stderr
    assert "training it first, 6 steps" in first.stdout
    ways = ("plain, one token a pass:", "corrected by the energy", "written in order")
    for shown in ("denoiser NELBO", "nce loss", "accuracy", "ESS of 4 draws", *ways, "what next"):
        assert shown in first.stdout
    report = json.loads((tmp_path / "energy" / "report.json").read_text())
    assert report["nelbo"]["n"] == 32
    assert 0.0 <= report["accuracy"]["mean"] <= 1.0
    again = edlm("run", "edlm_nce", *energy_words(tmp_path))
    assert again.returncode == 0, again.stderr
    assert "training it first" not in again.stdout, "a second run reuses the denoiser"

    output = tmp_path / "texts.jsonl"
    wanted = [f"denoiser={tmp_path / 'denoiser'}", f"energy={tmp_path / 'energy'}", f"output={output}", "threads=1"]
    drawn = edlm("run", "generate", *wanted, "num_samples=3", "batch_size=2", "num_steps=4", "prompt=the __ of")
    assert drawn.returncode == 0, drawn.stderr
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["row"] for record in records] == [0, 1, 2], "the last partial batch counts"
    for record in records:
        assert len(record["text"]) == 32
        assert record["text"].startswith("the ")
        assert record["text"][6:9] == " of"
        assert vocabulary.MASK_SYMBOL not in record["text"]
    other = edlm("run", "generate", *wanted, "num_samples=3", "num_steps=5", "prompt=the __ of")
    assert other.returncode == 2
    assert "holds other texts: choose another name, or overwrite=true replaces them" in other.stderr
    first = output.read_text().splitlines(keepends=True)
    output.write_text(first[0] + first[1][:40])  # as if it had been cut off while writing
    whole = edlm("run", "generate", *wanted, "num_samples=3", "batch_size=3", "num_steps=4", "prompt=the __ of")
    assert whole.returncode == 0, whole.stderr
    assert output.read_text().splitlines(keepends=True) == first, "the same texts at another batch size, none lost"


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torchtune._cli.tune", "run", "edlm/recipes/pretrain_denoiser"],
        ["torch.distributed.run", "--nproc_per_node", "1", str(commands.recipes()["pretrain_denoiser"])],
        ["edlm.recipes.pretrain_denoiser"],
    ],
    ids=["tune", "torchrun", "python"],
)
def test_other_launchers_run_the_same_file(tmp_path: Path, launcher: list[str]) -> None:
    config = commands.configs("pretrain_denoiser")["tiny"]
    command = [sys.executable, "-m", *launcher, "--config", str(config), *denoiser_words(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert checkpoints.find_network(tmp_path / "run").name == "step_00000006"


@pytest.mark.parametrize("value", ["[4,2]", "[0,3]", "[2]", "[1.5,2]", "3"])
def test_step_grids_that_are_none_are_named(run: Runner, value: str) -> None:
    status, _, error = run("edlm_nce", f"transition_steps={value}")
    assert status == 2
    assert "transition_steps = " in error
    assert "must be two whole numbers [fewest, most] with 1 <= fewest <= most" in error


@pytest.mark.slow
def test_a_run_by_muon_resumes_bit_for_bit_and_is_not_sharded(run: Runner, tmp_path: Path) -> None:
    muon = ["optimizer._component_=edlm.training.muon.Muon", "optimizer.lr=5.0e-3", "decay=constant"]
    assert run("pretrain_ar", *ar_words(tmp_path / "whole"), *muon)[0] == 0
    assert run("pretrain_ar", *ar_words(tmp_path / "parts"), *muon, "steps=2")[0] == 0
    assert run("pretrain_ar", *ar_words(tmp_path / "parts"), *muon)[0] == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name in ("network.safetensors", "training.safetensors"):
        same = whole[name] == parts[name]
        assert same, name
    status, _, error = run("pretrain_ar", *ar_words(tmp_path / "cut"), *muon, "parallel=sharded")
    assert (status, "parallel = 'sharded' cuts matrices" in error) == (2, True), error
    status, _, error = run("pretrain_ar", *ar_words(tmp_path / "cut"), *muon, "optimizer.momentum=2")
    assert (status, "momentum = 2 must lie in [0, 1)" in error) == (2, True), error


@pytest.mark.parametrize("draws", [["noise_levels=by_time"], ["noise_levels=bell", "loss_weights=even"]])
def test_draws_of_noise_are_settings_that_a_run_keeps(run: Runner, tmp_path: Path, draws: list[str]) -> None:
    words = denoiser_words(tmp_path / "run")
    assert run("pretrain_denoiser", *words, *draws, "steps=1")[0] == 0
    status, _, error = run("pretrain_denoiser", *words, "steps=2")
    assert (status, "objective" in error) == (2, True), error


def test_draws_of_noise_are_those_of_one_objective(run: Runner, tmp_path: Path) -> None:
    words = [*denoiser_words(tmp_path / "run"), "objective=chain_rule", "loss_steps=[2,4]"]
    status, _, error = run("pretrain_denoiser", *words, "noise_levels=bell")
    assert (status, "objective = 'chain_rule' does not know noise_levels = 'bell'" in error) == (2, True), error
