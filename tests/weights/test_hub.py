"""Models by folder and by name: what is loaded is what was saved, and nothing but json and safetensors is read.

The hub is a server in this process, see `hub_endpoint`.
"""

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import hub_endpoint
import pytest
import torch
from hub_endpoint import Hub
from hub_folder import hub_model
from huggingface_hub import ModelCard, constants
from large_folders import random_weights, write
from running import Runner

import edlm
from edlm import contracts
from edlm.data import vocabulary
from edlm.models import drafts
from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer
from edlm.weights import adaptation, checkpoints, hub, loading

LETTERS = vocabulary.characters()
SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
SCHEDULE = {"_component_": "edlm.schedules.log_linear", "eps": 1e-3}
NOTES = {"schedule": SCHEDULE, "time_conditioning": False, "step": 3}
FILES = {"network.json", "network.safetensors", "tokenizer.json", "vocabulary.json"}


def saved(folder: Path, kind: str) -> Path:
    """A folder of ours with a network of random weights."""
    cls = {"draft": EnergyNetwork, "joint": JointNetwork}.get(kind, Transformer)
    more = {"causal": True, "conditioning_size": 0} if kind == "ar" else {"conditioning_size": 8}
    notes = {"ar": {"bos_id": 27}, "draft": {**NOTES, "scope": "draft"}, "told": {**NOTES, "time_conditioning": True}}
    notes["d3pm"] = {**NOTES, "parameterisation": "d3pm"}
    torch.manual_seed(len(kind))
    network = cls(LETTERS.size, 12, **SIZES, **more)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    checkpoints.save_network(folder / kind, network.eval(), LETTERS, notes.get(kind, NOTES))
    return folder / kind


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_endpoint.running() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        files = found.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield found


def drawn(model: hub.Model) -> list[list[int]]:
    pipeline = edlm.pipelines.pipeline(edlm.samplers.Sampler(model.denoiser), length=12)
    return edlm.sample(pipeline, 3, seed=1)["tokens"].tolist()


# ---- Folders


@pytest.mark.parametrize("kind", ["subs", "ar", "draft", "joint", "d3pm"])
def test_what_is_loaded_is_saved_again_byte_for_byte(kind: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, kind)
    model = edlm.from_pretrained(folder)
    assert model.kind == {"joint": "subs"}.get(kind, kind)
    assert repr(model) == f"Model({model.kind}, {type(model.network).__name__}, {str(folder)!r})"
    model.save_pretrained(tmp_path / "again")
    assert {file.name for file in (tmp_path / "again").iterdir()} == FILES | {"README.md"}
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in FILES)


@pytest.mark.parametrize(("kind", "conditioning"), [("subs", 0), ("told", 8)])
def test_a_denoiser_is_that_of_the_recipes(kind: str, conditioning: int, tmp_path: Path) -> None:
    folder = saved(tmp_path, kind)
    model, known = edlm.from_pretrained(folder), loading.denoiser(str(folder), torch.device("cpu"))
    assert model.network.arguments["conditioning_size"] == 8  # as it was saved
    assert model.denoiser.network.arguments["conditioning_size"] == conditioning  # as it is sampled
    assert (model.told is None) == (kind == "subs")
    pipeline = edlm.pipelines.pipeline(edlm.samplers.Sampler(known.denoiser), length=12)
    assert drawn(model) == edlm.sample(pipeline, 3, seed=1)["tokens"].tolist()
    assert model.vocabulary.fingerprint == LETTERS.fingerprint


def test_a_network_that_was_trained_on_is_saved_as_it_is_now(tmp_path: Path) -> None:
    model = edlm.from_pretrained(saved(tmp_path, "subs"))
    with torch.no_grad():
        model.network.head.weight.mul_(2.0)
    model.save_pretrained(tmp_path / "more")
    again = edlm.from_pretrained(tmp_path / "more")
    assert torch.equal(again.network.head.weight, model.network.head.weight)
    assert drawn(again) == drawn(model)


