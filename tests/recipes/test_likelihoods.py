"""The recipe `likelihoods`: a setting scored is a line, each compared with its rule's own at one token a pass."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import frontier_folder
import pytest
import torch
from frontier_folder import ABC, LENGTH
from running import Runner, unless_given

import edlm
from edlm.data import corpora, pieces
from edlm.evaluation import figures
from edlm.likelihood import exact
from edlm.samplers.corrections import ChainRule
from edlm.samplers.sampler import Sampler
from edlm.weights import checkpoints, named

RANDOM = "{plan: {name: tokens_per_pass, count: [1, 4]}}"
RULES = "{plan: [{name: left_to_right, count: [1, 4]}, {name: confidence, threshold: [1.0, 0.4]}]}"
IN_ORDER = "{plan: {name: left_to_right, count: 4}, correction: {name: chain_rule}, selection: speculative}"
WEIGHED = "{plan: {name: tokens_per_pass, count: 4}, correction: {name: energy, called: carry_over}, candidates: 2}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    frontier_folder.write(path)
    return path


@pytest.fixture
def run(folder: Path, tmp_path: Path, run: Runner) -> Callable[..., tuple[int, str, str, Path]]:
    """Run the recipe in this process: exit status, output, our lines of standard error, and where its files are."""

    def call(*overrides: str) -> tuple[int, str, str, Path]:
        base = {
            "output_dir": tmp_path / "out",
            **{name: folder / name for name in named.NETWORKS},
            "corpus._component_": "edlm.corpora.text_files",
            "corpus.path": folder / "text",
            "rows": 5,
            "batch_size": 2,
            "nelbo_draws": 2,
            "threads": 1,
            "sweeps": f"[{RANDOM},{RULES},{IN_ORDER},{WEIGHED}]",
            "labels": "{tokens per pass: random order}",
        }
        return *run("likelihoods", *unless_given(base, overrides)), tmp_path / "out"

    return call


def lines(folder: Path) -> dict[str, dict]:
    return {r["name"]: r for r in map(json.loads, (folder / "likelihoods.jsonl").read_text("utf-8").splitlines())}


def cells(folder: Path) -> dict[str, list[str]]:
    rows = [line.strip("| ").split(" | ") for line in (folder / "likelihoods.md").read_text("utf-8").splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) == 9}


def texts(folder: Path, rows: int) -> figures.TextSet:
    documents = list(corpora.text_files(folder / "text").test)
    return figures.choose("test", pieces.excerpts(documents, ABC, LENGTH, True, 0), rows, ABC, 0)


def test_every_setting_has_the_likelihood_that_the_library_gives(run, folder: Path) -> None:
    status, shown, error, out = run()
    assert status == 0, error
    table, found = cells(out), lines(out)
    assert [*found] == [name for name in table if name]
    assert (out / "likelihoods.png").stat().st_size > 10_000
    tokens = torch.stack([excerpt.tokens for excerpt in texts(folder, 5).excerpts])
    denoiser = edlm.denoisers.subs(checkpoints.load_network(folder / "denoiser"), ABC.mask_id)
    for plan, ordered in ((edlm.plans.LeftToRight(4), True), (edlm.plans.Confidence(0.4), False)):
        how = {"correction": ChainRule(), "selection": "speculative"} if ordered else {}
        sampler = Sampler(denoiser, plan, **how)
        own, wanted = found[str(sampler)], exact.of_sampler(sampler, tokens)
        assert own["nats"]["exact_nll"] == pytest.approx(wanted.nats.tolist(), rel=1e-4)
        assert own["steps"] == wanted.passes.tolist()
        bits = float(wanted.nats.mean()) / math.log(2)
        together = 5 * LENGTH / float(wanted.passes.sum())
        assert table[str(sampler)][:3] == ["in order" if ordered else "plain", "exact_nll", f"{together:.2f}"]
        assert float(table[str(sampler)][3].split()[0]) == pytest.approx(bits, rel=1e-3)
        assert str(sampler) in shown


def test_the_excess_is_over_the_rule_s_own_value_at_one_token_a_pass(run) -> None:
    """In order is compared with plain where it has no such value: there both are one law."""
    _, _, _, out = run()
    table, found = cells(out), lines(out)

    def bits(name: str) -> float:
        return sum(next(iter(found[name]["nats"].values())))

    for name, base in (
        ("plain, 4 a pass", "plain, one by one"),
        ("plain, left to right, 4 a pass", "plain, left to right"),
        ("plain, confidence above 0.4", "plain, confidence above 1"),
        ("speculative, chain_rule, left to right, 4 a pass", "plain, left to right"),
    ):
        assert float(table[name][5].split()[0]) == pytest.approx(100 * (bits(name) / bits(base) - 1), abs=0.006)
    assert table["plain, left to right"][5].startswith("+0.00 ± 0.00")
    assert table["plain, 4 a pass"][1] == "<= t_step_nelbo"
    assert table["sir, carry_over, 4 a pass, k=2"][0] == "carry_over, k=2"
    assert table["nelbo"][1:3] == ["nelbo", "-"]
    assert table["ar"][1] == "exact_nll"


@pytest.mark.slow
def test_the_same_command_goes_on_with_the_settings_that_are_missing(run) -> None:
    status, _, error, out = run()
    assert status == 0, error
    path = out / "likelihoods.jsonl"
    whole = path.read_bytes()
    kept = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(kept[:-2]))
    table = (out / "likelihoods.md").read_text("utf-8")
    assert run("labels={}")[0] == 0, "labels change no line"
    assert path.read_bytes().startswith(b"".join(kept[:-2]))
    assert [*lines(out)] == [json.loads(line)["name"] for line in kept]
    assert [row.rsplit("|", 2)[0] for row in (out / "likelihoods.md").read_text("utf-8").splitlines()] == [
        row.rsplit("|", 2)[0] for row in table.splitlines()
    ], "but for seconds"
    status, _, error, _ = run("seed=1")
    assert status == 2
    assert "seed was 0, is 1" in error


def test_orders_give_a_drawn_plan_an_interval(run) -> None:
    """With few texts of 8 tokens some orders carry the mean; then there is no lower end."""
    status, _, error, out = run("num_orders=3", f"sweeps=[{RANDOM}]")
    assert status == 0, error
    for name, own in lines(out).items():
        if name not in ("nelbo", "ar"):
            assert [*own["nats"]] == ["t_step_nelbo", "k_order_bound, K=3", "tube_lower, K=3"]
            assert sum(own["nats"]["k_order_bound, K=3"]) >= sum(own["nats"]["tube_lower, K=3"])
            told = cells(out)[name][4] != "-"
            assert told == (own["unreliable_rows"] <= figures.MOST_UNRELIABLE)
            assert cells(out)[name][1] == "<= k_order_bound, K=3"


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("sweeps=[{ar: {temperature: 1.0}}]", "sweeps: the AR model is no sampler of a denoiser"),
        ("labels={a: 1}", "must be a section with a name for each rule"),
        ("length=9", "length = 9 must lie in 1..8"),
        ("num_orders=0", "num_orders = 0 must be"),
        ("rows=1", "rows = 1 must be"),
    ],
)
def test_what_cannot_be_is_named(run, override: str, reason: str) -> None:
    status, _, error, _ = run(override)
    assert status == 2
    assert reason in error
