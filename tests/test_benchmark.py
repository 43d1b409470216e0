"""The benchmark compares samplers of one law, counts what they do, and says what it measured.

A law is judged by one chi-square test at a fixed seed; all of them together raise a false alarm with probability 1e-3
at most, over seeds (Bonferroni over `TESTS`). The same counts must be rejected as draws of a law that is wrong.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from oracles import (
    EnergyFn,
    Lookup,
    all_masked_states,
    ar_energy,
    ar_log_prob,
    index_of,
    random_joint,
    random_marginals,
    sampler_law,
    sir,
    zero_energy,
)
from scipy import stats
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edlm import categorical, cli, contracts, denoisers, energies, networks, pipelines, schedules, training
from edlm.recipes import (
    _comparison,
    _methods,
    _settings,
    _textbook,
    _textbook_training,
    _timing,
    _training,
    _training_cases,
    benchmark,
)
from edlm.recipes._timing import Clock, Spread

TESTS = 12  # at least as many as this file makes
FALSE_ALARM = 1e-3 / TESTS
SAMPLES = 100_000
SYMBOLS, LENGTH = 2, 3
MASK, BOS = SYMBOLS, SYMBOLS + 1
JOINT = random_joint(0, SYMBOLS, LENGTH, 1.5)
MARGINALS = random_marginals(1, SYMBOLS, LENGTH)
CPU = torch.device("cpu")


# ---- The textbook samplers have the law they are said to have


class TableNetwork(nn.Module):
    """A network whose logits are a table's entries for the whole state; it remembers what it was asked."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.lookup, self.head, self.asked = Lookup(table), nn.Identity(), []

    def forward(self, tokens: Tensor) -> Tensor:
        self.asked.append(tokens.clone())
        return self.lookup(tokens)


class ConditionalNetwork(nn.Module):
    """A causal network that reads `[bos, x_0, ..., x_{l-2}]` and gives `log p(x_i | x_<i)`, and the mask 5 nats."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        assert (tokens[:, 0] == BOS).all()
        prefix = torch.cat([tokens[:, 1:], tokens.new_zeros(len(tokens), 1)], dim=1)
        logits = torch.full((*tokens.shape, SYMBOLS + 2), -torch.inf, dtype=torch.float64)
        for i in range(LENGTH):
            for symbol in range(SYMBOLS):
                guess = torch.cat([prefix[:, :i], torch.full_like(prefix[:, i:], symbol)], dim=1)
                logits[:, i, symbol] = ar_log_prob(JOINT, guess)[:, i]
        logits[..., MASK] = 5.0
        return logits


def with_arbitrary_visible_logits() -> Tensor:
    """The denoiser's table with numbers that mean nothing where SUBS must not look: at the mask, at visible tokens."""
    states = all_masked_states(SYMBOLS, LENGTH)
    table = MARGINALS.flatten(0, LENGTH - 1).clone()
    table[states != MASK] = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    table[..., MASK] = 4.0
    return table.view_as(MARGINALS)


def p_value(tokens: Tensor, law: Tensor) -> float:
    counts = torch.bincount(index_of(tokens, SYMBOLS), minlength=len(law))
    assert (law * len(tokens)).min() > 5
    return float(stats.chisquare(counts, law * len(tokens)).pvalue)


def judge(tokens: Tensor, law: Tensor, *wrong: Tensor) -> None:
    """Accept the law; reject the wrong ones, and the law with one percent moved from one outcome to another."""
    most = law.argsort(descending=True)[:2]
    moved = law.scatter_add(0, most, torch.tensor([-0.01, 0.01], dtype=law.dtype))
    assert p_value(tokens, law) > FALSE_ALARM
    assert all(p_value(tokens, twin) < FALSE_ALARM for twin in (moved, *wrong))


