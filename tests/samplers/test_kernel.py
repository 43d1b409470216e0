"""Kernels and what they do to tokens: laws that hold token for token, for any sampler, prompt and seed."""

import itertools

import builders
import pytest
import torch
from builders import SELECTIONS, tiny_denoiser, tiny_energy, wave_energy, wave_marginals
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import OracleDenoiser
from specifications import Spec, filled_up, prompts, slow_sample, specs
from torch import Tensor

import edlm
from edlm import contracts, declaration, samplers
from edlm.process import noise, schedules
from edlm.process.noise import Stream
from edlm.samplers import pipelines

quick = settings(max_examples=25, deadline=None)
thorough = settings(max_examples=100, deadline=None)
seeds = st.integers(0, 2**63 - 1)
rows = st.integers(0, 2**32 - 10)
CORRECTED = ("sir", "imh", "greedy")


def tokens_of(pipeline: pipelines.Pipeline, *arguments: object, **options: object) -> Tensor:
    return edlm.sample(pipeline, *arguments, **options)["tokens"]


# ---- What a sampler is


@thorough
@given(st.data(), specs(), st.integers(1, 3), seeds, rows)
@example(None, Spec(num_steps=None, window=(0.4, 0.8), length=6, num_particles=4), 3, 0, 0)  # rows leave it in turn
@example(None, Spec(num_steps=1, length=6, num_particles=4, temperature=0.5), 3, 1, 0)
@example(None, Spec(num_steps=2, length=6, num_particles=4, temperature=2.0, selection="imh"), 3, 2, 0)
@example(None, Spec(num_steps=None, tokens_per_pass=4, length=6, window=(0.5, 0.9)), 3, 0, 5)
@example(None, Spec(num_steps=2, window=(0.0, 0.5), length=6, selection="imh"), 3, 7, 2**31)
def test_a_sampler_is_a_loop_over_rows_passes_and_positions(
    data: st.DataObject | None, spec: Spec, b: int, seed: int, first_row: int
):
    prompt = data.draw(prompts(spec, b)) if data else None
    tokens = tokens_of(spec.pipeline(), b, seed=seed, first_row=first_row, prompt=prompt)
    start = filled_up(prompt, spec, b).tolist()
    assert tokens.tolist() == [slow_sample(spec, seed, first_row + i, start[i]) for i in range(b)]


@thorough
@given(st.data(), specs(), st.integers(1, 3), seeds)
@example(None, Spec(symbols=1, length=1, num_steps=1), 1, 0)
def test_a_pass_fills_masks_and_changes_nothing_else(data: st.DataObject | None, spec: Spec, b: int, seed: int):
    prompt = data.draw(prompts(spec, b)) if data else None
    states = [filled_up(prompt, spec, b)]
    out = edlm.sample(
        spec.pipeline(), b, seed=seed, prompt=prompt, callback=lambda state, _: states.append(state[contracts.X_T])
    )
    passes = out["info", "denoiser_passes"]
    for p, (before, after) in enumerate(itertools.pairwise(states)):
        given_tokens = before != spec.mask_id
        assert torch.equal(after[given_tokens], before[given_tokens])
        filled = (~given_tokens).sum(1) - (after == spec.mask_id).sum(1)
        assert torch.equal(filled > 0, p < passes)  # a row that has passes left fills in something at each
    assert torch.equal(states[-1], out["tokens"])
    assert ((out["tokens"] >= 0) & (out["tokens"] < spec.symbols)).all()


@quick
@given(st.data(), specs(), st.integers(2, 4), seeds, rows)
def test_a_row_knows_its_own_number_and_prompt_only(data: st.DataObject, spec: Spec, b: int, seed: int, first_row: int):
    pipeline, start = spec.pipeline(), filled_up(data.draw(prompts(spec, b)), spec, b)
    out = edlm.sample(pipeline, b, seed=seed, first_row=first_row, prompt=start)
    for i in range(b):
        alone = edlm.sample(pipeline, 1, seed=seed, first_row=first_row + i, prompt=start[i])
        assert torch.equal(alone["tokens"][0], out["tokens"][i])
        p = alone["info", "t"].shape[1]
        for key in ("t", contracts.ESS, contracts.LOG_WEIGHT_STD):
            torch.testing.assert_close(
                alone["info", key][0], out["info", key][i, :p], equal_nan=True, rtol=1e-9, atol=1e-9
            )


@quick
@given(st.data(), specs(), st.integers(2, 4), seeds)
def test_prompts_of_other_rows_change_nothing(data: st.DataObject, spec: Spec, b: int, seed: int):
    start, other = (filled_up(data.draw(prompts(spec, b)), spec, b) for _ in range(2))
    row = data.draw(st.integers(0, b - 1))
    other[row] = start[row]
    tokens, beside_others = (tokens_of(spec.pipeline(), b, seed=seed, prompt=prompt) for prompt in (start, other))
    assert torch.equal(tokens[row], beside_others[row])


