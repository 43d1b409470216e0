"""Energies weigh each particle of each row by itself, know the right noise level, and leave padding out."""

import pytest
import torch
from builders import masked_positions, randomise, tiny_network
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    OracleEnergy,
    all_masked_states,
    all_sequences,
    log_z,
    random_joint,
    random_marginals,
    residual_energy,
)
from strategies import noise_schedules
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from edlm import contracts
from edlm.models import autoregressive, energies
from edlm.nn.networks import EnergyNetwork, JointNetwork
from edlm.process import categorical, schedules

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
        assert schedule.alpha(torch.ones(1, dtype=torch.float64)) < 1e-12
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


@pytest.mark.parametrize(
    "schedule", [schedules.log_linear(), schedules.polynomial(2.0), schedules.cosine(), schedules.cosine_squared()]
)
def test_a_schedule_whose_noise_level_ends_infinite_is_refused(schedule):
    with pytest.raises(ValueError, match=r"finite sigma\(1\)"):
        energies.learned(NETWORK, schedule)


# ---- Padding


@given(drafts())
def test_positions_that_x_t_gives_as_padding_are_not_valid(inputs):
    network = Recorder()
    energy_of(energies.learned(network, pad_id=PAD), inputs)
    k = inputs[contracts.CANDIDATES].shape[1]
    assert torch.equal(network.told[0][1], (inputs[contracts.X_T] != PAD).repeat_interleave(k, dim=0))


@given(drafts(), st.integers(1, 3))
def test_padding_on_the_right_does_not_enter_the_mean(inputs, padding):
    # Without attention nothing else carries a token to the energy.
    network = randomise(EnergyNetwork(num_layers=1, **SIZES), seed=1).double()
    nn.init.zeros_(network.trunk.blocks[0].attention.out.weight)
    energy = energies.learned(network, TIMED, PAD)
    longer = inputs.clone()
    for key in (contracts.CANDIDATES, contracts.X_T):
        longer[key] = nn.functional.pad(inputs[key], (0, padding), value=PAD)
    torch.testing.assert_close(energy_of(energy, longer), energy_of(energy, inputs), rtol=0.0, atol=1e-10)


# ---- The energy of an autoregressive model

SYMBOLS, LENGTH = 3, 3
MASK = SYMBOLS
MARGINALS = random_marginals(0, SYMBOLS, LENGTH, strength=2.0)
CAUSAL = tiny_network(vocab_size=SYMBOLS + 1, causal=True, conditioning_size=0)
STATES = all_masked_states(SYMBOLS, LENGTH)


def ar_law(x: Tensor, bos: int | None) -> Tensor:
    """`log p_AR(x_i | x_<i)` of one text (l,), mask left out, one position at a time; zero for a given first token."""
    terms = []
    for i in range(len(x)):
        prefix = torch.cat([torch.tensor([] if bos is None else [bos], dtype=torch.int64), x[:i]]).unsqueeze(0)
        given_first = prefix.shape[1] == 0
        logits = torch.zeros(SYMBOLS) if given_first else CAUSAL.head(CAUSAL(prefix))[0, -1, :SYMBOLS]
        terms.append(0.0 * logits[0] if given_first else logits.log_softmax(-1)[x[i]])
    return torch.stack(terms)


