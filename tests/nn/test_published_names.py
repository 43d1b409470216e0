"""The published names of weights: ours come back from them as they were, and anything else is refused by name."""

import pytest
import torch
from published_files import kinds, small

from edlm.weights import published

LOADERS = {
    "denoiser": published.load_denoiser,
    "autoregressive": published.load_autoregressive,
    "energy": published.load_energy,
}


@kinds
def test_loading_is_the_way_back_of_exporting(kind):
    network = small(kind)
    state = published.export(network)
    again = LOADERS[kind](state, num_heads=3, max_length=16)
    assert again.arguments == network.arguments
    assert not again.training
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    back = published.export(again)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())


@kinds
def test_names_are_the_published_ones(kind):
    block = ["norm1.weight", "attn_qkv.weight", "attn_out.weight", "norm2.weight"]
    block += [f"mlp.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")]
    rest = ["vocab_embed.embedding", "rotary_emb.inv_freq", "output_layer.norm_final.weight"]
    rest += ["output_layer.linear.weight", "output_layer.linear.bias"]
    if kind != "autoregressive":
        block += ["adaLN_modulation.weight", "adaLN_modulation.bias"]
        rest += [f"sigma_map.mlp.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")]
        rest += ["output_layer.adaLN_modulation.weight", "output_layer.adaLN_modulation.bias"]
    if kind == "energy":
        rest += ["vocab_proj.weight", "vocab_proj.bias", "energy_head.0.weight", "energy_head.0.bias"]
        rest += ["energy_head.2.weight"]
    assert published.export(small(kind)).keys() == {*rest, *(f"blocks.{i}.{name}" for i in range(2) for name in block)}


def test_exporting_copies():
    network = small("denoiser")
    published.export(network)["vocab_embed.embedding"].zero_()
    assert network.embedding.weight.abs().min() > 0


def test_loading_copies_and_keeps_the_precision():
    state = {name: value.double() for name, value in published.export(small("denoiser")).items()}
    network = published.load_denoiser(state, 3)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}
    state["vocab_embed.embedding"].zero_()
    assert network.embedding.weight.abs().min() > 0


@kinds
def test_a_missing_and_an_unknown_name_are_refused(kind):
    state = published.export(small(kind))
    for name in state.keys() - {"rotary_emb.inv_freq"}:
        with pytest.raises(ValueError, match=f"{name} is missing"):
            LOADERS[kind]({key: value for key, value in state.items() if key != name}, 3)
    with pytest.raises(ValueError, match=r"backbone\.x is not known"):
        LOADERS[kind]({**state, "backbone.x": torch.zeros(1)}, 3)


def test_one_kind_of_network_is_not_loaded_as_another():
    for kind, load in LOADERS.items():
        for other in LOADERS.keys() - {kind}:
            with pytest.raises(ValueError, match=r"is not known|is missing"):
                load(published.export(small(other)), 3)


def test_a_wrong_shape_is_refused_by_name():
    state = published.export(small("denoiser"))
    state["blocks.1.mlp.0.weight"] = state["blocks.1.mlp.0.weight"][:-1]
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.0\.weight has shape \(47, 12\), not \(48, 12\)"):
        published.load_denoiser(state, 3)


def test_the_rotary_buffer_is_accepted_checked_or_left_out():
    state = published.export(small("denoiser"))
    frequencies = state.pop("rotary_emb.inv_freq")
    published.load_denoiser(state, 3)
    published.load_denoiser({**state, "rotary_emb.inv_freq": frequencies.bfloat16()}, 3)
    for wrong in (1.1 * frequencies, frequencies[:1], torch.cat([frequencies, frequencies])):
        with pytest.raises(ValueError, match=r"rotary_emb\.inv_freq"):
            published.load_denoiser({**state, "rotary_emb.inv_freq": wrong}, 3)
    with pytest.raises(ValueError, match="heads of size 12"):
        published.load_denoiser({**state, "rotary_emb.inv_freq": frequencies}, 1)


@pytest.mark.parametrize("num_heads", [0, 4, 5, 12])
def test_a_number_of_heads_that_does_not_fit_is_refused(num_heads):
    with pytest.raises(ValueError, match=f"num_heads = {num_heads}"):
        published.load_denoiser(published.export(small("denoiser")), num_heads)