def enumerated(num_steps: int, energy: EnergyFn = zero_energy, k: int = 1) -> Tensor:
    return sampler_law(MARGINALS, torch.linspace(0, 1, num_steps + 1, dtype=torch.float64), energy, sir(k))


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_textbook_plain_sampler_has_the_enumerated_law(num_steps: int) -> None:
    network, generator = TableNetwork(with_arbitrary_visible_logits()), torch.Generator().manual_seed(2024)
    tokens = _textbook.ancestral(network, MASK, (SAMPLES, LENGTH), num_steps, generator)
    judge(tokens, enumerated(num_steps), enumerated(num_steps + 1))


@pytest.mark.parametrize("carry_over", [False, True])
@pytest.mark.parametrize(("num_steps", "k"), [(1, 2), (3, 2), (2, 3)])
def test_the_textbook_energy_sampler_has_the_enumerated_law(num_steps: int, k: int, carry_over: bool) -> None:
    network, generator = TableNetwork(with_arbitrary_visible_logits()), torch.Generator().manual_seed(2024)
    energy = _textbook.residual_ar(ConditionalNetwork(), MASK, BOS, carry_over)
    tokens = _textbook.importance(network, energy, MASK, (SAMPLES, LENGTH), num_steps, k, generator)
    right = ar_energy(JOINT, MARGINALS, carry_over)
    flipped = enumerated(num_steps, lambda candidates, x_t: -right(candidates, x_t), k)
    judge(tokens, enumerated(num_steps, right, k), flipped, enumerated(num_steps))


def test_both_forms_of_the_textbook_energy_differ() -> None:
    """Else the test above could not tell that the form is obeyed."""
    forms = [enumerated(3, ar_energy(JOINT, MARGINALS, carry_over), 2) for carry_over in (False, True)]
    assert (forms[0] - forms[1]).abs().sum() > 0.02


def test_the_textbook_cache_asks_the_network_once_per_state() -> None:
    for sampler in (_textbook.ancestral, _textbook.importance):
        network, generator = TableNetwork(MARGINALS), torch.Generator().manual_seed(0)
        energy = _textbook.residual_ar(ConditionalNetwork(), MASK, BOS, carry_over=False)
        particles = () if sampler is _textbook.ancestral else (2,)
        arguments = (network, MASK) if sampler is _textbook.ancestral else (network, energy, MASK)
        tokens = sampler(*arguments, (1, LENGTH), 50, *particles, generator)
        masks = [int((state == MASK).sum()) for state in network.asked]
        assert masks[0] == LENGTH
        assert masks == sorted(set(masks), reverse=True)
        assert not (tokens == MASK).any()


def test_a_stated_number_of_textbook_steps_is_run() -> None:
    network = TableNetwork(MARGINALS)
    for only in (1, 4, None):
        network.asked.clear()
        tokens = _textbook.ancestral(network, MASK, (64, LENGTH), 8, torch.Generator().manual_seed(0), only)
        assert len(network.asked) == (only or 8)  # of 64 rows one changes at every step
        assert bool((tokens == MASK).any()) == (only is not None)


# ---- What is compared is one task


SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "conditioning_size": 8}
VOCAB, BLOCK = 11, 6


def small_case(method: str = "posterior", **changes: Any) -> _methods.Case:
    sizes = {"vocab_size": VOCAB, "length": BLOCK, "rows": 3, "num_steps": 4, "repeats": 2, "textbook_steps": None}
    return _methods.Case(**{"method": method, "num_particles": 1 if method == "plain" else 2, **sizes, **changes})


def small_networks() -> _methods.Networks:
    return _methods.build_networks(SIZES, VOCAB, BLOCK, 0, CPU, torch.float64)


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
    textbook = _textbook.subs(networks.denoiser.head(networks.denoiser(x_t)), x_t, VOCAB - 1)
    torch.testing.assert_close(textbook.flatten(0, 1)[positions], ours)
    assert categorical.entropy(ours).min() > 0.5  # neither flat nor certain
    assert categorical.entropy(ours).max() < math.log(VOCAB - 1) - 0.05


