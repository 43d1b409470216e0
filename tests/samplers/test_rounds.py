"""Particles drawn until they suffice: the exact law, the two limits, and rows that stop by themselves."""

from functools import partial

import builders
import pytest
import torch
from builders import SELECTIONS, tiny_denoiser, tiny_energy, wave_energy, wave_marginals
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    OracleDenoiser,
    OracleEnergy,
    adaptive_sir,
    all_masked_states,
    random_marginals,
    sampler_law,
    sir,
)
from specifications import Spec
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

import edlm
from edlm.process import particles, schedules
from edlm.samplers import execution
from edlm.samplers.pipelines import Pipeline
from edlm.samplers.sampler import Sampler, UntilEss, kernel_of

SYMBOLS, LENGTH, MASK = 2, 3, 2


def spiky(x: Tensor, x_t: Tensor) -> Tensor:
    """An energy whose weights are uneven in some states and even in others."""
    return 2.5 * wave_energy(3, LENGTH, 1.0)(x, x_t)


def pipeline(target_ess: float, spec: Spec, first: int = 1, most: int = 4) -> Pipeline:
    """The sampler of a Spec with as many particles as it takes."""
    build = builders.importance if spec.proposes == "masked" else builders.of_transitions
    kernel = build(
        spec.schedule,
        OracleDenoiser(wave_marginals(spec.seed, spec.symbols, spec.length), spec.mask_id),
        OracleEnergy(wave_energy(spec.seed, spec.length)),
        most,
        spec.temperature,
        SELECTIONS[spec.selection or "sir"],
    )
    kernel = builders.in_rounds(kernel, target_ess, first)
    return builders.sampling(kernel, spec.length, spec.num_steps, spec.window)


def tiny_kernel(k: int, temperature: float = 1.0) -> Sampler:
    return builders.importance(schedules.log_linear(), tiny_denoiser(), tiny_energy(), k, temperature)


def test_the_enumerated_law_has_the_fixed_ones_as_limits():
    marginals = random_marginals(1, SYMBOLS, LENGTH)
    law = partial(sampler_law, marginals, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), spiky)
    for target_ess, k in ((0.5, 1), (9.0, 4)):
        torch.testing.assert_close(law(adaptive_sir([1, 2, 4], target_ess)), law(sir(k)))
    assert len(all_masked_states(SYMBOLS, LENGTH)) == 27


@settings(max_examples=25)
@given(st.integers(0, 100), st.sampled_from(["sir", "imh", "greedy"]), st.sampled_from([2, None]))
def test_the_limits_are_the_fixed_numbers_of_particles_token_for_token(
    seed: int, selection: str, num_steps: int | None
):
    spec = Spec(seed=seed, selection=selection, num_steps=num_steps)
    for target_ess, k in ((1.0, 2), (5.0, 5)):
        ours = edlm.sample(pipeline(target_ess, spec, first=2, most=5), 8, seed=seed)
        fixed = edlm.sample(spec._replace(num_particles=k).pipeline(), 8, seed=seed)
        assert torch.equal(ours["tokens"], fixed["tokens"])
        for key in ("particles", "energy_passes", "ess", "log_weight_std"):
            torch.testing.assert_close(ours["info", key], fixed["info", key], equal_nan=True)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.floats(1.0, 6.0))
def test_a_row_stops_at_the_first_size_that_suffices(seed: int, target_ess: float):
    spec = Spec(seed=seed % 7, window=(0.0, 1.0), num_steps=3, temperature=0.5)
    info = edlm.sample(pipeline(target_ess, spec, first=1, most=6), 12, seed=seed)["info"]
    count, ess = info["particles"], info["ess"]
    assert set(count[info["corrected"]].tolist()) <= {1, 2, 4, 6}
    assert (count[~info["corrected"]] == 0).all()
    assert ((ess >= target_ess) | (count == 6))[info["corrected"]].all()
    assert torch.equal(info["energy_passes"], count.sum(1))


