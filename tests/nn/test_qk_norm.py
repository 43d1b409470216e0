"""Attention whose queries and keys are normalised: its formula, and that every way of reading a network has it."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from block_networks import LENGTH, network
from builders import randomise, tiny_network
from drafting import ar_network, followed
from torch import Tensor

from edlm.data import vocabulary
from edlm.nn import folding, rope, starts
from edlm.nn.attention import Attention
from edlm.nn.networks import EnergyNetwork, JointNetwork, Transformer
from edlm.nn.shallow import ShallowNetwork
from edlm.weights import checkpoints, exchange

close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-11)
SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "conditioning_size": 8}


def tokens(b: int = 2, length: int = 8) -> Tensor:
    return torch.randint(4, (b, length), generator=torch.Generator().manual_seed(0))


def test_queries_and_keys_have_one_length_before_their_positions_turn_them() -> None:
    attention = randomise(Attention(16, 2, causal=False, qk_norm=True), 0).double()
    x = torch.randn(3, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cos, sin = rope.table(5, 8, x)
    q, k, v = attention.qkv(x).view(3, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
    q, k = (each / (each.square().mean(-1, keepdim=True) + torch.finfo(torch.float64).eps).sqrt() for each in (q, k))
    q, k = (rope.rotate(each, cos, sin) for each in (q, k))
    mixed = (q @ k.mT / 8**0.5).softmax(-1) @ v
    close(attention(x, (cos, sin))[0], attention.out(mixed.transpose(1, 2).flatten(-2)))


@pytest.mark.parametrize("kind", [Transformer, JointNetwork, EnergyNetwork, ShallowNetwork])
def test_the_size_of_queries_and_keys_does_not_matter(kind: type[Transformer]) -> None:
    """In every block of every network that has the setting."""
    for qk_norm in (True, False):
        net = randomise(kind(5, 8, **SIZES, qk_norm=qk_norm), 0).double()
        read = (tokens(), tokens().flip(1)) if kind is EnergyNetwork else (tokens(),)
        parts = [each for each in net.modules() if isinstance(each, Attention)]
        assert len(parts) == 2 + (kind in (JointNetwork, ShallowNetwork))
        assert all(each.qk_norm == qk_norm for each in parts)
        before = net(*read)
        with torch.no_grad():
            for each in parts:
                each.qkv.weight[:32] *= 3.0
        assert torch.allclose(net(*read), before, rtol=0.0, atol=1e-9) == qk_norm


@torch.no_grad()
def test_a_text_read_part_by_part_has_the_states_of_the_whole() -> None:
    plain, normed = (followed(ar_network(qk_norm=each), 3, 2, [2, 3], 1, unread=1e6) for each in (False, True))
    close(*normed)
    assert not torch.allclose(plain[0], normed[0])
    causal = tiny_network(causal=True, conditioning_size=0, qk_norm=True, num_layers=2)
    cache = causal.empty_cache(2, 8)
    for position in range(8):
        hidden, own = causal.step(tokens()[:, position], torch.tensor(position), cache)
        close(hidden, causal(tokens())[:, position])
        for kept, new in zip(cache, own, strict=True):
            kept[:, :, :, position] = new


@torch.no_grad()
def test_blocks_beside_their_clean_text_have_the_states_of_blocks_after_it() -> None:
    net, x_0, x_t = network(2, qk_norm=True), tokens(2, LENGTH) % 3, torch.full((2, LENGTH), 3)
    beside = net(x_t, clean=x_0)
    for start in range(0, LENGTH, 2):
        alone = torch.cat([x_0[:, :start], x_t[:, start:]], dim=1)[:, : start + 2]
        close(net(alone)[:, start:], beside[:, start : start + 2])


@torch.no_grad()
@pytest.mark.parametrize("kind", [Transformer, JointNetwork])
def test_folded_conditioning_is_the_same_function(kind: type[Transformer]) -> None:
    net = randomise(kind(5, 8, **SIZES, qk_norm=True), 0).double().eval()
    torch.testing.assert_close(folding.fold_conditioning(net)(tokens()), net(tokens()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_what_starts_from_a_denoiser_has_its_attention(qk_norm: bool) -> None:
    denoiser = Transformer(5, 8, **SIZES, qk_norm=qk_norm)
    for cls, start, name in (
        (EnergyNetwork, starts.start_energy_from, "energy"),
        (JointNetwork, starts.start_joint_from, "joint network"),
    ):
        start(cls(5, 8, **SIZES, qk_norm=qk_norm), denoiser)
        said = f"the {name} has qk_norm = {not qk_norm}, and the denoiser that it starts from {qk_norm}"
        with pytest.raises(ValueError, match=said):
            start(cls(5, 8, **SIZES, qk_norm=not qk_norm), denoiser)


def test_a_folder_says_so_an_older_one_does_not_and_no_published_one_can(tmp_path: Path) -> None:
    net = randomise(Transformer(28, 8, **SIZES, qk_norm=True), 0)
    checkpoints.save_network(tmp_path / "ours", net, vocabulary.characters(), {})
    found = checkpoints.load_as(Transformer, tmp_path / "ours")
    assert torch.equal(found(tokens()), net(tokens()))
    with pytest.raises(ValueError, match="published networks have no qk_norm"):
        exchange.export(tmp_path / "ours", tmp_path / "hf")
    plain = Transformer(28, 8, **SIZES)
    checkpoints.save_network(tmp_path / "older", plain, vocabulary.characters(), {})
    file = tmp_path / "older" / "network.json"
    description = json.loads(file.read_text("utf-8"))
    del description["arguments"]["qk_norm"]
    del description["sha256"]["arguments"]  # which was that of the arguments of that time
    file.write_text(json.dumps(description), "utf-8")
    assert not checkpoints.load_as(Transformer, tmp_path / "older").arguments["qk_norm"]


def test_what_is_no_flag_is_named() -> None:
    with pytest.raises(ValueError, match="qk_norm = 'yes' must be true or false"):
        Transformer(5, 8, **SIZES, qk_norm="yes")  # type: ignore[arg-type]
