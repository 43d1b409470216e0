"""A run leaves figures, texts and a picture, tells every logger, and names what cannot be written."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from builders import tiny_denoiser, tiny_network
from tiny_runs import no_picture, tiny_run

from edlm.cli import commands
from edlm.data import vocabulary
from edlm.models import denoisers
from edlm.process import schedules
from edlm.runs import files
from edlm.samplers import baselines
from edlm.training import forecast as forecasts
from edlm.training import log as following
from edlm.training import texts as training_texts
from edlm.weights import checkpoints

__all__ = ["no_picture"]  # a fixture

draw_curves = following.draw_curves

# ---- Figures and texts


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_run_leaves_figures_texts_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "draw_curves", draw_curves)
    tiny_run(tmp_path, sample_every=2).train()
    assert [record["step"] for record in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    texts = lines(tmp_path / "training_samples.jsonl")
    assert [(text["step"], text["row"]) for text in texts] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    assert all(set(text["text"]) <= set("abcd") and len(text["text"]) == tiny_denoiser().max_length for text in texts)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*.partial"))
    out = capsys.readouterr().out
    assert re.search(r"parameters +[\d,]+\n", out)
    assert f"step 4: {texts[-1]['text']}" in out


def test_following_a_run_does_not_change_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the forecast's small step nor texts on the way touch weights, noise or the optimizer."""
    followed, alone = tiny_run(tmp_path / "a", sample_every=1), tiny_run(tmp_path / "b")
    followed.train()
    monkeypatch.setattr(forecasts, "forecast", lambda *_: None)
    monkeypatch.setattr(forecasts, "table", lambda *_: "")
    alone.train()
    for a, b in zip(followed.network.parameters(), alone.network.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("changes", "kept", "reported"),
    [({}, None, 4), ({"keep_best": True}, 2, 4), ({"patience": 2}, 2, 2), ({"patience": 1, "steps": 8}, 2, 2)],
)
def test_the_best_network_is_kept_if_asked_for_and_reported_where_it_ends_a_run(
    tmp_path: Path, changes: dict[str, Any], kept: int | None, reported: int
) -> None:
    """Every validation says the same, so the first one, after two steps, is the best; one without a gain may end it."""
    run = tiny_run(tmp_path, **changes)
    for _ in range(2):  # a finished run that is started again reports the same network
        run.load_checkpoint()
        run.train()
        best = checkpoints.best_checkpoint(tmp_path)
        assert (None if best is None else best.name) == (None if kept is None else f"step_{kept:08d}")
        last = checkpoints.last_checkpoint(tmp_path)
        assert last is not None
        assert last.name == "step_00000004"
        network = checkpoints.load_network(best if reported == kept and best is not None else last)
        for name, value in network.state_dict().items():
            assert torch.equal(run.average.state_dict()[name], value)
        run = tiny_run(tmp_path, **changes)


