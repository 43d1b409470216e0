"""Energies weigh each particle of each row by itself, know the right noise level, and leave padding out."""

import pytest
import torch
from builders import randomise
from hypothesis import given
from hypothesis import strategies as st
from strategies import noise_schedules
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from edlm import contracts, energies, schedules
from edlm.networks import EnergyNetwork

SIZES = {"vocab_size": 6, "max_length": 8, "hidden_size": 16, "num_heads": 2, "conditioning_size": 8}
NETWORK = randomise(EnergyNetwork(num_layers=1, **SIZES), seed=0).double()
TIMED = schedules.log_linear(1e-3)
PAD = 5


class Recorder(nn.Module):
    """A network that writes down what it is told; the energy is the number that the row's digits spell."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[Tensor | None, Tensor | None]] = []

    def forward(self, x_t: Tensor, x_0: Tensor, sigma: Tensor | None, valid: Tensor | None) -> Tensor:
        self.told.append((sigma, valid))
        digits = torch.cat([x_t, x_0], dim=-1)
        return (digits * 10 ** torch.arange(digits.shape[-1]).flip(0)).sum(-1).double()


@st.composite
def drafts(draw: st.DrawFn) -> TensorDict:
    """Candidates (b, k, l), texts with masks and times of their own for every row."""
    b, k, length = (draw(st.integers(1, high)) for high in (3, 4, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    return TensorDict(
        {
            contracts.CANDIDATES: torch.randint(6, (b, k, length), generator=generator),
            contracts.X_T: torch.randint(6, (b, length), generator=generator),
            contracts.T: torch.rand(b, generator=generator, dtype=torch.float64),
        }
    )


def energy_of(energy: TensorDictModule, inputs: TensorDict) -> Tensor:
    return energy(inputs.clone())[contracts.ENERGY]


def one(inputs: TensorDict, i: int, j: int) -> TensorDict:
    """Particle j of row i by itself."""
    alone = {contracts.CANDIDATES: inputs[contracts.CANDIDATES][i : i + 1, j : j + 1]}
    return TensorDict(alone | {key: inputs[key][i : i + 1] for key in (contracts.X_T, contracts.T)})


# ---- Particles and rows


@pytest.mark.parametrize("schedule", [None, TIMED])
@given(drafts())
def test_particles_and_rows_do_not_see_each_other(schedule, inputs):
    energy = energies.learned(NETWORK, schedule, PAD)
    together = energy_of(energy, inputs)
    b, k, _ = inputs[contracts.CANDIDATES].shape
    assert together.shape == (b, k)
    for i in range(b):
        for j in range(k):
            torch.testing.assert_close(together[i, j], energy_of(energy, one(inputs, i, j))[0, 0], rtol=0.0, atol=1e-10)


@given(drafts())
def test_each_particle_is_weighed_against_the_masks_of_its_own_row(inputs):
    energy = energy_of(energies.learned(Recorder()), inputs)
    for i, row in enumerate(inputs[contracts.CANDIDATES].tolist()):
        for j, candidate in enumerate(row):
            digits = inputs[contracts.X_T][i].tolist() + candidate
            assert energy[i, j].item() == int("".join(map(str, digits)))


# ---- The noise level


@given(drafts(), noise_schedules())
def test_with_a_schedule_the_network_is_told_the_noise_level_of_each_row(inputs, schedule):
    network = Recorder()
    try:
        energy = energies.learned(network, schedule)
    except ValueError:
        assert schedule.alpha(torch.ones(1, dtype=torch.float64)) == 0.0
        return
    energy_of(energy, inputs)
    k = inputs[contracts.CANDIDATES].shape[1]
    expected = -schedule.alpha(inputs[contracts.T]).log()
    assert torch.equal(network.told[0][0], expected.repeat_interleave(k))


@given(drafts())
def test_without_a_schedule_and_a_pad_the_network_is_told_nothing(inputs):
    network = Recorder()
    energy_of(energies.learned(network), inputs)
    assert network.told == [(None, None)]


@pytest.mark.parametrize("schedule", [schedules.log_linear(), schedules.polynomial(2.0)])
def test_a_schedule_whose_noise_level_ends_infinite_is_refused(schedule):
    with pytest.raises(ValueError, match=r"finite sigma\(1\)"):
        energies.learned(NETWORK, schedule)


# ---- Padding


@given(drafts())
def test_padding_of_a_candidate_is_not_valid(inputs):
    network = Recorder()
    energy_of(energies.learned(network, pad_id=PAD), inputs)
    assert torch.equal(network.told[0][1], inputs[contracts.CANDIDATES].flatten(0, 1) != PAD)


@given(drafts(), st.integers(1, 3))
def test_padding_on_the_right_does_not_enter_the_mean(inputs, padding):
    # Without attention nothing else carries a token to the energy.
    energy = energies.learned(randomise(EnergyNetwork(num_layers=0, **SIZES), seed=1).double(), TIMED, PAD)
    inputs[contracts.CANDIDATES] = inputs[contracts.CANDIDATES].clamp(max=PAD - 1)
    longer = inputs.clone()
    for key in (contracts.CANDIDATES, contracts.X_T):
        longer[key] = nn.functional.pad(inputs[key], (0, padding), value=PAD)
    torch.testing.assert_close(energy_of(energy, longer), energy_of(energy, inputs), rtol=0.0, atol=1e-10)


# ---- Controls


@given(drafts())
def test_the_zero_energy_is_zero(inputs):
    energy = energy_of(energies.zero(), inputs)
    assert torch.equal(energy, torch.zeros(inputs[contracts.CANDIDATES].shape[:2], dtype=torch.float64))


@given(drafts(), st.sampled_from([-1.0, 0.0, 0.25, 3.0]))
def test_a_scaled_energy_is_its_factor_times_the_energy(inputs, factor):
    energy = energies.learned(NETWORK, TIMED)
    scaled = energies.scaled(energy, factor)
    assert torch.equal(energy_of(scaled, inputs), factor * energy_of(energy, inputs))
    assert scaled.in_keys == energy.in_keys


@given(drafts())
def test_flipping_the_sign_twice_gives_the_energy_back(inputs):
    energy = energies.learned(NETWORK)
    assert torch.equal(energy_of(energies.scaled(energies.scaled(energy, -1.0), -1.0), inputs), energy_of(energy, inputs))


def test_an_energy_holds_its_network():
    energy = energies.learned(NETWORK)
    for module in (energy, energies.scaled(energy, -1.0)):
        assert isinstance(module, contracts.Energy)
        assert {id(p) for p in module.parameters()} == {id(p) for p in NETWORK.parameters()}
