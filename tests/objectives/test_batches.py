"""The batch that training pipelines read, as its own example shows it."""

import doctest
import re
from pathlib import Path
from typing import Any

import torch
from builders import tiny_network

from edlm import contracts
from edlm.models import denoisers
from edlm.objectives import batches, denoising
from edlm.process import schedules


def test_its_example_is_true() -> None:
    found = doctest.testmod(batches)
    assert found.attempted
    assert not found.failed


def test_the_parts_of_a_batch_have_the_losses_of_the_whole() -> None:
    network = tiny_network(0, 5, 8).float()
    stages = denoising.denoising(denoisers.subs(network, 4), schedules.log_linear())
    x_0, row = torch.arange(32).reshape(4, 8) % 4, torch.arange(4)
    whole = stages(batches.training_batch(x_0, 3, row, 5, num_rows=4))
    for part in row.split(3):
        found = stages(batches.training_batch(x_0[part], 3, part, 5, num_rows=4))
        assert torch.equal(found[contracts.X_T], whole[contracts.X_T][part])
        torch.testing.assert_close(found[contracts.LOSS], whole[contracts.LOSS][part])


def test_the_loop_of_the_document_trains() -> None:
    text = (Path(__file__).parents[2] / "docs" / "howto" / "training.md").read_text("utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(compile(code, "training.md", "exec"), names)
    assert any(bool(parameter.grad.any()) for parameter in names["network"].parameters() if parameter.grad is not None)