@pytest.mark.parametrize("kind", ["subs", "told"])
def test_energies_correct_the_denoiser_of_another_model(kind: str, tmp_path: Path) -> None:
    model, ar, learned = (edlm.from_pretrained(saved(tmp_path, each)) for each in (kind, "ar", "draft"))
    cpu = torch.device("cpu")
    known, _ = loading.energy(str(tmp_path / "draft"), model.denoiser, LETTERS, cpu)
    expected = edlm.energies.residual_ar(ar.network, LETTERS.mask_id, 27, carry_over=False)
    inputs = drafts.drafts(LETTERS.size, LETTERS.mask_id, length=12)
    for built, energy in ((learned.energy(of=model), known), (ar.energy(of=model), expected)):
        assert torch.equal(*(each(inputs.clone())[contracts.ENERGY] for each in (built, energy)))
        texts = [
            edlm.sample(edlm.pipelines.pipeline(sampler, length=12), 2, seed=2)["tokens"]
            for sampler in (
                edlm.samplers.Sampler(model.denoiser, correction=correction, candidates=4)
                for correction in map(edlm.samplers.corrections.OfEnergy, (built, energy))
            )
        ]
        assert torch.equal(*texts)
    other = Transformer(4, 8, **SIZES)
    checkpoints.save_network(tmp_path / "other", other, vocabulary.characters("abc"), NOTES)
    with pytest.raises(ValueError, match=r"draft and .*other were trained on different vocabularies$"):
        learned.energy(of=edlm.from_pretrained(tmp_path / "other"))


def test_a_part_that_a_model_has_not_is_refused_by_its_kind(tmp_path: Path) -> None:
    model, ar = (edlm.from_pretrained(saved(tmp_path, kind)) for kind in ("subs", "ar"))
    baseline = edlm.from_pretrained(saved(tmp_path, "d3pm"))
    assert baseline.baseline.denoiser.mask_id == LETTERS.mask_id
    assert ar.autoregressive is ar.network
    with pytest.raises(ValueError, match=r"ar holds a model of kind 'ar', not 'subs'$"):
        _ = ar.denoiser
    with pytest.raises(ValueError, match=r"subs holds a model of kind 'subs', not 'ar' or 'draft' or "):
        model.energy(of=model)


def test_nothing_is_overwritten_and_the_folder_that_was_read_least_of_all(tmp_path: Path) -> None:
    folder = saved(tmp_path, "subs")
    (folder / "config.json").write_text("{}")  # the mixin would take it away
    model = edlm.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"subs exists already: remove it or choose another path$"):
        model.save_pretrained(folder)
    assert (folder / "config.json").read_text() == "{}"
    (tmp_path / "empty").mkdir()
    model.save_pretrained(tmp_path / "empty")
    assert edlm.from_pretrained(tmp_path / "empty").kind == "subs"


def test_damaged_weights_and_foreign_names_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = saved(tmp_path, "subs")
    file = folder / "network.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"network\.safetensors: damaged or exchanged since it was saved"):
        edlm.from_pretrained(folder)
    description = folder / "network.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "class": "os.system"}))
    with pytest.raises(ValueError, match=r"'os\.system' is not one of Transformer"):
        edlm.from_pretrained(folder)


# ---- Large models


def test_a_large_folder_is_copied_file_by_file(tmp_path: Path) -> None:
    folder = hub_model(tmp_path / "llama", bos_token_id=3)
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    model = edlm.from_pretrained(folder, length=16)
    assert (model.kind, model.bos_id, model.network.max_length) == ("ar", 3, 16)
    model.save_pretrained(tmp_path / "again")
    copied = {file.name for file in (tmp_path / "again").iterdir()}
    assert copied == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    tokens = torch.arange(6).unsqueeze(0)
    assert torch.equal(edlm.from_pretrained(tmp_path / "again").network(tokens), model.network(tokens))
    model.network.requires_grad_(True)
    with pytest.raises(
        ValueError, match=r"is copied, and its weights in memory may be trained: `edlm run adapt` writes"
    ):
        model.save_pretrained(tmp_path / "trained")


