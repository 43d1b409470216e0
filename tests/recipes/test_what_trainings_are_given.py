"""What a recipe gives to its training run, how much it scores at the end, and what a benchmark measures with."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from edlm.benchmark import comparison
from edlm.data import corpora, vocabulary
from edlm.data.pieces import Blocks
from edlm.evaluation import draws
from edlm.likelihood.estimates import Estimate
from edlm.recipes import (
    adapt,
    benchmark,
    distill,
    edlm_joint,
    edlm_nce,
    evaluate,
    oracle,
    pretrain_ar,
    pretrain_denoiser,
    speedrun,
)
from edlm.training import report
from edlm.training import settings as training_settings

CPU = torch.device("cpu")
WORDS = vocabulary.characters("ab", specials=["pad"])
BLOCKS = Blocks(torch.zeros(9, 4), torch.ones(9, 4), torch.full((9, 4), 2.0))
CORPUS = SimpleNamespace(fingerprint="corpus")
FOUND = Estimate(2.0, 0.5, 9)


class Plan(SimpleNamespace):
    """What a config asks for, by name: each part tells what it was given."""

    network, vocabulary, pad_id, form, blocks, identity = nn.Linear(2, 2), WORDS, 1, "form", BLOCKS, "identity"
    objective = SimpleNamespace(claim="claim")
    told = schedule = "schedule"
    start = SimpleNamespace(denoiser=SimpleNamespace(max_length=4), vocabulary=WORDS, pad_id=5)

    def __getattr__(self, name: str) -> Any:
        return lambda *given: (name, *given)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments of the run that a recipe builds."""
    found: dict[str, Any] = {}
    for module in (adapt, distill, edlm_joint, edlm_nce, pretrain_ar, pretrain_denoiser):
        monkeypatch.setattr(module, "TrainingRun", lambda **own: found.update(own) or "run")
        monkeypatch.setattr(module.schemas, "build", lambda values, kind: CORPUS if kind == "corpus" else None)
    monkeypatch.setattr(corpora, "load_blocks", lambda *own: BLOCKS if own[0] is CORPUS and own[2] == 4 else None)
    return found


KEYS = {key: f"own {key}" for key in training_settings.SETTINGS}
SETTINGS: dict[str, Any] = {**KEYS, "seed": 3, "length": 4, "corpus": "corpus", "valid_rows": 2, "batch_size": 3}
TIMELESS = {key: value for key, value in SETTINGS.items() if key in training_settings.WITHOUT_TIMES}


def made(cls: Any, **more: Any) -> Any:
    """A recipe before its `setup`, whose plan is made."""
    recipe = object.__new__(cls)
    own = {"settings": SETTINGS, "folder": Path("out"), "device": CPU, "plan": Plan(), "vocabulary": WORDS, **more}
    vars(recipe).update(own)
    return recipe


