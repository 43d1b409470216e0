"""What a network's output depends on: which tokens, which rows, which noise level, and nothing at the start."""

from functools import partial

import pytest
import torch
from builders import randomise
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches
from torch import Tensor

from edlm.benchmark import textbook_training
from edlm.contracts import Network
from edlm.nn import attention, blocks, folding, rope, starts
from edlm.nn.networks import EnergyNetwork, Transformer

SIZES = {"vocab_size": 6, "max_length": 8, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "conditioning_size": 8}
KINDS = {
    "bidirectional": {},
    "unconditioned": {"conditioning_size": 0},
    "autoregressive": {"conditioning_size": 0, "causal": True},
}
close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-11)


def network(seed: int = 0, **changes: object) -> Transformer:
    return randomise(Transformer(**(SIZES | changes)), seed).double()


def energy_network(seed: int = 0, **changes: object) -> EnergyNetwork:
    return randomise(EnergyNetwork(**(SIZES | changes)), seed).double()


NETWORKS = {name: network(**changes) for name, changes in KINDS.items()}
ENERGY = energy_network()
every_kind = pytest.mark.parametrize("net", NETWORKS.values(), ids=NETWORKS)


def tokens(b: int = 3, length: int = 6, seed: int = 0) -> Tensor:
    return torch.randint(6, (b, length), generator=torch.Generator().manual_seed(seed))


def levels(b: int, value: float = 0.3) -> Tensor:
    return torch.arange(b, dtype=torch.float64) + value


def with_other_token(x: Tensor, position: int) -> Tensor:
    return x.index_copy(1, torch.tensor([position]), (x[:, position : position + 1] + 1) % 6)


def moved(before: Tensor, after: Tensor) -> list[bool]:
    """Which positions changed, in any row: (b, l, h) to l truth values."""
    return ((before - after).abs().amax((0, 2)) > 1e-9).tolist()


# ---- Which positions


@every_kind
@pytest.mark.parametrize("noise_level", [None, levels(3)])
@given(wanted=st.lists(st.integers(0, 17), max_size=12))
def test_states_at_positions_are_those_of_all_positions(net, noise_level, wanted):
    x, positions = tokens(), torch.tensor(wanted, dtype=torch.int64)
    close(net(x, noise_level, positions), net(x, noise_level).flatten(0, 1)[positions])


