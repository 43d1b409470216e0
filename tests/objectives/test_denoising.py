"""Losses of training: their value, what they depend on, where their gradient goes, and what they refuse."""

import math

import pytest
import torch
from builders import tiny_denoiser, tiny_energy, tiny_network
from hypothesis import settings
from hypothesis import strategies as st
from joint_networks import joint_network
from specifications import Spec
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import Tensor

import edlm
from edlm import contracts, declaration
from edlm.models import denoisers
from edlm.objectives import contrastive, denoising, joint, losses, transition
from edlm.process import noise, schedules
from edlm.process.noise import Stream
from edlm.process.schedules import Schedule

quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**63 - 1)
MASK = 3  # of the default Spec


# ---- Training a denoiser


def batch(b: int = 6, l: int = 7, v: int = 5, seed: int = 3, step: int = 2) -> TensorDict:
    tokens = torch.randint(0, v - 1, (b, l), generator=torch.Generator().manual_seed(seed))
    return TensorDict(
        {
            contracts.X_0: tokens,
            contracts.SEED: torch.tensor(seed),
            contracts.ROW: torch.arange(b),
            contracts.STEP: torch.tensor(step),
            contracts.NUM_ROWS: torch.tensor(b),
        }
    )


def part(whole: TensorDict, rows: slice) -> TensorDict:
    keys = {key: whole[key][rows] for key in (contracts.X_0, contracts.ROW)}
    return TensorDict({**{key: whole[key] for key in (contracts.SEED, contracts.STEP, contracts.NUM_ROWS)}, **keys})


def corrupted(schedule: Schedule, inputs: TensorDict, row: int, low: float, mask_id: int) -> tuple[Tensor, Tensor]:
    """The time of a row, one of a stratum each, and its tokens at that time."""
    number, seed, step = (
        int(inputs[key][row]) if inputs[key].ndim else int(inputs[key]) for key in ("row", "seed", "step")
    )
    u = noise.uniforms(seed, torch.tensor(number), step, Stream.TIME).squeeze(-1)
    t = low + (1 - low) * ((u + number) / int(inputs[contracts.NUM_ROWS]))
    tokens = inputs[contracts.X_0][row].clone()
    for i in range(len(tokens)):
        if noise.uniforms(seed, torch.tensor(number), step, Stream.CORRUPTION, i).item() < 1 - schedule.alpha(t):
            tokens[i] = mask_id
    return t, tokens


SCHEDULES = {"log_linear": schedules.log_linear(1e-3), "cosine": schedules.cosine(1e-3)}


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("mask_id", [0, 4])
def test_denoising_is_the_weighted_sum_over_masked_positions(name: str, conditioned: bool, mask_id: int):
    schedule, network, inputs = SCHEDULES[name], tiny_network(), batch()
    inputs[contracts.X_0] += mask_id == 0  # data hold no mask
    denoiser = edlm.denoisers.subs(network, mask_id, schedule if conditioned else None)
    out = denoising.denoising(denoiser, schedule, time_low=0.1)(inputs)
    for row in range(6):
        t, x_t = corrupted(schedule, inputs, row, 0.1, mask_id)
        assert torch.equal(out[contracts.X_T][row], x_t)
        torch.testing.assert_close(out[contracts.T][row], t)
        alpha = float(schedule.alpha(t))
        sigma = -torch.log(torch.tensor([alpha if conditioned else 1.0], dtype=torch.float64))
        logits = network.head(network(x_t.unsqueeze(0), sigma))[0]
        nll = 0.0
        for i in (x_t == mask_id).nonzero().flatten().tolist():
            others = torch.cat([logits[i, :mask_id], logits[i, mask_id + 1 :]])
            nll += (others.logsumexp(0) - logits[i, inputs[contracts.X_0][row, i]]).item()
        slope = (float(schedule.alpha(t + 1e-6)) - float(schedule.alpha(t - 1e-6))) / 2e-6
        assert out[contracts.LOSS][row].item() == pytest.approx(-slope / (1 - alpha) * nll, rel=1e-6)


@pytest.mark.parametrize("objective", ["denoising", "contrastive"])
def test_padding_is_never_masked(objective: str):
    inputs, pad_id = batch(b=16), 2
    denoiser, schedule = tiny_denoiser(), schedules.log_linear()
    if objective == "denoising":
        pipeline = denoising.denoising(denoiser, schedule, pad_id=pad_id)
    else:
        pipeline = contrastive.contrastive(denoiser, tiny_energy(), schedule, pad_id=pad_id)
    padding, x_t = inputs[contracts.X_0] == pad_id, pipeline(inputs)[contracts.X_T]
    assert padding.any()
    assert torch.equal(x_t[padding], inputs[contracts.X_0][padding])
    without = stages_of(objective)(inputs)[contracts.X_T]
    assert (without[padding] == 4).any()
    assert torch.equal(x_t[~padding], without[~padding])


