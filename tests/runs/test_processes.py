"""Several processes are one run: the losses, weights, checkpoints and texts of a single one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from smallest import NETWORK, TEXTS, UPDATES, settings_of, words_of
from together import fork, start, together, wait
from torch import Tensor

from edlm.nn.networks import Transformer
from edlm.runs import entry, processes
from edlm.runs import settings as schemas
from edlm.training import loop
from edlm.training import settings as training_settings
from edlm.weights import checkpoints

RATES = {"warmup_steps": 1, "decay": "constant", "optimizer.lr": 0.002, "valid_rows": 20, "log_every": 1, "threads": 1}


def settings(recipe: str, **changed: Any) -> dict[str, Any]:
    """The settings of a recipe's `tiny` config, changed by dotted keys."""
    return settings_of(recipe, *words_of(changed))


def denoiser(folder: Path, **changed: Any) -> dict[str, Any]:
    sizes = {f"network.{key}": value for key, value in {**NETWORK, "num_layers": 2, "dropout": 0.0}.items()}
    return settings("pretrain_denoiser", **{**TEXTS, **RATES, **sizes, "output_dir": folder, **changed})


def energy(folder: Path, trained: Path, **changed: Any) -> dict[str, Any]:
    few = {"samples.num_samples": 1, "samples.num_steps": 4, "samples.num_particles": 2, "report_particles": 4}
    own = {"output_dir": folder, "denoiser": trained, "pretrain": None, "dropout": 0.0}
    return settings("edlm_nce", **{**UPDATES, **RATES, **few, **own, **changed})


def joint(folder: Path, trained: Path, **changed: Any) -> dict[str, Any]:
    few = {"samples.num_samples": 1, "samples.num_steps": 4, "samples.num_particles": 2, "report_particles": 4}
    own = {"output_dir": folder, "denoiser": trained, "pretrain": None, "dropout": 0.0, "num_negatives": 2}
    return settings("edlm_joint", **{**UPDATES, **RATES, **few, **own, **changed})


def run(wanted: dict[str, Any]) -> None:
    import_module(f"edlm.recipes.{wanted['recipe']}").main(wanted)


def run_stopped(wanted: dict[str, Any], step: int) -> None:
    """Run a recipe that the last process is asked to stop in a step, on which all agree."""
    update = loop.TrainingRun._update

    def asked(training: loop.TrainingRun) -> float:
        if training.step == step - 1 and processes.rank() == processes.world() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(training)

    loop.TrainingRun._update = asked  # of a child that was forked for this
    with pytest.raises(entry.Interrupted, match=f"stopped at step {step}"):
        run(wanted)


def run_in(count: int, wanted: dict[str, Any], folder: Path, work: Callable[[dict[str, Any]], None] = run) -> None:
    """Run a recipe in so many processes; what they say is left in files."""
    folder.mkdir(parents=True, exist_ok=True)
    if count == 1:
        assert wait(fork(lambda: work(wanted), folder / "said_0")) == 0, (folder / "said_0").read_text()
    else:
        together(lambda: work(wanted), count, folder)


def losses(folder: Path) -> list[float]:
    """Every loss of the log, in training and held out."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "no step is missing or there twice"
    return [value for line in lines for key, value in line.items() if key in ("loss", "valid_nelbo", "valid_loss")]


def saved(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(checkpoints.find_network(folder) / name)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser trained by a single process."""
    folder = tmp_path_factory.mktemp("one")
    run_in(1, denoiser(folder / "run"), folder)
    return folder / "run"


def same_run(folder: Path, other: Path) -> None:
    """Two runs have one loss curve, to 1e-6, and left the same checkpoint but for rounding."""
    torch.testing.assert_close(losses(folder), losses(other), rtol=0.0, atol=1e-6)
    for name in ("network.safetensors", "training.safetensors"):
        found, wanted = saved(folder, name), saved(other, name)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize(
    ("count", "changed"),
    [
        (2, {}),
        pytest.param(3, {"accumulate": 2}, marks=pytest.mark.slow),
        pytest.param(2, {"parallel": "sharded"}, marks=pytest.mark.slow),
    ],
)
def test_a_denoiser_has_the_loss_curve_of_one_process(
    one: Path, tmp_path: Path, count: int, changed: dict[str, Any]
) -> None:
    """Three processes have shares of 3, 3 and 2 rows of a batch, each in two parts."""
    run_in(count, denoiser(tmp_path / "run", **changed), tmp_path)
    same_run(tmp_path / "run", one)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["mean"] == pytest.approx(
        json.loads((one / "report.json").read_text())["mean"], abs=1e-6
    )
    said = [(tmp_path / f"said_{rank}").read_text() for rank in range(count)]
    assert "denoiser NELBO" in said[0]
    assert not any(said[1:]), "the first process alone prints and shows bars"