def test_an_adaptation_counts_its_own_tokens_and_has_no_times(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = made(adapt.Adapt)
    torch.manual_seed(0)
    monkeypatch.setattr(adapt.adaptation, "plan", lambda settings: Plan())
    recipe.setup()
    assert torch.initial_seed() == 3
    assert given.pop("vocabulary").pad_id == 1
    assert given.pop("validate") == recipe.validate
    assert [given.pop(key)()[0] for key in ("sample",)] == ["texts"]
    assert given == {
        **{"folder": Path("out"), "network": Plan.network, "stages": ("stages", Plan.network), "seed": 3},
        **{"blocks": BLOCKS.train, "settings": TIMELESS, "identity": ("notes", CORPUS), "per_token": True},
        "form": "form",
    }


def test_an_ar_models_training_counts_its_own_tokens_and_has_no_times(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = made(pretrain_ar.PretrainAr)
    monkeypatch.setattr(pretrain_ar.autoregression, "plan", lambda settings, corpus: Plan() if corpus is CORPUS else 0)
    recipe.setup()
    assert given.pop("vocabulary").pad_id == 1
    assert given.pop("validate") == recipe.validate
    assert given.pop("sample")()[0] == "texts"
    assert given == {
        **{"folder": Path("out"), "network": Plan.network, "stages": ("stages", Plan.network), "seed": 3},
        **{"blocks": BLOCKS.train, "settings": TIMELESS, "identity": "identity", "per_token": True, "form": "form"},
    }


@pytest.mark.parametrize("number", [0, 1])
def test_a_round_of_a_distillation_learns_from_the_last_one_by_the_token(number: int, given: dict[str, Any]) -> None:
    own = {**SETTINGS, "rounds": 2}
    recipe = made(distill.Distillation, settings=own, corpus=CORPUS, blocks=BLOCKS, teacher="teacher")
    recipe.round(number)
    student = ("student", "teacher")
    score = given.pop("validate")
    assert (score.func, score.args) == (recipe.validate, (number, "teacher"))
    assert callable(given.pop("sample"))
    assert given == {
        **{"folder": Path("out") if number else Path("out/round0"), "network": student, "vocabulary": WORDS, "seed": 3},
        **{"stages": ("stages", student, "teacher", number), "blocks": BLOCKS.train, "per_token": True},
        **{"settings": {key: own[key] for key in KEYS}, "identity": ("notes", CORPUS, number)},
    }


@pytest.mark.parametrize(("rows", "scored"), [(2, 8), (5, 20)])
def test_an_adaptation_is_scored_on_four_times_as_many_draws_at_its_end(
    rows: int, scored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(draws, "estimated", lambda *own: calls.append(own) or FOUND)
    monkeypatch.setattr(draws, "masked_nll", lambda *own: calls.append(own[2:]) or (FOUND if own[2] < 0.5 else None))
    monkeypatch.setattr(report, "held_out", lambda *own: calls.append(own) or "text")
    monkeypatch.setattr(report, "lines", lambda *own: calls.append(own) or [("a", "b", "c")])
    told: list[Any] = []
    monkeypatch.setattr(report, "conclude", lambda *own, **more: told.append((own, more)))
    run = SimpleNamespace(average="average", vocabulary=WORDS)
    recipe = made(adapt.Adapt, settings={**SETTINGS, "valid_rows": rows}, blocks=BLOCKS, run=run)
    monkeypatch.setattr(Plan, "bytes_per_token", lambda _, *own: calls.append(own) or 4.0, raising=False)
    recipe.cleanup()
    some, all_of_them = (draws.Draws(BLOCKS.test, count, 3, 3, CPU) for count in (rows, scored))
    assert calls[0] == (("bound", "average"), all_of_them, 1)
    assert calls[1] == (BLOCKS.test, scored)
    assert calls[2:7] == [(t, some, 1) for t in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert calls[7] == (BLOCKS, WORDS, scored)
    assert calls[8] == ("denoiser NELBO", FOUND, "draws", "perplexity bound", run, "text")
    [(own, more)] = told
    levels = {t: FOUND._asdict() if t in ("0.1", "0.3") else None for t in ("0.1", "0.3", "0.5", "0.7", "0.9")}
    assert more == {"masked_nll": levels, "bytes_per_token": 4.0}
    same = ("the same per byte", f"{FOUND.bits / 4.0:.4f}", "4.00 bytes a token")
    assert own[1][:2] == [("a", "b", "c"), same]
    assert [each[0] for each in own[1][2:]] == [f"bits left at t = {t}" for t in levels]
    assert (own[0], own[2:]) == (run, (FOUND, "text"))


@pytest.mark.parametrize("step", [0, 4])
def test_a_model_is_scored_before_it_is_adapted_and_not_again(
    step: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[Any] = []
    monkeypatch.setattr(draws, "estimated", lambda *own: done.append(own) or FOUND)
    run = SimpleNamespace(step=step, average="average", train=lambda: done.append("trained"))
    recipe = made(adapt.Adapt, blocks=BLOCKS, run=run)
    recipe.train()
    scored = (("bound", "average"), draws.Draws(BLOCKS.valid, 2, 3, 3, CPU), 1)
    assert done == [*([] if step else [scored]), "trained"]
    said = f"before training: {FOUND.bits:.4f} ± {FOUND.bits_error:.4f} bits/token\n"
    assert capsys.readouterr().out == ("" if step else said)
    assert recipe.validate("network") == {"nelbo": 2.0, "nelbo_error": 0.5}


@pytest.mark.parametrize(("name", "clock"), [("cpu", time.process_time), ("cuda", time.perf_counter)])
def test_a_speedrun_counts_seconds_of_the_processor_where_it_computes(
    name: str, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speedrun.speedrun, "check", lambda settings: None)
    monkeypatch.setattr(speedrun.environment, "writable", lambda key, value: Path(value))
    monkeypatch.setattr(speedrun.environment, "device_of", lambda settings: torch.device(name))
    found = speedrun.Speedrun({"output_dir": "out"})
    assert (found.clock, found.folder) == (clock, Path("out"))


@pytest.mark.parametrize("small", [True, False])
def test_texts_of_the_source_itself_differ_from_it_by_nothing(small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a small law that is known, and all else is of as many texts of the source as of a sampler."""
    added: list[Any] = []
    monkeypatch.setattr(oracle.hidden_markov, "texts", lambda *own: own)
    monkeypatch.setattr(oracle.exact_figures, "of_texts", lambda texts, beside: {"texts": texts})
    monkeypatch.setattr(oracle.draws, "warm_up", lambda settings, drawing: None)
    monkeypatch.setattr(oracle.card, "card", lambda *own: "card")
    lines = SimpleNamespace(records={}, add=lambda *own: added.append(own))
    monkeypatch.setattr(oracle, "Lines", lambda *own: lines)
    own = {"num_samples": 50, "length": 6, "seed": 3}
    recipe = made(oracle.Oracle, settings=own, grid={}, source="source", drawing=None)
    recipe.beside = SimpleNamespace(is_small=small)
    recipe.sweep()
    exact = {"total_variation": [0.0, 0.0], "kl": [0.0, 0.0]} if small else {}
    assert added == [("the source itself", {"figures": {**exact, "texts": ("source", 50, 6, 4)}})]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_card_is_written_with_its_tables_wherever_its_folder_is_to_be(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures of every set of texts, and a table of all where there are several."""
    folder, texts = tmp_path / "one" / "two", ["a", "b"][:number]
    monkeypatch.setattr(evaluate.cards, "card", lambda *own: {"given": len(own)})
    monkeypatch.setattr(evaluate.cards, "sampler", lambda settings, models: "sampler")
    monkeypatch.setattr(evaluate.figures, "markdown", lambda found, sampler: f"{found} {sampler}")
    monkeypatch.setattr(evaluate.samples, "record", lambda quality: quality)
    own = {"texts": texts, "tables": [f"table {each}" for each in texts], "figures": texts, "quality": ["q"]}
    own |= {"said": [None, "", "it is so"], "judged_by": "judge", "alike_by": "alike", "models": None, "documents": {}}
    recipe = made(evaluate.Evaluate, **own)
    recipe.folder = folder
    recipe.save_card()
    card = {"given": 6, "judge": "judge", "mauve": "alike", "quality": ["q"], "findings": ["it is so"]}
    assert json.loads((folder / "metric_card.json").read_text()) == card
    written = {path.name: path.read_text() for path in folder.iterdir() if path.suffix == ".md"}
    expected = {"figures.md": "\n".join(f"table {each}" for each in texts)} if texts else {}
    expected |= {"perplexities.md": f"{texts} sampler"} if number > 1 else {}
    assert written == expected
    columns = f"  all columns: {folder / 'figures.md'}\n" if texts else ""
    said = f"\n  It is so.\n\n{columns}  everything needed to repeat this: {folder / 'metric_card.json'}\n"
    assert capsys.readouterr().out == said


TRAININGS = {
    **{"adapt": (adapt, "Adapt"), "edlm_joint": (edlm_joint, "JointTraining"), "edlm_nce": (edlm_nce, "EnergyByNCE")},
    **{"pretrain_ar": (pretrain_ar, "PretrainAr"), "distill": (distill, "Distillation")},
    "pretrain_denoiser": (pretrain_denoiser, "PretrainDenoiser"),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_recipe_goes_on_trains_saves_and_then_reports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run that is started again is saved too: fewer of its checkpoints may be kept than before."""
    module, cls = TRAININGS[name]
    done: list[str] = []
    own = getattr(module, cls)
    acts = {key: lambda key=key: done.append(f"run: {key}") for key in ("load_checkpoint", "train", "save_checkpoint")}
    run = SimpleNamespace(step=4, **acts)
    recipe = made(own, run=run)
    for key in acts if name != "distill" else ("save_checkpoint",):
        getattr(recipe, key)()
    expected = [f"run: {key}" for key in acts]
    assert done == (expected if name != "distill" else expected[-1:])
    done.clear()
    verbs = ("load_denoiser", "setup", "load_checkpoint", "train", "save_checkpoint", "cleanup")
    verbs = verbs if name in ("edlm_joint", "edlm_nce") else verbs[1:]
    verbs = ("load_checkpoint", "setup", *verbs[2:]) if name == "distill" else verbs
    for verb in verbs:
        monkeypatch.setattr(own, verb, lambda _, verb=verb: done.append(verb))
    monkeypatch.setattr(own, "__init__", lambda _, settings: done.append(settings))
    module.main("settings")  # type: ignore[arg-type]
    assert done == ["settings", *verbs]


# ---- Benchmarks


def bench(**more: Any) -> Any:
    own = {"network": "sizes", "seed": 3, "modes": ["eager", "cudagraph"], "peak_flops": None, "growth": []}
    recipe: Any = object.__new__(benchmark.Benchmark)
    recipe.settings, recipe.device, recipe.dtype, recipe.folder = {**own, **more}, CPU, torch.float32, Path("out")
    recipe.cases, recipe.sweeps, recipe.training = [], [], []
    return recipe


def case(length: int) -> Any:
    return SimpleNamespace(length=length)


@pytest.mark.parametrize(
    ("cases", "swept", "longest"), [([], [], 1), ([8, 32, 16], [], 32), ([8], [4, 64], 64), ([], [2], 2), ([9], [4], 9)]
)
def test_networks_of_a_benchmark_are_as_long_as_its_longest_case(
    cases: list[int], swept: list[int], longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = bench(denoiser="folder")
    recipe.cases, recipe.sweeps = [(case(length), {}) for length in cases], [("length", [case(each) for each in swept])]
    monkeypatch.setattr(benchmark, "Bench", lambda *own: own)
    monkeypatch.setattr(benchmark.timing, "matmul_rate", lambda *own: own)
    monkeypatch.setattr(benchmark.reports, "environment", lambda *own: own)
    monkeypatch.setattr(benchmark.reports, "Report", lambda *own: own)
    recipe.setup()
    assert recipe.bench == ("sizes", longest, 3, CPU, torch.float32, ("folder", None))
    assert recipe.rate == (CPU, torch.float32)
    assert recipe.report == (Path("out"), (CPU, recipe.rate), recipe.settings)
    assert recipe.modes == ["eager"], "a CPU has no CUDA graphs"


@pytest.mark.parametrize(("given", "peak"), [(None, 5.0), (7.0, 7.0)])
def test_the_share_of_a_training_is_of_the_given_peak_or_of_the_rate_that_was_measured(
    given: float | None, peak: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    added, recipe = list[Any](), bench(peak_flops=given)
    recipe.rate, recipe.modes, recipe.training = 5.0, ["eager"], [("case", {"target": 2.0})]
    recipe.report = SimpleNamespace(add=lambda *own: added.append(own))
    monkeypatch.setattr(benchmark.training_cases, "measure", lambda *own: {"measured": own})
    monkeypatch.setattr(benchmark.training_cases, "table", lambda record: "a table")
    monkeypatch.setattr(benchmark.training_cases, "judge", lambda record, targets: ("judged", targets))
    recipe.measure_training()
    setting = benchmark.training_cases.Setting("sizes", CPU, torch.float32, 3, peak)
    measured = {"measured": ("case", setting, ["eager"], 5.0), "targets": {"target": 2.0}}
    assert added == [("training", measured, ("judged", {"target": 2.0}))]
    assert capsys.readouterr().out == "\na table\n\n"


def test_cases_are_measured_in_detail_and_points_of_a_sweep_are_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    added, recipe, forgotten = list[Any](), bench(growth=[{"last_over_previous": 1.5}]), list[int]()
    recipe.rate, recipe.modes = 5.0, ["eager"]
    recipe.cases, recipe.sweeps = [("case", {"target": 2.0})], [("length", ["short", "long"])]
    recipe.report = SimpleNamespace(add=lambda *own: added.append(own))
    methods = lambda *own: ("methods", *own)  # noqa: E731
    recipe.bench = SimpleNamespace(methods=methods, forget=lambda: forgotten.append(len(added)))
    monkeypatch.setattr(comparison, "measure", lambda *own: {"of": own})
    monkeypatch.setattr(comparison, "table", lambda record: "a table")
    monkeypatch.setattr(comparison, "judge", lambda record, targets: ("judged", targets))
    monkeypatch.setattr(benchmark.reports, "summarise", lambda *own: {"summary": own[:2]})
    monkeypatch.setattr(benchmark.reports, "growth_table", lambda sweep: "growth")
    monkeypatch.setattr(benchmark.reports, "flatness", lambda sweep, most: ("flat", most))
    recipe.measure_cases()
    recipe.measure_growth()

    def record(name: str, detailed: bool) -> dict[str, Any]:
        return {"of": (name, ("methods", name, ["eager"], comparison.TEXTBOOK), CPU, 5.0, detailed)}

    assert added[0] == ("cases", {**record("case", True), "targets": {"target": 2.0}}, ("judged", {"target": 2.0}))
    records = [record("short", False), record("long", False)]
    assert added[1] == ("growth", {"summary": ("length", ["short", "long"]), "records": records}, ("flat", 1.5))
    assert forgotten == [1, 2]
    assert capsys.readouterr().out.endswith("seconds over length\ngrowth\n\n")
