"""The recipe `oracle`: exact figures are those of enumeration, sampled ones agree with them, a run goes on."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracles import SIR_PAIR, all_sequences, kl, marginal_table, residual_energy, sir, total_variation, zero_energy
from oracles import sampler_law as oracle_law
from running import Runner, unless_given
from smallest import settings_of

from edlm.data import vocabulary
from edlm.frontier import draws, exact, exact_report, grid
from edlm.frontier.exact import Beside
from edlm.frontier.exact_report import Row
from edlm.likelihood import hidden_markov
from edlm.likelihood.estimates import Estimate
from edlm.process import schedules
from edlm.recipes import oracle
from edlm.samplers.plans import TokensPerPass
from edlm.samplers.sampler import Proposal, Sampler
from edlm.weights import checkpoints
from edlm.weights.named import Diffusion, Models

SYMBOLS, LENGTH = 2, 3
SOURCE = hidden_markov.random_hidden_markov(2, 3, SYMBOLS, 3.0)
EXACT = (
    "{correction: {name: energy, called: [exact, exact_transition]}, plan: {name: grid, num_steps: 2}, candidates: 3, "
    "controls: %s}"
)
LEARNED = EXACT.replace("exact, exact_transition", "learned, transition") % "[]"
PLAINLY = "{plan: [{name: grid, num_steps: [1, 2]}, {name: tokens_per_pass}]}"
TINY_TRAINING = (
    "{network: {_component_: edlm.networks.EnergyNetwork, hidden_size: 8, num_layers: 1, num_heads: 2, "
    "conditioning_size: 0}, denoiser: mdlm, start_from: scratch, num_energy_layers: 1, objective: nce, "
    "num_negatives: 2, transition_steps: [1, 3], num_texts: 64, steps: 3, batch_size: 8, accumulate: 1, "
    "optimizer: {_component_: "
    "torch.optim.AdamW, lr: 0.01}, warmup_steps: 0, decay: constant, clip_norm: 1.0, ema_decay: 0.9, precision: "
    "float32, parallel: data, recompute: false, compile: false, time_low: 0.001, log_every: 1, valid_every: 9, "
    "valid_rows: 2, save_every: 9, keep_last: 1, keep_best: false, patience: null, resume: true, log_to: [], "
    "sample_every: null}"
)
JOINTLY = "{correction: {name: joint}, plan: {name: grid, num_steps: 2}, candidates: 3, controls: [one_particle, zero]}"
CHAIN = JOINTLY.replace("joint", "chain_rule")
MANY = "{correction: {name: chain_rule}, plan: {name: grid, num_steps: 2}, candidates: 4096}"
IN_ORDER = "{selection: speculative, correction: {name: chain_rule}, plan: {name: grid, num_steps: 2}}"


def models() -> Models:
    diffusion = Diffusion(
        hidden_markov.denoiser(SOURCE, LENGTH), schedules.log_linear(), {"exact": hidden_markov.energy(SOURCE)}
    )
    return Models(vocabulary.characters("ab"), LENGTH, diffusion, None, {})


PLAIN, DRAFT, TRANSITION = (
    entry.setting
    for entry in grid.expand(
        [
            {"plan": {"name": "grid", "num_steps": 2}},
            {
                "correction": {"name": "energy", "called": ["exact", "exact_transition"]},
                **{"plan": {"name": "grid", "num_steps": 2}, "candidates": 3},
            },
        ],
        grid.sources(models()),
        LENGTH,
    ).values()
    if isinstance(entry.setting, Sampler)
)


def beside(bounded: int = 4000) -> Beside:
    entropy = Estimate(float(torch.special.entr(law()).sum()) / LENGTH, 0.0, 2)
    texts = hidden_markov.texts(SOURCE, bounded, LENGTH, seed=1)
    return Beside(SOURCE, LENGTH, entropy, texts, [1, 2], 0, 20)


def law() -> torch.Tensor:
    return hidden_markov.log_prob(SOURCE, all_sequences(SYMBOLS, LENGTH)).exp()


# ---- Figures


@pytest.mark.parametrize("setting", [PLAIN, DRAFT, TRANSITION], ids=str)
def test_exact_figures_are_those_of_the_enumerated_law_and_bounds_lie_above(setting: Sampler) -> None:
    """4000 texts: a bound's mean lies above the KL less 4 of its standard errors, and not far above it."""
    joint = law().view((SYMBOLS,) * LENGTH)
    rules = (zero_energy, SIR_PAIR) if setting is PLAIN else (residual_energy(joint), sir(3))
    grid = schedules.uniform_grid(2)
    wanted = oracle_law(marginal_table(joint), 1.0 - grid, *rules, "revealed" if setting is TRANSITION else "masked")
    found = exact.of_sampler(setting, beside())
    assert found["total_variation"] == [pytest.approx(float(total_variation(wanted, joint))), 0.0]
    assert found["kl"] == [pytest.approx(float(kl(joint, wanted)) / LENGTH), 0.0]
    mean, error = found["kl_bound"]
    assert found["kl"][0] - 4 * error < mean < found["kl"][0] + 0.2
    assert 0.0 < error < 0.02


