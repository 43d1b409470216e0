"""What a plan expects of a text is the mean of what it draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm.process import schedules
from edlm.samplers import plans

LENGTH, ROWS = 7, 4000
PLANS = [
    plans.Grid(3),
    plans.Grid(5, "cosine"),
    plans.TokensPerPass(1),
    plans.TokensPerPass(2),
    plans.TokensPerPass(3),
    plans.LeftToRight(1),
    plans.LeftToRight(3),
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from([(0.0, 1.0), (0.3, 0.8), (0.6, 1.0), (0.0, 0.5)]))
def test_expected_figures_are_means_over_drawn_plans(plan: plans.Plan, seed: int, window: tuple[float, float]) -> None:
    """Each within 5.5 standard errors: 1e-7 a figure and an example."""
    schedule = schedules.log_linear()
    uniforms = torch.rand(ROWS, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    drawn = plan.draw(uniforms, torch.ones(ROWS, LENGTH, dtype=torch.bool), schedule)
    runs = torch.arange(drawn.t.shape[1]) < drawn.passes.unsqueeze(-1)
    inside = schedules.inside(drawn.t, window) & runs
    revealed = (drawn.order.unsqueeze(-1) == torch.arange(drawn.t.shape[1])).sum(1)
    found = {
        "passes": drawn.passes.double(),
        "corrected": inside.sum(1).double(),
        "revealed": (revealed * inside).sum(1).double() / LENGTH,
        "entered": inside.any(1).double(),
    }
    expected = plan.expected(schedule, LENGTH, window)._asdict()
    for name, values in found.items():
        error = float(values.std()) / ROWS**0.5
        rare = 4.0 / ROWS if name == "entered" else 1e-9  # of what nearly always happens a few rows may not have it
        assert abs(float(values.mean()) - expected[name]) <= 5.5 * error + rare, name
