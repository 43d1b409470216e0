"""The recipe `evaluate` where the plan is a rule, or has several orders: what is exact, and what is an interval."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import frontier_folder
import pytest
import torch
from frontier_folder import ABC
from running import Runner, unless_given

import edlm
from edlm.data import corpora, pieces
from edlm.evaluation import figures
from edlm.evaluation.figures import Figure
from edlm.likelihood import exact, orders
from edlm.likelihood.estimates import Estimate
from edlm.samplers.corrections import ChainRule
from edlm.samplers.sampler import Sampler
from edlm.weights import checkpoints

ROWS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    frontier_folder.write(path)
    return path


@pytest.fixture
def found(folder: Path, tmp_path: Path, run: Runner) -> Callable[..., dict[tuple[str, str], dict[str, Any]]]:
    """Run the recipe in this process: its figures by model and name, and what it shows."""

    def call(*overrides: str) -> dict[tuple[str, str], dict[str, Any]]:
        base = {
            "output_dir": tmp_path / "out",
            "denoiser": folder / "denoiser",
            "energy": "null",
            "corpus._component_": "edlm.corpora.text_files",
            "corpus.path": folder / "text",
            "rows": ROWS,
            "batch_size": 4,
            "num_passes": "null",
            "num_particles": 2,
            "window": "[0.0,1.0]",
            "threads": 1,
        }
        status, shown, error = run("evaluate", *unless_given(base, overrides))
        assert status == 0, error
        card = json.loads((tmp_path / "out" / "metric_card.json").read_text("utf-8"))
        return {(each["model"], each["figure"]): {**each, "shown": shown} for each in card["figures"]}

    return call


def texts(folder: Path) -> torch.Tensor:
    documents = list(corpora.text_files(folder / "text").test)
    chosen = figures.choose("test", pieces.excerpts(documents, ABC, frontier_folder.LENGTH), ROWS, ABC, 0)
    return torch.stack([excerpt.tokens for excerpt in chosen.excerpts])


def denoiser(folder: Path) -> Any:
    return edlm.denoisers.subs(checkpoints.load_network(folder / "denoiser"), ABC.mask_id)


@pytest.mark.parametrize(
    ("section", "plan"),
    [
        ("{name: left_to_right, count: 3}", edlm.plans.LeftToRight(3)),
        ("{name: entropy_bound, gamma: 1.5}", edlm.plans.EntropyBound(1.5)),
    ],
)
def test_a_rule_has_exact_rows_where_a_drawn_plan_has_bounds(found, folder: Path, section: str, plan: Any) -> None:
    card = found(f"sampler.plan={section}")
    names = [("denoiser", "nelbo"), ("denoiser", "exact_nll"), ("chain_rule", "transition_nelbo")]
    assert [*card] == [*names, ("speculative", "exact_nll")]
    plain = Sampler(denoiser(folder), plan)
    ordered = plain.replace(correction=ChainRule(), selection="speculative")
    for model, sampler in (("denoiser", plain), ("speculative", ordered)):
        own, wanted = card[model, "exact_nll"], exact.of_sampler(sampler, texts(folder))
        assert own["nats_per_token"] == pytest.approx(float(wanted.nats.mean()), rel=1e-4)
        assert own["passes"]["denoiser"] == int(wanted.passes.sum())
        assert own["nats_error"] > 0.0
        assert f"{model}: exact_nll" in own["shown"]
    weighed = card["chain_rule", "transition_nelbo"]["nats_per_token"]
    assert weighed - card["chain_rule", "transition_nelbo"]["excess_nats"] == pytest.approx(
        card["denoiser", "exact_nll"]["nats_per_token"], rel=1e-4
    ), "less what is weighed, the bound along the path is exact"


def test_several_orders_have_rows_of_their_own_and_none_by_default(found, folder: Path) -> None:
    assert not [name for _, name in found("num_steps=null") if "K=" in name]
    card = found("num_steps=null", "num_orders=4")
    own = card["denoiser", "k_order_bound, K=4"], card["denoiser", "tube_lower, K=4"]
    sampler = Sampler(denoiser(folder), edlm.plans.TokensPerPass(1))
    wanted = orders.bound(sampler, texts(folder), torch.tensor(0), torch.arange(ROWS), num_orders=4)
    for figure, values in zip(own, (wanted.upper, wanted.lower), strict=True):
        assert figure["nats_per_token"] == pytest.approx(float(values.mean()), rel=1e-4)
        assert figure["ess"] == pytest.approx(float(wanted.ess.mean()), rel=1e-4)
        assert figure["passes"] == {"denoiser": int(wanted.denoiser_passes.sum())}
        assert figure["unreliable_rows"] == pytest.approx(float(wanted.unreliable.double().mean()))
    assert own[1]["reliable"] == (own[1]["unreliable_rows"] <= figures.MOST_UNRELIABLE)
    assert ("speculative", "k_order_bound, K=4") in card
    assert ("chain_rule", "k_order_bound, K=4") not in card, "candidates are weighed"


@pytest.mark.parametrize(("share", "marked"), [(0.0, False), (0.05, False), (0.06, True)])
def test_a_lower_end_is_marked_where_more_than_one_text_in_twenty_is_unreliable(share: float, marked: bool) -> None:
    value = Estimate(2.0, 0.1, 50)
    end = Figure("t", "m", "tube_lower, K=8", value, 1.0, 1.0, {"denoiser": 8}, 3.0, None, None, share)
    shown = figures.table([end])
    assert end.unreliable == marked
    assert ("tube_lower, K=8!" in shown) == ("no lower end" in shown) == marked
    assert end.record()["reliable"] == (not marked)
