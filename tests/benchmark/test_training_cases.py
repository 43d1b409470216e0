"""The benchmark of training: both sides take the same steps, and what a step costs is counted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import randomise
from small_benchmarks import BLOCK, CPU, SIZES, VOCAB, settings, small_networks, small_training

from edlm import contracts
from edlm.benchmark import comparison, textbook_training, training_cases
from edlm.benchmark.comparison import Verdict
from edlm.models import denoisers, energies
from edlm.nn import networks
from edlm.objectives import batches, contrastive, denoising
from edlm.process import schedules
from edlm.recipes import benchmark
from edlm.runs import timing


def training_pair(objective: str, max_length: int) -> tuple[Any, Any, Any]:
    """Our loss with what it drew, the textbook's of the same states, times and drafts, and what is trained."""
    torch.manual_seed(0)
    network, schedule = small_networks().denoiser, schedules.log_linear()
    energy = randomise(networks.EnergyNetwork(VOCAB, max_length, **SIZES).double(), 0)
    x_0 = torch.randint(VOCAB - 1, (5, BLOCK))
    denoiser, batch = denoisers.subs(network, VOCAB - 1), batches.training_batch(x_0, 0, torch.arange(5), 3, 5)
    if objective == "denoising":
        network.requires_grad_(True)
        out = denoising.denoising(denoiser, schedule)(batch)
        x_t, t = out[contracts.X_T], out[contracts.T]
        return out, textbook_training.denoising(network, x_0, x_t, t, VOCAB - 1), network.parameters()
    out = contrastive.contrastive(denoiser, energies.learned(energy), schedule)(batch)
    drafts = out[contracts.CANDIDATES][:, 1]
    return out, textbook_training.contrast(energy, x_0, drafts, out[contracts.X_T]), energy.parameters()