def test_sampled_figures_of_the_source_s_own_texts_are_the_floor() -> None:
    """10,000 texts: no excess within 4 standard errors, pairs near their law; of texts of one symbol far from it."""
    found = exact.of_texts(hidden_markov.texts(SOURCE, 10_000, LENGTH, seed=5), beside())
    mean, error = found["excess"]
    assert abs(mean) < 4 * error < 0.05
    assert found["pairs_1"][0] < 0.02
    dull = exact.of_texts(torch.zeros(100, LENGTH, dtype=torch.int64), beside())
    assert dull["pairs_2"][0] == pytest.approx(1.0 - float(hidden_markov.pair_law(SOURCE, LENGTH, 2)[0, 0]))
    assert dull["pairs_2"][1] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("setting", "has"),
    [
        (DRAFT, True),
        (DRAFT.replace(selection="imh"), False),
        (DRAFT.replace(proposal=Proposal(0.8)), False),
        (DRAFT.replace(plan=TokensPerPass()), True),
        (TRANSITION.replace(plan=TokensPerPass()), True),
        (DRAFT.replace(selection="imh", candidates=1), True),
    ],
    ids=str,
)
def test_a_bound_is_there_for_what_it_bounds_alone(setting: Sampler, has: bool) -> None:
    assert ("kl_bound" in exact.of_sampler(setting, beside(8))) == has


def test_means_of_ess_and_log_weights_are_over_the_texts_that_an_energy_corrected() -> None:
    costs = {"seconds": 0.5, **{name: [1, 3, 5] for name in draws.PER_TEXT}}
    costs |= {"ess": [2.0, None, 4.0], "log_weight_std": [None, None, 1.0]}
    found = exact.of_costs(costs)
    assert found["seconds"] == [0.5, 0.0]
    assert found["passes"] == [3.0, pytest.approx(2.0 / 3**0.5)]
    assert found["ess"] == [3.0, pytest.approx(1.0)]
    assert "log_weight_std" not in found, "one text has no error"


# ---- Report


def row(setting: Sampler | None, far: float, passes: float) -> Row:
    figures = {"total_variation": [far, 0.0], "pairs_1": [far, 0.1], "passes": [passes, 0.0]}
    return Row(str(setting), setting, "", figures)


def test_the_front_is_of_samplers_by_distance_and_passes() -> None:
    rows = [Row("source", None, "", {"total_variation": [0.0, 0.0], "pairs_1": [0.01, 0.0]})]
    rows += [row(PLAIN, 0.3, 2.0), row(DRAFT, 0.3, 8.0), row(TRANSITION, 0.1, 8.0)]
    assert exact_report.fronts(rows) == {str(PLAIN), str(TRANSITION)}
    assert exact_report.distance(rows) == "total_variation"
    assert exact_report.distance([*rows, Row("x", None, "", {"pairs_1": [0.1, 0.0]})]) == "pairs_1"
    lines = list(csv.DictReader(exact_report.to_csv(rows).splitlines()))
    assert [line["front"] for line in lines] == ["0", "1", "0", "1"]
    assert lines[2]["pairs_1_error"] == "0.1"


# ---- The whole


@pytest.fixture
def run(tmp_path: Path, run: Runner) -> Callable[..., tuple]:
    """Run the recipe in this process: exit status, output, our lines of standard error, and where its files are."""

    def call(*overrides: str) -> tuple[int, str, str, Path]:
        base = {
            "output_dir": tmp_path / "out",
            "length": LENGTH,
            "source.symbols": SYMBOLS,
            "num_samples": 20,
            "batch_size": 20,
            "bounded_texts": 4,
            "entropy_texts": 50,
            "replicates": 5,
            "sweeps": f"[{PLAINLY},{EXACT % '[zero,flipped,equal_passes]'}]",
        }
        return *run("oracle", *unless_given(base, overrides)), tmp_path / "out"

    return call


