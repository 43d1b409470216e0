"""Parts of one's own, as `docs/howto/extend.md` shows them: in Python, on the command line, and beside a config."""

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import frontier_folder
import own_parts
import pytest
import small_benchmarks
import torch
from builders import tiny_denoiser
from running import Runner

import edlm
from edlm import samplers, testing
from edlm.cli import commands
from edlm.recipes import benchmark
from edlm.samplers import corrections, plans, selections

V, MASK = 5, 4


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files are: the working folder."""
    own_parts.forget(monkeypatch)
    found = own_parts.write(tmp_path / "own")
    monkeypatch.chdir(found)
    return found


def own(module: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    return import_module(module)


def drawn(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_part_is_a_file_of_at_most_forty_lines() -> None:
    assert list(own_parts.FILES) == [
        "my_plan.py",
        "my_rule.py",
        "my_energy.py",
        "my_correction.py",
        "my_selection.py",
        "my_network.py",
    ]
    assert all(len(code.splitlines()) < 40 for code in own_parts.FILES.values())


def test_a_plan_of_ones_own_reveals_block_by_block(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = own("my_plan", monkeypatch).Blocks(size=3, tokens_per_pass=1)
    uniforms = torch.rand(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = plan.draw(uniforms, torch.ones(4, 8, dtype=torch.bool), tiny_denoiser().schedule).order
    assert bool((order[:, :3].amax(1) < order[:, 3:6].amin(1)).all())
    assert bool((order[:, 3:6].amax(1) < order[:, 6:].amin(1)).all())
    assert order.sort(1).values.tolist() == 4 * [list(range(8))]
    assert samplers.from_config({"plan": {"name": "blocks", "size": 3}}, tiny_denoiser()).plan == plan


def test_a_plan_of_ones_own_reads_the_pass_block_by_block(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = own("my_rule", monkeypatch).SureOfBlock(3, 0.4)
    testing.check_rule(plan)
    denoiser = tiny_denoiser(vocab_size=V, max_length=8)
    shown: list[torch.Tensor] = []
    pipeline = edlm.pipelines.pipeline(samplers.Sampler(denoiser, plan), 8)
    edlm.sample(pipeline, 4, callback=lambda state, _: shown.append(state["x_t"] == MASK))
    for masked in shown:  # no block is begun before the one to its left is written
        begun = [bool((~masked[row, i : i + 3]).any()) for row in range(4) for i in (3, 6)]
        written = [not bool(masked[row, i : i + 3].any()) for row in range(4) for i in (0, 3)]
        assert all(before or not after for before, after in zip(written, begun, strict=True))


def test_an_energy_of_ones_own_keeps_its_laws_and_helps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    energy = own("my_energy", monkeypatch).repetition(MASK, weight=4.0)
    testing.check_energy(energy, V, MASK)
    assert energy(candidates=torch.tensor([[[0, 1, 0, 1], [0, 1, 2, 3], [0, MASK, 0, MASK]]])).tolist() == [[4, 0, 0]]
    denoiser = tiny_denoiser(vocab_size=V, max_length=12)
    plain = samplers.Sampler(denoiser, plans.Grid(4))
    corrected = plain.replace(correction=corrections.OfEnergy(energy), candidates=16)
    repeated = []
    for sampler in (plain, corrected):
        tokens = edlm.sample(edlm.pipelines.pipeline(sampler, 12), 16, seed=0)["tokens"]
        repeated.append(float(energy(candidates=tokens.unsqueeze(1)).mean()))
    assert repeated[1] < 0.7 * repeated[0]


def test_a_correction_of_ones_own_makes_texts_likelier(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sharpen = own("my_correction", monkeypatch).Sharpen(3.0)
    denoiser = tiny_denoiser(vocab_size=V, max_length=12)
    plain = samplers.Sampler(denoiser, plans.Grid(1))
    masks, start = torch.full((1, 12), MASK), torch.ones(1, dtype=torch.float64)
    law = denoiser.logits(denoiser(x_t=masks, t=start, positions=torch.arange(12))).log_softmax(-1)
    log_p = []
    for sampler in (plain, plain.replace(correction=sharpen, candidates=16)):
        out = edlm.sample(edlm.pipelines.pipeline(sampler, 12), 16, seed=0)
        log_p.append(float(law[torch.arange(12), out["tokens"]].detach().sum(-1).mean()))
    assert log_p[1] > log_p[0] + 1.0
    assert float(out["info", "energy_passes"].sum()) == 0.0


def test_a_selection_of_ones_own_keeps_its_laws(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = own("my_selection", monkeypatch).among_best(2).choose
    testing.check_selection(choose)
    weights = torch.tensor([[0.0, 3.0, 2.0, -5.0]], dtype=torch.float64).expand(64, 4)
    uniforms = torch.rand(64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert set(choose(weights, uniforms).tolist()) == {1, 2}


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("generate", ["sampler.plan._component_=my_plan.Blocks", "sampler.plan.size=4", "energy=null"]),
        ("generate", ["sampler.plan._component_=my_rule.SureOfBlock", "sampler.plan.size=4", "energy=null"]),
        ("generate", ["energy._component_=my_energy.repetition", "energy.weight=4"]),
        ("generate", ["energy=null", "sampler.correction._component_=my_correction.Sharpen", "num_particles=4"]),
        ("generate", ["energy=chain_rule", "sampler.selection._component_=my_selection.among_best"]),
        ("evaluate", ["sampler.plan._component_=my_plan.Blocks", "energy=null"]),
        ("evaluate", ["energy._component_=my_energy.repetition"]),
        ("evaluate", ["energy=null", "sampler.correction._component_=my_correction.Sharpen"]),
    ],
)
def test_a_recipe_finds_parts_in_the_working_folder(
    run: Runner, trained: Path, folder: Path, recipe: str, words: list[str]
) -> None:
    few = {
        "generate": ["output=out.jsonl", "num_samples=2", "num_steps=4", "window=[0,1]"],
        "evaluate": ["output_dir=out", "rows=2", "num_steps=2", "num_particles=2", "ar=null", "log_z_particles=2"],
    }
    status, _, error = run(recipe, f"denoiser={trained / 'denoiser'}", "threads=1", *few[recipe], *words)
    assert status == 0, error
    if recipe == "generate":
        assert len(drawn(Path("out.jsonl"))) == 2
    else:
        models = {figure["model"] for figure in json.loads(Path("out/metric_card.json").read_text())["figures"]}
        named = {"my_energy.repetition": "repetition", "my_correction.Sharpen": "sharpen"}
        assert {name for part, name in named.items() if part in " ".join(words)} <= models


def test_the_frontier_sweeps_over_parts_in_the_working_folder(run: Runner, folder: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    frontier_folder.write(models)
    sweeps = [
        "{plan: {_component_: my_plan.Blocks, size: [2, 4], tokens_per_pass: 2}}",
        "{correction: {_component_: my_energy.repetition, weight: [2, 4]}, candidates: 3}",
        "{correction: {_component_: my_correction.Sharpen}, candidates: 2, selection: "
        "{_component_: my_selection.among_best}}",
    ]
    networks = [f"{name}={models / name}" for name in ("denoiser", "ar", "judge")]
    text = ["corpus._component_=edlm.corpora.text_files", f"corpus.path={models / 'text'}"]
    few = ["num_samples=2", "ngrams=[1]", "replicates=10", "threads=1", "output_dir=out", "energy=null"]
    status, _, error = run("frontier", *networks, *text, *few, f"sweeps=[{','.join(sweeps)}]")
    assert status == 0, error
    names = {record["name"] for record in drawn(Path("out/frontier.jsonl"))}
    for said in (
        "blocks of 2, 2 a pass",
        "blocks of 4, 2 a pass",
        "repetition weight=2",
        "repetition weight=4",
        "sharpen",
    ):
        assert any(said in name for name in names), (said, names)
    assert len(names) == 6  # those of five samplers, and the held-out text


def test_a_recipe_finds_parts_beside_its_config_and_says_what_is_wrong(
    run: Runner, trained: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = folder / "my.yaml"
    shutil.copy(commands.configs("generate")["tiny"], config)
    config.write_text(config.read_text() + own_parts.SECTION)
    words = [f"denoiser={trained / 'denoiser'}", "energy=null", "num_samples=2", "num_steps=4", "threads=1"]
    status, shown, error = run("generate", *words, "output=out.jsonl", config=str(config))
    assert status == 0, error
    assert "is not used" not in shown
    assert all(record["ess"] >= 1.0 for record in drawn(Path("out.jsonl")))
    for wrong, message in {
        "sampler.plan._component_=my_plam.Blocks": "sampler.plan._component_ = 'my_plam.Blocks' must be the dotted",
        "sampler.plan._component_=my_plan.Block": "has no attribute 'Block'",
        "sampler.plan.sise=3": "sampler.plan.sise: unknown key; did you mean 'size'?",
        "sampler.plan.size=a": "sampler.plan.size = 'a' must be of type int",
        "sampler.selection._component_=my_plan.Blocks": "my_plan.Blocks: makes no selection, but something of type Bl",
        "sampler.selection.least=1": "sampler.selection.least: unknown key; known keys: most",
    }.items():
        status, _, error = run("generate", *words, wrong, config=str(config))
        assert (status, message in error) == (2, True), error
        assert len(error.splitlines()) == 1


def test_texts_are_not_gone_on_with_after_the_code_of_a_part_changes(run: Runner, trained: Path, folder: Path) -> None:
    words = [f"denoiser={trained / 'denoiser'}", "energy=null", "num_samples=1", "num_steps=2", "threads=1"]
    words += ["sampler.plan._component_=my_plan.Blocks", "output=out.jsonl"]
    assert run("generate", *words)[0] == run("generate", *words)[0] == 0
    with (folder / "my_plan.py").open("a") as file:
        file.write("# changed\n")
    status, _, error = run("generate", *words)
    assert (status, "holds other texts" in error) == (2, True)


def test_what_is_registered_appears_in_every_recipe(
    run: Runner, trained: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = own("my_correction", monkeypatch)
    monkeypatch.setattr(corrections, "CORRECTIONS", dict(corrections.CORRECTIONS))
    monkeypatch.setattr(selections, "SELECTIONS", dict(selections.SELECTIONS))
    corrections.register("sharpen", lambda _, **options: module.Sharpen(**options))
    selections.register(own("my_selection", monkeypatch).among_best())
    own("my_plan", monkeypatch)
    paths = [f"denoiser={trained / 'denoiser'}", "energy=null", "threads=1", "num_steps=2"]
    words = ["sampler.correction.name=sharpen", "sampler.plan.name=blocks", "selection=among_best"]
    assert run("generate", *paths, *words, "output=out.jsonl", "num_samples=1").status == 0
    assert drawn(Path("out.jsonl"))[0]["ess"] >= 1.0
    few = ["ar=null", "rows=2", "num_particles=2", "output_dir=out"]
    status, _, error = run("evaluate", *paths, *few, "sampler.plan.name=blocks")
    assert status == 0, error
    figures = json.loads(Path("out/metric_card.json").read_text())["figures"]
    assert ("sharpen", "transition_nelbo") in {(figure["model"], figure["figure"]) for figure in figures}
    given = small_benchmarks.settings(tmp_path / "bench", growth=[])
    section = {"correction": {"name": "sharpen", "power": 1.5}, "selection": "among_best", "plan": {"name": "blocks"}}
    benchmark.main({**given, "cases": [{**given["cases"][0], "num_particles": 3, "sampler": section}]})
    [case] = json.loads((tmp_path / "bench" / "benchmark.json").read_text())["cases"]
    assert "k=3 sharpen power=1.5, selection=among_best, blocks" in case["name"]
