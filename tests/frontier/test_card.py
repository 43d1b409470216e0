"""What stands in the card of a sweep, and above its tables."""

import platform
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import edlm
from edlm.frontier import card, table
from edlm.likelihood import hidden_markov
from edlm.likelihood.estimates import Estimate
from edlm.runs import processes
from edlm.samplers import plans
from edlm.samplers.sampler import Sampler

SOURCE = hidden_markov.random_markov(0, 3)
EXACT, OTHER = (hidden_markov.denoiser(SOURCE, 4) for _ in range(2))
DRAWING = SimpleNamespace(num_samples=7, length=4, batch_size=2, seed=5, device=torch.device("cpu"), execution="eager")


@pytest.mark.parametrize(("world", "more"), [(1, {}), (2, {"processes_used": 2})])
def test_it_says_what_every_line_depends_on(world: int, more: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "world", lambda: world)
    versions = {"edlm": edlm.__version__, "torch": torch.__version__, "python": platform.python_version()}
    assert card.card({"a": 1}, torch.device("cpu"), text="b") == {
        "settings": {"a": 1},
        "text": "b",
        "versions": versions,
        "device_used": platform.machine(),
        "threads_used": torch.get_num_threads(),
        **more,
    }
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    assert card.card({}, torch.device("cuda"))["device_used"] == "H200"


@pytest.mark.parametrize(
    ("own", "judges", "warns"), [("w", "w", True), ("w", "v", False), (None, None, False), ("w", None, False)]
)
def test_a_judge_that_judges_its_own_texts_is_told(own: str | None, judges: str | None, warns: bool) -> None:
    records = {"ar": {"weights_sha256": own}} if own else {}
    drawn = "7 texts of 4 tokens per setting, 2 at once, seed 5, cpu, eager, 1 threads; judge m"
    found = card.judged(DRAWING, SimpleNamespace(records=records), "m", {"weights_sha256": judges})  # type: ignore[arg-type]
    assert found == [*([table.WARNING] if warns else []), drawn]


def entry(setting: Any, role: str | None = None) -> Any:
    return (setting, role, None)


def corrected(denoiser: Any, name: str) -> Sampler:
    found = Sampler(denoiser, plans.TokensPerPass(1))
    object.__setattr__(found, "correction", SimpleNamespace(name=name))
    return found


def test_an_oracles_table_names_the_source_and_whose_denoiser_is_learned() -> None:
    compared = SimpleNamespace(length=4, entropy=Estimate(1.23456, 0.0123, 9), bounded=[0] * 3)
    source = {"_component_": "edlm.hidden_markov.random_markov", "seed": 0, "symbols": 3}
    grid = {
        "plain": entry(Sampler(EXACT, plans.TokensPerPass(1))),
        "own": entry(corrected(EXACT, "energy")),
        "learned": entry(corrected(OTHER, "chain_rule")),
        "again": entry(corrected(OTHER, "chain_rule")),
        "joint": entry(corrected(OTHER, "joint")),
        "a control": entry(corrected(OTHER, "scaled"), "flipped"),
        "alone": entry("ar"),
    }
    first = "random_markov seed=0 symbols=3, 4 tokens, entropy 1.2346 ± 0.01 nats per token; exact denoiser"
    second = "7 texts per setting, 2 at once, seed 5, 1 threads; bounds on 3 texts of the source"
    call: Any = card.beside
    learned = ", but for chain_rule and joint, whose denoiser is learned"
    assert call(source, compared, DRAWING, grid, EXACT) == [first + learned, second]
    assert call(source, compared, DRAWING, {"own": grid["own"]}, EXACT) == [first, second]
