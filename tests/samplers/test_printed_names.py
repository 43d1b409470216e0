"""What plans, rules of remasking and numbers of candidates are called where they are printed."""

from typing import Any

import pytest

import edlm
from edlm.samplers import plans as all_plans
from edlm.samplers import remasking
from edlm.samplers.sampler import UntilEss

plans = edlm.plans
NAMES: dict[str, Any] = {
    "T=8": plans.Grid(8),
    "T=8 cosine": plans.Grid(8, "cosine"),
    "T=2 at times": all_plans.Times((1.0, 0.5, 0.0)),
    "one by one": plans.TokensPerPass(),
    "4 a pass": plans.TokensPerPass(4),
    "left to right": plans.LeftToRight(),
    "left to right, 4 a pass": plans.LeftToRight(4),
    "one by one by confidence": plans.Ranked(1, "confidence"),
    "4 a pass by margin": plans.Ranked(4, "margin"),
    "entropy bound 0.5": plans.EntropyBound(0.5),
    "entropy bound 0.5 by margin": plans.EntropyBound(0.5, by="margin"),
    "entropy bound 0.5 by confidence, at most 4": plans.EntropyBound(0.5, 4, "confidence"),
    "confidence above 0.9": plans.Confidence(0.9),
    "blocks of 4, one by one": plans.blocks(4),
    "blocks of 4, 2 a pass by margin": plans.blocks(4, within=plans.Ranked(2, "margin")),
    "cap 0.1": remasking.Cap(0.1),
    "rescale 0.1": remasking.Rescale(0.1),
    "confidence": remasking.Confidence(),
    "forward_backward": remasking.ForwardBackward(),
    "k<=8 until ESS 2.5": UntilEss(2.5, 8),
}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_printed_by_its_name(name: str) -> None:
    assert str(NAMES[name]) == name


def test_a_loop_is_printed_with_its_times() -> None:
    assert str(remasking.Loop(eta=0.1, t_on=0.6, t_off=0.2, alpha_on=0.5)) == "loop 0.1 at 0.5, t in [0.2, 0.6]"
