"""Losses of the baselines and importance-sampled times, against enumeration and closed forms."""

import itertools
import math

import pytest
import torch
from builders import tiny_network
from oracles import all_sequences, random_marginals, t_step_nelbo
from tensordict import TensorDict
from torch import Tensor

from edlm import contracts
from edlm.models import denoisers
from edlm.objectives import losses
from edlm.process import schedules, training_times

F64 = torch.float64
SYMBOLS, LENGTH, MASK = 3, 3, 3


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


# ---- T steps


@pytest.mark.parametrize("alphas", [[0.0, 1.0], [0.0, 0.3, 1.0], [0.0, 0.1, 0.5, 0.6, 1.0]])
def test_the_t_step_loss_averages_to_the_t_step_bound(alphas):
    table = random_marginals(0, SYMBOLS, LENGTH)
    x_0 = all_sequences(SYMBOLS, LENGTH)
    masked = all_sequences(2, LENGTH).bool()
    steps = len(alphas) - 1
    total = torch.zeros(len(x_0), dtype=F64)
    for alpha_t, alpha_s in itertools.pairwise(alphas):
        for mask in masked:
            x_t = torch.where(mask, MASK, x_0)
            log_prob = table[x_t.unbind(-1)].gather(-1, x_0.unsqueeze(-1)).squeeze(-1)
            loss = losses.t_step(
                torch.where(mask, log_prob, 0.0), t(alpha_t).expand(len(x_0)), t(alpha_s).expand(len(x_0)), steps
            )
            happens = alpha_t ** int((~mask).sum()) * (1 - alpha_t) ** int(mask.sum())
            total += happens * loss / steps
    torch.testing.assert_close(total, t_step_nelbo(table, t(*alphas), x_0), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_step_losses_are_finite_on_the_whole_grid(steps):
    """The published T-step loss is 0 * log(1 / 0) at the last step, for SUBS and D3PM alike."""
    schedule = schedules.log_linear()
    grid = schedules.uniform_grid(steps)
    alpha_t, alpha_s = schedule.alpha(grid[:-1]), schedule.alpha(grid[1:])
    assert alpha_s[-1] == 1.0
    log_prob = torch.full((steps, 2), -3.0, dtype=F64, requires_grad=True)
    for value in (-0.1, -torch.inf):
        log_prob_mask = torch.full((steps, 2), value, dtype=F64, requires_grad=True)
        loss = losses.t_step(log_prob, alpha_t, alpha_s, steps) + losses.d3pm(
            log_prob, log_prob_mask, torch.ones_like(log_prob).bool(), alpha_t, alpha_s, steps
        )
        assert loss.isfinite().all()
        for gradient in torch.autograd.grad(loss.sum(), [log_prob, log_prob_mask]):
            assert gradient.isfinite().all()


def test_a_step_without_noise_costs_nothing():
    ones = torch.ones(2, dtype=F64)
    assert losses.t_step(torch.zeros(2, 3, dtype=F64), ones, ones, 10).tolist() == [0.0, 0.0]


def test_many_steps_come_near_the_continuous_loss():
    schedule, time = schedules.cosine(), t(0.2, 0.5, 0.9)
    log_prob = -torch.rand(3, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    fine = losses.t_step(log_prob, schedule.alpha(time), schedule.alpha(time - 1e-6), 10**6)
    continuous = losses.nelbo(log_prob, schedules.nelbo_weight(schedule, time))
    torch.testing.assert_close(fine, continuous, rtol=1e-5, atol=0.0)


# ---- D3PM


def divergence(law: Tensor, x_0: int, alpha_t: float, alpha_s: float) -> Tensor:
    """KL of a step from a mask by Bayes' rule over all values of x_s, with law (v,) for x_0."""

    def joint(start: Tensor) -> Tensor:
        kept = alpha_s * start  # x_s is a token or, with what is left, the mask
        at_s = kept + (1 - alpha_s) * torch.eye(len(start), dtype=F64)[MASK]
        to_mask = torch.full_like(start, 1 - alpha_t / alpha_s)
        to_mask[MASK] = 1.0
        weights = at_s * to_mask
        return weights / weights.sum()

    target, model = joint(torch.eye(len(law), dtype=F64)[x_0]), joint(law)
    return torch.where(target > 0, torch.special.xlogy(target, target / model), 0.0).sum()


@pytest.mark.parametrize(("alpha_t", "alpha_s"), [(0.0, 0.2), (0.3, 0.7), (0.9, 0.95), (0.6, 1.0)])
def test_d3pm_is_the_divergence_of_a_step(alpha_t, alpha_s):
    laws = torch.randn(5, SYMBOLS + 1, dtype=F64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    x_0 = torch.tensor([0, 1, 2, 0, 1])
    exact = torch.stack([divergence(law, int(x), alpha_t, alpha_s) for law, x in zip(laws, x_0, strict=True)])
    log_p = laws.log()
    ours = losses.d3pm(
        log_p.gather(1, x_0.unsqueeze(1)),
        log_p[:, [MASK]],
        torch.ones(5, 1).bool(),
        t(alpha_t).expand(5),
        t(alpha_s).expand(5),
        num_steps=7,
    )
    torch.testing.assert_close(ours, 7 * exact, rtol=0.0, atol=1e-12)


def test_d3pm_without_a_mask_probability_is_the_t_step_loss_and_visible_tokens_are_free():
    log_prob = -torch.rand(3, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    masked = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    alphas = t(0.1, 0.5, 0.9), t(0.2, 0.8, 1.0)
    ours = losses.d3pm(log_prob, torch.full_like(log_prob, -torch.inf), masked, *alphas, 3)
    torch.testing.assert_close(ours, losses.t_step(torch.where(masked, log_prob, 0.0), *alphas, 3))
    assert ours[1] == 0


def test_d3pm_keeps_its_digits_in_float32():
    """T times a difference of two nearly equal logarithms: float32 inside would leave four digits."""
    alpha_t, alpha_s = t(0.5), t(0.501)
    single = [torch.full((1, 1), value, dtype=torch.float32) for value in (-5.0, -0.3)]
    exact = losses.d3pm(*(s.double() for s in single), torch.ones(1, 1).bool(), alpha_t, alpha_s, 1000)
    ours = losses.d3pm(*single, torch.ones(1, 1).bool(), alpha_t, alpha_s, 1000)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=0.0)


# ---- Score entropy


def true_log_score(alpha: Tensor, x_0: Tensor, size: int) -> Tensor:
    """`log( alpha / (1 - alpha) )` at the data's token, zero probability elsewhere."""
    score = torch.full((len(x_0), size), -torch.inf, dtype=F64)
    return score.scatter(1, x_0.unsqueeze(1), alpha.logit().unsqueeze(1))


def test_score_entropy_is_zero_at_the_true_score_and_positive_elsewhere():
    alpha, slope, x_0 = t(0.1, 0.5, 0.9), t(-1.0, -2.0, -0.5), torch.tensor([0, 2, 1])
    true = true_log_score(alpha, x_0, SYMBOLS + 1)
    torch.testing.assert_close(losses.sedd(true, x_0, alpha, slope, MASK), t(0, 0, 0), rtol=0.0, atol=1e-12)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = torch.randn(3, SYMBOLS + 1, generator=generator, dtype=F64)
        assert (losses.sedd(other, x_0, alpha, slope, MASK) > 0).all()


def test_score_entropy_of_a_normalised_score_is_the_continuous_nelbo():
    """With `s_y = r p_y` and p a law of tokens, it is the weight of the NELBO times `-log p(x_0)`."""
    schedule, time, x_0 = schedules.log_linear(1e-3), t(0.1, 0.5, 0.9), torch.tensor([0, 2, 1])
    alpha = schedule.alpha(time)
    log_p = torch.randn(3, SYMBOLS, dtype=F64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    log_score = torch.cat([alpha.logit().unsqueeze(1) + log_p, torch.zeros(3, 1, dtype=F64)], dim=1)
    ours = losses.sedd(log_score, x_0, alpha, schedule.alpha_slope(time), MASK)
    nelbo = losses.nelbo(log_p.gather(1, x_0.unsqueeze(1)), schedules.nelbo_weight(schedule, time))
    torch.testing.assert_close(ours, nelbo, rtol=0.0, atol=1e-12)


def test_score_entropy_leaves_the_mask_out():
    alpha, slope, x_0 = t(0.3), t(-1.0), torch.tensor([1])
    log_score = torch.zeros(1, SYMBOLS + 1, dtype=F64)
    changed = log_score.clone()
    changed[:, MASK] = 9.0
    assert torch.equal(losses.sedd(log_score, x_0, alpha, slope, MASK), losses.sedd(changed, x_0, alpha, slope, MASK))


# ---- Parameterisations


def hidden_of(denoiser: denoisers.D3pmDenoiser | denoisers.SeddDenoiser) -> Tensor:
    state = {
        contracts.X_T: torch.tensor([[4, 1, 4], [0, 4, 2]]),
        contracts.T: t(0.7, 0.3),
        contracts.POSITIONS: torch.tensor([0, 2, 4]),
    }
    return denoiser(TensorDict(state))[contracts.HIDDEN]


def test_d3pm_may_predict_the_mask():
    denoiser = denoisers.d3pm(tiny_network(), mask_id=4)
    log_p = denoiser.log_prob(hidden_of(denoiser))
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(3, dtype=F64))
    assert log_p[:, 4].isfinite().all()


def test_sedd_with_logits_of_zero_is_the_score_of_uniform_tokens():
    network = tiny_network()
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.zeros_(network.head.bias)
    denoiser = denoisers.sedd(network, 4, schedules.log_linear(1e-3))
    alpha = t(0.3, 0.3, 0.7)
    score = denoiser.log_score(hidden_of(denoiser), alpha).exp()
    torch.testing.assert_close(score[:, :4], (alpha / (1 - alpha) / 4).unsqueeze(1).expand(3, 4))
    assert (score[:, 4] == 1).all()


def test_sedd_without_a_noise_level_is_refused():
    with pytest.raises(ValueError, match="sigma = 0"):
        denoisers.sedd(tiny_network(), 4, None)
    with pytest.raises(ValueError, match=r"finite sigma\(1\)"):
        denoisers.sedd(tiny_network(), 4, schedules.log_linear())


def test_baselines_refuse_a_mask_outside_the_vocabulary():
    for build in (denoisers.d3pm, denoisers.sedd):
        with pytest.raises(ValueError, match="mask_id = 5 is outside"):
            build(tiny_network(), 5, schedules.log_linear(1e-3))


def test_baselines_are_no_denoisers_of_a_sampler():
    assert not isinstance(denoisers.d3pm(tiny_network(), 4), contracts.Denoiser)
    assert not isinstance(denoisers.sedd(tiny_network(), 4, schedules.linear()), contracts.Denoiser)


# ---- Next token


def test_next_token_is_the_negative_log_likelihood_of_a_row():
    assert losses.next_token(t(-1.0, -2.5, 0.0).unsqueeze(0)).tolist() == [3.5]


# ---- Importance-sampled times

SCHEDULES = {
    "log_linear": schedules.log_linear(),
    "log_linear_eps": schedules.log_linear(1e-3),
    "cosine": schedules.cosine(),
    "polynomial": schedules.polynomial(2.0),
    "linear": schedules.linear(),
    "geometric": schedules.geometric(),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_importance_times_follow_the_weight(name):
    """The mean of any function under the weight is the constant weight times its mean over these times."""
    schedule, low, n = SCHEDULES[name], 1e-2, 20_000
    middle = (torch.arange(n, dtype=F64) + 0.5) / n
    times = training_times.importance_times(middle, schedule, low)
    assert (times.diff() > 0).all()
    assert low <= times[0]
    assert times[-1] <= 1
    ours = training_times.importance_weight(schedule, times, low)
    assert ours.shape == times.shape
    uniform = low + (1 - low) * middle
    weight = schedules.nelbo_weight(schedule, uniform) * (1 - low)
    for f in (torch.ones_like, torch.sqrt, lambda x: x**2):
        torch.testing.assert_close((ours * f(times)).mean(), (weight * f(uniform)).mean(), rtol=2e-4, atol=0.0)


def test_importance_times_at_the_ends():
    ends = training_times.importance_times(t(0.0, 1.0), schedules.log_linear(), low=0.25)
    torch.testing.assert_close(ends, t(0.25, 1.0))
    weight = training_times.importance_weight(schedules.log_linear(), ends, low=0.25)
    torch.testing.assert_close(weight, t(1.0, 1.0) * math.log(4))


@pytest.mark.parametrize("low", [0.0, 1.0, -0.1])
def test_importance_times_need_a_finite_weight(low):
    for build in (
        lambda: training_times.importance_times(t(0.5), schedules.log_linear(), low),
        lambda: training_times.importance_weight(schedules.log_linear(), t(0.5), low),
    ):
        with pytest.raises(ValueError, match=f"low = {low}"):
            build()