def completions(x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Every draft of a text with masks, (k, l), and its log-probability at the masks under the denoiser, (k, l)."""
    masked = x_t == MASK
    drafts = x_t.repeat(SYMBOLS ** int(masked.sum()), 1)
    drafts[:, masked] = all_sequences(SYMBOLS, int(masked.sum()))
    law = MARGINALS[tuple(x_t.tolist())].expand(*drafts.shape, -1)
    return drafts, torch.where(masked, law.gather(-1, drafts.unsqueeze(-1)).squeeze(-1), 0.0)


def energy_at(energy: TensorDictModule, x_t: Tensor, drafts: Tensor, log_p: Tensor) -> Tensor:
    inputs = {contracts.X_T: x_t, contracts.CANDIDATES: drafts, contracts.LOG_P_CANDIDATES: log_p}
    rows = {key: value.unsqueeze(0) for key, value in inputs.items()}
    return energy_of(energy, TensorDict({**rows, contracts.POSITIONS: masked_positions(x_t, MASK)}))[0]


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize("carry_over", [False, True])
def test_the_autoregressive_energy_is_the_log_ratio_of_denoiser_to_model(carry_over, bos):
    energy = energies.residual_ar(CAUSAL, MASK, bos, carry_over)
    for x_t in STATES[::5]:
        drafts, log_p = completions(x_t)
        counts = (x_t == MASK) if carry_over else torch.ones(LENGTH, dtype=torch.bool)
        if bos is None:
            counts = counts & (torch.arange(LENGTH) > 0)
        log_ar = torch.stack([ar_law(draft, bos) for draft in drafts])
        expected = ((log_p - log_ar) * counts).sum(-1)
        torch.testing.assert_close(energy_at(energy, x_t, drafts, log_p), expected, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("bos", [None, 1])
def test_the_carry_over_form_has_z_equal_to_one(bos):
    energy = energies.residual_ar(CAUSAL, MASK, bos, carry_over=True)
    for x_t in STATES:
        drafts, log_p = completions(x_t)
        log_z = (log_p.sum(-1) - energy_at(energy, x_t, drafts, log_p)).logsumexp(-1)
        assert log_z.item() == pytest.approx(0.0, abs=1e-10)


def test_the_posterior_form_has_z_equal_to_the_probability_of_the_visible_tokens():
    energy = energies.residual_ar(CAUSAL, MASK, bos_id=1, carry_over=False)
    for x_t in STATES[::5]:
        drafts, log_p = completions(x_t)
        log_z = (log_p.sum(-1) - energy_at(energy, x_t, drafts, log_p)).logsumexp(-1)
        visible = torch.stack([ar_law(draft, 1).sum() for draft in drafts]).logsumexp(-1)
        torch.testing.assert_close(log_z, visible, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("carry_over", [False, True])
def test_a_mask_left_in_a_candidate_makes_it_impossible(carry_over):
    energy = energies.residual_ar(CAUSAL, MASK, 1, carry_over)
    x_t = torch.tensor([0, MASK, MASK])
    drafts = torch.tensor([[0, 1, MASK], [0, 1, 2]])
    assert energy_at(energy, x_t, drafts, torch.zeros(2, 3)).isinf().tolist() == [True, False]


@pytest.mark.parametrize("bos", [None, 1])
def test_padding_counts_in_neither_part_of_the_autoregressive_energy(bos):
    pad = 0
    energy = energies.residual_ar(CAUSAL, MASK, bos, carry_over=False, pad_id=pad)
    drafts, log_p = torch.tensor([[1, 2, 1], [1, 2, 2]]), torch.tensor([[0.0, -1.0, -2.0], [0.0, -1.0, -0.5]])
    x_t = torch.tensor([1, MASK, MASK])
    short = energy_at(energy, x_t, drafts, log_p)
    longer = [nn.functional.pad(x, (0, 2), value=pad) for x in (x_t, drafts, log_p)]
    torch.testing.assert_close(energy_at(energy, *longer), short, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("bos", [None, 1])
def test_autoregressive_energies_of_particles_and_rows_do_not_see_each_other(bos):
    x_t = torch.tensor([[MASK, 0, MASK], [1, MASK, MASK]])
    drafts = torch.tensor([[[1, 0, 2], [0, 0, 0], [2, 0, 1]], [[1, 1, 0], [1, 2, 2], [1, 0, 1]]])
    log_p = -torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    energy = energies.residual_ar(CAUSAL, MASK, bos, carry_over=True)
    inputs = {contracts.X_T: x_t, contracts.CANDIDATES: drafts, contracts.LOG_P_CANDIDATES: log_p}
    inputs[contracts.POSITIONS] = masked_positions(x_t, MASK)
    together = energy_of(energy, TensorDict(inputs))
    for i in range(2):
        for j in range(3):
            alone = energy_at(energy, x_t[i], drafts[i, j : j + 1], log_p[i, j : j + 1])
            torch.testing.assert_close(together[i, j], alone[0], rtol=0.0, atol=1e-10)


def test_the_head_may_run_in_pieces(monkeypatch):
    x = torch.randint(SYMBOLS, (5, 6), generator=torch.Generator().manual_seed(0))
    whole = autoregressive.ar_log_prob(CAUSAL, x, MASK, bos_id=0)
    monkeypatch.setitem(categorical.LOGITS_AT_ONCE, "cpu", 7 * CAUSAL.head.out_features)
    torch.testing.assert_close(autoregressive.ar_log_prob(CAUSAL, x, MASK, bos_id=0), whole, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_id": 4}, "mask_id = 4 is outside"),
        ({"bos_id": -1}, "bos_id = -1 is outside"),
        ({"pad_id": 9}, "pad_id = 9 is outside"),
        ({"network": tiny_network(vocab_size=4)}, r"causal=True \(trunk\.blocks\.0\.attention looks ahead\)"),
        ({"network": JointNetwork(4, 8, 16, 1, 2, 0)}, r"\(denoiser\.trunk\.blocks\.0\.attention looks ahead\)"),
    ],
)
def test_an_autoregressive_energy_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        energies.residual_ar(**({"network": CAUSAL, "mask_id": MASK, "bos_id": 1, "carry_over": True} | arguments))


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
    twice = energies.scaled(energies.scaled(energy, -1.0), -1.0)
    assert torch.equal(energy_of(twice, inputs), energy_of(energy, inputs))


@given(drafts())
def test_energies_of_experts_add(inputs):
    first, second = energies.learned(NETWORK, TIMED), energies.scaled(energies.learned(NETWORK), 0.5)
    found = energy_of(energies.product(first, second, energies.zero()), inputs)
    torch.testing.assert_close(found, energy_of(first, inputs) + energy_of(second, inputs), rtol=0.0, atol=1e-10)
    assert torch.equal(energy_of(energies.product(first), inputs), energy_of(first, inputs))


def test_a_product_reads_what_its_experts_read_and_shows_each_its_own():
    ar = energies.residual_ar(CAUSAL, MASK, 1, carry_over=True)
    product = energies.product(energies.zero(), ar, energies.learned(NETWORK))
    assert product.in_keys == ["candidates", "x_t", "positions", "log_p_candidates", "t"]
    assert energies.product(energies.zero()).in_keys == ["candidates"]
    with pytest.raises(ValueError, match="at least one energy"):
        energies.product()


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_target_of_a_product_is_the_denoiser_times_both_experts(weight):
    """By enumeration: `p_theta exp(-(E_1 + weight E_2))` over all drafts of every state, and its normaliser."""
    joint, other = random_joint(3, SYMBOLS, LENGTH), random_marginals(4, SYMBOLS, LENGTH)
    first, second = residual_energy(joint, MARGINALS), residual_energy(joint, other)
    product = energies.product(OracleEnergy(first), energies.scaled(OracleEnergy(second), weight))

    def added(x, x_t):
        return first(x, x_t) + weight * second(x, x_t)

    for x_t in STATES:
        drafts, log_p = completions(x_t)
        log_target = log_p.sum(-1) - energy_at(product, x_t, drafts, log_p)
        expected = log_p.sum(-1) - added(drafts.unsqueeze(0), x_t.unsqueeze(0))[0]
        torch.testing.assert_close(log_target, expected, rtol=0.0, atol=1e-10)
        z = log_z(MARGINALS, added, x_t.unsqueeze(0))
        torch.testing.assert_close(log_target.logsumexp(-1, keepdim=True), z, rtol=0.0, atol=1e-10)


def test_what_is_impossible_to_one_expert_is_so_to_the_product():
    half = TensorDictModule(
        lambda x: torch.where(x[..., 0] == 0, torch.inf, 1.0), in_keys=["candidates"], out_keys=["energy"]
    )
    found = energy_of(energies.product(energies.zero(), half), TensorDict({"candidates": torch.tensor([[[0], [1]]])}))
    assert found.tolist() == [[float("inf"), 1.0]]


def test_an_energy_holds_its_network():
    energy = energies.learned(NETWORK)
    for module in (energy, energies.scaled(energy, -1.0), energies.product(energies.zero(), energy)):
        assert isinstance(module, contracts.Energy)
        assert {id(p) for p in module.parameters()} == {id(p) for p in NETWORK.parameters()}
