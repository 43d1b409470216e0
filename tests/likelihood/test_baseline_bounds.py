"""Bounds, losses and training of D3PM and SEDD, against the process itself written out state by state."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from builders import randomise, tiny_network, wave_marginals
from exact_baselines import EXACT, F64, JOINT, LENGTH, MASK, SCHEDULE, SYMBOLS, WRONG, Oracle, both, kernel_of, text_law
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Lookup, OracleDenoiser, all_masked_states, all_sequences, exact_nll, index_of, t_step_nelbo
from oracles import nelbo as exact_nelbo
from strategies import noise_schedules
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.likelihood import baselines as baseline_bounds
from edlm.likelihood import nelbo
from edlm.models import denoisers
from edlm.objectives import baselines as baseline_objectives
from edlm.objectives import losses
from edlm.process import categorical, schedules
from edlm.samplers import baselines
from edlm.samplers.baselines import Reverse

# ---- Bounds


def enumerated_t_step(kernel: Reverse, table: Tensor, num_steps: int, x_0: Tensor) -> Tensor:
    """`sum_steps E_{x_t} sum_masked KL` of texts (n, l), every set of masks at every step: nats (n,)."""
    times, total = schedules.uniform_grid(num_steps), torch.zeros(len(x_0), dtype=F64)
    at_one = 1.0 - float(kernel.schedule.alpha(times[0]))
    for t, s in pairwise(times):
        alpha_t, alpha_s = (
            kernel.schedule.alpha(t),
            torch.tensor(1.0, dtype=F64) if s == 0 else kernel.schedule.alpha(s),
        )
        masked_share, reveal = (1.0 - float(alpha_t)) / at_one, float((alpha_s - alpha_t) / (1.0 - alpha_t))
        for masked in all_sequences(2, x_0.shape[1]).bool():
            chance = masked_share ** int(masked.sum()) * (1.0 - masked_share) ** int((~masked).sum())
            x_t = torch.where(masked, table.shape[-1] - 1, x_0)
            for i in masked.nonzero().flatten().tolist():
                ends = alpha_t.expand(len(x_0)), alpha_s.expand(len(x_0))
                law = kernel.log_law(table[x_t.unbind(-1)][:, i], *ends)
                cost = reveal * (math.log(reveal) - law.gather(1, x_0[:, [i]]).squeeze(1))
                if reveal < 1.0:
                    cost = cost + (1.0 - reveal) * (math.log1p(-reveal) - law[:, -1])
                total += chance * cost
    return total


@both
@pytest.mark.parametrize("num_steps", [1, 3])
def test_the_t_step_bound_of_an_exact_baseline_is_that_of_the_denoiser(name, num_steps):
    x_0 = all_sequences(SYMBOLS, LENGTH)
    schedule = schedules.cosine(1e-3)
    times = schedules.uniform_grid(num_steps)
    kept = 1.0 - (1.0 - schedule.alpha(times)) / (1.0 - schedule.alpha(times[0]))
    alphas = torch.cat([kept[:-1], torch.ones(1, dtype=F64)])
    ours = enumerated_t_step(kernel_of(name, Lookup(EXACT), MASK, schedule), EXACT, num_steps, x_0)
    torch.testing.assert_close(ours, t_step_nelbo(EXACT, alphas, x_0), rtol=0.0, atol=1e-10)


CASES = [("d3pm", {"p_mask": 0.3}), ("sedd", {"factor": 0.6}), ("sedd", {"factor": 1.1})]


@pytest.mark.parametrize(("name", "wrong"), CASES)
def test_draws_of_the_t_step_bound_have_the_enumerated_mean_which_bounds_the_law_of_the_samples(name, wrong):
    """Within five standard errors of 60000 draws at a fixed seed: a right estimate fails once in a million seeds."""
    kernel, num_steps = kernel_of(name, Lookup(WRONG), MASK, **wrong), 3
    x_0 = torch.tensor([0, 1, 1])
    exact = enumerated_t_step(kernel, WRONG, num_steps, x_0.unsqueeze(0))
    law = text_law(kernel, WRONG, schedules.uniform_grid(num_steps))
    assert float(exact) >= float(exact_nll(law, x_0)) - 1e-12
    rows = torch.arange(60_000)
    draws = LENGTH * baseline_bounds.t_step_nelbo(kernel, x_0.expand(len(rows), -1), torch.tensor(1), rows, num_steps)
    assert abs(float(draws.mean() - exact)) < 5 * float(draws.std()) / len(rows) ** 0.5


def test_a_mask_without_a_chance_to_stay_makes_the_t_step_bound_infinite():
    kernel = kernel_of("sedd", Lookup(WRONG), MASK, factor=50.0)
    rows = torch.arange(50)
    x_0 = torch.tensor([0, 1, 1]).expand(50, -1)
    assert baseline_bounds.t_step_nelbo(kernel, x_0, torch.tensor(1), rows, 3).isinf().any()


def test_a_step_that_reveals_nothing_costs_nothing():
    """The schedule keeps nothing from time 2 / 3 on, so that the first of three steps has nothing to reveal."""
    late = SCHEDULE._replace(alpha=lambda t: (1.0 - 1.5 * t).clamp(min=0.0))
    kernel = kernel_of("d3pm", Lookup(EXACT), MASK, late)
    x_0, row = torch.tensor([0, 1, 1]).expand(30, -1), torch.arange(30)
    found = baseline_bounds.t_step_nelbo(kernel, x_0, torch.tensor(0), row, 3)
    assert not found.isnan().any()
    assert int(found.eq(0.0).sum()) >= 10
    assert bool((found >= 0.0).all())


@pytest.mark.parametrize("rows", [1, 3])
def test_the_vocabulary_takes_a_few_rows_at_once_and_the_bounds_stay(rows: int, monkeypatch: pytest.MonkeyPatch):
    x_0, row = all_sequences(SYMBOLS, LENGTH), torch.arange(SYMBOLS**LENGTH)
    kernels = [kernel_of(name, Lookup(WRONG), MASK) for name in ("d3pm", "sedd")]

    def bounds() -> list[Tensor]:
        found = [baseline_bounds.t_step_nelbo(kernel, x_0, torch.tensor(0), row, 3) for kernel in kernels]
        return [*found, baseline_bounds.score_entropy(kernels[1].denoiser, SCHEDULE, x_0, torch.tensor(0), row)]

    expected = bounds()
    monkeypatch.setattr(categorical, "rows_at_once", lambda vocab_size, device: rows)
    for ours, theirs in zip(bounds(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_row_without_a_scored_position_is_refused():
    x_0, scored = all_sequences(SYMBOLS, LENGTH)[:2], torch.ones(2, LENGTH, dtype=torch.bool)
    scored[1] = False
    kernel, rest = kernel_of("sedd", Lookup(WRONG), MASK), (x_0, torch.tensor(0), torch.arange(2))
    for bound in (
        lambda: baseline_bounds.t_step_nelbo(kernel, *rest, 3, scored),
        lambda: baseline_bounds.score_entropy(kernel.denoiser, SCHEDULE, *rest, scored),
    ):
        with pytest.raises(ValueError, match="row 1 has no scored position"):
            bound()


def test_given_positions_are_never_masked_and_do_not_count():
    x_0 = torch.tensor([0, 1, 1]).expand(400, -1)
    scored = torch.tensor([False, True, True]).expand(400, -1)
    seen: list[Tensor] = []

    def spy(x_t: Tensor) -> Tensor:
        seen.append(x_t)
        return Lookup(WRONG)(x_t)

    for name in ("d3pm", "sedd"):
        kernel = kernel_of(name, spy, MASK, p_mask=0.2)
        both_ways = [baseline_bounds.t_step_nelbo(kernel, x_0, torch.tensor(2), torch.arange(400), 4, scored)]
        if name == "sedd":
            arguments = (kernel.denoiser, SCHEDULE, x_0, torch.tensor(2), torch.arange(400))
            both_ways.append(baseline_bounds.score_entropy(*arguments, scored))
        assert all((values >= 0).all() for values in both_ways)
    assert all((x_t[:, 0] == 0).all() for x_t in seen)
    assert any((x_t[:, 1] == MASK).any() for x_t in seen)


@given(st.integers(0, 2**62), st.sampled_from([0.2, 1.0, 3.0]), noise_schedules())
@settings(max_examples=40, deadline=None)
def test_the_score_entropy_bound_is_the_nelbo_plus_the_price_of_a_wrong_sum(seed, factor, schedule):
    """Row by row: with `s = A r p` it is `nelbo + A - 1 - log A`; the ideal model pays nothing."""
    marginals = wave_marginals(seed, 3, 4)
    x_0, row = all_sequences(3, 4), torch.arange(81)
    keys = (schedule, x_0, torch.tensor(seed), row)
    ours = baseline_bounds.score_entropy(Oracle(marginals, 3, factor=factor), *keys)
    plain = nelbo.nelbo(OracleDenoiser(marginals, 3), *keys)
    torch.testing.assert_close(ours, plain + factor - 1.0 - math.log(factor), rtol=1e-6, atol=1e-6)


def test_the_score_entropy_bound_at_the_ideal_model_is_the_enumerated_nelbo():
    """Within five standard errors of 20000 draws at a fixed seed."""
    x_0, rows = torch.tensor([0, 1, 1]), torch.arange(20_000)
    oracle = Oracle(Lookup(EXACT), MASK)
    draws = LENGTH * baseline_bounds.score_entropy(oracle, SCHEDULE, x_0.expand(len(rows), -1), torch.tensor(3), rows)
    exact = float(exact_nelbo(EXACT, x_0.unsqueeze(0)))
    assert abs(float(draws.mean()) - exact) < 5 * float(draws.std()) / len(rows) ** 0.5


def test_many_steps_make_the_d3pm_loss_the_continuous_nelbo():
    """The mean of `T KL` over steps and masks falls to it like 1 / T."""
    x_0 = torch.tensor([[0, 1, 1]])
    masked = all_sequences(2, LENGTH).bool()
    x_t = torch.where(masked, MASK, x_0)
    log_prob = EXACT[x_t.unbind(-1)].gather(-1, x_0.expand_as(x_t).unsqueeze(-1)).squeeze(-1)
    never = torch.full_like(log_prob, -torch.inf)
    gaps = []
    for num_steps in (1, 10, 100, 1000):
        alphas, total = schedules.log_linear().alpha(schedules.uniform_grid(num_steps)), 0.0
        for alpha_t, alpha_s in pairwise(alphas):
            ends = alpha_t.expand(len(x_t)), alpha_s.expand(len(x_t))
            loss = losses.d3pm(torch.where(masked, log_prob, 0.0), never, masked, *ends, num_steps)
            total += float((torch.where(masked, 1 - alpha_t, alpha_t).prod(-1) * loss).sum()) / num_steps
        gaps.append(total - float(exact_nelbo(EXACT, x_0)))
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] > 0
    assert gaps[2] / gaps[3] == pytest.approx(10.0, rel=0.02)
    assert gaps[3] < 1e-3


# ---- What the losses are minimal at


def marginal_at(alpha: float) -> Tensor:
    """`p_t(x)` of every state with masks, (v^l,), by corrupting every text in every way."""
    x_0, states = all_sequences(SYMBOLS, LENGTH), all_masked_states(SYMBOLS, LENGTH)
    same = states.unsqueeze(0) == x_0.unsqueeze(1)
    chance = torch.where(states == MASK, 1.0 - alpha, alpha * same.double()).prod(-1)
    return JOINT.flatten() @ chance


@pytest.mark.parametrize("alpha", [0.1, 0.6])
def test_the_score_entropy_is_minimal_at_the_ratios_of_the_corrupted_law(alpha):
    """The ratios come from the law of x_t itself, not from a posterior."""
    at_t = marginal_at(alpha)
    x_t = torch.tensor([MASK, 1, MASK])
    filled = x_t.repeat(SYMBOLS, 1)
    filled[:, 0] = torch.arange(SYMBOLS)
    ratios = at_t[index_of(filled, SYMBOLS + 1)] / at_t[index_of(x_t, SYMBOLS + 1)]
    tokens = torch.arange(SYMBOLS)
    data = EXACT[tuple(x_t)][0, :SYMBOLS].exp()  # of the first position given what is visible

    def loss(log_ratio: Tensor) -> Tensor:
        scores = torch.cat([log_ratio, torch.zeros(1, dtype=F64)]).expand(SYMBOLS, -1)
        ends = torch.full((SYMBOLS,), alpha, dtype=F64), torch.full((SYMBOLS,), -1.0, dtype=F64)
        return (data * losses.sedd(scores, tokens, *ends, mask_id=MASK)).sum()

    assert_minimum(loss, ratios.log())


@pytest.mark.parametrize(("alpha_t", "alpha_s"), [(0.1, 0.4), (0.5, 1.0)])
def test_the_d3pm_loss_is_minimal_at_the_posterior_without_the_mask(alpha_t, alpha_s):
    data = EXACT[MASK, 1, MASK][0, :SYMBOLS].exp()
    tokens = torch.arange(SYMBOLS).unsqueeze(1)
    ends = torch.full((SYMBOLS,), alpha_t, dtype=F64), torch.full((SYMBOLS,), alpha_s, dtype=F64)

    def loss(log_law: Tensor, p_mask: float = 0.0) -> Tensor:
        law = torch.cat([log_law.log_softmax(-1) + math.log1p(-p_mask), torch.tensor([p_mask], dtype=F64).log()])
        law = law.expand(SYMBOLS, -1)
        masked = torch.ones(SYMBOLS, 1).bool()
        return (data * losses.d3pm(law.gather(1, tokens), law[:, [MASK]], masked, *ends, num_steps=5)).sum()

    free = data.log() - data.log()[0]  # logits are known up to a constant
    assert_minimum(lambda rest: loss(torch.cat([torch.zeros(1, dtype=F64), rest])), free[1:])
    least = float(loss(data.log()))
    assert [float(loss(data.log(), p)) > least for p in (0.01, 0.3)] == [True, True]


def assert_minimum(loss: Callable[[Tensor], Tensor], at: Tensor) -> None:
    """No slope there, a positive curvature, and a larger value a little way off."""
    point = at.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(point), point)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0.0, atol=1e-10)
    for direction in torch.eye(len(at), dtype=F64):
        assert all(float(loss(at + step * direction)) > float(loss(at)) + 1e-5 for step in (-0.05, 0.05))


# ---- Training


def batch(b: int = 6, l: int = 7) -> TensorDict:
    tokens = torch.randint(0, 4, (b, l), generator=torch.Generator().manual_seed(3))
    keys = {contracts.SEED: torch.tensor(3), contracts.STEP: torch.tensor(2), contracts.NUM_ROWS: torch.tensor(b)}
    return TensorDict({contracts.X_0: tokens, contracts.ROW: torch.arange(b), **keys})


def stages_of(name: str, **options: object):
    network = tiny_network(seed=1)
    if name == "d3pm":
        return baseline_objectives.d3pm(denoisers.d3pm(network, 4, SCHEDULE), SCHEDULE, 10, **options)
    return baseline_objectives.score_entropy(denoisers.sedd(network, 4, SCHEDULE), SCHEDULE, 0.1, **options)


@both
def test_the_loss_is_the_objective_of_the_networks_answer_at_every_mask(name):
    stages, inputs = stages_of(name), batch()
    out = stages(inputs)
    network, x_0, x_t, t = stages["denoise"].network, inputs[contracts.X_0], out[contracts.X_T], out[contracts.T]
    masked = x_t == 4
    assert masked.any()
    assert not masked.all()
    assert torch.equal(x_t[~masked], x_0[~masked])
    logits = network.head(network(x_t, -SCHEDULE.alpha(t).log()))
    alpha = SCHEDULE.alpha(t)
    if name == "d3pm":
        log_p = logits.log_softmax(-1)
        alpha_s = torch.where(out[contracts.S] == 0, 1.0, SCHEDULE.alpha(out[contracts.S]))
        wanted = log_p.gather(-1, x_0.unsqueeze(-1)).squeeze(-1)
        expected = losses.d3pm(wanted, log_p[..., 4], masked, alpha, alpha_s, 10)
    else:
        offset = (alpha / (1 - alpha) / 4).log()[:, None, None]
        parts = losses.sedd(
            (logits + offset).flatten(0, 1),
            x_0.flatten(),
            alpha.repeat_interleave(7),
            SCHEDULE.alpha_slope(t).repeat_interleave(7),
            4,
        )
        expected = torch.where(masked, parts.view_as(x_0), 0.0).sum(-1)
    torch.testing.assert_close(out[contracts.LOSS], expected, rtol=1e-9, atol=1e-9)


def test_steps_of_d3pm_are_those_of_its_grid_each_as_often_over_the_batch():
    out = baseline_objectives.d3pm(denoisers.d3pm(tiny_network(), 4), SCHEDULE, 5)(batch(b=10))
    starts = (5 * out[contracts.T]).round().long()
    torch.testing.assert_close(out[contracts.T], starts / 5.0, check_dtype=False)
    torch.testing.assert_close(out[contracts.S], (starts - 1) / 5.0, check_dtype=False)
    assert starts.bincount().tolist() == [0, 2, 2, 2, 2, 2]


@both
def test_a_batch_may_be_split_and_padding_never_counts(name):
    stages, whole = stages_of(name), batch()
    loss = stages(whole)[contracts.LOSS]
    shared = {key: whole[key] for key in (contracts.SEED, contracts.STEP, contracts.NUM_ROWS)}
    parts = []
    for rows in (slice(0, 1), slice(1, 6)):
        own = {key: whole[key][rows] for key in (contracts.X_0, contracts.ROW)}
        parts.append(stages(TensorDict({**own, **shared}))[contracts.LOSS])
    torch.testing.assert_close(torch.cat(parts), loss, rtol=1e-9, atol=1e-9)
    padding = whole[contracts.X_0] == 2
    assert torch.equal(stages_of(name, pad_id=2)(whole)[contracts.X_T][padding], whole[contracts.X_0][padding])


@both
def test_the_gradient_reaches_every_parameter(name):
    stages = stages_of(name)
    stages(batch(b=16))[contracts.LOSS].mean().backward()
    names = [n for n, p in stages["denoise"].named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert names == []


def test_training_in_no_steps_is_an_error():
    with pytest.raises(ValueError, match="num_steps = 0 must be at least 1"):
        baseline_objectives.d3pm(denoisers.d3pm(tiny_network(), 4), SCHEDULE, 0)
    with pytest.raises(ValueError, match="time_low = 1"):
        baseline_objectives.score_entropy(denoisers.sedd(tiny_network(), 4, SCHEDULE), SCHEDULE, 1.0)


@pytest.mark.slow
@both
def test_a_trained_baseline_draws_two_bits_that_agree(name):
    """100 updates on texts 0000 and 1111: then most samples are one of the two, where a fair law has 1 in 8."""
    torch.manual_seed(0)
    network = randomise(tiny_network(vocab_size=3, max_length=4), 0)
    denoiser = getattr(denoisers, name)(network, 2, SCHEDULE)
    if name == "d3pm":
        stages, kernel = baseline_objectives.d3pm(denoiser, SCHEDULE, 50), baselines.d3pm(denoiser, SCHEDULE)
    else:
        stages, kernel = (
            baseline_objectives.score_entropy(denoiser, SCHEDULE, 0.01),
            baselines.analytic(denoiser, SCHEDULE),
        )
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for step in range(100):
        inputs = batch(b=32, l=4)
        inputs[contracts.X_0] = (torch.arange(32) % 2).unsqueeze(1).expand(32, 4)
        inputs[contracts.STEP] = torch.tensor(step)
        optimizer.zero_grad()
        stages(inputs)[contracts.LOSS].mean().backward()
        optimizer.step()
    tokens = baselines.sample(kernel, 4, 20, 200, seed=0)["tokens"]
    assert float((tokens == tokens[:, :1]).all(1).double().mean()) > 0.8
