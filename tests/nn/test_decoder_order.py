"""Torchtune's decoders read in order: shifted or not, with a bos in front or not, they keep the laws of our own trunk.

Of one layer a pass over the new tokens is as good as a pass for each. Of more layers what they give is still a law.
Three symbols and four positions where it is enumerated; norms of torchtune are float32, and so is the tolerance.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from oracles import all_sequences
from revealing import LENGTH, MASK, Step, fillings_of_every_set, steps
from scipy import stats
from torchtune.models import qwen2

import edlm
from edlm.contracts import ENERGY, Ordered
from edlm.likelihood import enumeration, exact
from edlm.models import chain_rule, denoisers
from edlm.models.denoisers import SubsDenoiser
from edlm.nn import decoders
from edlm.nn.decoders import DecoderNetwork
from edlm.samplers import corrections, pipelines, plans
from edlm.samplers.sampler import Sampler

WAYS = {"plain": {}, "shifted": {"shifted": True}, "after a bos": {"shifted": True, "bos_id": 1}}
every_way = pytest.mark.parametrize("way", WAYS)


def denoiser(way: str, num_layers: int = 2, vocab_size: int = MASK + 1, length: int = LENGTH) -> SubsDenoiser:
    """A random decoder with two queries to a key, float64 but for its norms."""
    torch.manual_seed(0)
    decoder: Any = qwen2.qwen2(vocab_size, num_layers, 4, 2, embed_dim=16, intermediate_dim=24, max_seq_len=length + 1)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    network = DecoderNetwork(decoders.bidirectional(decoder), length, **WAYS[way]).double().eval()
    for module in network.modules():
        if hasattr(module, "scale"):
            module.float()
    return denoisers.subs(network.requires_grad_(False), vocab_size - 1)


kept_denoiser = cache(denoiser)  # for a property: one network for all its examples


@every_way
def test_what_is_kept_changes_no_state(way: str) -> None:
    network = denoiser(way).network
    assert isinstance(network, Ordered)
    tokens = torch.randint(0, MASK, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    for positions in (None, torch.tensor([0, 5, 17])):
        states, context = network(tokens, None, positions, keep=True)
        assert torch.equal(states, network(tokens, None, positions))
        assert context.shape == (3, 2, 2, 2, LENGTH + (way == "after a bos"), 4)
    network.rows_at_once = 2
    assert torch.allclose(network(tokens, keep=True)[1], context)


@every_way
@given(steps)
def test_of_one_layer_a_pass_over_the_new_tokens_is_as_good_as_a_pass_for_each(way: str, step: Step) -> None:
    own = kept_denoiser(way, 1)
    state = step.state(own)
    found, expected = (build(own)(state)[ENERGY] for build in (chain_rule.energy, chain_rule.exact_energy))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=2e-5)


@every_way
def test_of_more_layers_it_is_a_law_whatever_the_weights(way: str) -> None:
    """`sum p_theta(x^S | x_t) e^-E = 1` over all fillings of every set, and it is not the plain law."""
    own = denoiser(way, 2, 4, 4)
    sums, moved = fillings_of_every_set(own, chain_rule.energy(own))
    assert sums == pytest.approx([1.0] * len(sums), abs=1e-5)
    assert moved > 0.1


@every_way
def test_a_token_has_no_part_in_its_own_law_and_in_those_before(way: str) -> None:
    own = denoiser(way).network
    step = Step(5, b=2, k=2)
    context = own(step.x_t, keep=True)[1]
    tokens = step.tokens(step.where)
    before = own.in_order(tokens, step.where, MASK, context, None, step.candidates[:, 0])
    for number in range(int(step.new[0].sum())):
        changed = tokens.clone()
        changed[0, 1, number] = (changed[0, 1, number] + 1) % MASK
        after = own.in_order(changed, step.where, MASK, context, None, step.candidates[:, 0])
        moved = (before - after).abs().amax(-1) > 1e-6
        assert not moved[0, 0].any()
        assert not moved[1].any()
        assert not moved[0, 1, :number].any()
        assert moved[0, 1, number : int(step.new[0].sum()) - 1].all()


@pytest.mark.slow
@every_way
@pytest.mark.parametrize("plan", [plans.LeftToRight(2), plans.Ranked(3)], ids=str)
def test_the_speculative_sampler_of_a_decoder_has_an_exact_law_and_draws_it(way: str, plan: plans.Plan) -> None:
    own, texts = denoiser(way, 2, 4, 4), all_sequences(3, 4)
    sampler = Sampler(own, plan, correction=corrections.ChainRule(), selection="speculative")
    law = (-exact.of_sampler(sampler, texts).nats * 4).exp()
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(law, enumeration.law(sampler, 4).flatten(), atol=1e-6)
    drawn = edlm.sample(pipelines.pipeline(sampler, 4), 3000, seed=1)["tokens"]
    counts = torch.bincount((drawn * torch.tensor([27, 9, 3, 1])).sum(1), minlength=81)
    likely = law > 5 / 3000
    rest = torch.tensor([float(counts[~likely].sum())]), law[~likely].sum().unsqueeze(0) * 3000
    observed, expected = torch.cat([counts[likely].double(), rest[0]]), torch.cat([law[likely] * 3000, rest[1]])
    kept = expected > 0
    found = stats.chisquare(observed[kept].numpy(), (expected[kept] * 3000 / expected[kept].sum()).numpy())
    assert found.pvalue > 1e-4
    plain = Sampler(own, plan)
    assert not torch.allclose(law, enumeration.law(plain, 4).flatten(), atol=1e-3)


def test_one_new_token_asks_for_nothing() -> None:
    own: Callable[..., Any] = denoiser("shifted").network.in_order
    assert own(torch.zeros(2, 3, 1, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64), MASK, None).shape[2] == 0
