"""Kernels, bounds and training of D3PM and SEDD, against the process itself written out state by state."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from builders import randomise, tiny_network, wave_marginals
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    Lookup,
    MarginalsFn,
    OracleDenoiser,
    all_masked_states,
    all_sequences,
    empirical_law,
    exact_nll,
    index_of,
    marginal_table,
    random_joint,
    random_marginals,
    sampler_law,
    t_step_nelbo,
)
from oracles import nelbo as exact_nelbo
from scipy import stats
from strategies import noise_schedules
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from edlm import baselines, contracts, denoisers, likelihoods, objectives, schedules, training
from edlm.baselines import Reverse
from edlm.schedules import Schedule

F64 = torch.float64
SYMBOLS, LENGTH, MASK = 2, 3, 2
JOINT = random_joint(0, SYMBOLS, LENGTH, 1.5)
EXACT = marginal_table(JOINT)
WRONG = random_marginals(1, SYMBOLS, LENGTH)
SCHEDULE = schedules.log_linear(1e-3)


# ---- Baselines whose predictions are given by a function


class Oracle(TensorDictModuleBase):
    """A baseline's denoiser: a law over tokens, a probability of the mask, and a factor that scores are wrong by."""

    def __init__(self, marginals: MarginalsFn, mask_id: int, p_mask: float = 0.0, factor: float = 1.0) -> None:
        super().__init__()
        self.in_keys = [contracts.X_T, contracts.T, contracts.POSITIONS]
        self.out_keys = [contracts.HIDDEN]
        self.marginals = marginals
        self.mask_id, self.vocab_size, self.max_length = mask_id, mask_id + 1, 1024
        self.p_mask, self.factor = p_mask, factor

    def forward(self, tensordict: TensorDict) -> TensorDict:
        law = self.marginals(tensordict[contracts.X_T]).flatten(0, 1)[tensordict[contracts.POSITIONS]]
        return tensordict.set(contracts.HIDDEN, law)

    def log_prob(self, hidden: Tensor) -> Tensor:
        law = hidden.exp() * (1.0 - self.p_mask)
        law[:, self.mask_id] = self.p_mask
        return law.log()

    def log_score(self, hidden: Tensor, alpha: Tensor) -> Tensor:
        scores = hidden + math.log(self.factor) + alpha.logit().unsqueeze(-1)
        return scores.index_fill(-1, torch.tensor([self.mask_id]), 0.0)


def kernel_of(
    name: str, marginals: MarginalsFn, mask_id: int, schedule: Schedule = SCHEDULE, **wrong: float
) -> Reverse:
    build = {"d3pm": baselines.d3pm, "sedd": baselines.analytic}[name]
    return build(Oracle(marginals, mask_id, **wrong), schedule)


both = pytest.mark.parametrize("name", ["d3pm", "sedd"])


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


def text_law(kernel: Reverse, table: Tensor, times: Tensor) -> Tensor:
    """Law of the text after all steps, (m^l,), by going from state to state: positions move by themselves."""
    symbols, length = table.shape[-1] - 1, table.shape[-2]
    states = all_masked_states(symbols, length)
    mass = torch.zeros(len(states), dtype=F64)
    mass[-1] = 1.0  # the last state is all masks
    for t, s in pairwise(times):
        ends = [kernel.schedule.alpha(t), torch.tensor(1.0, dtype=F64) if s == 0 else kernel.schedule.alpha(s)]
        rows = []
        for state in states:
            predicted = table[tuple(state)]
            moves = kernel.log_law(predicted, *(end.expand(length) for end in ends)).exp()
            keeps = torch.eye(symbols + 1, dtype=F64)[state]
            law = torch.where((state == symbols).unsqueeze(-1), moves, keeps)
            rows.append(law.gather(-1, states.T).prod(0))
        mass = mass @ torch.stack(rows)
    return mass[index_of(all_sequences(symbols, length), symbols + 1)]


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


@pytest.mark.slow
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
    draws = LENGTH * baselines.t_step_nelbo(kernel, x_0.expand(len(rows), -1), torch.tensor(1), rows, num_steps)
    assert abs(float(draws.mean() - exact)) < 5 * float(draws.std()) / len(rows) ** 0.5


def test_a_mask_without_a_chance_to_stay_makes_the_t_step_bound_infinite():
    kernel = kernel_of("sedd", Lookup(WRONG), MASK, factor=50.0)
    rows = torch.arange(50)
    x_0 = torch.tensor([0, 1, 1]).expand(50, -1)
    assert baselines.t_step_nelbo(kernel, x_0, torch.tensor(1), rows, 3).isinf().any()


