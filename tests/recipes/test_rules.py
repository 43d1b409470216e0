"""Plans that read the pass in the recipes: one section says them in all."""

import json
from pathlib import Path

import frontier_folder
import pytest
from running import Runner
from small_benchmarks import settings

from edlm.recipes import benchmark

BOUND = "sampler.plan={name: entropy_bound, gamma: 1.5}"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "models"
    found.mkdir()
    frontier_folder.write(found)
    monkeypatch.chdir(tmp_path)
    return found


def lines(file: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


@pytest.mark.parametrize("plan", [BOUND, "sampler.plan={name: left_to_right, count: 3}"])
def test_texts_are_drawn_by_it(run: Runner, models: Path, plan: str) -> None:
    few = ["energy=null", "num_samples=2", "threads=1", "output=out.jsonl"]
    status, _, error = run("generate", f"denoiser={models / 'denoiser'}", plan, *few)
    assert status == 0, error
    assert len(lines("out.jsonl")) == 2
    status, _, error = run("generate", f"denoiser={models / 'denoiser'}", plan.replace("}", ", gama: 1}"), *few)
    assert status == 2
    assert "sampler.plan.gama: unknown key" in error


def test_it_has_no_row_of_a_bound_and_the_table_says_so(run: Runner, models: Path) -> None:
    text = ["corpus._component_=edlm.corpora.text_files", f"corpus.path={models / 'text'}"]
    networks = [f"{name}={models / name}" for name in ("denoiser", "energy")]
    few = ["ar=null", "rows=2", "num_particles=2", "log_z_particles=2", "threads=1", "output_dir=out"]
    status, shown, error = run("evaluate", *networks, *text, *few, BOUND)
    assert status == 0, error
    assert "no bound of the sampler: what it reveals is chosen from the pass, by entropy bound 1.5" in shown
    figures = {figure["figure"] for figure in json.loads(Path("out/metric_card.json").read_text())["figures"]}
    assert "nelbo" in figures
    assert not {"t_step_nelbo", "sampler_nelbo", "transition_nelbo"} & figures
    status, _, error = run("evaluate", *networks, *text, *few, "sampler.plan={name: left_to_right}", "output_dir=own")
    assert status == 0, error
    figures = {figure["figure"] for figure in json.loads(Path("own/metric_card.json").read_text())["figures"]}
    assert "t_step_nelbo" in figures


def test_a_sweep_has_its_options_in_lists(run: Runner, models: Path) -> None:
    networks = [f"{name}={models / name}" for name in ("denoiser", "ar", "judge")]
    text = ["corpus._component_=edlm.corpora.text_files", f"corpus.path={models / 'text'}"]
    few = ["num_samples=2", "ngrams=[1]", "replicates=10", "threads=1", "output_dir=out", "energy=null"]
    sweeps = [
        "{plan: {name: entropy_bound, gamma: [0.5, 2.0]}}",
        "{plan: [{name: ranked, count: 2, by: [margin, confidence]}, {name: confidence, threshold: 0.3}]}",
    ]
    status, _, error = run("frontier", *networks, *text, *few, f"sweeps=[{','.join(sweeps)}]")
    assert status == 0, error
    names = " | ".join(str(record["name"]) for record in lines("out/frontier.jsonl"))
    for said in ("bound 0.5", "bound 2", "2 a pass by margin", "2 a pass by confidence", "confidence above 0.3"):
        assert said in names
    equal = "{plan: {name: confidence}, correction: {name: chain_rule}, candidates: 2, controls: [equal_passes]}"
    status, _, error = run("frontier", *networks, *text, *few, f"sweeps=[{equal}]", "output_dir=other")
    assert status == 2
    assert "is known only once it has drawn its texts" in error


def test_its_distance_to_the_source_is_exact(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = "{plan: [{name: entropy_bound, gamma: [0.0, 9.0]}, {name: left_to_right, count: 2}]}"
    few = ["num_samples=20", "batch_size=20", "bounded_texts=4", "entropy_texts=50", "replicates=5", "length=4"]
    few += ["threads=1", "output_dir=out"]
    status, _, error = run("oracle", f"sweeps=[{sweep}]", *few)
    assert status == 0, error
    found = {str(each["name"]): each["figures"] for each in lines("out/oracle.jsonl") if "bound" in str(each["name"])}
    one, all_at_once = (next(found[name] for name in found if f"bound {gamma}" in name) for gamma in ("0", "9"))
    assert one["total_variation"][0] < 1e-6 < all_at_once["total_variation"][0]
    assert "kl_bound" not in one


def test_it_is_timed_as_any_other(tmp_path: Path) -> None:
    section = {"plan": {"name": "entropy_bound", "gamma": 1.0}}
    given = settings(tmp_path / "out")
    given["cases"] = [{**given["cases"][0], "sampler": section}]
    benchmark.main({**given, "growth": []})
    assert list((tmp_path / "out").iterdir())
