"""Weights before training: what is drawn and from which law, and what is zero, so that it changes nothing at first."""

import math

import pytest
import torch
from torch import Tensor, nn

from edlm.nn import adapters, trunk_energy
from edlm.nn.blocks import Trunk
from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer
from edlm.nn.shallow import ShallowNetwork

SIZES = {"vocab_size": 50, "max_length": 8, "hidden_size": 64, "num_layers": 2, "num_heads": 2, "conditioning_size": 4}
NETWORKS = (Transformer, EnergyNetwork, JointNetwork, ShallowNetwork)


def is_even(values: Tensor, bound: float) -> bool:
    """Whether numbers are spread evenly between the bounds, by their ends and their variance."""
    values = values.detach()
    near = 0.97 * bound < float(values.abs().max()) <= bound
    return near and float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("kind", NETWORKS)
def test_an_embedding_is_drawn_evenly_up_to_one_over_the_root_of_its_width(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = kind(**SIZES)
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            assert is_even(module.weight, 64**-0.5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_conditioning_scores_and_heads_start_at_zero(kind: type[nn.Module]) -> None:
    values = dict(kind(**SIZES).named_parameters())
    started = {name for name, value in values.items() if not value.any()}
    for name, value in values.items():
        last = name.rpartition(".")[0].rpartition(".")[2]
        if "modulation" in name or last in ("scalar", "head") or name.startswith("new."):
            assert name in started
        elif value.ndim == 2 and not name.startswith("ordered."):
            assert name not in started
    assert all(torch.equal(value, torch.ones_like(value)) for name, value in values.items() if "norm" in name)


def test_an_energy_starts_from_the_mean_of_both_embeddings() -> None:
    network = EnergyNetwork(**SIZES)
    pair = torch.randn(3, 64), torch.randn(3, 64)
    torch.testing.assert_close(network.combine(torch.cat(pair, dim=-1)), (pair[0] + pair[1]) / 2)


def test_a_block_in_order_adds_nothing_at_first() -> None:
    network = ShallowNetwork(**SIZES)
    ordered = dict(network.ordered.named_parameters())
    assert {name for name, value in ordered.items() if not value.any()} == {
        *("attention.out.weight", "down.weight", "down.bias"),
    }


def test_the_head_of_an_energy_over_a_trunk_starts_at_zero_with_small_marks() -> None:
    torch.manual_seed(0)
    energy = trunk_energy.TrunkEnergy(Transformer(**{**SIZES, "hidden_size": 256, "num_layers": 1}))
    assert float(energy.new.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not energy.scalar.weight.any()
    assert energy.scalar.bias is None
    made = trunk_energy.over(Transformer(**SIZES), dropout=0.25)
    assert made.arguments == {"trunk": "frozen", "adapter": None, "dropout": 0.25}


def test_an_adapter_of_gpt_2_starts_as_torchtunes_do() -> None:
    """A is drawn evenly up to one over the root of what it reads, and B is zero."""
    product = nn.Module()
    product.weight, product.bias = nn.Parameter(torch.randn(64, 7)), nn.Parameter(torch.randn(7))
    adapted = adapters.TransposedLoRA(product, rank=32, alpha=8.0)
    assert is_even(adapted.lora_a.weight, 64**-0.5)
    assert not adapted.lora_b.weight.any()
    x = torch.randn(3, 64)
    torch.testing.assert_close(adapted(x), x @ product.weight + product.bias)
    nn.init.ones_(adapted.lora_b.weight)
    beside = 8.0 / 32 * adapted.lora_a(x).sum(-1, keepdim=True).expand(3, 7)
    torch.testing.assert_close(adapted(x), x @ product.weight + product.bias + beside)


@pytest.mark.parametrize(
    ("hidden_size", "num_heads", "fits"), [(4, 2, True), (4, 1, True), (6, 2, False), (2, 2, False)]
)
def test_a_head_has_an_even_width(hidden_size: int, num_heads: int, fits: bool) -> None:
    sizes = (hidden_size, 1, num_heads, 0, False, 0.0, False, False)
    if fits:
        assert Trunk(*sizes).head_size == hidden_size // num_heads
        return
    said = rf"^hidden_size = {hidden_size} must be a multiple of 2 \* num_heads = {2 * num_heads}$"
    with pytest.raises(ValueError, match=said):
        Trunk(*sizes)
