"""Networks loaded by the folder that a config names: each kind as what it is, and refused as any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import randomise

from edlm.data import vocabulary
from edlm.likelihood import nelbo
from edlm.models import denoisers, joint
from edlm.models.denoisers import D3pmDenoiser, SeddDenoiser
from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer
from edlm.process import schedules
from edlm.weights import checkpoints, kinds, loading, permitted
from edlm.weights.loading import Found

CPU = torch.device("cpu")
IDS = vocabulary.characters("abcd")
SIZES = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "conditioning_size": 4}
UNTOLD = {"schedule": {"_component_": "edlm.schedules.cosine", "eps": 0.125}, "time_conditioning": False}
TOLD = {**UNTOLD, "time_conditioning": True}
LOADERS: dict[str, Callable[[str], Any]] = {
    "denoiser": lambda path: loading.denoiser(path, CPU),
    "frozen": lambda path: loading.frozen(path, CPU),
    "baseline": lambda path: loading.baseline(path, CPU),
    "joint": lambda path: loading.joint(path, CPU),
    "ar": lambda path: loading.autoregressive(path, CPU),
}


def saved(folder: Path, kind: str, **notes: Any) -> str:
    """A random network of a kind, with the notes of its training."""
    made: Any = {
        "ar": lambda: Transformer(5, 8, **{**SIZES, "conditioning_size": 0}, causal=True),
        "joint": lambda: JointNetwork(5, 8, **SIZES),
        "energy": lambda: EnergyNetwork(5, 8, **SIZES),
    }.get(kind, lambda: Transformer(5, 8, **SIZES))()
    own = {"ar": {"bos_id": 4}, "d3pm": {kinds.KEY: "d3pm", **TOLD}, "sedd": {kinds.KEY: "sedd", **TOLD}}
    checkpoints.save_network(folder, randomise(made, 3), IDS, {**own.get(kind, UNTOLD), **notes})
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        ("denoiser", {"denoiser", "frozen"}),
        ("joint", {"denoiser", "joint"}),
        ("ar", {"ar"}),
        ("d3pm", {"baseline"}),
        ("sedd", {"baseline"}),
        ("energy", set()),
    ],
)
def test_each_kind_is_taken_as_what_it_is_and_refused_by_name_as_any_other(
    kind: str, taken: set[str], tmp_path: Path
) -> None:
    path = saved(tmp_path / "network", kind)
    for name, load in LOADERS.items():
        if name in taken:
            found: Found = load(path)
            assert (found.path, found.vocabulary.size, found.weights) == (path, 5, loading.weights_of(path))
        else:
            with pytest.raises(ValueError, match=path):
                load(path)


@pytest.mark.parametrize("notes", [TOLD, UNTOLD])
def test_a_denoiser_is_the_same_law_folded_or_not_on_its_own_schedule(notes: dict[str, Any], tmp_path: Path) -> None:
    path = saved(tmp_path / "network", "denoiser", **notes)
    folded, frozen = loading.denoiser(path, CPU), loading.frozen(path, CPU)
    assert (folded.told is not None) == notes["time_conditioning"]
    assert torch.equal(folded.schedule.alpha(torch.tensor(0.5)), schedules.cosine(0.125).alpha(torch.tensor(0.5)))
    assert folded.denoiser.schedule is folded.schedule
    assert not any(parameter.requires_grad for parameter in frozen.network.parameters())
    x_0, row = torch.arange(32).reshape(4, 8) % 4, torch.arange(4)
    own = [nelbo.nelbo(found.denoiser, found.schedule, x_0, torch.tensor(1), row) for found in (folded, frozen)]
    torch.testing.assert_close(*own)


@pytest.mark.parametrize(("kind", "reading"), [("d3pm", D3pmDenoiser), ("sedd", SeddDenoiser)])
def test_a_baseline_is_read_as_what_it_was_trained_as(kind: str, reading: type, tmp_path: Path) -> None:
    assert isinstance(loading.baseline(saved(tmp_path / "network", kind), CPU).kernel.denoiser, reading)


@pytest.mark.parametrize("scope", ["draft", "transition"])
def test_an_energy_weighs_what_its_folder_says(scope: str, tmp_path: Path) -> None:
    denoiser = loading.denoiser(saved(tmp_path / "denoiser", "denoiser"), CPU).denoiser
    energy, found = loading.energy(saved(tmp_path / "energy", "energy", scope=scope), denoiser, IDS, CPU)
    assert (found, energy.scopes) == (scope, (scope,))


def test_the_energy_of_a_joint_network_is_that_of_its_denoiser_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "joint", "joint")
    own = loading.joint(path, CPU)
    energy, kind = loading.energy(path, own.denoiser, IDS, CPU)
    assert (kind, energy.scopes) == ("joint", joint.energy(own.network).scopes)
    assert any(module is own.network for module in energy.modules()), "one set of weights"
    other = denoisers.subs(randomise(JointNetwork(5, 8, **SIZES), 4), 4)
    with pytest.raises(ValueError, match=f"the energy of '{path}' corrects the denoiser of the same network alone"):
        loading.energy(path, other, IDS, CPU)


def test_what_a_folder_may_say_is_what_the_tables_hold() -> None:
    assert permitted._CHOICES[kinds.KEY] == (None, *kinds.BASELINES)
    assert {*permitted._CHOICES["scope"], "joint"} == set(kinds.ENERGIES)
