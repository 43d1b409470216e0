"""A draw is the inverse of the cumulative law at one uniform, exact down to the smallest probability.

The chi-square tests use fixed seeds; for seeds chosen at random one of them would fail in 1 of 1000 runs of the file.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from strategies import LARGEST, SMALLEST, logits, uniforms, vocabulary_sizes
from torch import Tensor

from edlm.process import noise
from edlm.process.categorical import entropy, inverse_cdf, nucleus, streamed_log_prob, token_log_prob
from edlm.process.noise import Stream

BLOCK = 256
SIZES = [1, 2, 28, 257, 1000]
FALSE_ALARM = 1e-3 / len(SIZES)
FLOATS = st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64])


@st.composite
def laws_and_uniforms(draw: st.DrawFn, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    n, k = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    return draw(logits(n, draw(vocabulary_sizes()), dtype)), draw(uniforms(n, k))


def peaked(v: int, seed: int = 0) -> Tensor:
    return 2.0 * torch.randn(v, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_of(*weights: float) -> Tensor:
    return torch.tensor([weights], dtype=torch.float64).log()


def column(values: list[float]) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


# ---- The law


@given(laws_and_uniforms())
def test_a_draw_inverts_the_running_sum_of_the_law(example):
    law, u = example
    weights = (law - law.amax(-1, keepdim=True)).double().exp()
    running = weights.cumsum(-1)
    drawn = inverse_cdf(law, u).tokens
    target, slack = u * running[:, -1:], 1e-6 * running[:, -1:]  # the weights are float32
    assert (target <= running.gather(1, drawn) + slack).all()
    assert (target >= (running - weights).gather(1, drawn) - slack).all()


@given(laws_and_uniforms(torch.float64))
def test_in_float64_the_inverse_is_exact(example):
    law, u = example
    running = (law - law.amax(-1, keepdim=True)).exp().cumsum(-1)
    target = u * running[:, -1:]
    expected = (running.unsqueeze(1) <= target.unsqueeze(-1)).sum(-1)
    on_an_edge = ((running.unsqueeze(1) - target.unsqueeze(-1)).abs() < 1e-13 * running[:, None, -1:]).any(-1)
    assert ((inverse_cdf(law, u).tokens == expected) | on_an_edge).all()


@pytest.mark.parametrize("v", SIZES)
def test_evenly_spaced_uniforms_draw_each_token_in_proportion(v):
    law, n = peaked(v), 8192
    u = ((torch.arange(n) + 0.5) / n).double().view(1, -1)
    counts = torch.bincount(inverse_cdf(law.unsqueeze(0), u).tokens[0], minlength=v)
    assert (counts - n * law.softmax(-1)).abs().max() <= 1.0  # n p points in an interval of width p, +-1


@pytest.mark.slow
@pytest.mark.parametrize("v", SIZES)
def test_counts_follow_the_law_and_a_bias_of_one_percent_would_be_seen(v):
    logits_, law = peaked(v).unsqueeze(0), peaked(v).softmax(-1)
    u = noise.grid(7, torch.arange(512), v, Stream.PROPOSAL, 512)
    tokens = torch.cat([inverse_cdf(logits_, part.unsqueeze(0)).tokens[0] for part in u])
    counts = torch.bincount(tokens, minlength=v)
    assert chi_square(counts, law) > FALSE_ALARM
    if v > 1:  # the twin has one percent of the mass moved from one token to another
        biased = law.index_add(0, law.topk(2).indices, column([-0.01, 0.01])[0])
        assert chi_square(counts, biased) < FALSE_ALARM


def chi_square(counts: Tensor, law: Tensor) -> float:
    """p-value; tokens expected fewer than 5 times count as one."""
    expected = law * counts.sum()
    rare = expected < 5.0
    observed = torch.cat([counts[~rare].double(), counts[rare].sum().double().view(1)])
    expected = torch.cat([expected[~rare], expected[rare].sum().view(1)])
    keep = expected > 0
    return stats.chisquare(observed[keep], expected[keep]).pvalue if keep.sum() > 1 else 1.0


# ---- The tail


@pytest.mark.parametrize("v", [2, 28, 1000])
@pytest.mark.parametrize("rare", [1e-6, 1e-12])
def test_a_rare_token_is_drawn_inside_its_interval_and_nowhere_else(v, rare):
    weights = torch.full((v,), (1 - rare) / (v - 1), dtype=torch.float64)
    token = v // 2
    weights[token] = rare
    low = weights[:token].sum().item()
    u = column([low - 0.01 * rare, low + 0.01 * rare, low + 0.99 * rare, low + 1.01 * rare])
    expected = [token - 1, token, token, min(token + 1, v - 1)]
    for shift in (0.0, 100.0):
        assert inverse_cdf(weights.log().unsqueeze(0) + shift, u.clamp(max=LARGEST)).tokens.tolist() == [expected]


def test_float32_logits_keep_a_tail_of_one_in_a_million():
    law = log_of(1 - 1e-6, 1e-6).float()
    u = column([1 - 1.01e-6, 1 - 0.99e-6, LARGEST])
    assert inverse_cdf(law, u).tokens.tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("v", [1, 2, 256, 257, 1000])
def test_the_extreme_uniforms_draw_the_first_and_the_last_possible_token(v):
    u = column([0.0, SMALLEST, LARGEST])
    assert inverse_cdf(torch.zeros(1, v), u).tokens.tolist() == [[0, 0, v - 1]]
    law = torch.zeros(1, v + 2).index_fill(1, torch.tensor([0, v + 1]), -torch.inf)
    assert inverse_cdf(law, u).tokens.tolist() == [[1, 1, v]]


def test_block_edges_belong_to_the_block_above():
    v = 4 * BLOCK
    edges = [n / v for n in (BLOCK - 1, BLOCK, 2 * BLOCK, v - 1)]
    below = [edge - 2.0**-53 for edge in edges]
    assert inverse_cdf(torch.zeros(1, v), column(edges)).tokens.tolist() == [[BLOCK - 1, BLOCK, 2 * BLOCK, v - 1]]
    assert inverse_cdf(torch.zeros(1, v), column(below)).tokens.tolist() == [[BLOCK - 2, BLOCK - 1, 511, v - 2]]


# ---- What is never drawn


@given(laws_and_uniforms())
def test_a_token_of_probability_zero_is_never_drawn(example):
    law, u = example
    drawn = inverse_cdf(law, u).tokens
    assert ((drawn >= 0) & (drawn < law.shape[1])).all()
    assert (law.gather(1, drawn) > -torch.inf).all()


@given(st.integers(1, 600), st.data())
def test_a_one_hot_law_draws_its_token_with_certainty(v, data):
    token = data.draw(st.integers(0, v - 1))
    law = torch.full((1, v), -torch.inf).index_fill(
        1, torch.tensor([token]), data.draw(st.sampled_from([0.0, -1e4, 1e4]))
    )
    draws = inverse_cdf(law, data.draw(uniforms(1, 3)))
    assert draws.tokens.tolist() == [[token] * 3]
    assert draws.log_prob.tolist() == [[0.0] * 3]


@pytest.mark.parametrize("shut", [slice(0, 256), slice(256, 512), slice(512, 600), slice(0, 512), slice(256, 600)])
def test_a_block_without_mass_is_passed_over(shut):
    law = torch.zeros(1, 600)
    law[:, shut] = -torch.inf
    u = column([0.0, SMALLEST, 0.25, 0.5, 256 / 344, LARGEST])
    assert (law.gather(1, inverse_cdf(law, u).tokens) == 0.0).all()


# ---- Many draws, shifts, types


@given(laws_and_uniforms())
def test_many_draws_equal_single_draws(example):
    law, u = example
    single = [inverse_cdf(law, u[:, j : j + 1]) for j in range(u.shape[1])]
    many = inverse_cdf(law, u)
    assert torch.equal(many.tokens, torch.cat([draw.tokens for draw in single], dim=1))
    assert torch.equal(many.log_prob, torch.cat([draw.log_prob for draw in single], dim=1))


@given(laws_and_uniforms())
def test_rows_do_not_see_each_other(example):
    law, u = example
    alone = [inverse_cdf(law[i : i + 1], u[i : i + 1]) for i in range(len(law))]
    together = inverse_cdf(law, u)
    assert torch.equal(together.tokens, torch.cat([draw.tokens for draw in alone]))
    assert torch.equal(together.log_prob, torch.cat([draw.log_prob for draw in alone]))


@given(laws_and_uniforms(), st.sampled_from([-64.0, -0.5, 32.0]))
def test_a_constant_added_to_the_logits_changes_nothing(example, shift):
    law, u = example
    law = law.clamp(min=-1e3, max=1e3).mul(64).round().div(64)  # so that the shifted logits are exact
    before, after = inverse_cdf(law, u), inverse_cdf(law + shift, u)
    assert torch.equal(before.tokens, after.tokens)
    assert torch.equal(before.log_prob, after.log_prob)


@given(laws_and_uniforms())
def test_log_prob_is_the_log_softmax_at_the_token(example):
    law, u = example
    draws = inverse_cdf(law, u)
    expected = law.double().log_softmax(-1).gather(1, draws.tokens).float()
    torch.testing.assert_close(draws.log_prob, expected, rtol=1e-5, atol=1e-5)
    rounding = 1e-6 * law.masked_fill(law == -torch.inf, 0.0).abs().max().item()
    torch.testing.assert_close(token_log_prob(law, draws.tokens), expected, rtol=1e-5, atol=1e-5 + rounding)


@given(FLOATS, st.data())
def test_results_are_float32_or_better_whatever_the_logits(dtype, data):
    law, u = data.draw(laws_and_uniforms(dtype))
    draws = inverse_cdf(law, u)
    wide = torch.promote_types(dtype, torch.float32)
    assert (draws.tokens.dtype, draws.log_prob.dtype) == (torch.int64, wide)
    assert token_log_prob(law, draws.tokens).dtype == entropy(law).dtype == wide
    exact = inverse_cdf(law.to(wide), u)  # low precision is widened before anything is summed
    assert torch.equal(draws.tokens, exact.tokens)
    assert torch.equal(draws.log_prob, exact.log_prob)
    assert torch.equal(entropy(law), entropy(law.to(wide)))


@given(laws_and_uniforms())
def test_no_input_is_changed(example):
    law, u = example
    copies = law.clone(), u.clone()
    tokens = inverse_cdf(law, u).tokens
    token_log_prob(law, tokens), entropy(law)
    assert torch.equal(law, copies[0])
    assert torch.equal(u, copies[1])


def test_no_rows_give_no_draws():
    assert inverse_cdf(torch.zeros(0, 5), torch.zeros(0, 2).double()).tokens.shape == (0, 2)


# ---- Entropy


@given(laws_and_uniforms())
def test_entropy_lies_between_none_and_that_of_the_flat_law(example):
    law, _ = example
    possible = (law > -torch.inf).sum(-1).double()
    values = entropy(law).double()
    assert (values >= -1e-6).all()
    assert (values <= possible.log() + 1e-4).all()
    torch.testing.assert_close(values, torch.special.entr(law.double().softmax(-1)).sum(-1), rtol=1e-5, atol=1e-4)


def test_entropy_in_closed_form():
    laws = torch.cat([log_of(0.25, 0.75, 0.0), log_of(0.5, 0.5, 0.0), log_of(0.0, 1.0, 0.0)])
    expected = [0.5623351446188083, 0.6931471805599453, 0.0]
    assert entropy(laws).tolist() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_block_of_one_in_a_billion_is_reached(dtype: torch.dtype):
    """Block sums may be float32; what runs over them may not."""
    logits = torch.full((1, 600), -torch.inf, dtype=dtype)
    logits[0, 3], logits[0, 300], logits[0, 599] = 0.0, math.log(1e-9), math.log(1e-9)
    share = 1e-9 / (1.0 + 2e-9)
    uniforms = torch.tensor([[1.0 - 2.5 * share, 1.0 - 1.5 * share, 1.0 - 0.5 * share]], dtype=torch.float64)
    assert inverse_cdf(logits, uniforms).tokens.tolist() == [[3, 300, 599]]


# ---- Nucleus


@given(st.integers(0, 1000), st.integers(1, 9), st.floats(0.01, 1.0))
def test_a_nucleus_is_the_fewest_most_likely_tokens_of_that_mass(seed: int, size: int, mass: float):
    logits = 3.0 * torch.randn(4, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = nucleus(logits, mass)
    law = logits.softmax(-1)
    for row in range(4):
        inside = kept[row] > -torch.inf
        assert torch.equal(kept[row][inside], logits[row][inside])
        assert law[row][inside].sum() >= mass - 1e-12
        if inside.sum() > 1:
            assert law[row][inside].sum() - law[row][inside].min() < mass + 1e-12
        if not inside.all():
            assert law[row][inside].min() >= law[row][~inside].max()


def test_of_equally_likely_tokens_the_lower_ids_are_in_the_nucleus():
    assert (nucleus(torch.zeros(1, 4), 0.5) > -torch.inf).tolist() == [[True, True, False, False]]


def test_the_whole_mass_keeps_every_token():
    logits = torch.tensor([[0.0, -40.0, -torch.inf]])
    assert nucleus(logits, 1.0) is logits


@pytest.mark.parametrize("mass", [0.0, -0.1, 1.1, float("nan")])
def test_a_nucleus_of_no_mass_or_too_much_is_refused(mass: float):
    with pytest.raises(ValueError, match=rf"nucleus = {mass} must lie in \(0, 1\]"):
        nucleus(torch.zeros(1, 2), mass)


# ---- A slice of the vocabulary at a time


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 13), st.sampled_from([torch.float64, torch.bfloat16]))
def test_log_probabilities_in_slices_are_those_of_the_whole(seed: int, size: int, width: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(seed)
    logits = (5.0 * torch.randn(4, size, generator=generator, dtype=torch.float64)).to(dtype)
    if size > 1:
        logits[:, 0] = -torch.inf
    tokens = torch.randint(size, (4,), generator=generator)
    found = streamed_log_prob(lambda c: logits if c is None else logits[:, c], size, tokens, width)
    whole = token_log_prob(logits, tokens.unsqueeze(-1)).squeeze(-1)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, whole, rtol=0.0, atol=tolerance)
    assert found.dtype == whole.dtype