def test_the_last_feed_forward_layer_runs_on_the_wanted_positions_alone():
    net, rows = network(), []
    for block in net.trunk.blocks:
        block.down.register_forward_hook(lambda module, inputs, output: rows.append(output.numel() // 16))
    net(tokens(), None, torch.tensor([0, 4, 9]))
    assert rows == [18, 3]


@pytest.mark.parametrize("bias", [False, True])
@given(first=st.integers(0, 5), count=st.integers(1, 6))
def test_a_head_gives_some_columns_without_the_others(bias, first, count):
    head, hidden = (
        blocks.Head(4, 6, bias=bias).double(),
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    )
    columns = slice(first, min(first + count, 6))
    close(head(hidden.double(), columns), head(hidden.double())[:, columns])


# ---- Which tokens


@pytest.mark.parametrize("position", range(6))
def test_a_bidirectional_network_lets_every_position_see_every_token(position):
    x, net = tokens(), NETWORKS["bidirectional"]
    assert moved(net(x), net(with_other_token(x, position))) == [True] * 6


@pytest.mark.parametrize("position", range(6))
def test_a_causal_network_lets_no_position_see_a_later_token(position):
    x, net = tokens(), NETWORKS["autoregressive"]
    assert moved(net(x), net(with_other_token(x, position))) == [i >= position for i in range(6)]


@given(st.integers(1, 5))
def test_a_causal_network_gives_a_prefix_what_it_gives_it_in_the_whole(length):
    x, net = tokens(), NETWORKS["autoregressive"]
    close(net(x[:, :length]), net(x)[:, :length])


def test_attention_depends_on_the_distance_of_two_positions_and_not_on_where_they_are():
    query, key = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cos, sin = rope.table(10, 8, query)
    rotated = [rope.rotate(x.expand(10, 8), cos, sin) for x in (query, key)]
    products = rotated[0] @ rotated[1].T
    for distance in range(-8, 9):
        diagonal = products.diagonal(distance)
        close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-6)
    assert products[0].unique().numel() == 10


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_a_softmax_over_pairs_turned_by_their_distance(causal):
    layer = randomise(attention.Attention(hidden_size=4, num_heads=1, causal=causal, qk_norm=False), seed=0).double()
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    query, key, value = layer.qkv(x).chunk(3, dim=-1)
    query, key = (torch.complex(half[:, :2], half[:, 2:]) for half in (query, key))
    distance = torch.arange(5).unsqueeze(1) - torch.arange(5)
    turn = torch.exp(1j * distance.unsqueeze(-1) * torch.tensor([1.0, 0.01], dtype=torch.float64))
    scores = (query.unsqueeze(1) * key.conj() * turn).real.sum(-1) / 2.0
    scores = scores.masked_fill(distance < 0, -torch.inf) if causal else scores
    expected = layer.out(scores.softmax(-1) @ value)
    rotary = rope.table(5, 4, x)
    close(layer(x.unsqueeze(0), rotary)[0][0], expected, atol=1e-7)


@every_kind
@given(batches(vocab_size=6))
def test_rows_do_not_see_each_other(net, batch):
    sigma = levels(len(batch.x_t)) if net.arguments["conditioning_size"] else None
    alone = [net(batch.x_t[i : i + 1], None if sigma is None else sigma[i : i + 1]) for i in range(len(batch.x_t))]
    close(net(batch.x_t, sigma), torch.cat(alone))


@every_kind
def test_the_head_works_on_any_positions(net):
    hidden = net(tokens())
    assert isinstance(net, Network)
    assert hidden.shape == (3, 6, 16)
    close(net.head(hidden[1, [4, 0]]), net.head(hidden)[1, [4, 0]])


# ---- Which noise level


def test_the_noise_level_counts_with_conditioning_only():
    x = tokens()
    for name, net in NETWORKS.items():
        assert any(moved(net(x, levels(3)), net(x, levels(3, 1.5)))) == (name == "bidirectional")


def test_no_noise_level_means_zero():
    x, net = tokens(), NETWORKS["bidirectional"]
    close(net(x), net(x, torch.zeros(3)))
    close(ENERGY(x, x), ENERGY(x, x, torch.zeros(3)))


@pytest.mark.parametrize("positions", [None, torch.tensor([0, 4, 9])])
@pytest.mark.parametrize("norm_bias", [False, True])
def test_one_noise_level_for_all_rows_has_the_gradients_of_as_many(norm_bias, positions):
    """One is folded into the norms, several are applied at every position."""
    x, net = tokens(), network(norm_bias=norm_bias)
    one, several = (
        torch.autograd.grad(net(x, sigma, positions).pow(3).sum(), [*net.trunk.parameters()])
        for sigma in (torch.full((1,), 0.3), torch.full((3,), 0.3))
    )
    for a, b in zip(one, several, strict=True):
        assert b.abs().sum() > 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_conditioning_starts_without_effect_and_can_be_learned():
    x, net = tokens(), Transformer(**SIZES).double()
    close(net(x, levels(3)), net(x, levels(3, 1.5)))
    net(x, levels(3)).square().sum().backward()
    assert net.trunk.modulation.linear.weight.grad.abs().sum() > 0


def test_blocks_start_as_the_identity_and_the_last_modulation_shifts_and_scales():
    x, net = tokens(), network()
    for block in net.trunk.blocks:
        torch.nn.init.zeros_(block.modulation.linear.weight)
        torch.nn.init.zeros_(block.modulation.linear.bias)
    last = net.trunk.modulation.linear
    torch.nn.init.zeros_(last.weight)
    last.bias.data = torch.cat([torch.full((16,), 0.25), torch.full((16,), 2.0)]).double()
    close(net(x), net.trunk.norm(net.embedding(x)) * 3.0 + 0.25)


def test_an_energy_is_told_the_noise_level_of_its_row():
    x = tokens()
    assert ((ENERGY(x, x, levels(3)) - ENERGY(x, x, levels(3, 1.5))).abs() > 1e-9).all()
    unconditioned = energy_network(conditioning_size=0)
    close(unconditioned(x, x, levels(3)), unconditioned(x, x, levels(3, 1.5)))


# ---- The start of training


def test_an_untrained_network_gives_every_token_the_same_probability():
    net = Transformer(**SIZES)
    assert (net.head(net(tokens())) == 0.0).all()


def test_an_untrained_energy_is_zero_and_can_be_learned():
    net = EnergyNetwork(**SIZES)
    energy = net(tokens(), tokens(seed=1))
    assert energy.tolist() == [0.0, 0.0, 0.0]
    energy.sum().backward()
    assert net.scalar.weight.grad.abs().sum() > 0


def test_an_untrained_energy_reads_both_of_its_inputs_alike():
    net = EnergyNetwork(**SIZES)
    torch.nn.init.ones_(net.scalar.weight)
    x_t, x_0 = tokens(), tokens(seed=1)
    torch.testing.assert_close(net(x_t, x_0), net(x_0, x_t), rtol=0.0, atol=1e-4)


# ---- Energies


@given(batches(vocab_size=6))
def test_energies_of_rows_do_not_see_each_other(batch):
    sigma = levels(len(batch.x_0))
    alone = [ENERGY(batch.x_t[i : i + 1], batch.x_0[i : i + 1], sigma[i : i + 1]) for i in range(len(batch.x_0))]
    together = ENERGY(batch.x_t, batch.x_0, sigma)
    assert together.shape == (len(batch.x_0),)
    close(together, torch.cat(alone))


@pytest.mark.parametrize("max_length", [6, 5])
def test_an_energy_is_its_layers_over_all_positions_with_their_gradients(max_length):
    """As many tokens as positions: each is combined once. More tokens: every position is."""
    net, x_t, x_0 = energy_network(max_length=max_length), tokens(length=5), tokens(length=5, seed=1)
    combined: list[int] = []
    net.combine.register_forward_hook(lambda *_: combined.append(1))
    ours = net(x_t, x_0)
    assert len(combined) == (max_length == 5)
    plain = textbook_training.energy(net, x_t, x_0)
    close(ours, plain)
    gradients = [torch.autograd.grad(energies.pow(2).sum(), [*net.parameters()]) for energies in (ours, plain)]
    for a, b in zip(*gradients, strict=True):
        assert b.abs().sum() > 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_gradients_of_an_embedding_are_summed_in_float32_under_autocast():
    """In bfloat16 a sum stops to grow at 256 times what is added."""
    net = randomise(EnergyNetwork(**(SIZES | {"max_length": 4096})), 0)
    x_t, x_0 = torch.zeros(2, 1, 4096, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = torch.autograd.grad(net(x_t, x_0).sum(), net.embedding.weight)[0]
    whole = torch.autograd.grad(net(x_t, x_0).sum(), net.embedding.weight)[0]
    assert (half - whole).norm() < 0.05 * whole.norm()


def test_an_energy_depends_on_both_texts_and_on_which_is_which():
    x_t, x_0 = tokens(), tokens(seed=1)
    reference = ENERGY(x_t, x_0)
    for other in (ENERGY(with_other_token(x_t, 5), x_0), ENERGY(x_t, with_other_token(x_0, 0)), ENERGY(x_0, x_t)):
        assert ((reference - other).abs() > 1e-9).all()


def test_positions_that_are_not_valid_are_left_out_of_the_mean():
    # Without attention nothing else carries a token to the energy.
    net = energy_network(num_layers=1)
    torch.nn.init.zeros_(net.trunk.blocks[0].attention.out.weight)
    x_t, x_0 = tokens(), tokens(seed=1)
    valid = (torch.arange(6) < 4).expand(3, 6)
    expected = net(x_t[:, :4], x_0[:, :4])
    close(net(x_t, x_0, valid=valid), expected)
    close(net(with_other_token(x_t, 5), with_other_token(x_0, 4), valid=valid), expected)
    assert ((net(x_t, x_0) - expected).abs() > 1e-9).all()


def test_valid_everywhere_is_no_restriction_and_valid_nowhere_is_finite():
    x, everywhere = tokens(), torch.ones(3, 6, dtype=torch.bool)
    close(ENERGY(x, x, valid=everywhere), ENERGY(x, x))
    assert ENERGY(x, x, valid=~everywhere).isfinite().all()


def test_an_energy_starts_from_a_copy_of_the_denoisers_embedding_and_trunk():
    net, energy = network(seed=1), energy_network(seed=2)
    starts.start_energy_from(energy, net)
    for part in ("embedding", "trunk"):
        for mine, its in zip(getattr(energy, part).parameters(), getattr(net, part).parameters(), strict=True):
            assert torch.equal(mine, its)
            assert mine.data_ptr() != its.data_ptr()


@pytest.mark.parametrize(("changes", "part"), [({"vocab_size": 7}, "embedding"), ({"num_layers": 1}, "trunk")])
def test_an_energy_of_another_shape_is_refused(changes, part):
    with pytest.raises(ValueError, match=f"the energy's {part} cannot start"):
        starts.start_energy_from(EnergyNetwork(**(SIZES | changes)), Transformer(**SIZES))


# ---- Construction


@pytest.mark.parametrize("kind", [Transformer, EnergyNetwork])
def test_a_width_that_the_heads_cannot_share_is_refused(kind):
    with pytest.raises(ValueError, match=r"hidden_size = 18 must be a multiple of 2 \* num_heads = 4"):
        kind(**(SIZES | {"hidden_size": 18}))


@pytest.mark.parametrize("kind", [Transformer, EnergyNetwork])
def test_a_network_without_layers_is_refused(kind):
    with pytest.raises(ValueError, match="num_layers = 0 must be at least 1"):
        kind(**(SIZES | {"num_layers": 0}))


@pytest.mark.parametrize("kind", [Transformer, EnergyNetwork])
def test_the_recorded_arguments_rebuild_the_network(kind):
    net = kind(**(SIZES | {"dropout": 0.1}))
    assert net.arguments.items() >= (SIZES | {"dropout": 0.1}).items()
    again = kind(**net.arguments)
    again.load_state_dict(net.state_dict())
    assert again.arguments == net.arguments


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_output_has_the_type_of_the_weights(dtype):
    x, sigma = tokens(), levels(3)
    assert network().to(dtype)(x, sigma).dtype == dtype
    energy = energy_network().to(dtype)(x, x, sigma, torch.ones(3, 6, dtype=torch.bool))
    assert (energy.dtype, bool(energy.isfinite().all())) == (dtype, True)


def test_dropout_acts_in_training_only():
    net, x = network(dropout=0.5), tokens()
    close(net(x), net(x))
    net.train()
    assert any(moved(net(x), net(x)))


@pytest.mark.parametrize("norm_bias", [False, True])
@pytest.mark.parametrize("kind", [Transformer, EnergyNetwork])
def test_folded_conditioning_is_the_same_function(kind: type[Transformer] | type[EnergyNetwork], norm_bias: bool):
    torch.manual_seed(0)
    network = kind(5, 6, hidden_size=8, num_layers=2, num_heads=2, conditioning_size=4, norm_bias=norm_bias).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    folded = folding.fold_conditioning(network.eval())
    tokens = torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(1))
    inputs = (tokens,) if kind is Transformer else (tokens, tokens.flip(1))
    torch.testing.assert_close(folded(*inputs), network(*inputs), rtol=1e-9, atol=1e-9)
    assert not [name for name, _ in folded.named_parameters() if "modulation" in name or "noise" in name]
    assert not folded.training
    assert folding.fold_conditioning(folded) is folded
    rebuilt = kind(**folded.arguments)
    assert rebuilt.state_dict().keys() == folded.state_dict().keys()


def test_padding_does_not_move_an_energy_through_attention_either():
    network = energy_network().eval()
    tokens = torch.tensor([[1, 2, 3]])
    alone = network(tokens, tokens.flip(1))
    for pads in (1, 3, 5):
        padding = torch.full((1, pads), 5)
        texts = (torch.cat([tokens, padding], 1), torch.cat([tokens.flip(1), padding], 1))
        close(network(*texts, valid=torch.arange(3 + pads)[None] < 3), alone)
