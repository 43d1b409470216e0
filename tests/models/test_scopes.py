"""What each energy of the library says that it can weigh, its own scope first."""

from collections.abc import Callable
from typing import Any

import pytest

import edlm
from edlm.models import chain_rule, denoisers, energies
from edlm.nn.networks import EnergyNetwork, Transformer

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
