"""A sampler as a value: what it refuses to be, its name, its config, and what it looks like."""

import json
from typing import Any

import identity_parts
import pytest
import torch
from builders import tiny_denoiser, tiny_energy, tiny_network
from covering import covering
from identity_parts import MASK, SEED, Case

import edlm
from edlm import declaration, samplers
from edlm.likelihood import bounds, enumeration
from edlm.models import energies
from edlm.samplers import corrections, plans
from edlm.samplers.rounds import UntilEss
from edlm.samplers.sampler import Proposal, Sampler

CASES = [each for each in identity_parts.cases() if not each.told]
DRAFTS = corrections.OfEnergy(tiny_energy())


def ar() -> Any:
    return energies.residual_ar(tiny_network(5, causal=True, conditioning_size=0), MASK, MASK, carry_over=True)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"candidates": 8}, r"candidates = 8 needs a correction"),
        ({"candidates": UntilEss(2.0, 8)}, r"candidates = UntilEss\(.*\) needs a correction"),
        ({"selection": "imh"}, r"selection = 'imh' needs a correction"),
        ({"selection": "speculative"}, r"selection = 'speculative' needs a correction"),
        ({"window": (0.2, 0.8)}, r"window = \(0\.2, 0\.8\) needs a correction"),
        ({"window": (0.8, 0.2)}, r"window = .* must satisfy 0 <= low <= high <= 1"),
        ({"correction": DRAFTS, "candidates": 0}, r"candidates = 0 must be at least 1"),
        (
            {"correction": DRAFTS, "selection": "best"},
            r"selection = 'best' must be one of sir, imh, greedy, speculative",
        ),
        ({"correction": DRAFTS, "selection": "speculative"}, r"needs a correction with a law .* 'energy' has none"),
        ({"correction": corrections.Joint()}, r"has no energy: a joint network has two heads"),
        (
            {"correction": corrections.ChainRule(), "selection": "speculative", "candidates": 8},
            r"weighs none, so give 1",
        ),
        (
            {"correction": corrections.ChainRule(2.0), "selection": "speculative"},
            r"temperature = 2\.0 of the correction",
        ),
        ({"correction": corrections.ChainRule(factor=-1.0), "selection": "speculative"}, r"'chain_rule' has none"),
        ({"proposal": Proposal(0.0)}, r"proposal\.temperature = 0\.0 must be positive"),
        ({"proposal": Proposal(nucleus=1.5)}, r"proposal\.nucleus = 1\.5 must lie in \(0, 1\]"),
        ({"remasking": "cap"}, r"remasking = 'cap' must be None or a rule, as remasking\.Cap\(\) is"),
    ],
)
def test_a_combination_that_makes_no_sense_is_refused_with_the_reason(axes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(tiny_denoiser(), **axes)


@pytest.mark.parametrize(
    ("energy", "scope"),
    [(ar, "transition"), (tiny_energy, "transition"), (lambda: energies.scaled(ar(), 2.0), "transition")],
)
def test_an_energy_of_drafts_is_refused_as_one_of_transitions(energy: Any, scope: Any) -> None:
    with pytest.raises(ValueError, match=r"scope = 'transition': this energy weighs drafts"):
        corrections.OfEnergy(energy(), scope)
    learned = energies.learned_transition(tiny_energy().module.network)
    with pytest.raises(ValueError, match=r"scope = 'draft': this energy weighs transitions"):
        corrections.OfEnergy(learned, "draft")
    with pytest.raises(ValueError, match="weighs neither"):
        corrections.OfEnergy(energies.product(learned, tiny_energy()))


@pytest.mark.parametrize("case", covering(CASES), ids=str)
def test_a_config_gives_the_same_sampler_back_and_names_tell_samplers_apart(case: Case) -> None:
    sampler = identity_parts.sampler_of(case)
    written = json.loads(json.dumps(samplers.config(sampler)))
    known = {} if sampler.parts is None else {"own": sampler.parts.energy}
    again = samplers.from_config(written, sampler.denoiser, known)
    assert again == sampler
    assert str(again) == str(sampler)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 3}, r"sampler\.steps: unknown key; known keys: plan, proposal, "),
        ({"plan": {"name": "best"}}, r"plan\.name = 'best' must be one of .*grid, times, tokens_per_pass"),
        ({"plan": "grid"}, r"sampler\.plan = 'grid' must be a section"),
        ({"plan": {"name": "grid", "steps": 3}}, r"sampler\.plan\.steps: unknown key; did you mean 'num_steps'"),
        ({"plan": {"name": "grid", "num_steps": "3"}}, r"sampler\.plan\.num_steps = '3' must be of type int"),
        ({"plan": {"name": "grid", "num_steps": 0}}, r"sampler\.plan 'grid': .*num_steps = 0 must be at least 1"),
        ({"plan": {"name": "grid"}}, r"sampler\.plan 'grid': .*num_steps"),
        ({"plan": {"name": "times", "at": [0.5, 0.0]}}, r"sampler\.plan 'times': .*must fall from 1 to 0"),
        ({"proposal": {"temperature": 0}}, r"sampler\.proposal\.temperature = 0 must be a number above 0"),
        ({"correction": {"name": "energy", "called": "mine"}}, r"correction\.called = 'mine' must be one of"),
        (
            {"correction": {"name": "magic"}},
            r"correction\.name = 'magic' must be one of energy, chain_rule, auto",
        ),
        ({"correction": {"name": "chain_rule", "heat": 1}}, r"sampler\.correction 'chain_rule': .*heat"),
        ({"candidates": {"at_most": 8}}, r"sampler\.candidates\.ess: missing"),
        ({"candidates": 0}, r"sampler\.candidates = 0 must be a whole number of at least 1"),
        ({"selection": "best"}, r"sampler\.selection = 'best' must be one of sir, imh, greedy, speculative"),
        ({"remasking": "cap"}, r"sampler\.remasking = 'cap' must be a section"),
        ({"window": [1, 0]}, r"sampler\.window = .* must be two times"),
        ({"window": [0.2, "x"]}, r"sampler\.window = .* must be two times"),
        ({"window": [None, 1]}, r"sampler\.window = .* must be two times"),
    ],
)
def test_a_wrong_config_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        samplers.from_config(values, tiny_denoiser(), {})


