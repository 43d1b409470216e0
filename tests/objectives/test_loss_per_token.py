"""The loss of training is one per token: neither padding, nor parts of a batch, nor processes change it."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from builders import randomise, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st
from running import Runner
from smallest import CAUSAL, NETWORK, TEXTS, words_of
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from test_processes import denoiser, losses, run_in, same_run
from tiny_runs import SETTINGS
from torch import Tensor, nn

from edlm import contracts
from edlm.data import pieces, vocabulary
from edlm.models import denoisers
from edlm.nn import networks
from edlm.objectives import baselines, batches, denoising
from edlm.objectives import chain_rule as chain_rule_objectives
from edlm.objectives import joint as joint_objectives
from edlm.objectives import losses as objectives
from edlm.process import schedules
from edlm.training import loop
from edlm.training.loop import TrainingRun
from edlm.weights import checkpoints

IDS = vocabulary.characters("abcd", specials=["pad"])
PAD, MASK = IDS.pad_id, IDS.mask_id
LONGEST, ROWS = 40, 8
LINEAR = schedules.log_linear(1e-3)
KINDS = ("denoising", "chain_rule", "d3pm", "score_entropy", "next_token", "joint")


def network_of(kind: str) -> nn.Module:
    sizes = {"hidden_size": 16, "num_heads": 2, "conditioning_size": 8, "pad_id": PAD}
    if kind == "joint":
        return randomise(networks.JointNetwork(IDS.size, LONGEST, num_layers=1, **sizes), 0).double()
    causal = {"causal": True, "conditioning_size": 0} if kind == "next_token" else {}
    return tiny_network(0, IDS.size, LONGEST, pad_id=PAD, **causal)


def stages_of(kind: str, network: nn.Module, pad_id: int | None = PAD) -> TensorDictSequential:
    if kind == "next_token":
        return denoising.next_token(network, MASK, MASK, pad_id)
    if kind == "d3pm":
        return baselines.d3pm(denoisers.d3pm(network, MASK), LINEAR, 5, pad_id)
    if kind == "score_entropy":
        return baselines.score_entropy(denoisers.sedd(network, MASK, LINEAR), LINEAR, 0.1, pad_id)
    denoiser = denoisers.subs(network, MASK)
    if kind == "chain_rule":
        return chain_rule_objectives.denoising(denoiser, LINEAR, (2, 5), pad_id)
    if kind == "joint":
        return joint_objectives.contrastive(
            denoiser, LINEAR, (2, 5), 2, nelbo_weight=0.7, energy_weight=0.3, pad_id=pad_id
        )
    return denoising.denoising(denoiser, LINEAR, 0.1, pad_id)


def texts_of(sizes: list[int]) -> Tensor:
    """A text of each size in blocks as short as may be."""
    symbols = torch.randint(4, (len(sizes), max(sizes)), generator=torch.Generator().manual_seed(1))
    return torch.where(torch.arange(max(sizes)) < torch.tensor(sizes).unsqueeze(1), symbols, PAD)


def run_of(kind: str, blocks: Tensor, **changes: Any) -> TrainingRun:
    network = network_of(kind)
    wanted = {**SETTINGS, "batch_size": ROWS, **changes}
    stages = stages_of(kind, network).train()
    return TrainingRun(Path("nowhere"), network, stages, blocks, IDS, wanted, 3, {}, lambda _: {}, kind != "joint")


def updated(kind: str, blocks: Tensor, **changes: Any) -> tuple[float, int, list[Tensor]]:
    """The loss of the first step, the tokens it counted, and the gradients it took."""
    run = run_of(kind, blocks, **changes)
    loss = run._update()
    return loss, run._num_tokens, [each.grad for each in run.weights.masters if each.grad is not None]


def assert_same(one: tuple[float, int, list[Tensor]], other: tuple[float, int, list[Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-9)
    assert one[1] == other[1]
    for ours, theirs in zip(one[2], other[2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


few = settings(max_examples=6, deadline=None)
sizes_of_texts = st.lists(st.integers(1, 10), min_size=ROWS, max_size=ROWS)


@pytest.mark.parametrize("kind", KINDS)
@few
@given(sizes=sizes_of_texts, more=st.integers(1, LONGEST - 10))
def test_the_same_documents_in_longer_blocks_have_the_same_loss_and_gradient(
    kind: str, sizes: list[int], more: int
) -> None:
    blocks = texts_of(sizes)
    assert_same(updated(kind, F.pad(blocks, (0, more), value=PAD)), updated(kind, blocks))


@pytest.mark.parametrize("kind", KINDS)
@few
@given(sizes=sizes_of_texts, parts=st.sampled_from([2, 3, 4, 8]))
def test_the_parts_of_a_batch_have_the_loss_and_gradient_of_the_whole(kind: str, sizes: list[int], parts: int) -> None:
    blocks = texts_of(sizes)
    assert_same(updated(kind, blocks, accumulate=parts), updated(kind, blocks))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "joint"])
def test_the_loss_is_that_of_the_texts_divided_by_their_tokens(kind: str) -> None:
    sizes = [1, 9, 3, 10, 2, 2, 7, 5]
    rows = rows_of(kind, texts_of(sizes), sum(sizes))
    loss, tokens, _ = updated(kind, texts_of(sizes))
    assert tokens == sum(sizes)
    assert loss == pytest.approx(rows[contracts.LOSS].sum().item() / sum(sizes), rel=1e-12)


def test_the_joint_loss_is_the_nelbo_per_token_and_the_contrast_per_text() -> None:
    sizes = [1, 9, 3, 10, 2, 2, 7, 5]
    rows = rows_of("joint", texts_of(sizes), sum(sizes))
    nelbo = objectives.nelbo(rows[contracts.LOG_PROB], rows[contracts.WEIGHT]).sum() / sum(sizes)
    energy = rows[contracts.ENERGY]
    contrast = objectives.nce(energy[:, 0], energy[:, 1:]).mean()
    assert updated("joint", texts_of(sizes))[0] == pytest.approx((0.7 * nelbo + 0.3 * contrast).item(), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_without_padding_the_loss_is_what_it_was_bit_for_bit(kind: str) -> None:
    """In float32: a mean over rows, divided by the length; with an id for padding that no text holds, and without."""
    x_0 = texts_of([10] * ROWS)
    one, other = (rows_of(kind, x_0, 10 * ROWS, pad_id, torch.float32) for pad_id in (None, PAD))
    assert torch.equal(one[contracts.LOSS], other[contracts.LOSS])
    if kind == "joint":
        energy, nelbo = one[contracts.ENERGY], objectives.nelbo(one[contracts.LOG_PROB], one[contracts.WEIGHT]) / 10
        contrast = objectives.nce(energy[:, 0], energy[:, 1:])
        assert torch.equal(one[contracts.LOSS], 0.7 * nelbo + 0.3 * contrast)
    loss, tokens, _ = updated(kind, x_0)
    total = rows_of(kind, x_0, 10 * ROWS)[contracts.LOSS].sum()
    assert tokens == 10 * ROWS
    assert loss == (total / (ROWS if kind == "joint" else ROWS * 10)).item()


def rows_of(
    kind: str, blocks: Tensor, num_tokens: int, pad_id: int | None = PAD, dtype: torch.dtype = torch.float64
) -> TensorDict:
    """What the pipeline says of the first batch, row by row."""
    x_0 = pieces.batch_at(blocks, step=0, batch_size=ROWS, seed=3)[contracts.X_0]
    keyed = batches.training_batch(x_0, 3, torch.arange(ROWS), 0, ROWS, num_tokens)
    return stages_of(kind, network_of(kind).to(dtype), pad_id).train()(keyed)


def test_tokens_per_second_are_those_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that says one second at every look after the first."""
    times = itertools.chain([0.0], itertools.repeat(1.0))
    monkeypatch.setattr(loop.following, "draw_curves", lambda _: None)  # a picture takes seconds
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(times)))
    run = run_of("denoising", texts_of([1, 9, 3, 10, 2, 2, 7, 5]), steps=2)
    run.folder = tmp_path
    run.train()
    logged = [json.loads(line)["tokens_per_s"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged == [39, 78], "tokens of the texts so far, in the second that has passed"


# ---- Whole runs


def documents(folder: Path) -> dict[str, Any]:
    """A corpus of sentences of 3 to 10 characters, each in a block of its own."""
    (folder / "text").mkdir(exist_ok=True)
    for split in ("train", "test"):
        lines = "".join(json.dumps({"text": "the cat sat"[: 3 + number % 8]}) + "\n" for number in range(24))
        (folder / "text" / f"{split}-0.jsonl").write_text(lines, encoding="utf-8")
    named = {"_component_": "edlm.datasets.named", "name": "lm1b", "path": folder / "text", "layout": "padded"}
    own = {f"corpus.{key}": value for key, value in {**named, "cache": folder / "cache"}.items()}
    return {**own, "vocabulary.specials": "[bos,eos,pad]"}


def padded(folder: Path, **changed: Any) -> dict[str, Any]:
    return denoiser(folder / "run", **{**documents(folder.parent), "length": 16, "valid_rows": 8, **changed})


@pytest.mark.slow
def test_a_run_is_the_same_whatever_the_length_of_its_blocks(tmp_path: Path) -> None:
    """One network, the same documents: every loss and every held-out figure, in blocks of 16, 32 and 64."""
    for length in (16, 32, 64):
        run_in(1, padded(tmp_path / str(length), length=length), tmp_path / str(length))
    one, *others = (losses(tmp_path / str(length) / "run") for length in (16, 32, 64))
    for other in others:
        torch.testing.assert_close(other, one, rtol=0.0, atol=1e-5)
    assert checkpoints.load_network(tmp_path / "16" / "run").pad_id == 29


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{}, {"accumulate": 2}, {"parallel": "sharded"}])
def test_processes_share_what_padding_leaves_of_a_batch(tmp_path: Path, changed: dict[str, Any]) -> None:
    run_in(1, padded(tmp_path / "one"), tmp_path / "one")
    run_in(2, padded(tmp_path / "two", **changed), tmp_path / "two")
    same_run(tmp_path / "two" / "run", tmp_path / "one" / "run")


