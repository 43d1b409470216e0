"""The names of the stages that a sampler prints as its algorithm, and of those that a training pipeline has."""

import pytest

import edlm
from edlm.likelihood import hidden_markov
from edlm.models import denoisers, energies
from edlm.objectives import contrastive, denoising, opening, transition
from edlm.process import schedules
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


def test_the_stages_of_training_have_names() -> None:
    network = edlm.networks.Transformer(5, 4, 8, 1, 1, 4)
    denoiser, schedule = denoisers.subs(network, 4), schedules.log_linear()
    assert [*denoising.denoising(denoiser, schedule).module] == ["corrupt", "denoise", "score", "objective"]
    assert [*opening.opened(denoiser, 3)] == ["open", "denoise"]
    drafts = contrastive.contrastive(denoiser, energies.zero(), schedule)
    steps = transition.contrastive(denoiser, energies.zero(), schedule, (2, 4))
    assert [*drafts.module] == [*steps.module] == ["corrupt", "draft", "pair", "weigh", "objective"]
