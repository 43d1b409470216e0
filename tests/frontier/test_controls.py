"""Controls of a sampler: as many passes as it has, its energy times a factor, and what each is called."""

import pytest
import torch
from builders import tiny_denoiser
from tensordict import TensorDict

import edlm
from edlm import contracts
from edlm.frontier import controls, grid
from edlm.frontier.grid import Alone, Entry
from edlm.models import energies
from edlm.samplers import expectation, plans
from edlm.samplers.corrections import ChainRule, OfEnergy
from edlm.samplers.sampler import Proposal, Sampler

DENOISER = tiny_denoiser()
PLAIN = Sampler(DENOISER, plans.Grid(4))
WEIGHED = PLAIN.replace(correction=OfEnergy(energies.zero(), called="learned", temperature=0.5), candidates=3)
IN_ORDER = PLAIN.replace(correction=ChainRule(), candidates=2)


@pytest.mark.parametrize(
    ("passes", "length", "plan"),
    [
        (1.0, 8, plans.Grid(1)),
        (1.4, 1, plans.Grid(1)),
        (1.6, 1, plans.TokensPerPass()),
        (9.0, 8, plans.TokensPerPass()),
        (1.2, 2, plans.Grid(1)),
        (1.5, 2, plans.Grid(1)),
        (1.99, 2, plans.Grid(2)),
    ],
)
def test_equal_passes_are_the_fewest_steps_that_come_to_them(passes: float, length: int, plan: plans.Plan) -> None:
    """Of two tokens T steps take 2 - 1/T passes; of one token always one."""
    assert controls.plan_for(passes, PLAIN, length) == plan


def test_as_many_as_sixteen_steps_a_token_are_tried() -> None:
    most = expectation.expected_passes(PLAIN.replace(plan=plans.Grid(32)), 2)
    assert most == pytest.approx(2.0 - 1.0 / 32)
    assert controls.plan_for(most + 0.5 - 1e-9, PLAIN, 2) == plans.Grid(32)
    assert controls.plan_for(most + 0.5 + 1e-9, PLAIN, 2) == plans.TokensPerPass()


def test_a_control_keeps_the_proposal_and_the_temperature_of_its_sampler() -> None:
    cold = WEIGHED.replace(proposal=Proposal(0.7))
    for name in ("one_particle", "zero", "flipped"):
        found = controls.control(name, cold, DENOISER, 8)
        assert (found.plan, found.proposal) == (cold.plan, cold.proposal)
        assert found.correction is not None
        assert found.correction.temperature == 0.5
        assert found.candidates == (1 if name == "one_particle" else 3)
    equal = controls.control("equal_passes", cold, DENOISER, 8)
    assert (equal.correction, equal.candidates, equal.proposal) == (None, 1, cold.proposal)


def test_what_has_no_correction_has_no_control() -> None:
    with pytest.raises(ValueError, match=r"^zero is a control of a correction, and 'plain, T=4' has none$"):
        controls.control("zero", PLAIN, DENOISER, 8)
    of_tokens = WEIGHED.replace(plan=plans.EntropyBound(0.5))
    with pytest.raises(ValueError, match=r"^equal_passes: how many passes 'sir, learned, .*' takes is known only once"):
        controls.control("equal_passes", of_tokens, DENOISER, 8)


def test_a_scaled_energy_is_told_in_its_config_and_in_its_steps() -> None:
    flipped = controls.control("flipped", IN_ORDER, DENOISER, 8)
    own = {"_component_": "edlm.frontier.controls.Scaled", "factor": -1.0, "called": "flipped chain_rule"}
    assert edlm.samplers.config(flipped)["correction"] == own
    assert flipped.correction is not None
    assert flipped.correction.name == "scaled"
    stages = [line.split()[0] for line in edlm.samplers.describe(flipped).splitlines()]
    assert "scale" in stages
    assert stages.index("scale") < stages.index("select")
    assert flipped.parts is not None
    assert (flipped.parts.order, flipped.parts.write) == (None, None)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 2.5])
def test_an_energy_is_scaled_by_its_factor(factor: float) -> None:
    parts = controls.Scaled(IN_ORDER.correction, factor, "x").parts(DENOISER)  # type: ignore[arg-type]
    found = parts.weigh["scale"](TensorDict({contracts.ENERGY: torch.tensor([[1.0, -2.0]])}))[contracts.ENERGY]
    assert found.tolist() == [[factor, -2.0 * factor]]
    assert found.dtype == torch.float64


# ---- Settings of a grid


def test_a_setting_is_known_by_its_values_and_a_component_by_its_own_words() -> None:
    ar = Alone(None, 4, 0.5)  # type: ignore[arg-type]
    assert (grid.config(Entry(ar, "")), str(ar)) == ({"ar": {"temperature": 0.5}}, "ar, temperature 0.5")
    assert str(Alone(None, 4)) == "ar"  # type: ignore[arg-type]
    assert grid.config(Entry(PLAIN, "")) == edlm.samplers.config(PLAIN)
    assert grid.config(Entry(PLAIN, "", {"a": 1})) == {**edlm.samplers.config(PLAIN), "own": {"a": 1}}


def test_a_control_of_the_same_correction_is_known_by_its_component_and_others_are_not() -> None:
    own = {"_component_": "edlm.samplers.corrections.ChainRule"}
    sweep = {
        "correction": own,
        "plan": {"name": "grid", "num_steps": 2},
        "candidates": 2,
        "controls": [*controls.CONTROLS],
    }
    found = grid.expand([sweep], grid.Sources([DENOISER], {}, None, 4), 8)
    told = {entry.role.partition(" of ")[0]: entry.own for entry in found.values()}
    assert told == {"": own, "one_particle": own, "zero": None, "flipped": own, "equal_passes": None}


@pytest.mark.parametrize(
    ("setting", "passes"),
    [
        (Alone(None, 4), 1.0),
        (PLAIN.replace(plan=plans.EntropyBound(0.5)), 8.0),
        (PLAIN.replace(plan=plans.Grid(1)), 1.0),
    ],  # type: ignore[arg-type]
)
def test_passes_that_depend_on_tokens_are_estimated_by_one_token_each(setting: grid.Setting, passes: float) -> None:
    assert grid.expected_passes(setting, 8) == passes


def test_a_method_is_called_by_what_corrects_and_a_family_by_what_selects_too() -> None:
    remasked = PLAIN.replace(remasking=edlm.samplers.remasking.Cap(0.1))
    names = [(grid.family(each), grid.method(each)) for each in (PLAIN, remasked, WEIGHED, IN_ORDER, Alone(None, 4))]  # type: ignore[arg-type]
    assert names == [
        *(("plain", "plain"), ("plain, cap 0.1", "plain"), ("sir, learned", "learned")),
        *(("sir, chain_rule", "chain rule"), ("ar", "ar")),
    ]
    assert grid.method(IN_ORDER.replace(candidates=1, selection="speculative")) == "in order"
