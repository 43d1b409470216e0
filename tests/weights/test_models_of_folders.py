"""Which loader reads a folder, what it is told, and which energies stand beside a denoiser."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edlm.models import chain_rule, energies
from edlm.nn import decoders
from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer
from edlm.weights import checkpoints, hub, kinds, large, loading, named, pairs, sources
from edlm.weights.sources import How

CPU = torch.device("cpu")
IDS: Any = SimpleNamespace(mask_id=33, pad_id=5, bos_id=7, size=41, fingerprint="0a")


def called(*given: Any, **more: Any) -> Any:
    """What a stand-in was given."""
    return given, more


@pytest.mark.parametrize(
    ("description", "baseline", "joint", "kind", "cls"),
    [
        ({"class": "EnergyNetwork", "arguments": {}}, None, False, "draft", EnergyNetwork),
        ({"class": "EnergyNetwork", "arguments": {}, "scope": "transition"}, None, False, "transition", EnergyNetwork),
        ({"class": "Transformer", "arguments": {"causal": True}}, None, False, "ar", Transformer),
        ({"class": "Transformer", "arguments": {}}, None, False, "subs", Transformer),
        ({"class": "Transformer", "arguments": {"causal": False}}, "sedd", False, "sedd", Transformer),
        ({"class": "JointNetwork", "arguments": {}}, None, True, "subs", JointNetwork),
    ],
)
def test_a_network_is_loaded_as_its_folder_says_and_as_it_was_saved(
    description: dict[str, Any],
    baseline: str | None,
    joint: bool,
    kind: str,
    cls: type,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "is_large", lambda path: False)
    monkeypatch.setattr(loading, "_description_of", lambda path: description)
    monkeypatch.setattr(loading, "_network", called)
    monkeypatch.setattr(loading, "_schedule_of", lambda path: f"schedule of {path}")
    monkeypatch.setattr(loading, "is_joint", lambda path: joint)
    monkeypatch.setattr(kinds, "held_by", lambda path: baseline)
    monkeypatch.setattr(checkpoints, "load_vocabulary_of", lambda path: IDS)
    found: Any = loading.as_saved("folder", CPU)
    assert (found.kind, found.path, found.vocabulary, found.description) == (kind, "folder", IDS, description)
    assert found.network == ((cls, "folder", None, CPU), {"fold": False})
    assert (found.schedule == "schedule of folder") == (kind in ("subs", "sedd"))


@pytest.mark.parametrize("length", [None, 12])
@pytest.mark.parametrize(
    ("kind", "adapted", "causal"), [("llama", None, True), ("llama", {}, False), ("bert", None, False)]
)
def test_a_large_folder_is_a_causal_model_unless_somebody_made_a_denoiser_of_it(
    length: int | None, kind: str, adapted: Any, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "is_large", lambda path: True)
    monkeypatch.setattr(large, "hub_folder", lambda path: Path("newest"))
    monkeypatch.setattr(large, "adapted_by", lambda folder: adapted if folder == Path("newest") else "unasked")
    monkeypatch.setattr(loading.whole, "read_json", lambda file: {"model_type": kind})
    monkeypatch.setattr(loading, "autoregressive", lambda *own: ("ar", *own))
    monkeypatch.setattr(loading, "denoiser", lambda *own: ("denoiser", *own))
    expected = ("ar", "big", CPU, How(length)) if causal else ("denoiser", "big", CPU, length)
    assert loading.as_saved("big", CPU, length) == expected


def test_a_large_ar_model_has_a_mask_behind_its_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(loading, "is_large", lambda path: True)
    monkeypatch.setattr(sources, "folder_of", lambda path: Path("folder"))
    monkeypatch.setattr(large, "load_vocabulary", lambda *own, add_mask: calls.append((*own, add_mask)) or IDS)
    monkeypatch.setattr(sources, "read", lambda *own: calls.append(own) or "blueprint")
    network = SimpleNamespace(to=lambda device: ("on", device))
    monkeypatch.setattr(decoders, "load", lambda *own: calls.append(own) or network)
    how = How(9, 4, torch.bfloat16, "t", "out")
    found: Any = loading.autoregressive("big", CPU, how)
    assert calls == [(Path("folder"), "t", True), ("big", how, 41), ("blueprint", torch.bfloat16)]
    assert (found.kind, found.path, found.network, found.vocabulary) == ("ar", "folder", ("on", CPU), IDS)
    assert found.description == {"bos_id": 7}


class InOrder(torch.nn.Module):
    """A network that is read in order, by its name alone."""


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("ar", [None, named.Autoregressive("ar net", 3)])
def test_a_denoiser_has_every_energy_that_a_config_names(
    ordered: bool, ar: named.Autoregressive | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named, "Ordered", InOrder)
    monkeypatch.setattr(chain_rule, "energy", lambda denoiser: ("in order", denoiser))
    monkeypatch.setattr(energies, "residual_ar", called)
    monkeypatch.setattr(loading, "is_joint", lambda path: path == "joint")
    monkeypatch.setattr(loading, "energy", lambda *own: (own, "draft" if own[0] == "e" else "transition"))
    denoiser = SimpleNamespace(network=InOrder() if ordered else None)
    start: Any = SimpleNamespace(denoiser=denoiser, vocabulary=IDS, pad_id=6, path="d", schedule="schedule")
    found = named._diffusion({"energy": "e", "transition": "t", "ar": "r"}, start, ar, CPU)
    expected: dict[str, Any] = {"chain_rule": ("in order", denoiser)} if ordered else {}
    expected |= {key: (path, denoiser, IDS, CPU, "d") for key, path in (("energy", "e"), ("transition", "t"))}
    if ar is not None:
        expected["ar, posterior"] = (("ar net", 33, 3, False, 6), {})
        expected["ar, carry_over"] = (("ar net", 33, 3, True, 6), {})
    assert found == (denoiser, "schedule", expected)
    assert list(found.energies) == list(expected)
    with pytest.raises(ValueError, match=r"^transition = 'e' weighs drafts and must weigh transitions: energy=e$"):
        named._diffusion({"transition": "e"}, start, None, CPU)
    for key in ("energy", "transition"):
        with pytest.raises(ValueError, match=rf"^{key} = 'joint' holds a joint network, with its own denoiser: joint="):
            named._diffusion({key: "joint"}, start, None, CPU)


# ---- Models by name


def model(kind: str, path: str = "own", **more: Any) -> Any:
    network = torch.nn.Linear(1, 1)
    network.max_length = 9  # type: ignore[assignment]
    own = {"kind": kind, "path": path, "network": network, "vocabulary": IDS, "description": {"bos_id": 3}}
    own |= {"schedule": "schedule", "told": None, "pad_id": 6}
    return hub.Model(SimpleNamespace(**own | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [False, True])
def test_an_ar_models_energy_reads_its_bos_and_leaves_padding_out(form: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energies, "residual_ar", called)
    monkeypatch.setattr(loading, "is_large", lambda path: path == "big")
    beside = pairs.Beside("beside", 7, opened=False)
    asked: list[Any] = []
    monkeypatch.setattr(pairs, "autoregressive", lambda *own: asked.append(own) or beside)
    own, of = model("ar"), model("subs", "d")
    assert own.energy(of, carry_over=form) == ((own.network, 33, 3, form, 5), {})
    for one, other in ((model("ar", "big"), of), (own, model("subs", "big"))):
        assert one.energy(other, carry_over=form) == (("beside", 33, 7, form, 6), {})
        assert asked[-1] == (one.found.path, other.found, CPU, How(9))
    different = model("subs", "d", vocabulary=SimpleNamespace(fingerprint="1b"))
    with pytest.raises(ValueError, match=r"^own and d were trained on different vocabularies$"):
        own.energy(different)
    with pytest.raises(
        ValueError, match=r"^own holds a model of kind 'subs', not 'ar' or 'draft' or 'transition' or 'j"
    ):
        model("subs").energy(of)


@pytest.mark.parametrize("kind", ["draft", "transition"])
@pytest.mark.parametrize("told", [None, "schedule"])
def test_a_learned_energy_is_built_for_what_its_denoiser_is_told(
    kind: str, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = SimpleNamespace(build=called)
    monkeypatch.setitem(kinds.ENERGIES, kind, built)  # type: ignore[misc]
    monkeypatch.setattr(hub.folding, "fold_conditioning", lambda network: ("folded", network))
    own = model(kind, description={"class": "EnergyNetwork"})
    network = own.network if told else ("folded", own.network)
    assert own.energy(model("subs", "d", told=told)) == ((network, told, 5), {})


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("big", [True, False])
def test_a_name_is_downloaded_unless_it_is_a_folder(
    there: bool, big: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    name = str(tmp_path) if there else "user/model"
    network = torch.nn.Linear(1, 1)
    found = SimpleNamespace(kind="ar", network=network, vocabulary=IDS, description={}, schedule=None, path=name)
    monkeypatch.setattr(hub, "snapshot_download", lambda *own, **more: asked.append((own, more)) or "cached")
    monkeypatch.setattr(loading, "as_saved", lambda *own: asked.append(own) or found)
    monkeypatch.setattr(loading, "is_large", lambda path: big)
    options = {"revision": "r", "cache_dir": "c", "token": "t", "force_download": True, "local_files_only": True}
    made = hub.from_pretrained(name, device="cpu", length=9, **options)  # type: ignore[arg-type]
    download = [((name,), {"allow_patterns": hub.DOWNLOADED, **options})]
    assert asked == [*([] if there else download), (name if there else "cached", CPU, 9)]
    assert made.found is found
    assert {each.requires_grad for each in network.parameters()} == {not big}
