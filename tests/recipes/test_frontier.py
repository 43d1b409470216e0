"""The recipe `frontier`: a run says what was drawn, and goes on where it was."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import frontier_folder
import pytest
from frontier_folder import LENGTH
from running import Runner, unless_given

from edlm.weights import named

STEPS = "plan: {name: grid, num_steps: %s}"
PLAIN = f"{{{STEPS % [2, 4]}, proposal: {{temperature: [0.8, 1.0]}}}}"
ENERGY = (
    "{correction: {name: energy, called: [learned, posterior, carry_over]}, plan: {name: grid, num_steps: 3}, "
    "candidates: 2, controls: %s}"
)
TRANSITION = (
    "{correction: [{name: energy, called: transition}, {name: joint}], plan: {name: grid, num_steps: 3}, "
    "candidates: 2, controls: [zero, flipped]}"
)
OWN = f"{{correction: {{name: chain_rule}}, {STEPS % 2}, candidates: 3, controls: [zero, flipped, equal_passes]}}"
IN_ORDER = f"{{selection: speculative, correction: {{name: chain_rule}}, {STEPS % 2}}}"
AR = "{ar: {temperature: 1.0}}"


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
            **{name: folder / name for name in (*named.NETWORKS, "judge")},
            "corpus._component_": "edlm.corpora.text_files",
            "corpus.path": folder / "text",
            "num_samples": 5,
            "batch_size": 2,
            "ngrams": "[1,2]",
            "replicates": 10,
            "threads": 1,
            "sweeps": f"[{PLAIN},{ENERGY % '[]'},{AR}]",
        }
        return *run("frontier", *unless_given(base, overrides)), tmp_path / "out"

    return call


def lines(folder: Path) -> dict[str, dict]:
    return {r["name"]: r for r in map(json.loads, (folder / "frontier.jsonl").read_text("utf-8").splitlines())}


def test_every_setting_gets_a_row_with_its_figures(run, folder: Path) -> None:
    controls = "[one_particle,zero,flipped,equal_passes]"
    status, shown, error, out = run(f"sweeps=[{PLAIN},{ENERGY % controls},{TRANSITION},{OWN},{IN_ORDER},{AR}]")
    assert status == 0, error
    rows = {row["name"]: row for row in csv.DictReader((out / "frontier.csv").read_text("utf-8").splitlines())}
    markdown = (out / "frontier.md").read_text("utf-8")
    assert len(rows) == len(lines(out))
    assert next(iter(rows)) == "held-out text"
    for name, row in rows.items():
        assert f"| {name} |" in markdown
        assert name in shown or row["front_passes"] != "1"
        record = lines(out)[name]
        bits = sum(record["nll"]) / sum(record["characters"]) / math.log(2)
        assert float(row["bits_per_character"]) == pytest.approx(bits, rel=1e-5)
        assert float(row["perplexity"]) == pytest.approx(2**bits, rel=1e-4), "a token is a character here"
        assert float(row["bits_per_character_error"]) > 0.0
        assert row["n"] == "5"
        assert [row[key] for key in ("divergence_1", "divergence_2")] == [
            f"{v[0]:.6g}" for v in record["divergences"].values()
        ]
    assert float(rows["sir, learned, T=3, k=2"]["ess"]) > 1.0
    assert rows["plain, T=2"]["ess"] == rows["ar"]["ess"] == ""
    assert (float(rows["ar"]["passes"]), float(rows["ar"]["calls"])) == (1.0, LENGTH)
    shared, apart = (rows[f"sir, {name}, T=3, k=2"] for name in ("joint", "transition"))
    assert float(shared["calls"]) < float(apart["calls"]), "one network is called once a step"
    assert float(shared["faster_at_equal_bits_calls"]) > 0.0
    assert rows["sir, zero, T=3, k=2"]["control"] == "zero of sir, learned, T=3, k=2"
    assert rows["sir, zero transition, T=3, k=2"]["control"] == "zero of sir, transition, T=3, k=2"
    assert float(rows["sir, transition, T=3, k=2"]["ess"]) > 1.0
    own = rows["sir, chain_rule, T=2, k=3"]
    assert float(own["energy_passes"]) % 1 > 0.0
    assert float(own["passes"]) == pytest.approx(float(own["denoiser_passes"]) + float(own["energy_passes"]), rel=1e-5)
    assert float(own["passes"]) < 2 + 2 * 3, "what as many candidates of whole texts cost"
    assert rows["sir, zero chain_rule, T=2, k=3"]["control"] == "zero of sir, chain_rule, T=2, k=3"
    assert float(rows["sir, flipped chain_rule, T=2, k=3"]["passes"]) == float(own["passes"])
    assert "passes over part of a text count by their tokens" in markdown
    in_order = rows["speculative, chain_rule, T=2"]
    assert 2.0 < float(in_order["passes"]) < 2.0 + 2 * 2
    assert in_order["ess"] == ""
    assert float(in_order["faster_at_equal_bits_passes"]) > 0.0
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "WARNING" not in markdown + shown
    said = " ".join(shown.split())
    assert "is as good as plain in less time within the error (closest: " in said
    assert f"5 texts are too few for a verdict. all {len(rows)} settings: {out / 'frontier.md'}" in said


def test_a_judge_that_is_the_ar_model_is_said_to_be_so(run, folder: Path) -> None:
    status, shown, error, out = run(f"judge={folder / 'ar'}", f"sweeps=[{PLAIN},{AR}]")
    assert status == 0, error
    for text in (shown, (out / "frontier.md").read_text("utf-8")):
        assert "WARNING: the judge's weights are those of `ar`" in text


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_and_says_what_it_said(run) -> None:
    """All but the clock; a line that was cut off is drawn again, and a second run changes no byte."""
    status, _, error, out = run()
    assert status == 0, error
    names = ("frontier.csv", "frontier.md", "frontier.jsonl")
    whole, before = lines(out), {name: (out / name).read_bytes() for name in names}
    assert run()[0] == 0
    assert {name: (out / name).read_bytes() for name in names} == before
    kept = (out / "frontier.jsonl").read_text("utf-8").splitlines(keepends=True)
    (out / "frontier.jsonl").write_text("".join(kept[:4]) + kept[4][:50], encoding="utf-8")
    assert run()[0] == 0
    again = lines(out)
    assert list(again) == list(whole)
    for number, (name, record) in enumerate(again.items()):
        if number >= 4:
            record["seconds"] = whole[name]["seconds"]
        assert record == whole[name]


@pytest.mark.slow
def test_sweeps_may_grow_and_what_is_there_is_kept(run) -> None:
    assert run(f"sweeps=[{PLAIN}]")[0] == 0
    status, _, error, out = run(f"sweeps=[{AR},{PLAIN}]")
    assert status == 0, error
    assert list(lines(out))[-1] == "ar"
    assert (out / "frontier.csv").read_text("utf-8").splitlines()[2].startswith("ar,")


@pytest.mark.slow
def test_a_network_may_come_later_and_none_may_be_another(run, folder: Path) -> None:
    assert run(f"sweeps=[{PLAIN}]", "transition=null")[0] == 0
    status, _, error, out = run(f"sweeps=[{PLAIN},{TRANSITION}]")
    assert status == 0, error
    assert [name for name in lines(out) if "transition" in name or "joint" in name] == [
        "sir, transition, T=3, k=2",
        "sir, joint, T=3, k=2",
        "sir, zero transition, T=3, k=2",
        "sir, flipped transition, T=3, k=2",
        "sir, zero joint, T=3, k=2",
        "sir, flipped joint, T=3, k=2",
    ]
    status, _, error, _ = run(f"sweeps=[{PLAIN}]", "transition=null")
    assert status == 2
    assert "transition was " in error
    assert "weights of transition was " in error


def test_a_changed_config_is_refused_with_its_key(run, folder: Path) -> None:
    _, _, _, out = run(f"sweeps=[{PLAIN}]")
    before = (out / "frontier.jsonl").read_bytes()
    for change, said in (
        ("seed=1", "seed was 0, is 1"),
        ("num_samples=6", "num_samples was 5, is 6"),
        (f"judge={folder / 'ar'}", "judge was "),
    ):
        status, _, error, _ = run(f"sweeps=[{PLAIN}]", change)
        assert status == 2
        assert f"cannot resume {out}: " in error
        assert said in error
    assert (out / "frontier.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["ar=null"], "ar is null, and sweeps[1] draws with 'posterior'"),
        (["energy=null"], "energy is null, and sweeps[1] draws with 'learned'"),
        (["transition=null", f"sweeps=[{TRANSITION}]"], "transition is null, and sweeps[0] draws with 'transition'"),
        (
            ["joint=null", f"sweeps=[{TRANSITION}]"],
            "sweeps[0]: a network of class Transformer has no energy: a joint network has two heads",
        ),
        (["transition={}/joint"], "holds a joint network, with its own denoiser: joint="),
        (
            ["denoiser={}/joint", f"sweeps=[{IN_ORDER}]"],
            "sweeps[0]: a network of class JointNetwork cannot be read in order, as a Transformer can",
        ),
        (
            [f"sweeps=[{TRANSITION.replace('transition}', 'exact_transition}')}]"],
            "sweeps[0] draws with 'exact_transition', which `edlm run oracle` alone has",
        ),
        (["transition={}/energy"], "weighs drafts and must weigh transitions"),
        (["sweeps=[]"], "sweeps = [] must be a list of at least 1 values"),
        (["sweeps=[plain]"], "sweeps[0] = 'plain' must be a section with the axes of a sampler, or with `ar`"),
        (["sweeps=[{method: plain}]"], "sweeps[0].method: unknown key"),
        (
            ["sweeps=[{selection: annealed}]"],
            "sweeps[0].selection = 'annealed' must be one of sir, imh, greedy, speculative",
        ),
        (["sweeps=[{plan: {name: [grid, best]}}]"], "sweeps[0].plan"),
        (["sweeps=[{plan: {name: best}}]"], "sweeps[0].plan.name = 'best' must be one of in_blocks, "),
        (["sweeps=[{plan: {name: grid, num_steps: 0}}]"], "num_steps = 0 must be at least 1"),
        (["sweeps=[{plan: {name: grid, num_steps: []}}]"], "sweeps[0]: an empty list is no value"),
        (["sweeps=[{plan: {name: grid, steps: 2}}]"], "steps"),
        (["sweeps=[{plan: {name: grid}}]"], "num_steps"),
        (["sweeps=[{correction: {name: magic}}]"], "sweeps[0].correction.name = 'magic' must be one of energy, "),
        (["sweeps=[{correction: {name: energy, called: other}}]"], "'other' must be one of"),
        (
            ["sweeps=[{proposal: {temperature: [1.0, 0]}}]"],
            "sweeps[0].proposal.temperature = 0 must be a number",
        ),
        (["sweeps=[{proposal: {nucleus: 2}}]"], "sweeps[0].proposal.nucleus = 2 must be"),
        (["sweeps=[{candidates: [1, 0]}]"], "sweeps[0].candidates = 0 must be a whole number of at least 1"),
        (["sweeps=[{candidates: 8}]"], "sweeps[0]: candidates = 8 needs a correction"),
        (["sweeps=[{window: [0.5, 0.2]}]"], "sweeps[0].window = [0.5, 0.2] must be two times"),
        (
            ["sweeps=[{remasking: cap}]"],
            "sweeps[0].remasking = 'cap' must be a section with a name, one of cap, rescale",
        ),
        (["sweeps=[{remasking: {name: cap, eta: 2}}]"], "sweeps[0].remasking: eta = 2 must lie in [0, 1]"),
        (["sweeps=[{remasking: {name: cap}}]"], "it needs steps between given times"),
        (
            ["sweeps=[{controls: [flipped]}]"],
            "sweeps[0]: flipped is a control of a correction, and 'plain",
        ),
        (["sweeps=[{ar: {temperature: [0]}}]"], "sweeps[0].ar.temperature[0] = 0 must be a number above 0"),
        (["sweeps=[{ar: {temperature: 1}, plan: {name: grid}}]"], "sweeps[0].plan: unknown key"),
        ([f"sweeps=[{OWN.replace('{corr', '{selection: speculative, corr')}]"], "candidates = 3: selection = 'spec"),
        (
            [f"sweeps=[{IN_ORDER[:-1]}, controls: [flipped]}}]"],
            "sweeps[0]: selection = 'speculative' needs a correction with a law of its own",
        ),
        ([f"sweeps=[{ENERGY % '[none]'}]"], "sweeps[0].controls[0] = 'none' must be one of one_particle"),
        (["length=64"], "length = 64 must lie in 1..8"),
        (["execution=fast"], "execution = 'fast' must be one of eager, compile, cudagraph"),
        (["execution=cudagraph", "device=cpu"], "mode = 'cudagraph' needs a pipeline on a CUDA device, and this one"),
        (["ngrams=[9]"], "ngrams = [9] must be at most length = 8"),
        (["num_samples=1"], "num_samples = 1 must be a whole number of at least 2"),
        (["judge={}/denoiser"], "holds a network that is not causal"),
        (["denoiser={}/ar"], "holds a network that was not trained as a denoiser"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(run, folder: Path, overrides: list[str], said: str) -> None:
    status, _, error, out = run(*(word.replace("{}", str(folder)) for word in overrides))
    assert status == 2
    assert said in error
    assert len(error.splitlines()) == 1
    assert not out.exists()
