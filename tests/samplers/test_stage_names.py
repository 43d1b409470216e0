"""The names of the stages that a sampler prints as its algorithm, and of those that a training pipeline has."""

import pytest

import edlm
from edlm.likelihood import hidden_markov
from edlm.models import denoisers, energies
from edlm.objectives import (
    baselines,
    blocks,
    chain_rule,
    contrastive,
    denoising,
    distillation,
    drafting,
    joint,
    opening,
    transition,
)
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
    causal = edlm.networks.Transformer(5, 4, 8, 1, 1, 0, causal=True)
    residual = contrastive.contrastive(denoiser, energies.residual_ar(causal, 4, 4, False), schedule)
    assert [*residual.module] == ["corrupt", "draft", "score", "log_p", "pair", "weigh", "objective"]
    assert [*contrastive.negatives(denoiser, 2).module] == ["denoise", "draw", "propose"]
    assert [*denoising.next_token(causal, 4, 4).module] == ["score", "objective"]
    assert [*drafting.next_token(causal, 4, 4, 2).module] == ["score", "objective"]
    assert [*distillation.distillation(denoiser, denoiser, schedule, 4).module] == [
        *("corrupt", "teach", "denoise", "objective"),
    ]
    ordered = denoisers.subs(edlm.networks.Transformer(5, 4, 8, 2, 1, 4), 4)
    assert [*chain_rule.denoising(ordered, schedule, (1, 2)).module] == [
        *("corrupt", "masks", "read", "score", "order", "objective"),
    ]
    two_heads = denoisers.subs(edlm.networks.JointNetwork(5, 4, 8, 1, 1, 4), 4)
    assert [*joint.contrastive(two_heads, schedule, (1, 2)).module] == [
        *("corrupt", "draft", "pair", "read", "weigh", "remain", "score", "objective"),
    ]
    in_blocks = denoisers.subs(edlm.networks.Transformer(5, 4, 8, 1, 1, 0, block_size=2), 4)
    assert [*blocks.denoising(in_blocks, schedule).module] == ["corrupt", "denoise", "score", "objective"]
    finite = schedules.log_linear(1e-3)
    for reads in (
        baselines.d3pm(denoisers.d3pm(network, 4), schedule, 2),
        baselines.score_entropy(denoisers.sedd(network, 4, finite), finite),
    ):
        assert [*reads.module] == ["corrupt", "denoise", "objective"]
