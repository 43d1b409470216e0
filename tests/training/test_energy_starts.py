"""What an energy is before it is trained: the denoiser's trunk, or weights of its own, as the config asks."""

from pathlib import Path

import pytest
import torch
from smallest import LENGTH, NETWORK, energy_words, settings_of

from edlm.data import vocabulary
from edlm.nn import starts
from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer
from edlm.recipes import edlm_joint, edlm_nce
from edlm.weights import checkpoints

WORDS = ["pretrain=null", "seed=5"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Beside a network with a plan to train from: no tensor of it is what any network starts with."""
    network = Transformer(28, LENGTH, **NETWORK)
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.5)
    notes = {"schedule": {"_component_": "edlm.schedules.log_linear"}, "time_conditioning": False, "step": 1}
    checkpoints.save_network(tmp_path / "denoiser", network, vocabulary.characters(), notes)
    return tmp_path


def energy_of(folder: Path, *words: str) -> tuple[EnergyNetwork, Transformer]:
    """The energy as `edlm_nce` would begin to train it, and the denoiser that corrects nothing yet."""
    recipe = edlm_nce.EnergyByNCE(settings_of("edlm_nce", *energy_words(folder), *WORDS, *words))
    recipe.load_denoiser()
    recipe.setup()
    assert isinstance(recipe.run.network, EnergyNetwork)
    return recipe.run.network, recipe.plan.start.network


def alike(energy: EnergyNetwork, denoiser: Transformer) -> dict[str, bool]:
    """Which tensors of embedding and trunk are the denoiser's, by name."""
    own = dict(energy.named_parameters())
    pairs = {name: value for name, value in denoiser.named_parameters() if name.startswith(("embedding.", "trunk."))}
    return {name: torch.equal(own[name], value) for name, value in pairs.items()}


def test_from_the_denoiser_it_has_every_tensor_of_the_denoisers_trunk(folder: Path) -> None:
    energy, denoiser = energy_of(folder, "start_from=denoiser")
    found = alike(energy, denoiser)
    assert found
    assert all(found.values()), found
    assert all(a.data_ptr() != b.data_ptr() for a in energy.parameters() for b in denoiser.parameters()), "a copy"
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())
    assert all(parameter.requires_grad for parameter in energy.parameters())


def test_from_scratch_it_has_none_of_them_and_is_what_its_seed_makes(folder: Path) -> None:
    energy, denoiser = energy_of(folder, "start_from=scratch")
    assert not any(alike(energy, denoiser).values()), alike(energy, denoiser)
    again, _ = energy_of(folder, "start_from=scratch")
    other, _ = energy_of(folder, "start_from=scratch", "seed=6")
    assert torch.equal(energy.embedding.weight, again.embedding.weight)
    assert not torch.equal(energy.embedding.weight, other.embedding.weight)


@pytest.mark.parametrize("start_from", ["denoiser", "scratch"])
def test_a_shared_embedding_is_the_denoisers_whatever_the_trunk_starts_from(folder: Path, start_from: str) -> None:
    energy, denoiser = energy_of(folder, f"start_from={start_from}", "embedding=shared")
    assert energy.embedding.weight.data_ptr() == denoiser.embedding.weight.data_ptr()
    assert not energy.embedding.weight.requires_grad
    found = alike(energy, denoiser)
    assert found.pop("embedding.weight")
    assert set(found.values()) == {start_from == "denoiser"}


def test_a_joint_network_starts_as_the_denoiser_and_its_energy_at_zero(folder: Path) -> None:
    words = [f"denoiser={folder / 'denoiser'}", f"output_dir={folder / 'joint'}", *WORDS, "num_energy_layers=2"]
    recipe = edlm_joint.JointTraining(settings_of("edlm_joint", *words, "threads=1"))
    recipe.load_denoiser()
    recipe.setup()
    network = recipe.run.network
    assert isinstance(network, JointNetwork)
    own = network.denoiser.state_dict()
    assert all(torch.equal(own[name], value) for name, value in recipe.plan.start.network.state_dict().items())
    assert not network.scalar.weight.any()
    assert len(network.energy_trunk.blocks) == 2


def test_a_shared_embedding_is_trained_by_neither_network() -> None:
    sizes = {"vocab_size": 4, "max_length": 3, "hidden_size": 8, "num_layers": 1, "num_heads": 2}
    energy, denoiser = EnergyNetwork(**sizes), Transformer(**sizes)
    starts.share_embedding(energy, denoiser)
    assert not denoiser.embedding.weight.requires_grad
    assert not energy.embedding.weight.requires_grad
    assert all(each.requires_grad for name, each in denoiser.named_parameters() if not name.startswith("embedding"))