def test_given_positions_are_never_masked_and_do_not_count():
    x_0 = torch.tensor([0, 1, 1]).expand(400, -1)
    scored = torch.tensor([False, True, True]).expand(400, -1)
    seen: list[Tensor] = []

    def spy(x_t: Tensor) -> Tensor:
        seen.append(x_t)
        return Lookup(WRONG)(x_t)

    for name in ("d3pm", "sedd"):
        kernel = kernel_of(name, spy, MASK, p_mask=0.2)
        both_ways = [baselines.t_step_nelbo(kernel, x_0, torch.tensor(2), torch.arange(400), 4, scored)]
        if name == "sedd":
            arguments = (kernel.denoiser, SCHEDULE, x_0, torch.tensor(2), torch.arange(400))
            both_ways.append(baselines.score_entropy(*arguments, scored))
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
    ours = baselines.score_entropy(Oracle(marginals, 3, factor=factor), *keys)
    plain = likelihoods.nelbo(OracleDenoiser(marginals, 3), *keys)
    torch.testing.assert_close(ours, plain + factor - 1.0 - math.log(factor), rtol=1e-6, atol=1e-6)


def test_the_score_entropy_bound_at_the_ideal_model_is_the_enumerated_nelbo():
    """Within five standard errors of 20000 draws at a fixed seed."""
    x_0, rows = torch.tensor([0, 1, 1]), torch.arange(20_000)
    oracle = Oracle(Lookup(EXACT), MASK)
    draws = LENGTH * baselines.score_entropy(oracle, SCHEDULE, x_0.expand(len(rows), -1), torch.tensor(3), rows)
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
            loss = objectives.d3pm(torch.where(masked, log_prob, 0.0), never, masked, *ends, num_steps)
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
        return (data * objectives.sedd(scores, tokens, *ends, mask_id=MASK)).sum()

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
        return (data * objectives.d3pm(law.gather(1, tokens), law[:, [MASK]], masked, *ends, num_steps=5)).sum()

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
        return training.d3pm(denoisers.d3pm(network, 4, SCHEDULE), SCHEDULE, 10, **options)
    return training.score_entropy(denoisers.sedd(network, 4, SCHEDULE), SCHEDULE, 0.1, **options)


@both
def test_the_loss_is_the_objective_of_the_networks_answer_at_every_mask(name):
    stages, inputs = stages_of(name), batch()
    out = stages(inputs)
    network, x_0, x_t, t = stages["denoise"].module.network, inputs[contracts.X_0], out[contracts.X_T], out[contracts.T]
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
        expected = objectives.d3pm(wanted, log_p[..., 4], masked, alpha, alpha_s, 10)
    else:
        offset = (alpha / (1 - alpha) / 4).log()[:, None, None]
        parts = objectives.sedd(
            (logits + offset).flatten(0, 1),
            x_0.flatten(),
            alpha.repeat_interleave(7),
            SCHEDULE.alpha_slope(t).repeat_interleave(7),
            4,
        )
        expected = torch.where(masked, parts.view_as(x_0), 0.0).sum(-1)
    torch.testing.assert_close(out[contracts.LOSS], expected, rtol=1e-9, atol=1e-9)


def test_steps_of_d3pm_are_those_of_its_grid_each_as_often_over_the_batch():
    out = training.d3pm(denoisers.d3pm(tiny_network(), 4), SCHEDULE, 5)(batch(b=10))
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
        training.d3pm(denoisers.d3pm(tiny_network(), 4), SCHEDULE, 0)
    with pytest.raises(ValueError, match="time_low = 1"):
        training.score_entropy(denoisers.sedd(tiny_network(), 4, SCHEDULE), SCHEDULE, 1.0)


@pytest.mark.slow
@both
def test_a_trained_baseline_draws_two_bits_that_agree(name):
    """100 updates on texts 0000 and 1111: then most samples are one of the two, where a fair law has 1 in 8."""
    torch.manual_seed(0)
    network = randomise(tiny_network(vocab_size=3, max_length=4), 0)
    denoiser = getattr(denoisers, name)(network, 2, SCHEDULE)
    if name == "d3pm":
        stages, kernel = training.d3pm(denoiser, SCHEDULE, 50), baselines.d3pm(denoiser, SCHEDULE)
    else:
        stages, kernel = training.score_entropy(denoiser, SCHEDULE, 0.01), baselines.analytic(denoiser, SCHEDULE)
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
