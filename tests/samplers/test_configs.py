"""The config form of a sampler: components of one's own in it, short keys that are expanded into it."""

import ast
import textwrap
from pathlib import Path
from typing import Any

import pytest
from builders import tiny_denoiser, tiny_energy

from edlm import samplers
from edlm.samplers import configs, corrections, plans, selections
from edlm.samplers.rounds import UntilEss
from edlm.samplers.sampler import Proposal

OWN = """
    from dataclasses import dataclass
    import torch
    from tensordict.nn import TensorDictModule
    from edlm.process import particles
    from edlm.samplers import corrections, plans, selections

    @dataclass(frozen=True)
    class Halves(plans.Grid):
        name = "halves"

    def own_energy(weight: float, mask_id: int):
        def count(candidates):
            return weight * (candidates == mask_id).double().sum(-1)

        return TensorDictModule(count, ["candidates"], ["energy"])

    def own_correction(denoiser, temperature: float = 1.0):
        return corrections.ChainRule(temperature)

    def first():
        return selections.Selection("first", particles.greedy)

    def nothing():
        return 3

    def broken():
        raise KeyError("what")
"""
SHORT: dict[str, Any] = {
    "num_steps": 16,
    "tokens_per_pass": 1,
    "num_particles": 8,
    "target_ess": None,
    "selection": "sir",
    "window": [0.4, 1.0],
    "energy_temperature": 1.0,
    "temperature": 1.0,
    "nucleus": 1.0,
}
DRAFTS = corrections.OfEnergy(tiny_energy())


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with values of one's own."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(OWN), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_component_stands_wherever_a_name_may(own: str) -> None:
    values = {
        "plan": {"_component_": f"{own}.Halves", "num_steps": 3},
        "correction": {"_component_": f"{own}.own_energy", "weight": 2.0},
        "candidates": 4,
        "selection": {"_component_": f"{own}.first"},
    }
    sampler = samplers.from_config(values, tiny_denoiser())
    assert (str(sampler.plan), type(sampler.plan).__name__) == ("T=3", "Halves")
    assert isinstance(sampler.correction, corrections.OfEnergy)
    assert sampler.correction.called == "own_energy weight=2.0"
    assert sampler.chooses.name == "first"
    assert samplers.config(sampler)["plan"] == {"_component_": f"{own}.Halves", "num_steps": 3, "spacing": "uniform"}
    named = {"correction": {"name": "energy", "energy": values["correction"], "temperature": 0.5}}
    again = samplers.from_config(named, tiny_denoiser()).correction
    assert again is not None
    assert (getattr(again, "called", None), again.temperature) == ("own_energy weight=2.0", 0.5)
    own_correction = samplers.from_config({"correction": {"_component_": f"{own}.own_correction"}}, tiny_denoiser())
    assert own_correction.correction == corrections.ChainRule()


@pytest.mark.parametrize(
    ("axis", "path", "message"),
    [
        ("plan", "nowhere.Plan", r"^sampler\.plan\._component_ = 'nowhere\.Plan' must be .* named 'nowhere'\)"),
        ("plan", "OWN.Missing", r"^sampler\.plan\._component_ = .*has no attribute 'Missing'"),
        (
            "plan",
            "OWN.nothing",
            r"^sampler\.plan: .*makes no plan and no rule, but something of type int without 'draw'",
        ),
        ("correction", "OWN.nothing", r"^sampler\.correction: .*makes no correction and no energy, but .* int"),
        ("selection", "OWN.nothing", r"^sampler\.selection: .*makes no selection"),
        ("plan", "OWN.broken", r"^sampler\.plan: own_.*\.broken: KeyError: 'what'"),
        ("correction", "OWN.own_energy", r"^sampler\.correction\.weight: missing from the config"),
    ],
)
def test_a_component_that_is_missing_or_wrong_is_named(own: str, axis: str, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        samplers.from_config({axis: {"_component_": path.replace("OWN", own)}}, tiny_denoiser())
    assert len(str(error.value).splitlines()) == 1


def test_short_keys_are_the_section() -> None:
    changed = {"tokens_per_pass": 2, "num_steps": None, "target_ess": 4.0, "temperature": 0.9, "nucleus": 0.8}
    sampler, told = configs.sampler_of({**SHORT, **changed, "selection": "imh"}, tiny_denoiser(), DRAFTS)
    assert told == []
    assert (sampler.plan, sampler.proposal) == (plans.TokensPerPass(2), Proposal(0.9, 0.8))
    assert (sampler.candidates, sampler.chooses) == (UntilEss(4.0, 8), selections.IMH)
    assert (sampler.correction, sampler.window) == (DRAFTS, (0.4, 1.0))


def test_an_axis_of_the_section_takes_the_place_of_its_short_keys(own: str) -> None:
    section: dict[str, Any] = {
        "plan": {"_component_": f"{own}.Halves"},
        "proposal": {"temperature": 0.7},
        "correction": {"name": "chain_rule"},
        "candidates": {"ess": 2},
        "window": [0, 1],
    }
    settings = {**SHORT, "nucleus": 0.9, "energy_temperature": 0.5, "sampler": section}
    sampler, told = configs.sampler_of(settings, tiny_denoiser(), DRAFTS)
    assert told == []
    assert str(sampler.plan) == "T=16", "a component that takes num_steps is given the short key's"
    assert (sampler.proposal, sampler.correction) == (Proposal(0.7, 0.9), corrections.ChainRule(0.5))
    assert (sampler.candidates, sampler.window) == (UntilEss(2, 8), (0.0, 1.0))
    assert configs.sampler_of({**settings, "sampler": {"correction": None}}, tiny_denoiser(), DRAFTS)[0].parts is None


@pytest.mark.parametrize(
    ("changed", "loaded", "told"),
    [
        ({}, None, ["candidates = 8", "window = (0.4, 1.0)"]),
        ({"target_ess": 2, "window": [0, 1]}, None, ["candidates = k<=8 until ESS 2"]),
        ({"selection": "imh", "num_particles": 1, "window": [0.0, 1.0]}, None, ["selection = imh"]),
        ({"selection": "speculative"}, corrections.ChainRule(), ["candidates = 8"]),
        ({"num_particles": 1, "window": [0.0, 1.0]}, None, []),
        ({}, DRAFTS, []),
    ],
)
def test_a_setting_that_does_nothing_is_told(changed: dict[str, Any], loaded: Any, told: list[str]) -> None:
    _, lines = configs.sampler_of({**SHORT, **changed}, tiny_denoiser(), loaded)
    assert len(lines) == len(told)
    assert all(
        line.startswith(f"{start}") and " is not used: " in line for line, start in zip(lines, told, strict=True)
    )


STORIES = [
    *(f"recipes/{name}.py" for name in ("generate", "evaluate", "benchmark")),
    *(f"edlm/evaluation/{name}.py" for name in ("generation", "card", "scores", "figures")),
    *(f"edlm/benchmark/{name}.py" for name in ("methods", "cases", "comparison", "report")),
]


@pytest.mark.parametrize("file", STORIES)
def test_no_story_names_a_kind(file: str) -> None:
    """Kinds are named in their own files; `energy` and `joint` are the names of networks in a config, too."""
    kinds = {*plans.PLANS, *selections.SELECTIONS, *corrections.CORRECTIONS} - {"energy", "joint", "times"}
    code = (Path(__file__).parents[2] / file).read_text("utf-8")
    assert len(code.splitlines()) <= (150 if file.startswith("recipes") else 400)
    named = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
    assert not kinds & named
    assert not {node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)} & {"ChainRule"}
