"""What each objective of a denoiser hands to its loss and its bound, and what a plan builds a network with."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from edlm.data import vocabulary
from edlm.data.pieces import Blocks
from edlm.likelihood import baselines as bounds
from edlm.likelihood import nelbo
from edlm.objectives import baselines, blocks, denoising
from edlm.objectives import chain_rule as in_order
from edlm.process import schedules
from edlm.training import continuation, denoiser, kinds, texts
from edlm.weights import own

SCHEDULE = schedules.cosine()
WORDS = vocabulary.characters("abcd", specials=["pad"])
SETTINGS: dict[str, Any] = {
    **{"time_low": 0.25, "loss_steps": 7, "time_high": 0.75, "time_conditioning": True, "length": 8, "seed": 3},
    **{"network": {"_component_": "a.network"}, "padding": "ignored", "block": None},
}


def called(*given: Any, **more: Any) -> Any:
    """What a stand-in was given."""
    return given, more


@pytest.fixture(autouse=True)
def losses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, names in {denoising: ["denoising"], in_order: ["denoising"], blocks: ["denoising"]}.items():
        for name in names:
            monkeypatch.setattr(module, name, called)
    for name in ("d3pm", "score_entropy"):
        monkeypatch.setattr(baselines, name, called)


PLAIN = {"noise_levels": "by_time", "loss_weights": "nelbo"}
OTHERS = {"noise_levels": "by_count", "loss_weights": "even"}


@pytest.mark.parametrize(
    ("name", "changed", "given", "more"),
    [
        ("mdlm", {}, ("d", SCHEDULE, 0.25, 9), PLAIN),
        ("mdlm", OTHERS, ("d", SCHEDULE, 0.25, 9), OTHERS),
        ("mdlm", {"noise_levels": "bell"}, ("d", SCHEDULE, 0.25, 9), {**PLAIN, "noise_levels": "bell"}),
        ("chain_rule", {"loss_steps": [2, 8]}, ("d", SCHEDULE, (2, 8), 9), {}),
        ("blocks", {}, ("d", SCHEDULE, (0.25, 0.75)), {"pad_id": 9, **PLAIN}),
        ("blocks", OTHERS, ("d", SCHEDULE, (0.25, 0.75)), {"pad_id": 9, **OTHERS}),
        ("d3pm", {}, ("d", SCHEDULE, 7, 9), {}),
        ("sedd", {}, ("d", SCHEDULE, 0.25, 9), {}),
    ],
)
def test_a_loss_has_the_times_the_steps_and_the_padding_of_its_config(
    name: str, changed: dict[str, Any], given: tuple[Any, ...], more: dict[str, Any]
) -> None:
    assert kinds.OBJECTIVES[name].stages("d", SCHEDULE, {**SETTINGS, **changed}, 9) == (given, more)


def test_blocks_have_all_times_where_a_config_names_none() -> None:
    plain = {key: value for key, value in SETTINGS.items() if key != "time_high"}
    given, _ = kinds.OBJECTIVES["blocks"].stages("d", SCHEDULE, plain, None)
    assert given[2] == (0.25, 1.0)


@pytest.mark.parametrize("name", kinds.OBJECTIVES)
def test_a_bound_is_of_the_kind_of_its_objective(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nelbo, "nelbo", called)
    monkeypatch.setattr(bounds, "t_step_nelbo", called)
    monkeypatch.setattr(bounds, "score_entropy", called)
    monkeypatch.setattr(kinds.baselines, "d3pm", lambda *own: ("kernel", *own))
    found = kinds.OBJECTIVES[name].bound("d", SCHEDULE, SETTINGS)("x", "seed", "row", "scored")  # type: ignore[arg-type]
    of_steps = ("kernel", "d", SCHEDULE), "x", "seed", "row", 7, "scored"
    assert found == (of_steps if name == "d3pm" else ("d", SCHEDULE, "x", "seed", "row", "scored"), {})


def plan(name: str = "mdlm", **changed: Any) -> denoiser.Plan:
    return denoiser.Plan(kinds.OBJECTIVES[name], SCHEDULE, WORDS, {**SETTINGS, **changed})


@pytest.mark.parametrize(
    ("changed", "more"),
    [
        ({}, {"pad_id": WORDS.pad_id}),
        ({"block": 4}, {"pad_id": WORDS.pad_id, "block_size": 4}),
        ({"padding": "read"}, {}),
        ({"start_from": "folder"}, {"pad_id": WORDS.pad_id}),
    ],
)
def test_a_network_is_built_for_the_ids_the_length_the_blocks_and_the_padding(
    changed: dict[str, Any], more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    built, adopted, taken = nn.Linear(2, 2), list[Any](), list[Any]()
    monkeypatch.setattr(denoiser.schemas, "build", lambda *own, **supplied: adopted.append((own, supplied)) or built)
    monkeypatch.setattr(own, "adopt", lambda *given: adopted.append(given) or "adopted")
    monkeypatch.setattr(continuation, "take_up", lambda *given: taken.append(given))
    rows = torch.full((2, 8), WORDS.pad_id or 0)
    assert plan(**changed).network(Blocks(rows, rows, rows)) == "adopted"
    supplied = {"vocab_size": WORDS.size, "max_length": 8, **more}
    section = SETTINGS["network"]
    assert adopted == [((section, "network"), supplied), (built, section, supplied)]
    assert taken == [("adopted", changed.get("start_from"), WORDS)]


@pytest.mark.parametrize("name", kinds.OBJECTIVES)
@pytest.mark.parametrize("told", [True, False])
def test_a_network_is_read_trained_and_drawn_from_as_its_kind(
    name: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = SimpleNamespace(build=lambda *own: ("read", *own), kernel=None)
    if name in ("d3pm", "sedd"):
        reading.kernel = lambda *own: ("kernel", *own)
    monkeypatch.setattr(denoiser, "READINGS", {kinds.OBJECTIVES[name].reading: reading})
    monkeypatch.setattr(texts, "baseline_texts", called)
    monkeypatch.setattr(texts, "denoiser_texts", called)
    made = plan(name, time_conditioning=told, loss_steps=[2, 8] if name == "chain_rule" else 7)
    read = ("read", "net", WORDS.mask_id, SCHEDULE if told else None)
    assert made.denoiser("net") == read  # type: ignore[arg-type]
    (first, second, *_), more = made.stages("net")  # type: ignore[arg-type]
    assert (first, second) == (read, SCHEDULE)
    given, _ = made.stages("net")  # type: ignore[arg-type]
    assert WORDS.pad_id in (*given, more.get("pad_id"))
    kernel = read if reading.kernel is None else ("kernel", read, SCHEDULE)
    assert made.texts("net") == ((kernel, WORDS, 3), {})  # type: ignore[arg-type]