def test_texts_on_the_way_have_the_same_noise(tmp_path: Path) -> None:
    denoiser, abcd = tiny_denoiser(), vocabulary.characters("abcd")
    drawn = [training_texts.denoiser_texts(denoiser, abcd, seed=s) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    network = tiny_network(causal=True, conditioning_size=0)
    texts = training_texts.ar_texts(network, abcd, 4, seed=1)
    assert texts == training_texts.ar_texts(network, abcd, 4, seed=1)
    assert len(texts) == 2
    assert training_texts.ar_texts(network, abcd, None, seed=1) == []


def test_texts_of_a_baseline_are_those_of_its_own_sampler() -> None:
    abcd, schedule = vocabulary.characters("abcd"), schedules.log_linear(1e-3)
    kernel = baselines.d3pm(denoisers.d3pm(tiny_network(), 4), schedule)
    tokens = baselines.sample(kernel, 8, 8, 2, seed=1)["tokens"]
    records = [{"row": row, "seed": 1, "text": text} for row, text in enumerate(abcd.decode(tokens))]
    assert training_texts.baseline_texts(kernel, abcd, seed=1) == records


def test_a_resumed_run_draws_no_text_twice(tmp_path: Path) -> None:
    tiny_run(tmp_path, sample_every=1, save_every=2).train()
    with (tmp_path / "training_samples.jsonl").open("a") as texts:
        texts.write(
            '{"step": 5, "text": "abc"}\n{"step": 6, "te'
        )  # of a run that was killed before its next checkpoint
    again = tiny_run(tmp_path, sample_every=2, save_every=2, steps=6)
    again.load_checkpoint()
    again.train()
    steps = [text["step"] for text in lines(tmp_path / "training_samples.jsonl")]
    assert steps == [1, 1, 2, 2, 3, 3, 4, 4, 6, 6]


# ---- Other loggers


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Stand-ins for tensorboard's writer and wandb: what reaches them."""
    found: dict[str, list[Any]] = {"tensorboard": [], "wandb": []}

    class SummaryWriter:
        def __init__(self, log_dir: str) -> None:
            found["tensorboard"].append(log_dir)

        def add_scalar(self, name: str, value: float, global_step: int, new_style: bool) -> None:
            found["tensorboard"].append((name, value, global_step))

        def close(self) -> None:
            found["tensorboard"].append("closed")

    board: Any = ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = SummaryWriter
    wandb: Any = ModuleType("wandb")

    class Run:
        def _label(self, repo: str) -> None: ...

    def init(**options: Any) -> Any:
        found["wandb"].append(options)
        wandb.run = Run()
        return wandb.run

    wandb.run, wandb.init, wandb.define_metric = None, init, lambda *_, **__: None
    wandb.log, wandb.finish = found["wandb"].append, lambda: found["wandb"].append("closed")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return found


def test_figures_reach_every_logger_that_is_named(tmp_path: Path, written: dict[str, list[Any]]) -> None:
    tiny_run(tmp_path, log_to=["tensorboard", "wandb"], steps=2).train()
    assert written["tensorboard"][0] == str(tmp_path / "tensorboard")
    assert ("valid_nelbo", 1.5, 2) in written["tensorboard"]
    assert written["tensorboard"][-1] == written["wandb"][-1] == "closed"
    assert written["wandb"][0]["project"] == "edlm"
    logged = lines(tmp_path / "metrics.jsonl")
    assert [
        {k: v for k, v in each.items() if k != "global_step"} for each in written["wandb"][1:] if each != "closed"
    ] == [{k: v for k, v in each.items() if k != "step"} for each in logged]


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_logger_is_named_before_the_first_step(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"log_to = '{name}' needs the extra package: .*edlm-torch\[{name}\]"):
        tiny_run(tmp_path, log_to=[name]).train()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_configs_know_the_keys() -> None:
    for recipe in ("pretrain_denoiser", "pretrain_ar", "edlm_nce"):
        for path in commands.configs(recipe).values():
            text = Path(path).read_text("utf-8")
            assert text.count("log_to: []") == text.count("log_every:") == text.count("sample_every: null")


# ---- The picture


def test_panels_are_losses_rate_and_each_held_out_figure() -> None:
    records = [
        {"step": 1, "loss": 2.0, "lr": 0.1, "tokens_per_s": 5},
        {"step": 2, "valid_nelbo": 1.5, "valid_nelbo_error": 0.1, "valid_accuracy": 0.6, "valid_ess": 3.0},
    ]
    assert following.curves(records) == {
        "loss, nats": ["loss", "valid_nelbo"],
        "lr": ["lr"],
        "tokens_per_s": ["tokens_per_s"],
        "valid_accuracy": ["valid_accuracy"],
        "valid_ess": ["valid_ess"],
    }
    assert following.curves([]) == {}


def test_a_figure_and_its_noise_levels_share_a_panel() -> None:
    levels = ["valid_loss_t0.0-0.2", "valid_loss_t0.8-1.0"]
    record = {"step": 2, "valid_loss": 1.0, "valid_ess": 3.0, "valid_ess_t0.2-0.4": 2.0, **dict.fromkeys(levels, 1.0)}
    assert following.curves([record]) == {
        "loss, nats": ["valid_loss"],
        "valid_ess": ["valid_ess", "valid_ess_t0.2-0.4"],
        "valid_loss": levels,
    }


def test_a_run_without_figures_leaves_no_picture(tmp_path: Path) -> None:
    draw_curves(tmp_path)
    assert not (tmp_path / "curves.png").exists()


# ---- A full disk

full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")


@full
def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    said = f"cannot write {re.escape(str(tmp_path))}/metrics.jsonl: No space left on device"
    with pytest.raises(ValueError, match=said), following.Log(tmp_path, []) as log:
        log.write(1, {"loss": 1.0})


@full
def test_a_report_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / ".report.json.partial").symlink_to("/dev/full")
    with pytest.raises(ValueError, match=r"report\.json: No space left on device"):
        files.write_json(tmp_path / "report.json", {})


def test_a_picture_that_cannot_be_written_hides_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (tmp_path / ".curves.png.partial").mkdir()
    draw_curves(tmp_path)
    assert f"cannot write {tmp_path}/curves.png: Is a directory" in capsys.readouterr().err
