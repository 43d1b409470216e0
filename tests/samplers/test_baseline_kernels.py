"""Kernels and samplers of D3PM and SEDD, against the process itself written out state by state."""

import math
from itertools import pairwise

import pytest
import torch
from builders import tiny_network, wave_marginals
from exact_baselines import EXACT, F64, LENGTH, MASK, SCHEDULE, SYMBOLS, WRONG, both, kernel_of, text_law
from hypothesis import given
from hypothesis import strategies as st
from oracles import Lookup, empirical_law, sampler_law
from scipy import stats
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.models import denoisers
from edlm.process import schedules
from edlm.samplers import baselines
from edlm.samplers.baselines import Reverse


def law_of(kernel: Reverse, laws: Tensor, alpha_t: float, alpha_s: float) -> Tensor:
    """The kernel's law at s for predictions (n, v) given as probabilities."""
    ends = (torch.full((len(laws),), alpha, dtype=F64) for alpha in (alpha_t, alpha_s))
    return kernel.log_law(laws.log(), *ends).exp()


# ---- One masked position


def backward(data: Tensor, alpha_t: float, alpha_s: float) -> Tensor:
    """`q(x_s | x_t = mask)` of one site with data law (m,), by Bayes' rule over every (x_0, x_s)."""
    at_s = torch.cat([alpha_s * data, torch.tensor([1.0 - alpha_s], dtype=F64)])
    to_mask = torch.tensor([1.0 - alpha_t / alpha_s] * len(data) + [1.0], dtype=F64)
    return at_s * to_mask / (at_s * to_mask).sum()


@both
@given(st.floats(0.001, 0.98), st.floats(0.001, 0.999), st.lists(st.floats(0.01, 1.0), min_size=2, max_size=5))
def test_with_the_exact_prediction_a_step_has_the_exact_law_of_the_reversed_process(name, alpha_t, share, weights):
    """For independent sites that is the whole law; the ancestral step with the exact denoiser is the same one."""
    alpha_s = alpha_t + share * (1.0 - alpha_t)
    data = torch.tensor(weights, dtype=F64)
    data = data / data.sum()
    laws = torch.cat([data, torch.zeros(1, dtype=F64)]).unsqueeze(0)
    ours = law_of(kernel_of(name, wave_marginals(0, 2, 2), len(data)), laws, alpha_t, alpha_s)[0]
    torch.testing.assert_close(ours, backward(data, alpha_t, alpha_s), rtol=1e-9, atol=1e-12)
    reveal = (alpha_s - alpha_t) / (1.0 - alpha_t)
    torch.testing.assert_close(ours[:-1], reveal * data, rtol=1e-9, atol=1e-12)


@given(st.floats(0.01, 0.9), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_d3pm_that_predicts_the_mask_waits_longer(alpha_t, share, p_mask):
    """By the sum over every x_0, the mask among them, of the chance to be at x_s and then at the mask."""
    alpha_s = alpha_t + share * (1.0 - alpha_t)
    start = torch.tensor([0.3 * (1 - p_mask), 0.7 * (1 - p_mask), p_mask], dtype=F64)
    at_s = alpha_s * start + (1 - alpha_s) * torch.tensor([0.0, 0.0, 1.0], dtype=F64)
    both_times = at_s * torch.tensor([1 - alpha_t / alpha_s] * 2 + [1.0], dtype=F64)
    laws = torch.tensor([[0.3, 0.7, 0.0]], dtype=F64)
    ours = law_of(kernel_of("d3pm", wave_marginals(0, 2, 2), 2, p_mask=p_mask), laws, alpha_t, alpha_s)[0]
    torch.testing.assert_close(ours, both_times / both_times.sum(), rtol=1e-9, atol=1e-12)


@given(st.floats(0.01, 0.9), st.floats(0.01, 0.99), st.floats(0.05, 20.0))
def test_scores_reveal_in_proportion_to_their_size_until_nothing_is_left_to_the_mask(alpha_t, share, factor):
    alpha_s = alpha_t + share * (1.0 - alpha_t)
    laws = torch.tensor([[0.3, 0.7, 0.0]], dtype=F64)
    ours = law_of(kernel_of("sedd", wave_marginals(0, 2, 2), 2, factor=factor), laws, alpha_t, alpha_s)[0]
    sigma_gap = math.log(alpha_s / alpha_t)
    token = math.expm1(sigma_gap) * factor * alpha_t / (1 - alpha_t) * laws[0]
    stays = max(0.0, 1.0 - float(token.sum()))
    token[2] = stays
    torch.testing.assert_close(ours, token / token.sum(), rtol=1e-9, atol=1e-12)


@both
def test_the_last_step_leaves_no_mask(name):
    laws = torch.tensor([[0.3, 0.7, 0.0]], dtype=F64)
    kernel = kernel_of(name, wave_marginals(0, 2, 2), 2, p_mask=0.4, factor=0.01)
    torch.testing.assert_close(law_of(kernel, laws, 0.3, 1.0), laws, rtol=1e-9, atol=0.0)


# ---- Whole samplers


@both
@pytest.mark.parametrize("schedule", [schedules.log_linear(1e-3), schedules.cosine(1e-3), schedules.linear()])
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_with_exact_predictions_the_sampler_is_the_ancestral_one_of_the_exact_denoiser(name, schedule, num_steps):
    """Its whole law over texts is that of T steps of MDLM, whose masks go in proportion to 1 - alpha."""
    times = schedules.uniform_grid(num_steps)
    kept = 1.0 - (1.0 - schedule.alpha(times)) / (1.0 - schedule.alpha(times[0]))
    alphas = torch.cat([kept[:-1], torch.ones(1, dtype=F64)])
    ours = text_law(kernel_of(name, Lookup(EXACT), MASK, schedule), EXACT, times)
    torch.testing.assert_close(ours, sampler_law(EXACT, alphas), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "wrong"), [("d3pm", {"p_mask": 0.6}), ("sedd", {"factor": 0.5}), ("sedd", {"factor": 2})]
)
def test_samples_have_the_law_of_the_steps(name, wrong):
    """One chi-square test each at a fixed seed; a right sampler fails one of the three once in 1000 seeds."""
    kernel = kernel_of(name, Lookup(WRONG), MASK, **wrong)
    law = text_law(kernel, WRONG, schedules.uniform_grid(3))
    other = text_law(kernel_of(name, Lookup(WRONG), MASK), WRONG, schedules.uniform_grid(3))
    n = 40_000
    tokens = baselines.sample(kernel, LENGTH, 3, n, seed=5)["tokens"]
    limit = stats.chi2.isf(1e-3 / 3, len(law) - 1)
    found = empirical_law(tokens, SYMBOLS)
    assert n * float(((found - law) ** 2 / law).sum()) < limit
    assert n * float(((found - other) ** 2 / other).sum()) > limit, "with predictions as if they were right"


