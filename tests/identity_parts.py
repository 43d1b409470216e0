"""The one layer between the record of `test_identity` and the library: what builds its samplers, bounds and losses.

Where the library's interface changes this file changes, and the record never does.
"""

from typing import Any, NamedTuple

import torch
from builders import randomise, tiny_energy, tiny_network
from tensordict import TensorDict
from torch import Tensor

import edlm
from edlm import contracts
from edlm.likelihood import bounds
from edlm.models import chain_rule, denoisers, energies, joint
from edlm.models.denoisers import SubsDenoiser
from edlm.objectives import chain_rule as chain_rule_objectives
from edlm.objectives import contrastive, denoising, transition
from edlm.objectives import joint as joint_objectives
from edlm.process import schedules
from edlm.samplers import corrections, pipelines, plans
from edlm.samplers.pipelines import Pipeline
from edlm.samplers.sampler import Proposal, Sampler, UntilEss

MASK, LENGTH, ROWS = 4, 6, 3
SEED = 11
ENERGIES = ("draft", "posterior", "carry_over", "transition", "chain_rule", "joint")
PLANS = ("grid", "first hitting", "two a pass")
TARGET_ESS, AT_MOST = 1.8, 5
_TOLD = schedules.linear()
_SCHEDULE = schedules.log_linear(1e-3)


class Case(NamedTuple):
    """One sampler. correction: None or one of `ENERGIES`; candidates: a number, None: until the ESS is `TARGET_ESS`.

    changed: a window, a proposal and an energy with other temperatures, a nucleus and a prompt; told: the denoiser is
    told the time.
    """

    correction: str | None
    candidates: int | None
    selection: str
    plan: str
    changed: bool = False
    told: bool = False

    def __str__(self) -> str:
        how = ["changed"] * self.changed + ["told"] * self.told
        return ", ".join(map(str, [*self[:4], *how]))


def cases() -> list[Case]:
    """Every combination of correction, candidates, selection and plan, as it stands and with all else changed."""
    found = []
    for plan in PLANS:
        for changed in (False, True):
            found.append(Case(None, 1, "sir", plan, changed))
            found.append(Case("chain_rule", 1, "speculative", plan, changed))
            found += [Case(each, 1, "sir", plan, changed) for each in ENERGIES]
            found += [
                Case(each, count, selection, plan, changed)
                for each in ENERGIES
                for count in (3, None)
                for selection in ("sir", "imh", "greedy")
            ]
    told = [each for each in found if each.plan == "grid" and each.selection in ("sir", "speculative")]
    return found + [each._replace(told=True) for each in told if each.correction != "joint" and each.candidates != 1]


def denoiser_of(case: Case) -> SubsDenoiser:
    """The denoiser, of a joint network where that corrects."""
    if case.correction == "joint":
        sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2}
        network = randomise(edlm.networks.JointNetwork(MASK + 1, 8, **sizes), 3).double()
        with torch.no_grad():
            network.scalar.weight.mul_(60.0)
        return denoisers.subs(network, MASK, schedule=_SCHEDULE)
    found = denoisers.subs(tiny_network(0, num_layers=2), MASK, _TOLD if case.told else None, schedule_of(case))
    if case.correction == "chain_rule":
        with torch.no_grad():  # so that what is new matters to what is new beside it
            for block in found.network.trunk.blocks:
                block.attention.qkv.weight.mul_(4.0)
            found.network.head.weight.mul_(20.0)
    return found


def energy_of(case: Case, denoiser: SubsDenoiser) -> Any:
    """The energy of a correction by itself, as bounds take it."""
    if case.correction in ("posterior", "carry_over"):
        ar = tiny_network(5, causal=True, conditioning_size=0)
        return energies.residual_ar(ar, MASK, MASK, case.correction == "carry_over")
    if case.correction == "chain_rule":
        return chain_rule.energy(denoiser)
    if case.correction == "joint":
        return joint.energy(denoiser.network)
    own = tiny_energy(1)
    if case.correction == "draft":
        return own
    network = own.module.network
    with torch.no_grad():
        network.scalar.weight.mul_(0.2)
    return energies.learned_transition(network)


def schedule_of(case: Case) -> schedules.Schedule:
    """The schedule of the masking process."""
    return _TOLD if case.told else _SCHEDULE