def test_times_are_stratified_over_the_whole_batch():
    out = denoising.denoising(tiny_denoiser(), schedules.log_linear(), time_low=0.2)(batch(b=10))
    assert torch.equal(((out[contracts.T] - 0.2) / 0.8 * 10).floor().long().sort().values, torch.arange(10))


def stages_of(objective: str) -> TensorDictSequential:
    if objective == "denoising":
        return denoising.denoising(tiny_denoiser(), schedules.log_linear())
    if objective == "transition":
        return transition.contrastive(tiny_denoiser(), tiny_energy(), schedules.log_linear(), (1, 5), num_negatives=3)
    return contrastive.contrastive(tiny_denoiser(), tiny_energy(), schedules.log_linear(), num_negatives=3)


every_training = pytest.mark.parametrize("objective", ["denoising", "contrastive", "transition"])


@every_training
def test_the_loss_does_not_depend_on_how_the_batch_is_split(objective: str):
    pipeline, whole = stages_of(objective), batch(b=6)
    loss = pipeline(whole)[contracts.LOSS]
    parts = [pipeline(part(whole, rows))[contracts.LOSS] for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    torch.testing.assert_close(torch.cat(parts), loss, rtol=1e-9, atol=1e-9)


@every_training
def test_a_step_and_a_seed_have_their_own_noise(objective: str):
    pipeline = stages_of(objective)
    outs = [pipeline(batch(l=8, seed=1, step=1))]
    for key, value in ((contracts.STEP, 2), (contracts.SEED, 2), (contracts.ROW, torch.arange(10, 16))):
        inputs = batch(l=8, seed=1, step=1)
        inputs[key] = torch.as_tensor(value)
        outs.append(pipeline(inputs))
    for key in (contracts.T, contracts.X_T):
        assert len({tuple(out[key].flatten().tolist()) for out in outs}) == 4


@every_training
def test_training_does_not_write_into_its_input(objective: str):
    inputs = batch()
    before = inputs.clone()
    stages_of(objective)(inputs)
    assert set(inputs.keys()) == set(before.keys())
    assert all(torch.equal(inputs[key], before[key]) for key in before.keys())  # noqa: SIM118


@every_training
def test_the_gradient_reaches_every_parameter_that_is_trained(objective: str):
    pipeline = stages_of(objective)
    pipeline(batch(b=16))[contracts.LOSS].mean().backward()
    trained = pipeline["denoise" if objective == "denoising" else "weigh"]
    names = [name for name, p in trained.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert names == []


def test_the_gradient_of_denoising_is_that_of_the_loss():
    pipeline, inputs = stages_of("denoising"), batch(b=4)
    weight = pipeline["denoise"].network.head.weight
    pipeline(inputs)[contracts.LOSS].mean().backward()
    for index in ((0, 0), (3, 5)):
        ends = []
        for change in (1e-5, -2e-5):
            with torch.no_grad():
                weight[index] += change
            ends.append(pipeline(inputs)[contracts.LOSS].mean().item())
        with torch.no_grad():
            weight[index] += 1e-5
        assert weight.grad[index].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-7)


# ---- Training an energy


@pytest.mark.parametrize("num_negatives", [1, 3])
@pytest.mark.parametrize("objective", [losses.nce, losses.info_nce])
def test_contrast_is_the_objective_of_the_data_and_its_drafts(num_negatives: int, objective):
    energy, inputs = tiny_energy(), batch()
    pipeline = contrastive.contrastive(
        tiny_denoiser(), energy, schedules.log_linear(), num_negatives, objective=objective
    )
    out = pipeline(inputs)
    candidates, x_t = out[contracts.CANDIDATES], out[contracts.X_T]
    assert candidates.shape == (6, 1 + num_negatives, 7)
    assert torch.equal(candidates[:, 0], inputs[contracts.X_0])
    kept = (x_t != 4).unsqueeze(1).expand_as(candidates)
    assert torch.equal(candidates[kept], x_t.unsqueeze(1).expand_as(candidates)[kept])
    assert (candidates != 4).all()
    for row in range(6):
        e = [
            energy.module(x.view(1, 1, -1), x_t[row : row + 1], out[contracts.T][row : row + 1]).item()
            for x in candidates[row]
        ]
        if objective is losses.nce:
            expected = math.log1p(math.exp(e[0])) + sum(math.log1p(math.exp(-n)) for n in e[1:]) / num_negatives
        else:
            expected = e[0] + math.log(sum(math.exp(-n) for n in e))
        assert out[contracts.LOSS][row].item() == pytest.approx(expected, rel=1e-9)


def test_negatives_differ_from_each_other_and_do_not_depend_on_their_number():
    denoiser, energy, inputs = tiny_denoiser(), tiny_energy(), batch(b=8)
    few, many = (
        contrastive.contrastive(denoiser, energy, schedules.log_linear(), n)(inputs)[contracts.CANDIDATES]
        for n in (2, 5)
    )
    assert torch.equal(few, many[:, :3])
    assert not torch.equal(many[:, 1], many[:, 2])


def test_the_denoiser_of_contrast_is_frozen_in_eval_mode():
    denoiser, inputs = tiny_denoiser(dropout=0.9), batch(b=8)
    denoiser.train()  # as one comes from its own training
    energy = tiny_energy(dropout=0.9)
    pipeline = contrastive.contrastive(denoiser, energy, schedules.log_linear(), num_negatives=4)
    evaluated = pipeline.eval()(inputs)
    trained = pipeline.train()(inputs)
    assert energy.network.training
    assert not torch.equal(
        trained[contracts.ENERGY], evaluated[contracts.ENERGY]
    )  # the energy does have its dropout on
    assert torch.equal(trained[contracts.CANDIDATES], evaluated[contracts.CANDIDATES])
    trained[contracts.LOSS].mean().backward()
    assert all(p.grad is None for p in denoiser.parameters())
    assert all(p.grad is not None for p in energy.parameters())


@pytest.mark.parametrize("num_negatives", [0, -2])
def test_no_negatives_is_an_error(num_negatives: int):
    with pytest.raises(ValueError, match=f"num_negatives = {num_negatives} must be at least 1"):
        contrastive.contrastive(tiny_denoiser(), tiny_energy(), schedules.log_linear(), num_negatives)


@pytest.mark.parametrize("time_low", [-0.1, 1.0, math.nan])
def test_a_first_time_outside_the_unit_interval_is_an_error(time_low: float):
    with pytest.raises(ValueError, match=rf"time_low = {time_low} must lie in \[0, 1\)"):
        denoising.denoising(tiny_denoiser(), schedules.log_linear(), time_low)
    with pytest.raises(ValueError, match="time_low"):
        contrastive.contrastive(tiny_denoiser(), tiny_energy(), schedules.log_linear(), time_low=time_low)


@pytest.mark.parametrize("bos_id", [3, 4, None])
@pytest.mark.parametrize("pad_id", [None, 1])
def test_next_token_is_the_exact_likelihood_of_what_is_not_padding(bos_id: int | None, pad_id: int | None):
    """Token by token, each from a network that is shown what stands before it and nothing else."""
    network, x_0 = tiny_network(conditioning_size=0, causal=True), torch.tensor([[0, 2, 2, 1], [2, 0, 1, 1]])
    expected = torch.zeros(2, dtype=torch.float64)
    for row, text in enumerate(x_0.tolist()):
        for i, token in enumerate(text):
            before = ([] if bos_id is None else [bos_id]) + text[:i]
            if before and token != pad_id:
                logits = network.head(network(torch.tensor([before])))[0, -1]
                logits[4] = -torch.inf
                expected[row] -= logits.log_softmax(-1)[token]
    out = denoising.next_token(network, 4, bos_id, pad_id)(TensorDict({contracts.X_0: x_0}))
    torch.testing.assert_close(out[contracts.LOSS], expected, rtol=0.0, atol=1e-12)
    out[contracts.LOSS].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


# ---- Printing


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (stages_of("denoising"), ["corrupt", "denoise", "score", "objective"]),
        (stages_of("contrastive"), ["corrupt", "draft", "pair", "weigh", "objective"]),
        (stages_of("transition"), ["corrupt", "draft", "pair", "weigh", "objective"]),
        (
            joint.contrastive(denoisers.subs(joint_network(), 4), schedules.log_linear(), (1, 5)),
            ["corrupt", "draft", "pair", "read", "weigh", "remain", "score", "objective"],
        ),
        (denoising.next_token(tiny_network(conditioning_size=0, causal=True), 4, 3), ["score", "objective"]),
        (Spec().kernel().step, ["denoise", "propose", "weigh", "select", "reveal", "count"]),
    ],
)
def test_a_pipeline_prints_a_line_per_stage(made: TensorDictSequential, names: list[str]):
    lines = declaration.algorithm(made).splitlines()
    assert [line.split()[0] for line in lines] == names
    for line, module in zip(lines, made.module.values(), strict=True):
        assert isinstance(module, TensorDictModuleBase)
        assert line.split("  ")[-1].strip() == f"{', '.join(module.in_keys)} -> {', '.join(module.out_keys)}"