def test_a_pipeline_shows_its_algorithm_and_escapes_it_for_notebooks() -> None:
    for (case,) in (each.values for each in covering(CASES) if not each.marks):
        pipeline = identity_parts.pipeline_of(case)
        lines = repr(pipeline).splitlines()
        assert lines[0] == f"{pipeline.sampler}, {pipeline.length} tokens"
        assert len(lines) <= 10
        assert pipeline._repr_html_().startswith("<pre>")
        assert "->" not in pipeline._repr_html_()


def test_a_stage_names_keys_that_have_a_shape() -> None:
    with pytest.raises(ValueError, match=r"stage 'x_t, magic -> x_s': magic must be among the keys"):
        declaration.stage("x_t, magic -> x_s", lambda x_t, magic: x_t)


@pytest.mark.parametrize("case", covering(each for each in CASES if each.plan == "grid"), ids=str)
def test_what_has_no_bound_or_no_law_says_why(case: Case) -> None:
    sampler = identity_parts.sampler_of(case)
    for missing, ask in ((bounds.missing, bound_of), (enumeration.missing, law_of)):
        reason = missing(sampler)
        if reason:
            with pytest.raises(ValueError, match=r"known|enumerated"):
                ask(sampler)


def bound_of(sampler: Sampler) -> object:
    return bounds.of_sampler(sampler, torch.zeros(2, 6, dtype=torch.int64), torch.tensor(SEED), torch.arange(2))


def law_of(sampler: Sampler) -> object:
    return enumeration.law(sampler, 2)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [plans.Grid(2), plans.TokensPerPass(1), plans.TokensPerPass(2)])
@pytest.mark.parametrize("selection", ["sir", "imh", "speculative"])
def test_the_enumerated_law_is_that_of_the_texts(plan: plans.Plan, selection: str) -> None:
    denoiser = tiny_denoiser(0, 3, vocab_size=4, max_length=3, num_layers=2)
    with torch.no_grad():
        denoiser.network.head.weight.mul_(3.0)
    k = 1 if selection == "speculative" else 3
    sampler = Sampler(denoiser, plan, correction=corrections.ChainRule(), candidates=k, selection=selection)
    law, n = enumeration.law(sampler, 3).flatten(), 4000
    tokens = edlm.sample(edlm.pipelines.pipeline(sampler, 3), n, seed=1)["tokens"]
    found = torch.bincount(tokens @ torch.tensor([9, 3, 1]), minlength=27).double() / n
    assert float(law.sum()) == pytest.approx(1.0)
    assert float(((found - law).square() / law.clamp(min=1e-9)).sum()) * n < 60.0  # chi-squared, 26 degrees