def pipeline_of(case: Case) -> Pipeline:
    """The sampler with its length."""
    return pipelines.pipeline(sampler_of(case), LENGTH)


def sampler_of(case: Case) -> Sampler:
    """The sampler."""
    denoiser = denoiser_of(case)
    heat, nucleus = (0.8, 0.9) if case.changed else (1.0, 1.0)
    window = (0.3, 0.9) if case.changed else (0.0, 1.0)
    plan = {"grid": plans.Grid(3), "first hitting": plans.TokensPerPass(1), "two a pass": plans.TokensPerPass(2)}
    sampler = Sampler(denoiser, plan[case.plan], Proposal(heat, nucleus))
    if case.correction is not None:
        temperature = 0.7 if case.changed and case.selection != "speculative" else 1.0
        sampler = sampler.replace(
            correction=correction_of(case, denoiser, temperature),
            candidates=UntilEss(TARGET_ESS, AT_MOST) if case.candidates is None else case.candidates,
            selection=case.selection,
            window=window,
        )
    return sampler


def correction_of(case: Case, denoiser: SubsDenoiser, temperature: float) -> Any:
    """The correction of a case."""
    if case.correction == "joint":
        return corrections.Joint(temperature)
    if case.correction == "chain_rule":
        return corrections.ChainRule(temperature)
    return corrections.OfEnergy(energy_of(case, denoiser), temperature=temperature)


def info_of(case: Case, info: TensorDict) -> dict[str, Tensor]:
    """What is said of passes, as 0.1.0 named it: `particles` of speculation were its rounds."""
    found = dict(info.items())
    if case.selection == "speculative":
        found["particles"] = info["rounds"]
    return found


def bound_of(case: Case, x_0: Tensor, num_passes: int | None = None) -> bounds.Bound:
    """One draw of the bound that a sampler has; there is none of greedy choice, of IMH and of rounds."""
    scored = torch.ones_like(x_0, dtype=torch.bool)
    scored[:, :2] = not case.changed
    sampler = sampler_of(case).replace(proposal=Proposal())
    if case.plan == "two a pass":  # of which 0.1.0 had no bound: what it said was that of one position a pass
        sampler = sampler.replace(plan=plans.TokensPerPass(1))
    keys = torch.tensor(SEED), torch.arange(len(x_0))
    return bounds.of_sampler(sampler, x_0, *keys, num_completions=2, num_passes=num_passes, scored=scored)


def paper_of(case: Case, x_0: Tensor) -> bounds.PaperNelbo:
    """The paper's figure of an energy of drafts."""
    denoiser = denoiser_of(case)
    keys = torch.tensor(SEED), torch.arange(len(x_0))
    energy = energy_of(case, denoiser)
    return bounds.paper_nelbo(denoiser, energy, schedule_of(case), x_0, *keys, num_particles=4)


def losses_of(x_0: Tensor) -> dict[str, Tensor]:
    """What every training pipeline of a sampler's networks says of a batch."""
    pad, rows = 0, len(x_0)
    keys = {"seed": torch.tensor(SEED), "row": torch.arange(rows), "step": torch.tensor(3)}
    batch = TensorDict({contracts.X_0: x_0, **keys, contracts.NUM_ROWS: torch.tensor(rows)})
    plain, two_heads = (denoiser_of(Case(each, 1, "sir", "grid")) for each in (None, "joint"))
    draft, revealed = (energy_of(Case(each, 1, "sir", "grid"), plain) for each in ("draft", "transition"))
    steps = (2, 5)
    pipelines_ = {
        "denoising": denoising.denoising(plain, _SCHEDULE, pad_id=pad),
        "contrastive": contrastive.contrastive(plain, draft, _SCHEDULE, 2, pad_id=pad),
        "transition": transition.contrastive(plain, revealed, _SCHEDULE, steps, 2, pad_id=pad),
        "chain_rule": chain_rule_objectives.denoising(plain, _SCHEDULE, steps, pad_id=pad),
        "joint": joint_objectives.contrastive(two_heads, _SCHEDULE, steps, 2, pad_id=pad),
    }
    return {name: pipeline(batch.clone())[contracts.LOSS].detach() for name, pipeline in pipelines_.items()}