@pytest.mark.parametrize("target_ess", [1.0, 1.3, 2.0, 3.0])
@pytest.mark.parametrize("selection", ["sir", "imh"])
def test_in_one_step_each_size_is_the_fixed_kernels_and_the_first_that_suffices_is_kept(
    selection: str, target_ess: float
):
    """From masks alone the particles of a size are those that the kernel of so many draws, and so is the one chosen."""
    spec = Spec(num_steps=1, temperature=0.5, selection=selection)
    sizes = (1, 2, 4, 6)
    fixed = [edlm.sample(spec._replace(num_particles=k).pipeline(), 40, seed=3) for k in sizes]
    ours = edlm.sample(pipeline(target_ess, spec, first=1, most=6), 40, seed=3)
    enough = torch.cat([each["info", "ess"] >= target_ess for each in fixed], dim=1)
    stopped = torch.where(enough.any(1), enough.int().argmax(1), len(sizes) - 1)
    assert torch.equal(ours["info", "particles"].squeeze(1), torch.tensor(sizes)[stopped])
    assert (len(stopped.unique()) > 1) == (target_ess > 1.0)
    for row, size in enumerate(stopped.tolist()):
        assert torch.equal(ours["tokens"][row], fixed[size]["tokens"][row])


def test_a_proposal_of_its_own_is_weighed_in_rounds_as_at_once():
    how = {"proposal_temperature": 0.5, "nucleus": 0.8}
    fixed = builders.importance(schedules.log_linear(), tiny_denoiser(), tiny_energy(), 4, **how)
    ours, expected = (
        edlm.sample(builders.sampling(kernel, 8, 3), 6) for kernel in (builders.in_rounds(fixed, 9.0, 1), fixed)
    )
    assert torch.equal(ours["tokens"], expected["tokens"])
    torch.testing.assert_close(ours["info", "ess"], expected["info", "ess"], equal_nan=True)


def test_rows_that_go_on_are_told_their_own_times():
    schedule = schedules.log_linear(1e-3)
    network = tiny_energy().network
    parts = tiny_denoiser(schedule=schedule), edlm.energies.learned(network, schedule)
    kernel = builders.in_rounds(builders.importance(schedule, *parts, 8, 0.3), 2.5, 1)
    batch = builders.sampling(kernel, 8, num_steps=None, tokens_per_pass=2)
    together = edlm.sample(batch, 6)
    assert (together["info", "particles"] > 1).any()
    for row in range(6):
        alone = edlm.sample(batch, 1, first_row=row)
        assert torch.equal(alone["tokens"][0], together["tokens"][row])
        assert torch.equal(alone["info", "particles"][0], together["info", "particles"][row])


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 5))
def test_what_a_row_draws_does_not_depend_on_the_others(seed: int, b: int):
    batch = pipeline(2.0, Spec(temperature=0.5, window=(0.3, 1.0)))
    together = edlm.sample(batch, b, seed=seed)
    for row in range(b):
        alone = edlm.sample(batch, 1, seed=seed, first_row=row)
        assert torch.equal(alone["tokens"][0], together["tokens"][row])
        assert alone["info", "energy_passes"][0] == together["info", "energy_passes"][row]


def test_a_row_that_has_enough_costs_no_more_energies():
    weighed: list[int] = []
    spec = Spec(temperature=0.3)
    ours = pipeline(2.0, spec)
    ours.kernel.step.weigh.register_forward_hook(lambda _, __, out: weighed.append(out["energy"].numel()))
    info = edlm.sample(ours, 8)["info"]
    assert sum(weighed) == info["energy_passes"].sum() < 8 * 3 * 4
    assert min(weighed) > 0, "the energy is not asked about no rows"


def test_a_row_outside_the_window_draws_no_second_time():
    """Beside rows that are in it, and draw all their particles, it goes through the first round alone."""
    weighed: list[int] = []
    ours = pipeline(9.0, Spec(num_steps=None, length=6, window=(0.4, 0.7)), first=1, most=4)
    ours.kernel.step.weigh.register_forward_hook(lambda _, __, out: weighed.append(out["energy"].numel()))
    info = edlm.sample(ours, 8)["info"]
    corrected, running = info["corrected"], info["t"] > 0
    beside = int((running & ~corrected)[:, corrected.any(0)].sum())
    assert beside > 0
    assert int(info["energy_passes"].sum()) == 4 * int(corrected.sum())
    assert sum(weighed) == 4 * int(corrected.sum()) + beside


