"""Energies over large denoisers in folders: what is kept, that it comes back bit for bit, and what is refused."""

import json
from pathlib import Path
from typing import Any

import over_large
import pytest
import torch
from large_folders import write
from safetensors.torch import load_file, save_file
from tensordict import TensorDict

import edlm
from edlm.nn import decoders
from edlm.training import log
from edlm.weights import checkpoints, large, loading, memory, named, resolve, trunk_energies, whole

CPU = torch.device("cpu")
every_way = pytest.mark.parametrize("how", over_large.HOW)


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "draw_curves", lambda _: None)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaDA, a denoiser made of an AR model, and that model."""
    folder = tmp_path_factory.mktemp("over")
    for kind in ("llada", "adapted"):
        over_large.denoiser(folder, kind)
    return folder


def drafts(vocabulary: Any) -> TensorDict:
    generator = torch.Generator().manual_seed(3)
    candidates = torch.randint(0, 27, (2, 3, over_large.LENGTH), generator=generator)
    x_t = torch.where(torch.rand(2, over_large.LENGTH, generator=generator) < 0.5, vocabulary.mask_id, candidates[:, 0])
    return TensorDict({"candidates": candidates, "x_t": x_t, "t": torch.full((2,), 0.5, dtype=torch.float64)})


def loaded(denoiser: Path, energy: Path) -> tuple[Any, Any]:
    """The energy as `evaluate` and `frontier` load it, and the denoiser beside it."""
    named_ones = {"denoiser": str(denoiser), "energy": str(energy), "ar": None, "length": over_large.LENGTH}
    found = named.load(named_ones, CPU)
    assert found.diffusion is not None
    return found.diffusion.energies["energy"], found.diffusion.denoiser


@every_way
@pytest.mark.parametrize("scope", ["draft", "transition"])
def test_what_was_saved_gives_the_same_energies_bit_for_bit(how: str, scope: str, root: Path, tmp_path: Path) -> None:
    more = {**over_large.HOW[how], "scope": scope, "optimizer.lr": 0.1}
    recipe = over_large.trained(root / "llada", tmp_path / "run", **more)
    energy, _ = loaded(root / "llada", tmp_path / "run")
    texts = drafts(recipe.vocabulary)
    with torch.no_grad():
        known = recipe.plan.energy(recipe.run.average)(texts)["energy"]
        found = energy(texts)["energy"]
    assert torch.equal(found, known)
    assert known.unique().numel() > 1
    assert not any(each.requires_grad for each in energy.parameters())
    assert not torch.equal(recipe.plan.energy(recipe.run.network.eval())(texts)["energy"], known)


@every_way
def test_only_what_was_trained_is_kept_and_the_rest_is_held_once(how: str, root: Path, tmp_path: Path) -> None:
    recipe = over_large.trained(root / "llada", tmp_path / "run", **over_large.HOW[how])
    wanted = {name for name, value in recipe.run.network.named_parameters() if value.requires_grad}
    folder = checkpoints.find_network(tmp_path / "run")
    assert load_file(folder / "network.safetensors").keys() == wanted
    assert checkpoints.load_state(folder)["network"].keys() == wanted
    assert "trunk.head.weight" not in wanted
    assert ("trunk.layers.0.mlp.w1.weight" in wanted) is (how == "trained")
    energy, denoiser = loaded(root / "llada", tmp_path / "run")
    theirs = {value.data_ptr() for value in denoiser.parameters()}
    kept = {name for name, value in energy.module.network.named_parameters() if value.data_ptr() not in theirs}
    assert kept == wanted


def test_another_denoiser_is_refused_by_the_hash_of_its_weights(root: Path, tmp_path: Path) -> None:
    over_large.trained(root / "llada", tmp_path / "run")
    known = checkpoints.read_description(checkpoints.find_network(tmp_path / "run"))
    assert known[trunk_energies.OVER] == loading.weights_of(str(root / "llada"))
    state = whole.read_json(root / "llada" / "config.json")
    held = {name: value for file in (root / "llada").glob("*.safetensors") for name, value in load_file(file).items()}
    held["model.transformer.ln_f.weight"][0] += 1e-3
    other = write(tmp_path / "other", "llada", held, **state)
    (other / "tokenizer.json").write_bytes((root / "llada" / "tokenizer.json").read_bytes())
    for folder in (other, root / "adapted"):
        with pytest.raises(ValueError, match="was trained over the denoiser whose weights have sha256") as refusal:
            loaded(folder, tmp_path / "run")
        assert "\n" not in str(refusal.value)


def damaged(folder: Path, **changes: Any) -> None:
    file = folder / "network.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_damage_is_named(root: Path, tmp_path: Path) -> None:
    over_large.trained(root / "llada", tmp_path / "run")
    folder = checkpoints.find_network(tmp_path / "run")
    sound = (folder / "network.json").read_bytes()
    for arguments, said in (
        ({"trunk": "frozen", "adapter": [99, 1.0]}, "its arguments make no TrunkEnergy"),
        ({"depth": 2}, "its arguments make no TrunkEnergy"),
        ({"trunk": "frozen", "adapter": [2, 4.0], "dropout": 0.0}, "lora_a.weight is missing"),
        ({"trunk": "frozen", "adapter": None, "dropout": 0.5}, "damaged or exchanged since it was saved"),
    ):
        damaged(folder, arguments=arguments)
        with pytest.raises(ValueError, match=said):
            loaded(root / "llada", tmp_path / "run")
        (folder / "network.json").write_bytes(sound)
    weights = load_file(folder / "network.safetensors")
    save_file({**weights, "scalar.weight": weights["scalar.weight"] + 1}, folder / "network.safetensors")
    with pytest.raises(ValueError, match="damaged or exchanged since it was saved"):
        loaded(root / "llada", tmp_path / "run")


def test_it_is_loaded_beside_its_denoiser_alone(root: Path, tmp_path: Path) -> None:
    over_large.trained(root / "llada", tmp_path / "run")
    for load in (edlm.from_pretrained, checkpoints.load_network):
        with pytest.raises(ValueError, match="an energy over the network of its denoiser: name both"):
            load(tmp_path / "run")
    found = loading.denoiser(str(root / "llada"), CPU, over_large.LENGTH)
    with pytest.raises(ValueError, match="is over the network of its denoiser: say which folder"):
        loading.energy(str(tmp_path / "run"), found.denoiser, found.vocabulary, CPU)


@pytest.mark.parametrize("lora", [None, "{rank: 2, alpha: 4.0}"])
def test_an_ar_model_whose_energy_was_trained_is_the_folder_of_its_family(
    lora: str | None, root: Path, tmp_path: Path
) -> None:
    more = {"ar": root / "hub", "scope": "draft", "trunk": "trained", "lora": lora, "optimizer.lr": 0.05}
    recipe = over_large.trained(root / "adapted", tmp_path / "run", **more)
    folder = large.hub_folder(tmp_path / "run")
    assert folder is not None
    config = whole.read_json(folder / "config.json")
    assert config["model_type"] == "llama"
    assert config["vocab_size"] == whole.read_json(root / "hub" / "config.json")["vocab_size"]
    ids = recipe.vocabulary
    found = decoders.load(large.read_autoregressive(folder, over_large.LENGTH, vocab_size=ids.size))
    before = decoders.load(large.read_autoregressive(root / "hub", over_large.LENGTH, vocab_size=ids.size))
    x = torch.randint(0, 27, (2, over_large.LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(found(x), recipe.run.average(x), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(found(x), before(x), atol=1e-4)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="damaged or exchanged since it was saved"):
        decoders.load(large.read_autoregressive(folder))


def amounts(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> memory.MemoryPlan:
    """The bytes that a plan counts."""
    found: list[memory.MemoryPlan] = []
    count = memory.memory_plan

    def counted(*given: Any, **named: Any) -> memory.MemoryPlan:
        found.append(count(*given, **named))
        return found[-1]

    with monkeypatch.context() as patched:
        patched.setattr(memory, "memory_plan", counted)
        resolve.require_plan(asked)
    return found[0]


def test_a_plan_counts_shared_weights_once_and_beside_them_what_was_trained(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over_large.trained(root / "adapted", tmp_path / "run")
    small = {"length": over_large.LENGTH, "batch_size": 2, "num_samples": 2, "num_particles": 3, "selection": "sir"}
    more = {"ar": None, "tokenizer": None, "precision": None, "energy_rows": None, "execution": "eager"}
    asked = {"denoiser": str(root / "adapted"), "energy": None, **small, **more}
    plain = amounts(asked, monkeypatch)
    corrected = amounts({**asked, "energy": str(tmp_path / "run")}, monkeypatch)
    size = (checkpoints.find_network(tmp_path / "run") / "network.safetensors").stat().st_size
    assert corrected.weights == plain.weights + size
    assert corrected.weigh > plain.weigh == 0
    in_rows = amounts({**asked, "energy": str(tmp_path / "run"), "energy_rows": 1}, monkeypatch)
    assert plain.weigh < in_rows.weigh < corrected.weigh
