"""What the training of an energy refuses before it begins, and which model of a config it trains."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from edlm.data import vocabulary
from edlm.nn import starts
from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer
from edlm.training import energy
from edlm.weights import checkpoints, loading, pairs

WORDS = vocabulary.characters("abcd")
PLAIN: dict[str, Any] = {
    **{"length": None, "tokenizer": None, "trunk": "trained", "lora": None, "start_from": "denoiser", "ar": None},
    **{"embedding": "own", "parallel": "data", "precision": "float32", "scope": "draft", "dropout": 0.25},
    **{"num_energy_layers": 2, "denoiser_rate": 0.5},
}
OURS, OTHER = "a Transformer of ours", "no Transformer of ours"


@pytest.mark.parametrize(
    ("ours", "changed", "said"),
    [
        (True, {"length": 9}, f"length = 9 must be null: denoiser = 'd' holds {OURS}"),
        (True, {"tokenizer": "t"}, f"tokenizer = 't' must be null: denoiser = 'd' holds {OURS}"),
        (True, {"trunk": "frozen"}, f"trunk = 'frozen' must be trained: denoiser = 'd' holds {OURS}"),
        (True, {"lora": {"rank": 1}}, f"lora = {{'rank': 1}} must be null: denoiser = 'd' holds {OURS}"),
        (True, {"lora": {"rank": 1}, "trunk": "frozen", "ar": "big"}, None),
        (True, {"length": 9, "ar": "big"}, f"length = 9 must be null: denoiser = 'd' holds {OURS}"),
        (True, {"start_from": "scratch", "embedding": "shared", "parallel": "sharded"}, None),
        (True, {"precision": "pure_bfloat16"}, None),
        (False, {"start_from": "scratch"}, f"start_from = 'scratch' must be denoiser: denoiser = 'd' holds {OTHER}"),
        (False, {"embedding": "shared"}, f"embedding = 'shared' must be own: denoiser = 'd' holds {OTHER}"),
        (False, {"parallel": "sharded"}, f"parallel = 'sharded' must be data: denoiser = 'd' holds {OTHER}"),
        (False, {"length": 9, "tokenizer": "t", "trunk": "frozen", "lora": {"rank": 1}}, None),
        (
            False,
            {"precision": "pure_bfloat16"},
            "precision = 'pure_bfloat16' must be bfloat16 or float32: an energy over 'd' is not rounded",
        ),
    ],
)
def test_a_setting_that_is_not_read_beside_a_denoiser_is_refused(
    ours: bool, changed: dict[str, Any], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "is_large", lambda path: path == "big")
    if said is None:
        energy.check({**PLAIN, **changed}, "d", ours)
        return
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        energy.check({**PLAIN, **changed}, "d", ours)


@pytest.mark.parametrize(
    ("weights", "trained"),
    [((0, 0, 1), False), ((0, 1, 0), False), ((0, 0, 0), False), ((0, 1, 0.5), True), ((0.5, 0, 0), True)],
)
def test_something_of_a_joint_network_is_trained(weights: tuple[float, ...], trained: bool) -> None:
    settings = dict(zip(("energy_weight", "nelbo_weight", "denoiser_rate"), weights, strict=True))
    if trained:
        energy.require_trained(settings)
        return
    with pytest.raises(ValueError, match=r"^energy_weight = 0 and nelbo_weight or denoiser_rate = 0: nothing would be"):
        energy.require_trained(settings)


def start(network: Any = None, **more: Any) -> Any:
    """A denoiser that was loaded."""
    sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "conditioning_size": 4, "dropout": 0.0}
    made = Transformer(WORDS.size, 8, **sizes, pad_id=0) if network is None else network  # type: ignore[arg-type]
    own = {"network": made, "vocabulary": WORDS, "path": "d", "description": {"time_conditioning": False}, **more}
    return SimpleNamespace(**own)


def test_a_joint_network_begins_as_a_transformer_that_is_told_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    energy.require_untold(start())
    with pytest.raises(
        ValueError, match=r"^denoiser = 'd' must be one that is told no time: time_conditioning: false$"
    ):
        energy.require_untold(start(description={"time_conditioning": True}))
    with pytest.raises(
        ValueError, match=r"^denoiser = 'd' holds a Linear, and a joint network begins as a Transformer"
    ):
        energy.require_untold(start(nn.Linear(1, 1)))
    monkeypatch.setattr(loading, "is_large", lambda path: path == "big")
    energy.require_joinable("ours")
    with pytest.raises(ValueError, match=r"^denoiser = 'big' holds a large model, and a joint network begins as a"):
        energy.require_joinable("big")


@pytest.mark.parametrize(("start_from", "embedding"), [("denoiser", "own"), ("scratch", "shared"), ("scratch", "own")])
def test_an_energy_has_the_denoisers_sizes_and_a_dropout_of_its_own(
    start_from: str, embedding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []
    for name in ("start_energy_from", "share_embedding"):
        monkeypatch.setattr(starts, name, lambda *own, name=name: done.append((name, *own)))
    found = start()
    settings = {**PLAIN, "start_from": start_from, "embedding": embedding}
    network: Any = energy.EnergyPlan(found, settings).network()
    assert type(network) is EnergyNetwork
    sizes = {"vocab_size": 5, "max_length": 8, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "dropout": 0.25}
    assert network.arguments.items() >= {**sizes, "conditioning_size": 4}.items()
    assert done == [
        *([("start_energy_from", network, found.network)] if start_from == "denoiser" else []),
        *([("share_embedding", network, found.network)] if embedding == "shared" else []),
    ]


@pytest.mark.parametrize("rate", [0.0, 1e-6, 1.0])
def test_the_denoiser_of_a_joint_network_takes_gradients_if_it_has_a_rate(rate: float) -> None:
    found = start()
    network: Any = energy.JointPlan(found, {**PLAIN, "denoiser_rate": rate}).network()
    assert type(network) is JointNetwork
    assert {each.requires_grad for each in network.denoiser.parameters()} == {rate > 0.0}
    assert all(each.requires_grad for name, each in network.named_parameters() if not name.startswith("denoiser."))
    assert (network.arguments["num_energy_layers"], network.arguments["dropout"]) == (2, 0.25)
    state = network.denoiser.state_dict()
    assert all(torch.equal(state[name], value) for name, value in found.network.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"scope": "transition"}, "scope = 'transition' must be 'draft': the energy of ar = 'a' is trained"),
        ({"embedding": "shared"}, "embedding = 'shared' must be 'own': the energy of ar = 'a' is trained"),
        ({"trunk": "frozen"}, "trunk = 'frozen' is for large models: all of ar = 'a' is trained"),
        ({"lora": {"rank": 1}}, "lora = {'rank': 1} is for large models: all of ar = 'a' is trained"),
        (
            {"ar": "big", "trunk": "frozen"},
            "trunk = 'frozen' trains nothing of ar = 'big': give lora, or trunk=trained",
        ),
    ],
)
def test_a_setting_that_trains_nothing_of_an_ar_model_is_refused(
    changed: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "is_large", lambda path: path == "big")
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        energy.trained_ar({**PLAIN, "ar": "a", **changed}, start())


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4.0}])
@pytest.mark.parametrize("path", ["ours", "big"])
def test_an_ar_model_is_loaded_for_the_ids_and_the_length_of_its_denoiser(
    path: str, lora: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, found = list[Any](), start()
    held = nn.Linear(2, 2)
    ours = SimpleNamespace(network=held, description={"bos_id": 4}, weights="0a1b")
    big = SimpleNamespace(network=held, weights="ffff", form="form")
    monkeypatch.setattr(loading, "is_large", lambda name: name == "big")
    monkeypatch.setattr(loading, "autoregressive", lambda *own: asked.append(own) or ours)
    monkeypatch.setattr(energy.large, "hub_folder", lambda name: f"newest of {name}")
    monkeypatch.setattr(energy.folders, "start_causal", lambda *own: asked.append(own) or big)
    monkeypatch.setattr(pairs, "require_trainable", lambda *own: asked.append(own))
    monkeypatch.setattr(pairs, "front", lambda *own: 7 if own == ("big", found, held) else None)
    if path == "ours":
        assert energy.trained_ar({**PLAIN, "ar": path}, found) == (held, 4, "0a1b", checkpoints.OWN)
        assert asked == [("ours", torch.device("cpu")), ("ours", found, held)]
        return
    model = energy.trained_ar({**PLAIN, "ar": path, "lora": lora}, found)
    assert model == (held, 7, "ffff", "form")
    ranks = None if lora is None else (2, 4.0)
    assert asked == [("newest of big", 8, WORDS, ranks), ("big", found, held)]
    assert energy.trained_ar({**PLAIN, "ar": None}, found) is None


@pytest.mark.parametrize(
    ("scope", "block", "right"), [("draft", 4, False), ("draft", None, True), ("transition", 4, True)]
)
def test_whole_drafts_are_of_a_denoiser_that_draws_them(scope: str, block: int | None, right: bool) -> None:
    found = start(denoiser=SimpleNamespace(block_size=block))
    if right:
        assert energy.plan({**PLAIN, "scope": scope}, found) == (found, {**PLAIN, "scope": scope}, None)
        return
    with pytest.raises(
        ValueError, match=r"^scope = 'draft' must be transition: denoiser = 'd' draws block after block$"
    ):
        energy.plan({**PLAIN, "scope": scope}, found)
