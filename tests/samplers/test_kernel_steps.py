"""One step of a kernel: its candidates and their law, which of them is chosen, and what changes nothing."""

import pytest
import torch
from builders import wave_marginals
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import EnergyFn
from specifications import Spec, specs
from tensordict import TensorDict
from torch import Tensor

import edlm
from edlm import contracts
from edlm.process import categorical
from edlm.samplers.kernel import Kernel

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**63 - 1)
CORRECTED = ("sir", "imh", "greedy")


def step_inputs(kernel: Kernel, x_t: Tensor, reveal: Tensor, seed: int, corrected: bool = True) -> TensorDict:
    """What a kernel's step reads, for rows that start from x_t and reveal the given positions."""
    b, l = x_t.shape
    wanted = x_t == kernel.denoiser.mask_id if corrected else reveal
    positions = wanted.flatten().nonzero().squeeze(-1)
    draws = kernel.draw(torch.tensor(seed), torch.arange(b), torch.tensor(0), positions, l)
    return TensorDict(
        {
            contracts.X_T: x_t,
            contracts.T: torch.full((b,), 0.5, dtype=torch.float64),
            contracts.POSITIONS: positions,
            contracts.REVEAL: reveal,
            contracts.CORRECTED: torch.full((b,), corrected),
            **draws,
        }
    )


@st.composite
def states(draw: st.DrawFn, spec: Spec, b: int) -> tuple[Tensor, Tensor]:
    """Some tokens and masks, and some of the masks to reveal: (b, l) each."""
    flat = draw(st.lists(st.integers(0, spec.mask_id), min_size=b * spec.length, max_size=b * spec.length))
    x_t = torch.tensor(flat).view(b, spec.length)
    revealed = draw(st.lists(st.booleans(), min_size=x_t.numel(), max_size=x_t.numel()))
    return x_t, torch.tensor(revealed).view_as(x_t) & (x_t == spec.mask_id)


def table_energy(table: Tensor) -> EnergyFn:
    return lambda candidates, x_t: table


@quick
@given(st.data(), specs(CORRECTED), seeds, st.floats(0.0, 50.0))
def test_a_chosen_candidate_of_lower_energy_stays_chosen(data: st.DataObject, spec: Spec, seed: int, gain: float):
    x_t, reveal = data.draw(states(spec, b := 4))
    numbers = st.floats(-30.0, 30.0)
    k = spec.num_particles
    table = torch.tensor(data.draw(st.lists(numbers, min_size=b * k, max_size=b * k)), dtype=torch.float64).view(b, k)
    kernel = spec.kernel(energy=table_energy(table))
    inputs = step_inputs(kernel, x_t, reveal, seed)
    chosen = kernel.step(inputs)[contracts.CHOSEN]
    lower = table.scatter_add(1, chosen.unsqueeze(1), torch.full((b, 1), -gain, dtype=torch.float64))
    assert torch.equal(spec.kernel(energy=table_energy(lower)).step(inputs)[contracts.CHOSEN], chosen)


@pytest.mark.parametrize("selection", CORRECTED)
def test_energy_decides(selection: str):
    """100 nats are a certainty: the candidate of low energy is kept, and its sign-flipped twin never."""
    spec, x_t = Spec(selection=selection, num_particles=3), torch.full((3, 4), 3)
    table = 100.0 - 100.0 * torch.eye(3, dtype=torch.float64)  # row i wants candidate i
    out = spec.kernel(energy=table_energy(table)).step(step_inputs(spec.kernel(), x_t, x_t == 3, seed=0))
    assert out[contracts.CHOSEN].tolist() == [0, 1, 2]
    expected = torch.stack([out[contracts.CANDIDATES][i, i] for i in range(3)])
    assert torch.equal(out[contracts.X_S], expected)
    flipped = spec.kernel(energy=table_energy(-table)).step(step_inputs(spec.kernel(), x_t, x_t == 3, seed=0))
    assert (flipped[contracts.CHOSEN] != torch.arange(3)).all()


