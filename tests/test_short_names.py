"""What values that hold networks print as: one short line, without the network."""

from typing import Any

import pytest
from torch import nn

from edlm.frontier.controls import Scaled
from edlm.frontier.grid import Alone
from edlm.likelihood import hidden_markov
from edlm.models import denoisers, energies
from edlm.nn.networks import EnergyNetwork, Transformer
from edlm.samplers import corrections, plans
from edlm.samplers.sampler import Sampler

SIZES = {"hidden_size": 4, "num_layers": 1, "num_heads": 1}
NETWORK = Transformer(4, 4, **SIZES)
ENERGY = corrections.OfEnergy(energies.learned(EnergyNetwork(4, 4, **SIZES)), "draft")
VALUES: dict[str, Any] = {
    "sampler": Sampler(denoisers.subs(NETWORK, mask_id=3), plans.Grid(2)),
    "sampler of a source": Sampler(hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 4)),
    "corrected sampler": Sampler(denoisers.subs(NETWORK, mask_id=3), correction=ENERGY, candidates=2),
    "energy": ENERGY,
    "scaled energy": Scaled(ENERGY, -1.0, "flipped"),
    "autoregressive model alone": Alone(NETWORK, 3),
}


@pytest.mark.parametrize("show", [repr, str])
@pytest.mark.parametrize("name", VALUES)
def test_a_value_prints_as_one_line_without_its_networks(name: str, show: Any) -> None:
    assert isinstance(NETWORK, nn.Module)
    printed = show(VALUES[name])
    assert len(printed.splitlines()) == 1
    assert "Linear" not in printed
    assert "Embedding" not in printed