@pytest.mark.parametrize("carry_over", [False, True])
def test_both_sides_have_the_same_energy(carry_over: bool) -> None:
    networks, (x_t, drafts) = small_networks(), states_and_drafts()
    log_p = _textbook.subs(networks.denoiser.head(networks.denoiser(x_t)), x_t, VOCAB - 1)
    drawn = log_p.unsqueeze(1).expand(-1, 2, -1, -1).gather(-1, drafts.unsqueeze(-1)).squeeze(-1)
    keys = {contracts.X_T: x_t, contracts.CANDIDATES: drafts, contracts.LOG_P_CANDIDATES: drawn}
    keys[contracts.POSITIONS] = (x_t == VOCAB - 1).flatten().nonzero().squeeze(-1)
    ours = energies.residual_ar(networks.ar, VOCAB - 1, _methods.BOS_ID, carry_over)(TensorDict(keys))
    repeated = [tensor.repeat_interleave(2, dim=0) for tensor in (x_t, log_p)]
    textbook = _textbook.residual_ar(networks.ar, VOCAB - 1, _methods.BOS_ID, carry_over)(
        drafts.flatten(0, 1), *repeated
    )
    torch.testing.assert_close(textbook.view(5, 2), ours[contracts.ENERGY])


# ---- Measuring


@pytest.mark.parametrize("method", ["plain", "posterior", "carry_over"])
def test_what_is_observed_is_what_was_done(method: str) -> None:
    case, networks = small_case(method), small_networks()
    pipeline = _methods.build_pipeline(case, networks, "eager")
    ours = _methods.ours(case, networks, pipeline, seed=3)
    info = pipelines.sample(pipeline, case.rows, seed=3)["info"]
    passes = int(info["denoiser_passes"].max())
    clock = Clock(CPU)
    assert ours.observe is not None
    ours.observe(clock)
    assert clock.parts["denoiser"][:2] == (passes, int(info["denoiser_passes"].sum()))
    assert clock.parts["noise"].calls == clock.parts["reveal"].calls == passes
    if method != "plain":
        assert clock.parts["energy"].rows == info["energy_passes"].sum()
    textbook, seen = _methods.textbook(case, networks, 3, CPU), Clock(CPU)
    assert textbook.observe is not None
    textbook.observe(seen)
    assert 1 <= seen.parts["denoiser"].calls <= case.num_steps
    assert seen.parts["denoiser head"].flops == 2 * 16 * VOCAB * BLOCK * case.rows * seen.parts["denoiser"].calls
    assert not any(module._forward_hooks for network in networks for module in network.modules())