def test_the_entropy_it_compares_with_is_the_sources(tmp_path: Path) -> None:
    """4000 texts: within 4 standard errors of the enumerated one, per token."""
    words = ["entropy_texts=4000", f"length={LENGTH}", "source.symbols=2", "distances=[1]", "num_samples=20"]
    recipe = oracle.Oracle(settings_of("oracle", *words, f"output_dir={tmp_path}", "learn=null", f"sweeps=[{PLAINLY}]"))
    recipe.setup()
    probabilities = hidden_markov.log_prob(recipe.source, all_sequences(SYMBOLS, LENGTH)).exp()
    wanted, found = float(torch.special.entr(probabilities).sum()) / LENGTH, recipe.beside.entropy
    assert abs(found.mean - wanted) < 4 * found.standard_error < 0.05


def test_a_run_reports_every_setting_and_goes_on_where_it_was(run: Callable[..., tuple]) -> None:
    status, shown, error, out = run()
    assert status == 0, error
    rows = {line["name"]: line for line in csv.DictReader((out / "oracle.csv").read_text("utf-8").splitlines())}
    assert next(iter(rows)) == "the source itself"
    assert {"plain, T=2", "plain, one by one", "sir, exact, T=2, k=3", "sir, exact_transition, T=2, k=3"} <= rows.keys()
    far = {name: float(line["total_variation"]) for name, line in rows.items()}
    assert far["plain, T=1"] > far["plain, T=2"] > far["sir, exact_transition, T=2, k=3"] > far["plain, one by one"]
    assert far["sir, flipped exact, T=2, k=3"] > far["sir, zero, T=2, k=3"] == pytest.approx(far["plain, T=2"])
    assert far["plain, one by one"] == pytest.approx(0.0, abs=1e-12)
    for name in rows:
        assert f"| {name} |" in (out / "oracle.md").read_text("utf-8")
        assert name in shown
    assert "but for joint" not in (out / "oracle.md").read_text("utf-8")
    assert (out / "oracle.png").read_bytes().startswith(b"\x89PNG")
    files = ("oracle.csv", "oracle.md", "oracle.jsonl")
    before = {name: (out / name).read_bytes() for name in files}
    assert run()[0] == 0
    assert {name: (out / name).read_bytes() for name in files} == before
    status, _, error, _ = run("length=4")
    assert (status, f"cannot resume {out}: length was 3, is 4" in error) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("start_from", ["scratch", "denoiser"])
