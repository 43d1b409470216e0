"""Records of generated texts, what they are known by, and what is told of them."""

from types import SimpleNamespace
from typing import Any

import builders
import pytest
import torch

from edlm.data import vocabulary
from edlm.evaluation import generation
from edlm.models import energies
from edlm.samplers.corrections import OfEnergy
from edlm.weights import resolve
from edlm.weights.resolve import Sources

WORDS = vocabulary.characters("abcd")


def test_a_record_says_what_a_text_is_made_of_and_where_it_came_from() -> None:
    asked: list[tuple[int, int]] = []

    def draw(count: int, first: int) -> tuple[torch.Tensor, dict[str, list[Any]]]:
        asked.append((count, first))
        return torch.tensor([[0, 1], [2, 4]]), {"ess": [1.5, None], "passes": [3, 4]}

    assert generation.records(draw, WORDS, 7, "print", 2, 5) == [
        {"row": 5, "seed": 7, "settings": "print", "text": "ab", "tokens": [0, 1], "ess": 1.5, "passes": 3},
        {"row": 6, "seed": 7, "settings": "print", "text": "c_", "tokens": [2, 4], "ess": None, "passes": 4},
    ]
    assert asked == [(2, 5)]


def test_figures_are_averaged_over_the_texts_that_have_them() -> None:
    found = [
        {"denoiser_passes": 4.0, "energy_passes": 0.0, "ess": None, "row": 1},
        {"denoiser_passes": 5.0, "energy_passes": 1.0, "ess": 1.5},
    ]
    assert generation.summary(found) == [
        ("denoiser passes", "4.50", "per text"),
        ("energy passes", "0.50", "per text"),
        ("ess", "1.50", "effective particles, mean over corrected passes"),
    ]
    assert generation.summary([{"log_prob": -2.0}]) == [
        ("log prob", "-2.00", "nats per text, under the law it was drawn from")
    ]
    assert generation.summary([]) == []


SETTINGS: dict[str, Any] = {
    **{"output": "a", "num_samples": 1, "batch_size": 1, "device": "cpu", "threads": 1, "execution": "eager"},
    **{"live": False, "energy_rows": 1, "plan": False, "seed": 1, "num_steps": 8, "energy": None, "prompt": None},
}
FREE = ("output", "num_samples", "batch_size", "device", "threads", "execution", "live", "energy_rows", "plan")


def test_texts_are_known_by_all_that_changes_them_and_by_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"denoiser": "x"}
    monkeypatch.setattr(resolve, "weights_of", lambda settings: weights)
    known = generation.fingerprint(SETTINGS)
    for key in SETTINGS:
        assert (generation.fingerprint({**SETTINGS, key: "other"}) == known) is (key in FREE), key
    for key in ("energy", "sampler"):
        own = {**SETTINGS, key: {"_component_": f"{__name__}.test_figures_are_averaged_over_the_texts_that_have_them"}}
        before = generation.fingerprint(own)
        with monkeypatch.context() as changed:
            changed.setattr(generation.schemas, "sources", lambda values: {"file": "changed"})
            assert generation.fingerprint(own) != before
    weights["denoiser"] = "y"
    assert generation.fingerprint(SETTINGS) != known


@pytest.mark.parametrize(
    ("prompt", "opening", "tokens"),
    [
        (None, (), None),
        (None, (3, 0), [3, 0]),
        ("ab", (), [0, 1]),
        ("ab", (3,), [3, 0, 1]),
        ("a_b__", (), [0, 4, 1, 4, 4]),
        ("_", (), [4]),
    ],
)
def test_a_prompt_stands_behind_what_opens_every_text(
    prompt: str | None, opening: tuple[int, ...], tokens: list[int] | None
) -> None:
    found: Any = SimpleNamespace(vocabulary=WORDS, opening=opening)
    encoded = generation.prompt({"prompt": prompt}, found)
    assert (None if encoded is None else encoded.tolist()) == tokens


def test_a_component_is_offered_what_is_loaded() -> None:
    denoiser = SimpleNamespace(mask_id=4)
    found: Any = SimpleNamespace(vocabulary=WORDS, schedule="s", denoiser=denoiser)
    told = {"vocabulary": WORDS, "schedule": "s"}
    assert generation.offered(found) == {**told, "denoiser": denoiser, "mask_id": 4}
    found.denoiser = None
    assert generation.offered(found) == told


@pytest.mark.parametrize(("energy", "ar", "name"), [("folder", None, "energy"), (None, "folder", "ar")])
def test_a_sampler_calls_an_energy_by_the_key_of_its_config(energy: str | None, ar: str | None, name: str) -> None:
    """An AR model beside a denoiser is the energy `ar`."""
    denoiser = builders.tiny_denoiser(0, 4, vocab_size=5)
    found = Sources(WORDS, denoiser=denoiser, correction=OfEnergy(energies.zero(), called="loaded"))

    def asked_for(called: str) -> Any:
        sampler = {"plan": {"name": "grid", "num_steps": 2}, "correction": {"name": "energy", "called": called}}
        own = {"energy": energy, "ar": ar, "sampler": sampler, "length": None, "stride": None}
        return generation.source({**SETTINGS, **own}, found)

    draw, told = asked_for(name)
    assert draw.args[0].sampler.correction.called == name
    assert told == []
    with pytest.raises(ValueError, match=f"called = 'loaded' must be one of the energies {name}$"):
        asked_for("loaded")