def test_what_wraps_the_parts_gets_both_and_positions_as_many_as_it_asks_for():
    """What pads them changes no token."""
    wrapped: list[TensorDictModuleBase] = []
    positions: list[int] = []
    slow = builders.sampling(builders.in_rounds(tiny_kernel(6, temperature=0.3), 2.0), 6, num_steps=3)
    step = slow.kernel.step

    def wrap(part: TensorDictModuleBase) -> TensorDictModuleBase:
        wrapped.append(part)
        return part

    padded = slow._replace(kernel=slow.kernel._replace(step=step.with_parts(wrap, lambda count: 4 * (count // 4 + 1))))
    assert wrapped == [step.expect, step.weigh]
    expected = edlm.sample(slow, 3)
    step.weigh.register_forward_pre_hook(lambda _, inputs: positions.append(len(inputs[0]["positions"])))
    assert torch.equal(edlm.sample(padded, 3)["tokens"], expected["tokens"])
    assert positions
    assert {count % 4 for count in positions} == {0}


@pytest.mark.parametrize("b", [1, 3])
def test_compiled_rounds_give_the_same_tokens(b: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    kernel = builders.in_rounds(tiny_kernel(6, temperature=0.3), 2.0)
    slow = builders.sampling(kernel, 6, num_steps=3)
    fast = execution.accelerate(slow, "compile")
    assert torch.equal(edlm.sample(fast, b)["tokens"], edlm.sample(slow, b)["tokens"])
    assert len(edlm.sample(slow, 3)["info", "particles"].unique()) > 1


@pytest.mark.slow
def test_each_part_is_one_graph(monkeypatch: pytest.MonkeyPatch):
    """Traced but not translated, which is what takes the time."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    kernel = builders.in_rounds(tiny_kernel(4, temperature=0.3), 2.0)
    slow = builders.sampling(kernel, 6, num_steps=3)
    fast = execution.accelerate(slow, "compile")
    for seed in range(3):
        assert torch.equal(edlm.sample(fast, 3, seed=seed)["tokens"], edlm.sample(slow, 3, seed=seed)["tokens"])
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2.0, 5), "first = 5 must lie in 1..4, the most candidates"),
        ((2.0, 0), "first = 0 must lie in 1..4, the most candidates"),
        ((0.0, 2), "target_ess = 0.0 must be positive"),
    ],
)
def test_bad_input_is_named(arguments: tuple[float, int], message: str):
    with pytest.raises(ValueError, match=message):
        builders.in_rounds(tiny_kernel(4), *arguments)


def test_a_sampler_that_has_no_rounds_to_take_is_refused():
    plain = builders.ancestral(schedules.log_linear(), tiny_denoiser())
    with pytest.raises(ValueError, match=r"candidates = UntilEss\(.*\) needs a correction"):
        builders.in_rounds(plain, 2.0, 1)
    with pytest.raises(ValueError, match=r"candidates = .* weighs none"):
        builders.speculative(schedules.log_linear(), tiny_denoiser()).replace(candidates=UntilEss(2.0, 4))


def test_the_spread_of_the_log_weights_is_over_the_particles_that_were_drawn():
    log_weights = torch.tensor([[0.0, 2.0, -torch.inf, -torch.inf], [1.0, -torch.inf, 5.0, 5.0]]).double()
    spread = particles.log_weight_std(log_weights, torch.tensor([2, 2]))
    torch.testing.assert_close(spread, torch.tensor([2.0**0.5, torch.inf]).double())
    torch.testing.assert_close(particles.log_weight_std(log_weights[:1, :2]), spread[:1])


def test_the_kernel_is_the_fixed_one_but_for_its_step():
    fixed = tiny_kernel(6)
    built = kernel_of(fixed)
    adaptive = kernel_of(builders.in_rounds(fixed, 2.0))
    assert (adaptive.denoiser, adaptive.init, adaptive.proposes) == (built.denoiser, built.init, built.proposes)
    assert adaptive.num_particles == built.num_particles


def test_rounds_over_what_is_revealed_have_the_fixed_numbers_as_limits():
    spec = Spec(num_steps=2)
    for target_ess, k in ((1.0, 2), (5.0, 5)):
        ours = pipeline(target_ess, spec._replace(proposes="revealed"), first=2, most=5)
        fixed = spec._replace(num_particles=k, proposes="revealed").pipeline()
        for seed in range(5):
            found, expected = edlm.sample(ours, 4, seed=seed), edlm.sample(fixed, 4, seed=seed)
            assert torch.equal(found["tokens"], expected["tokens"])
            assert torch.equal(found["info", "energy_passes"], expected["info", "energy_passes"])
