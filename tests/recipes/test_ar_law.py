"""The AR model's own law in recipes: it is drawn, scored and compared by its name in a config."""

import csv
import json
from pathlib import Path

import frontier_folder
import pytest
from running import Runner

SECTION = "{selection: speculative, correction: {name: autoregressive, ahead: 3}, plan: {name: grid, num_steps: 1}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    frontier_folder.write(path)
    return path


def test_generate_writes_its_texts(run: Runner, folder: Path, tmp_path: Path) -> None:
    words = [f"denoiser={folder / 'denoiser'}", "energy=null", f"output={tmp_path / 'x.jsonl'}", "threads=1"]
    few = ["num_samples=3", "num_steps=1", "window=[0,1]", f"sampler={SECTION}"]
    status, shown, error = run("generate", *words, *few, f"ar={folder / 'ar'}")
    assert status == 0, error
    assert "energy passes" in shown
    records = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [len(record["tokens"]) for record in records] == [frontier_folder.LENGTH] * 3
    status, _, error = run("generate", *words, *few)
    assert status == 2
    assert "needs an AR model: name its folder by ar" in error


def test_its_bound_in_evaluate_is_the_likelihood_of_the_ar_model(run: Runner, folder: Path, tmp_path: Path) -> None:
    words = [f"denoiser={folder / 'denoiser'}", f"ar={folder / 'ar'}", "energy=null", f"output_dir={tmp_path / 'out'}"]
    texts = ["split=null", f"zero_shot=[{folder / 'text' / 'test.txt'}]", "normalised=false", "rows=6", "threads=1"]
    how = ["num_steps=1", "num_particles=1", "window=[0,1]", "replicates=10", f"sampler={SECTION}"]
    status, _, error = run("evaluate", *words, *texts, *how)
    assert status == 0, error
    card = json.loads((tmp_path / "out" / "metric_card.json").read_text())
    found = {figure["model"]: figure["nats_per_token"] for figure in card["figures"]}
    assert found["autoregressive"] == pytest.approx(found["ar"], rel=1e-5)
    assert found["denoiser"] != pytest.approx(found["ar"], rel=1e-3)


def test_a_frontier_has_it_beside_the_ar_model_by_itself(run: Runner, folder: Path, tmp_path: Path) -> None:
    named = [f"{name}={folder / name}" for name in ("denoiser", "ar", "judge")]
    texts = ["corpus._component_=edlm.corpora.text_files", f"corpus.path={folder / 'text'}", "ngrams=[1,2]"]
    few = ["energy=null", "num_samples=4", "batch_size=2", "replicates=10", "threads=1"]
    sweeps = f"sweeps=[{SECTION},{{ar: {{temperature: 1.0}}}}]"
    status, _, error = run("frontier", *named, *texts, *few, sweeps, f"output_dir={tmp_path / 'out'}")
    assert status == 0, error
    rows = [row["name"] for row in csv.DictReader((tmp_path / "out" / "frontier.csv").read_text().splitlines())]
    assert rows[1:] == ["speculative, autoregressive, T=1", "ar"]
