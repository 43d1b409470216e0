"""An energy over another network: zero at first, what it shares, what it trains, and what it reads."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchtune.models import llama3_2

from edlm import testing
from edlm.models import energies
from edlm.nn import decoders, networks, trunk_energy
from edlm.nn.networks import Transformer
from edlm.nn.trunk_energy import TrunkEnergy

V, LENGTH = 9, 8
HOW: dict[str, dict[str, Any]] = {
    "frozen": {"trunk": "frozen"},
    "trained": {"trunk": "trained"},
    "lora": {"trunk": "frozen", "adapter": (2, 4.0)},
}
every_way = pytest.mark.parametrize("how", HOW)


def decoder(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A shifted decoder with a tied head and a row for its mask, as `edlm run adapt` makes it, without gradients."""
    torch.manual_seed(0)
    sizes = {"vocab_size": V - 1, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "embed_dim": 8}
    built = llama3_2.llama3_2(**sizes, max_seq_len=16, intermediate_dim=12).to(dtype)
    built = decoders.with_mask(decoders.bidirectional(built))
    return decoders.DecoderNetwork(built, LENGTH, True, vocab_size=V, bos_id=1).eval().requires_grad_(False)


def pair(rows: int = 3) -> tuple[Tensor, Tensor]:
    """Texts with masks, and drafts that fill them."""
    generator = torch.Generator().manual_seed(1)
    x_0 = torch.randint(0, V - 1, (rows, LENGTH), generator=generator)
    hidden = torch.rand(rows, LENGTH, generator=generator) < 0.5
    return torch.where(hidden, V - 1, x_0), x_0


def awake(energy: TrunkEnergy) -> TrunkEnergy:
    """The energy with weights in its last layer, and in its adapters."""
    torch.manual_seed(2)
    for name, parameter in energy.named_parameters():
        if parameter.requires_grad and ("scalar" in name or "lora_b" in name):
            nn.init.normal_(parameter)
    return energy


@every_way
def test_it_is_zero_before_training_whatever_the_texts(how: str) -> None:
    energy = trunk_energy.over(decoder(), **HOW[how])
    assert torch.equal(energy(*pair()), torch.zeros(3))
    assert torch.equal(energy.per_position(*pair()), torch.zeros(3, LENGTH))


@every_way
def test_what_is_not_trained_is_the_denoisers_own_memory_and_the_rest_is_not(how: str) -> None:
    network = decoder()
    energy = trunk_energy.over(network, **HOW[how])
    theirs = {each.data_ptr() for each in network.parameters()}
    for name, value in energy.named_parameters():
        assert (value.data_ptr() in theirs) is not value.requires_grad, name
    own = {name for name, value in energy.trunk.named_parameters() if value.requires_grad}
    vocabulary_head = {"head.weight"}
    whole = {name for name, _ in network.named_parameters(remove_duplicate=False)} - vocabulary_head
    assert {"frozen": not own, "trained": own == whole, "lora": all("lora_" in name for name in own) and own}[how]


@every_way
def test_gradients_reach_what_is_trained_and_the_denoiser_never_moves(how: str) -> None:
    network = decoder()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    energy = awake(trunk_energy.over(network, **HOW[how])).train()
    optimizer = torch.optim.SGD([each for each in energy.parameters() if each.requires_grad], lr=0.1)
    energy(*pair()).sum().backward()
    for name, value in energy.named_parameters():
        lacks = value.grad is None or not value.grad.any()
        assert lacks is not value.requires_grad or name == "trunk.embedding.mask", name  # no draft holds a mask
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(value.grad is None and not value.requires_grad for value in network.parameters())


def test_it_reads_the_candidate_and_which_of_its_tokens_are_new() -> None:
    energy = awake(trunk_energy.over(decoder()))
    x_t, x_0 = pair()
    other = x_0.clone()
    other[:, 2] = (other[:, 2] + 1) % (V - 1)
    plain = energy(x_t, x_0)
    assert not torch.equal(plain, energy(x_t, other))
    assert not torch.equal(plain, energy(x_0, x_0))
    per_position, kept = energy.per_position(x_t, x_0), energy.per_position(x_0, x_0)
    assert torch.equal(per_position != kept, x_t != x_0)
    valid = torch.arange(LENGTH).expand(3, -1) < LENGTH - 1
    assert not torch.equal(plain, energy(x_t, x_0, valid=valid))


