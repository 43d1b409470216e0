"""What each energy of the library says that it can weigh, its own scope first."""

from collections.abc import Callable
from typing import Any

import pytest

import edlm
from edlm import costs
from edlm.contracts import Reads
from edlm.models import chain_rule, denoisers, energies, joint
from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer

NETWORK = Transformer(5, 4, 8, 1, 1, 4)
SCORES = EnergyNetwork(5, 4, 8, 1, 1, 4)
ENERGIES: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "chain rule": (lambda: chain_rule.energy(denoisers.subs(NETWORK, 4)), ("transition", "draft")),
    "learned": (lambda: energies.learned(SCORES), ("draft",)),
    "learned of transitions": (lambda: energies.learned_transition(SCORES), ("transition",)),
    "zero": (edlm.energies.zero, ("draft", "transition")),
}


@pytest.mark.parametrize("name", ENERGIES)
def test_it_says_what_it_can_weigh(name: str) -> None:
    build, scopes = ENERGIES[name]
    assert energies.scopes_of(build()) == scopes


AR = Transformer(5, 4, 8, 1, 1, 0, causal=True)
READS: dict[str, tuple[Callable[[], Any], tuple[str, ...], Reads]] = {  # with the scopes of those that are not above
    "zero": (energies.zero, ("draft", "transition"), Reads(candidates=0, calls=0)),
    "learned": (lambda: energies.learned(SCORES), ("draft",), Reads(candidates=1)),
    "residual": (lambda: energies.residual_ar(AR, 4, 4, carry_over=False), ("draft",), Reads(candidates=1)),
    "ordered": (lambda: energies.ordered_ar(AR, 4, 4), ("draft", "transition"), Reads(candidates=1)),
    "chain rule": (
        lambda: chain_rule.energy(denoisers.subs(NETWORK, 4)),
        ("transition", "draft"),
        Reads(texts=1, candidates=0, new=2, calls=2),
    ),
    "chain rule, token by token": (
        lambda: chain_rule.exact_energy(denoisers.subs(NETWORK, 4)),
        ("transition", "draft"),
        Reads(candidates=0, in_turn=1),
    ),
    "joint": (
        lambda: joint.energy(JointNetwork(5, 4, 8, 1, 1, 4)),
        ("transition", "draft"),
        Reads(texts=1, candidates=1, calls=2),
    ),
    "scaled": (lambda: energies.scaled(energies.learned(SCORES), 2.0), ("draft",), Reads(candidates=1)),
    "product": (
        lambda: energies.product(energies.learned(SCORES), energies.ordered_ar(AR, 4, 4), energies.zero()),
        ("draft",),
        Reads(candidates=2, calls=2),
    ),
    "product of nothing in common": (
        lambda: energies.product(energies.learned(SCORES), energies.learned_transition(SCORES)),
        (),
        Reads(candidates=2, calls=2),
    ),
}


@pytest.mark.parametrize("name", READS)
def test_it_says_what_it_reads(name: str) -> None:
    build, scopes, reads = READS[name]
    energy = build()
    assert energies.scopes_of(energy) == scopes
    assert costs.of_energy(energy) == reads
