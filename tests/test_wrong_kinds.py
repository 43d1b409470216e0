"""What is not a number is refused in one line, with the argument's name, wherever the face takes a number."""

from collections.abc import Callable
from typing import Any

import pytest
import test_argument_limits as limited
import torch

import edlm
from edlm.process import training_times
from edlm.samplers import remasking
from edlm.samplers.sampler import Proposal, Sampler, UntilEss
from edlm.training.muon import Muon

MASK, LENGTH, NETWORK = limited.MASK, limited.LENGTH, {"vocab_size": 4, "max_length": 4}
WRONG = ("1", True, None, [1.0])


def sampler(**axes: Any) -> Sampler:
    return Sampler(limited.exact, edlm.plans.Grid(2), **axes)


# What is called, and the numbers that it takes with a right value of each.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "log_linear": (edlm.schedules.log_linear, {"eps": 0.1}),
    "cosine": (edlm.schedules.cosine, {"eps": 0.1}),
    "cosine_squared": (edlm.schedules.cosine_squared, {"eps": 0.1}),
    "linear": (edlm.schedules.linear, {"sigma_min": 0.1, "sigma_max": 2.0}),
    "geometric": (edlm.schedules.geometric, {"sigma_min": 0.1, "sigma_max": 2.0}),
    "polynomial": (edlm.schedules.polynomial, {"power": 2.0}),
    "uniform_grid": (edlm.schedules.uniform_grid, {"num_steps": 2}),
    "cosine_grid": (edlm.schedules.cosine_grid, {"num_steps": 2}),
    "Grid": (edlm.plans.Grid, {"num_steps": 2}),
    "LeftToRight": (edlm.plans.LeftToRight, {"count": 2}),
    "TokensPerPass": (edlm.plans.TokensPerPass, {"count": 2}),
    "Ranked": (edlm.plans.Ranked, {"count": 2}),
    "Confidence": (edlm.plans.Confidence, {"threshold": 0.5}),
    "EntropyBound": (edlm.plans.EntropyBound, {"gamma": 0.5}),
    "blocks": (edlm.plans.blocks, {"size": 2}),
    "Cap": (remasking.Cap, {"eta": 0.1}),
    "Rescale": (remasking.Rescale, {"eta": 0.1}),
    "Muon": (
        lambda **own: Muon([torch.nn.Parameter(torch.eye(2))], **own),
        {"lr": 0.1, "adamw_lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    ),
    "Transformer": (
        lambda **own: edlm.networks.Transformer(**{**NETWORK, "conditioning_size": 0, **own}),
        {**NETWORK, "hidden_size": 4, "num_layers": 1, "num_heads": 1, "dropout": 0.0},
    ),
    "EnergyNetwork": (
        lambda **own: edlm.networks.EnergyNetwork(**{**NETWORK, "conditioning_size": 0, **own}),
        {**NETWORK, "hidden_size": 4, "num_layers": 1, "num_heads": 1, "dropout": 0.0},
    ),
    "subs": (lambda **own: edlm.denoisers.subs(limited.network, **own), {"mask_id": MASK}),
    "scaled": (lambda **own: edlm.energies.scaled(edlm.energies.zero(), **own), {"factor": 2.0}),
    "pipeline": (lambda **own: edlm.pipelines.pipeline(sampler(), **own), {"length": LENGTH}),
    "sample": (lambda **own: edlm.sample(limited.pipeline, **own), {"num_samples": 1, "seed": 0, "first_row": 0}),
    "UntilEss": (UntilEss, {"ess": 1.5, "at_most": 4, "first": 2}),
    "Proposal.temperature": (lambda temperature: sampler(proposal=Proposal(temperature)), {"temperature": 0.5}),
    "Proposal.nucleus": (lambda nucleus: sampler(proposal=Proposal(nucleus=nucleus)), {"nucleus": 0.5}),
    "law": (lambda **own: edlm.enumeration.law(sampler(), **own), {"length": 2}),
    "train_bpe": (lambda **own: edlm.vocabulary.train_bpe(["a text", "another"], **own), {"size": 260}),
}
CASES = [(name, argument) for name, (_, numbers) in CALLS.items() for argument in numbers]


CALLED = {"TokensPerPass.count": "tokens_per_pass", "UntilEss.ess": "target_ess"}  # as `generate` has them


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_what_is_no_number_is_refused_by_its_name(name: str, argument: str) -> None:
    call, numbers = CALLS[name]
    called = CALLED.get(f"{name}.{argument}", argument)
    call(**numbers)
    for value in WRONG:
        with pytest.raises(ValueError, match=rf"\b{called} = ") as error:
            call(**{**numbers, argument: value})
        assert len(str(error.value).splitlines()) == 1


def test_times_lie_in_an_interval_that_is_named() -> None:
    for low, high, said in ((-0.1, 1.0, "low = -0.1"), (1.0, 1.0, "low = 1.0"), (0.5, 0.5, "high"), (0.0, 1.1, "high")):
        with pytest.raises(ValueError, match=rf"^{said}"):
            training_times.stratified_times(torch.zeros(2), torch.arange(2), 2, low, high)
