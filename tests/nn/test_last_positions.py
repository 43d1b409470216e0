"""The last position of the last row, asked for beside padding: it is answered as itself, whoever answers."""

import pytest
import torch
from builders import tiny_network
from joint_networks import joint_network
from tensordict import TensorDict

from edlm import contracts
from edlm.models import chain_rule, denoisers, joint
from edlm.process import schedules

B, L, V, MASK = 2, 5, 5, 4
LAST = B * L - 1
ASKED = [torch.tensor([LAST]), torch.tensor([LAST, B * L]), torch.tensor([3, LAST, B * L, B * L, B * L])]


def tokens() -> torch.Tensor:
    x_t = torch.randint(V - 1, (B, L), generator=torch.Generator().manual_seed(0))
    x_t[0, 3] = x_t[1, 4] = MASK
    return x_t


def filled(x_t: torch.Tensor, positions: torch.Tensor, count: int) -> torch.Tensor:
    """Candidates (b, k, l), the k-th with token k at flat positions."""
    return torch.stack([x_t.flatten().index_fill(0, positions, k).view(B, L) for k in range(count)], dim=1)


@pytest.mark.parametrize("asked", ASKED, ids=len)
@pytest.mark.parametrize("told", [None, schedules.log_linear(1e-3)], ids=["untold", "told"])
def test_a_denoiser_has_the_state_of_the_whole_pass_there(asked: torch.Tensor, told: schedules.Schedule | None) -> None:
    network, t = tiny_network(max_length=L), torch.full((B,), 0.5)
    inputs = TensorDict({contracts.X_T: tokens(), contracts.T: t, contracts.POSITIONS: asked})
    found = denoisers.subs(network, MASK, told)(inputs)[contracts.HIDDEN]
    whole = network(tokens(), None if told is None else -told.alpha(t).log()).flatten(0, 1)
    real = asked < B * L
    torch.testing.assert_close(found[real], whole[asked[real]], check_dtype=False)


@pytest.mark.parametrize("asked", ASKED, ids=len)
def test_an_energy_of_transitions_weighs_the_token_there(asked: torch.Tensor) -> None:
    """By the states of x_t at the positions that are new, as the two passes written out have them."""
    network = joint_network(max_length=L)
    x_t, real = tokens(), asked[asked < B * L]
    candidates = filled(x_t, real, 3)
    inputs = {contracts.CANDIDATES: candidates, contracts.X_T: x_t, contracts.POSITIONS: asked}
    found = joint.energy(network)(TensorDict(inputs))[contracts.ENERGY]
    expected = network(x_t).flatten(0, 1)[real]
    for k in range(3):
        scalars = network.scalars(network(candidates[:, k]), expected, real)
        own = torch.zeros(B, dtype=scalars.dtype).index_add(0, real // L, scalars)
        torch.testing.assert_close(found[:, k].to(own.dtype), own)
    assert (found[1] != 0).all()


@pytest.mark.parametrize("asked", ASKED[1:], ids=len)
def test_padding_changes_no_energy_of_the_denoisers_own(asked: torch.Tensor) -> None:
    x_t, real = tokens(), asked[asked < B * L]
    candidates = filled(x_t, torch.tensor([3, LAST]), 2)
    energy = chain_rule.energy(denoisers.subs(tiny_network(max_length=L), MASK))
    inputs = {contracts.CANDIDATES: candidates, contracts.X_T: x_t, contracts.T: torch.full((B,), 0.5)}
    keys = [key for key in energy.in_keys if key not in (*inputs, contracts.POSITIONS)]
    inputs |= {key: torch.zeros(B, 2, dtype=torch.float64) for key in keys}
    with_padding = energy(TensorDict({**inputs, contracts.POSITIONS: asked}))[contracts.ENERGY]
    without = energy(TensorDict({**inputs, contracts.POSITIONS: real}))[contracts.ENERGY]
    torch.testing.assert_close(with_padding, without)