def test_shards_are_copied_with_their_index_and_a_denoiser_reads_its_bos_in_front(tmp_path: Path) -> None:
    folder = write(tmp_path / "dream", "dream", random_weights("dream"))
    (folder / "tokenizer.json").write_text(LETTERS.tokenizer.to_str())
    model = edlm.from_pretrained(folder, length=9)
    assert (model.kind, model.network.bos_id, model.denoiser.max_length) == ("subs", 3, 9)
    model.save_pretrained(tmp_path / "again")
    again = edlm.from_pretrained(tmp_path / "again", length=9)
    tokens = torch.arange(6).unsqueeze(0)
    assert torch.equal(again.network(tokens), model.network(tokens))


def test_an_energy_of_a_large_model_knows_the_denoiser_s_mask(tmp_path: Path) -> None:
    ar = edlm.from_pretrained(hub_model(tmp_path / "llama", bos_token_id=3), length=12)
    folder = write(tmp_path / "llada", "llada", random_weights("llada"))
    (folder / "tokenizer.json").write_text(LETTERS.tokenizer.to_str())
    model = edlm.from_pretrained(folder, length=12)
    correction = edlm.samplers.corrections.OfEnergy(ar.energy(of=model, carry_over=True))
    sampler = edlm.samplers.Sampler(model.denoiser, edlm.plans.Grid(4), correction=correction, candidates=2)
    assert edlm.sample(edlm.pipelines.pipeline(sampler, 12), 1)["tokens"].shape == (1, 12)


