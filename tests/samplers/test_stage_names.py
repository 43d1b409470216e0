"""The names of the stages that a sampler prints as its algorithm, whatever it is made of."""

import pytest

from edlm.likelihood import hidden_markov
from edlm.models import energies
from edlm.samplers import corrections, pipelines, plans
from edlm.samplers.sampler import Sampler

PLAIN = Sampler(hidden_markov.denoiser(hidden_markov.random_markov(0, 3), 4), plans.Grid(2))
SAMPLERS = {
    "plain": PLAIN,
    "drafts": PLAIN.replace(correction=corrections.OfEnergy(energies.zero(), "draft"), candidates=2),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_prints_its_stages_in_order(name: str) -> None:
    corrected = ["weigh", "select"] if name != "plain" else []
    printed = str(pipelines.pipeline(SAMPLERS[name], 4)).splitlines()
    assert [line.split()[0] for line in printed[1:]] == ["denoise", "propose", *corrected, "reveal", "count"]
