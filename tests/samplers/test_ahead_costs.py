"""The cost of texts that a denoiser drafts and an AR model puts right: what is told is what networks have read."""

import pytest
import torch
from drafting import LENGTH, MASK, PROMPTS, ar_network, close, denoiser, sampler

import edlm
from edlm.models import denoisers
from edlm.nn.networks import Transformer
from edlm.samplers import pipelines
from edlm.samplers.corrections import Autoregressive


class Reads:
    """How many tokens pass the first layer of networks, call by call."""

    def __init__(self, *of: Transformer) -> None:
        self.tokens: list[list[int]] = [[] for _ in of]
        for network, found in zip(of, self.tokens, strict=True):
            layer = network.trunk.blocks[0].attention.qkv
            layer.register_forward_hook(lambda _, inputs, __, found=found: found.append(inputs[0].shape[:-1].numel()))


@pytest.mark.parametrize("anew", [True, False])
@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_what_is_told_is_what_networks_have_read(prompt, anew) -> None:
    own, network = denoiser(2, 8), ar_network(max_length=8)
    reads = Reads(own.network, network)
    made = sampler(own, Autoregressive(network, MASK, ahead=3, context=5, anew=anew))
    for row in range(4):
        for each in reads.tokens:
            each.clear()
        info = edlm.sample(pipelines.pipeline(made, 8), 1, seed=5, prompt=prompt, first_row=row)["info"]
        denoised, verified = reads.tokens
        assert info["denoiser_tokens"].sum() == sum(denoised)
        assert set(denoised) <= {5}
        assert info["energy_tokens"].sum() == sum(verified)
        assert info["calls"].sum() == len(denoised) + len(verified)
        close(info["energy_passes"], torch.tensor([sum(verified) / 8.0], dtype=torch.float64))


def equal_laws(length: int) -> tuple[denoisers.SubsDenoiser, Transformer]:
    """A denoiser and an AR model that both know nothing but how frequent a symbol is."""
    own, network = denoiser(0, length), ar_network(max_length=length)
    with torch.no_grad():
        for head in (own.network.head, network.head):
            head.weight.zero_()
            head.bias.copy_(torch.tensor([0.3, -0.2, 0.9, 0.0]))
    return own, network


@pytest.mark.parametrize("anew", [True, False])
def test_where_both_laws_are_one_every_draft_is_kept_and_one_token_more(anew) -> None:
    own, network = equal_laws(12)
    made = sampler(own, Autoregressive(network, MASK, ahead=3, anew=anew))
    info = edlm.sample(pipelines.pipeline(made, 12), 5)["info"]
    assert (info["rounds"] == 3).all()
    assert (info["energy_tokens"] == 4 + 4 + 4).all()


def test_drafts_that_are_kept_take_fewer_passes_of_the_denoiser_and_more_rounds() -> None:
    own, network = denoiser(2, 8), ar_network(max_length=8)
    anew, kept = (
        edlm.sample(pipelines.pipeline(sampler(own, Autoregressive(network, MASK, ahead=4, anew=each)), 8), 64)["info"]
        for each in (True, False)
    )
    assert kept["denoiser_tokens"].sum() < anew["denoiser_tokens"].sum()


def test_it_is_printed_as_the_algorithm_it_is() -> None:
    lines = repr(pipelines.pipeline(sampler(), LENGTH)).splitlines()
    assert lines[0] == "speculative, autoregressive, T=1, 4 tokens"
    assert lines[1].strip().startswith("in rounds, each with a pass of the correction's network")
    assert [line.split()[1] for line in lines[2:]] == ["denoise", "propose", "settle"]
