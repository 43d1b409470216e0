"""The benchmark compares samplers of one task, counts what they do, and says what it measured."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from scipy import stats
from small_benchmarks import BLOCK, CPU, VOCAB, settings, small_networks, small_training
from tensordict import TensorDict
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from edlm import contracts
from edlm.benchmark import comparison
from edlm.benchmark import methods as benchmark_methods
from edlm.benchmark import textbook as textbook_samplers
from edlm.cli import commands
from edlm.models import denoisers, energies
from edlm.process import categorical
from edlm.recipes import benchmark
from edlm.runs import timing
from edlm.runs.timing import Clock, Spread
from edlm.samplers import pipelines
from edlm.weights import loading

# ---- What is compared is one task


def small_case(method: str = "posterior", **changes: Any) -> benchmark_methods.Case:
    sizes = {"vocab_size": VOCAB, "length": BLOCK, "rows": 3, "num_steps": 4, "repeats": 2, "textbook_steps": None}
    return benchmark_methods.Case(
        **{"method": method, "num_particles": 1 if method == "plain" else 2, **sizes, **changes}
    )


def states_and_drafts() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randint(VOCAB, (5, BLOCK), generator=generator)
    drafts = torch.randint(VOCAB - 1, (5, 2, BLOCK), generator=generator)
    return x_t, torch.where((x_t == VOCAB - 1).unsqueeze(1), drafts, x_t.unsqueeze(1))


def test_both_sides_have_the_same_denoiser() -> None:
    networks, (x_t, _) = small_networks(), states_and_drafts()
    positions = (x_t == VOCAB - 1).flatten().nonzero().squeeze(-1)
    assert len(positions) > 3
    denoiser = denoisers.subs(networks.folded, VOCAB - 1)
    state = TensorDict({contracts.X_T: x_t, contracts.T: torch.ones(5).double(), contracts.POSITIONS: positions})
    ours = denoiser.logits(denoiser(state)[contracts.HIDDEN]).log_softmax(-1)
    textbook = textbook_samplers.subs(networks.denoiser.head(networks.denoiser(x_t)), x_t, VOCAB - 1)
    torch.testing.assert_close(textbook.flatten(0, 1)[positions], ours)
    assert categorical.entropy(ours).min() > 0.5  # neither flat nor certain
    assert categorical.entropy(ours).max() < math.log(VOCAB - 1) - 0.05


@pytest.mark.parametrize("carry_over", [False, True])
def test_both_sides_have_the_same_energy(carry_over: bool) -> None:
    networks, (x_t, drafts) = small_networks(), states_and_drafts()
    log_p = textbook_samplers.subs(networks.denoiser.head(networks.denoiser(x_t)), x_t, VOCAB - 1)
    drawn = log_p.unsqueeze(1).expand(-1, 2, -1, -1).gather(-1, drafts.unsqueeze(-1)).squeeze(-1)
    keys = {contracts.X_T: x_t, contracts.CANDIDATES: drafts, contracts.LOG_P_CANDIDATES: drawn}
    keys[contracts.POSITIONS] = (x_t == VOCAB - 1).flatten().nonzero().squeeze(-1)
    ours = energies.residual_ar(networks.ar, VOCAB - 1, benchmark_methods.BOS_ID, carry_over)(TensorDict(keys))
    repeated = [tensor.repeat_interleave(2, dim=0) for tensor in (x_t, log_p)]
    textbook = textbook_samplers.residual_ar(networks.ar, VOCAB - 1, benchmark_methods.BOS_ID, carry_over)(
        drafts.flatten(0, 1), *repeated
    )
    torch.testing.assert_close(textbook.view(5, 2), ours[contracts.ENERGY])


# ---- Measuring


@pytest.mark.parametrize("method", ["plain", "posterior", "carry_over"])
def test_what_is_observed_is_what_was_done(method: str) -> None:
    case, networks = small_case(method), small_networks()
    pipeline = benchmark_methods.build_pipeline(case, networks, "eager")
    ours = benchmark_methods.ours(case, networks, pipeline, seed=3)
    info = pipelines.sample(pipeline, case.rows, seed=3)["info"]
    passes = int(info["denoiser_passes"].max())
    clock = Clock(CPU)
    assert ours.observe is not None
    ours.observe(clock)
    assert clock.parts["denoiser"][:2] == (passes, int(info["denoiser_passes"].sum()))
    assert clock.parts["noise"].calls == clock.parts["reveal"].calls == passes
    if method != "plain":
        assert clock.parts["energy"].rows == info["energy_passes"].sum()
    textbook, seen = benchmark_methods.textbook(case, networks, 3, CPU), Clock(CPU)
    assert textbook.observe is not None
    textbook.observe(seen)
    assert 1 <= seen.parts["denoiser"].calls <= case.num_steps
    assert seen.parts["denoiser head"].flops == 2 * 16 * VOCAB * BLOCK * case.rows * seen.parts["denoiser"].calls
    assert not any(module._forward_hooks for network in networks[:3] for module in network.modules())


def test_the_operations_of_a_transformer_are_those_of_its_products() -> None:
    network, tokens = small_networks().ar, torch.zeros(3, BLOCK, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        hidden = network(tokens)
        network.head(hidden)
    expected = timing.transformer_flops(network, tokens) + timing.head_flops(network.head, hidden)
    attention = 2 * 2 * 2 * 3 * BLOCK * BLOCK * 16  # the counter may not know the fused kernel of a CPU
    assert counter.get_total_flops() in (expected, expected - attention)
    positions = torch.tensor([0, 5])
    with FlopCounterMode(display=False) as fewer:
        network.head(network(tokens, None, positions))
    spared = 18 * 16 * 16 * (3 * BLOCK - 2)
    assert (
        timing.transformer_flops(network, tokens, None, positions) == timing.transformer_flops(network, tokens) - spared
    )
    half = timing.head_flops(network.head, hidden, slice(0, VOCAB // 2))
    assert half == 2 * hidden.numel() * (VOCAB // 2)
    less = counter.get_total_flops() - fewer.get_total_flops()
    assert less == spared + 2 * 16 * VOCAB * (3 * BLOCK - 2)


def test_textbook_cost_is_extrapolated_in_proportion() -> None:
    assert benchmark_methods.textbook(small_case(num_steps=12, textbook_steps=3), small_networks(), 0, CPU).scale == 4.0
    assert benchmark_methods.textbook(small_case(num_steps=12), small_networks(), 0, CPU).scale == 1.0


def test_runs_are_interleaved() -> None:
    order: list[str] = []
    times = timing.interleaved({name: lambda name=name: order.append(name) for name in "abc"}, 2, CPU)
    assert "".join(order) == "abcabc"
    assert {name: len(each) for name, each in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_ratios_are_those_of_the_medians_with_the_range_over_rounds() -> None:
    assert timing.ratios([4.0, 6.0, 20.0], [2.0, 1.0, 4.0]) == Spread(3.0, 2.0, 6.0)
    with pytest.raises(ValueError, match="shorter"):
        timing.ratios([4.0, 6.0], [2.0])


def test_growth_is_the_exponent_of_a_power_law_and_its_error_that_of_least_squares() -> None:
    sizes, generator = [1.0, 2.0, 5.0, 30.0, 100.0], torch.Generator().manual_seed(0)
    exact = timing.growth(sizes, [3.0 * size**1.5 for size in sizes])
    assert exact.exponent == pytest.approx(1.5)
    assert exact.error == pytest.approx(0.0, abs=1e-9)
    noisy = [size**0.7 * math.exp(0.2 * float(torch.randn((), generator=generator))) for size in sizes]
    expected = stats.linregress([math.log(size) for size in sizes], [math.log(time) for time in noisy])
    assert timing.growth(sizes, noisy) == pytest.approx((expected.slope, expected.stderr))
    assert timing.growth([2.0, 8.0], [1.0, 4.0]) == (pytest.approx(1.0), None)


@pytest.mark.skipif(not timing.can_measure_memory(CPU), reason="the system does not say how much memory is used")
def test_peak_memory_sees_what_is_freed_again() -> None:
    size = 64 * 2**20

    def run() -> None:
        torch.ones(size, dtype=torch.uint8).add(1)  # two of them at once

    for _ in range(2):
        peak = timing.peak_memory(run, CPU, timing.memory_in_use(CPU))
        assert 1.95 * size < peak < 2.2 * size
    assert timing.peak_memory(lambda: None, CPU, timing.memory_in_use(CPU)) < 0.1 * size


@pytest.mark.parametrize(
    ("target", "memory_target", "machinery_target", "met"),
    [(2.0, 5.0, 0.3, [True, True, True]), (2.1, 5.1, 0.2, [False, False, False]), (None, None, None, [])],
)
def test_targets_are_met_or_missed(
    target: float | None, memory_target: float | None, machinery_target: float | None, met: list[bool]
) -> None:
    eager = {"peak_memory": 20, "shares": {"machinery": 0.25}}
    record = {"methods": {"textbook": {"peak_memory": 100}, "eager": eager}, "ratios": {"eager": {"median": 2.0}}}
    targets = {"target": target, "memory_target": memory_target, "machinery_target": machinery_target}
    assert [verdict.met for verdict in comparison.judge(record, targets)] == met


def test_a_method_that_runs_out_of_memory_is_left_out() -> None:
    def too_large() -> None:
        raise torch.OutOfMemoryError("no memory")

    fits = benchmark_methods.Method(lambda: None, lambda: None, None, 1.0)
    methods = {"textbook": fits._replace(warm_up=too_large), "compile": fits}
    record = comparison.measure(small_case(), methods, CPU, 1e9)
    assert record["methods"]["textbook"] == {"failed": "out of memory"}
    assert len(record["methods"]["compile"]["seconds"]) == 2
    assert record["ratios"] == {}
    assert "out of memory" in comparison.table(record)


# ---- The recipe


def test_the_recipe_reports_every_case_and_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(settings(tmp_path, modes=["eager", "cudagraph"], device="cpu"))
    out = capsys.readouterr().out
    assert "cudagraph is left out: it needs a CUDA device" in out
    judged = 2 + timing.can_measure_memory(CPU)  # times faster in two cases, memory in one
    assert out.count("target 1: ") == 2 * judged  # beside the case and in the list of all
    assert "extrapolated from 4 of 8 steps" in out
    assert re.search(r"seconds over num_steps\n +2 +4 +8 +exponent\n  textbook .* ± .*\n  eager .* ± ", out)
    report = json.loads((tmp_path / "benchmark.json").read_text("utf-8"))
    assert {"torch", "threads", "cpu", "gpu", "load_at_start", "matmul_flops_per_second"} <= set(report["environment"])
    assert report["settings"]["seed"] == 0
    assert len(report["verdicts"]) == judged + 1
    plain, energy = report["cases"]
    for case in (plain, energy):
        textbook, eager = case["methods"]["textbook"], case["methods"]["eager"]
        assert len(textbook["seconds"]) == len(eager["seconds"]) == case["case"]["repeats"]
        assert case["ratios"]["eager"]["median"] == pytest.approx(textbook["median"] / eager["median"])
        shares = eager["shares"]
        assert shares["networks"] + shares["heads"] + shares["machinery"] == pytest.approx(1.0)
        assert shares["denoise"] + shares["propose"] + shares["noise"] < 1.0
    assert energy["methods"]["textbook"]["extrapolated_by"] == 2.0
    assert energy["methods"]["textbook"]["passes"]["energy"] == {"calls": 8.0, "rows": 32.0}
    (sweep,) = report["growth"]
    assert sweep["values"] == [2, 4, 8]
    assert set(sweep["exponents"]) == {"textbook", "eager"}
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*.partial"))


def test_one_network_is_long_enough_for_every_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(benchmark.timing, "matmul_rate", lambda *_: 1.0)
    monkeypatch.setattr(benchmark, "Bench", lambda sizes, longest, *others: seen.append(longest))
    given = settings(tmp_path)
    for lengths in ((5, 12, 8), (12, 5, 8), (5, 8, 12)):
        plain, energy, sweep = [*given["cases"], *given["growth"]]
        for each, length in zip((plain, energy, sweep), lengths, strict=True):
            each["length"] = length
        benchmark.Benchmark(given).setup()
    assert seen == [12, 12, 12]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"plan": {"name": "tokens_per_pass", "count": 2}}, "tokens_per_pass count=2"),
        ({"plan": {"name": "grid", "spacing": "cosine"}, "candidates": 3}, "grid spacing=cosine, candidates=3"),
        ({"correction": {"name": "chain_rule"}, "selection": "imh"}, "chain_rule, selection=imh"),
        ({"correction": {"name": "chain_rule"}, "selection": "speculative"}, "selection=speculative"),
        ({"candidates": {"ess": 2.0, "at_most": 4}}, "ess=2.0 at_most=4"),
        ({"correction": {"name": "energy", "called": "posterior"}, "window": [0.5, 1]}, "energy called=posterior"),
    ],
)
def test_a_case_names_its_sampler_by_the_section_of_all_recipes(
    tmp_path: Path, section: dict[str, Any], says: str
) -> None:
    given = settings(tmp_path)
    given["cases"] = [{**given["cases"][1], "sampler": section}]
    benchmark.main({**given, "growth": [{**given["growth"][0], "num_steps": [2, 4, 8], "sampler": section}]})
    report = json.loads((tmp_path / "benchmark.json").read_text("utf-8"))
    [case], [sweep] = report["cases"], report["growth"]
    assert says in case["name"]
    assert says in sweep["name"]
    assert case["case"]["sampler"] == section
    assert case["methods"]["eager"]["passes"]["denoiser"]["rows"] > 0


def of_folders(folder: Path, vocab_size: int, length: int, **folders: Any) -> dict[str, Any]:
    """The settings of a case of each method, with the networks of folders."""
    case = {**settings(folder)["cases"][0], "vocab_size": vocab_size, "length": length, "num_steps": 2, "repeats": 1}
    methods = ("plain", "carry_over") if folders.get("ar") else ("plain",)
    cases = [{**case, "method": method, "num_particles": 1 if method == "plain" else 2} for method in methods]
    return settings(folder, cases=cases, growth=[], **{name: str(path) for name, path in folders.items()})


def test_networks_of_ours_are_measured_by_their_folders(trained_ar: Path, tmp_path: Path) -> None:
    benchmark.main(of_folders(tmp_path, 28, 8, denoiser=trained_ar / "denoiser", ar=trained_ar / "ar"))
    report = json.loads((tmp_path / "benchmark.json").read_text("utf-8"))
    assert report["settings"]["denoiser"] == str(trained_ar / "denoiser")
    assert [case["case"]["method"] for case in report["cases"]] == ["plain", "carry_over"]
    for case in report["cases"]:
        assert case["methods"]["eager"]["passes"]["denoiser"]["rows"] > 0


def test_large_networks_are_measured_by_their_folders(large_models: Path, tmp_path: Path) -> None:
    """Whose mask is not the last id, and whose operations follow from their weights."""
    folders = {"denoiser": large_models / "LLaDA-8B-Base", "ar": large_models / "Qwen2.5-7B"}
    benchmark.main(of_folders(tmp_path, 40, 8, **folders))
    report = json.loads((tmp_path / "benchmark.json").read_text("utf-8"))
    plain, weighed = report["cases"]
    assert plain["methods"]["textbook"]["passes"]["denoiser"]["rows"] > 0
    assert weighed["methods"]["eager"]["passes"]["energy"]["rows"] > 0
    found = loading.denoiser(str(folders["denoiser"]), CPU, 8)
    made = benchmark_methods.load_networks(*map(str, folders.values()), 40, 8, CPU, torch.float64)
    assert (made.mask_id, made.bos_id) == (found.vocabulary.mask_id, 3)
    assert made.mask_id != 39
    assert next(made.denoiser.layers.parameters()).dtype == torch.float64
    network = found.network
    matrices = sum(each.numel() for each in network.layers.parameters() if each.ndim == 2)
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    attention = 4 * 8 * network.widths[1] * len(network.layers)
    assert timing.transformer_flops(network, tokens) == 16 * (2 * matrices + attention)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 27}, "vocab_size = 27 of a case must be 28, that of denoiser = "),
        ({"length": 4000}, "length = 4000 of a case must be at most 32, that of denoiser = "),
        ({"ar": None, "denoiser": None}, "ar = 'x' stands beside a denoiser: give denoiser= a folder"),
        ({"method": "posterior"}, "method = 'posterior' weighs by an AR model: give ar= a folder"),
    ],
)
def test_what_does_not_fit_a_folder_is_named(
    changes: dict[str, Any], said: str, trained_ar: Path, tmp_path: Path
) -> None:
    given = of_folders(tmp_path, 28, 8, denoiser=trained_ar / "denoiser")
    if "denoiser" in changes:
        given |= {"denoiser": None, "ar": "x"}
    else:
        given["cases"] = [{**given["cases"][0], "num_particles": 2 if "method" in changes else 1, **changes}]
    with pytest.raises(ValueError, match=re.escape(said)):
        benchmark.main(given)


def test_chosen_cases_alone_are_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(settings(tmp_path, only=[1], growth=[]))
    assert [case["case"]["method"] for case in json.loads((tmp_path / "benchmark.json").read_text())["cases"]] == [
        "carry_over"
    ]


def test_other_modes_are_prepared_before_they_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilation itself is left out, which takes the time."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    benchmark.main(settings(tmp_path, only=[1], growth=[], modes=["eager", "compile"], device="cpu"))
    (case,) = json.loads((tmp_path / "benchmark.json").read_text("utf-8"))["cases"]
    eager, compiled = case["methods"]["eager"], case["methods"]["compile"]
    assert compiled["preparation"] == pytest.approx(max(0.0, compiled["first_runs"] - compiled["median"]))
    assert "preparation" not in eager
    assert "shares" not in compiled, "hooks would be compiled with the rest"
    assert compiled["share_of_matmul_rate"] == pytest.approx(
        eager["share_of_matmul_rate"] * eager["median"] / compiled["median"]
    )
    assert set(case["ratios"]) == {"eager", "compile"}


def changed(where: str, index: int, **changes: Any) -> dict[str, Any]:
    loaded: Any = OmegaConf.to_container(OmegaConf.load(commands.configs("benchmark")["tiny"]))[where]
    loaded[index] |= changes
    return {where: loaded}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (changed("cases", 0, num_particles=8), r"cases\[0\].num_particles = 8 must be 1 for the plain method"),
        (changed("cases", 1, sampler={"selection": "best"}), r"cases\[1\].sampler.selection = 'best' must be one of"),
        (changed("cases", 1, textbook_steps=9), r"cases\[1\].textbook_steps = 9 must be at most num_steps = 8"),
        (changed("cases", 1, rows=[1, 2]), r"cases\[1\].rows = \[1, 2\] must be a whole number of at least 1"),
        (changed("growth", 0, rows=[1, 2]), r"growth\[0\] has 2 lists \(num_steps, rows\), and needs one"),
        (changed("growth", 0, num_steps=[8]), r"growth\[0\].num_steps = \[8\] must be a list of at least 2 values"),
        (changed("growth", 0, num_steps=[8, 4]), r"growth\[0\].num_steps = \[8, 4\] must rise"),
        (changed("growth", 0, num_steps=[8, 0]), r"growth\[0\].num_steps\[1\] = 0 must be a whole number"),
        ({"modes": ["fast"]}, r"modes\[0\] = 'fast' must be one of eager, compile, cudagraph"),
        ({"modes": ["cudagraph"], "device": "cpu"}, "modes = .* has none that this machine can run; add eager"),
        ({"only": [2]}, r"only = \[2\] names case 2, and they are numbered 0..1"),
        ({"dtype": "float16"}, "dtype = 'float16' must be one of float32, bfloat16"),
        ({"cases": [], "growth": []}, "cases, growth and training are all empty"),
        ({"training": small_training(), "only_training": [2]}, r"only_training = \[2\] names case 2, and .* 0..1"),
    ],
)
def test_a_mistake_in_a_config_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        benchmark.main(settings(tmp_path, **changes))
    assert not (tmp_path / "benchmark.json").exists()