@both
def test_a_text_is_a_function_of_its_seed_and_number(name):
    kernel = kernel_of(name, wave_marginals(0, 4, 6), 4, p_mask=0.3, factor=0.7)
    whole = baselines.sample(kernel, 6, 5, 7, seed=3)["tokens"]
    assert torch.equal(whole[4:], baselines.sample(kernel, 6, 5, 3, seed=3, first_row=4)["tokens"])
    assert not torch.equal(whole, baselines.sample(kernel, 6, 5, 7, seed=4)["tokens"])
    assert len({tuple(row) for row in whole.tolist()}) > 1
    assert (whole != 4).all()


@both
def test_what_is_given_never_changes_and_a_finished_text_costs_nothing(name):
    kernel = kernel_of(name, wave_marginals(0, 4, 6), 4, p_mask=0.3, factor=0.7)
    prompt = torch.tensor([[4, 1, 4, 2, 4, 4], [0, 1, 2, 3, 0, 1]])
    seen: list[Tensor] = []
    out = baselines.sample(kernel, 6, 8, 2, prompt=prompt, callback=lambda state, _: seen.append(state[contracts.X_T]))
    assert torch.equal(out["tokens"][prompt != 4], prompt[prompt != 4])
    assert (out["tokens"] != 4).all()
    passes = out["info"]["denoiser_passes"].tolist()
    assert passes[1] == 0
    assert 1 <= passes[0] == len(seen) <= 8
    for before, after in pairwise(seen):
        assert torch.equal(after[before != 4], before[before != 4])


def test_a_sampler_that_cannot_be_run_says_why():
    network = tiny_network(dropout=0.5)
    kernel = baselines.d3pm(denoisers.d3pm(network, 4), SCHEDULE)
    for length in (0, 9):
        with pytest.raises(ValueError, match=f"length = {length} must lie in 1..8"):
            baselines.sample(kernel, length, 4)
    with pytest.raises(ValueError, match="num_steps = 0 must be at least 1"):
        baselines.sample(kernel, 8, 0)
    with pytest.raises(ValueError, match="num_samples = 0 must be at least 1"):
        baselines.sample(kernel, 8, 4, 0)
    network.train()
    with pytest.raises(ValueError, match="dropout is on"):
        baselines.sample(kernel, 8, 4)


@pytest.mark.parametrize("name", ["d3pm", "sedd"])
def test_networks_are_asked_at_the_time_of_the_step(name):
    """A network that knows the time gives one law at t = 1 and another at 1/2: both are used."""
    network = tiny_network(seed=2)
    denoiser = getattr(denoisers, name)(network, 4, SCHEDULE)
    kernel = (baselines.d3pm if name == "d3pm" else baselines.analytic)(denoiser, SCHEDULE)
    x_t = torch.tensor([[4, 1, 4, 0]])
    positions = torch.tensor([0, 2])
    for t, s in ((1.0, 0.5), (0.5, 0.0)):
        times = {contracts.T: torch.tensor([t], dtype=F64), contracts.S: torch.tensor([s], dtype=F64)}
        noise = torch.tensor([[0.3], [0.9]], dtype=F64)
        state = {contracts.X_T: x_t, **times, contracts.POSITIONS: positions, contracts.PROPOSAL_NOISE: noise}
        out = kernel.step(TensorDict(state))[contracts.X_S]
        hidden = network(x_t, -SCHEDULE.alpha(times[contracts.T]).log()).flatten(0, 1)[positions]
        alpha_t, alpha_s = SCHEDULE.alpha(times[contracts.T]), SCHEDULE.alpha(times[contracts.S])
        law = kernel.log_law(hidden, alpha_t.expand(2), alpha_s.expand(2)).exp().cumsum(-1)
        drawn = (law < noise).sum(-1)
        assert out.tolist() == [[int(drawn[0]), 1, int(drawn[1]), 0]]