@pytest.mark.parametrize(("objective", "max_length"), [("denoising", BLOCK), ("contrast", BLOCK), ("contrast", VOCAB)])
def test_both_sides_train_with_the_same_loss_and_gradient(objective: str, max_length: int) -> None:
    """An energy of texts as long as the vocabulary is large combines tokens and not positions."""
    out, textbook, parameters = training_pair(objective, max_length)
    torch.testing.assert_close(out[contracts.LOSS], textbook, rtol=1e-10, atol=1e-10)
    wanted = list(parameters)
    ours, theirs = (
        torch.autograd.grad(loss.mean(), wanted, allow_unused=True) for loss in (out[contracts.LOSS], textbook)
    )
    compared = [(a, b) for a, b in zip(ours, theirs, strict=True) if b is not None]
    assert len(compared) > 10
    for a, b in compared:
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_operations_of_a_training_step_are_three_passes_of_what_is_trained() -> None:
    case = training_cases.Case("denoising", VOCAB, BLOCK, 4, 1)
    network, tokens = small_networks().denoiser, torch.zeros(4, BLOCK, dtype=torch.int64)
    masked = torch.arange(4 * BLOCK // 2)
    passed = timing.transformer_flops(network, tokens, None, masked)
    head = 2 * 16 * VOCAB * len(masked)
    assert training_cases.step_flops(case, SIZES) == 3 * (passed + head)
    per_text = timing.transformer_flops(network, tokens) + 2 * 2 * 16 * 16 * 4 * BLOCK
    contrast = training_cases.step_flops(case._replace(objective="contrast"), SIZES)
    assert contrast == passed + head + 3 * 2 * per_text
    small = case._replace(objective="contrast", vocab_size=BLOCK)
    spared = 2 * 2 * 16 * 16 * (2 * 4 * BLOCK - BLOCK)
    assert training_cases.step_flops(small, SIZES) == contrast - 2 * 16 * (VOCAB - BLOCK) * len(masked) - 3 * spared


def test_the_recipe_measures_training_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [{**each, "utilisation_target": 1.0} for each in small_training()]
    benchmark.main(settings(tmp_path, cases=[], growth=[], training=steps, peak_flops=1e18, only_training=[1]))
    report = json.loads((tmp_path / "benchmark.json").read_text("utf-8"))
    (record,) = report["training"]
    assert record["name"] == "training contrast v=30 l=8 b=4"
    assert set(record["methods"]) == {"textbook", "eager"}
    for method in record["methods"].values():
        assert 0 < method["utilisation"] < 1e-3
        assert 0 < method["loading_share"] < 1
    assert {verdict["what"]: verdict["met"] for verdict in report["verdicts"]}["utilisation"] is False
    assert "of a step" in capsys.readouterr().out


def test_a_step_of_either_side_changes_the_weights_that_are_trained() -> None:
    setting = training_cases.Setting(SIZES, CPU, torch.float32, 0, 1.0)
    for objective in ("denoising", "contrast"):
        for mode in (None, "eager"):
            case = training_cases.Case(objective, VOCAB, BLOCK, 4, 1)
            method = training_cases._method(case, setting, mode)
            step: Any = method.run
            before = [p.clone() for p in step.network.parameters()]
            method.warm_up()
            method.run()
            assert any(not torch.equal(a, b) for a, b in zip(before, step.network.parameters(), strict=True))
            assert step.number == training_cases._WARM_UP_STEPS + 1


CASE: dict[str, Any] = {"objective": "denoising", "vocab_size": 9, "length": 4, "rows": 2, "repeats": 3}
TARGETS = {"target": 2.0, "memory_target": None, "utilisation_target": 0.5}


def test_all_training_cases_are_run_or_those_that_are_named() -> None:
    every = [{**CASE, **TARGETS, "rows": rows} for rows in (1, 2, 3)]
    for only, rows in ((None, [1, 2, 3]), ([2, 0], [1, 3]), ([1], [2])):
        found = training_cases.cases_of({"training": every, "only_training": only})
        assert [case for case, _ in found] == [training_cases.Case(**{**CASE, "rows": each}) for each in rows]
        assert all(targets == TARGETS for _, targets in found)
    training_cases.cases_of({"training": every, "only_training": [2]})
    with pytest.raises(ValueError, match=r"^only_training = \[0, 3\] names case 3, and they are numbered 0\.\.2$"):
        training_cases.cases_of({"training": every, "only_training": [0, 3]})


def test_utilisation_is_a_share_of_the_peak_and_loading_one_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what has been measured; and so the table says."""
    given: list[Any] = []
    setting, case = training_cases.Setting(SIZES, CPU, torch.float32, 0, 8.0), training_cases.Case(**CASE)

    def measure(case: Any, methods: dict[str, Any], device: torch.device, rate: float) -> dict[str, Any]:
        given.extend([list(methods), rate])
        return {"methods": {"textbook": {"median": 4.0}, "eager": {"median": 2.0}, "compile": {"failed": "x"}}}

    monkeypatch.setattr(comparison, "measure", measure)
    monkeypatch.setattr(training_cases, "_method", lambda case, setting, mode: mode)
    monkeypatch.setattr(training_cases, "_loading_seconds", lambda *_: 0.5)
    monkeypatch.setattr(training_cases, "step_flops", lambda *_: 16.0)
    record = training_cases.measure(case, setting, ["eager", "compile", "cudagraph"], 40.0)
    assert given == [["textbook", "eager", "compile"], 40.0]
    assert record["methods"] == {
        "textbook": {"median": 4.0, "utilisation": 0.5, "loading_share": 0.125},
        "eager": {"median": 2.0, "utilisation": 1.0, "loading_share": 0.25},
        "compile": {"failed": "x"},
    }
    monkeypatch.setattr(comparison, "table", lambda record: "the table")
    assert training_cases.table(record).split("\n") == [
        "the table",
        "  textbook: the model's operations at 50.0% of the peak; data 12.50% of a step",
        "  eager: the model's operations at 100.0% of the peak; data 25.00% of a step",
    ]


def test_a_share_on_its_target_meets_it_and_the_textbook_has_none() -> None:
    methods = {"textbook": {"utilisation": 0.9}, "eager": {"utilisation": 0.5}, "compile": {"utilisation": 0.25}}
    record = {"methods": {**methods, "other": {}}, "ratios": {"eager": {"median": 2.5}}}
    assert training_cases.judge(record, TARGETS) == [
        Verdict("times faster", "eager", 2.5, 2.0, True),
        Verdict("utilisation", "eager", 0.5, 0.5, True),
        Verdict("utilisation", "compile", 0.25, 0.5, False),
    ]
    assert training_cases.judge(record, dict.fromkeys(TARGETS)) == []


def test_a_batch_is_loaded_a_number_of_times_and_the_middle_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(20))
    monkeypatch.setattr(timing, "seconds", lambda run, device: run() is not None and float(next(times)))
    setting = training_cases.Setting(SIZES, CPU, torch.float32, 0, 1.0)
    assert training_cases._loading_seconds(training_cases.Case(**CASE), setting) == 9.5
    blocks = training_cases._blocks(training_cases.Case(**CASE))
    assert blocks.shape == (4096, 4)
    assert (int(blocks.min()), int(blocks.max())) == (0, 7)