def test_energies_are_learned_beside_the_source_and_resumed(run: Callable[..., tuple], start_from: str) -> None:
    learn = f"learn={TINY_TRAINING.replace('scratch', start_from)}"
    status, _, error, out = run(learn, f"sweeps=[{LEARNED}]")
    assert status == 0, error
    names = [json.loads(line)["name"] for line in (out / "oracle.jsonl").read_text("utf-8").splitlines()]
    assert names[1:] == ["sir, learned, T=2, k=3", "sir, transition, T=2, k=3"]
    for folder, scope in (("energy", "draft"), ("transition", "transition")):
        steps = [json.loads(line)["step"] for line in (out / folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        assert steps == [1, 2, 3]
        description = json.loads(next((out / folder).rglob("network.json")).read_text("utf-8"))
        assert description["scope"] == scope
    assert (out / "denoiser").exists() == (start_from == "denoiser")
    assert run(learn, f"sweeps=[{LEARNED}]")[0] == 0
    status, _, error, _ = run(learn.replace("[1, 3]", "[1, 2]"), f"sweeps=[{LEARNED}]", f"output_dir={out}")
    assert (status, "transition_steps was [1, 3], is [1, 2]" in error) == (2, True)


def test_a_joint_network_is_its_own_denoiser_beside_the_source(run: Callable[..., tuple]) -> None:
    """Exact figures are those of its own law: k = 1 and zero energy are one sampler, and not the exact denoiser's."""
    status, _, error, out = run(f"learn={TINY_TRAINING}", f"sweeps=[{PLAINLY},{JOINTLY}]")
    assert status == 0, error
    rows = {line["name"]: line for line in csv.DictReader((out / "oracle.csv").read_text("utf-8").splitlines())}
    far = {name: float(line["total_variation"]) for name, line in rows.items()}
    assert far["sir, joint, T=2, k=1"] == pytest.approx(far["sir, zero joint, T=2, k=3"], abs=1e-6)
    assert far["sir, joint, T=2, k=1"] != pytest.approx(far["plain, T=2"], abs=1e-3)
    assert far["sir, joint, T=2, k=3"] != pytest.approx(far["sir, joint, T=2, k=1"], abs=1e-9)
    assert float(rows["sir, joint, T=2, k=1"]["kl_bound"]) > 0.0
    assert "exact denoiser, but for joint, whose denoiser is learned" in (out / "oracle.md").read_text("utf-8")
    folders = {folder.name for folder in out.iterdir() if folder.is_dir()}
    assert folders == {"denoiser", "joint"}
    denoiser, both = (checkpoints.load_network(checkpoints.find_network(out / name)) for name in ("denoiser", "joint"))
    kept = both.get_submodule("denoiser").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in denoiser.state_dict().items())


@pytest.mark.slow
def test_the_chain_rule_of_a_learned_denoiser_beside_the_source(run: Callable[..., tuple]) -> None:
    """Exact figures of the learned denoiser's own law; one particle and zero energy are that denoiser alone."""
    status, _, error, out = run(f"learn={TINY_TRAINING}", f"sweeps=[{PLAINLY},{CHAIN},{MANY},{IN_ORDER}]")
    assert status == 0, error
    rows = {line["name"]: line for line in csv.DictReader((out / "oracle.csv").read_text("utf-8").splitlines())}
    far = {name: float(line["total_variation"]) for name, line in rows.items()}
    alone = far["sir, chain_rule, T=2, k=1"]
    assert alone == pytest.approx(far["sir, zero chain_rule, T=2, k=3"], abs=1e-6)
    assert alone != pytest.approx(far["plain, T=2"], abs=1e-3)
    assert far["sir, chain_rule, T=2, k=3"] != pytest.approx(alone, abs=1e-9)
    near, limit = (rows[name] for name in ("sir, chain_rule, T=2, k=4096", "speculative, chain_rule, T=2"))
    for figure in ("total_variation", "kl", "kl_bound"):
        assert float(limit[figure]) == pytest.approx(float(near[figure]), rel=1e-3)
    assert float(limit["passes"]) < 6
    assert {folder.name for folder in out.iterdir() if folder.is_dir()} == {"denoiser"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            [f"sweeps=[{LEARNED}]", f"learn={TINY_TRAINING}", "learn.objective=chain_rule"],
            "learn.objective = 'chain_rule' must be one of nce, info_nce",
        ),
        *(
            (
                [f"sweeps=[{each}]"],
                f"sweeps[0]: {name} needs a denoiser with a network, as denoisers.subs builds, not",
            )
            for each, name in ((IN_ORDER, "chain_rule"), (CHAIN, "chain_rule"), (JOINTLY, "joint"))
        ),
        ([f"sweeps=[{JOINTLY}]"], "not SourceDenoiser; learn is null: say how to train a network"),
        (
            [f"sweeps=[{LEARNED.replace('learned', 'posterior')}]"],
            "sweeps[0] draws with 'posterior': there is no AR model here",
        ),
        ([f"sweeps=[{LEARNED}]"], "learn is null, and sweeps[0] draws with 'learned': say how to train it"),
        (["sweeps=[{ar: {temperature: 1}}]"], "sweeps[0] draws with 'ar': there is no AR model here"),
        (["distances=[3]"], "distances = [3] must be below length = 3"),
        (["source.strength=x"], "source.strength = 'x' must be of type float"),
        (["source.symbols=1"], "edlm.likelihood.hidden_markov.random_hidden_markov: symbols = 1 must be at least 2"),
        (
            [f"sweeps=[{LEARNED}]", f"learn={TINY_TRAINING}", "learn.network._component_=edlm.networks.Transformer"],
            "learn.network._component_ = 'edlm.networks.Transformer' must be 'edlm.networks.EnergyNetwork'",
        ),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(run: Callable[..., tuple], overrides: list[str], said: str) -> None:
    status, _, error, out = run(*overrides)
    assert status == 2
    assert said in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


def test_rules_of_remasking_are_swept_like_any_axis(run: Callable[..., tuple]) -> None:
    """Exact figures where the law is enumerated, sampled ones of all; no bound of any."""
    plan, rules = "plan: {name: grid, num_steps: 4}", "[{name: cap, eta: [0.0, 0.2]}, {name: confidence}]"
    status, _, error, out = run(f"sweeps=[{{{plan}}}, {{{plan}, remasking: {rules}}}]")
    assert status == 0, error
    rows = {line["name"]: line for line in csv.DictReader((out / "oracle.csv").read_text("utf-8").splitlines())}
    far = {name: line["total_variation"] for name, line in rows.items()}
    assert float(far["plain, T=4, cap 0"]) == pytest.approx(float(far["plain, T=4"]))
    assert float(far["plain, T=4, cap 0.2"]) != pytest.approx(float(far["plain, T=4"]))
    assert far["plain, T=4, confidence"] == ""
    assert [name for name, line in rows.items() if line["kl_bound"]] == ["plain, T=4"]
    assert {line["family"] for line in rows.values()} >= {"plain", "plain, cap 0", "plain, confidence"}