@quick
@given(st.data(), specs(), seeds)
def test_a_step_is_a_pure_function_of_its_input(data: st.DataObject, spec: Spec, seed: int):
    x_t, reveal = data.draw(states(spec, 3))
    kernel = spec.kernel()
    inputs = step_inputs(kernel, x_t, reveal, seed, corrected=spec.selection is not None)
    before = inputs.clone()
    out, again = kernel.step(inputs), kernel.step(inputs)
    assert set(inputs.keys()) == set(before.keys())
    assert all(torch.equal(inputs[key], before[key]) for key in before.keys())  # noqa: SIM118
    assert all(torch.equal(out[key], again[key]) for key in out.keys())  # noqa: SIM118


@quick
@given(st.data(), specs(), seeds)
def test_candidates_are_whole_drafts_with_their_log_probability(data: st.DataObject, spec: Spec, seed: int):
    x_t, reveal = data.draw(states(spec, 3))
    kernel = spec.kernel()
    masked = x_t == spec.mask_id
    wanted = masked if spec.selection is not None else reveal
    out = kernel.step(step_inputs(kernel, x_t, reveal, seed, corrected=spec.selection is not None))
    candidates = out[contracts.CANDIDATES]
    assert candidates.shape == (3, kernel.num_particles, spec.length)
    assert torch.equal((candidates == spec.mask_id).any(1), masked & ~wanted)
    assert (wanted.unsqueeze(1) | (candidates == x_t.unsqueeze(1))).all()
    heat = spec.temperature if spec.selection is None else 1.0
    log_p = (wave_marginals(spec.seed, spec.symbols, spec.length)(x_t) / heat).log_softmax(-1)
    log_p = log_p.unsqueeze(1).expand(*candidates.shape, -1).gather(-1, candidates.unsqueeze(-1)).squeeze(-1)
    expected = torch.where(wanted.unsqueeze(1), log_p, 0.0)
    torch.testing.assert_close(out[contracts.LOG_P_CANDIDATES], expected, rtol=1e-9, atol=1e-9)
    chosen = out.get(contracts.CHOSEN, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(out[contracts.X_S], torch.where(reveal, candidates[torch.arange(3), chosen], x_t))


@quick
@given(st.data(), specs(), st.integers(1, 20), seeds)
def test_padded_positions_change_nothing(data: st.DataObject, spec: Spec, padding: int, seed: int):
    x_t, reveal = data.draw(states(spec, 3))
    kernel = spec.kernel()
    inputs = step_inputs(kernel, x_t, reveal, seed, corrected=spec.selection is not None)
    positions = torch.cat([inputs[contracts.POSITIONS], torch.full((padding,), x_t.numel())])
    draws = kernel.draw(torch.tensor(seed), torch.arange(3), torch.tensor(0), positions, spec.length)
    padded = kernel.step(TensorDict({**inputs, contracts.POSITIONS: positions, **draws}))
    out = kernel.step(inputs)
    for key in (contracts.X_S, contracts.CANDIDATES, contracts.LOG_P_CANDIDATES):
        assert torch.equal(padded[key], out[key])


def test_a_row_outside_the_window_keeps_its_first_candidate_whatever_the_energies():
    spec, x_t = Spec(num_particles=4), torch.full((2, 4), 3)
    kernel = spec.kernel(energy=lambda x, x_t: torch.tensor([[torch.nan] * 4, [9.0, 9.0, 9.0, -100.0]]))
    inputs = step_inputs(kernel, x_t, x_t == 3, seed=0)
    inputs[contracts.CORRECTED] = torch.tensor([False, True])
    assert kernel.step(inputs)[contracts.CHOSEN].tolist() == [0, 3]


@pytest.mark.parametrize("selection", [None, "sir"])
def test_drawing_in_tiles_changes_no_token(selection: str | None, monkeypatch: pytest.MonkeyPatch):
    pipeline = Spec(selection=selection, length=6).pipeline()
    whole = edlm.sample(pipeline, 8)
    for logits in (1, 12, 50):
        monkeypatch.setitem(categorical.LOGITS_AT_ONCE, "cpu", logits)
        out = edlm.sample(pipeline, 8)
        assert torch.equal(out["tokens"], whole["tokens"])
        assert torch.equal(out["info", "energy_passes"], whole["info", "energy_passes"])