def test_padding_that_is_left_out_counts_nothing() -> None:
    energy = awake(trunk_energy.over(decoder()))
    x_t, x_0 = pair()
    valid = torch.arange(LENGTH).expand(3, -1) != 2
    other = x_t.clone()
    other[:, 2] = torch.where(x_t[:, 2] == x_0[:, 2], V - 1, x_0[:, 2])  # new or not in the place that is left out
    assert torch.equal(energy(x_t, x_0, valid=valid), energy(other, x_0, valid=valid))


def test_the_trunk_stays_in_eval_mode_and_the_head_alone_drops_out() -> None:
    trunk = Transformer(V, LENGTH, hidden_size=8, num_layers=1, num_heads=2, dropout=0.5)
    for parameter in trunk.parameters():
        nn.init.normal_(parameter, std=0.3)
    energy = awake(trunk_energy.over(trunk)).train()
    assert torch.equal(energy(*pair()), energy(*pair()))
    dropping = awake(trunk_energy.over(trunk, dropout=0.5)).train()
    assert not torch.equal(dropping(*pair()), dropping(*pair()))
    dropping.eval()
    assert torch.equal(dropping(*pair()), dropping(*pair()))


def test_states_of_a_trunk_in_bfloat16_are_read_in_float32() -> None:
    energy = awake(trunk_energy.over(decoder(torch.bfloat16)))
    assert energy(*pair()).dtype == torch.float32


@every_way
def test_recomputed_blocks_give_the_same_gradients(how: str) -> None:
    found = []
    for again in (False, True):
        energy = awake(trunk_energy.over(decoder(), **HOW[how])).train()
        if again:
            networks.recompute(energy)
        energy(*pair()).sum().backward()
        found.append([each.grad for each in energy.parameters() if each.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_it_is_an_energy_of_either_scope() -> None:
    energy = trunk_energy.over(decoder())
    assert energies.scopes_of(energies.learned(energy)) == ("draft",)
    assert energies.scopes_of(energies.learned_transition(energy)) == ("transition",)  # type: ignore[arg-type]


@every_way
def test_it_keeps_the_laws_of_an_energy(how: str) -> None:
    network = awake(trunk_energy.over(decoder(), **HOW[how])).eval()
    for energy in (energies.learned(network), energies.learned_transition(network)):  # type: ignore[arg-type]
        testing.check_energy(energy, V, V - 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"trunk": "half"}, "trunk = 'half' must be trained or frozen"),
        ({"adapter": (0, 1.0)}, "rank = 0 must be a whole number of at least 1 and at most 8"),
        ({"adapter": (9, 1.0)}, "rank = 9 must be a whole number of at least 1 and at most 8"),
        ({"adapter": (1.5, 1.0)}, "rank = 1.5 must be"),
        ({"adapter": (True, 1.0)}, "rank = True must be"),
        ({"adapter": (2, 0.0)}, "alpha = 0.0 must be a finite number above 0"),
        ({"adapter": (2, float("inf"))}, "alpha = inf must be a finite number above 0"),
        ({"adapter": (2, float("nan"))}, "alpha = nan must be"),
        ({"adapter": (2, "3")}, "alpha = '3' must be"),
        ({"adapter": (2,)}, "adapter = (2,) must be a rank and an alpha"),
        ({"adapter": 5}, "adapter = 5 must be a rank and an alpha"),
        ({"dropout": 1.0}, "dropout = 1.0 must be a number of at least 0 and below 1"),
        ({"dropout": "much"}, "dropout = 'much' must be a number"),
    ],
)
def test_what_cannot_be_is_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        trunk_energy.over(decoder(), **arguments)


@pytest.mark.parametrize(("rank", "taken"), [(0, False), (1, True), (8, True), (9, False)])
def test_adapters_are_as_wide_as_the_network_at_most(rank: int, taken: bool) -> None:
    if taken:
        assert trunk_energy._rank_and_alpha([rank, 2.0], 8) == (rank, 2.0)
    else:
        with pytest.raises(ValueError, match=f"rank = {rank} must be a whole number of at least 1 and at most 8"):
            trunk_energy._rank_and_alpha([rank, 2.0], 8)