@pytest.mark.parametrize("padding", ["ignored", "learned", "read"])
@pytest.mark.parametrize("recipe", ["pretrain_denoiser", "pretrain_ar"])
def test_what_becomes_of_padding_is_chosen_and_kept(tmp_path: Path, run: Runner, recipe: str, padding: str) -> None:
    own = {**TEXTS, **documents(tmp_path), "length": 16, "padding": padding, "output_dir": tmp_path / "run"}
    sizes = NETWORK if recipe == "pretrain_denoiser" else CAUSAL
    words = [*words_of(own), *words_of(sizes, "network."), "threads=1"]
    assert run(recipe, *words)[0] == 0
    folder = checkpoints.find_network(tmp_path / "run")
    ids, network = checkpoints.load_vocabulary_of(folder), checkpoints.load_network(folder)
    never_read = 29 if padding == "ignored" and recipe == "pretrain_denoiser" else None
    assert (network.pad_id, ids.pad_id, ids.end_id) == (
        never_read,
        None if padding == "learned" else 29,
        29 if padding == "learned" else None,
    )
    assert checkpoints.read_description(folder).get("padding") == (None if padding == "read" else padding)
    key = "denoiser" if recipe == "pretrain_denoiser" else "ar"
    texts = [f"{key}={tmp_path / 'run'}", f"output={tmp_path / 'texts.jsonl'}", "num_samples=2", "length=8"]
    other = "ar" if key == "denoiser" else "denoiser"
    assert run("generate", *texts, f"{other}=null", "energy=null", "num_steps=4", "threads=1")[0] == 0
    again = run(recipe, *words, "padding=" + ("read" if padding != "read" else "ignored"))
    assert again[0] == 2
    assert "padding was" in again[2]


def test_padding_that_is_learned_needs_an_id_for_it(tmp_path: Path, run: Runner) -> None:
    for recipe in ("pretrain_denoiser", "pretrain_ar"):
        ended = run(recipe, f"output_dir={tmp_path}", "padding=learned")
        assert (ended.status, ended.said) == (
            2,
            "edlm: padding = 'learned' needs a vocabulary with a pad id, for texts to end by",
        )