@pytest.mark.slow
def test_muon_with_even_weights_has_the_loss_curve_of_one_process_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    own = {"optimizer._component_": "edlm.training.muon.Muon", "optimizer.lr": 0.005, "loss_weights": "even"}
    for name, count in (("one", 1), ("two", 2)):
        run_in(count, denoiser(tmp_path / name / "run", **own), tmp_path / name)
    same_run(tmp_path / "two" / "run", tmp_path / "one" / "run")
    stopped = denoiser(tmp_path / "stopped" / "run", **own)
    run_in(2, stopped, tmp_path / "stopped" / "first", partial(run_stopped, step=3))
    run_in(2, stopped, tmp_path / "stopped" / "second")
    for name in ("network.safetensors", "training.safetensors"):
        found, wanted = (saved(tmp_path / each / "run", name) for each in ("stopped", "two"))
        assert all(torch.equal(found[key], value) for key, value in wanted.items()), name


@pytest.mark.slow
def test_a_denoiser_that_is_trained_in_order_has_the_loss_curve_of_one_process(tmp_path: Path) -> None:
    """In sharded form, blocks recomputed: what is read in order runs network and blocks by other names than forward."""
    own = {"objective": "chain_rule", "noise_levels": "by_time", "loss_weights": "nelbo", "loss_steps": [2, 8]}
    for name, count, changed in (("single", 1, {}), ("sharded", 2, {"parallel": "sharded", "recompute": True})):
        run_in(count, denoiser(tmp_path / name, **own, **changed), tmp_path / f"said_{name}")
    same_run(tmp_path / "sharded", tmp_path / "single")


@pytest.mark.slow
@pytest.mark.parametrize(("scope", "embedding"), [("draft", "shared"), ("transition", "own")])
def test_an_energy_has_the_loss_curve_of_one_process(one: Path, tmp_path: Path, scope: str, embedding: str) -> None:
    """In sharded form too: the energy of a transition runs the network by another name than forward.

    The denoiser, whole in every process, keeps the embedding that it shares with an energy in parts.
    """
    for name, count, parallel in (("single", 1, "data"), ("sharded", 2, "sharded")):
        own = {"scope": scope, "embedding": embedding, "num_negatives": 2}
        wanted = energy(tmp_path / name, one, parallel=parallel, **own)
        run_in(count, wanted, tmp_path / f"said_{name}")
    same_run(tmp_path / "sharded", tmp_path / "single")


@pytest.mark.slow
def test_a_joint_network_has_the_loss_curve_of_one_process(one: Path, tmp_path: Path) -> None:
    """Two processes with all of the weights, stopped; two with a part each, stopped; one to the end.

    Its second head runs by another name than forward, and its draws are made by the weights of the moment.
    """
    run_in(1, joint(tmp_path / "single", one), tmp_path / "said_single")
    for last, parallel in ((2, "data"), (4, "sharded")):
        wanted = joint(tmp_path / "several", one, parallel=parallel, recompute=True)
        run_in(2, wanted, tmp_path / f"said_{last}", partial(run_stopped, step=last))
    run_in(1, joint(tmp_path / "several", one), tmp_path / "said_end")
    changed = "parallel was 'sharded', is 'data'; processes was 2, is 1; recompute was True, is False"
    assert f"goes on at step 4: {changed}" in (tmp_path / "said_end" / "said_0").read_text()
    same_run(tmp_path / "several", tmp_path / "single")