def test_the_hash_of_an_adapted_model_is_compared(tmp_path: Path) -> None:
    start = adaptation.start(hub_model(tmp_path / "llama", bos_token_id=3), length=12, shifted=True)
    (tmp_path / "adapted").mkdir()
    start.form.fill(tmp_path / "adapted", start.network, start.vocabulary, NOTES)
    assert edlm.from_pretrained(tmp_path / "adapted").kind == "subs"
    other = tmp_path / "llama" / "model.safetensors"
    shutil.copyfile(other, tmp_path / "adapted" / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged or exchanged since it was saved"):
        edlm.from_pretrained(tmp_path / "adapted")


# ---- Names


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own upload of a file
def test_what_is_pushed_is_loaded_by_its_name_and_later_from_the_cache(endpoint: Hub, tmp_path: Path) -> None:
    model, cache = edlm.from_pretrained(saved(tmp_path, "subs")), tmp_path / "cache"
    address = model.push_to_hub("me/tiny", token="hf_token")
    assert address == f"{endpoint.url}/me/tiny/commit/{endpoint.commit('me/tiny')}"
    assert set(endpoint.repositories["me/tiny"]) == FILES | {"README.md"}
    held = endpoint.repositories["me/tiny"]
    assert all(held[name] == (tmp_path / "subs" / name).read_bytes() for name in FILES)
    held |= {"pytorch_model.bin": b"\x80", "code.py": b"raise SystemExit", "weights.pkl": b"\x80"}
    endpoint.asked.clear()
    again = edlm.from_pretrained("me/tiny", cache_dir=cache, token="hf_token")
    assert drawn(again) == drawn(model)
    commit = endpoint.commit("me/tiny")
    fetched = {line.rpartition("/")[2] for line in endpoint.asked if f"/resolve/{commit}/" in line}
    assert fetched == FILES  # neither pickles nor code
    endpoint.asked.clear()
    offline = [
        edlm.from_pretrained("me/tiny", cache_dir=cache, local_files_only=True),
        hub.Model.from_pretrained("me/tiny", cache_dir=cache, local_files_only=True),
    ]
    assert not endpoint.asked
    assert all(drawn(each) == drawn(model) for each in offline)


def test_a_cache_that_somebody_else_filled_is_read_offline(tmp_path: Path) -> None:
    commit, cache = "0" * 39 + "1", tmp_path / "cache" / "models--me--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    shutil.copytree(saved(tmp_path, "ar"), cache / "snapshots" / commit)
    model = edlm.from_pretrained("me/tiny", cache_dir=tmp_path / "cache", local_files_only=True)
    assert (model.kind, model.bos_id) == ("ar", 27)
    tagged = partial(edlm.from_pretrained, cache_dir=tmp_path / "cache", local_files_only=True)
    assert tagged("me/tiny", revision=commit).kind == "ar"
    with pytest.raises(ValueError, match=r"^'me/tiny' is no folder, and no model of that name was found \("):
        tagged("me/tiny", revision="v2")


@pytest.mark.parametrize("name", ["me/other", "other", "a/b/c", "../some where"])
def test_a_name_that_is_nowhere_gets_one_line(name: str, endpoint: Hub, tmp_path: Path) -> None:
    for only_local in (True, False):
        with pytest.raises(ValueError, match=r"is no folder, and no model of that name was found \(") as error:
            edlm.from_pretrained(name, cache_dir=tmp_path, local_files_only=only_local)
        assert "\n" not in str(error.value)
        assert str(error.value).startswith(repr(name))


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_the_code_of_the_page_runs(
    trained: Path, endpoint: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Runner
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "checkpoints.md").read_text("utf-8")
    (code,) = re.findall(r"## The Hugging Face hub\n\n```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    Path("runs/tiny").mkdir(parents=True)
    Path("runs/tiny/denoiser").symlink_to(trained / "denoiser")
    assert run("evaluate", "energy=null", "rows=2", "num_steps=2").status == 0
    exec(compile(code, "checkpoints.md", "exec"), {})
    assert "denoiser | nelbo" in endpoint.repositories["user/mine"]["README.md"].decode()


# ---- Cards


def test_the_card_has_the_figures_of_the_metric_card(trained_ar: Path, run: Runner, tmp_path: Path) -> None:
    folder, out = trained_ar / "denoiser", tmp_path / "evaluation"
    words = (
        f"denoiser={folder}",
        f"ar={trained_ar / 'ar'}",
        f"output_dir={out}",
        "energy=null",
        "rows=4",
        "num_steps=4",
    )
    assert run("evaluate", *words).status == 0
    metrics = out / "metric_card.json"
    figures = json.loads(metrics.read_text())["figures"]
    model = edlm.from_pretrained(folder)
    model.save_pretrained(tmp_path / "mine", model_card_kwargs={"metrics": metrics})
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert card.data.library_name == "edlm"
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results["denoiser: nelbo"] == next(
        each["bits_per_character"] for each in figures if each["figure"] == "nelbo"
    )
    assert len(results) == len(figures)
    for each in figures:
        shown = f"{each['nats_per_token']:.4f} ± {each['nats_error']:.4f}"
        assert f"| {each['model']} | {each['figure']} | {shown} |" in card.text
    report = json.loads((folder / "report.json").read_text())
    assert f"(step 6), on held-out text: {report['mean']:.4f} ± {report['standard_error']:.4f} nats" in card.text
    assert "NELBO, an upper bound" in card.text

    # Figures are those of the weights that were measured, and of no others.
    with torch.no_grad():
        model.network.head.weight.add_(1.0)
    assert "on held-out text" not in model.generate_model_card().text
    with pytest.raises(ValueError, match=r"metric_card\.json says nothing of the weights of "):
        model.generate_model_card(metrics)
    with pytest.raises(ValueError, match=r"report\.json is no metric card: `edlm run evaluate` writes one$"):
        edlm.from_pretrained(folder).generate_model_card(folder / "report.json")
