"""Recipes on a denoiser of ours beside a model of the hub, and on the hub's beside ours: two commands, end to end."""

import json
import string
from pathlib import Path
from typing import Any

import gpt2_folder
import pytest
import torch
from hub_folder import hub_model
from large_folders import EPS, KV, THETA, V, random_weights, write
from smallest import CLOSING, NETWORK, UPDATES, settings_of, train, words_of

from edlm.data import vocabulary
from edlm.models import autoregressive
from edlm.nn.networks import Transformer
from edlm.recipes import benchmark, edlm_nce, evaluate, frontier, generate, likelihoods
from edlm.training import log
from edlm.weights import checkpoints, loading, named, pairs

CPU, LENGTH, BOS = torch.device("cpu"), 12, 3
LETTERS = string.ascii_lowercase + " "
SPECULATIVE = "sampler={plan: {name: grid, num_steps: 1}, correction: {name: autoregressive}, selection: speculative}"
NOTES = {"schedule": {"_component_": "edlm.schedules.log_linear"}, "time_conditioning": False}


def ours(folder: Path, causal: bool = False, size: int = 28, alphabet: str = LETTERS, **about: Any) -> None:
    network = Transformer(size, LENGTH, hidden_size=16, num_layers=1, num_heads=2, conditioning_size=0, causal=causal)
    torch.manual_seed(1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    words = vocabulary.Vocabulary(vocabulary.characters(alphabet).tokenizer, size, size - 1)
    checkpoints.save_network(folder, network, words, {**(NOTES if not causal else {"bos_id": size - 1}), **about})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`own` and `own_ar`, ours over 27 letters; `hub`, an AR model with 13 ids more; `run`, a denoiser made of it.

    `judge` is like `own_ar`, and spells an id without a token too, which `run` may draw.
    """
    folder = tmp_path_factory.mktemp("pairs")
    hub_model(folder / "hub", tied=True)
    hub_model(folder / "few", "qwen2", vocab_size=40)
    ours(folder / "own")
    ours(folder / "own_ar", causal=True)
    ours(folder / "judge", causal=True, size=29, alphabet=LETTERS + "\N{REPLACEMENT CHARACTER}")
    words = {"start_from": folder / "hub", "output_dir": folder / "run", "shifted": True, "length": LENGTH}
    train("adapt", *words_of({**words, **UPDATES, "steps": 1, "threads": 1}))
    return folder


PAIRS = pytest.mark.parametrize(("denoiser", "ar"), [("own", "hub"), ("run", "own_ar")])


def drawn(folder: Path, denoiser: str, ar: str, output: Path, *more: str) -> list[dict[str, Any]]:
    asked = {"denoiser": folder / denoiser, "energy": None, "ar": folder / ar, "output": output, "length": LENGTH}
    small = {"num_samples": 2, "batch_size": 2, "num_steps": 3, "num_particles": 2, "threads": 1}
    generate.main(settings_of("generate", *words_of({**asked, **small}), *more))
    return [json.loads(line) for line in output.read_text("utf-8").splitlines()]


@PAIRS
@pytest.mark.parametrize("form", ["posterior", "carry_over"])
def test_generate_weighs_drafts(denoiser: str, ar: str, form: str, models: Path, tmp_path: Path) -> None:
    found = drawn(models, denoiser, ar, tmp_path / "x.jsonl", f"ar_form={form}", "window=[0.0, 1.0]")
    assert denoiser == "run" or all(max(record["tokens"]) < 27 for record in found)
    assert all(record["energy_passes"] > 0 for record in found)


@PAIRS
def test_generate_draws_the_ar_models_law(denoiser: str, ar: str, models: Path, tmp_path: Path) -> None:
    found = drawn(models, denoiser, ar, tmp_path / "x.jsonl", SPECULATIVE, "window=[0.0, 1.0]")
    assert all(max(record["tokens"]) < 27 for record in found)


@PAIRS
def test_evaluate_scores_both(denoiser: str, ar: str, models: Path, tmp_path: Path) -> None:
    asked = {"denoiser": models / denoiser, "energy": None, "ar": models / ar, "output_dir": tmp_path}
    small = {"length": LENGTH, "rows": 2, "num_steps": 3, "num_passes": 2, "num_particles": 2, "num_completions": 1}
    evaluate.main(settings_of("evaluate", *words_of({**asked, **small, "log_z_particles": 2, "threads": 1})))
    card = json.loads((tmp_path / "metric_card.json").read_text("utf-8"))
    figures = {figure["model"]: figure for figure in card["figures"] if figure["figure"] == "exact_nll"}
    assert {"ar, posterior", "ar, carry_over"} <= {figure["model"] for figure in card["figures"]}
    asked |= {"denoiser": None, "output_dir": tmp_path / "alone"}
    if ar == "own_ar":  # the letters are all that it knows, so its law is the same alone
        evaluate.main(settings_of("evaluate", *words_of({**asked, **small, "log_z_particles": 2, "threads": 1})))
        alone = json.loads((tmp_path / "alone" / "metric_card.json").read_text("utf-8"))["figures"][0]
        assert figures["ar"]["nats_per_token"] == pytest.approx(alone["nats_per_token"], rel=1e-6)


@PAIRS
def test_likelihoods_have_a_line_of_the_ar_model(denoiser: str, ar: str, models: Path, tmp_path: Path) -> None:
    asked = {"denoiser": models / denoiser, "energy": None, "ar": models / ar, "output_dir": tmp_path}
    small = {"length": LENGTH, "rows": 2, "num_passes": 2, "num_completions": 1, "nelbo_draws": 1, "threads": 1}
    sweeps = "[{plan: {name: grid, num_steps: 2}}, {correction: {name: energy, called: carry_over}, candidates: 2}]"
    likelihoods.main(settings_of("likelihoods", *words_of({**asked, **small, "sweeps": sweeps, "batch_size": 2})))
    assert "| ar " in (tmp_path / "likelihoods.md").read_text("utf-8")


@pytest.mark.slow
@PAIRS
def test_frontier_draws_and_is_judged_by_them(denoiser: str, ar: str, models: Path, tmp_path: Path) -> None:
    asked = {"denoiser": models / denoiser, "ar": models / ar, "energy": None}
    asked["judge"] = models / ("judge" if denoiser == "run" else ar)
    sweeps = "[{plan: {name: grid, num_steps: 2}}, {ar: {temperature: 1.0}}]"
    small = {"length": LENGTH, "num_samples": 2, "batch_size": 2, "sweeps": sweeps, "threads": 1, "ngrams": "[1]"}
    frontier.main(settings_of("frontier", *words_of({**asked, "output_dir": tmp_path, **small})))
    assert "ar" in (tmp_path / "frontier.md").read_text("utf-8")


@PAIRS
def test_benchmark_measures_them(denoiser: str, ar: str, models: Path, tmp_path: Path) -> None:
    size = loading.denoiser(str(models / denoiser), CPU, LENGTH).vocabulary.size
    case = {"vocab_size": size, "length": LENGTH, "rows": 2, "num_steps": 2, "repeats": 1, "textbook_steps": 1}
    case |= {"method": "carry_over", "num_particles": 2, "targets": {}}
    asked = settings_of("benchmark", f"output_dir={tmp_path}", "threads=1", "growth=[]", "training=[]")
    folders = {"denoiser": str(models / denoiser), "ar": str(models / ar)}
    benchmark.main({**asked, **folders, "cases": [{**asked["cases"][0], **case}], "modes": ["eager"]})
    report = json.loads((tmp_path / "benchmark.json").read_text("utf-8"))
    assert report["cases"][0]["methods"]["eager"]["passes"]["energy"]["rows"] > 0


# ---- A builder of torchtune


def of_builder(models: Path) -> dict[str, Any]:
    """The section whose builder and checkpointer make of a folder what the folder says itself."""
    sizes = {"vocab_size": V, "num_layers": 2, "num_heads": 4, "num_kv_heads": KV, "embed_dim": 16}
    sizes |= {"intermediate_dim": 24, "max_seq_len": 32, "rope_base": THETA, "norm_eps": EPS}
    files = {"checkpoint_dir": str(models / "few"), "checkpoint_files": ["model.safetensors"], "model_type": "QWEN2"}
    return {
        "model": {"_component_": "torchtune.models.qwen2.qwen2", **sizes},
        "checkpointer": {"_component_": "torchtune.training.FullModelHFCheckpointer", **files},
    }


def test_a_builder_is_the_model_of_its_folder_wherever_ar_is_a_key(models: Path, tmp_path: Path) -> None:
    source = of_builder(models)
    asked = {"denoiser": str(models / "own"), "ar": source, "length": LENGTH, "output_dir": str(tmp_path)}
    found, plain = (named.load({**asked, "ar": each}, CPU) for each in (source, str(models / "few")))
    assert found.ar is not None
    assert plain.ar is not None
    x = torch.arange(2 * LENGTH).view(2, LENGTH)
    with torch.no_grad():
        one, other = (autoregressive.ar_log_prob(each.ar.network, x, 27, BOS) for each in (found, plain))
    torch.testing.assert_close(one, other)
    assert found.records["ar"]["weights_sha256"] == plain.records["ar"]["weights_sha256"]
    assert found.records["ar"]["description"] == source
    alone = named.load({**asked, "denoiser": None}, CPU)
    assert alone.vocabulary.size == 41
    for recipe in (evaluate, frontier, likelihoods, benchmark, generate):
        recipe.SETTINGS["ar"]("ar", source)
    with pytest.raises(ValueError, match=r"ar\.builder: unknown key"):
        evaluate.SETTINGS["ar"]("ar", {**source, "builder": "x"})
    small = {"rows": 2, "num_steps": 3, "num_passes": 2, "num_particles": 2, "num_completions": 1, "threads": 1}
    words = words_of({**small, "log_z_particles": 2, "energy": None, "batch_size": 2})
    evaluate.main({**settings_of("evaluate", *words), **asked})
    card = json.loads((tmp_path / "metric_card.json").read_text("utf-8"))
    assert {"ar", "ar, carry_over"} <= {figure["model"] for figure in card["figures"]}


# ---- Trained


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "draw_curves", lambda _: None)


def energy_words(denoiser: Path, ar: Path, output: Path, *more: str) -> list[str]:
    asked = {"denoiser": denoiser, "ar": ar, "output_dir": output, "pretrain": None, "scope": "draft", "threads": 1}
    shown = {"samples.num_samples": 1, "samples.num_steps": 2, "samples.num_particles": 2, "report_particles": 2}
    closing = {f"closing.{key}": value for key, value in CLOSING.items()}
    return [*words_of({**asked, **UPDATES, "steps": 2, "objective": "info_nce", **shown, **closing}), *more]


@pytest.mark.slow
def test_the_residual_energys_weights_are_trained_beside_a_denoiser_of_ours(
    models: Path, tmp_path: Path, no_pictures: None
) -> None:
    letters(tmp_path / "hub")
    ours(tmp_path / "own")
    asked = tmp_path / "own", tmp_path / "hub", tmp_path / "energy"
    edlm_nce.main(settings_of("edlm_nce", *energy_words(*asked, "lora={rank: 2, alpha: 4}")))
    found, x = loading.denoiser(str(tmp_path / "own"), CPU), torch.arange(LENGTH).unsqueeze(0)
    before, after = (pairs.autoregressive(str(each), found, CPU) for each in asked[1:])
    assert before.bos_id == after.bos_id == BOS
    with torch.no_grad():
        laws = [autoregressive.ar_log_prob(each.network, x, 27, BOS) for each in (before, after)]
    assert 0 < float((laws[0] - laws[1]).abs().max()) < 1
    assert drawn(tmp_path, "own", "energy", tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match=r"is trained over its own 40 ids, and denoiser = .* has 28, of which 27"):
        edlm_nce.main(settings_of("edlm_nce", *energy_words(models / "own", models / "hub", tmp_path / "other")))


def letters(folder: Path) -> Path:
    """A model of the hub with no more ids than its tokenizer has."""
    state = random_weights("llama", seed=5, vocab_size=27)
    write(folder, "llama", state, shards=1, vocab_size=27, mask_token_id=None)
    (folder / "tokenizer.json").write_text(vocabulary.characters().tokenizer.to_str())
    return folder


@pytest.mark.slow
def test_an_ar_model_of_ours_is_trained_beside_a_denoiser_of_the_hub(
    models: Path, tmp_path: Path, no_pictures: None
) -> None:
    words = {"start_from": letters(tmp_path / "hub"), "output_dir": tmp_path / "run", "shifted": True, "length": LENGTH}
    train("adapt", *words_of({**words, **UPDATES, "steps": 1, "threads": 1}))
    asked = energy_words(tmp_path / "run", models / "own_ar", tmp_path / "energy", f"length={LENGTH}")
    edlm_nce.main(settings_of("edlm_nce", *asked))
    before, after = (loading.autoregressive(str(each), CPU) for each in (models / "own_ar", tmp_path / "energy"))
    assert before.description["bos_id"] == after.description["bos_id"] == 27
    assert not torch.equal(before.network.head.weight, after.network.head.weight)
    assert drawn(tmp_path, "run", "energy", tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match=r"is trained over its own 28 ids, and denoiser = .* has 41, of which 27"):
        edlm_nce.main(settings_of("edlm_nce", *energy_words(models / "run", models / "own_ar", tmp_path / "energy")))


def test_a_denoiser_is_trained_on_the_tokens_of_a_folder_of_the_hub_and_corrected_by_it(
    tmp_path: Path, no_pictures: None
) -> None:
    """The paper's own case, on GPT-2's tokens: two commands."""
    transformers = pytest.importorskip("transformers", reason="needs pip install 'edlm-torch[families]'")
    gpt2_folder.write(tmp_path, transformers)
    words = {"vocabulary._component_": "edlm.vocabulary.from_tokenizer_json", "vocabulary.path": tmp_path}
    words |= {"output_dir": tmp_path / "own", "length": 5, "threads": 1, **UPDATES}
    train("pretrain_denoiser", *words_of(words), *words_of(NETWORK, "network."))
    asked = {"denoiser": tmp_path / "own", "energy": None, "ar": tmp_path, "output": tmp_path / "x.jsonl"}
    small = {"num_samples": 1, "num_steps": 2, "num_particles": 2, "threads": 1, "window": [0.0, 1.0]}
    generate.main(settings_of("generate", *words_of({**asked, **small})))
    (record,) = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text("utf-8").splitlines()]
    assert len(record["tokens"]) == 5