@pytest.mark.parametrize("selection", [None, *CORRECTED])
def test_seeds_and_rows_give_different_samples(selection: str | None):
    pipeline = Spec(symbols=4, length=6, selection=selection).pipeline()
    draws = [tokens_of(pipeline, 8, seed=seed) for seed in (0, 1, 2**32, 2**62, 2**63 - 1)]
    draws += [tokens_of(pipeline, 8, first_row=row) for row in (8, 2**31)]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(draws)
    assert len({tuple(row.tolist()) for row in torch.cat(draws)}) > 40  # of 56 rows, out of 4096 sequences


# ---- Particles and their noise


@quick
@given(st.data(), specs(CORRECTED), seeds)
def test_one_particle_is_plain_sampling(data: st.DataObject, spec: Spec, seed: int):
    prompt = data.draw(prompts(spec, 6))
    one = tokens_of(spec._replace(num_particles=1).pipeline(), 6, seed=seed, prompt=prompt)
    assert torch.equal(one, tokens_of(spec.plain(), 6, seed=seed, prompt=prompt))


@quick
@given(specs(CORRECTED), st.integers(1, 4), seeds)
def test_the_first_candidate_is_the_plain_draw(spec: Spec, k: int, seed: int):
    first = spec._replace(num_particles=k).pipeline(selection=lambda log_w, _: torch.zeros_like(log_w[:, 0]).long())
    assert torch.equal(tokens_of(first, 6, seed=seed), tokens_of(spec.plain(), 6, seed=seed))


@quick
@given(specs(CORRECTED), st.integers(0, 3), st.integers(0, 3), seeds)
def test_candidate_j_does_not_depend_on_how_many_follow(spec: Spec, j: int, more: int, seed: int):
    def always_j(log_w: Tensor, uniforms: Tensor) -> Tensor:
        return torch.full_like(log_w[:, 0], j).long()

    few, many = (spec._replace(num_particles=j + 1 + n).pipeline(selection=always_j) for n in (0, more))
    assert torch.equal(tokens_of(few, 6, seed=seed), tokens_of(many, 6, seed=seed))


@quick
@given(st.data(), specs(CORRECTED), st.integers(1, 8), seeds)
def test_outside_the_window_it_is_plain_sampling(data: st.DataObject, spec: Spec, num_steps: int, seed: int):
    before = data.draw(st.integers(1, num_steps))  # the window lies between this time of the grid and the next
    window = (1 - (before - 0.25) / num_steps, 1 - (before - 0.75) / num_steps)
    spec = spec._replace(num_steps=num_steps, window=window)
    never = spec.pipeline(energy=lambda candidates, x_t: pytest.fail("an energy is computed that no row needs"))
    assert torch.equal(tokens_of(never, 6, seed=seed), tokens_of(spec.plain(), 6, seed=seed))


def test_first_hitting_outside_the_window_is_plain_sampling():
    spec = Spec(num_steps=None, window=(0.0, 0.0))  # a reveal time of exactly 0 has no probability
    never = spec.pipeline(energy=lambda candidates, x_t: pytest.fail("an energy is computed that no row needs"))
    assert torch.equal(tokens_of(never, 8), tokens_of(spec.plain(), 8))


def test_rows_inside_and_outside_the_window_share_a_pass():
    spec = Spec(symbols=4, length=6, num_steps=None, num_particles=4, window=(0.4, 0.8))
    out = edlm.sample(spec.pipeline(), 32)
    inside = out["info", "corrected"]
    assert (inside.any(0) & ~inside.all(0)).all()  # every pass has rows of both kinds
    plain, full = spec.plain(), spec._replace(window=(0.0, 1.0)).pipeline()
    first_states = []
    for pipeline in (spec.pipeline(), plain, full):
        states: list[Tensor] = []
        edlm.sample(pipeline, 32, callback=lambda state, _, states=states: states.append(state[contracts.X_T]))
        first_states.append(states[0])
    mixed, uncorrected, corrected = first_states
    assert torch.equal(mixed, torch.where(inside[:, :1], corrected, uncorrected))
    assert not torch.equal(corrected, uncorrected)


def test_no_two_draws_share_a_number():
    kernel, b, l = Spec(num_particles=3).kernel(), 4, 5
    draws = [kernel.draw(torch.tensor(5), torch.arange(b), torch.tensor(p), torch.arange(b * l), l) for p in range(3)]
    proposals = torch.stack([draw[contracts.PROPOSAL_NOISE] for draw in draws])
    selections = torch.stack([draw[contracts.SELECTION_NOISE] for draw in draws])
    assert (proposals.shape, selections.shape) == ((3, b * l, 3), (3, b, 3))
    plan = noise.grid(torch.tensor(5), torch.arange(b), 0, Stream.REVEAL, l)
    everything = torch.cat([proposals.flatten(), selections.flatten(), plan.flatten()])
    assert everything.dtype == torch.float64
    assert len(everything.unique()) == len(everything)


def test_noise_belongs_to_a_position_whichever_others_are_asked_for():
    draw = Spec(num_particles=2).kernel().draw
    key = (torch.tensor(5), torch.tensor([3, 9]), torch.tensor(1))
    every = draw(*key, torch.arange(10), 5)
    some = draw(*key, torch.tensor([8, 2, 10]), 5)  # the last one is padding
    assert torch.equal(some[contracts.PROPOSAL_NOISE][:2], every[contracts.PROPOSAL_NOISE][[8, 2]])
    assert torch.equal(some[contracts.SELECTION_NOISE], every[contracts.SELECTION_NOISE])


