"""A step of a baseline is a pure function: nothing that it is given is written into, and the same again is the same."""

import pytest
import torch

from edlm import contracts
from edlm.models import denoisers
from edlm.nn.networks import Transformer
from edlm.process import schedules
from edlm.samplers import baselines

LENGTH, MASK, VOCAB = 4, 3, 4
SCHEDULE = schedules.log_linear(eps=1e-3)
NETWORK = Transformer(VOCAB, LENGTH, hidden_size=8, num_layers=1, num_heads=1, conditioning_size=4).eval()
KERNELS = {
    "d3pm": baselines.d3pm(denoisers.d3pm(NETWORK, MASK), SCHEDULE),
    "analytic": baselines.analytic(denoisers.sedd(NETWORK, MASK, SCHEDULE), SCHEDULE),
}


@pytest.mark.parametrize("name", KERNELS)
def test_nothing_that_a_step_is_given_is_written_into(name: str) -> None:
    x_t = torch.tensor([[MASK, 0, MASK, 2], [MASK, MASK, MASK, 1]])
    ends = torch.tensor(0.75), torch.tensor(0.5)
    given = baselines._state(x_t, torch.arange(2), *ends, 0, 0, MASK)
    before = given.clone()
    found = KERNELS[name].step(given)
    assert set(given.keys()) == set(before.keys())
    for key in set(before.keys()):
        assert torch.equal(given[key], before[key]), key
    again = KERNELS[name].step(given)
    assert torch.equal(found[contracts.X_S], again[contracts.X_S])
    visible = x_t != MASK
    assert torch.equal(found[contracts.X_S][visible], x_t[visible])
