"""What `pretrain_denoiser` is trained and measured by: its kind's own bound, padding left out, averaged weights."""

import json
import re
from pathlib import Path

import pytest
import torch
from builders import randomise
from smallest import denoiser_words, settings_of, train
from torch import Tensor

from edlm import contracts
from edlm.evaluation import draws
from edlm.evaluation.draws import Draws
from edlm.likelihood import baselines as baseline_bounds
from edlm.likelihood import estimates, nelbo
from edlm.models import denoisers
from edlm.objectives import batches
from edlm.process import schedules
from edlm.recipes.pretrain_denoiser import PretrainDenoiser
from edlm.samplers import baselines

CPU = torch.device("cpu")
KINDS = {
    "mdlm": [],
    "chain_rule": ["noise_levels=by_time", "loss_weights=nelbo", "loss_steps=[2,8]"],
    "d3pm": ["noise_levels=by_time", "loss_weights=nelbo", "loss_steps=5"],
    "sedd": ["noise_levels=by_time", "loss_weights=nelbo"],
}
every_kind = pytest.mark.parametrize("kind", KINDS)
MASK, PAD, LENGTH = 30, 29, 32


def recipe(folder: Path, kind: str = "mdlm") -> PretrainDenoiser:
    """Nothing trained yet; both networks random, the averaged one another than the raw one."""
    told = ["time_conditioning=true", "schedule._component_=edlm.schedules.cosine", "schedule.eps=0.01", "seed=3"]
    words = [*told, "vocabulary.specials=[bos,eos,pad]", f"objective={kind}", "batch_size=3", *KINDS[kind]]
    made = PretrainDenoiser(settings_of("pretrain_denoiser", *denoiser_words(folder), *words))
    made.setup()
    for seed, network in enumerate((made.run.network, made.run.average)):
        randomise(network, seed)
    return made


def padded(texts: Tensor) -> Tensor:
    """Row i with 3 i tokens of padding at its end."""
    ends = LENGTH - 3 * torch.arange(len(texts)).unsqueeze(1)
    return torch.where(torch.arange(LENGTH) < ends, texts, PAD)


def test_a_bound_goes_through_the_blocks_with_noise_of_every_rows_own_and_counts_tokens() -> None:
    blocks = torch.tensor([[1, 2, 9], [3, 9, 9]])

    def score(x_0: Tensor, seed: Tensor, row: Tensor, scored: Tensor) -> Tensor:
        return 1000.0 * seed + 100.0 * row + (x_0 * scored).sum(1)

    found = draws.estimated(score, Draws(blocks, 5, batch_size=2, seed=7, device=CPU), pad_id=9)
    values, counts = torch.tensor([7003.0, 7103.0, 7203.0, 7303.0, 7403.0]), torch.tensor([2, 1, 2, 1, 2])
    assert found == pytest.approx(estimates.estimate(values, counts))


@every_kind
def test_padding_is_never_masked_in_training_whatever_the_kind(tmp_path: Path, kind: str) -> None:
    made = recipe(tmp_path, kind)
    x_0, row = padded(made.blocks.train[torch.arange(8)]), torch.arange(8)
    out = made.run.stages.eval()(batches.training_batch(x_0, 3, row, 0, 8))
    padding = x_0 == PAD
    assert torch.equal(out[contracts.X_T][padding], x_0[padding])
    assert (out[contracts.X_T] == MASK).any()


@every_kind
def test_its_bound_is_that_of_its_kind_on_what_is_no_padding(tmp_path: Path, kind: str) -> None:
    made = recipe(tmp_path, kind)
    network = made.run.average
    x_0, schedule, seed = padded(made.blocks.valid[torch.arange(5)]), schedules.cosine(0.01), torch.tensor(3)
    build = {"d3pm": denoisers.d3pm, "sedd": denoisers.sedd}.get(kind, denoisers.subs)
    denoiser, values = build(network, MASK, schedule), []
    for row in torch.arange(5).split(3):  # passes are stratified over the rows of a batch
        keys = x_0[row], seed, row
        if kind in ("mdlm", "chain_rule"):
            values.append(nelbo.nelbo(denoiser, schedule, *keys, x_0[row] != PAD))
        elif kind == "d3pm":
            values.append(baseline_bounds.t_step_nelbo(baselines.d3pm(denoiser, schedule), *keys, 5, x_0[row] != PAD))
        else:
            values.append(baseline_bounds.score_entropy(denoiser, schedule, *keys, x_0[row] != PAD))
    expected = estimates.estimate(torch.cat(values), (x_0 != PAD).sum(1))
    assert made.held_out_bound(network, x_0, 5)._asdict() == pytest.approx(expected._asdict(), rel=1e-5)
    made.blocks = made.blocks._replace(valid=x_0, test=made.blocks.train)
    assert made.validate(network)["nelbo"] == made.held_out_bound(network, x_0, 8).mean


@every_kind
def test_what_is_left_at_a_time_is_that_of_the_averaged_network_as_a_law(tmp_path: Path, kind: str) -> None:
    """Row by row at the seed of the run, on the schedule that it is told; a row without a mask says nothing."""
    made = recipe(tmp_path, kind)
    texts = padded(made.blocks.test[torch.arange(10)])
    made.blocks = made.blocks._replace(test=texts)
    schedule, rows = schedules.cosine(0.01), []
    denoiser = denoisers.subs(made.run.average, MASK, schedule)
    for row in torch.arange(8).split(1):
        keys = texts[row], torch.tensor([0.1]), torch.tensor(3), row, texts[row] != PAD
        rows.append(nelbo.masked_nll(denoiser, schedule, *keys))
    values = torch.cat(rows)
    values = values[~values.isnan()]
    assert made.masked_nll(0.1) == pytest.approx(estimates.estimate(values), rel=1e-5)
    assert len(values) < 8


def test_a_figure_that_too_few_draws_carry_is_left_out_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a time near 0 a short block rarely has a mask, and no error bar is made of one row."""
    made = recipe(tmp_path, "mdlm")
    full, made.settings = made.settings, {**made.settings, "valid_rows": 1}
    assert made.masked_nll(0.9) is None
    made.settings = full
    made.masked_nll = lambda t: None if t < 0.2 else estimates.Estimate(1.0, 0.1, 8)  # type: ignore[method-assign]
    tmp_path.mkdir(exist_ok=True)
    made.cleanup()
    assert re.search(r"bits left at t = 0\.1 +left out +fewer than two draws got a mask", capsys.readouterr().out)
    levels = json.loads((made.folder / "report.json").read_text("utf-8"))["masked_nll"]
    assert [t for t, value in levels.items() if value is None] == ["0.1"]


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 2, 4])
def test_blocks_of_few_tokens_are_trained_and_reported(tmp_path: Path, length: int) -> None:
    train("pretrain_denoiser", *denoiser_words(tmp_path), f"length={length}", "steps=2", "valid_rows=2")
    assert (tmp_path / "report.json").is_file()