@pytest.mark.slow
def test_a_joint_network_that_keeps_its_denoiser_has_the_loss_curve_of_one_process(one: Path, tmp_path: Path) -> None:
    """In sharded form, where what the trunk gives takes no gradient and the other head's does."""
    for name, count, parallel in (("single", 1, "data"), ("sharded", 2, "sharded")):
        wanted = joint(tmp_path / name, one, parallel=parallel, denoiser_rate=0.0)
        run_in(count, wanted, tmp_path / f"said_{name}")
    same_run(tmp_path / "sharded", tmp_path / "single")
    kept, start = saved(tmp_path / "sharded", "network.safetensors"), saved(one, "network.safetensors")
    assert all(torch.equal(kept[f"denoiser.{name}"], value) for name, value in start.items())


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes_and_other_parts(one: Path, tmp_path: Path) -> None:
    """One process, then two with a part of the weights each, then three with all of them, then one."""
    chain = [(1, "data", 2), (2, "sharded", 3), (3, "data", 5), (1, "sharded", 6)]
    for count, parallel, steps in chain:
        wanted = denoiser(tmp_path / "run", parallel=parallel, steps=steps, save_every=1, valid_every=3)
        run_in(count, wanted, tmp_path / f"said_{steps}")
    torch.testing.assert_close(
        saved(tmp_path / "run", "training.safetensors"), saved(one, "training.safetensors"), rtol=1e-3, atol=1e-5
    )
    said = (tmp_path / "said_3" / "said_0").read_text()
    assert "goes on at step 2" in said
    assert "parallel was 'data', is 'sharded'; processes was 1, is 2; save_every" not in said
    assert "parallel was 'data', is 'sharded'; processes was 1, is 2; steps was 2, is 3" in said


def texts(folder: Path) -> list[str]:
    return (folder / "texts.jsonl").read_text().splitlines()


@pytest.mark.slow
def test_texts_and_figures_are_those_of_one_process(one: Path, tmp_path: Path) -> None:
    """Bit for bit: whole batches fall to a process, the last one smaller than the others."""
    for count in (1, 3):
        folder = tmp_path / str(count)
        drawn = {"denoiser": one, "energy": None, "num_steps": 4, "num_samples": 7, "batch_size": 2, "threads": 1}
        run_in(count, settings("generate", **drawn, output=folder / "texts.jsonl"), folder / "said_generate")
        few = {"denoiser": one, "energy": None, "rows": 7, "batch_size": 2, "num_steps": 3, "threads": 1}
        run_in(count, settings("evaluate", **few, output_dir=folder), folder / "said_evaluate")
    assert texts(tmp_path / "3") == texts(tmp_path / "1")
    assert len(texts(tmp_path / "1")) == 7
    single, several = (json.loads((tmp_path / name / "metric_card.json").read_text())["figures"] for name in "13")
    assert [{**figure, "seconds": 0} for figure in several] == [{**figure, "seconds": 0} for figure in single]


@pytest.mark.slow
def test_a_frontier_is_that_of_one_process(one: Path, tmp_path: Path) -> None:
    """The judge's texts are cut otherwise, so its figures are the same but for rounding."""
    network = Transformer(28, 32, hidden_size=8, num_layers=1, num_heads=2, conditioning_size=0, causal=True)
    torch.nn.init.normal_(network.head.weight)
    checkpoints.save_network(tmp_path / "judge", network, checkpoints.load_vocabulary_of(one), {"bos_id": 27})
    sweep = {"plan": {"name": "grid", "num_steps": [2, 4]}}
    lines = {}
    for count in (1, 2):
        wanted = settings("frontier", denoiser=one, energy=None, ar=None, judge=tmp_path / "judge", num_samples=5)
        wanted |= {"output_dir": str(tmp_path / str(count)), "batch_size": 2, "replicates": 4, "threads": 1}
        run_in(count, {**wanted, "sweeps": [sweep], "ngrams": [1]}, tmp_path / f"said_{count}")
        read = (tmp_path / str(count) / "frontier.jsonl").read_text().splitlines()
        lines[count] = [{**json.loads(line), "seconds": 0.0} for line in read]
    for several, single in zip(lines[2], lines[1], strict=True):
        assert several.pop("nll") == pytest.approx(single.pop("nll"), rel=1e-6)
        assert several == single


def check_collectives(folder: Path) -> None:
    rank, world = processes.rank(), processes.world()
    assert processes.gather(rank) == list(range(world))
    assert processes.spread(lambda item: (item, rank), list("abcde")) == [
        (item, number % world) for number, item in enumerate("abcde")
    ]
    rows = processes.gather(processes.rows_of_rank(torch.arange(10)))
    assert torch.equal(torch.cat(rows), torch.arange(10))
    assert processes.total([1.0, rank], torch.device("cpu")) == [world, sum(range(world))]
    assert processes.from_first(lambda: rank) == 0
    with pytest.raises(ValueError, match="said by the first"):
        processes.from_first(lambda: raise_error(rank))
    (folder / str(rank)).touch()


def raise_error(rank: int) -> None:
    raise ValueError("said by the first" if rank == 0 else "said by another")