# ---- Energies


@quick
@given(specs(CORRECTED), seeds)
def test_a_constant_per_row_changes_no_sample(spec: Spec, seed: int):
    energy = wave_energy(spec.seed, spec.length)

    def shifted(candidates: Tensor, x_t: Tensor) -> Tensor:
        return energy(candidates, x_t) + 100.0 * x_t.double().sin().sum(-1, keepdim=True)

    assert torch.equal(tokens_of(spec.pipeline(energy=shifted), 6, seed=seed), tokens_of(spec.pipeline(), 6, seed=seed))


@quick
@given(specs(("sir", "imh")), st.sampled_from([0.25, 0.5, 4.0]), seeds)
def test_temperature_divides_the_energy(spec: Spec, factor: float, seed: int):
    energy = wave_energy(spec.seed, spec.length)
    hotter = spec._replace(temperature=spec.temperature * factor).pipeline(
        energy=lambda x, x_t: factor * energy(x, x_t)
    )
    assert torch.equal(tokens_of(hotter, 6, seed=seed), tokens_of(spec.pipeline(), 6, seed=seed))


@quick
@given(specs(), seeds)
def test_temperature_of_plain_sampling_divides_the_logits(spec: Spec, seed: int):
    spec = spec._replace(selection=None)
    marginals = wave_marginals(spec.seed, spec.symbols, spec.length)
    tempered = OracleDenoiser(lambda x_t: marginals(x_t) / spec.temperature, spec.mask_id)
    expected = spec.pipeline()._replace(kernel=samplers.kernel_of(builders.ancestral(spec.schedule, tempered)))
    assert torch.equal(tokens_of(spec.pipeline(), 6, seed=seed), tokens_of(expected, 6, seed=seed))


# ---- Over networks


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask_id", [0, 2, 4])
@pytest.mark.parametrize("conditioned", [False, True])
def test_networks_never_draw_the_mask(dtype: torch.dtype, mask_id: int, conditioned: bool):
    schedule = schedules.log_linear(1e-3)
    denoiser = tiny_denoiser(mask_id=mask_id, schedule=schedule if conditioned else None).to(dtype)
    with torch.no_grad():
        denoiser.network.head.bias[mask_id] = 100.0  # the network itself would draw nothing else
    kernel = builders.importance(schedule, denoiser, tiny_energy().to(dtype), num_particles=3)
    prompt = torch.tensor([(mask_id + 1) % 5, mask_id, (mask_id + 2) % 5])
    tokens = tokens_of(builders.sampling(kernel, 8, 4, window=(0.3, 1.0)), 6, prompt=prompt)
    assert tokens.dtype == torch.int64
    assert (tokens != mask_id).all()
    assert (tokens[:, [0, 2]] == prompt[[0, 2]]).all()


@pytest.mark.parametrize("selection", [None, *CORRECTED])
def test_rows_of_networks_are_independent(selection: str | None):
    denoiser, schedule = tiny_denoiser(), schedules.log_linear()
    kernel = builders.ancestral(schedule, denoiser)
    if selection is not None:
        kernel = builders.importance(schedule, denoiser, tiny_energy(), 3, selection=SELECTIONS[selection])
    pipeline = builders.sampling(kernel, 7, 3)
    tokens = tokens_of(pipeline, 6, seed=3)
    parts = [tokens_of(pipeline, n, seed=3, first_row=row) for row, n in ((0, 1), (1, 3), (4, 2))]
    assert torch.equal(torch.cat(parts), tokens)


def test_stages_print_as_the_algorithm():
    lines = declaration.algorithm(Spec().kernel().step).splitlines()
    assert [line.split()[0] for line in lines] == ["denoise", "propose", "weigh", "select", "reveal", "count"]
    assert lines[2] == "weigh    candidates, x_t -> energy"
    assert [line.split()[0] for line in declaration.algorithm(Spec(selection=None).kernel().step).splitlines()] == [
        "denoise",
        "propose",
        "reveal",
        "count",
    ]


# ---- Mistakes


@pytest.mark.parametrize("num_particles", [0, -1])
def test_no_particles_is_an_error(num_particles: int):
    with pytest.raises(ValueError, match=f"candidates = {num_particles} must be at least 1"):
        Spec(num_particles=num_particles).kernel()


@pytest.mark.parametrize("selection", [None, "sir"])
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_an_error(selection: str | None, temperature: float):
    with pytest.raises(ValueError, match=f"temperature = {temperature} must be positive"):
        Spec(selection=selection, temperature=temperature).kernel()


def test_a_temperature_of_the_proposal_is_named_by_its_own_key():
    with pytest.raises(ValueError, match=r"^proposal\.temperature = 0\.0 must be positive"):
        builders.importance(schedules.log_linear(), tiny_denoiser(), tiny_energy(), 2, proposal_temperature=0.0)
