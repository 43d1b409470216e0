"""Remasking: the rules against the published formulas, and what is refused."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import strategies
import torch
from builders import tiny_denoiser
from hypothesis import given
from hypothesis import strategies as st
from remasked import pipeline
from torch import Tensor

from edlm.process import schedules
from edlm.samplers import corrections, plans, remasking
from edlm.samplers.remasking import Cap, Confidence, ForwardBackward, Loop, Remasking, Rescale
from edlm.samplers.sampler import Sampler

rules = st.one_of(
    st.builds(Cap, strategies.unit_floats()),
    st.builds(Rescale, strategies.unit_floats()),
    st.builds(Loop, st.floats(0.5, 0.9), st.floats(0.1, 0.4), st.floats(0.1, 0.9), strategies.unit_floats()),
    st.just(Confidence()),
    st.just(ForwardBackward()),
    st.sampled_from([Cap(0.0), Cap(1.0), Rescale(1.0), Loop()]),
)


@given(rules, strategies.noise_schedules(), strategies.step_grids(), st.data())
def test_a_chance_lies_where_it_may_and_the_last_step_leaves_no_mask(
    rule: Remasking, schedule: schedules.Schedule, grid: Tensor, data: st.DataObject
) -> None:
    times, alphas = remasking.path(rule, plans.Times(tuple(grid.tolist())), schedule)
    assert times[0] == 1.0
    assert times[-1] == 0.0
    assert (times.diff() <= 0.0).all()
    p_written = data.draw(strategies.uniforms(2, 4))
    p_written = p_written.masked_fill(p_written > 0.6, math.inf)
    for alpha_t, alpha_s in itertools.pairwise(alphas):
        sigma = rule.sigma(alpha_t, alpha_s, p_written)
        highest = min(1.0, (1.0 - float(alpha_s)) / float(alpha_t)) if alpha_t > 0.0 else 1.0
        assert ((sigma >= 0.0) & (sigma <= highest)).all()
        reveal = remasking.revealing(alpha_t, alpha_s, sigma)
        assert ((reveal >= 0.0) & (reveal <= 1.0 + 1e-12)).all()
    assert (sigma == 0.0).all() or alphas[-2] == 0.0, "where nothing is visible, nothing can be masked"
    assert (reveal == 1.0).all()


@given(rules.filter(lambda rule: not rule.by_token), strategies.noise_schedules(), strategies.step_grids())
def test_the_share_of_masks_is_the_schedule_s_whatever_the_rule(
    rule: Remasking, schedule: schedules.Schedule, grid: Tensor
) -> None:
    _, alphas = remasking.path(rule, plans.Times(tuple(grid.tolist())), schedule)
    masked = torch.ones((), dtype=torch.float64)
    for alpha_t, alpha_s in itertools.pairwise(alphas):
        sigma = rule.sigma(alpha_t, alpha_s, torch.full((1, 1), math.inf))
        masked = masked * (1.0 - remasking.revealing(alpha_t, alpha_s, sigma)) + (1.0 - masked) * sigma
        torch.testing.assert_close(masked, 1.0 - alpha_s, rtol=0.0, atol=1e-9)


def test_the_published_formulas_at_a_few_numbers() -> None:
    """At alpha_t = 0.5, alpha_s = 0.6 the highest is 0.8; at 0.2 and 0.4 it is 1."""
    half, more, p = torch.tensor(0.5), torch.tensor(0.6), torch.tensor([[0.9, 0.1, math.inf]]).double()
    assert float(Cap(0.3).sigma(half, more, p)) == pytest.approx(0.3)
    assert float(Cap(0.9).sigma(half, more, p)) == pytest.approx(0.8)
    assert float(Rescale(0.3).sigma(half, more, p)) == pytest.approx(0.24)
    assert float(ForwardBackward().sigma(half, more, p)) == pytest.approx(0.2)
    assert float(ForwardBackward().sigma(torch.tensor(0.2), torch.tensor(0.4), p)) == pytest.approx(1.0)
    assert float(Loop().sigma(half, more, p)) == 0.0
    assert float(Loop().sigma(half, half, p)) == pytest.approx(0.02)
    weights = [math.exp(-0.9), math.exp(-0.1)]
    wanted = [0.8 * weight / sum(weights) for weight in weights]
    assert Confidence().sigma(half, more, p)[0].tolist() == pytest.approx([*wanted, 0.0])
    assert not Confidence().sigma(half, more, torch.full((1, 3), math.inf)).any()
    assert float(remasking.revealing(half, more, torch.tensor(0.3))) == pytest.approx((0.6 - 0.7 * 0.5) / 0.5)


def test_a_loop_goes_to_its_share_stays_and_ends() -> None:
    """The paper's numbers; with alpha = 1 - t it moves along (1 - t) alpha_on / (1 - t_on), then stands still."""
    _, alphas = remasking.path(Loop(), plans.Grid(20), schedules.log_linear())
    grid = torch.linspace(1.0, 0.0, 21, dtype=torch.float64)
    torch.testing.assert_close(alphas[:9], (1.0 - grid[:9]) * 0.9 / 0.45)
    assert alphas[9:20].tolist() == pytest.approx([0.9] * 11)
    assert len(alphas[10:19].unique()) == 1
    assert float(alphas[20]) == 1.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Cap(-0.1), r"eta = -0\.1 must lie in \[0, 1\]"),
        (lambda: Rescale(1.5), r"eta = 1\.5 must lie in"),
        (lambda: Loop(t_on=0.1, t_off=0.2), r"t_off = 0\.2 and t_on = 0\.1 must satisfy 0 < t_off < t_on < 1"),
        (lambda: Loop(alpha_on=1.0), r"alpha_on = 1\.0 must lie in \(0, 1\)"),
        (lambda: Loop(eta=2.0), r"eta = 2\.0 must lie in"),
        (lambda: pipeline("cap"), r"remasking = 'cap' must be None or a rule, as remasking\.Cap\(\) is"),
        (
            lambda: Sampler(tiny_denoiser(), remasking=Cap()),
            r"remasking = 'cap 0\.008': it needs steps between given times, as plans\.Grid has, and 'one by one' has",
        ),
        (
            lambda: pipeline(Cap(), correction=corrections.ChainRule(), candidates=2),
            r"remasking = 'cap 0\.008': it takes no correction, and 'chain_rule' is one",
        ),
        (lambda: pipeline(Cap(), window=(0.2, 0.8)), r"window = \(0\.2, 0\.8\) needs a correction"),
        (lambda: pipeline(Cap(), selection="speculative"), r"selection = 'speculative' needs a correction"),
        (lambda: pipeline(Cap(), candidates=4), r"candidates = 4 needs a correction"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(("t_off", "t_on"), [(0.0, 0.5), (0.2, 0.2), (0.2, 1.0)])
def test_a_loop_begins_and_ends_inside_of_the_times(t_off: float, t_on: float) -> None:
    with pytest.raises(ValueError, match="must satisfy 0 < t_off < t_on < 1"):
        Loop(t_on=t_on, t_off=t_off)


@pytest.mark.parametrize(("build", "edge"), [(Cap, 0.0), (Cap, 1.0), (Rescale, 0.0), (Rescale, 1.0)])
def test_a_share_on_its_edge_is_taken(build: Callable[[float], Any], edge: float) -> None:
    assert build(edge).eta == edge


@pytest.mark.parametrize("alpha_on", [0.0, 1.0])
def test_the_share_that_a_loop_stays_at_is_neither_none_nor_all(alpha_on: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\)"):
        Loop(alpha_on=alpha_on)