def check_gradients() -> None:
    rank, world = processes.rank(), processes.world()
    everywhere, first_only, nowhere, half = (torch.nn.Parameter(torch.zeros(2, size)) for size in (3, 1, 4, 5))
    half.data = half.data.bfloat16()
    everywhere.grad, half.grad = torch.full((2, 3), 1.0 + rank), torch.full((2, 5), 2.0).bfloat16()
    first_only.grad = torch.full((2, 1), 7.0) if rank == 0 else None
    processes.sum_gradients([everywhere, half, first_only, nowhere])
    assert everywhere.grad.unique().tolist() == [sum(1.0 + each for each in range(world))]
    assert first_only.grad is not None
    assert first_only.grad.unique().tolist() == [7.0]
    assert half.grad.unique().tolist() == [2.0 * world]
    assert nowhere.grad is None, "an optimiser leaves it alone, as it does in one process"


@pytest.mark.parametrize("count", [2, 3])
def test_collectives_are_those_of_one_process(tmp_path: Path, count: int) -> None:
    together(lambda: (check_collectives(tmp_path), check_gradients()), count, tmp_path)
    assert all((tmp_path / str(rank)).exists() for rank in range(count))


def test_one_process_needs_no_others(tmp_path: Path) -> None:
    check_collectives(tmp_path)
    check_gradients()


@pytest.mark.parametrize(
    ("stop", "status", "message"),
    [
        (entry.Interrupted("stopped at step 3", 143), 143, "edlm: stopped at step 3\n"),
        (KeyboardInterrupt(), 130, "edlm: stopped by Ctrl-C\n"),
    ],
)
def test_processes_that_are_asked_to_stop_end_at_once_and_the_first_says_so(
    tmp_path: Path, stop: BaseException, status: int, message: str
) -> None:
    """A launcher waits for each of them, and kills those that take more than half a minute."""
    config = tmp_path / "config.yaml"
    config.write_text("device: cpu\n")

    def main(settings: dict[str, Any]) -> None:
        raise stop

    def stopped() -> None:
        sys.argv = ["recipe", "--config", str(config)]
        entry._HEAD_START = 1e4  # of a child that was forked for this; it would be waited for in vain
        processes.joined = lambda device: contextlib.nullcontext()  # they have joined already
        entry.enter(main, {"device": schemas.text})

    assert [wait(child) for child in start(stopped, 2, tmp_path)] == [status, status]
    assert [(tmp_path / f"said_{rank}").read_text() for rank in (0, 1)] == [message, ""]


def test_a_batch_with_fewer_rows_than_parts_is_named() -> None:
    with pytest.raises(ValueError, match="batch_size = 3 must be at least accumulate = 4"):
        training_settings.require_rows({"batch_size": 3, "accumulate": 4})
    training_settings.require_rows({"batch_size": 3, "accumulate": 3})


def test_a_batch_with_fewer_rows_than_processes_is_named(tmp_path: Path) -> None:
    def refused() -> None:
        with pytest.raises(ValueError, match="batch_size = 3 must be at least 2 processes x accumulate = 2"):
            training_settings.require_rows({"batch_size": 3, "accumulate": 2})

    together(refused, 2, tmp_path)


@pytest.mark.slow
def test_a_comparison_of_trainings_has_the_bounds_that_one_process_finds(tmp_path: Path) -> None:
    base = {f"base.{key}": value for key, value in TEXTS.items()}
    sizes = {f"base.network.{key}": value for key, value in NETWORK.items()}

    def bounds(count: int) -> list[list[float]]:
        folder = tmp_path / str(count)
        run_in(count, settings("speedrun", **base, **sizes, output_dir=folder / "out", seeds="[0]", threads=1), folder)
        lines = map(json.loads, (folder / "out" / "speedrun.jsonl").read_text().splitlines())
        return [[line["test"], *(bound for _, bound in line["curve"])] for line in lines]

    one, two = bounds(1), bounds(2)
    assert len(two) == 3
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("recipe", ["oracle", "benchmark"])
def test_what_several_processes_would_not_share_is_refused(tmp_path: Path, recipe: str) -> None:
    wanted = {**settings(recipe), "output_dir": str(tmp_path / "out")}

    def refused() -> None:
        with pytest.raises(ValueError, match=f"{recipe} runs in one process, and 2 were started"):
            run(wanted)

    together(refused, 2, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_line_starts_processes_and_ends_as_they_do(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "edlm.cli.commands",
        "run",
        "--nproc_per_node",
        "2",
        "pretrain_denoiser",
        "threads=1",
    ]
    done = subprocess.run([*command, "length=0"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert set(done.stderr.splitlines()) == {"edlm: length = 0 must be a whole number of at least 1"}