def test_the_operations_of_a_transformer_are_those_of_its_products() -> None:
    network, tokens = small_networks().ar, torch.zeros(3, BLOCK, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        hidden = network(tokens)
        network.head(hidden)
    expected = _timing.transformer_flops(network, tokens) + _timing.head_flops(network.head, hidden)
    attention = 2 * 2 * 2 * 3 * BLOCK * BLOCK * 16  # the counter may not know the fused kernel of a CPU
    assert counter.get_total_flops() in (expected, expected - attention)
    positions = torch.tensor([0, 5])
    with FlopCounterMode(display=False) as fewer:
        network.head(network(tokens, None, positions))
    spared = 18 * 16 * 16 * (3 * BLOCK - 2)
    assert (
        _timing.transformer_flops(network, tokens, None, positions)
        == _timing.transformer_flops(network, tokens) - spared
    )
    half = _timing.head_flops(network.head, hidden, slice(0, VOCAB // 2))
    assert half == 2 * hidden.numel() * (VOCAB // 2)
    less = counter.get_total_flops() - fewer.get_total_flops()
    assert less == spared + 2 * 16 * VOCAB * (3 * BLOCK - 2)


def test_textbook_cost_is_extrapolated_in_proportion() -> None:
    assert _methods.textbook(small_case(num_steps=12, textbook_steps=3), small_networks(), 0, CPU).scale == 4.0
    assert _methods.textbook(small_case(num_steps=12), small_networks(), 0, CPU).scale == 1.0


def test_runs_are_interleaved() -> None:
    order: list[str] = []
    times = _timing.interleaved({name: lambda name=name: order.append(name) for name in "abc"}, 2, CPU)
    assert "".join(order) == "abcabc"
    assert {name: len(each) for name, each in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_ratios_are_those_of_the_medians_with_the_range_over_rounds() -> None:
    assert _timing.ratios([4.0, 6.0, 20.0], [2.0, 1.0, 4.0]) == Spread(3.0, 2.0, 6.0)


def test_growth_is_the_exponent_of_a_power_law_and_its_error_that_of_least_squares() -> None:
    sizes, generator = [1.0, 2.0, 5.0, 30.0, 100.0], torch.Generator().manual_seed(0)
    exact = _timing.growth(sizes, [3.0 * size**1.5 for size in sizes])
    assert exact.exponent == pytest.approx(1.5)
    assert exact.error == pytest.approx(0.0, abs=1e-9)
    noisy = [size**0.7 * math.exp(0.2 * float(torch.randn((), generator=generator))) for size in sizes]
    expected = stats.linregress([math.log(size) for size in sizes], [math.log(time) for time in noisy])
    assert _timing.growth(sizes, noisy) == pytest.approx((expected.slope, expected.stderr))
    assert _timing.growth([2.0, 8.0], [1.0, 4.0]) == (pytest.approx(1.0), None)


@pytest.mark.skipif(not _timing.can_measure_memory(CPU), reason="the system does not say how much memory is used")
def test_peak_memory_sees_what_is_freed_again() -> None:
    size = 64 * 2**20

    def run() -> None:
        torch.ones(size, dtype=torch.uint8).add(1)  # two of them at once

    for _ in range(2):
        peak = _timing.peak_memory(run, CPU, _timing.memory_in_use(CPU))
        assert 1.95 * size < peak < 2.2 * size
    assert _timing.peak_memory(lambda: None, CPU, _timing.memory_in_use(CPU)) < 0.1 * size


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
    assert [verdict.met for verdict in _comparison.judge(record, targets)] == met


def test_a_method_that_runs_out_of_memory_is_left_out() -> None:
    def too_large() -> None:
        raise torch.OutOfMemoryError("no memory")

    fits = _methods.Method(lambda: None, lambda: None, None, 1.0)
    methods = {"textbook": fits._replace(warm_up=too_large), "compile": fits}
    record = _comparison.measure(small_case(), methods, CPU, 1e9)
    assert record["methods"]["textbook"] == {"failed": "out of memory"}
    assert len(record["methods"]["compile"]["seconds"]) == 2
    assert record["ratios"] == {}
    assert "out of memory" in _comparison.table(record)


# ---- The recipe


def small_training() -> list[dict[str, Any]]:
    loaded: Any = OmegaConf.to_container(OmegaConf.load(cli.configs("benchmark")["tiny"]))
    return [{**each, "vocab_size": 30, "length": 8} for each in loaded["training"]]


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The tiny config, smaller."""
    loaded: Any = OmegaConf.to_container(OmegaConf.load(cli.configs("benchmark")["tiny"]))
    plain = {**loaded["cases"][0], "rows": 2, "num_steps": 8, "length": 8}
    energy = {**loaded["cases"][1], "vocab_size": 30, "length": 8}
    sweep = {**loaded["growth"][0], "num_steps": [2, 4, 8], "length": 8}
    small = {"network": SIZES, "cases": [plain, energy], "growth": [sweep], "modes": ["eager"], "threads": 1}
    small["training"] = []
    found = {**loaded, **small, "output_dir": str(folder), **changes}
    _settings.check(benchmark.SETTINGS, found)
    return found


def test_the_recipe_reports_every_case_and_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(settings(tmp_path, modes=["eager", "cudagraph"], device="cpu"))
    out = capsys.readouterr().out
    assert "cudagraph is left out: it needs a CUDA device" in out
    judged = 2 + _timing.can_measure_memory(CPU)  # times faster in two cases, memory in one
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
    loaded: Any = OmegaConf.to_container(OmegaConf.load(cli.configs("benchmark")["tiny"]))[where]
    loaded[index] |= changes
    return {where: loaded}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (changed("cases", 0, num_particles=8), r"cases\[0\].num_particles = 8 must be 1 for the plain method"),
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


# ---- Training


def training_pair(objective: str) -> tuple[Any, Any, TensorDict]:
    """Our loss with what it drew, and the textbook's of the same states, times and drafts."""
    torch.manual_seed(0)
    network, schedule = small_networks().denoiser, schedules.log_linear()
    energy = networks.EnergyNetwork(VOCAB, BLOCK, **SIZES).double()
    torch.nn.init.normal_(energy.scalar.weight)
    x_0 = torch.randint(VOCAB - 1, (5, BLOCK))
    denoiser, batch = denoisers.subs(network, VOCAB - 1), _training.keyed(x_0, torch.arange(5), 0, 3, 5)
    if objective == "denoising":
        network.requires_grad_(True)
        out = training.denoising(denoiser, schedule)(batch)
        x_t, t = out[contracts.X_T], out[contracts.T]
        return out, _textbook_training.denoising(network, x_0, x_t, t, VOCAB - 1), network.parameters()
    out = training.contrastive(denoiser, energies.learned(energy), schedule)(batch)
    drafts = out[contracts.CANDIDATES][:, 1]
    return out, _textbook_training.contrast(energy, x_0, drafts, out[contracts.X_T]), energy.parameters()


@pytest.mark.parametrize("objective", ["denoising", "contrast"])
def test_both_sides_train_with_the_same_loss_and_gradient(objective: str) -> None:
    out, textbook, parameters = training_pair(objective)
    torch.testing.assert_close(out[contracts.LOSS], textbook, rtol=1e-10, atol=1e-10)
    wanted = list(parameters)
    ours, theirs = (
        torch.autograd.grad(loss.mean(), wanted, allow_unused=True) for loss in (out[contracts.LOSS], textbook)
    )
    compared = [(a, b) for a, b in zip(ours, theirs, strict=True) if b is not None]
    assert len(compared) > 10
    for a, b in compared:
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_textbook_drafts_have_the_law_of_the_denoiser() -> None:
    network, generator = TableNetwork(with_arbitrary_visible_logits()), torch.Generator().manual_seed(2024)
    state = torch.full((SAMPLES, LENGTH), MASK)
    judge(_textbook_training.drafts_of(network, state, MASK, generator), enumerated(1), enumerated(2))


def test_textbook_times_are_stratified_and_mask_that_share() -> None:
    x_t, t = _textbook_training.corrupt(torch.zeros(1000, 200).long(), 1, torch.Generator().manual_seed(0))
    assert torch.equal((t * 1000).floor().clamp(max=999), torch.arange(1000.0)) or (t.diff() > -1e-3).all()
    assert abs(float(((x_t == 1).double().mean(-1) - t).mean())) < 0.005


def test_operations_of_a_training_step_are_three_passes_of_what_is_trained() -> None:
    case = _training_cases.Case("denoising", VOCAB, BLOCK, 4, 1)
    network, tokens = small_networks().denoiser, torch.zeros(4, BLOCK, dtype=torch.int64)
    masked = torch.arange(4 * BLOCK // 2)
    passed = _timing.transformer_flops(network, tokens, None, masked)
    head = 2 * 16 * VOCAB * len(masked)
    assert _training_cases.step_flops(case, SIZES) == 3 * (passed + head)
    per_text = _timing.transformer_flops(network, tokens) + 2 * 2 * 16 * 16 * 4 * BLOCK
    contrast = _training_cases.step_flops(case._replace(objective="contrast"), SIZES)
    assert contrast == passed + head + 3 * 2 * per_text


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
    setting = _training_cases.Setting(SIZES, CPU, torch.float32, 0, 1.0)
    for objective in ("denoising", "contrast"):
        for mode in (None, "eager"):
            case = _training_cases.Case(objective, VOCAB, BLOCK, 4, 1)
            method = _training_cases._method(case, setting, mode)
            step: Any = method.run
            before = [p.clone() for p in step.network.parameters()]
            method.warm_up()
            method.run()
            assert any(not torch.equal(a, b) for a, b in zip(before, step.network.parameters(), strict=True))
            assert step.number == _training_cases._WARM_UP_STEPS + 1
