"""Networks that a config names together: how long a text all of them take, and what is read in front of one."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edlm.weights import kinds, loading, named, pairs, sources

CPU = torch.device("cpu")
LENGTHS = {"denoiser": 9, "joint": 7, "ar": 8, "baseline": 6}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Loaders in the place of those that read folders; a folder `d3pm` holds a baseline."""
    calls: list[Any] = []

    def load(name: str) -> Any:
        denoiser = SimpleNamespace(max_length=LENGTHS[name])
        own = {"network": denoiser, "vocabulary": f"ids of {name}", "schedule": f"schedule of {name}"}
        own |= {"kernel": SimpleNamespace(denoiser=denoiser), "description": {"bos_id": 3}, "denoiser": denoiser}
        return lambda *given: calls.append((name, *given)) or SimpleNamespace(**own)

    for name in ("denoiser", "joint", "baseline"):
        monkeypatch.setattr(loading, name, load(name))
    monkeypatch.setattr(loading, "autoregressive", load("ar"))
    beside = SimpleNamespace(network=SimpleNamespace(max_length=LENGTHS["ar"]), bos_id=3, front=None)
    monkeypatch.setattr(pairs, "autoregressive", lambda *given: calls.append(("beside", *given)) or beside)
    monkeypatch.setattr(kinds, "held_by", lambda path: "d3pm" if path == "d3pm" else None)
    for name in ("require_there", "require_same_vocabulary"):
        monkeypatch.setattr(named, name, calls.append)
    monkeypatch.setattr(loading, "record_of", lambda path: {"folder": path})
    monkeypatch.setattr(named, "_diffusion", lambda found, start, ar, device: named.Diffusion(start.denoiser, ar, {}))
    monkeypatch.setattr(named.joint, "energy", lambda network: "energy")
    return calls


@pytest.mark.parametrize(
    ("networks", "length", "ids"),
    [
        ({"denoiser": "a"}, 9, "denoiser"),
        ({"denoiser": "d3pm"}, 6, "baseline"),
        ({"joint": "j"}, 7, "joint"),
        ({"ar": "r"}, 8, "ar"),
        ({"denoiser": "a", "joint": "j"}, 7, "denoiser"),
        ({"denoiser": "a", "ar": "r"}, 8, "denoiser"),
        ({"denoiser": "d3pm", "ar": "r", "joint": "j"}, 6, "baseline"),
    ],
)
def test_a_text_is_as_long_as_all_of_them_take(
    networks: dict[str, str], length: int, ids: str, asked: list[Any]
) -> None:
    found = named.load({**dict.fromkeys(named.NETWORKS), **networks}, CPU)
    assert (found.max_length, found.vocabulary) == (length, f"ids of {ids}")
    assert found.records == {key: {"folder": path} for key, path in networks.items()}
    has = [found.diffusion, found.baseline, found.joint, found.ar]
    held = networks.get("denoiser")
    assert [each is not None for each in has] == [held == "a", held == "d3pm", "joint" in networks, "ar" in networks]
    assert asked[:2] == [networks, networks], "all are there, of one vocabulary"


@pytest.mark.parametrize("wrapped", [None, True, False])
def test_the_bos_of_an_ar_model_opens_its_own_texts_and_not_those_that_hold_it(
    wrapped: bool | None, asked: list[Any]
) -> None:
    found = named.load({"denoiser": "a", "ar": "r", "length": 5, "output_dir": "out"}, CPU, wrapped)
    assert found.ar is not None
    assert found.ar.bos_id == (None if wrapped else 3)
    assert found.diffusion is not None
    assert found.diffusion.schedule.bos_id is None, "its energy reads what the denoiser's texts hold"  # type: ignore[attr-defined]
    assert ("denoiser", "a", CPU, 5) in asked
    ((_, path, _, device, how, asked_for),) = [
        each for each in asked if isinstance(each, tuple) and each[0] == "beside"
    ]
    assert (path, device, how, asked_for) == ("r", CPU, sources.How(5, output="out"), wrapped)
    alone = named.load({"ar": "r", "length": 5, "output": "a/b.jsonl"}, CPU, wrapped)
    assert alone.ar == named.Autoregressive(alone.ar.network, 3)  # type: ignore[union-attr]
    assert asked[-1] == ("ar", "r", CPU, sources.How(5, output="a"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"energy": "e"}, "denoiser, joint and ar are all null: name one of them, or more"),
        ({"ar": "r", "energy": "e"}, "energy = 'e' needs a denoiser to correct"),
        ({"joint": "j", "transition": "t"}, "transition = 't' needs a denoiser to correct"),
    ],
)
def test_an_energy_needs_a_denoiser(settings: dict[str, str], said: str, asked: list[Any]) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        named.load(settings, CPU)
    assert not asked
